"""Training within a budget of minutes: the loop that all stages share."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pocket.training.learner import Learner, Progress

LOGGED = 20
"""Seconds between two lines of the log."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast: until a time of `time.monotonic`, on a schedule of so many minutes over all sessions."""

    until: float
    total: float
    rate: float
    warmup: int = 200


class Found(NamedTuple):
    """One step's loss, how many samples made it, and figures to log, a tensor on the device."""

    loss: Tensor
    seen: int
    figures: Tensor


@dataclass(frozen=True)
class Alarm:
    """Does something once after so many seconds of a session, or again and again."""

    seconds: float
    action: Callable[[], None]
    again: bool = False


@dataclass
class Journal:
    """Prints what happens, and keeps it as JSON lines."""

    path: Path
    began: float = field(default_factory=time.monotonic)

    def note(self, event: str, **facts: Any) -> None:
        """Write one line."""
        entry = {"at": round(time.monotonic() - self.began, 1), "event": event, **facts}
        print(json.dumps(entry), flush=True)  # noqa: T201  # a training run talks
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def rate(fraction: float, step: int, plan: Plan) -> float:
    """A cosine over the whole schedule, after a linear warm-up in steps of this session."""
    return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * fraction)) / 2)


def train(
    learner: Learner,
    loss: Callable[[int], Found],
    *,
    plan: Plan,
    journal: Journal,
    figures: Sequence[str],
    alarms: Sequence[Alarm] = (),
) -> None:
    """Take steps until the session is over. `loss` is given the step's number, counted over all sessions."""
    session = _Session(plan, learner.progress, journal, figures, alarms)
    while not session.over:
        found = loss(learner.progress.step)
        learner.learn(found.loss, rate(session.fraction, session.steps, plan))
        session.step(found)
    session.log()


class _Session:
    """The clock of one session, which makes a step at least. It starts with the second: the first one may compile."""

    def __init__(
        self, plan: Plan, progress: Progress, journal: Journal, figures: Sequence[str], alarms: Sequence[Alarm]
    ) -> None:
        self.steps = 0
        self._plan, self._progress, self._journal, self._figures = plan, progress, journal, figures
        self._before = progress.seconds
        self._due = [(alarm.seconds, alarm) for alarm in alarms]
        self._pending: list[Found] = []

    @property
    def over(self) -> bool:
        return self.steps > 0 and time.monotonic() >= self._plan.until

    @property
    def fraction(self) -> float:
        return min(1.0, self._progress.seconds / (60 * self._plan.total))

    def step(self, found: Found) -> None:
        now = time.monotonic()
        self.steps += 1
        if self.steps == 1:
            self._began = self._logged = now
        self._progress.seen += found.seen
        self._progress.seconds = self._before + now - self._began
        self._pending.append(Found(found.loss.detach(), found.seen, found.figures))
        if now - self._logged > LOGGED:
            self.log()
        self._ring(now - self._began)

    def log(self) -> None:
        """Write means since the last line; this waits for the device."""
        if not self._pending:
            return
        values = torch.stack([torch.cat([each.loss[None], each.figures]) for each in self._pending]).nanmean(0)
        means = [round(value, 5) for value in values.tolist()]
        now = time.monotonic()
        speed = sum(each.seen for each in self._pending) / max(now - self._logged, 1e-6)
        named = dict(zip(("loss", *self._figures), means, strict=True))
        done = {**asdict(self._progress), "seconds": round(self._progress.seconds, 1), "speed": round(speed, 1)}
        self._journal.note("step", **done, **named)
        self._pending, self._logged = [], now

    def _ring(self, elapsed: float) -> None:
        for due, alarm in [each for each in self._due if elapsed >= each[0]]:
            self._due.remove((due, alarm))
            alarm.action()
            if alarm.again:
                self._due.append((due + alarm.seconds, alarm))
