"""Pictures to latents and back, through diffusers' `AutoencoderKL`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Rounding: TypeAlias = Literal["nearest", "truncate"]
"""How brightness becomes one of 256 levels: the nearest, as in diffusers, or the next below, as in A1111."""


def downscale(vae: AutoencoderKL) -> int:
    """Return how many pixels one latent pixel stands for along each side: 8 for Stable Diffusion."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode(images: Tensor, vae: AutoencoderKL) -> Tensor:
    """Encode images, uint8 (N, 3, H, W), to latents, float32 (N, C, H / downscale, W / downscale).

    A latent is the mean of the posterior, not a sample of it, so one picture has one latent; shifted and scaled as the
    model's config says, so that its variance is about 1. Images are encoded one at a time: each latent is the same
    whatever stands beside it, and memory does not grow with the batch.
    """
    _check_images(images, torch.uint8, downscale(vae))
    return encode_signed(signed(images), vae)


def encode_signed(images: Tensor, vae: AutoencoderKL) -> Tensor:
    """Encode images, float32 (N, 3, H, W) from -1 to 1, as `encode` does."""
    _check_images(images, torch.float32, downscale(vae))
    with torch.no_grad():
        means = [vae.encode(image.to(vae.device, vae.dtype)).latent_dist.mode() for image in torch.split(images, 1)]
    return (torch.cat(means).float() - _shift(vae)) * float(vae.config.scaling_factor)


def decode(latents: Tensor, vae: AutoencoderKL, rounding: Rounding = "nearest") -> Tensor:
    """Decode latents, float (N, C, h, w), to images, uint8 (N, 3, h * downscale, w * downscale), one at a time.

    Truncated pictures are half a level darker than rounded ones on average, which adds up over many passes. Raises
    FloatingPointError if the VAE overflows, as SDXL's does in float16.
    """
    raw = latents.float() / vae.config.scaling_factor + _shift(vae)
    with torch.no_grad():
        decoded = torch.cat(
            [vae.decode(latent.to(vae.device, vae.dtype)).sample.float() for latent in torch.split(raw, 1)]
        )
    if not decoded.isfinite().all():
        raise FloatingPointError(f"the VAE decoded to infinities or NaN in {vae.dtype}; load it in float32 or bfloat16")
    levels = ((decoded + 1) * 127.5).clamp(0, 255)
    return (levels.round() if rounding == "nearest" else levels).to(torch.uint8)


def _check_images(images: Tensor, dtype: torch.dtype, factor: int) -> None:
    """Refuse what would be misread or cropped."""
    if images.dtype != dtype or images.ndim != 4 or images.shape[1] != 3:
        expected = f"{str(dtype).removeprefix('torch.')} (N, 3, H, W)"
        raise ValueError(f"images: expected {expected}, got {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"images: expected height and width to be multiples of {factor}, got {height} x {width}")


def signed(images: Tensor) -> Tensor:
    """Map levels 0 to 255 to -1 to 1."""
    return images.float() / 127.5 - 1


def _shift(vae: AutoencoderKL) -> float:
    """Return the mean that the model's latents are freed of, 0 where the config has none."""
    return float(vae.config.shift_factor or 0.0)
