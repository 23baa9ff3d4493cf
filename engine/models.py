"""Models: a frozen reference travels on the wires; the module behind it is loaded when a node asks, and shared.

A module whose bytes are wanted on an accelerator moves to the host, under the host's budget, and comes back by a copy.
One that is made of another, its base, shares tensors with it: it goes before its base, and comes back after it.
"""

import contextlib
import os
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from engine.budget import Ledger, size_text
from engine.digest import Digest
from engine.errors import CalotypeError, FileChanged
from engine.eviction import Entry
from engine.file import Files
from engine.garbage import uncollected
from engine.host import Host, Parked
from engine.shelf import Shelf
from engine.socket import Socket

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)

COPY = 8e9
"""Bytes per second that a model moves between host and device at, about; what it costs to fetch one from the host."""


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

    def paths(self, files: Files) -> Sequence[Path]:
        """The files that it will be loaded from, to be read ahead; none where that is not worth it."""
        return ()

    def expected_bytes(self, files: Files, place: str) -> int:
        """Bytes that it will take there, as far as its files tell: room is made first. 0 where that is not known."""
        return 0

    @property
    def base(self) -> "ModelRef[M_co] | None":
        """The reference whose module this one's is made of, sharing its tensors; None where it is loaded from files."""
        return None

    def patched(self, module: Any, files: Files, place: str) -> M_co:
        """Make the module of the `base`'s, which must stay as it is; it is kept as long as this one."""
        raise NotImplementedError(f"{type(self).__name__} has no base")


@dataclass(slots=True, eq=False)
class _Model:
    """A module in memory: on the device, or `parked` on the host."""

    module: object
    size: int
    keeps: int
    """Bytes that stay in memory as long as it does: its own, and its base's."""
    seconds: float
    """What it took to load, or to make of its base."""
    base: Digest | None
    above: set[Digest] = field(default_factory=set)
    """Models that are made of this one."""
    parked: Parked | None = None
    unsettled: Callable[[], None] | None = None
    """Waits until its tensors are its own where they still lie in files. Raises FileChanged where those changed."""


class ModelPool:
    """Modules in memory, under the same ledgers as cached values; what nobody holds may be given up.

    `ledger` is the device's; with one for the `host`, what has to go from the device moves there, as long as it is
    worth its bytes there. `lock` guards the ledgers; it is free while a module is loaded. One thread at a time loads.
    """

    def __init__(
        self,
        files: Files | None = None,
        ledger: Ledger | None = None,
        lock: AbstractContextManager[Any] | None = None,
        *,
        device: Host | None = None,
        host: Ledger | None = None,
    ) -> None:
        self._lock = lock or threading.RLock()
        self._files = files or Files()
        self._device = device or Host()
        self._models: dict[Digest, _Model] = {}
        self._holds: Counter[Digest] = Counter()
        """How many calls, and models on the device that are made of it, need each on the device."""
        self._keys: dict[ModelRef[Any], Digest] = {}
        self._foreseen: set[ModelRef[Any]] = set()
        self._sizes: dict[Digest, int] = {}
        """What models took that were loaded once."""
        self.here = Shelf(ledger or Ledger("cpu", 1 << 62), self._unheld, self._leave)
        """Models on the device."""
        self.there = Shelf(host, self._forgettable, self._forget) if host else None
        """Models that moved to the host."""

    def acquire(self, ref: ModelRef[M], place: str) -> M:
        """The module behind `ref`, on the device, loaded if need be; `release` it when done."""
        with self._lock:
            key = self._keys[ref] = self._keys.get(ref) or ref.identity()
            if key in self._models:
                self._hold(key)
                return cast("M", self._models[key].module)
        return cast("M", self._load(key, cast("ModelRef[object]", ref), place))

    def release(self, ref: ModelRef[object]) -> None:
        """Nobody needs the module for this call any more; it stays until its bytes are wanted."""
        self._holds[self._keys[ref]] -= 1

    def settle(self, ref: ModelRef[Any], module: object) -> None:
        """Wait until a module that is held is what its files hold, whatever becomes of them from then on.

        What was made with it counts only after that. Raises FileChanged where they changed too early; then the module
        is given to nobody any more.
        """
        key = self._keys[ref]
        with self._lock:
            model = self._models.get(key)
            if model is None or model.module is not module:
                raise FileChanged("a model's files changed while it was loaded")
        if model.unsettled is not None:
            self._settle(key, model.unsettled)

    def fit(self, refs: Iterable[ModelRef[Any]], place: str) -> bool:
        """Whether models find room on the device beside those that are in use, as far as their size is known."""
        with self._lock:
            wanted = {ref.identity(): ref for each in refs for ref in _with_bases(each)}
            sizes = (self._expected(key, ref, place) for key, ref in wanted.items() if self._unheld(key))
            return self.here.in_use() + sum(sizes) <= self.here.ledger.capacity

    def foresee(self, refs: Iterable[ModelRef[Any]]) -> None:
        """Have the system read the files of models that will be asked for, while something else computes.

        It takes no memory but what the system has to spare, so nothing goes for it. Each is read ahead once.
        """
        coming = [ref for ref in refs if ref not in self._foreseen and ref.identity() not in self._models]
        self._foreseen.update(coming)
        paths = [path for ref in coming for path in _found(ref, self._files)]
        if paths:
            threading.Thread(target=read_ahead, args=(paths,), name="calotype-ahead", daemon=True).start()

    def held(self) -> int:
        """Bytes of all modules on the device."""
        return self.here.held()

    def overdraft(self) -> str | None:
        """By how much what is in use exceeds the device's budget, in words; None where it does not."""
        with self._lock:
            ledger = self.here.ledger
            if ledger.used() <= ledger.capacity or ledger.make_room():
                return None
            return (
                f"what is in use takes {size_text(ledger.used())} of {ledger.place}, more than its budget: "
                f"{ledger.account()}; it is tried all the same. Expected is a budget that holds it: allow more memory, "
                "a lower precision or a smaller model"
            )

    def _hold(self, key: Digest) -> None:
        """Keep a model on the device for one more, fetched from the host where it waits there."""
        self._holds[key] += 1
        try:
            self._rise(key, self._models[key])
        except BaseException:
            self._holds[key] -= 1
            raise
        self.here.use(key)

    def _rise(self, key: Digest, model: _Model) -> None:
        if model.parked is None:
            return
        assert self.there is not None
        if model.base is not None:
            self._hold(model.base)
        try:
            self.here.ledger.make_room(model.size)
            model.parked.back()
        except BaseException:
            if model.base is not None:
                self._holds[model.base] -= 1
            raise
        model.parked = None
        uses = self.there.take(key).uses
        self.here.put(key, model.size, keeps=model.keeps, seconds=self._price(model), uses=uses)

    def _load(self, key: Digest, ref: ModelRef[object], place: str) -> object:
        base, below = ref.base, None
        if base is not None:
            below = self.acquire(base, place)
        try:
            if base is not None:
                self.settle(base, below)
            with self._lock:
                self.here.ledger.make_room(self._sizes.get(key) or ref.expected_bytes(self._files, place))
            began = time.perf_counter()
            with uncollected(), self._files.reading() as reading:
                module = ref.load(self._files, place) if base is None else ref.patched(below, self._files, place)
        except BaseException:
            if base is not None:
                self.release(base)
            raise
        seconds, size = time.perf_counter() - began, ref.module_bytes(module)
        with self._lock:
            model = _Model(module, size, size, seconds, None if base is None else self._keys[base])
            model.unsettled = reading.finish if reading.left else None
            self._admit(key, model)
        return module

    def _settle(self, key: Digest, finish: Callable[[], None]) -> None:
        try:
            finish()
        except BaseException:
            with self._lock:
                self._spoil(key)
            raise
        self._models[key].unsettled = None

    def _spoil(self, key: Digest) -> None:
        """Forget a model that is not what its files held; nothing was made of it, since that waits first."""
        shelf = self.here if self._models[key].parked is None else self.there
        assert shelf is not None
        shelf.take(key)
        self._forget(key)

    def _expected(self, key: Digest, ref: ModelRef[Any], place: str) -> int:
        try:
            return self._sizes.get(key) or ref.expected_bytes(self._files, place)
        except (CalotypeError, OSError, ValueError):
            return 0  # whoever asks for it is told

    def _admit(self, key: Digest, model: _Model) -> None:
        """Count a module that was loaded, and hold it for whoever asked."""
        self._models[key] = model
        self._sizes[key] = model.size
        if model.base is not None:
            below = self._models[model.base]
            below.above.add(key)
            model.keeps += below.keeps
        self._holds[key] += 1
        self.here.put(key, model.size, keeps=model.keeps, seconds=self._price(model))
        self.here.ledger.make_room()

    def _price(self, model: _Model) -> float:
        """Seconds until a model is back on the device once it went: a copy's, where the host can take it."""
        fits = self.there is not None and model.size <= self.there.ledger.capacity
        return model.size / COPY if fits else model.seconds

    def _unheld(self, key: Digest) -> bool:
        return self._holds[key] <= 0

    def _forgettable(self, key: Digest) -> bool:
        """A model on the host may be dropped when nobody is about to fetch it, and none is made of it."""
        return self._unheld(key) and not self._models[key].above

    def _leave(self, key: Digest, entry: Entry) -> None:
        """A model has to go from the device: to the host, or altogether."""
        model = self._models[key]
        if not self._room_on_the_host(key, model, entry):
            return
        parked = self._park(model)
        if parked is None:
            assert self.there is not None
            self.there.take(key)
            self._forget(key, entry)
            return
        model.parked = parked
        if model.base is not None:
            self._holds[model.base] -= 1

    def _room_on_the_host(self, key: Digest, model: _Model, entry: Entry) -> bool:
        """Count a model on the host, where that has room for it and nothing that is worth more; else forget it."""
        if self.there is None or model.size > self.there.ledger.capacity:
            self._forget(key, entry)
            return False
        self.there.put(key, model.size, keeps=model.keeps, seconds=model.seconds, uses=entry.uses)
        if not self.there.ledger.make_room() and key in self.there:
            self.there.take(key)
            self._forget(key, entry)
        return key in self.there

    def _park(self, model: _Model) -> Parked | None:
        """Move a module's tensors to the host, in place; None where it cannot be moved as a whole.

        What it shares with its base stays with that. What others share with it goes with it: they are on the host.
        """
        sharing = [model.module, *(other.module for other in self._made_of(model))]
        below = [] if model.base is None else [self._models[model.base].module]
        try:
            parked = self._device.park(sharing, spare=below)
        except (MemoryError, RuntimeError):
            return None
        return parked if parked is not None and parked.nbytes >= model.size else None

    def _made_of(self, model: _Model) -> Iterator[_Model]:
        for key in model.above:
            yield self._models[key]
            yield from self._made_of(self._models[key])

    def _forget(self, key: Digest, _: Entry | None = None) -> None:
        """Let go of a model that is counted nowhere any more, and of those on the host that are made of it."""
        model = self._models.pop(key)
        for other in list(model.above):
            assert self.there is not None
            self.there.take(other)
            self._forget(other)
        if model.base is None:
            return
        if model.base in self._models:
            self._models[model.base].above.discard(key)
        if model.parked is None:
            self._holds[model.base] -= 1


def _with_bases(ref: ModelRef[Any] | None) -> Iterator[ModelRef[Any]]:
    while ref is not None:
        yield ref
        ref = ref.base


def _found(ref: ModelRef[Any], files: Files) -> Sequence[Path]:
    """Where a model's files are; nowhere if they are gone, which is said when the model is loaded."""
    try:
        return ref.paths(files)
    except (FileChanged, OSError):
        return ()


def read_ahead(paths: Iterable[Path]) -> None:
    """Have the system read files into memory that it has to spare."""
    for path in paths:
        with contextlib.suppress(OSError, AttributeError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
