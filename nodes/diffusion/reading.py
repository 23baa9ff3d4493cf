"""Weights out of files: fast, straight to where they are used, and in memory of their own.

What is used as it lies in the file stays where the file is mapped, and becomes the process's own behind what computes
with it (see `mapping`). All else is read once, by several threads, and put where it belongs as it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from nodes.diffusion import mapping
from nodes.diffusion.shares import shared
from nodes.diffusion.tensors import SHORTER, LoadError, Shape, Span

ALIGNED = 64
"""Where torch puts tensors, in bytes: kernels round differently for one that lies elsewhere."""
CHUNK = 2**22
"""Bytes that are read at once: with one of these a thread, all that is held beside the weights."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight of a module in a file: a tensor, some of its rows from `first`, or a matrix on its side.

    `interleaved` asks for the channels of a convolution to lie side by side in memory.
    """

    span: Span
    shape: Shape
    first: int = 0
    turned: bool = False
    interleaved: bool = False

    def empty(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Room for it. Channels lie side by side where the device computes faster with them so in this dtype."""
        return torch.empty(self.shape, dtype=dtype, device=device, memory_format=self._layout(dtype, device))

    def lies_as(self, dtype: torch.dtype, device: torch.device | str) -> bool:
        """Whether it is wanted as it lies in the file."""
        here = torch.device(device).type == "cpu" and self.span.format == dtype
        aligned = self.start % ALIGNED == 0
        return here and aligned and not self.turned and self._layout(dtype, device) == torch.contiguous_format

    def _layout(self, dtype: torch.dtype, device: torch.device | str) -> torch.memory_format:
        faster = self.interleaved and (torch.device(device).type != "cpu" or dtype == torch.float32)
        return torch.channels_last if faster and self._row <= CHUNK else torch.contiguous_format

    @property
    def _row(self) -> int:
        """Bytes of a row in the file."""
        return prod(self.shape[1:]) * self.span.format.itemsize

    @property
    def start(self) -> int:
        """The place of its first byte in the file."""
        return self.span.start + self.first * prod(self.span.shape[1:]) * self.span.format.itemsize


@dataclass(frozen=True, slots=True)
class _Chunk:
    """So many numbers of a file, and the place that they go to."""

    piece: Piece
    begin: int
    target: Tensor


class _Reader:
    """What one thread holds while it reads: files that it opened, and a buffer where values must be converted."""

    def __init__(self, open_files: ExitStack) -> None:
        self._open_files = open_files
        self._streams: dict[Path, FileIO] = {}

    @cached_property
    def _buffer(self) -> Tensor:
        return torch.empty(CHUNK, dtype=torch.uint8)

    def read(self, chunk: _Chunk) -> None:
        piece, target = chunk.piece, chunk.target
        dtype = piece.span.format
        start = piece.start + chunk.begin * dtype.itemsize
        if target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous():
            self._fill(target, piece.span.path, start)
            return
        found = self._buffer[: target.numel() * dtype.itemsize].view(dtype)
        self._fill(found, piece.span.path, start)
        target.copy_(found.view(target.shape).to(target.device))

    def _fill(self, target: Tensor, path: Path, start: int) -> None:
        """Fill a tensor with bytes of a file."""
        stream = self._streams.get(path)
        if stream is None:
            stream = self._streams[path] = self._open_files.enter_context(path.open("rb", buffering=0))
        stream.seek(start)
        wanted = target.view(torch.uint8).numpy().data
        while wanted:
            size = stream.readinto(wanted)
            if not size:
                raise LoadError(path, f"{len(wanted)} bytes more", SHORTER)
            wanted = wanted[size:]


def read(pieces: Mapping[str, Piece], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Read weights as `dtype` to `device`. Raises LoadError where a file ends too early.

    Mapped ones are copied afterwards; who waits for that, `mapping.later` says.
    """
    as_they_lie = {name: piece for name, piece in pieces.items() if piece.lies_as(dtype, device)}
    mapped = _mapped(as_they_lie) if mapping.possible() else {}
    left = {name: piece for name, piece in pieces.items() if name not in mapped}
    made = {name: piece.empty(dtype, device) for name, piece in left.items()}

    def work(chunks: Iterator[_Chunk]) -> None:
        with ExitStack() as open_files:
            reader = _Reader(open_files)
            for chunk in chunks:
                reader.read(chunk)

    for done in shared((chunk for name, piece in left.items() for chunk in _chunks(piece, made[name])), work):
        done.result()
    turned = {name: made[name].reshape(piece.shape[::-1]).t() for name, piece in left.items() if piece.turned}
    return mapped | made | {name: weight.contiguous() for name, weight in turned.items()}


def _mapped(pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """Weights where their files are mapped, which are copied from now on."""
    files = {path: mapping.Mapping(path) for path in {piece.span.path for piece in pieces.values()}}
    made = {
        name: files[piece.span.path].tensor(piece.start, piece.shape, piece.span.format)
        for name, piece in pieces.items()
    }
    for file in files.values():
        mapping.later(file.copied)
    return made


def _chunks(piece: Piece, target: Tensor) -> Iterator[_Chunk]:
    numbers = CHUNK // piece.span.format.itemsize
    if target.is_contiguous():
        parts = torch.split(target.view(-1), numbers)
    else:
        row = prod(piece.shape[1:])
        parts = torch.split(target, numbers // row)
        numbers = numbers // row * row
    for place, part in enumerate(parts):
        if part.numel():
            yield _Chunk(piece, place * numbers, part)
