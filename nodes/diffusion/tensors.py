"""Files of tensors: safetensors, and nothing that could run code when it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
"""Names of files that are pickles by custom."""
_PICKLED = (b"PK\x03\x04", b"\x80\x02")
"""What pickles of torch begin with, whatever they are called."""


class LoadError(ValueError):
    """A model cannot be loaded: names the file, what was expected of it and what was found."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path = path


@contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """Open a safetensors file; what is in it is read when it is asked for.

    Raises LoadError for a damaged file, and for a pickle with `remedy`, the call that converts {path!r} to
    {converted!r}.
    """
    with refusing(path, "a safetensors file"):
        if any(path.match(pattern) for pattern in PICKLES) or _begins(path, _PICKLED):
            call = remedy.format(path=path.name, converted=f"{path.stem}.safetensors")
            found = f"a pickle, which can run code when it is opened; where you trust it, convert it once: {call}"
            raise LoadError(path, "a safetensors file", found)
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise LoadError(path, "a safetensors file", f"a damaged one ({error})") from error


def weights(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and its metadata; raises LoadError as `opened` does."""
    with opened(path, remedy) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def shapes(path: Path, remedy: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all tensors, and nothing of what is in them; raises LoadError as `opened` does."""
    with opened(path, remedy) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def some(names: list[str]) -> str:
    """Name the first three, and say how many more there are."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def refusing(path: Path, expected: str) -> Iterator[None]:
    """Name the file in whatever a library has to say against it."""
    try:
        yield
    except LoadError:
        raise
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise LoadError(path, expected, str(error)) from error


def _begins(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    with path.open("rb") as stream:
        return stream.read(8).startswith(beginnings)
