"""Weights out of files: fast, straight to where they are used, and into memory of their own.

Tensors that stayed where a file is mapped would cost nothing until they are used. But they would change with a file
that is written anew in its place, and end the process where it gets shorter; and whatever is made of them would be
remembered as made of what the file was before. So the bytes are copied, by several threads and into large pages, past
anything between.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nodes.diffusion.tensors import LoadError, Shape, Span

THREADS = min(4, os.cpu_count() or 1)
CHUNK = 2**24
"""Bytes that are read at once: with `THREADS` of these, all that is held beside the weights."""
ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight of a module in a file: a tensor, some of its rows from `first`, or a matrix on its side."""

    span: Span
    shape: Shape
    first: int = 0
    turned: bool = False

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

    def read(self) -> None:
        dtype = self.piece.span.format
        straight = self.target.device.type == "cpu" and self.target.dtype == dtype
        buffer = self.target if straight else torch.empty(self.target.shape, dtype=dtype)
        _read(self.piece.span, self.piece.start + self.begin * dtype.itemsize, buffer)
        if not straight:
            self.target.copy_(buffer.to(self.target.device))


def read(pieces: Mapping[str, Piece], dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
    """Read weights as `dtype` to `device`. Raises LoadError where a file ends too early."""
    device = torch.device(device)
    made = dict(zip(pieces, _places([piece.shape for piece in pieces.values()], dtype, device), strict=True))
    chunks = (chunk for name, piece in pieces.items() for chunk in _chunks(piece, made[name]))
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(_Chunk.read, chunks):
            pass
    turned = {name: made[name].reshape(piece.shape[::-1]).t() for name, piece in pieces.items() if piece.turned}
    return made | {name: weight.contiguous() for name, weight in turned.items()}


def _chunks(piece: Piece, target: Tensor) -> Iterator[_Chunk]:
    numbers = CHUNK // piece.span.format.itemsize
    for place, part in enumerate(torch.split(target.view(-1), numbers)):
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


def _places(shapes: list[Shape], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Make tensors without values, on a CPU side by side in one stretch of memory."""
    if device.type != "cpu":
        return [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    sizes = [-(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape in shapes]
    stretches = torch.split(_memory(sum(sizes)), sizes)
    return [
        stretch[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for stretch, shape in zip(stretches, shapes, strict=True)
    ]


def _memory(size: int) -> Tensor:
    """Make room, where the system has such in large pages, which are had many times faster than small ones."""
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    with suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
