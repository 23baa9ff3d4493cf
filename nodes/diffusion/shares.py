"""Work that several threads share: each takes the next piece when it is done with its last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

THREADS = min(4, os.cpu_count() or 1)


def shared(pieces: Iterable[T], work: Callable[[Iterator[T]], None]) -> list[Future[None]]:
    """Have `THREADS` threads work on pieces, each on an iterator of its own; what they raise is in what is returned."""
    handed = _Handed(iter(pieces))
    threads = ThreadPoolExecutor(THREADS)
    try:
        return [threads.submit(work, iter(handed)) for _ in range(THREADS)]
    finally:
        threads.shutdown(wait=False)


class _Handed(Generic[T]):
    """Pieces, handed out one by one to whichever thread asks."""

    def __init__(self, pieces: Iterator[T]) -> None:
        self._pieces = pieces
        self._lock = Lock()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._lock:
                try:
                    piece = next(self._pieces)
                except StopIteration:
                    return
            yield piece
