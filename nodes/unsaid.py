"""What an inpainting model sees beside the latent, where no `inpaint.conditioning` is linked that says it."""

import torch

from engine.context import Context
from nodes.cells import cells, shares
from nodes.diffusion.tensors import LoadError
from nodes.types import Blank, Latent, Mask, Unet

MIDDLE_GREY = (0.8223, -0.6876, 0.6364, 0.1380)
"""Middle grey as a latent of Stable Diffusion 1.x has it: ComfyUI's numbers, which it takes for SDXL too."""


def unsaid(
    unet: Unet, latent: Latent, start: torch.Tensor, mask: Mask | None, context: Context, *, comfy: bool
) -> torch.Tensor:
    """Mask and picture for the latents `start`, float32 (1 or N, 1 + C, h, w).

    Without a mask all is to be repainted and nothing is seen, of whatever the latents are made: a mask of ones, and the
    latent of a middle grey picture, which the WebUI encodes and ComfyUI knows by heart. With one it is that mask, and
    the latents as they are. Raises ValueError where the checkpoint has no VAE to encode with.
    """
    if mask is not None:
        scaled = shares(mask, latent, len(start)).round() if comfy else cells(mask, latent, len(start))
        return torch.cat([scaled.to(start.device).expand(len(start), -1, -1, -1), start.float()], dim=1)
    grey = _known(start) if comfy and start.shape[1] == len(MIDDLE_GREY) else _encoded(unet, latent, context)
    return torch.cat([torch.ones_like(grey[:, :1]), grey], dim=1).to(start.device)


def _known(start: torch.Tensor) -> torch.Tensor:
    channels = torch.tensor(MIDDLE_GREY)[None, :, None, None]
    return channels.expand(1, -1, *start.shape[2:])


def _encoded(unet: Unet, latent: Latent, context: Context) -> torch.Tensor:
    height, width = (side * latent.space.downscale for side in latent.data.shape[2:])
    try:
        made: torch.Tensor = context.model(Blank(unet.digest, unet.precision, latent.space, width, height))
    except LoadError as error:
        raise ValueError(
            "this is an inpainting model, and its checkpoint has no VAE to encode the grey picture with that it sees "
            f"where nothing else is said ({error}): link `inpaint` to an inpaint.conditioning of picture and mask (a "
            "white mask where all is repainted)"
        ) from error
    return made
