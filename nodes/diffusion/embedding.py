"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): vectors that stand for a word, from a safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nodes.diffusion.tensors import LoadError, some, weights

REMEDY = (
    "safetensors.torch.save_file({{'emb_params': torch.load({path!r}, weights_only=True)['string_to_param']['*']}}, "
    "{converted!r})"
)


def read(path: Path | str) -> Tensor:
    """Return the vectors of an embedding, (N, D) in float32 on the CPU.

    `emb_params` and a file of one tensor under any name (the WebUI's and diffusers' spelling) are read as they are; of
    an embedding for SDXL, `clip_l` and `clip_g` are joined along D. Raises LoadError for anything else.
    """
    path = Path(path)
    tensors, _ = weights(path, REMEDY)
    if {"clip_l", "clip_g"} <= tensors.keys():
        found = torch.cat([_rows(tensors[name]) for name in ("clip_l", "clip_g")], dim=1)
    elif "emb_params" in tensors or len(tensors) == 1:
        found = _rows(tensors.get("emb_params", next(iter(tensors.values()))))
    else:
        raise LoadError(path, "one tensor of vectors, such as emb_params", f"{some(list(tensors)) or 'nothing'}")
    if found.ndim != 2 or 0 in found.shape:
        raise LoadError(path, "vectors of shape (N, D)", str(tuple(found.shape)))
    return found


def _rows(tensor: Tensor) -> Tensor:
    return tensor.float().reshape(1, -1) if tensor.ndim == 1 else tensor.float()
