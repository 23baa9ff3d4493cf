"""How much memory a part of a model will take, from the shapes at the beginning of its files."""

from math import prod
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from nodes.diffusion.parts import REMEDY
from nodes.diffusion.tensors import LoadError, Shape, shapes

ModelPart: TypeAlias = Literal["unet", "text", "vae"]

_WEIGHTS: dict[ModelPart, tuple[str, ...]] = {
    "unet": ("unet/diffusion_pytorch_model.safetensors",),
    "text": ("text_encoder/model.safetensors", "text_encoder_2/model.safetensors"),
    "vae": ("vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
}
_PREFIXES: dict[ModelPart, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "text": ("cond_stage_model.", "conditioner."),
    "vae": ("first_stage_model.",),
}


def weight_bytes(model: Path, part: ModelPart, dtype: torch.dtype) -> int:
    """Bytes of the weights of a part in `dtype`, about; 0 where that is not known, as in files that do not load."""
    try:
        found = _shapes(model, part)
    except (LoadError, OSError):
        return 0
    return sum(map(prod, found)) * dtype.itemsize


def _shapes(model: Path, part: ModelPart) -> list[Shape]:
    if model.is_dir():
        there = [model / name for name in _WEIGHTS[part] if (model / name).is_file()]
        return [shape for path in there for shape in shapes(path, REMEDY).values()]
    held = shapes(model, REMEDY)
    own = [shape for name, shape in held.items() if name.startswith(_PREFIXES[part])]
    alone = part == "vae" and not any(name.startswith(_PREFIXES["unet"]) for name in held)
    return own or (list(held.values()) if alone else [])
