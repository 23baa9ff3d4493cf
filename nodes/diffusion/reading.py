"""Weights out of files: fast, straight to where they are used, and in memory of their own.

All is read once, by several threads, and put where it belongs as it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from math import prod
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.shares import shared
from nodes.diffusion.tensors import SHORTER, LoadError, Shape, Span, refusing

Arrived: TypeAlias = Callable[[str, int, BaseException | None], None]
"""Hears of numbers of a weight that are where they belong, or of none and what went wrong."""
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
        """Whether its values are wanted as they lie in the file, in this order or another."""
        here = torch.device(device).type == "cpu" and self.span.format == dtype
        return here and not self.turned and self.start % dtype.itemsize == 0 and 0 not in self.shape

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

    name: str
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
    """Read weights as `dtype` to `device`. Raises LoadError where a file ends too early."""
    made = {name: piece.empty(dtype, device) for name, piece in pieces.items()}
    for done in begin(pieces, made):
        done.result()
    turned = {name: made[name].reshape(piece.shape[::-1]).t() for name, piece in pieces.items() if piece.turned}
    return made | {name: weight.contiguous() for name, weight in turned.items()}


def begin(
    pieces: Mapping[str, Piece], made: Mapping[str, Tensor], arrived: Arrived = lambda *_: None
) -> list[Future[None]]:
    """Have threads fill tensors, in the order of the pieces; they raise LoadError where a file ends too early."""

    def work(chunks: Iterator[_Chunk]) -> None:
        with ExitStack() as open_files:
            reader = _Reader(open_files)
            for chunk in chunks:
                try:
                    with refusing(chunk.piece.span.path, "bytes that can be read"):
                        reader.read(chunk)
                except BaseException as error:
                    arrived(chunk.name, 0, error)
                    raise
                arrived(chunk.name, chunk.target.numel(), None)

    return shared((chunk for name, piece in pieces.items() for chunk in _chunks(name, piece, made[name])), work)


def _chunks(name: str, piece: Piece, target: Tensor) -> Iterator[_Chunk]:
    numbers = CHUNK // piece.span.format.itemsize
    if target.is_contiguous():
        parts = torch.split(target.view(-1), numbers)
    else:
        row = prod(piece.shape[1:])
        parts = torch.split(target, numbers // row)
        numbers = numbers // row * row
    for place, part in enumerate(parts):
        if part.numel():
            yield _Chunk(name, piece, place * numbers, part)
