"""What to give up when memory is short: GreedyDual-Size-Frequency with a probation queue.

GDSF (Cherkasova 1998): an entry's priority is `inflation + uses * seconds / bytes`; the lowest goes first, and the
inflation rises to the priority of whatever was evicted, so that what is never used again ages out. New entries stand on
probation until their first reuse: while probation holds more than its share of the budget it pays for itself, so that a
sweep, whose values are used once, cannot flush what an evening keeps coming back to; except that what is worth far more
a byte does not go before what is cheap to make again (`python -m benchmarks eviction` compares).
"""

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PROBATION_SHARE = 0.25
"""Share of the budget beyond which evictions are taken from the probation queue, ageing left aside."""

TRUST = 4
"""How many times the merit of a proven value a new one needs to be spared even then."""

STALE = 64
"""Outdated items that a heap may hold, on top of as many as there are entries."""


@dataclass(slots=True)
class Entry:
    """What the policy knows of one value."""

    size: int
    seconds: float
    uses: int = 0
    priority: float = 0.0
    ticket: int = 0
    """Which item of the heaps speaks for this entry; the others are outdated."""

    @property
    def on_probation(self) -> bool:
        """Not used again since it was made."""
        return self.uses == 0

    @property
    def merit(self) -> float:
        """Seconds that a byte saves, for every use: what an entry is worth, its age left aside."""
        return (self.uses + 1) * self.seconds / self.size


class Ageing:
    """The inflation that several policies share, so that their priorities compare."""

    def __init__(self) -> None:
        self.inflation = 0.0


class Gdsf(Generic[K]):
    """Chooses victims. Holds no values; the caller says what came, what was used and what went."""

    def __init__(self, capacity: Callable[[], float], ageing: Ageing | None = None) -> None:
        self._capacity = capacity
        self._ageing = ageing or Ageing()
        self._entries: dict[K, Entry] = {}
        self._heaps: dict[bool, list[tuple[float, int, K]]] = {True: [], False: []}
        self._count = 0
        self._probation = 0

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        """Whether `key` is held."""
        return key in self._entries

    def admit(self, key: K, size: int, seconds: float, uses: int = 0) -> None:
        """A new value of `size` bytes that took `seconds` to make."""
        self.remove(key)
        entry = Entry(max(size, 1), max(seconds, 1e-6), uses)
        self._entries[key] = entry
        self._probation += entry.size if entry.on_probation else 0
        self._push(key, entry)

    def use(self, key: K) -> None:
        """A value was used again."""
        entry = self._entries[key]
        self._probation -= entry.size if entry.on_probation else 0
        entry.uses += 1
        self._push(key, entry)

    def remove(self, key: K) -> Entry | None:
        """A value went, for whatever reason."""
        entry = self._entries.pop(key, None)
        if entry is not None and entry.on_probation:
            self._probation -= entry.size
        return entry

    def victim(self, spared: Callable[[K], bool] = lambda _: False) -> K | None:
        """The value to give up first, leaving out those that are `spared`."""
        fresh, proven = (self._lowest(on_probation=side, spared=spared) for side in (True, False))
        if fresh is None or proven is None:
            return proven if fresh is None else fresh
        if self._probation > PROBATION_SHARE * self._capacity():
            spare_fresh = self._entries[fresh].merit > TRUST * self._entries[proven].merit
            return proven if spare_fresh else fresh
        return min(fresh, proven, key=self.priority)

    def priority(self, key: K) -> float:
        """How much a value is worth keeping; comparable between policies that share an Ageing."""
        return self._entries[key].priority

    def seconds(self, key: K) -> float:
        """What a value took to make."""
        return self._entries[key].seconds

    def evict(self, key: K) -> Entry:
        """Take a victim out, and let everything else age by what it was worth."""
        entry = self._entries[key]
        self._ageing.inflation = max(self._ageing.inflation, entry.priority)
        self.remove(key)
        return entry

    def _push(self, key: K, entry: Entry) -> None:
        entry.priority = self._ageing.inflation + entry.merit
        self._count += 1
        entry.ticket = self._count
        heap = self._heaps[entry.on_probation]
        heapq.heappush(heap, (entry.priority, entry.ticket, key))
        if len(heap) > 2 * len(self._entries) + STALE:
            heap[:] = filter(self._is_current, heap)
            heapq.heapify(heap)

    def _is_current(self, item: tuple[float, int, K]) -> bool:
        entry = self._entries.get(item[2])
        return entry is not None and entry.ticket == item[1]

    def _lowest(self, *, on_probation: bool, spared: Callable[[K], bool]) -> K | None:
        heap, put_back, found = self._heaps[on_probation], [], None
        while heap:
            item = heap[0]
            if not self._is_current(item):
                heapq.heappop(heap)
                continue
            if not spared(item[2]):
                found = item[2]
                break
            put_back.append(heapq.heappop(heap))
        for item in put_back:
            heapq.heappush(heap, item)
        return found
