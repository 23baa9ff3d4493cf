"""Eviction policies compared by what an evening's work computes again with too little memory."""

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from benchmarks import evening, trace
from benchmarks.measure import Answer, Beside, Goal, Row, duration
from benchmarks.replay import Policies, replay
from benchmarks.trace import Trace
from engine.digest import Digest
from engine.eviction import Ageing, Entry, Gdsf

QUESTION = "With too little memory, how many seconds does an evening's work compute again, under which policy?"
SHARES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5)
"""Memory, as shares of the bytes with which nothing is ever computed twice."""
JUDGED = 0.25
UNLIMITED = 1 << 60

OURS = "Calotype"
BYTES, COUNT, FUTURE = "LRU by bytes", "LRU by count", "greedy foresight"


class Lru:
    """Least recently used goes first."""

    def __init__(self, capacity: Callable[[], float], ageing: Ageing) -> None:
        self.entries: OrderedDict[Digest, Entry] = OrderedDict()

    def admit(self, key: Digest, size: int, seconds: float, uses: int = 0) -> None:
        """A value came."""
        self.entries[key] = Entry(size, seconds, uses)

    def use(self, key: Digest) -> None:
        """A value was used again."""
        self.entries.move_to_end(key)

    def remove(self, key: Digest) -> Entry | None:
        """A value went."""
        return self.entries.pop(key, None)

    def victim(self, spared: Callable[[Digest], bool] = lambda _: False) -> Digest | None:
        """The value that was not used for longest."""
        return next((key for key in self.entries if not spared(key)), None)

    def priority(self, key: Digest) -> float:
        """There is nothing else to compare with."""
        return 0.0

    def evict(self, key: Digest) -> Entry:
        """Take a victim out."""
        return self.entries.pop(key)


class Prophet:
    """Learns from a rehearsal with unlimited memory which run reads which value, and evicts by that."""

    def __init__(self, rehearsed: Trace) -> None:
        self.run = 0
        self.reads: dict[Digest, list[int]] = defaultdict(list)
        replay(rehearsed, UNLIMITED, self.learning, self.begin)

    def begin(self, run: int) -> None:
        """A run begins."""
        self.run = run

    def wait(self, key: Digest) -> float:
        """Runs until the value is read again; infinite where it never is."""
        reads = self.reads.get(key, [])
        following = bisect_right(reads, self.run)
        return reads[following] - self.run if following < len(reads) else float("inf")

    def learning(self, capacity: Callable[[], float], ageing: Ageing) -> Lru:
        """A policy that only listens."""
        return _Learning(capacity, ageing, self)

    def knowing(self, capacity: Callable[[], float], ageing: Ageing) -> Lru:
        """A policy that gives up the fewest seconds per byte and run of waiting."""
        return _Knowing(capacity, ageing, self)


class _Learning(Lru):
    def __init__(self, capacity: Callable[[], float], ageing: Ageing, prophet: Prophet) -> None:
        super().__init__(capacity, ageing)
        self._prophet = prophet

    def use(self, key: Digest) -> None:
        super().use(key)
        self._prophet.reads[key].append(self._prophet.run)


class _Knowing(_Learning):
    def use(self, key: Digest) -> None:
        Lru.use(self, key)

    def victim(self, spared: Callable[[Digest], bool] = lambda _: False) -> Digest | None:
        return min((key for key in self.entries if not spared(key)), key=self._worth, default=None)

    def _worth(self, key: Digest) -> float:
        entry = self.entries[key]
        return entry.seconds / entry.size / self._prophet.wait(key)


def answer() -> Answer:
    recorded = trace.load(evening.NAME)
    again = {share: dict(_again(recorded, share)) for share in SHARES}
    return Answer(QUESTION, list(_rows(again[JUDGED])), _details(again), _notes(recorded))


def _again(recorded: Trace, share: float) -> Iterator[tuple[str, float]]:
    """Seconds beyond the compulsory ones, by policy."""
    capacity = int(recorded.needed() * share)
    prophet = Prophet(recorded)
    policies: Mapping[str, Policies] = {OURS: Gdsf, BYTES: Lru, FUTURE: prophet.knowing}
    for name, policy in policies.items():
        yield name, _beyond(recorded, capacity, policy, prophet.begin)
    counted = _of_one_byte(recorded)
    yield COUNT, _beyond(counted, int(counted.needed() * share), Lru)


def _beyond(recorded: Trace, capacity: int, policy: Policies, before: Callable[[int], None] = lambda _: None) -> float:
    seconds = replay(recorded, capacity, policy, before).seconds - recorded.compulsory()
    return seconds if seconds > 1e-9 else 0.0


def _of_one_byte(recorded: Trace) -> Trace:
    """The same trace for a policy that counts values."""
    calls = [replace(call, outputs=tuple(replace(value, size=1) for value in call.outputs)) for call in recorded.calls]
    return replace(recorded, calls=calls)


def _rows(again: Mapping[str, float]) -> Iterator[Row]:
    what = f"computed again, with {JUDGED:.0%} of the memory needed"
    for name in (BYTES, COUNT, FUTURE):
        goal = Goal(1 / 1.5, of="ratio") if name == BYTES else None
        yield Row(what, again[OURS], Beside(name, again[name]), goal)


def _details(again: Mapping[float, Mapping[str, float]]) -> list[tuple[str, ...]]:
    head = ("computed again, with", *(f"{share:.0%}" for share in again))
    return [
        head,
        *((name, *(duration(again[share][name]) for share in again)) for name in (OURS, BYTES, COUNT, FUTURE)),
    ]


def _notes(recorded: Trace) -> tuple[str, ...]:
    needed, compulsory = recorded.needed() / 1e6, duration(recorded.compulsory())
    recording = (
        f"{len(recorded.runs)} runs, recorded on {recorded.about['recorded']}: {len(recorded.calls)} calls, "
        f"{compulsory} of computing that nothing can save, {needed:.1f} MB of values."
    )
    replayed = (
        "Replayed by the real engine on a clock that advances by the recorded seconds. Values of the running graph are "
        "pinned under every policy; with little memory, the cells of one sweep fill it alone."
    )
    policies = (
        "LRU by count keeps that share of the number of values, however large they are (ComfyUI's --cache-lru counts "
        "nodes). Foresight knows which run reads what, and is greedy: where it comes to 0 s nothing can be better; "
        "elsewhere it may be beaten, since it does not see that losing a picture can cost the chain behind it."
    )
    return recording, replayed, policies
