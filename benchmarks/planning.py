"""The engine's own cost per node, by size and shape of the graph, and beside ComfyUI's."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

from benchmarks import cheap
from benchmarks.measure import Answer, Beside, Goal, Row, Sample, duration, medians, timed, typical
from engine.graph import Graph

QUESTION = "What does the engine itself cost per node, and does that grow with the graph?"
SIZES = (10, 100, 1_000, 10_000)
SHAPES: Mapping[str, Callable[[int], dict[str, Any]]] = {"chain": cheap.chain, "fan-out": cheap.fan}
PLAN = "plan, unchanged"
RUN = "run, unchanged"
HEAD, MIDDLE, LAST = "run, head changed", "run, middle changed", "run, last changed"
COLD = "run, cold"
CASES = (PLAN, RUN, HEAD, MIDDLE, LAST, COLD)
ROUNDS = 5
NODES_A_SAMPLE = 2_000
"""Small graphs are measured several times in a row, until about so many nodes have been seen."""

PEER = "ComfyUI 0.3.64 measured on a 2-core machine, 2026-11-22"
PEERS = {RUN: 0.297, HEAD: 0.441, MIDDLE: 0.830, LAST: 0.312, COLD: 0.505}
"""Seconds for a chain of 100 nodes on pictures of 8 x 8 pixels, an HTTP request and a WebSocket included."""

Costs = Mapping[tuple[str, str], Mapping[int, float]]
"""Seconds per node by shape and case, by size."""


def answer() -> Answer:
    costs = {(shape, case): _by_size(document, case) for shape, document in SHAPES.items() for case in CASES}
    return Answer(QUESTION, [*_plans(costs), *_growth(costs), *_against_the_peer()], _details(costs), _notes())


def _plans(costs: Costs) -> Iterator[Row]:
    for shape in SHAPES:
        for size, cost in costs[shape, PLAN].items():
            yield Row(f"{shape} of {size:,}: {PLAN}, per node", cost, goal=Goal(10e-6))


def _growth(costs: Costs) -> Iterator[Row]:
    few, many = SIZES[1], SIZES[-1]
    for (shape, case), found in costs.items():
        beside = Beside(f"{few} nodes", found[few])
        yield Row(f"{shape} of {many:,}: {case}, per node", found[many], beside, Goal(2, of="ratio"))


def _against_the_peer() -> Iterator[Row]:
    document = cheap.pictures(100)
    costs = medians({case: _sample(document, case) for case in PEERS}, ROUNDS)
    for case, cost in costs.items():
        goal = Goal(1 / 100, of="ratio") if case == RUN else None
        yield Row(f"chain of 100 pictures: {case}, per node", cost, Beside("ComfyUI", PEERS[case] / 100), goal)


def _details(costs: Costs) -> list[tuple[str, ...]]:
    rows = [(f"{shape}: {case}", *map(duration, found.values())) for (shape, case), found in costs.items()]
    return [("per node of the graph", *(f"{size:,} nodes" for size in SIZES)), *rows]


def _notes() -> tuple[str, ...]:
    ours = (
        "Per node of the graph, whether or not it ran. A changed run includes the edit; a cold one parsing, checking "
        "and a new engine."
    )
    peer = (
        f"Beside it: {PEER}; pictures of 8 x 8 pixels on both sides. Its figures hold an HTTP request (a chain of 10 "
        "takes 6.6 ms as a whole); ours are taken within the process."
    )
    return ours, peer


def _by_size(document: Callable[[int], dict[str, Any]], case: str) -> dict[int, float]:
    found = medians({str(size): _sample(document(size), case) for size in SIZES}, ROUNDS)
    return {int(size): cost for size, cost in found.items()}


def _sample(document: dict[str, Any], case: str) -> Sample:
    """Seconds per node of one case."""
    size = len(document["nodes"])
    once = _cold(document) if case == COLD else _warm(document, case)
    return lambda: typical(once, max(1, NODES_A_SAMPLE // size)) / size


def _cold(document: dict[str, Any]) -> Sample:
    def once() -> float:
        return timed(lambda: cheap.engine().run(Graph.parse(document)))

    return once


def _warm(document: dict[str, Any], case: str) -> Sample:
    engine, graph, fresh = cheap.engine(), Graph.parse(document), count(1_000_000)
    engine.run(graph)
    size = len(document["nodes"])
    changed = {HEAD: "n0", MIDDLE: f"n{size // 2}", LAST: f"n{size - 1}"}

    def once() -> float:
        if case == PLAN:
            return timed(lambda: engine.plan(graph))
        if case == RUN:
            return timed(lambda: engine.run(graph))
        return timed(lambda: engine.run(graph.set({f"{changed[case]}.value": next(fresh)})))

    return once
