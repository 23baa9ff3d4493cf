"""Pictures to latents and back, through diffusers' `AutoencoderKL`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.precision import finite
from nodes.diffusion.steady import steady
from nodes.diffusion.tiling import WHOLE, Progress, Tiling, tiled

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Rounding: TypeAlias = Literal["nearest", "truncate"]
"""How brightness becomes one of 256 levels: the nearest, as in diffusers, or the next below, as in A1111."""
Wider: TypeAlias = "Callable[[], AutoencoderKL] | None"
"""The way to the same VAE in float32, if there is one."""


def downscale(vae: AutoencoderKL) -> int:
    """Return how many pixels one latent pixel stands for along each side: 8 for Stable Diffusion."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode(
    images: Tensor,
    vae: AutoencoderKL,
    tiling: Tiling = WHOLE,
    *,
    wider: Wider = None,
    progress: Progress | None = None,
) -> Tensor:
    """Encode images, uint8 (N, 3, H, W), to latents, float32 (N, C, H / downscale, W / downscale).

    A latent is the mean of the posterior, not a sample of it, so one picture has one latent; shifted and scaled as the
    model's config says, so that its variance is about 1. Images are encoded one at a time: each latent is the same
    whatever stands beside it, and memory does not grow with the batch. With a `tiling` it does not grow with the
    picture either. `wider` gives the same VAE in float32; it is asked where this one overflows, without it a
    FloatingPointError is raised.
    """
    _check_images(images, torch.uint8, downscale(vae))
    return encode_signed(signed(images), vae, tiling, wider=wider, progress=progress)


def encode_signed(
    images: Tensor,
    vae: AutoencoderKL,
    tiling: Tiling = WHOLE,
    *,
    wider: Wider = None,
    progress: Progress | None = None,
) -> Tensor:
    """Encode images, float32 (N, 3, H, W) from -1 to 1, as `encode` does."""
    cell = downscale(vae)
    _check_images(images, torch.float32, cell)

    def mean(module: AutoencoderKL, image: Tensor) -> Tensor:
        found: Tensor = module.encode(image.to(module.device, module.dtype)).latent_dist.mode()
        return found

    means = _each(mean, images, vae, _Pieces(tiling.cells(cell), (cell, 1), wider, progress))
    return (means - _shift(vae)) * float(vae.config.scaling_factor)


def decode(
    latents: Tensor,
    vae: AutoencoderKL,
    rounding: Rounding = "nearest",
    tiling: Tiling = WHOLE,
    *,
    wider: Wider = None,
    progress: Progress | None = None,
) -> Tensor:
    """Decode latents, float (N, C, h, w), to images, uint8 (N, 3, h * downscale, w * downscale), one at a time.

    Truncated pictures are half a level darker than rounded ones on average, which adds up over many passes. Tiles and
    overflow are as in `encode`; SDXL's VAE overflows in float16.
    """
    cell = downscale(vae)

    def decoded(module: AutoencoderKL, latent: Tensor) -> Tensor:
        found: Tensor = module.decode(latent.to(module.device, module.dtype)).sample
        return found

    raw = latents.float() / vae.config.scaling_factor + _shift(vae)
    made = _each(decoded, raw, vae, _Pieces(tiling.cells(cell), (1, cell), wider, progress))
    levels = ((made + 1) * 127.5).clamp(0, 255)
    return (levels.round() if rounding == "nearest" else levels).to(torch.uint8)


class _Pieces(NamedTuple):
    """How a VAE is applied: in tiles of cells, whose grain is px per cell before and after."""

    tiling: Tiling
    grain: tuple[int, int]
    wider: Wider
    progress: Progress | None


def _each(run: Callable[[AutoencoderKL, Tensor], Tensor], batch: Tensor, vae: AutoencoderKL, pieces: _Pieces) -> Tensor:
    """Run on one picture or latent of a batch after the other, piece by piece."""

    def one(done: int, part: Tensor, module: AutoencoderKL) -> Tensor:
        told = pieces.progress
        report = None if told is None else lambda now, total: told(done * total + now, len(batch) * total)
        tiling, taken = pieces.tiling, pieces.grain[0]
        if not tiling.covers(max(part.shape[2:]) // taken):
            module = steady(module, run, part, tiling.side, taken)
        return tiled(part, partial(run, module), tiling, grain=pieces.grain, progress=report)

    with torch.no_grad():
        parts = enumerate(torch.split(batch, 1))
        return torch.cat([finite(partial(one, *part), vae, pieces.wider) for part in parts])


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
