"""Sampling: from noise to a latent, under prompts and a mask."""

from typing import Annotated, Literal

import numpy as np
import PIL.Image
import torch
from annotated_types import Ge, Le

from engine.context import Context
from engine.node import node
from nodes.diffusion.drive import Round, drive
from nodes.diffusion.guidance import Denoiser, Guidance, Question, Repaint, guided
from nodes.diffusion.noise import Streams, Variation
from nodes.diffusion.sampler import SAMPLERS
from nodes.diffusion.schedule import SCHEDULES, tail
from nodes.types import Conditioning, Fraction, Latent, Mask, Noise, Unet

SamplerName = Literal["dpmpp_2m", "euler", "euler_ancestral", "heun", "ddim"]
ScheduleName = Literal["karras", "normal", "exponential", "sgm_uniform"]
HALF = 128
"""A latent cell is repainted where its mask level, scaled down with Pillow's bicubic filter, is at least this."""


@node("sample", version=1)
def sample(
    unet: Unet,
    positive: Conditioning,
    latent: Latent,
    noise: Noise,
    context: Context,
    *,
    negative: Conditioning | None = None,
    mask: Mask | None = None,
    steps: Annotated[int, Ge(1), Le(1000)] = 20,
    cfg: Annotated[float, Ge(0), Le(100)] = 7.0,
    denoise: Fraction = 1.0,
    sampler: SamplerName = "dpmpp_2m",
    schedule: ScheduleName = "karras",
) -> Latent:
    """Add noise to a latent and remove it again under a prompt.

    `denoise` says how far up the noise levels it begins: 0 changes nothing, 1 keeps next to nothing of the latent.
    Exactly `steps` steps run, the last ones of a schedule of `steps` / `denoise` steps. `cfg` weighs the prompt against
    the negative one, which is needed unless `cfg` is 1. With a mask only the repainted area changes: on every step the
    predicted latent is replaced by the original outside of it. One latent serves all pictures of the noise, or there is
    one for each.
    """
    start = _start(latent, noise)
    keep = None if mask is None else Repaint(_cells(mask, latent).to(start.device), start)
    sigmas = tail(SCHEDULES[schedule], (model := context.model(unet)).table, steps, denoise).tolist()
    if len(sigmas) < 2:
        return Latent(start, latent.space)
    streams = _streams(noise, start)
    guidance = Guidance(positive.data, _negative(negative, cfg), cfg, keep)
    steps_ = guided(SAMPLERS[sampler](start + streams.initial * sigmas[0], sigmas, streams), guidance)
    total = (2 if sampler == "heun" else 1) * (len(sigmas) - 1) - (sampler == "heun")

    def progress(round_: Round[Question]) -> None:
        context.progress(round_.number + 1, total, round_.denoised[0])

    context.progress(0, total)
    (result,) = drive([steps_], Denoiser(model.unet, model.table), progress=progress)
    return Latent(result.contiguous(), latent.space)


def _start(latent: Latent, noise: Noise) -> torch.Tensor:
    count, given = len(noise.seeds), latent.data.shape[0]
    if given not in (1, count):
        raise ValueError(f"noise for {count} pictures and {given} latents; give one latent, or as many as pictures")
    return latent.data.expand(count, -1, -1, -1)


def _negative(negative: Conditioning | None, cfg: float) -> torch.Tensor | None:
    if negative is None and cfg != 1:
        raise ValueError(f"cfg {cfg:g} weighs the prompt against a negative one: link `negative`, or set cfg to 1")
    return None if negative is None else negative.data


def _streams(noise: Noise, start: torch.Tensor) -> Streams:
    variation = Variation(noise.variations, noise.strength) if noise.variations else None
    return Streams.open(noise.seeds, start.shape[1:], variation=variation, device=start.device)


def _cells(mask: Mask, latent: Latent) -> torch.Tensor:
    """The mask on the latent grid, N x 1 x h x w of zeros and ones, as the WebUI rounds it."""
    height, width = latent.data.shape[2:]
    pixels = (width * latent.space.downscale, height * latent.space.downscale)
    if mask.size != pixels:
        raise ValueError(f"the mask has {mask.size[0]} x {mask.size[1]} px, the latent {pixels[0]} x {pixels[1]} px")
    scaled = [
        np.asarray(mask.pil(index).resize((width, height), PIL.Image.Resampling.BICUBIC))
        for index in range(mask.data.shape[0])
    ]
    return (torch.from_numpy(np.stack(scaled)).unsqueeze(1) >= HALF).float()
