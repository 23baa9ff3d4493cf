"""The VAE: learnt on whole pictures, then rescaled so that latents are about normal, and measured on held-out ones."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pocket.training.network import LATENTS, SCALING

BLUR = 0.05
"""Noise added to latents of unit variance, so that the decoder forgives a UNet's errors."""

FOLLOWED = 0.01
"""How fast steady statistics follow."""

FIGURES = ("l1", "edges", "psnr")
CERTAIN = -20.0
"""The log variance that is shipped: a sample is the mean."""


class Autoencoder(nn.Module):
    """A VAE that sees its latents at zero mean and unit variance by channel, as `fold` will make them.

    Those of a batch are measured, unless batches are small: then `steady` ones, which follow slowly, say more than the
    few pictures at hand, whose colours would be lost with their mean.
    """

    middle: Tensor
    spread: Tensor

    def __init__(self, vae: Any, *, steady: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.steady = steady
        self.register_buffer("middle", torch.zeros(1, LATENTS, 1, 1))
        self.register_buffer("spread", torch.full((1, LATENTS, 1, 1), SCALING**-2))

    def forward(self, pictures: Tensor, noise: Tensor) -> Tensor:
        """Encode, blur by `noise` (B, 4, h, w) and decode pictures (B, 3, H, W) from -1 to 1."""
        latents = means(self.vae, pictures)
        spread, middle = torch.var_mean(latents.float(), (0, 2, 3), keepdim=True)
        if self.steady:
            self.middle.lerp_(middle.detach(), FOLLOWED)
            self.spread.lerp_(spread.detach(), FOLLOWED)
            spread, middle = self.spread.clone(), self.middle.clone()
        plain = (latents - middle) * (spread + 1e-4).rsqrt()
        decoded: Tensor = self.vae.decoder(self.vae.post_quant_conv(plain + noise))
        return decoded


class Decoder(nn.Module):
    """A folded VAE whose encoder has learnt enough."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(requires_grad=False)
        for part in (vae.decoder, vae.post_quant_conv):
            part.requires_grad_(requires_grad=True)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode scaled latents (B, 4, h, w)."""
        decoded: Tensor = self.vae.decode(latents / SCALING).sample
        return decoded


def means(vae: Any, pictures: Tensor) -> Tensor:
    """The means of the latents' distributions, (B, 4, h, w), before scaling."""
    moments: Tensor = vae.quant_conv(vae.encoder(pictures))
    return moments[:, :LATENTS]


def loss(wanted: Tensor, got: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error, its edges at three sizes, and squared error; returns the loss and `FIGURES`."""
    got = got.float()
    flat, square, edges = functional.l1_loss(got, wanted), functional.mse_loss(got, wanted), _edges(got - wanted)
    return flat + 0.5 * edges + 6 * square, torch.stack([flat, edges, psnr(square)]).detach()


def psnr(square: Tensor) -> Tensor:
    """Decibels for a mean squared error of values from -1 to 1."""
    return 10 * torch.log10(4 / square)


@torch.no_grad()
def fold(vae: Any, pictures: Tensor) -> None:
    """Build the rescaling that training assumed into the convolutions next to the latents.

    `encode(...).latent_dist.mean * scaling_factor` then has zero mean and unit variance over `pictures`.
    """
    latents = torch.cat([means(vae, part) for part in torch.split(pictures, 64)])
    spread, middle = torch.var_mean(latents, (0, 2, 3))
    scale = spread.sqrt() * SCALING
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:LATENTS] /= scale[:, None, None, None]
    into.bias[:LATENTS] = (into.bias[:LATENTS] - middle) / scale
    into.weight[LATENTS:], into.bias[LATENTS:] = 0, CERTAIN
    out.weight *= SCALING


@torch.no_grad()
def unfold(vae: Any) -> None:
    """Take out of a folded VAE what would make its decoder expect scaled latents, so that it can learn on."""
    vae.post_quant_conv.weight /= SCALING


@torch.no_grad()
def error(vae: Any, pictures: Tensor) -> float:
    """PSNR in decibels of decoded pictures, clipped and rounded as they are shown, of a folded VAE."""
    shown = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, 64)])
    rounded = ((shown.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return 10 * math.log10(4 / functional.mse_loss(rounded, pictures).item())


def _edges(difference: Tensor) -> Tensor:
    total = difference.new_zeros(())
    for size in (1, 2, 4):
        part = functional.avg_pool2d(difference, size) if size > 1 else difference
        total = total + part.diff(dim=-1).abs().mean() + part.diff(dim=-2).abs().mean()
    return total
