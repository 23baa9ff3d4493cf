"""Colour: one picture's tones given to another."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.node import node
from nodes.fit import Levels
from nodes.image import batch_size
from nodes.types import Fraction, Image

Numbers = npt.NDArray[np.floating[Any]]

TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
"""Linear sRGB to CIE XYZ with the white D65 (IEC 61966-2-1)."""
WHITE = TO_XYZ.sum(axis=1)
LUMINOSITY = np.array([0.3, 0.59, 0.11], np.float32)
"""Weights of red, green and blue in W3C's compositing and blending."""
KNEE = 6 / 29
"""Where CIE's cube root goes over into a straight line."""


@node("image.match_colour", version=1)
def match_colour(image: Image, reference: Image, amount: Fraction = 0.0) -> Image:
    """Give a picture the colours of a reference: the WebUI's "colour correction", `amount` of it; 0 changes nothing.

    Each channel of CIE L*a*b* gets the histogram of the reference, then every pixel its own luminosity back (W3C
    Compositing, "luminosity"). Levels of L*a*b* are 8 bits as OpenCV packs them, 255 L / 100, a + 128, b + 128, by the
    CIE's formulas; OpenCV's own fixed-point numbers differ by at most one level. The sizes may differ; one reference
    serves a batch, or there is one for each.
    """
    if amount == 0:
        return image
    count = batch_size(image, reference)
    pictures, references = (
        part.data.expand(count, -1, -1, -1).permute(0, 2, 3, 1).cpu().numpy() for part in (image, reference)
    )
    changed = [_matched(one, other, amount) for one, other in zip(pictures, references, strict=True)]
    return Image(torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous().to(image.data.device))


def lab(rgb: Levels) -> Levels:
    """Levels of sRGB, ... x 3, as 8 bit CIE L*a*b*."""
    level = rgb.astype(np.float32) / 255
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    ratio = linear @ (TO_XYZ.T / WHITE).astype(np.float32)
    x, y, z = np.moveaxis(np.where(ratio > KNEE**3, np.cbrt(ratio), ratio / (3 * KNEE**2) + 4 / 29), -1, 0)
    packed = np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], axis=-1)
    return packed.round().clip(0, 255).astype(np.uint8)


def rgb(lab: Levels) -> Levels:
    """8 bit CIE L*a*b*, ... x 3, as sRGB levels; what a screen cannot show is clipped."""
    packed = np.moveaxis(lab.astype(np.float32), -1, 0)
    y = (packed[0] / 2.55 + 16) / 116
    root = np.stack([y + (packed[1] - 128) / 500, y, y - (packed[2] - 128) / 200], axis=-1)
    ratio = np.where(root > KNEE, root**3, 3 * KNEE**2 * (root - 4 / 29))
    linear = (ratio @ np.linalg.inv(TO_XYZ.T / WHITE).astype(np.float32)).clip(0, 1)
    level = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return (255 * level).round().clip(0, 255).astype(np.uint8)


def match_histogram(levels: Levels, reference: Levels) -> Levels:
    """Levels mapped so that they are spread as those of a reference of any size.

    Each level goes to the one at which the reference's cumulative histogram reaches the same share, interpolated
    between the levels that the reference has, and truncated (Gonzalez and Woods; scikit-image's match_histograms).
    """
    shares = np.bincount(levels.ravel(), minlength=256).cumsum() / levels.size
    counts = np.bincount(reference.ravel(), minlength=256)
    present = np.nonzero(counts)[0]
    table = np.interp(shares, counts[present].cumsum() / reference.size, present)
    return table.astype(np.uint8)[levels]


def luminosity(colour: Levels, light: Levels) -> Levels:
    """Hue and saturation of `colour` with the luminosity of `light`, both ... x 3, rounded.

    W3C Compositing and Blending Level 1, 10.3: SetLum, then ClipColor.
    """
    base = colour.astype(np.float32)
    lum = light.astype(np.float32) @ LUMINOSITY
    return _clipped(base + (lum - base @ LUMINOSITY)[..., None], lum[..., None]).round().astype(np.uint8)


def _clipped(colour: Numbers, lum: Numbers) -> Numbers:
    """Colours drawn towards their grey until no channel leaves 0..255."""
    low, high = colour.min(axis=-1, keepdims=True), colour.max(axis=-1, keepdims=True)
    below = lum / np.maximum(lum - low, 1e-6)
    above = (255 - lum) / np.maximum(high - lum, 1e-6)
    share = np.where(low < 0, below, 1) * np.where(high > 255, above, 1)
    clipped: Numbers = (lum + (colour - lum) * share).clip(0, 255)
    return clipped


def _matched(picture: Levels, reference: Levels, amount: float) -> Levels:
    """One picture, H x W x 3, with `amount` of the reference's colours."""
    spread = np.stack(
        [match_histogram(*pair) for pair in zip(_channels(picture), _channels(reference), strict=True)], -1
    )
    corrected = luminosity(rgb(spread), picture)
    return (picture + amount * (corrected.astype(np.float32) - picture)).round().astype(np.uint8)


def _channels(picture: Levels) -> list[Levels]:
    return list(np.moveaxis(lab(picture), -1, 0))
