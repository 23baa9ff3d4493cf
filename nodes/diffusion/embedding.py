"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): vectors that stand for a word, from a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nodes.diffusion.bases import EMBEDDING_BY_WIDTH
from nodes.diffusion.tensors import LoadError, Span, opened, shapes, some, spans

REMEDY = (
    "safetensors.torch.save_file({{'emb_params': torch.load({path!r}, weights_only=True)['string_to_param']['*']}}, "
    "{converted!r})"
)
LAYOUTS: tuple[tuple[str, ...], ...] = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"), ("emb_params",))
"""Names of tensors: of SDXL's two text encoders, in the WebUI's words and in those of some trainers; of the WebUI."""


def read(path: Path | str) -> Tensor:
    """Return the vectors of an embedding, (N, D) in float32 on the CPU.

    They are those of `emb_params`, as the WebUI has them, or of the only tensor, which diffusers names after the token;
    those for SDXL's two text encoders, such as `clip_l` and `clip_g`, are joined along D in this order. Raises
    LoadError for anything else.
    """
    path = Path(path)
    with opened(path, REMEDY) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        count, sides = _sides(path, found)
        tensors = [file.get_tensor(name).float().reshape(count, found[name][-1]) for name in sides]
    vectors = torch.cat(tensors, dim=1)
    if not bool(torch.isfinite(vectors).all()):
        raise LoadError(path, "vectors of numbers", "NaN or infinity in them")
    return vectors


def described(path: Path | str) -> str:
    """Say in a few words what a file is, such as "embedding for SDXL, 2 vectors"; raises LoadError as `read` does."""
    path = Path(path)
    found = shapes(path, REMEDY)
    count, sides = _sides(path, found)
    width = sum(found[name][-1] for name in sides)
    return f"embedding {made_for(width)}, {count} vector{'s' if count != 1 else ''}"


def stored(path: Path) -> list[Span]:
    """Find the tensors that `read` takes; raises LoadError as it does."""
    found = spans(path, REMEDY)
    _, sides = _sides(path, {name: span.shape for name, span in found.items()})
    return [found[name] for name in sides]


def made_for(width: int) -> str:
    """Say what vectors of a width are made for, such as "for SD 1.x"; the width itself where no model has it."""
    return f"for {EMBEDDING_BY_WIDTH[width]}" if width in EMBEDDING_BY_WIDTH else f"of width {width}"


def misfit(name: str, vectors: Tensor, width: int | None) -> str | None:
    """Say what is wrong where vectors are not (N, width); the width is that of all text encoders together, if known."""
    shape = tuple(vectors.shape)
    if len(shape) != 2 or 0 in shape:
        return f"embedding {name!r}: expected vectors of shape (N, D), found {shape}"
    if width in (None, shape[1]):
        return None
    return f"embedding {name!r}: expected one {_wide(width)}, found one {_wide(shape[1])}"


def _wide(width: int) -> str:
    return f"{made_for(width)} ({width} wide)" if width in EMBEDDING_BY_WIDTH else made_for(width)


def _sides(path: Path, found: Mapping[str, tuple[int, ...]]) -> tuple[int, Sequence[str]]:
    """How many vectors there are, and the names of the tensors that make them, side by side."""
    layouts = [*LAYOUTS, *([tuple(found)] if len(found) == 1 else [])]
    sides = next((names for names in layouts if found.keys() >= set(names)), None)
    if sides is None:
        expected = "one tensor of vectors, such as emb_params, or clip_l and clip_g for SDXL"
        raise LoadError(path, expected, some(list(found)) or "nothing")
    rows = {found[name][0] if len(found[name]) == 2 else 1 for name in sides}
    if len(rows) > 1 or any(len(found[name]) not in {1, 2} or 0 in found[name] for name in sides):
        raise LoadError(path, "vectors of shape (N, D)", " and ".join(str(found[name]) for name in sides))
    return rows.pop(), sides
