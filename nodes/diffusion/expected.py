"""How much memory a part of a model will take, and which files are read for it, from their beginnings."""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from nodes.diffusion import embedding, folder, upscale
from nodes.diffusion.folder import Component
from nodes.diffusion.parts import CONTROLNET, DIFFUSERS_CONTROLNET, Contents
from nodes.diffusion.tensors import LoadError, Span

ModelPart: TypeAlias = Literal["unet", "text", "vae", "controlnet", "upscale", "embedding"]

_COMPONENTS: Mapping[ModelPart, tuple[Component, ...]] = {
    "unet": (folder.UNET,),
    "text": (folder.TEXT_ENCODER, folder.TEXT_ENCODER_2),
    "vae": (folder.VAE,),
    "controlnet": (folder.CONTROLNET,),
}
_ALONE = ("vae", "controlnet")
"""Parts that may be a folder, or a file, of their own."""
_PREFIXES: Mapping[ModelPart, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "text": ("cond_stage_model.", "conditioner."),
    "vae": ("first_stage_model.",),
}


def weight_bytes(model: Path, part: ModelPart, dtype: torch.dtype) -> int:
    """Bytes of the weights of a part in `dtype`, about; 0 where that is not known, as in files that do not load."""
    return sum(prod(span.shape) for span in _stored(model, part)) * dtype.itemsize


def weight_files(model: Path, part: ModelPart) -> list[Path]:
    """The files that a part's weights are taken from; none where they do not load."""
    return sorted({span.path for span in _stored(model, part)})


def _stored(model: Path, part: ModelPart) -> list[Span]:
    try:
        return [*(_in_folder(model, part) if model.is_dir() else _in_file(model, part))]
    except (LoadError, OSError):
        return []


def _in_folder(model: Path, part: ModelPart) -> Iterable[Span]:
    """The weights that the loader takes from a folder, in whatever number format and however many files."""
    components = _COMPONENTS.get(part, ())
    held = [(component, model / component.folder) for component in components if (model / component.folder).is_dir()]
    if not held and part in _ALONE:
        held = [(component, model) for component in components]
    return [span for component, place in held for span in folder.stored(component, place).values()]


def _in_file(path: Path, part: ModelPart) -> Iterable[Span]:
    if part == "upscale":
        return upscale.stored(path).values()
    if part == "embedding":
        return embedding.stored(path)
    contents = Contents.of(path)
    if part == "controlnet":
        return contents.part(CONTROLNET, DIFFUSERS_CONTROLNET).spans.values()
    own = [span for name, span in contents.spans.items() if name.startswith(_PREFIXES[part])]
    alone = part == "vae" and not any(name.startswith(_PREFIXES["unet"]) for name in contents.spans)
    return own or (contents.spans.values() if alone else ())
