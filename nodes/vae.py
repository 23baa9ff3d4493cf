"""Pictures to latents and back."""

import torch

from engine.context import Context
from engine.node import node
from nodes.diffusion import vae as coding
from nodes.types import Image, Latent, Side, Vae


@node("vae.encode", version=1)
def encode(vae: Vae, image: Image, context: Context) -> Latent:
    """Encode pictures; sides must be multiples of the VAE's downscale (8 px). Takes the mean, so nothing is random."""
    return Latent(coding.encode(image.data, context.model(vae)), vae.space)


@node("vae.decode", version=1)
def decode(vae: Vae, latent: Latent, context: Context) -> Image:
    """Decode latents to pictures."""
    if latent.space != vae.space:
        raise ValueError(f"the latent lives in {latent.space}, this VAE speaks {vae.space}; use the model's own VAE")
    return Image(coding.decode(latent.data, context.model(vae)))


@node("latent.empty", version=1)
def empty(vae: Vae, context: Context, width: Side = 512, height: Side = 512) -> Latent:
    """An empty latent to paint on from nothing (denoise 1), for a picture of `width` x `height` px."""
    space = vae.space
    if width % space.downscale or height % space.downscale:
        raise ValueError(f"width and height must be multiples of {space.downscale} px, got {width} x {height}")
    cells = (1, space.channels, height // space.downscale, width // space.downscale)
    return Latent(torch.zeros(cells, device=context.device), space)
