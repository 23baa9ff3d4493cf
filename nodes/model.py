"""Checkpoints: where UNet, text encoder and VAE come from."""

from typing import NamedTuple

from engine.file import ModelFile
from engine.node import node
from nodes.diffusion import load as loading
from nodes.types import LatentSpace, Precision, TextEncoder, Unet, Vae


class Parts(NamedTuple):
    """The parts of a checkpoint."""

    unet: Unet
    text: TextEncoder
    vae: Vae


@node("model.load", version=1)
def load(checkpoint: ModelFile, precision: Precision = "auto") -> Parts:
    """Refer to the UNet, text encoder and VAE of a checkpoint.

    `checkpoint` is a folder in diffusers' layout, or `pocket`, the embedded model. Nothing is loaded here: the parts
    are references, known by the content of the checkpoint's files, and are loaded by the nodes that use them.
    """
    digest = checkpoint.digest.hex()
    space = LatentSpace(**loading.latent_space(checkpoint.path))
    checkpoint.verify()
    return Parts(Unet(digest, precision), TextEncoder(digest, precision), Vae(digest, precision, space))
