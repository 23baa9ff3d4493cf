"""The engine's own share of a re-run after one literal was changed."""

import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields
from itertools import count, islice
from statistics import median
from typing import Any

from benchmarks import cheap, pipeline
from benchmarks.measure import Answer, Goal, Row, duration
from engine.engine import Engine
from engine.event import Event, NodeFinished, NodeStarted, Outcome
from engine.graph import Graph

QUESTION = "One literal changed: how long does a re-run take, apart from the nodes that had to run?"
MOST = 2e-3
STEPS = 4
REPETITIONS = 30
LENGTH = 100


@dataclass(frozen=True)
class Edit:
    """A graph that has run, and what is changed in it again and again."""

    what: str
    engine: Engine
    graph: Graph
    name: str
    values: Iterator[Any]


@dataclass(frozen=True)
class Parts:
    """Seconds of one re-run without the nodes' own, one after the other."""

    edit: float
    compile: float
    survey: float
    loop: float
    report: float


@dataclass
class Watch:
    """Listens to a run: when its first node began, when its last one had run, and what the nodes took themselves."""

    surveyed: float = 0.0
    looped: float = 0.0
    own: float = 0.0
    ran: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        """Take the time of the events that divide a run."""
        if isinstance(event, NodeStarted) and not self.surveyed:
            self.surveyed = time.perf_counter()
        elif isinstance(event, NodeFinished) and event.outcome is Outcome.RAN:
            self.looped = time.perf_counter()
            self.own += event.seconds
            self.ran.append(event.node)


def answer() -> Answer:
    edits = [*_chained(), *_chains()]
    for edit in edits:
        edit.engine.run(edit.graph)
    found = {edit.what: [_rerun(edit, value) for value in islice(edit.values, REPETITIONS)] for edit in edits}
    rows = [
        Row(what, median(sum(astuple(parts)) for parts, _ in runs), goal=Goal(MOST)) for what, runs in found.items()
    ]
    head = ("of which", *(part.name for part in fields(Parts)), "nodes that ran")
    details = [head, *(_detail(what, runs) for what, runs in found.items())]
    note = "From setting the literal until the result is there, less the seconds that nodes took themselves; medians."
    return Answer(QUESTION, rows, details, (note,))


def _chained() -> Iterator[Edit]:
    """The saved graph on the embedded model, on one engine, as in an evening's work."""
    engine, graph = pipeline.engine(), pipeline.brief(STEPS)
    changes: dict[str, Iterator[Any]] = {
        "inpaint_strength": (0.5 + number / 1000 for number in count()),
        "mask_x": count(40),
        "prompt": (f"smiling face, {number} hats" for number in count()),
    }
    for name, values in changes.items():
        yield Edit(f"{pipeline.CHAINED}: {name} changed", engine, graph, name, values)


def _chains() -> Iterator[Edit]:
    for what, node in (("last", LENGTH - 1), ("middle", LENGTH // 2), ("head", 0)):
        graph = Graph.parse(cheap.chain(LENGTH))
        yield Edit(f"chain of {LENGTH}: {what} changed", cheap.engine(), graph, f"n{node}.value", count(1_000_000))


def _rerun(edit: Edit, value: Any) -> tuple[Parts, list[str]]:
    watch = Watch()
    began = time.perf_counter()
    graph = edit.graph.set({edit.name: value})
    was_set = time.perf_counter()
    edit.engine.program(graph)
    compiled = time.perf_counter()
    edit.engine.run(graph, listener=watch)
    ended = time.perf_counter()
    loop = watch.looped - watch.surveyed - watch.own
    parts = Parts(was_set - began, compiled - was_set, watch.surveyed - compiled, loop, ended - watch.looped)
    return parts, watch.ran


def _detail(what: str, runs: list[tuple[Parts, list[str]]]) -> tuple[str, ...]:
    columns = zip(*(astuple(parts) for parts, _ in runs), strict=True)
    ran = sorted({len(nodes) for _, nodes in runs})
    return what, *(duration(median(column)) for column in columns), " or ".join(map(str, ran))
