"""Loading: the parts of a Stable Diffusion model, 1.x, 2.x or XL, from a folder in diffusers' layout or a single file.

Nothing is fetched, reported or unpickled: only local safetensors files are read, and what does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nodes.diffusion import checkpoint, folder
from nodes.diffusion.architecture import Family
from nodes.diffusion.folder import CONTROLNET, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tensors import LoadError, refusing, some
from nodes.diffusion.tower import Tower

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = [
    "Family",
    "LoadError",
    "controlnet",
    "described",
    "family",
    "latent_space",
    "schedule",
    "text_encoder",
    "tokenizer",
    "towers",
    "unet",
    "unet_inputs",
    "vae",
]

OPEN_CLIP_LAYERS = 24
"""What OpenCLIP's H has, of which SD 2.x takes no more than 23."""


def unet(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> UNet2DConditionModel:
    """Load `model`/unet, or the UNet of a checkpoint: eval mode, no gradients, on `device` in `dtype`.

    Like every loader here it raises LoadError if a file is missing, damaged, a pickle or of an unsupported class.
    """
    if Path(model).is_file():
        return checkpoint.unet(Path(model), dtype, device)
    path = folder.part(Path(model), UNET.folder)
    unet_inputs(model)
    told = folder.read(path / "config.json").get("addition_embed_type")
    if told not in (None, "text_time"):
        raise LoadError(path / "config.json", "addition_embed_type null or 'text_time'", repr(told))
    return folder.module(UNET, path, dtype, device)


def unet_inputs(model: Path | str) -> int:
    """Read how many channels the UNet in `model`/unet takes.

    They are those of the latent (4) or, of an inpainting model, those of mask, masked latent and latent (9).
    """
    if Path(model).is_file():
        return checkpoint.inputs(Path(model))
    path = folder.part(Path(model), UNET.folder) / "config.json"
    config = folder.read(path)
    inputs, outputs = (config.get(name, 0) for name in ("in_channels", "out_channels"))
    if inputs not in (outputs, 2 * outputs + 1):
        expected = "as many channels in as out, or for inpainting twice as many and one"
        raise LoadError(path, expected, f"{inputs} in and {outputs} out")
    return int(inputs)


def vae(
    model: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    space: Mapping[str, Any] | None = None,
) -> AutoencoderKL:
    """Load `model`/vae, or the VAE of a checkpoint; `model` may also be a VAE itself.

    `space` is the latent space that it is to speak, as `latent_space` gives it; without one it is the file's own.
    """
    spoken = {} if space is None else {"scaling_factor": space["scaling"], "shift_factor": space["shift"]}
    if Path(model).is_file():
        return checkpoint.vae(Path(model), dtype, device, **spoken)
    path = _vae_folder(model)
    if folder.read(path / "config.json").get("latents_mean") is not None:
        raise LoadError(path / "config.json", "latents_mean null", "a mean per channel, which is not supported")
    return folder.module(VAE, path, dtype, device, **spoken)


def latent_space(model: Path | str, *, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read `channels`, `downscale` in pixels, `scaling` and `shift` of the latents, without the weights.

    A VAE alone in a file does not tell scaling and shift: it takes those of the space of the model that it is put
    `beside`, without one those of Stable Diffusion 1.x.
    """
    if Path(model).is_file():
        return checkpoint.latent_space(Path(model), beside)
    path = _vae_folder(model) / "config.json"
    config = folder.read(path)
    absent = [name for name in ("latent_channels", "block_out_channels", "scaling_factor") if name not in config]
    if absent:
        raise LoadError(path, "a VAE's config", f"none of {some(absent)}")
    return checkpoint.space(config)


def family(model: Path | str) -> Family:
    """Say of which family a model is: how many text encoders it has, and what its UNet takes beside their states."""
    if Path(model).is_file():
        return checkpoint.family(Path(model))
    config = folder.read(folder.part(Path(model), UNET.folder) / "config.json")
    if config.get("addition_embed_type") is None:
        return "sd2" if config.get("use_linear_projection") else "sd1"
    return "sdxl" if (Path(model) / TEXT_ENCODER.folder).is_dir() else "refiner"


def towers(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[Tower, ...]:
    """Load a model's text encoders, each with its tokenizer, in the order in which their states stand side by side.

    One of SD 1.x and 2.x, two of SDXL (CLIP's L, then OpenCLIP's bigG), one of its refiner (bigG).
    """
    model = Path(model)
    if model.is_file():
        encoders = checkpoint.text_encoders(model, dtype, device)
        return tuple(map(Tower, _file_tokenizers(model), encoders, checkpoint.dropped(model)))
    kinds = [kind for kind in (TEXT_ENCODER, TEXT_ENCODER_2) if (model / kind.folder).is_dir()] or [TEXT_ENCODER]
    folders = [folder.part(model, kind.folder.replace("text_encoder", "tokenizer")) for kind in kinds]
    encoders = tuple(folder.module(kind, folder.part(model, kind.folder), dtype, device) for kind in kinds)
    return tuple(map(Tower, map(folder.tokenizer, folders), encoders, _dropped(model, encoders)))


def _dropped(model: Path, encoders: Sequence[CLIPTextModel]) -> list[int]:
    """Count the layers that each text encoder in a folder lacks: the last in SD 2.x, unless all are there."""
    second = (model / UNET.folder).is_dir() and family(model) == "sd2"
    return [int(second and encoder.config.num_hidden_layers < OPEN_CLIP_LAYERS) for encoder in encoders]


def text_encoder(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CLIPTextModel:
    """Load `model`/text_encoder, or the first text encoder of a checkpoint."""
    if Path(model).is_file():
        return checkpoint.text_encoders(Path(model), dtype, device)[0]
    return folder.module(TEXT_ENCODER, folder.part(Path(model), TEXT_ENCODER.folder), dtype, device)


def tokenizer(model: Path | str) -> CLIPTokenizer:
    """Load `model`/tokenizer, or the tokenizer that a checkpoint's first text encoder was trained with."""
    if Path(model).is_file():
        return _file_tokenizers(Path(model))[0]
    return folder.tokenizer(folder.part(Path(model), "tokenizer"))


def controlnet(
    model: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ControlNetModel:
    """Load a ControlNet: a file in the original layout or diffusers', or a folder with its config."""
    if Path(model).is_file():
        return checkpoint.controlnet(Path(model), dtype, device)
    return folder.module(CONTROLNET, Path(model), dtype, device)


def described(model: Path | str) -> str:
    """Say in a few words what a file or folder is: "SDXL inpainting", "VAE", "ControlNet for SD 1.x", and such.

    Raises LoadError where it is nothing that is loaded here.
    """
    model = Path(model)
    if model.is_file():
        return checkpoint.described(model)
    kind = folder.read(model / "config.json").get("_class_name") if (model / "config.json").is_file() else None
    if kind in (VAE.kind, CONTROLNET.kind):
        return "VAE" if kind == VAE.kind else f"ControlNet for {checkpoint.TITLES[_controlnet_family(model)]}"
    config = folder.read(folder.part(model, UNET.folder) / "config.json")
    inpainting = " inpainting" if unet_inputs(model) > config["out_channels"] else ""
    return f"{checkpoint.TITLES[family(model)]}{inpainting}"


def schedule(model: Path | str) -> NoiseSchedule:
    """Read the noise levels the model was trained on from `model`/scheduler, or what a checkpoint tells of them."""
    if Path(model).is_file():
        return checkpoint.schedule(Path(model))
    path = folder.part(Path(model), "scheduler") / "scheduler_config.json"
    with refusing(path, "a supported noise schedule"):
        return NoiseSchedule.from_config(folder.read(path))


def _controlnet_family(model: Path) -> Family:
    config = folder.checked(CONTROLNET, model)
    if config.get("addition_embed_type") is not None:
        return "sdxl"
    return "sd2" if config.get("use_linear_projection") else "sd1"


def _file_tokenizers(model: Path) -> tuple[CLIPTokenizer, ...]:
    return tuple(folder.tokenizer(checkpoint.TOKENIZER, **options) for options in checkpoint.tokenizer_options(model))


def _vae_folder(model: Path | str) -> Path:
    model = Path(model)
    alone = (model / "config.json").is_file() and not (model / VAE.folder).is_dir()
    return model if alone else folder.part(model, VAE.folder)
