"""The text-to-image part: a text encoder and a UNet that learn together to predict the noise in latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from pocket.training.network import LATENTS, SCALING, kept

FAIR = 5.0
"""Gamma of min-SNR weighting (Hang et al. 2023, https://arxiv.org/abs/2303.09556)."""

TINT = 0.1
"""Noise that whole channels share: without it the UNet reads a small picture's brightness off the noise."""

FIGURES = ("mse", "mse1", "mse2", "mse3", "mse4")
"""The unweighted error, also by quarter of the steps, little noise first."""


class Painter(nn.Module):
    """A text encoder and a UNet."""

    def __init__(self, text: Any, unet: Any) -> None:
        super().__init__()
        self.text = text
        self.unet = unet

    def forward(self, noisy: Tensor, steps: Tensor, ids: Tensor, unet: Any = None) -> Tensor:
        """Predict the noise in `noisy` (B, 4, h, w) at `steps` (B,) for captions `ids`, (B, 77) or a fraction of B.

        `unet` may be a compiled form of the UNet, to be used in its place.
        """
        context = self.text(ids).last_hidden_state
        context = context.repeat(len(noisy) // len(ids), 1, 1)
        chosen = self.unet if unet is None else unet
        predicted: Tensor = chosen(noisy, steps, context, return_dict=False)[0]
        return predicted


@dataclass(frozen=True, eq=False)
class Task:
    """Noisy latents at some steps, the noise to be found in them, and what each sample weighs."""

    noisy: Tensor
    steps: Tensor
    noise: Tensor
    weights: Tensor


def task(latents: Tensor, generator: Generator, *, bias: float = 0.0) -> Task:
    """Put noise on clean latents (B, 4, h, w), the steps spread evenly and rising over the batch.

    With a `bias` up to 0.5, steps of more noise than picture weigh more, by that power of their ratio (Yu et al. 2023,
    https://arxiv.org/abs/2310.08442): what a prompt means is decided there.
    """
    count, device = len(latents), latents.device
    left = kept(device)
    spread = torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)
    steps = (spread * len(left) / count).long().clamp(max=len(left) - 1)
    noise = torch.randn(latents.shape, generator=generator, device=device)
    noise = noise + TINT * torch.randn((*latents.shape[:2], 1, 1), generator=generator, device=device)
    share = left[steps][:, None, None, None]
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    ratio = left[steps] / (1 - left[steps])
    return Task(
        noisy.contiguous(memory_format=torch.channels_last),
        steps,
        noise,
        ratio.clamp(max=FAIR) / ratio * ratio.clamp(max=1) ** -bias,
    )


def loss(given: Task, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted squared error of the noise, and `FIGURES`."""
    errors = (predicted.float() - given.noise).square().mean((1, 2, 3))
    quarters = torch.stack([part.mean() for part in errors.tensor_split(4)])
    return (given.weights * errors).mean(), torch.cat([errors.mean()[None], quarters]).detach()


@torch.no_grad()
def encode(vae: Any, pictures: Tensor, encoder: Any = None) -> Tensor:
    """Pictures (B, 3, H, W) from -1 to 1 as the scaled latents that a UNet works on.

    `encoder` may be a compiled form of the VAE's, to be used in its place.
    """
    moments: Tensor = vae.quant_conv((vae.encoder if encoder is None else encoder)(pictures))
    return moments[:, :LATENTS].float() * SCALING
