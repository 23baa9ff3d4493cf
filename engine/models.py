"""Models: a frozen reference travels on the wires; the module behind it is loaded when a node asks, and shared."""

import threading
import time
from abc import abstractmethod
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from engine.budget import Ledger
from engine.digest import Digest
from engine.eviction import Gdsf
from engine.file import Files
from engine.socket import Socket

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class ModelRef(Socket, Generic[M_co]):
    """A frozen description of a module: digests of the files it comes from, precision, patches. A value by content.

    Subclasses are frozen, hashable dataclasses; whatever changes the module must be one of their fields.
    """

    @abstractmethod
    def load(self, files: Files, place: str) -> M_co:
        """Make the module on `place`. Raises FileChanged when the files are not what the reference says."""

    @abstractmethod
    def module_bytes(self, module: object) -> int:
        """Bytes that a loaded module takes, without those that it shares with its base's."""

    @property
    def base(self) -> "ModelRef[M_co] | None":
        """The reference whose module this one's is made of, sharing its tensors; None where it is loaded from files."""
        return None

    def patched(self, module: Any, files: Files, place: str) -> M_co:
        """Make the module of the `base`'s, which must stay as it is; it is kept as long as this one."""
        raise NotImplementedError(f"{type(self).__name__} has no base")


@dataclass(slots=True)
class _Resident:
    module: object
    size: int
    base: ModelRef[object] | None
    keeps: int
    """Bytes that stay in memory as long as it does: its own, and its base's."""


class ModelPool:
    """Modules in memory, under the same ledger as cached values; what nobody holds may be given up."""

    name = "models"

    def __init__(
        self, files: Files | None = None, ledger: Ledger | None = None, lock: AbstractContextManager[Any] | None = None
    ) -> None:
        """`lock` guards the ledger; it is free while a module is loaded. One thread at a time loads."""
        self._lock = lock or threading.RLock()
        self._files = files or Files()
        self._ledger = ledger or Ledger("cpu", 1 << 62)
        self._policy: Gdsf[Digest] = Gdsf(lambda: self._ledger.capacity, self._ledger.ageing)
        self._resident: dict[Digest, _Resident] = {}
        self._holds: Counter[Digest] = Counter()
        self._keys: dict[ModelRef[Any], Digest] = {}
        self._bytes = 0
        self._ledger.join(self)

    def acquire(self, ref: ModelRef[M], place: str) -> M:
        """The module behind `ref`, loaded if need be; `release` it when done."""
        key = self._keys[ref] = self._keys.get(ref) or ref.identity()
        with self._lock:
            resident = self._resident.get(key)
            if resident is not None:
                self._policy.use(key)
                self._holds[key] += 1
                return cast("M", resident.module)
        return cast("M", self._load(key, cast("ModelRef[object]", ref), place))

    def release(self, ref: ModelRef[object]) -> None:
        """Nobody needs the module for this call any more; it stays until its bytes are wanted."""
        self._holds[self._keys[ref]] -= 1

    def held(self) -> int:
        """Bytes of all modules."""
        return self._bytes

    def cheapest(self) -> float | None:
        """Priority of the module to give up first."""
        key = self._victim()
        return None if key is None else self._policy.priority(key)

    def give_up(self) -> int:
        """Drop the cheapest module that nobody holds."""
        key = self._victim()
        if key is None:
            return 0
        self._policy.evict(key)
        resident = self._resident.pop(key)
        self._bytes -= resident.size
        if resident.base is not None:
            self.release(resident.base)
        return resident.size

    def _victim(self) -> Digest | None:
        return self._policy.victim(spared=lambda key: self._holds[key] > 0)

    def _load(self, key: Digest, ref: ModelRef[object], place: str) -> object:
        base, below = ref.base, None
        if base is not None:
            below = self.acquire(base, place)
        try:
            began = time.perf_counter()
            with self._files.reading():
                module = ref.load(self._files, place) if base is None else ref.patched(below, self._files, place)
        except BaseException:
            if base is not None:
                self.release(base)
            raise
        size = ref.module_bytes(module)
        with self._lock:
            keeps = size if base is None else size + self._resident[self._keys[base]].keeps
            self._resident[key] = _Resident(module, size, base, keeps)
            self._bytes += size
            self._policy.admit(key, keeps, time.perf_counter() - began)
            self._holds[key] += 1
            self._ledger.make_room()
        return module
