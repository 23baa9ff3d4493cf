"""Measuring side by side, and the table that every benchmark answers with."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

HEAD = ("what", "ours", "beside it", "ratio", "goal", "met")

Sample = Callable[[], float]
"""Does its work once and returns the seconds that count."""


@dataclass(frozen=True)
class Beside:
    """What a figure is compared with: a peer, a limit, or the same thing at another size. In the unit of the figure."""

    name: str
    value: float


@dataclass(frozen=True)
class Goal:
    """The most that is allowed, of the figure itself or of its ratio to what stands beside it."""

    most: float
    of: Literal["ours", "ratio"] = "ours"


@dataclass(frozen=True)
class Row:
    """One figure: less is better, in seconds unless `counted`. The ratio is ours / beside."""

    what: str
    ours: float
    beside: Beside | None = None
    goal: Goal | None = None
    counted: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours / beside, where something stands beside it."""
        return self.ours / self.beside.value if self.beside and self.beside.value else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        judged = self.ours if self.goal.of == "ours" else self.ratio
        return judged is not None and judged <= self.goal.most

    def cells(self) -> tuple[str, ...]:
        """The row as it is printed."""
        show = "{:.0f}".format if self.counted else duration
        beside = f"{show(self.beside.value)} ({self.beside.name})" if self.beside else ""
        ratio = "" if self.ratio is None else quotient(self.ratio)
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return self.what, show(self.ours), beside, ratio, self._goal(show), met

    def _goal(self, show: Callable[[float], str]) -> str:
        if self.goal is None:
            return ""
        return f"<= {show(self.goal.most)}" if self.goal.of == "ours" else f"ratio <= {quotient(self.goal.most)}"


@dataclass(frozen=True)
class Answer:
    """What a benchmark found out. `details` is a table of its own; `notes` say what the figures are and are not."""

    question: str
    rows: Sequence[Row]
    details: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The answer as Markdown, the columns aligned."""
        parts = [self.question, table([HEAD, *(row.cells() for row in self.rows)])]
        if self.details:
            parts.append(table(self.details))
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts)


def steady(threads: int = 1) -> None:
    """Torch on one thread: two that wait for each other take twenty times as long while somebody else uses a core."""
    torch.set_num_threads(threads)


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def medians(samples: Mapping[str, Sample], rounds: int) -> dict[str, float]:
    """The median of each sample over several rounds; every round takes each once, every other one backwards."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    for number in range(rounds):
        for name in list(samples)[:: -1 if number % 2 else 1]:
            taken[name].append(samples[name]())
    return {name: statistics.median(found) for name, found in taken.items()}


def typical(sample: Sample, times: int) -> float:
    """The median of one sample taken several times in a row."""
    return statistics.median(sample() for _ in range(times))


def duration(seconds: float) -> str:
    """Three digits, and the unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds * 1e9)} ns" if seconds else "0 s"


def quotient(ratio: float) -> str:
    """A ratio as people say it: 2.5, 0.83, 1/20."""
    return f"1/{digits(1 / ratio)}" if 0 < ratio < 1 / 1.4 else digits(ratio)


def digits(number: float) -> str:
    """Three digits, the decimals that say nothing left out."""
    text = f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else f"{int(text):,}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def machine() -> str:
    """What the figures depend on, in one line; neither names nor places of the machine."""
    parts = (
        f"{_processor()}, {os.cpu_count()} cores",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} on {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}",
        today(),
    )
    return ", ".join(parts)


def today() -> str:
    """The date, as results are filed under."""
    return datetime.now(UTC).date().isoformat()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
