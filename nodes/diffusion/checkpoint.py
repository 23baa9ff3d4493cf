"""Checkpoints in one file, laid out as by Stable Diffusion's first code: recognised by their tensors, read by parts.

What a model is follows from the names and shapes of its tensors, which stand at the beginning of the file; its name
means nothing. What they do not say stands in the folder `data`. A part is built without values and takes its own
tensors from the file, so that little more memory is needed than it fills in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nodes.diffusion import architecture, original
from nodes.diffusion.architecture import DATA, Family
from nodes.diffusion.filling import filled
from nodes.diffusion.parts import (
    CLIP,
    CONTROLNET,
    DIFFUSERS_CONTROLNET,
    DIFFUSERS_VAE,
    OPEN_CLIP,
    REFINER_BIG_G,
    REMEDY,
    UNET,
    VAE,
    XL_BIG_G,
    XL_CLIP,
    Contents,
    Kind,
    Part,
)
from nodes.diffusion.table import NoiseSchedule
from nodes.diffusion.tensors import LoadError, opened, refusing

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

TOKENIZER = DATA / "tokenizer"
"""The vocabulary that all these models have in common, as transformers reads it."""
V_THRESHOLD = 0.09
"""The UNets of SD 2.x differ in nothing but values: in those that predict v this bias deviates more than that."""
V_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"

TITLES: dict[Family, str] = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "refiner": "SDXL refiner"}


class Encoder(NamedTuple):
    """How a text encoder is stored, whether all of its layers count, and whether its output is projected."""

    kind: Kind
    dropped: int = 0
    projected: bool = False


ENCODERS: dict[Family, tuple[Encoder, ...]] = {
    "sd1": (Encoder(CLIP),),
    "sd2": (Encoder(OPEN_CLIP, dropped=1),),
    "sdxl": (Encoder(XL_CLIP), Encoder(XL_BIG_G, projected=True)),
    "refiner": (Encoder(REFINER_BIG_G, projected=True),),
}
"""The text encoders of a family; SD 2.x takes what the last layer but one gives."""


def unet(path: Path, dtype: torch.dtype, device: torch.device | str) -> UNet2DConditionModel:
    """Load the UNet of a checkpoint, ready to predict; its EMA is left out where the file has both."""
    contents = Contents.of(path)
    part = _unet(contents)
    config = architecture.unet(part, _family(contents, part), _pooled(contents))
    return filled(lambda: _made("diffusers", "UNet2DConditionModel", config), part, original.unet, dtype, device)


def vae(path: Path, dtype: torch.dtype, device: torch.device | str, **changed: Any) -> AutoencoderKL:
    """Load the VAE of a checkpoint, or one that is alone in its file, with `changed` in its config."""
    part, config = _vae(Contents.of(path))
    names = original.vae if part.kind is VAE else original.stored(part.spans)
    return filled(lambda: _made("diffusers", "AutoencoderKL", config | changed), part, names, dtype, device)


def text_encoders(
    path: Path, dtype: torch.dtype, device: torch.device | str
) -> tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]:
    """Load the text encoders of a checkpoint: CLIP's, OpenCLIP's up to the layer that is taken, or SDXL's two."""
    contents = Contents.of(path)
    return tuple(_encoder(contents, each, dtype, device) for each in ENCODERS[_text_family(contents)])


def dropped(path: Path) -> tuple[int, ...]:
    """Count the layers at the end of each of a checkpoint's text encoders that are not loaded."""
    return tuple(encoder.dropped for encoder in ENCODERS[_text_family(Contents.of(path))])


def tokenizer_options(path: Path) -> tuple[dict[str, Any], ...]:
    """What the tokenizer of each text encoder has other than the vocabulary in TOKENIZER."""
    contents = Contents.of(path)
    found = _text_family(contents)
    contents.part(ENCODERS[found][0].kind)
    return tuple(architecture.read(found)["tokenizers"])


def controlnet(path: Path, dtype: torch.dtype, device: torch.device | str) -> ControlNetModel:
    """Load a ControlNet that is alone in its file, in the original layout or diffusers'."""
    part = Contents.of(path).part(CONTROLNET, DIFFUSERS_CONTROLNET)
    config = architecture.controlnet(part, architecture.unet_family(part))
    names = original.controlnet if part.kind is CONTROLNET else original.stored(part.spans)
    return filled(lambda: _made("diffusers", "ControlNetModel", config), part, names, dtype, device)


def schedule(path: Path) -> NoiseSchedule:
    """Return the noise levels that a checkpoint was trained on, and what its UNet predicts.

    A checkpoint that predicts v has a tensor `v_pred`, or is one of SD 2.x with the values of those; one with a tensor
    `ztsnr` was trained on noise without any signal.
    """
    contents = Contents.of(path)
    part = _unet(contents)
    found = _family(contents, part)
    config = dict(architecture.read(found)["schedule"])
    config["prediction_type"] = "v_prediction" if "v_pred" in contents or _predicts_v(part, found) else "epsilon"
    with refusing(path, "a supported noise schedule"):
        table = NoiseSchedule.from_config(config)
        return table.with_zero_snr() if "ztsnr" in contents else table


def inputs(path: Path) -> int:
    """Return how many channels the UNet of a checkpoint takes."""
    return _check_inputs(Contents.of(path).part(UNET))


def family(path: Path) -> Family:
    """Say of which family a checkpoint is."""
    contents = Contents.of(path)
    return _family(contents, contents.part(UNET))


def latent_space(path: Path, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the latent space of a checkpoint, of one without VAE that of its family's, or of a VAE alone in a file.

    A VAE alone does not say what its latents are scaled with, as all families' have the same shapes. It takes the
    scaling and shift of the space that it stands `beside`, without one those of Stable Diffusion 1.x.
    """
    contents = Contents.of(path)
    if not contents.has(VAE, DIFFUSERS_VAE):
        return space(architecture.vae_data(_family(contents, contents.part(UNET))))
    found = space(_vae(contents)[1])
    if contents.has(UNET) or beside is None:
        return found
    return found | {name: beside[name] for name in ("scaling", "shift")}


def space(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the config of a VAE says of its latents."""
    return {
        "channels": config["latent_channels"],
        "downscale": 2 ** (len(config["block_out_channels"]) - 1),
        "scaling": float(config["scaling_factor"]),
        "shift": float(config.get("shift_factor") or 0.0),
    }


def described(path: Path) -> str:
    """Say in a few words what a file is. Raises LoadError where it is none of a checkpoint, a VAE and a ControlNet."""
    contents = Contents.of(path)
    if not contents.has(UNET) and contents.has(VAE, DIFFUSERS_VAE):
        return "VAE"
    if not contents.has(UNET) and contents.has(CONTROLNET, DIFFUSERS_CONTROLNET):
        part = contents.part(CONTROLNET, DIFFUSERS_CONTROLNET)
        return f"ControlNet for {TITLES[architecture.unet_family(part)]}"
    part = contents.part(UNET)
    inpainting = " inpainting" if _check_inputs(part) > part.size("out.2.weight") else ""
    without = "" if contents.has(VAE) else " without VAE"
    return f"{TITLES[_family(contents, part)]}{inpainting}{without}"


def _family(contents: Contents, part: Part) -> Family:
    """Whether it refines follows from the text encoder, where there is one."""
    told = contents.has(XL_CLIP, XL_BIG_G, REFINER_BIG_G)
    return architecture.unet_family(part, refiner=contents.has(REFINER_BIG_G) if told else None)


def _text_family(contents: Contents) -> Family:
    """The family that has these text encoders; where there are none, that of the UNet."""
    if contents.has(XL_CLIP, XL_BIG_G):
        return "sdxl"
    if contents.has(REFINER_BIG_G):
        return "refiner"
    if contents.has(OPEN_CLIP):
        return "sd2"
    return "sd1" if contents.has(CLIP) or not contents.has(UNET) else _family(contents, contents.part(UNET))


def _unet(contents: Contents) -> Part:
    part = contents.part(UNET)
    _check_inputs(part)
    return part


def _vae(contents: Contents) -> tuple[Part, dict[str, Any]]:
    part = contents.part(VAE, DIFFUSERS_VAE)
    found = _family(contents, contents.part(UNET)) if contents.has(UNET) else None
    return part, architecture.vae(part, found)


def _pooled(contents: Contents) -> int | None:
    """The width of the pooled text that SDXL's UNet is told, where the text encoder is there."""
    for kind in (XL_BIG_G, REFINER_BIG_G):
        span = contents.spans.get(f"{kind.prefixes[0]}text_projection")
        if span is not None:
            return span.shape[-1]
    return None


def _encoder(contents: Contents, encoder: Encoder, dtype: torch.dtype, device: torch.device | str) -> Any:
    part = contents.part(encoder.kind)
    hugging = encoder.kind in (CLIP, XL_CLIP)
    config = architecture.clip(part) if hugging else architecture.open_clip(part)
    config["num_hidden_layers"] = max(1, config["num_hidden_layers"] - encoder.dropped)
    if encoder.projected:
        config["projection_dim"] = part.size("text_projection", 1)
    kind = "CLIPTextModelWithProjection" if encoder.projected else "CLIPTextModel"
    names = original.clip if hugging else original.open_clip
    return filled(lambda: clip_made(kind, config), part, names, dtype, device)


def _predicts_v(part: Part, family: Family) -> bool:
    if family != "sd2" or _check_inputs(part) > part.size("out.2.weight") or V_BIAS not in part.spans:
        return False
    with opened(part.path, REMEDY) as file:
        return bool(file.get_tensor(part.prefix + V_BIAS).float().std(unbiased=False) > V_THRESHOLD)


def _check_inputs(part: Part) -> int:
    taken, given = part.size("input_blocks.0.0.weight", 1), part.size("out.2.weight")
    if taken not in (given, 2 * given + 1):
        expected = "a UNet with as many channels in as out, or for inpainting twice as many and one"
        raise LoadError(part.path, expected, f"{taken} in and {given} out")
    return taken


def clip_made(kind: str, config: dict[str, Any]) -> Any:
    """Build a text encoder."""
    return _made("transformers", kind, {"config": _made("transformers", "CLIPTextConfig", config)})


def _made(library: str, kind: str, config: dict[str, Any]) -> Any:
    return getattr(import_module(library), kind)(**config)
