"""Masks on the latent grid."""

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from nodes.types import Latent, Mask

HALF = 128
"""A latent cell is repainted where its mask level, scaled down with Pillow's bicubic filter, is at least this."""


def shares(mask: Mask, latent: Latent, pictures: int) -> torch.Tensor:
    """The mask on the latent grid as ComfyUI scales it, bilinear and with all its greys: float32, 1 or `pictures`.

    Raises what `cells` raises.
    """
    _check(mask, latent, pictures)
    levels = mask.data.to(latent.data.device).float() / 255
    return functional.interpolate(levels, latent.data.shape[2:], mode="bilinear")


def cells(mask: Mask, latent: Latent, pictures: int, *, rounded: bool = True) -> torch.Tensor:
    """The mask on the latent grid as the WebUI scales it: float32, 1 or `pictures` x 1 x h x w, where the latent lies.

    Zeros and ones, or shares between them where not `rounded`. Raises ValueError for a mask of another size than the
    picture behind the latent, and for masks that are neither one nor as many as `pictures`.
    """
    _check(mask, latent, pictures)
    count, (height, width) = mask.data.shape[0], latent.data.shape[2:]
    scaled = [
        np.asarray(mask.pil(index).resize((width, height), PIL.Image.Resampling.BICUBIC)) for index in range(count)
    ]
    levels = torch.from_numpy(np.stack(scaled)).unsqueeze(1).to(latent.data.device)
    return (levels >= HALF).float() if rounded else levels.float() / 255


def _check(mask: Mask, latent: Latent, pictures: int) -> None:
    height, width = latent.data.shape[2:]
    pixels = (width * latent.space.downscale, height * latent.space.downscale)
    if mask.size != pixels:
        raise ValueError(f"the mask has {mask.size[0]} x {mask.size[1]} px, the latent {pixels[0]} x {pixels[1]} px")
    if len(mask.data) not in (1, pictures):
        raise ValueError(f"{len(mask.data)} masks for {pictures} pictures; give one mask, or as many as pictures")
