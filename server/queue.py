"""The waiting runs: by priority, then fair between clients, then by rank within a client.

Fairness is start-time fair queueing (Goyal, Vin and Cheng 1996) on seconds: every client has a clock that goes on by
the seconds charged to it, and the client whose clock is furthest behind comes first; between equal clocks, the one
that was served longest ago. A client that comes back gets at least the clock furthest behind among those who wait, so
that nobody saves up time; a clock that is ahead stays ahead, so that nobody sheds what he used by leaving for a
moment. Where nobody waits, whoever comes is even with the one who used most.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

_RECENT = 8
"""Charges over which the expected seconds of a run are averaged, roughly."""
_FURTHEST = 2.0**48
"""Ranks within this leave room between whole numbers."""
Place = tuple[float, int, str]
"""Where a run stands among those of its client: rank, order of arrival, id."""
Lines = dict[frozenset[str], list[Place]]
"""A client's runs of one priority, in order for each set of models."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits. `models` are the sha256 of the model files that it uses: runs with equal ones run together."""

    id: str
    client: str
    priority: int
    rank: float
    models: frozenset[str] = frozenset()


class FairQueue:
    """Who is next. Pure, and not safe for threads; an operation costs some bisections and a look at each client."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[Waiting, Place]] = {}
        self._levels: dict[int, dict[str, Lines]] = {}
        self._counts: Counter[str] = Counter()
        self._arrivals = 0
        self._clocks: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._expected: float | None = None

    def __len__(self) -> int:
        """How many runs wait."""
        return len(self._runs)

    def __contains__(self, run: object) -> bool:
        """Whether a run waits, by its id."""
        return run in self._runs

    def by_client(self, client: str) -> int:
        """How many runs of a client wait."""
        return self._counts[client]

    def add(self, run: Waiting) -> None:
        """Let a run wait. Raises ValueError when it does already, or when its rank is beyond 2**48."""
        if run.id in self._runs:
            raise ValueError(f"expected a run that is not in the queue, got {run.id}, which waits already")
        if not abs(run.rank) <= _FURTHEST:
            raise ValueError(f"rank of {run.id}: expected a number within {_FURTHEST}, got {run.rank}")
        if run.client not in self._counts:
            self._clocks[run.client] = max(self._clocks.get(run.client, 0.0), self._floor())
        self._arrivals += 1
        self._put(run, self._arrivals)

    def remove(self, run: str) -> bool:
        """Take a run out, as when it is cancelled; whether it was waiting."""
        if run not in self._runs:
            return False
        self._pull(run)
        return True

    def charge(self, client: str, seconds: float) -> None:
        """A client has used that many seconds, of one run or of its share in several.

        Raises ValueError unless they are finite and at least 0.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds of {client}: expected a finite number that is at least 0, got {seconds}")
        self._clocks[client] = self._clocks.get(client, 0.0) + seconds
        self._expected = seconds if self._expected is None else self._expected + (seconds - self._expected) / _RECENT

    def take(self, together: int = 1, among: frozenset[str] | None = None) -> list[Waiting]:
        """Take out the next run, and up to `together` - 1 more of the same priority and the same models.

        These come in fair order too, each counted at the expected seconds of a run; what they really took is for
        `charge` to say. All others stay where they are. `among` are the models of runs that they are to join: nothing
        is taken where the next run has others, so that it has its turn before further ones of those.
        """
        if not self._runs:
            return []
        level = self._levels[max(self._levels)]
        ahead = level[min(level, key=self._precedence)]
        models = min(ahead, key=lambda models: ahead[models][0])
        if among is not None and models != among:
            return []
        lines = {client: by_models[models] for client, by_models in level.items() if models in by_models}
        chosen = list(islice(self._fairly(lines, dict(self._clocks), dict(self._turns)), together))
        return [self._serve(run) for run in chosen]

    def order(self) -> list[str]:
        """All runs in the order in which `take(1)` would give them if each took the expected seconds.

        These are the mean of what was charged lately, 1 before anything was. Nothing is changed.
        """
        order: list[str] = []
        clocks, turns = dict(self._clocks), dict(self._turns)
        for priority in sorted(self._levels, reverse=True):
            lines = {client: heapq.merge(*found.values()) for client, found in self._levels[priority].items()}
            order += self._fairly(lines, clocks, turns)
        return order

    def move(
        self,
        run: str,
        *,
        priority: int | None = None,
        before: str | None = None,
        first: bool = False,
        last: bool = False,
    ) -> dict[str, float]:
        """Give a run another priority, or another place among its client's runs of the same priority.

        Gives the new ranks to be remembered: the run's own, and where no number fits between its new neighbours any
        more, those of all its client's runs of that priority. Raises KeyError for a run that does not wait, ValueError
        for several places at once and for a `before` of another client or priority.
        """
        target = self._target(run, priority, before)
        if (before is not None) + first + last > 1:
            raise ValueError(f"run {run}: expected one of before, first and last, got several")
        arrival, ranks = self._runs[run][1][1], {}
        self._pull(run)
        if before is not None or first or last:
            while (rank := _between(*self._gap(target, before, last=last))) is None:
                ranks = self._space(target)
            target = replace(target, rank=rank)
        self._put(target, arrival)
        return {**ranks, run: target.rank}

    def _target(self, run: str, priority: int | None, before: str | None) -> Waiting:
        """The run with its new priority, if it may stand before that other one."""
        moving = self._runs[run][0]
        target = replace(moving, priority=moving.priority if priority is None else priority)
        if before is None:
            return target
        other = self._runs[before][0]
        if run == before or (other.client, other.priority) != (target.client, target.priority):
            raise ValueError(
                f"run {run}: expected to be put before another run of {target.client} with priority {target.priority}, "
                f"got {before} of {other.client} with priority {other.priority}; change the priority with it"
            )
        return target

    def _gap(self, run: Waiting, before: str | None, *, last: bool) -> tuple[float, float]:
        """The ranks between which the run belongs; what arrives later than all of its neighbours stays behind them."""
        lines = self._levels.get(run.priority, {}).get(run.client, {}).values()
        if not lines:
            return run.rank - 1, run.rank + 1
        if last:
            rank = max(line[-1] for line in lines)[0]
            return rank, math.floor(rank) + 1
        place = min(line[0] for line in lines) if before is None else self._runs[before][1]
        below = [line[at - 1] for line in lines if (at := bisect_left(line, place))]
        return max(below)[0] if below else math.ceil(place[0]) - 2, place[0]

    def _space(self, run: Waiting) -> dict[str, float]:
        """Put the ranks of a client's runs of one priority 1 apart, in the same order, ending where they end."""
        places = sorted(chain.from_iterable(self._levels[run.priority][run.client].values()))
        start = math.floor(places[-1][0]) - len(places) + 1
        ranks = {id_: float(start + number) for number, (_, _, id_) in enumerate(places)}
        for _, arrival, id_ in places:
            self._put(replace(self._pull(id_), rank=ranks[id_]), arrival)
        return ranks

    def _put(self, run: Waiting, arrival: int) -> None:
        place = (run.rank, arrival, run.id)
        self._runs[run.id] = (run, place)
        self._counts[run.client] += 1
        lines = self._levels.setdefault(run.priority, {}).setdefault(run.client, {})
        insort(lines.setdefault(run.models, []), place)

    def _pull(self, id_: str) -> Waiting:
        run, place = self._runs.pop(id_)
        clients = self._levels[run.priority]
        lines = clients[run.client]
        line = lines[run.models]
        del line[bisect_left(line, place)]
        for holder, key in ((lines, run.models), (clients, run.client), (self._levels, run.priority)):
            _drop_empty(holder, key)
        self._counts[run.client] -= 1
        _drop_empty(self._counts, run.client)
        return run

    def _serve(self, id_: str) -> Waiting:
        run = self._pull(id_)
        self._turn += 1
        self._turns[run.client] = self._turn
        return run

    def _floor(self) -> float:
        """The clock that a newcomer is at least given."""
        waiting = [self._clocks[client] for client in self._counts]
        return min(waiting) if waiting else max(self._clocks.values(), default=0.0)

    def _precedence(self, client: str) -> tuple[float, int]:
        return self._clocks[client], self._turns.get(client, 0)

    def _fairly(
        self, lines: Mapping[str, Iterable[Place]], clocks: dict[str, float], turns: dict[str, int]
    ) -> Iterator[str]:
        """The ids of some runs in fair order, each counted at the expected seconds in `clocks` and `turns`."""
        turn = max(turns.values(), default=0)
        ahead = [(clocks[client], turns.get(client, 0), seat, client) for seat, client in enumerate(lines)]
        heapq.heapify(ahead)
        left = {client: iter(line) for client, line in lines.items()}
        while ahead:
            _, _, seat, client = ahead[0]
            place = next(left[client], None)
            if place is None:
                heapq.heappop(ahead)
                continue
            yield place[2]
            turn += 1
            turns[client] = turn
            clocks[client] += 1.0 if self._expected is None else self._expected
            heapq.heapreplace(ahead, (clocks[client], turn, seat, client))


def _between(lower: float, upper: float) -> float | None:
    """A number between two others, None where floats have none."""
    middle = lower + (upper - lower) / 2
    return middle if lower < middle < upper else None


def _drop_empty(holder: dict[Any, Any], key: object) -> None:
    if not holder[key]:
        del holder[key]
