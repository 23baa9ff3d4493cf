"""What steers one call of a sampler: checked against its UNet, before a wrong one fails all that share a UNet call."""

import torch

from nodes.cells import cells, shares
from nodes.diffusion.guidance import Keeper, NoisyRepaint, Repaint
from nodes.diffusion.soft import SoftRepaint
from nodes.types import Conditioning, InpaintConditioning, Latent, Mask, Soft, UnetModel


def check_prompts(positive: Conditioning, negative: Conditioning | None, cfg: float, model: UnetModel) -> None:
    """Refuse conditionings of another width than the UNet's, and a missing negative one."""
    width = model.unet.config.cross_attention_dim
    widths = (width,) if isinstance(width, int) else tuple(width)
    for words in (positive, negative):
        if words is not None and words.data.shape[2] not in widths:
            given = " x ".join(map(str, words.data.shape))
            expected = f"this UNet takes 1 x tokens x {' or '.join(map(str, dict.fromkeys(widths)))}"
            raise ValueError(f"the conditioning is {given}, {expected}; encode with the model's own text encoder")
    weights = [weight for weight, _ in positive.at(0, 1)]
    if negative is None and [weight * cfg for weight in weights] != [1]:
        if weights == [1]:
            remedy = "link `negative`, or set cfg to 1"
            raise ValueError(f"cfg {cfg:g} weighs the prompt against a negative one: {remedy}")
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"prompts with the weights {listed} are weighed against a negative one: link `negative`")


def concatenated(inpaint: InpaintConditioning | None, start: torch.Tensor, model: UnetModel) -> torch.Tensor | None:
    """What goes to the UNet beside the latents `start`, where it is an inpainting model; None for others."""
    (pictures, channels, *sides), takes = start.shape, model.unet.config.in_channels
    if channels == takes:
        return None
    if takes != 2 * channels + 1:
        raise ValueError(f"the latent has {channels} channels, this UNet takes {takes}; use the model's own VAE")
    if inpaint is None:
        raise ValueError(
            f"this is an inpainting model, whose UNet takes {takes} channels: link `inpaint` to an "
            "inpaint.conditioning of picture and mask (a white mask where all is repainted)"
        )
    given = tuple(inpaint.data.shape)
    if given[0] not in (1, pictures) or given[1:] != (takes - channels, *sides):
        expected = f"1 or {pictures} x {takes - channels} x {sides[0]} x {sides[1]}"
        raise ValueError(
            f"the inpaint conditioning is {' x '.join(map(str, given))}, expected {expected}; make it with this UNet, "
            "from a picture and mask of the latent's size"
        )
    return inpaint.data.to(start.device)


def kept(
    mask: Mask | None,
    soft: Soft | None,
    latent: Latent,
    start: torch.Tensor,
    *,
    round_mask: bool,
    noise: torch.Tensor | None = None,
) -> Keeper | None:
    """What the mask keeps of the latents `start`; None where there is no mask. With `noise`, as ComfyUI does."""
    if mask is None:
        if soft is not None:
            raise ValueError("soft inpainting reads the greys of a mask: link `mask`, or take the link of `soft` away")
        return None
    if noise is not None and soft is None:
        return NoisyRepaint(shares(mask, latent, len(start)), start, noise)
    share = cells(mask, latent, len(start), rounded=round_mask and soft is None)
    if soft is None:
        return Repaint(share, start)
    return SoftRepaint(share, start, soft.bias, soft.preservation, soft.contrast)
