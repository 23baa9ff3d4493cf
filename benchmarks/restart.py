"""A run that another process has made before, found on disk."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import pipeline
from benchmarks.measure import Answer, Beside, Goal, Row, timed
from calotype.library import find
from engine.event import Event, NodeMeasured

QUESTION = "After a restart, what does the same graph cost again?"
ROUNDS = 5
AT_MOST = 1 / 20


class Watch:
    """Counts UNet calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, event: Event) -> None:
        """One more, where a node says so."""
        self.calls += isinstance(event, NodeMeasured) and event.name == "unet_calls"


def answer() -> Answer:
    return Answer(QUESTION, list(_rows()), notes=_notes())


def _rows() -> Iterator[Row]:
    for name in (pipeline.CHAINED, pipeline.PAINTED):
        with tempfile.TemporaryDirectory() as folder:
            rounds = [_round(name, Path(folder) / str(number)) for number in range(ROUNDS)]
        computed, recomputed, again, calls, calls_again = (median(column) for column in zip(*rounds, strict=True))
        yield Row(f"{name}: UNet calls", calls_again, Beside("the first run", calls), Goal(0), counted=True)
        goal = Goal(AT_MOST, of="ratio")
        yield Row(f"{name}: run again, restarted", again, Beside("computing it, restarted", recomputed), goal)
        yield Row(f"{name}: the first run, which is kept", computed, Beside("without a cache folder", recomputed))


def _round(name: str, cache: Path) -> tuple[float, float, float, int, int]:
    """Seconds of the first run, of one without a cache, and of the next; UNet calls of the first and of the next."""
    first, without, following = Watch(), Watch(), Watch()
    return (
        _run(name, cache, first),
        _run(name, None, without),
        _run(name, cache, following),
        first.calls,
        following.calls,
    )


def _run(name: str, cache: Path | None, watch: Watch) -> float:
    """Seconds of a run on a new engine, whose models are not loaded yet."""
    with pipeline.engine(cache) as engine:
        return timed(lambda: engine.run(find(name), listener=watch))


def _notes() -> tuple[str, ...]:
    return (
        (
            "A new engine each time, so its models are loaded where something is computed; Python and its libraries "
            "are there already. `startup` has the same as a process."
        ),
        "Values are written behind the run's back; `--cache` names the folder.",
    )
