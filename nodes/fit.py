"""Geometry: how large a picture becomes, and what happens where the aspects differ."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
from annotated_types import Ge, Gt, Le

from engine.param import Unit
from nodes.types import MAX_SIDE

Fit = Literal["stretch", "crop", "fill"]
"""What happens where the aspects differ: distort, cut the overhang, or continue the edges."""
Resizing = Literal["stretch", "crop", "fill", "latent"]
"""The ways to fit, and `latent`: leave the pixels to `latent.resize`."""
Filter = Literal["lanczos", "bicubic", "bilinear", "nearest", "box"]
"""Pillow's resampling filters; all but `nearest` average when they make a picture smaller."""
Factor = Annotated[float, Gt(0), Le(16)]
"""How many times wider and higher."""
Multiple = Annotated[int, Ge(1), Le(64), Unit("px")]
"""What both sides are a multiple of."""

Size = tuple[int, int]
Levels = npt.NDArray[np.uint8]


def target(size: Size, width: int | None, height: int | None, factor: float | None, multiple: int = 1) -> Size:
    """The (width, height) that is asked for, in px: `factor` times `size`, truncated, or else both sides.

    Both are rounded down to a multiple of `multiple`.
    """
    if factor is not None:
        width, height = int(size[0] * factor), int(size[1] * factor)
    if width is None or height is None:
        raise ValueError(f"expected width and height, or factor; got {width=}, {height=}")
    rounded = width // multiple * multiple, height // multiple * multiple
    if min(rounded) < 1 or max(rounded) > MAX_SIDE:
        origin = px((width, height)) if factor is None else f"{px(size)} times {factor}"
        whole = f", in whole multiples of {multiple} px," if multiple > 1 else ""
        raise ValueError(f"{origin}{whole} is {px(rounded)}: each side must be 1..{MAX_SIDE} px")
    return rounded


def fit(picture: PIL.Image.Image, size: Size, mode: Fit, resampling: Filter) -> PIL.Image.Image:
    """`picture` at `size`, with the geometry of A1111's resize modes 0, 1 and 2 (v1.10.1).

    Overhang and bands are split at the middle: on each axis the resized picture lies at canvas // 2 - resized // 2. A
    last line that A1111 leaves black for some odd sizes belongs to the band here.
    """
    if mode == "stretch":
        return resampled(picture, size, resampling)
    inner = covering(picture.size, size) if mode == "crop" else contained(picture.size, size)
    if max(inner) > MAX_SIDE:
        raise ValueError(f"{px(inner)} would have to be made and cropped to {px(size)}: no side may exceed {MAX_SIDE}")
    resized = resampled(picture, inner, resampling)
    left, top = centred(inner, size)
    if mode == "crop":
        return resized.crop((-left, -top, size[0] - left, size[1] - top))
    rows = continued(np.asarray(resized), 0, top, size[1] - inner[1] - top)
    return PIL.Image.fromarray(continued(rows, 1, left, size[0] - inner[0] - left))


def unfilled(picture: PIL.Image.Image, size: Size, resampling: Filter) -> PIL.Image.Image:
    """What the mode `fill` made of a picture of `size`, at that size again: the bands cut off, and nothing shifted."""
    inner = contained(size, picture.size)
    left, top = centred(inner, picture.size)
    return resampled(picture.crop((left, top, left + inner[0], top + inner[1])), size, resampling)


def covering(size: Size, canvas: Size) -> Size:
    """The smallest size of the same aspect that covers `canvas`, truncated."""
    (w, h), (width, height) = size, canvas
    return (width, h * width // w) if width * h >= height * w else (w * height // h, height)


def contained(size: Size, canvas: Size) -> Size:
    """The largest size of the same aspect inside `canvas`, truncated, at least one pixel."""
    (w, h), (width, height) = size, canvas
    return (width, max(1, h * width // w)) if width * h <= height * w else (max(1, w * height // h), height)


def centred(size: Size, canvas: Size) -> tuple[int, int]:
    """Where something of `size` begins, left and top, when it lies in the middle of `canvas`."""
    return canvas[0] // 2 - size[0] // 2, canvas[1] // 2 - size[1] // 2


def resampled(picture: PIL.Image.Image, size: Size, resampling: Filter) -> PIL.Image.Image:
    """`picture` stretched to `size`; unchanged where it has that size."""
    return picture.resize(size, PIL.Image.Resampling[resampling.upper()])


def continued(levels: Levels, axis: int, before: int, after: int) -> Levels:
    """`levels` with a band `before` and `after` it along `axis`.

    Each band repeats 9/8 of the edge line minus 1/8 of its neighbour: Pillow's bicubic centred on the border, which is
    what A1111 shows there.
    """
    lines = np.moveaxis(levels, axis, 0).astype(np.int32)
    first = (9 * lines[:1] - lines[:2][-1:] + 4) >> 3
    last = (9 * lines[-1:] - lines[-2:][:1] + 4) >> 3
    joined = np.concatenate([first.repeat(before, 0), lines, last.repeat(after, 0)])
    return np.moveaxis(joined.clip(0, 255).astype(np.uint8), 0, axis)


def px(size: Size) -> str:
    """A size for a message."""
    return f"{size[0]} x {size[1]} px"
