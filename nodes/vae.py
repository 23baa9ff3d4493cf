"""Pictures to latents and back."""

from engine.context import Context
from engine.node import node
from nodes.cells import HALF
from nodes.diffusion import load as loading
from nodes.diffusion import vae as coding
from nodes.files import VaeFile
from nodes.fit import px
from nodes.image import batch_size
from nodes.types import Image, Latent, LatentSpace, Mask, Vae


@node("vae.encode", version=2)
def encode(vae: Vae, image: Image, context: Context, hidden: Mask | None = None) -> Latent:
    """Encode pictures; sides must be multiples of the VAE's downscale (8 px). Takes the mean, so nothing is random.

    What is `hidden`, the mask's levels from 128 on, is encoded as middle grey, so that nothing of it is left: what
    ComfyUI encodes for inpainting.
    """
    if hidden is None:
        return Latent(coding.encode(image.data, context.model(vae)), vae.space)
    if hidden.size != image.size:
        raise ValueError(f"the mask is {px(hidden.size)}: expected the size of the image, {px(image.size)}")
    batch_size(image, hidden)
    shown = coding.signed(image.data) * (hidden.data.to(image.data.device) < HALF)
    return Latent(coding.encode_signed(shown, context.model(vae)), vae.space)


@node("vae.decode", version=2)
def decode(vae: Vae, latent: Latent, context: Context, *, rounding: coding.Rounding = "nearest") -> Image:
    """Decode latents to pictures.

    `rounding` says how brightness becomes one of 256 levels: the nearest, or, as the WebUI does, the next below.
    """
    if latent.space != vae.space:
        raise ValueError(f"the latent lives in {latent.space}, this VAE speaks {vae.space}; use the model's own VAE")
    return Image(coding.decode(latent.data, context.model(vae), rounding))


@node("vae.load", version=1)
def load(vae: Vae, source: VaeFile | None = None) -> Vae:
    """Refer to another VAE than the checkpoint's own, at the same precision; without a `source`, the given one.

    `source` is a VAE, a safetensors file as it is shared or a folder in diffusers' layout, by its name in a folder
    `vae` or by its path; or a model, whose VAE is meant.
    """
    if source is None:
        return vae
    space = LatentSpace(**loading.latent_space(source.path))
    source.verify()
    return Vae(source.digest.hex(), vae.precision, space)
