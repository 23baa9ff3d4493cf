"""Outpainting: a larger canvas, and what its new area starts from."""

from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageColor
import torch
from annotated_types import Ge, Le

from engine.node import node
from engine.param import Unit
from nodes.colour import Numbers
from nodes.fit import Levels, Multiple, Size, continued
from nodes.image import each
from nodes.types import Colour, Fraction, Image, Mask, Pixels, Seed

Margin = Annotated[int, Ge(0), Le(4096), Unit("px")]
"""How far a canvas grows to one side."""
Filling = Literal["edge", "mirror", "colour", "texture"]
"""What a new area starts from."""
Margins = tuple[int, int, int, int]
"""Left, top, right and bottom, in px."""


class Extended(NamedTuple):
    """A larger picture and the mask of what is new."""

    out: Image
    mask: Mask


@node("image.extend", version=1)
def extend(
    image: Image,
    left: Margin = 0,
    top: Margin = 0,
    right: Margin = 0,
    bottom: Margin = 0,
    *,
    fill: Filling = "edge",
    overlap: Pixels = 16,
    multiple: Multiple = 8,
    colour: Colour = "#808080",
    variation: Fraction = 0.05,
    seed: Seed = 0,
) -> Extended:
    """Enlarge the canvas for outpainting; `mask` is the new area and `overlap` px of the picture along its seam.

    The new area starts from the picture's `edge` drawn out into bands, from its `mirror` image, from one `colour`, or
    from a `texture`: noise with the frequencies and colours of the picture, more colourful with more `variation`. The
    canvas grows a little more to make its sides multiples of `multiple`: on the sides that grow anyway, or else to the
    right and the bottom.
    """
    margins = grown(image.size, (left, top, right, bottom), multiple)
    out = each(image, partial(_extended, margins=margins, fill=fill, colour=colour, variation=variation, seed=seed))
    return Extended(out, _seam(image, margins, overlap))


def grown(size: Size, margins: Margins, multiple: int) -> Margins:
    """Margins raised until the sides are multiples of `multiple`, shared out as they were asked for."""
    (left, right), (top, bottom) = (
        _shared(side, before, after, multiple)
        for side, before, after in zip(size, margins[:2], margins[2:], strict=True)
    )
    return left, top, right, bottom


def texture(picture: Levels, size: Size, variation: float, seed: int) -> Levels:
    """Noise of `size` with the frequencies and the colours of `picture`, h x w x 3.

    On each principal axis of the picture's colours (Heeger and Bergen, "Pyramid-based texture analysis/synthesis",
    1995) the magnitudes of the Fourier transform meet the phases of white noise (Galerne, Gousseau and Morel, "Random
    Phase Textures", 2011), which differ between the axes by a share `variation`; then the axis gets its histogram.
    """
    mean = picture.mean(axis=(0, 1), dtype=np.float32)
    colours = picture - mean
    axes = np.linalg.eigh(np.einsum("yxi,yxj->ij", colours, colours)).eigenvectors
    axes = axes * np.where(axes.sum(axis=0) < 0, -1, 1)
    tones = colours @ axes
    noise = _shaped(tones, size, variation, seed)
    spread = np.stack([_spread(noise[..., axis], tones[..., axis]) for axis in range(3)], axis=-1)
    made: Levels = (spread @ axes.T + mean).round().clip(0, 255).astype(np.uint8)
    return made


def _shaped(tones: Numbers, size: Size, variation: float, seed: int) -> Numbers:
    """White noise with the magnitudes of the picture's spectrum, seen through a Hann window without its mean."""
    down, across = (np.hanning(side + 2)[1:-1] for side in tones.shape[:2])
    window = (down[:, None, None] * across[:, None]).astype(np.float32)
    mean = (tones * window).sum(axis=(0, 1)) / window.sum()
    white = np.random.default_rng(seed).standard_normal((size[1], size[0], 3), dtype=np.float32)
    noise = np.fft.rfft2((1 - variation) * white[..., :1] + variation * white, axes=(0, 1))
    magnitude = np.abs(np.fft.rfft2((tones - mean) * window, s=size[::-1], axes=(0, 1)))
    shaped: Numbers = np.fft.irfft2(magnitude * noise / np.maximum(np.abs(noise), 1e-6), s=size[::-1], axes=(0, 1))
    return shaped


def _spread(noise: Numbers, tones: Numbers) -> Numbers:
    """Noise with the histogram of `tones`, to a thousandth of it."""
    shares = np.linspace(0, 1, 1001)
    spread: Numbers = np.interp(noise, np.quantile(noise, shares), np.quantile(tones, shares))
    return spread


def _shared(side: int, before: int, after: int, multiple: int) -> tuple[int, int]:
    """What is added to a side at its start and end."""
    total = -(-(side + before + after) // multiple) * multiple - side
    first = total * before // (before + after) if before + after else 0
    return first, total - first


def _extended(
    picture: PIL.Image.Image, margins: Margins, fill: Filling, *, colour: str, variation: float, seed: int
) -> PIL.Image.Image:
    left, top, right, bottom = margins
    levels = np.asarray(picture)
    if fill == "edge":
        return PIL.Image.fromarray(continued(continued(levels, 0, top, bottom), 1, left, right))
    canvas = np.pad(levels, ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    if fill == "colour":
        canvas[:] = PIL.ImageColor.getrgb(colour)[:3]
    if fill == "texture":
        canvas = texture(levels, (canvas.shape[1], canvas.shape[0]), variation, seed)
    canvas[top : top + picture.height, left : left + picture.width] = levels
    return PIL.Image.fromarray(canvas)


def _seam(image: Image, margins: Margins, overlap: int) -> Mask:
    """White where the canvas is new, and `overlap` px into the picture on the sides that grew."""
    left, top, right, bottom = margins
    width, height = image.size
    mask = torch.full((1, 1, top + height + bottom, left + width + right), 255, dtype=torch.uint8)
    x1, y1 = left + overlap * (left > 0), top + overlap * (top > 0)
    x2, y2 = left + width - overlap * (right > 0), top + height - overlap * (bottom > 0)
    mask[..., y1 : max(y1, y2), x1 : max(x1, x2)] = 0
    return Mask(mask.to(image.data.device))
