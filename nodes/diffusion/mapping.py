"""Files that are mapped into memory: what they hold is there at once, and soon in memory of the process's own.

A mapping is a view of its file: it changes when the file is written anew in its place, and ends the process where the
file gets shorter, even in pages that were copied on writing. So threads read what is used once more, beside whatever
computes with it meanwhile, and put memory of their own in the place of the view, piece by piece: mremap(2) moves pages
at once, so that whoever reads finds the same bytes before and after. Until then the file has to stay as it is; `later`
has somebody wait for that and look.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nodes.diffusion.shares import shared
from nodes.diffusion.tensors import SHORTER, LoadError, Shape, refusing

CHUNK = 2**24
"""Bytes that are read at once, and moved as one: the system counts the pieces that memory is in."""
FIXED, NORESERVE = 0x10, 0x4000
"""Names of mmap(2) that Python does not know: at this very place, and without setting memory aside for it."""
MAYMOVE_FIXED = 3
"""Of mremap(2): to another place, which is free or given up for it."""
NOWHERE = ctypes.c_void_p(-1).value
"""What mmap(2) and mremap(2) return where they fail."""

Waiting: TypeAlias = Callable[[], None]
"""Waits until something is done."""
Beginning: TypeAlias = Callable[[], Waiting]
_POSTPONED: ContextVar[list[Beginning] | None] = ContextVar("postponed", default=None)


@contextmanager
def postponed() -> Iterator[list[Waiting]]:
    """Begin to copy at the end of a block, and leave the waiting to whoever opens it: it is what the list holds then.

    Nobody waits where the block raises; then nothing is copied.
    """
    begins: list[Beginning] = []
    waiting: list[Waiting] = []
    token = _POSTPONED.set(begins)
    try:
        yield waiting
    finally:
        _POSTPONED.reset(token)
    waiting += [begin() for begin in begins]


def later(begin: Beginning) -> None:
    """Have copies made that somebody waits for later, or, where nobody postpones it, make them now."""
    begins = _POSTPONED.get()
    if begins is None:
        begin()()
    else:
        begins.append(begin)


class Mapping:
    """The bytes of a file, as long as something holds this or a tensor of it."""

    def __init__(self, path: Path) -> None:
        """Map it. Raises OSError, and ValueError for an empty file."""
        self.path = path
        self._pages: list[tuple[int, int]] = []
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._bytes = mmap.mmap(-1, os.fstat(self._file).st_size, flags=mmap.MAP_PRIVATE | NORESERVE)
        self._address = torch.frombuffer(self._bytes, dtype=torch.uint8, count=1).data_ptr()
        _map(self._address, len(self._bytes), FIXED | NORESERVE, self._file)

    def tensor(self, start: int, shape: Shape, dtype: torch.dtype) -> Tensor:
        """A tensor whose first byte is at `start`. Raises LoadError where the file ends before its last."""
        count = prod(shape)
        end = start + count * dtype.itemsize
        if end > len(self._bytes):
            raise LoadError(self.path, f"{end - len(self._bytes)} bytes more", SHORTER)
        if not count:
            return torch.empty(shape, dtype=dtype)
        self._pages.append((start - start % mmap.PAGESIZE, end + -end % mmap.PAGESIZE))
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=start).view(shape)

    def copied(self) -> Waiting:
        """Begin to copy what tensors use; returns what waits until that is done, and raises LoadError if it cannot."""

        def copy(chunks: Iterator[tuple[int, int]]) -> None:
            for start, end in chunks:
                with refusing(self.path, "bytes that can be read"):
                    self._copy(start, end - start)

        copies = shared(_chunks(_joined(self._pages)), copy)

        def wait() -> None:
            for done in copies:
                done.result()

        return wait

    def _copy(self, start: int, size: int) -> None:
        """Put memory with the same bytes in the place of so many pages."""
        fresh = _map(0, size, mmap.MAP_ANONYMOUS)
        try:
            self._fill(fresh, start, min(size, len(self._bytes) - start))
            _move(fresh, size, self._address + start)
        except BaseException:
            _library().munmap(ctypes.c_void_p(fresh), ctypes.c_size_t(size))
            raise

    def _fill(self, address: int, start: int, size: int) -> None:
        wanted = memoryview((ctypes.c_ubyte * size).from_address(address))
        while wanted:
            read = os.preadv(self._file, [wanted], start + size - len(wanted))
            if not read:
                raise LoadError(self.path, f"{len(wanted)} bytes more", SHORTER)
            wanted = wanted[read:]


@cache
def possible() -> bool:
    """Whether the system can put memory in the place of a view."""
    if sys.platform != "linux":
        return False
    size = mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as page:
        view = torch.frombuffer(page, dtype=torch.uint8)
        try:
            _move(_map(0, size, mmap.MAP_ANONYMOUS), size, view.data_ptr())
        except OSError:
            return False
        finally:
            del view
    return True


def _map(address: int, size: int, flags: int, file: int = -1) -> int:
    """Map private pages that may be read and written; returns where they are."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    return _placed(
        _library().mmap(
            ctypes.c_void_p(address),
            ctypes.c_size_t(size),
            protection,
            mmap.MAP_PRIVATE | flags,
            file,
            ctypes.c_int64(0),
        )
    )


def _move(address: int, size: int, target: int) -> None:
    """Move pages to another place, at once."""
    sizes = ctypes.c_size_t(size), ctypes.c_size_t(size)
    _placed(_library().mremap(ctypes.c_void_p(address), *sizes, MAYMOVE_FIXED, ctypes.c_void_p(target)))


def _placed(address: int) -> int:
    if address == NOWHERE:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address


@cache
def _library() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = library.mremap.restype = ctypes.c_void_p
    return library


def _joined(pages: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stretches of pages, in order and apart from each other."""
    first = last = -1
    for start, end in sorted(pages):
        if start > last:
            if last > first:
                yield first, last
            first = start
        last = max(last, end)
    if last > first:
        yield first, last


def _chunks(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for first, last in stretches:
        for start in range(first, last, CHUNK):
            yield start, min(start + CHUNK, last)
