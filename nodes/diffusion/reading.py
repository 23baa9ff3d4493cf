"""Weights out of files: fast, straight to where they are used, and into memory of their own.

Tensors that stayed where a file is mapped would cost nothing until they are used. But they would change with a file
that is written anew in its place, and end the process where it gets shorter; and whatever is made of them would be
remembered as made of what the file was before. So the bytes are copied, once and by several threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from nodes.diffusion.tensors import LoadError, Shape, Span

THREADS = min(4, os.cpu_count() or 1)
CHUNK = 2**22
"""Bytes that are read at once: with `THREADS` of these, all that is held beside the weights."""


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
        faster = self.interleaved and (torch.device(device).type != "cpu" or dtype == torch.float32)
        layout = torch.channels_last if faster and self._row <= CHUNK else torch.contiguous_format
        return torch.empty(self.shape, dtype=dtype, device=device, memory_format=layout)

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


class _Chunks:
    """What is to be read, handed out one by one to whichever thread asks."""

    def __init__(self, chunks: Iterator[_Chunk]) -> None:
        self._chunks = chunks
        self._lock = Lock()

    def __iter__(self) -> Iterator[_Chunk]:
        while True:
            with self._lock:
                chunk = next(self._chunks, None)
            if chunk is None:
                return
            yield chunk


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
                raise LoadError(path, f"{len(wanted)} bytes more", "the end of the file, which got shorter")
            wanted = wanted[size:]


def read(pieces: Mapping[str, Piece], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Read weights as `dtype` to `device`. Raises LoadError where a file ends too early."""
    made = {name: piece.empty(dtype, device) for name, piece in pieces.items()}
    chunks = _Chunks(chunk for name, piece in pieces.items() for chunk in _chunks(piece, made[name]))

    def work() -> None:
        with ExitStack() as open_files:
            reader = _Reader(open_files)
            for chunk in chunks:
                reader.read(chunk)

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(work) for _ in range(THREADS)]:
            done.result()
    turned = {name: made[name].reshape(piece.shape[::-1]).t() for name, piece in pieces.items() if piece.turned}
    return made | {name: weight.contiguous() for name, weight in turned.items()}


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
