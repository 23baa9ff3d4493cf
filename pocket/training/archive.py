"""The training data in one file: a tar of concepts as JSON and one picture each, as published."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pocket.training import npm
from pocket.training.concept import Concept, concepts, dumps, loads

INDEX = "concepts.json"


def build(folder: Path, to: Path, choose: Callable[[Sequence[Concept]], list[Concept]] = list) -> list[Concept]:
    """Fetch the packages into `folder`, match pictures with words and write the archive `to` of what is chosen."""
    words, pictures = npm.fetch(npm.WORDS, folder), npm.fetch(npm.PICTURES, folder)
    [(_, listed)] = npm.members(words, "en/data.json")
    pictured = {PurePath(name).stem: data for name, data in npm.members(pictures, ".webp")}
    found = choose(concepts(json.loads(listed), pictured))
    write(to, found, {concept.code: pictured[concept.code] for concept in found})
    return found


def write(path: Path, found: Sequence[Concept], pictures: Mapping[str, bytes]) -> None:
    """Write concepts and their pictures, by code; equal data makes equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as opened:
        _add(opened, INDEX, dumps(found).encode())
        for concept in found:
            _add(opened, _name(concept), pictures[concept.code])


def read(path: Path, side: int) -> tuple[list[Concept], Tensor]:
    """Read concepts and their sprites, in the same order.

    Sprites are uint8 (N, 4, side, side), red, green, blue and alpha, the colours premultiplied by alpha.
    """
    with tarfile.open(path) as opened:
        found = loads(_bytes(opened, INDEX).decode())
        pictures = [_bytes(opened, _name(concept)) for concept in found]
    with ThreadPoolExecutor() as pool:
        sprites = list(pool.map(lambda data: _sprite(data, side), pictures))
    return found, torch.stack(sprites)


def _sprite(data: bytes, side: int) -> Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        premultiplied = opened.convert("RGBA").convert("RGBa")
    small = premultiplied.resize((side, side), Image.Resampling.HAMMING)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def _name(concept: Concept) -> str:
    return f"pictures/{concept.code}.webp"


def _add(opened: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    opened.addfile(entry, io.BytesIO(data))


def _bytes(opened: tarfile.TarFile, name: str) -> bytes:
    file = opened.extractfile(name)
    if file is None:
        raise ValueError(f"{name}: expected a file in the archive, found a folder")
    return file.read()
