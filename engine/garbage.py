"""Python's garbage collector, held back while what is made is here to stay: the libraries' code, and models.

torch, diffusers and transformers make half a million objects, which the collector would look through again and again.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Held:
    """How many hold the collector back, and whether it is to go on afterwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._enabled = False

    def hold(self) -> None:
        with self._lock:
            if not self._count:
                self._enabled = gc.isenabled()
                gc.disable()
            self._count += 1

    def release(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count and self._enabled:
                gc.enable()


_held = _Held()


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage meanwhile, on no thread; who had switched the collector off finds it off afterwards."""
    _held.hold()
    try:
        yield
    finally:
        _held.release()
