"""Pictures: from files, to other sizes, one over another, in and out of batches."""

import io
import struct
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from annotated_types import Ge, Gt, Le
from PIL import ImageChops, ImageOps, UnidentifiedImageError

from engine.file import File
from engine.node import node
from nodes.types import MAX_SIDE, Colour, Image, Mask, Offset, Side

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What may be loaded. Pillow's other readers stay closed: some of them start programs."""
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels."""

Fit = Literal["stretch", "crop", "fill"]
"""What happens where the aspects differ: distort, cut the overhang, or continue the edges."""
Filter = Literal["lanczos", "bicubic", "bilinear", "nearest", "box"]
"""Pillow's resampling filters; all but `nearest` average when they make a picture smaller."""
Factor = Annotated[float, Gt(0), Le(16)]
"""How many times wider and higher."""
Index = Annotated[int, Ge(0)]
"""A place in a batch; 0 is the first."""

Size = tuple[int, int]
Levels = npt.NDArray[np.uint8]
Pictures = TypeVar("Pictures", Image, Mask)

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_BOMB = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)


class Loaded(NamedTuple):
    """A picture and its transparent area."""

    out: Image
    alpha: Mask


@node("image.load", version=1)
def load(source: File, background: Colour = "#ffffff") -> Loaded:
    """Load a PNG, JPEG, WebP or GIF, turned upright, its transparent area over a plain background.

    `alpha` is 255 where the picture is fully transparent, so that inpainting fills the holes; 0 where it is opaque. Of
    an animation the first frame is taken. 16 bit levels are rounded to 8; colour profiles are ignored, as by A1111.
    """
    picture = decode(source)
    alpha = picture.convert("RGBA").getchannel("A")
    return Loaded(Image.of(flatten(picture, background)), Mask.of(ImageChops.invert(alpha)))


@node("image.resize", version=1)
def resize(
    image: Image,
    width: Side | None = None,
    height: Side | None = None,
    *,
    factor: Factor | None = None,
    mode: Fit = "stretch",
    filter: Filter = "lanczos",  # noqa: A002  the field's word
) -> Image:
    """Resize to `width` x `height`, or by `factor`.

    Where the aspects differ, `stretch` distorts, `crop` covers the canvas and cuts what hangs over, and `fill` fits
    inside and continues the edges: A1111's "just resize", "crop and resize" and "resize and fill". Sides by `factor`
    are truncated to whole pixels.
    """
    size = target(image.size, width, height, factor)
    return each(image, lambda picture: fit(picture, size, mode, filter))


@node("image.crop", version=1)
def crop(image: Image, x: Offset, y: Offset, width: Side, height: Side) -> Image:
    """Cut out the box whose upper left pixel is (`x`, `y`); it must lie inside the picture."""
    right, bottom = x + width, y + height
    if x < 0 or y < 0 or right > image.size[0] or bottom > image.size[1]:
        raise ValueError(f"the box ({x}, {y})..({right}, {bottom}) leaves the picture of {_px(image.size)}")
    return Image(image.data[..., y:bottom, x:right].contiguous())


@node("image.composite", version=1)
def composite(base: Image, over: Image, mask: Mask, x: Offset = 0, y: Offset = 0) -> Image:
    """Lay `over` on `base` where the mask is white, its upper left pixel at (`x`, `y`).

    out = (mask over + (255 - mask) base) / 255, rounded to the nearest level, so that 0 and 255 keep pixels exactly. A
    mask of the size of `over` moves with it; one of the size of `base` stays in place. What leaves `base` is cut.
    """
    if mask.size not in (over.size, base.size):
        raise ValueError(
            f"the mask is {_px(mask.size)}: expected `over`, {_px(over.size)}, or `base`, {_px(base.size)}"
        )
    count, device = batch_size(base, over, mask), base.data.device
    left, right = _overlap(x, over.size[0], base.size[0])
    top, bottom = _overlap(y, over.size[1], base.size[1])
    on_base = (..., slice(top, bottom), slice(left, right))
    on_over = (..., slice(top - y, bottom - y), slice(left - x, right - x))
    share = mask.data[on_over if mask.size == over.size else on_base].to(device)
    data = base.data.expand(count, -1, -1, -1).clone()
    data[on_base] = _blend(base.data[on_base], over.data[on_over].to(device), share)
    return Image(data)


@node("image.batch", version=1)
def batch(images: tuple[Image, ...]) -> Image:
    """Put pictures of one size into one batch, in the order of the links."""
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(
            f"expected pictures of one size, got {', '.join(map(_px, sizes)) or 'none'}; resize them first"
        )
    return Image(torch.cat([image.data.to(images[0].data.device) for image in images]))


@node("image.pick", version=1)
def pick(image: Image, index: Index = 0) -> Image:
    """Take one picture out of a batch; 0 is the first."""
    if index >= len(image.data):
        raise ValueError(f"index {index} is outside the batch of {len(image.data)}: expected 0..{len(image.data) - 1}")
    return Image(image.data[index : index + 1].clone())


def decode(source: File) -> PIL.Image.Image:
    """The picture in a file, upright, as RGB or RGBA.

    Raises ValueError that names the file when it is no picture in one of the FORMATS, is damaged, or, by its header
    and before any pixel is decoded, has more than MAX_PIXELS.
    """
    picture = _open(source.name, source.read())
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(f"{source.name}: {_px(picture.size)} is {_too_many()}")
    try:
        upright = ImageOps.exif_transpose(picture)
    except _DAMAGED as error:
        raise ValueError(f"{source.name} is damaged or cut short: {error}") from error
    plain = _eight_bit(upright)
    return plain.convert("RGBA" if plain.has_transparency_data else "RGB")


def flatten(picture: PIL.Image.Image, background: str) -> PIL.Image.Image:
    """`picture` over a plain background, RGB."""
    layer = picture.convert("RGBA")
    canvas = PIL.Image.new("RGB", picture.size, background)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def each(pictures: Pictures, change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> Pictures:
    """A batch with every picture changed by Pillow, on the device that it came from."""
    changed = [pictures.of(change(pictures.pil(index))).data for index in range(len(pictures.data))]
    return type(pictures)(torch.cat(changed).to(pictures.data.device))


def batch_size(*inputs: Image | Mask) -> int:
    """How many pictures come out: a batch of 1 goes with any other. Raises ValueError where two others differ."""
    counts = sorted({len(entry.data) for entry in inputs} - {1})
    if len(counts) > 1:
        raise ValueError(f"batches of {' and '.join(map(str, counts))} do not go together")
    return counts[0] if counts else 1


def target(size: Size, width: int | None, height: int | None, factor: float | None) -> Size:
    """The (width, height) that is asked for, in px: both sides, or `factor` times `size`, truncated."""
    if width is not None and height is not None and factor is None:
        return width, height
    if width is not None or height is not None or factor is None:
        raise ValueError(f"expected width and height, or factor; got {width=}, {height=}, {factor=}")
    scaled = int(size[0] * factor), int(size[1] * factor)
    if min(scaled) < 1 or max(scaled) > MAX_SIDE:
        raise ValueError(f"{_px(size)} times {factor} is {_px(scaled)}: each side must be 1..{MAX_SIDE} px")
    return scaled


def fit(picture: PIL.Image.Image, size: Size, mode: Fit, resampling: Filter) -> PIL.Image.Image:
    """`picture` at `size`, with the geometry of A1111's resize modes 0, 1 and 2 (v1.10.1).

    Overhang and bands are split at the middle: on each axis the resized picture lies at canvas // 2 - resized // 2. A
    last line that A1111 leaves black for some odd sizes belongs to the band here.
    """
    if mode == "stretch":
        return _resampled(picture, size, resampling)
    inner = covering(picture.size, size) if mode == "crop" else contained(picture.size, size)
    if max(inner) > MAX_SIDE:
        raise ValueError(
            f"{_px(inner)} would have to be made and cropped to {_px(size)}: no side may exceed {MAX_SIDE}"
        )
    resized = _resampled(picture, inner, resampling)
    left, top = size[0] // 2 - inner[0] // 2, size[1] // 2 - inner[1] // 2
    if mode == "crop":
        return resized.crop((-left, -top, size[0] - left, size[1] - top))
    rows = _continued(np.asarray(resized), 0, top, size[1] - inner[1] - top)
    return PIL.Image.fromarray(_continued(rows, 1, left, size[0] - inner[0] - left))


def covering(size: Size, canvas: Size) -> Size:
    """The smallest size of the same aspect that covers `canvas`, truncated."""
    (w, h), (width, height) = size, canvas
    return (width, h * width // w) if width * h >= height * w else (w * height // h, height)


def contained(size: Size, canvas: Size) -> Size:
    """The largest size of the same aspect inside `canvas`, truncated, at least one pixel."""
    (w, h), (width, height) = size, canvas
    return (width, max(1, h * width // w)) if width * h <= height * w else (max(1, w * height // h), height)


def _open(name: str, data: bytes) -> PIL.Image.Image:
    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMB as error:
        raise ValueError(f"{name} has {_too_many()}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture: expected PNG, JPEG, WebP or GIF") from error
    except _DAMAGED as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _too_many() -> str:
    return f"more than the {MAX_PIXELS // 1_000_000} megapixels that are decoded"


def _eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16 bit grey at 8 bits, 65535 -> 255, its one transparent level as alpha; other pictures as they are."""
    if picture.mode != "I;16":
        return picture
    levels = np.asarray(picture).astype(np.uint32)
    grey = PIL.Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "transparency" in picture.info:
        grey.putalpha(PIL.Image.fromarray(np.where(levels == picture.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _resampled(picture: PIL.Image.Image, size: Size, resampling: Filter) -> PIL.Image.Image:
    return picture.resize(size, PIL.Image.Resampling[resampling.upper()])


def _continued(levels: Levels, axis: int, before: int, after: int) -> Levels:
    """`levels` with a band `before` and `after` it along `axis`.

    Each band repeats 9/8 of the edge line minus 1/8 of its neighbour: Pillow's bicubic centred on the border, which is
    what A1111 shows there.
    """
    lines = np.moveaxis(levels, axis, 0).astype(np.int32)
    first = (9 * lines[:1] - lines[:2][-1:] + 4) >> 3
    last = (9 * lines[-1:] - lines[-2:][:1] + 4) >> 3
    joined = np.concatenate([first.repeat(before, 0), lines, last.repeat(after, 0)])
    return np.moveaxis(joined.clip(0, 255).astype(np.uint8), 0, axis)


def _overlap(offset: int, length: int, canvas: int) -> tuple[int, int]:
    """Start and end, on the canvas, of what it shares with something `length` long at `offset`."""
    start = max(offset, 0)
    return start, max(start, min(offset + length, canvas))


def _blend(below: torch.Tensor, above: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    weight = share.to(torch.int32)
    return ((weight * above + (255 - weight) * below + 127) // 255).to(torch.uint8)


def _px(size: Size) -> str:
    return f"{size[0]} x {size[1]} px"
