"""Files of tensors: safetensors, and nothing that could run code when it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
"""Names of files that are pickles by custom."""
_PICKLED = (b"PK\x03\x04", b"\x80\x02")
"""What pickles of torch begin with, whatever they are called."""
_GGUF = b"GGUF"
SHORTER = "the end of the file, which got shorter"
"""What is found where a file ends before it should."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names of number formats in a file, of those that can be weights here."""


class LoadError(ValueError):
    """A model cannot be loaded: names the file, what was expected of it and what was found."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Span:
    """A tensor that lies in a file: `dtype` is the file's own word, `start` the place of its first byte."""

    path: Path
    dtype: str
    shape: Shape
    start: int

    @property
    def format(self) -> torch.dtype:
        """The number format. Raises LoadError for one that is not read here."""
        if self.dtype not in _DTYPES:
            raise LoadError(self.path, f"numbers in one of the formats {', '.join(_DTYPES)}", self.dtype)
        return _DTYPES[self.dtype]


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """Open a safetensors file; what is in it is read when it is asked for.

    Raises LoadError for a damaged file, and for a pickle with `remedy`, the call that converts {path!r} to
    {converted!r}.
    """
    with refusing(path, "a safetensors file"):
        _check_beginning(path, remedy)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise LoadError(path, "a safetensors file", f"a damaged one ({error})") from error


def weights(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and its metadata; raises LoadError as `opened` does.

    They are copies: those that the library gives lie where the file is mapped, and change with it.
    """
    with opened(path, remedy) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def spans(path: Path, remedy: str) -> dict[str, Span]:
    """Find all tensors, and read nothing of what is in them; raises LoadError as `opened` does."""
    with opened(path, remedy), path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    return {
        name: Span(path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def shapes(path: Path, remedy: str) -> dict[str, Shape]:
    """Read the shapes of all tensors, and nothing of what is in them; raises LoadError as `opened` does."""
    return {name: span.shape for name, span in spans(path, remedy).items()}


def some(names: list[str]) -> str:
    """Name the first three, and say how many more there are."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def by(shape: Shape) -> str:
    """Write a shape as people do."""
    return " x ".join(map(str, shape)) or "a number"


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Name the file in whatever a library has to say against it."""
    try:
        yield
    except LoadError:
        raise
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise LoadError(path, expected, str(error)) from error


def _check_beginning(path: Path, remedy: str) -> None:
    """Refuse what is a file of another format, whatever it is called."""
    with path.open("rb") as stream:
        beginning = stream.read(8)
    if any(path.match(pattern) for pattern in PICKLES) or beginning.startswith(_PICKLED):
        call = remedy.format(path=path.name, converted=f"{path.stem}.safetensors")
        found = f"a pickle, which can run code when it is opened; where you trust it, convert it once: {call}"
        raise LoadError(path, "a safetensors file", found)
    if beginning.startswith(_GGUF):
        found = "a GGUF file of quantised weights; take the model's safetensors file in float16 instead"
        raise LoadError(path, "a safetensors file", found)
