"""Tensors in safetensors files of at most 16 MiB each, so that they travel."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PIECE = (16 << 20) - (64 << 10)
"""Bytes of tensors in one file; the rest is left to its header."""


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> list[Path]:
    """Write `tensors` and a few JSON values as `name`-1.safetensors and so on, in place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = list(_packed(tensors))
    paths = [folder / f"{name}-{number}.safetensors" for number in range(1, len(packed) + 1)]
    for old in set(_pieces(folder, name)) - set(paths):
        old.unlink()
    for path, piece in zip(paths, packed, strict=True):
        unfinished = path.with_suffix(".part")
        save_file(piece, unfinished, {"about": json.dumps(dict(about or {})), "pieces": str(len(paths))})
        unfinished.replace(path)
    return paths


def load(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all pieces of `name` back: the tensors and the JSON values."""
    paths = _pieces(folder, name)
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {"pieces": "1"}
    for path in paths:
        with safe_open(path, framework="pt") as opened:
            about = opened.metadata()
            tensors.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118  # it is no dict
    if len(paths) != int(about["pieces"]):
        raise FileNotFoundError(f"{folder / name}: expected {about['pieces']} pieces, found {len(paths)}")
    return tensors, json.loads(about["about"])


def exists(folder: Path, name: str) -> bool:
    """Whether `name` was saved in `folder`."""
    return bool(_pieces(folder, name))


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors in half precision."""
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def _pieces(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-[0-9]*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2]))


def _packed(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    piece: dict[str, Tensor] = {}
    room = PIECE
    for name, tensor in tensors.items():
        if tensor.nbytes > PIECE:
            raise ValueError(f"{name}: expected at most {PIECE} bytes a tensor, got {tensor.nbytes}")
        if tensor.nbytes > room:
            yield piece
            piece, room = {}, PIECE
        piece[name] = tensor.detach().cpu().contiguous()
        room -= tensor.nbytes
    yield piece
