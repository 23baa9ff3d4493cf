"""Store: identity -> value, over the tiers device, host and disk. Budgets are bytes.

A value is put on the device tier and copied to the disk. When the device is full, the cheapest unpinned value moves to
the host; when that is full, it goes, and only the disk still has it. Pinned values (those that the running graph still
needs) stay where they are, also over the budget, until they are unpinned.

Interim values, which nodes keep on their way, lie on the device alone, and have a share of its budget at most: they
compete with results for that share, by what they save a byte, and the rest is the results' own. Beyond it the oldest
of them go, and no result ages by that.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping

from engine.budget import Ledger
from engine.digest import Digest
from engine.disk import Disk
from engine.eviction import Entry, Gdsf
from engine.socket import Socket

INTERIM_SHARE = 0.125
"""Share of the device's budget that interim values take at most."""

Down = Callable[[Digest, Socket, float, int], bool]


class Tier:
    """Values in one memory, under one ledger."""

    def __init__(self, name: str, place: str, ledger: Ledger, pinned: Callable[[Digest], bool], down: Down) -> None:
        self.name = name
        self.place = place
        self.values: dict[Digest, Socket] = {}
        self._stamps: dict[Digest, Hashable] = {}
        self._ledger = ledger
        self._policy: Gdsf[Digest] = Gdsf(lambda: ledger.capacity, ledger.ageing)
        self._pinned = pinned
        self._down = down
        self._bytes = 0
        ledger.join(self)

    def put(self, identity: Digest, value: Socket, seconds: float, uses: int = 0, *, trim: bool = True) -> None:
        """Keep a value, then free until the budget holds; without `trim` the caller does that later."""
        self.drop(identity)
        size = value.nbytes()
        self.values[identity] = value
        self._stamps[identity] = value.stamp()
        self._bytes += size
        self._policy.admit(identity, size, seconds, uses)
        if trim:
            self._ledger.make_room()

    def untouched(self, identity: Digest) -> bool:
        """Whether nobody has written into a value since it was put here."""
        return self._stamps[identity] == self.values[identity].stamp()

    def use(self, identity: Digest) -> None:
        """A value was wanted again."""
        self._policy.use(identity)
        self.values[identity] = self.values.pop(identity)

    def drop_oldest(self) -> None:
        """Let the value go that was neither put nor wanted for the longest time; nothing else ages by that."""
        self.drop(next(iter(self.values)))

    def seconds(self, identity: Digest) -> float:
        """What a value took to make."""
        return self._policy.seconds(identity)

    def drop(self, identity: Digest) -> None:
        """Let a value go without sending it down."""
        self.take(identity)

    def take(self, identity: Digest) -> tuple[Socket, Entry] | None:
        """Let a value go to somebody else, with what is known of its worth."""
        value, entry = self.values.pop(identity, None), self._policy.remove(identity)
        if value is None or entry is None:
            return None
        self._bytes -= entry.size
        return value, entry

    def trim(self) -> None:
        """Free until the budget holds."""
        self._ledger.make_room()

    def held(self) -> int:
        """Bytes of all values."""
        return self._bytes

    def cheapest(self) -> float | None:
        """Priority of the value to give up first."""
        victim = self._policy.victim(self._pinned)
        return None if victim is None else self._policy.priority(victim)

    def give_up(self) -> int:
        """Send the cheapest unpinned value down, or let it go."""
        victim = self._policy.victim(self._pinned)
        if victim is None:
            return 0
        value = self.values.pop(victim)
        entry = self._policy.evict(victim)
        self._bytes -= entry.size
        self._down(victim, value, entry.seconds, entry.uses)
        return entry.size


class Store:
    """All tiers. `host` is left out where the device is the host itself; `disk` where no folder is named."""

    def __init__(self, device: Ledger, host: Ledger | None = None, disk: Disk | None = None) -> None:
        self.disk = disk
        self._pins: Counter[Digest] = Counter()
        self._host = Tier("host", "cpu", host, self._is_pinned, self._lost) if host else None
        self._device = Tier("values", device.place, device, self._is_pinned, self._sink)
        self._interim = Tier("interim", device.place, device, self._is_pinned, self._lost)
        self._interim_room = INTERIM_SHARE * device.capacity

    @property
    def place(self) -> str:
        """Where values live."""
        return self._device.place

    def __contains__(self, identity: Digest) -> bool:
        """Whether some tier has the value."""
        return (
            identity in self._device.values
            or (self._host is not None and identity in self._host.values)
            or (self.disk is not None and identity in self.disk)
        )

    def put(self, identity: Digest, value: Socket, seconds: float, *, trim: bool = True) -> None:
        """Keep a value that took `seconds` to make; without `trim` the caller restores the budget."""
        if identity in self._device.values:
            return
        if self.disk is not None:
            self.disk.put(identity, value, seconds)
        self._device.put(identity, value, seconds, trim=trim)

    def get(self, identity: Digest) -> Socket | None:
        """The value, on the device; None when no tier has it any more, or somebody has written into it."""
        for tier in self._tiers():
            if identity in tier.values and not tier.untouched(identity):
                self.discard(identity)
                return None
        value = self._device.values.get(identity)
        if value is not None:
            return value
        if self._host is not None and (found := self._host.take(identity)) is not None:
            return self._rise(identity, found[0], found[1].seconds, found[1].uses)
        if self.disk is not None and (value := self.disk.get(identity)) is not None:
            return self._rise(identity, value, *self.disk.worth(identity))
        return None

    def keep(self, identity: Digest, value: Socket, seconds: float) -> None:
        """Keep an interim value that took `seconds` to make, in the place of older ones where there are too many.

        Results are not given up for it here; `trim` weighs the one against the other, when the node is through.
        """
        size = value.nbytes()
        self._interim.drop(identity)
        if size > self._interim_room:
            return
        while self._interim.held() + size > self._interim_room:
            self._interim.drop_oldest()
        self._interim.put(identity, value, seconds, trim=False)

    def recall(self, identity: Digest) -> tuple[Socket, float] | None:
        """An interim value and the seconds that it took; None where it is gone, or somebody has written into it."""
        value = self._interim.values.get(identity)
        if value is None:
            return None
        if not self._interim.untouched(identity):
            self._interim.drop(identity)
            return None
        self._interim.use(identity)
        return value, self._interim.seconds(identity)

    def use(self, identity: Digest) -> None:
        """A later run wanted the value again; what is used again is worth keeping."""
        for tier in self._tiers():
            if identity in tier.values:
                tier.use(identity)

    def pin(self, identity: Digest) -> None:
        """The running graph still needs the value."""
        self._pins[identity] += 1

    def unpin(self, identity: Digest) -> None:
        """One need less."""
        self._pins[identity] -= 1
        if self._pins[identity] <= 0:
            del self._pins[identity]

    def trim(self) -> None:
        """Bring every tier back within its budget; a run is over, and what it pinned may go."""
        for tier in self._tiers():
            tier.trim()

    def discard(self, identity: Digest) -> None:
        """Forget a value on all tiers."""
        for tier in self._tiers():
            tier.drop(identity)
        if self.disk is not None:
            self.disk.discard(identity)

    def drop_memory(self, identity: Digest) -> None:
        """Forget a value in memory; the disk keeps it. Memory pressure does the same."""
        for tier in self._tiers():
            tier.drop(identity)

    def clear(self) -> None:
        """Forget everything."""
        for tier in self._tiers():
            for identity in list(tier.values):
                tier.drop(identity)
        if self.disk is not None:
            self.disk.clear()

    def identities(self) -> set[Digest]:
        """What is in memory."""
        return {identity for tier in self._tiers() for identity in tier.values}

    def statement(self) -> Mapping[str, int]:
        """Bytes per tier."""
        held = {tier.name if tier is not self._device else "device": tier.held() for tier in self._tiers()}
        return held if self.disk is None else {**held, "disk": self.disk.held()}

    def _tiers(self) -> Iterator[Tier]:
        yield self._device
        if self._host is not None:
            yield self._host
        yield self._interim

    def _is_pinned(self, identity: Digest) -> bool:
        return identity in self._pins

    def _rise(self, identity: Digest, value: Socket, seconds: float, uses: int) -> Socket:
        value = value.move(self._device.place)
        self._device.put(identity, value, seconds, uses)
        return value

    def _sink(self, identity: Digest, value: Socket, seconds: float, uses: int) -> bool:
        if self._host is None:
            return False
        self._host.put(identity, value.demote(), seconds, uses)
        return True

    def _lost(self, _identity: Digest, _value: Socket, _seconds: float, _uses: int) -> bool:
        return False
