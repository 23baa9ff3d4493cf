"""The models that graphs can name: the embedded one, and what lies in the folders of each kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calotype.front import MODELS
from engine.file import File, Files, ModelFile
from nodes.diffusion import checkpoint
from nodes.diffusion.tensors import LoadError
from nodes.files import CheckpointFile, EmbeddingFile, LoraFile, VaeFile

KINDS: tuple[type[File], ...] = (CheckpointFile, LoraFile, EmbeddingFile, VaeFile)


class Model(NamedTuple):
    """One that can be named: its size in bytes, and the sha256 that it is known by, in hex."""

    name: str
    kind: str
    size: int
    digest: str
    path: Path


def models(files: Files) -> Iterator[Model]:
    """Everything that can be named, kind by kind."""
    for name in MODELS:
        yield _model(files.resolve(ModelFile, name))
    for kind in KINDS:
        for name in sorted(files.names(kind)):
            yield _model(files.find_mentioned(kind, name))


def _kind(file: File) -> str:
    """The kind, and of a checkpoint in one file what its tensors say that it is."""
    if not isinstance(file, CheckpointFile) or not file.path.is_file():
        return file.kind
    try:
        return f"{file.kind}, {checkpoint.described(file.path)}"
    except LoadError:
        return f"{file.kind}, not usable"


def _model(file: File) -> Model:
    held = file.path.rglob("*") if file.path.is_dir() else [file.path]
    size = sum(path.stat().st_size for path in held if path.is_file())
    return Model(file.name, _kind(file), size, file.digest.hex(), file.path)
