"""Python's garbage collector, kept from looking through what is here to stay: with torch, that takes 0.2 seconds.

What survives a full collection that took long is frozen: later ones pass over it. What of it becomes garbage after all
is found when the service has nothing else to do.
"""

import gc
import time
from collections.abc import Mapping

LONG = 0.02
"""Seconds of a full collection after which what is left is frozen."""
FULL = 2
"""The generation of a full collection."""


class Collector:
    """Watches collections from `open` to `close`."""

    def __init__(self) -> None:
        self._began = 0.0

    def open(self) -> None:
        """Freeze what is there, and watch."""
        self.collect()
        gc.callbacks.append(self._watch)

    def collect(self) -> None:
        """Look through everything, and freeze what is left."""
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def close(self) -> None:
        """Leave Python's collector as it was."""
        gc.callbacks.remove(self._watch)
        gc.unfreeze()

    def _watch(self, phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] != FULL:
            return
        if phase == "start":
            self._began = time.perf_counter()
        elif time.perf_counter() - self._began > LONG:
            gc.freeze()
