"""A turn: the runs that the engine has in hand, and how much of its time each of them uses."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.context import CancelToken
from engine.engine import Order
from server.queue import Waiting
from server.story import Story
from server.submission import Prepared


@dataclass(eq=False)
class Job:
    """A run that was taken."""

    waiting: Waiting
    story: Story
    token: CancelToken = field(default_factory=CancelToken)
    prepared: Prepared | None = None
    unwanted: bool = False
    """Its client has cancelled it."""

    @property
    def id(self) -> str:
        """The run's id."""
        return self.waiting.id


class Turn:
    """Runs with the same `models` that the engine works at side by side; others join them on the way.

    Each uses an even share of the time while it is there.
    """

    def __init__(self, models: frozenset[str], clock: Callable[[], float] = time.perf_counter) -> None:
        self.models = models
        self._jobs: list[Job] = []
        self._seconds: dict[Job, float] = {}
        self._clock = clock
        self._since = clock()

    def __len__(self) -> int:
        """How many runs are there."""
        return len(self._seconds)

    def __getitem__(self, index: int) -> Job:
        """A run by the index of its order."""
        return self._jobs[index]

    def join(self, jobs: Sequence[Job]) -> list[Order]:
        """Let further runs take part; returns what the engine is to do for them."""
        self._share()
        self._jobs += jobs
        self._seconds |= dict.fromkeys(jobs, 0.0)
        return [
            Order(job.prepared.graph, job.prepared.wanted, None, job.story, job.token) for job in jobs if job.prepared
        ]

    def leave(self, job: Job) -> float:
        """A run takes part no more; returns the seconds that it used."""
        self._share()
        return self._seconds.pop(job)

    def left(self) -> list[Job]:
        """The runs that are there."""
        return list(self._seconds)

    def _share(self) -> None:
        now = self._clock()
        for job in self._seconds:
            self._seconds[job] += (now - self._since) / len(self._seconds)
        self._since = now
