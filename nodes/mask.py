"""Masks: from files, drawn, combined, and shaped. 255 = repaint, 0 = keep."""

import math
from typing import Annotated, Literal

import numpy as np
import PIL.Image
import torch
from annotated_types import Ge, Le
from PIL import ImageEnhance, ImageFilter
from torch.nn import functional

from engine.file import File
from engine.node import node
from engine.param import Unit
from nodes.fit import Factor, Filter, Multiple, Resizing, px, target
from nodes.image import batch_size, cut, decode, each, flatten, refit
from nodes.types import Fraction, Image, Mask, Offset, Pixels, Side, Sigma

Reach = Annotated[int, Ge(-512), Le(512), Unit("px")]
"""How far an edge moves outwards."""
Level = Annotated[int, Ge(0), Le(254)]
"""A grey level that another may exceed."""
Shape = Literal["round", "square", "kernel"]
"""Everything within a distance of `by`, within `by` rows and columns, or in a square of `by` px around each pixel."""

PAINTED = 128
"""Levels above this are repainted where a soft mask has to become a hard one (A1111's mask_round)."""


@node("mask.load", version=1)
def load(source: File, channel: Literal["luminance", "alpha"] = "luminance") -> Mask:
    """Load a mask from the brightness of a picture, or from its alpha: white, or opaque, is repainted.

    Transparent areas count as black in `luminance`. Grey stays grey. `alpha` refuses pictures without it.
    """
    picture = decode(source)
    if channel == "luminance":
        return Mask.of(flatten(picture, "black"))
    if picture.mode != "RGBA":
        raise ValueError(f"{source.name} has no alpha; use the channel 'luminance'")
    return Mask.of(picture.getchannel("A"))


@node("mask.from_alpha", version=1)
def from_alpha(source: File, *, threshold: bool = True) -> Mask:
    """Read the area painted on a transparent brush layer: opaque is repainted.

    A1111's rule: with `threshold`, alpha above 128 becomes 255 and the rest 0, otherwise it stays soft; a layer that is
    opaque everywhere is read by its luminance, and never thresholded.
    """
    picture = decode(source)
    alpha = picture.convert("RGBA").getchannel("A")
    if alpha.getextrema() == (255, 255):
        return Mask.of(picture)
    return _hard(Mask.of(alpha), PAINTED) if threshold else Mask.of(alpha)


@node("mask.rectangle", version=1)
def rectangle(width: Side, height: Side, *, x: Offset, y: Offset, w: Side, h: Side) -> Mask:
    """Draw a white box of `w` x `h` px at (`x`, `y`) on a black canvas of `width` x `height` px, cut at its border."""
    canvas = np.zeros((height, width), np.uint8)
    canvas[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = 255
    return Mask.of(PIL.Image.fromarray(canvas))


@node("mask.ellipse", version=1)
def ellipse(width: Side, height: Side, *, x: Offset, y: Offset, w: Side, h: Side) -> Mask:
    """Draw the white ellipse that fills the box of `w` x `h` px at (`x`, `y`) on a black canvas, cut at its border.

    Its edge is crisp: a pixel is white where its centre lies inside. `mask.blur` softens it.
    """
    column = (2 * np.arange(width) + 1 - 2 * x - w) / w
    row = (2 * np.arange(height) + 1 - 2 * y - h) / h
    inside = column[None, :] ** 2 + row[:, None] ** 2 <= 1
    return Mask.of(PIL.Image.fromarray(inside.astype(np.uint8) * 255))


@node("mask.invert", version=1)
def invert(mask: Mask) -> Mask:
    """Repaint what was kept, and keep what was repainted."""
    return Mask(255 - mask.data)


@node("mask.combine", version=1)
def combine(a: Mask, b: Mask, mode: Literal["union", "intersect", "subtract", "exclude"] = "union") -> Mask:
    """Combine two masks of one size: either, both, `a` without `b`, or one of them but not both.

    Grey levels combine as fuzzy sets do (Zadeh 1965): the larger, the smaller, and 255 minus a level for its opposite.
    """
    if a.size != b.size:
        raise ValueError(f"expected masks of one size, got {a.size} and {b.size} px; resize one of them")
    batch_size(a, b)
    one, other = a.data, b.data.to(a.data.device)
    match mode:
        case "union":
            return Mask(torch.maximum(one, other))
        case "intersect":
            return Mask(torch.minimum(one, other))
        case "subtract":
            return Mask(torch.minimum(one, 255 - other))
        case "exclude":
            return Mask(torch.maximum(torch.minimum(one, 255 - other), torch.minimum(255 - one, other)))


@node("mask.grow", version=2)
def grow(mask: Mask, by: Reach = 8, shape: Shape = "round", feather: Pixels = 0) -> Mask:
    """Grow the repainted area `by` pixels, or shrink it when negative, then fade its edge over `feather` pixels.

    `round` reaches what lies within a distance of `by`, `square` also the corners; grey levels spread like white. The
    border of the canvas neither grows nor eats into the area. `kernel`, as in ComfyUI, grows half as far, an even
    square a pixel farther to the right and down. The fade reaches `feather` px to each side of the edge.
    """
    grown = _dilated(mask.data, by, shape) if by >= 0 else 255 - _dilated(255 - mask.data, -by, shape)
    return Mask(_blurred(grown, feather / 2.5))


@node("mask.blur", version=1)
def blur(mask: Mask, radius: Sigma = 4.0, method: Literal["gaussian", "boxes"] = "gaussian") -> Mask:
    """Blur with a Gaussian of standard deviation `radius`: A1111's "mask blur".

    The kernel is cut at 2.5 `radius`; the canvas is mirrored at the centre of its border pixels (OpenCV's reflect-101).
    `boxes` is Pillow's Gaussian instead, three passes of a box with the edges continued: what A1111 blurs the strokes
    of a sketch with.
    """
    if method == "boxes":
        return each(mask, lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))
    return Mask(_blurred(mask.data, radius))


@node("mask.resize", version=2)
def resize(
    mask: Mask,
    width: Side | None = None,
    height: Side | None = None,
    *,
    factor: Factor | None = None,
    mode: Resizing = "stretch",
    filter: Filter = "lanczos",  # noqa: A002  the field's word
    multiple: Multiple = 1,
) -> Mask:
    """Resize to `width` x `height`, or by `factor`, exactly as `image.resize` does with the picture below it.

    In the mode `latent` the picture's latent is stretched, and so is the mask, less what is cut off the picture.
    """
    size = target(mask.size, width, height, factor, multiple)
    return refit(cut(mask, multiple), size, "stretch", filter) if mode == "latent" else refit(mask, size, mode, filter)


@node("mask.crop", version=1)
def crop(mask: Mask, x: Offset, y: Offset, width: Side, height: Side) -> Mask:
    """Cut out the box whose upper left pixel is (`x`, `y`), as `image.crop` does with the picture below the mask."""
    right, bottom = x + width, y + height
    if x < 0 or y < 0 or right > mask.size[0] or bottom > mask.size[1]:
        raise ValueError(f"the box ({x}, {y})..({right}, {bottom}) leaves the mask of {px(mask.size)}")
    return Mask(mask.data[..., y:bottom, x:right].contiguous())


@node("mask.opacity", version=1)
def opacity(mask: Mask, opacity: Fraction = 1.0) -> Mask:
    """Lower all levels: `opacity` times each, truncated; 1 less A1111's "mask transparency".

    Up to 0.5 even white is below the middle, so that nothing is repainted where the mask is rounded.
    """
    return each(mask, lambda picture: ImageEnhance.Brightness(picture).enhance(opacity))


@node("mask.difference", version=1)
def difference(a: Image, b: Image) -> Mask:
    """Find where two pictures of one size differ: 255 where any channel does, else 0. So strokes become a mask."""
    if a.size != b.size:
        raise ValueError(f"expected pictures of one size, got {px(a.size)} and {px(b.size)}; resize one of them")
    batch_size(a, b)
    differs = (a.data != b.data.to(a.data.device)).any(dim=1, keepdim=True)
    return Mask(differs.to(torch.uint8) * 255)


@node("mask.threshold", version=1)
def threshold(mask: Mask, level: Level = PAINTED) -> Mask:
    """Make a soft mask hard: 255 where it is above `level`, else 0."""
    return _hard(mask, level)


def gaussian(sigma: float) -> list[float]:
    """Weights of a Gaussian, 2 int(2.5 sigma + 0.5) + 1 of them, with the sum 1; sigma 4 has 21."""
    reach = int(2.5 * sigma + 0.5)
    weights = [math.exp(-0.5 * (tap / sigma) ** 2) if tap else 1.0 for tap in range(-reach, reach + 1)]
    return [weight / math.fsum(weights) for weight in weights]


def _hard(mask: Mask, level: int) -> Mask:
    return Mask((mask.data > level).to(torch.uint8) * 255)


def _blurred(data: torch.Tensor, sigma: float) -> torch.Tensor:
    weights = gaussian(sigma)
    if len(weights) == 1:
        return data
    across = _convolved(data.to(torch.float64), weights, 3)
    return _convolved(across, weights, 2).round().to(torch.uint8)


def _convolved(data: torch.Tensor, weights: list[float], dim: int) -> torch.Tensor:
    """`data` weighted along `dim`, tap by tap."""
    length = data.shape[dim]
    padded = data.index_select(dim, _mirrored(length, len(weights) // 2).to(data.device))
    total = torch.zeros_like(data)
    for start, weight in enumerate(weights):
        total.add_(padded.narrow(dim, start, length), alpha=weight)
    return total


def _mirrored(length: int, reach: int) -> torch.Tensor:
    """Where to read a line continued by `reach` px to both sides: 3 2 1 | 0 1 2 3 | 2 1 0, over and over."""
    period = max(1, 2 * (length - 1))
    place = torch.arange(-reach, length + reach).remainder(period)
    return torch.minimum(place, period - place)


def _dilated(data: torch.Tensor, reach: int, shape: Shape) -> torch.Tensor:
    """The maximum of `data` over a disc or square of `reach` px around each pixel; outside the canvas is 0.

    Row `dy` of the disc is a running maximum along x, read as two windows from a table of those 1, 2, 4, ... px wide.
    """
    if shape == "kernel":
        return _spread(data, reach)
    height, width = data.shape[2:]
    table = _window_maxima(functional.pad(data, (reach, reach)), 2 * reach + 1)
    grown = torch.zeros_like(data)
    for dy in range(min(reach, height - 1) + 1):
        half = reach if shape == "square" else math.isqrt(reach**2 - dy**2)
        power = (2 * half + 1).bit_length() - 1
        first, last = reach - half, reach + half + 1 - 2**power
        line = torch.maximum(table[power].narrow(3, first, width), table[power].narrow(3, last, width))
        _raise(grown[:, :, dy:], line[:, :, : height - dy])
        _raise(grown[:, :, : height - dy], line[:, :, dy:])
    return grown


def _spread(data: torch.Tensor, side: int) -> torch.Tensor:
    """The maximum of `data` over a square of `side` px around each pixel; of even ones one px more before it."""
    if side < 2:
        return data
    before, after = side // 2, (side - 1) // 2
    padded = functional.pad(data.float(), (before, after, before, after))
    return functional.max_pool2d(padded, side, stride=1).to(torch.uint8)


def _window_maxima(data: torch.Tensor, longest: int) -> list[torch.Tensor]:
    """Entry k holds the maxima of the windows 2^k px wide, up to `longest`, that start at each pixel of a row."""
    table = [data]
    while 2 ** len(table) <= longest:
        step = 2 ** (len(table) - 1)
        table.append(torch.maximum(table[-1][..., :-step], table[-1][..., step:]))
    return table


def _raise(place: torch.Tensor, level: torch.Tensor) -> None:
    torch.maximum(place, level, out=place)
