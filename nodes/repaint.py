"""What a sampler wants to know of a mask besides where it is: how soft it is, and what an inpainting model sees."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from PIL import ImageFilter

from engine.context import Context
from engine.node import node
from nodes.cells import HALF, cells
from nodes.diffusion import soft as softness
from nodes.diffusion import vae as coding
from nodes.fit import px, resampled, unfilled
from nodes.image import batch_size, each
from nodes.types import Fraction, Image, InpaintConditioning, Latent, Mask, Offset, Side, Soft, Unet, Vae
from nodes.vae import encoded

Strength = Annotated[float, Ge(0), Le(8)]
"""An exponent, or a distance of latents; 0 turns off what it is for."""
Boost = Annotated[float, Ge(1), Le(32)]
"""The exponent of a power mean; 1 is the plain mean."""
SMOOTHING = 4
"""Pillow's blur of the finished overlay, in px."""


@node("inpaint.soft", version=1)
def soft(
    bias: Strength = 1.0,
    preservation: Strength = 0.5,
    contrast: Boost = 4.0,
    *,
    influence: Fraction = 0.0,
    threshold: Strength = 0.5,
    difference_contrast: Strength = 2.0,
) -> Soft:
    """Say how soft inpainting reads a mask: greys as how much may change, so blur the mask widely.

    The WebUI's names are schedule bias, preservation strength, transition contrast boost, mask influence, difference
    threshold and difference contrast. While sampling, at noise level sigma, a mask level m from 0 to 1 counts as
    m ^ (`preservation` sigma ^ `bias`): a larger `preservation` keeps more of what is grey, and a larger `bias` decides
    that earlier. `contrast` keeps the mix of old and new from fading. The other three are for `inpaint.soft_overlay`:
    a change as large as the `threshold` is shown by half, which by `influence` also depends on the mask, and
    `difference_contrast` says how sharply.
    """
    return Soft(bias, preservation, contrast, influence, threshold, difference_contrast)


@node("inpaint.soft_overlay", version=1)
def soft_overlay(
    soft: Soft,
    before: Latent,
    after: Latent,
    mask: Mask,
    base: Image | None = None,
    *,
    x: Offset = 0,
    y: Offset = 0,
    width: Side | None = None,
    height: Side | None = None,
) -> Mask:
    """Show what sampling changed, and the original where it changed next to nothing: the overlay for `inpaint.paste`.

    `before` and `after` are the latent that was sampled from and the result, `mask` the one that it was sampled with.
    The overlay has the size of the mask; with `base` it has that one's size, and lies in the box of `width` x `height`
    px (by default all of `base`) at (`x`, `y`): link the box of `inpaint.frame`.
    """
    levels = _levels(soft, before, after, mask)
    smooth = each(
        levels,
        lambda picture: resampled(picture, mask.size, "lanczos").filter(ImageFilter.GaussianBlur(SMOOTHING)),
    )
    if base is None:
        return smooth
    box = (width or base.size[0], height or base.size[1])
    if x < 0 or y < 0 or x + box[0] > base.size[0] or y + box[1] > base.size[1]:
        raise ValueError(f"the box of {px(box)} at ({x}, {y}) leaves the base of {px(base.size)}; link inpaint.frame's")
    boxed = each(smooth, lambda picture: unfilled(picture, box, "lanczos"))
    canvas = boxed.data.new_zeros((len(boxed.data), 1, base.size[1], base.size[0]))
    canvas[..., y : y + box[1], x : x + box[0]] = boxed.data
    return Mask(canvas)


@node("inpaint.conditioning", version=2)
def conditioning(
    unet: Unet,
    vae: Vae,
    image: Image,
    mask: Mask,
    context: Context,
    *,
    strength: Fraction = 1.0,
    round_mask: bool = True,
) -> InpaintConditioning:
    """Make what an inpainting model sees beside the latent: the mask, and the latent of the picture without its area.

    `strength`, the WebUI's "inpainting conditioning mask strength", says how grey the masked area becomes before it is
    encoded: 1 hides it, 0 shows it all. The mask is rounded to black and white unless `round_mask` is off, as it should
    be for soft inpainting. For any other UNet this is empty, and nothing is encoded.
    """
    if unet.inputs == vae.space.channels:
        return InpaintConditioning(torch.zeros(1, 0, 1, 1, device=context.device))
    if mask.size != image.size:
        raise ValueError(f"the mask is {px(mask.size)}: expected the size of the image, {px(image.size)}")
    count, step = batch_size(image, mask), vae.space.downscale
    share = (mask.data >= HALF).float() if round_mask else mask.data.float() / 255
    hidden = coding.signed(image.data) * (1 - strength * share.to(image.data.device))
    latents = encoded(hidden, vae, context)
    grid = share[..., ::step, ::step].to(latents.device)
    return InpaintConditioning(torch.cat([part.expand(count, -1, -1, -1) for part in (grid, latents)], dim=1))


def _levels(soft: Soft, before: Latent, after: Latent, mask: Mask) -> Mask:
    """How much of each latent cell is to be seen, truncated to 255 levels; on the CPU."""
    if before.data.shape[1:] != after.data.shape[1:] or len(before.data) not in (1, len(after.data)):
        shapes = (" x ".join(map(str, latent.data.shape)) for latent in (before, after))
        raise ValueError(f"expected latents before and after one sampling, got {' and '.join(shapes)}")
    shown = softness.changed(
        before.data.to(after.data.device),
        after.data,
        cells(mask, after, len(after.data), rounded=False),
        preservation=soft.preservation,
        influence=soft.influence,
        threshold=soft.threshold,
        contrast=soft.difference_contrast,
    )
    return Mask((255 * shown).to(torch.uint8).cpu())
