"""Latents: empty, resized, and what stands under a mask at the start."""

from typing import Literal

import torch
from torch.nn import functional

from engine.context import Context
from engine.node import node
from nodes.cells import cells
from nodes.diffusion.bislerp import bislerp
from nodes.diffusion.noise import draw
from nodes.image import together
from nodes.inpaint import Content
from nodes.types import Latent, Mask, Noise, Side, Vae

Interpolation = Literal[
    "bilinear", "nearest", "nearest-exact", "bicubic", "bilinear-antialiased", "bicubic-antialiased", "area", "bislerp"
]
"""Torch's filters between cells; those with antialiasing, and area, average when they make a latent smaller.

`bislerp` is ComfyUI's: the vectors of two cells are turned into one another, so that none becomes shorter.
"""

APART = 0x7F4A7C15
"""Added to a seed before content is drawn, so that the noise that a sampler starts from is never drawn twice."""


@node("latent.empty", version=1)
def empty(vae: Vae, context: Context, width: Side = 512, height: Side = 512) -> Latent:
    """An empty latent to paint on from nothing (denoise 1), for a picture of `width` x `height` px."""
    space = vae.space
    if width % space.downscale or height % space.downscale:
        raise ValueError(f"width and height must be multiples of {space.downscale} px, got {width} x {height}")
    shape = (1, space.channels, height // space.downscale, width // space.downscale)
    return Latent(torch.zeros(shape, device=context.device), space)


@node("latent.resize", version=2)
def resize(
    latent: Latent,
    width: Side,
    height: Side,
    filter: Interpolation = "bilinear",  # noqa: A002  the field's word
) -> Latent:
    """Resize to the latent of a picture of `width` x `height` px: A1111's "just resize (latent upscale)".

    Sides are rounded down to whole cells. A latent that has the size already stays as it is.
    """
    scale = latent.space.downscale
    size = height // scale, width // scale
    if min(size) < 1:
        raise ValueError(f"{width} x {height} px is less than one cell of {scale} px")
    if latent.data.shape[2:] == size:
        return latent
    if filter == "bislerp":
        return Latent(bislerp(latent.data, size), latent.space)
    mode, antialiased = filter.removesuffix("-antialiased"), filter.endswith("-antialiased")
    return Latent(functional.interpolate(latent.data, size, mode=mode, antialias=antialiased), latent.space)


@node("latent.content", version=1)
def content(
    latent: Latent, mask: Mask, noise: Noise, content: Content = "original", *, round_mask: bool = True
) -> Latent:
    """Put noise, or nothing, into the masked area of a latent: the WebUI's "masked content".

    With m the mask on the latent grid, `noise` is z (1 - m) + n m and `nothing` z (1 - m); `original` and `fill`, which
    works on pixels, keep the latent. n is standard normal, drawn for each seed of `noise` without its variation, and
    never what a sampler starts from, even when the seed is the same. One latent, mask or seed serves all others.
    """
    if content in {"original", "fill"}:
        return latent
    counts = len(latent.data), len(mask.data), len(noise.seeds) if content == "noise" else 1
    share = cells(mask, latent, together(*counts), rounded=round_mask)
    kept = latent.data * (1 - share)
    return Latent(kept if content == "nothing" else kept + share * _drawn(noise, latent), latent.space)


def _drawn(noise: Noise, latent: Latent) -> torch.Tensor:
    """Noise of the seeds, each moved by APART."""
    seeds = tuple((seed + APART) % 2**64 for seed in noise.seeds)
    return draw(seeds, latent.data.shape[1:], source=noise.source, device=latent.data.device)
