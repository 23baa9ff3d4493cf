"""Interim values: what a node keeps on its way, so that another call of it need not begin at the beginning.

They are no results. No trace names them and no disk holds them, nothing fails where one is gone, and all of them take
an eighth of the device's budget at most (see `engine.store`). A node finds only what a node of its own type and version
kept in this engine, whose settings are what may change the last bits.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from engine.digest import Digest, digest
from engine.node import NodeDef
from engine.socket import Socket
from engine.store import Store


@dataclass(frozen=True, eq=False)
class Interim:
    """What nodes of one type keep on their way. Safe to use while a node works and others are at the engine's books."""

    store: Store
    lock: AbstractContextManager[object]
    head: Digest

    @classmethod
    def of(cls, definition: NodeDef, numerics: Digest, store: Store, lock: AbstractContextManager[object]) -> "Interim":
        """Those of one definition, under the settings of one engine."""
        return cls(store, lock, digest("interim", numerics, definition.pack, definition.type, definition.version))

    def recall(self, key: Digest) -> tuple[Socket, float] | None:
        """What was kept under a key, and the seconds that it took to make; None where it is there no more."""
        with self.lock:
            return self.store.recall(digest(self.head, key))

    def keep(self, key: Digest, value: Socket, seconds: float) -> None:
        """Keep a value that took `seconds` to make, in the place of what was kept under the key before."""
        with self.lock:
            self.store.keep(digest(self.head, key), value, seconds)
