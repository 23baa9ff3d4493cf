"""ControlNets: pictures that a sample is to follow."""

from typing import Annotated

import torch
from annotated_types import Ge, Le

from engine.node import node
from nodes.diffusion import load as loading
from nodes.diffusion.tensors import LoadError
from nodes.files import ControlNetFile
from nodes.fit import px
from nodes.image import batch_size
from nodes.types import Control, ControlNet, Fraction, Hint, Image, Mask, Precision


@node("controlnet.load", version=1)
def load(source: ControlNetFile, precision: Precision = "auto") -> ControlNet:
    """Refer to a ControlNet: a safetensors file as it is shared, or a folder in diffusers' layout.

    It is named by its name in a folder `controlnet` or by its path, and must be made for the family of the model that
    it is to steer. Nothing is loaded here.
    """
    found = loading.described(source.path)
    if not found.startswith("ControlNet"):
        raise LoadError(source.path, "a ControlNet", found)
    source.verify()
    return ControlNet(source.digest.hex(), precision)


@node("controlnet.apply", version=1)
def apply(
    controlnet: ControlNet,
    image: Image,
    others: Control | None = None,
    mask: Mask | None = None,
    *,
    strength: Annotated[float, Ge(0), Le(10)] = 1.0,
    start: Fraction = 0.0,
    end: Fraction = 1.0,
) -> Control:
    """Let a sample follow a picture, as a ControlNet reads it: lines for one of lines, and so on; link it to `sample`.

    It is at work from `start` to `end`, shares of the noise's way down by the model's timesteps, for the prompt and the
    negative prompt alike. `others` work beside it. What is white in the `mask`, from level 128 on, an inpainting
    ControlNet does not see. A strength of 0 leaves it out. The picture is stretched to the size that is sampled.
    """
    if start >= end:
        raise ValueError(f"it begins at {start:g} and ends at {end:g}: expected an end after the start")
    if mask is not None and mask.size != image.size:
        raise ValueError(f"the mask is {px(mask.size)}: expected the size of the image, {px(image.size)}")
    if mask is not None:
        batch_size(image, mask)
    before = others or Control((), (), ())
    if strength == 0:
        return before
    hidden = torch.empty(0, 1, 1, 1, dtype=torch.uint8) if mask is None else mask.data
    return Control(
        (*before.hints, Hint(controlnet, strength, start, end)),
        (*before.images, image.data),
        (*before.masks, hidden),
    )
