"""Hints for ControlNets that need no network: edges, the negative, the picture without its detail."""

from typing import Annotated

import torch
from annotated_types import Ge, Le

from engine.node import node
from nodes.diffusion import canny as detecting
from nodes.fit import resampled
from nodes.image import each
from nodes.types import Image

Threshold = Annotated[float, Ge(0), Le(2040)]
"""How strong an edge is: Sobel's gradient in levels, in which a step from black to white counts 1020."""
Rate = Annotated[float, Ge(1), Le(8)]
"""How many times smaller."""


@node("image.canny", version=1)
def canny(
    image: Image, low: Threshold = 100, high: Threshold = 200, *, convention: detecting.Convention = "a1111"
) -> Image:
    """Draw the edges of a picture white on black: the preprocessor of ControlNets for canny.

    Edges begin where the gradient is above `high` and go on while it is above `low`. By `a1111` it is |dx| + |dy| of
    the channel that changes most, as by OpenCV's Canny; 100 and 200 are the WebUI's. By `comfy` it is the length of
    (dx, dy) of the brightness after a Gaussian of 5 x 5 px, as by ComfyUI's Canny, whose 0.4 and 0.8 are 102 and 204.
    """
    if low > high:
        raise ValueError(f"the threshold low is {low}, above high, {high}: it must not be")
    found = detecting.edges(image.data, low, high, convention)
    return Image((found.to(torch.uint8) * 255).expand(-1, 3, -1, -1).contiguous())


@node("image.invert", version=1)
def invert(image: Image) -> Image:
    """Turn a picture into its negative: what ControlNets for line art want of black lines on white."""
    return Image(255 - image.data)


@node("image.tile_resample", version=1)
def tile_resample(image: Image, down_sampling_rate: Rate = 1.0) -> Image:
    """Take the detail off a picture: the preprocessor of ControlNets for tile, which put new detail on it.

    It is made `down_sampling_rate` times smaller, both sides truncated, each pixel the mean of those it stands for, and
    brought to its size again by the bicubic filter. At 1 it stays as it is.
    """
    size = image.size
    small = max(1, int(size[0] / down_sampling_rate)), max(1, int(size[1] / down_sampling_rate))
    if small == size:
        return image
    return each(image, lambda picture: resampled(resampled(picture, small, "box"), size, "bicubic"))
