"""Checkpoints and LoRAs: where UNet, text encoder and VAE come from."""

from dataclasses import replace
from typing import NamedTuple

from engine.node import node
from nodes.diffusion import load as loading
from nodes.diffusion.table import Prediction
from nodes.files import CheckpointFile, LoraFile
from nodes.types import LatentSpace, Loras, Precision, TextEncoder, Unet, Vae


class Parts(NamedTuple):
    """The parts of a checkpoint."""

    unet: Unet
    text: TextEncoder
    vae: Vae


class Patched(NamedTuple):
    """The parts that LoRAs change."""

    unet: Unet
    text: TextEncoder


@node("model.load", version=2)
def load(checkpoint: CheckpointFile, precision: Precision = "auto") -> Parts:
    """Refer to the UNet, text encoder and VAE of a checkpoint.

    `checkpoint` is a safetensors file as it is shared, of Stable Diffusion 1.x, 2.x, SDXL or SDXL's refiner, also for
    inpainting, by its name in a folder `checkpoints` or by its path; or a folder in diffusers' layout; or the hub id,
    `owner/name`, of one in the hub's local cache; or `pocket`, the embedded model. Nothing is loaded here: the parts
    are references, known by the content of the checkpoint's files, and are loaded by the nodes that use them. A file
    without a VAE needs one from `vae.load`.
    """
    digest = checkpoint.digest.hex()
    space = LatentSpace(**loading.latent_space(checkpoint.path))
    inputs = loading.unet_inputs(checkpoint.path)
    checkpoint.verify()
    return Parts(Unet(digest, precision, inputs), TextEncoder(digest, precision), Vae(digest, precision, space))


@node("model.lora", version=1)
def lora(
    unet: Unet, text: TextEncoder, source: LoraFile, unet_strength: float = 1.0, text_strength: float = 1.0
) -> Patched:
    """Put a LoRA on a UNet and a text encoder, on top of those that are on them.

    `source` is a safetensors file, by its name in a folder `loras` or by its path: a LoRA, also with convolutions, a
    LoHa, LoKr, DoRA or full differences, for the family of the model. A strength of 1 is what it was trained for, less
    is weaker, negative is the opposite, 0 leaves the part as it is. `text_strength` counts for all text encoders.
    """
    return loras(unet, text, Loras(((source.digest.hex(), text_strength, unet_strength),)))


@node("model.loras", version=1)
def loras(unet: Unet, text: TextEncoder, loras: Loras) -> Patched:
    """Put the LoRAs that a prompt mentions on a UNet and a text encoder, on top of those that are on them."""
    on_unet = tuple((digest, strength) for digest, _, strength in loras.entries if strength)
    on_text = tuple((digest, strength) for digest, strength, _ in loras.entries if strength)
    return Patched(replace(unet, patches=unet.patches + on_unet), replace(text, patches=text.patches + on_text))


@node("model.sampling", version=1)
def sampling(unet: Unet, *, prediction: Prediction | None = None, zero_snr: bool = False) -> Unet:
    """Say what a UNet was trained to predict, and on which noise, where its checkpoint does not.

    Without a `prediction` it is what the checkpoint says, or what its tensors show. With `zero_snr` the noise levels
    end in noise without any signal (Lin et al. 2023, https://arxiv.org/abs/2305.08891), whatever the checkpoint says.
    """
    given = unet.prediction if prediction is None else prediction
    return replace(unet, prediction=given, zero_snr=unet.zero_snr or zero_snr)
