"""Weights out of files: fast, straight to where they are used, and into memory of their own.

Tensors that stayed where a file is mapped would cost nothing until they are used. But they would change with a file
that is written anew in its place, and end the process where it gets shorter; and whatever is made of them would be
remembered as made of what the file was before. So the bytes are copied, once and by several threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from queue import SimpleQueue

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

    def read(self, buffers: SimpleQueue[Tensor]) -> None:
        dtype = self.piece.span.format
        start = self.piece.start + self.begin * dtype.itemsize
        if self.target.device.type == "cpu" and self.target.dtype == dtype and self.target.is_contiguous():
            _read(self.piece.span, start, self.target)
            return
        buffer = buffers.get()
        try:
            found = buffer[: self.target.numel() * dtype.itemsize].view(dtype)
            _read(self.piece.span, start, found)
            self.target.copy_(found.view(self.target.shape).to(self.target.device))
        finally:
            buffers.put(buffer)


def read(pieces: Mapping[str, Piece], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Read weights as `dtype` to `device`. Raises LoadError where a file ends too early."""
    made = {name: piece.empty(dtype, device) for name, piece in pieces.items()}
    chunks = (chunk for name, piece in pieces.items() for chunk in _chunks(piece, made[name]))
    buffers: SimpleQueue[Tensor] = SimpleQueue()
    for _ in range(THREADS):
        buffers.put(torch.empty(CHUNK, dtype=torch.uint8))
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda chunk: chunk.read(buffers), chunks):
            pass
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


def _read(span: Span, start: int, target: Tensor) -> None:
    """Fill a tensor with bytes of a file."""
    wanted = target.view(torch.uint8).numpy().data
    with span.path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while wanted:
            size = stream.readinto(wanted)
            if not size:
                raise LoadError(span.path, f"{len(wanted)} bytes more", "the end of the file, which got shorter")
            wanted = wanted[size:]
