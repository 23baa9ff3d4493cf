"""Pictures to latents and back."""

from dataclasses import asdict

import torch

from engine.context import Context
from engine.node import node
from nodes.cells import HALF
from nodes.diffusion import load as loading
from nodes.diffusion import vae as coding
from nodes.diffusion.tiling import Tiling
from nodes.fallback import in_float32, in_tiles
from nodes.files import VaeFile
from nodes.fit import px
from nodes.image import batch_size
from nodes.tile import Overlap, Tile
from nodes.types import Image, Latent, LatentSpace, Mask, Vae

OVERLAP = 64
"""How much tiles overlap at least where nothing else is said, in px."""
NO_TILES = Tiling(0, OVERLAP)


@node("vae.encode", version=3)
def encode(
    vae: Vae,
    image: Image,
    context: Context,
    hidden: Mask | None = None,
    *,
    tile: Tile = 0,
    overlap: Overlap = OVERLAP,
) -> Latent:
    """Encode pictures; sides must be multiples of the VAE's downscale (8 px). Takes the mean, so nothing is random.

    What is `hidden`, the mask's levels from 128 on, is encoded as middle grey, so that nothing of it is left: what
    ComfyUI encodes for inpainting. Tiles and precision are as in `vae.decode`.
    """
    signed = coding.signed(image.data)
    if hidden is not None:
        if hidden.size != image.size:
            raise ValueError(f"the mask is {px(hidden.size)}: expected the size of the image, {px(image.size)}")
        batch_size(image, hidden)
        signed = signed * (hidden.data.to(image.data.device) < HALF)
    return Latent(encoded(signed, vae, context, Tiling(tile, overlap)), vae.space)


@node("vae.decode", version=3)
def decode(
    vae: Vae,
    latent: Latent,
    context: Context,
    *,
    rounding: coding.Rounding = "nearest",
    tile: Tile = 0,
    overlap: Overlap = OVERLAP,
) -> Image:
    """Decode latents to pictures.

    `rounding` says how brightness becomes one of 256 levels: the nearest, or, as the WebUI does, the next below. With
    `tile`, a side in px, the picture is made of square tiles that overlap by `overlap` px at least and fade into one
    another, both in whole cells of the latent: little memory is needed then, but colours differ slightly from those of
    the picture made at once (0). Where memory runs out that is done of itself, and said. What overflows in float16 or
    bfloat16 is computed again in float32, and said too.
    """
    if latent.space != vae.space:
        raise ValueError(f"the latent lives in {latent.space}, this VAE speaks {vae.space}; use the model's own VAE")
    model, wider = context.model(vae), in_float32(context, vae)
    longest = max(latent.data.shape[2:]) * vae.space.downscale

    def run(tiling: Tiling) -> Image:
        return Image(coding.decode(latent.data, model, rounding, tiling, wider=wider, progress=context.progress))

    return in_tiles(context, run, _checked(Tiling(tile, overlap), vae), longest)


@node("vae.load", version=2)
def load(vae: Vae, source: VaeFile | None = None) -> Vae:
    """Refer to another VAE than the checkpoint's own, at the same precision; without a `source`, the given one.

    `source` is a VAE, a safetensors file as it is shared or a folder in diffusers' layout, by its name in a folder
    `vae` or by its path; or a model, whose VAE is meant. A file of a VAE alone does not tell the scale of its latents,
    which is then that of `vae`.
    """
    if source is None:
        return vae
    space = LatentSpace(**loading.latent_space(source.path, beside=asdict(vae.space)))
    source.verify()
    return Vae(source.digest.hex(), vae.precision, space)


def encoded(signed: torch.Tensor, vae: Vae, context: Context, tiling: Tiling = NO_TILES) -> torch.Tensor:
    """Encode pictures, float32 (N, 3, H, W) from -1 to 1, with whatever memory and precision it takes."""
    model, wider = context.model(vae), in_float32(context, vae)

    def run(tiling: Tiling) -> torch.Tensor:
        return coding.encode_signed(signed, model, tiling, wider=wider, progress=context.progress)

    return in_tiles(context, run, _checked(tiling, vae), max(signed.shape[2:]))


def _checked(tiling: Tiling, vae: Vae) -> Tiling:
    """The tiling. Raises ValueError where nothing is left of a tile, counted in whole cells."""
    cells = tiling.cells(vae.space.downscale)
    if tiling.side and cells.overlap >= cells.side:
        side, overlap = cells.side * vae.space.downscale, cells.overlap * vae.space.downscale
        raise ValueError(
            f"an overlap of {tiling.overlap} px ({overlap} in whole cells of the latent) leaves nothing of a tile of "
            f"{tiling.side} px ({side}): it must be smaller, 64 of 512 for example"
        )
    return tiling
