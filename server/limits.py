"""Limits on what a graph may ask for: judged in the document, in the literals, and once more when a node is called."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import Problem
from engine.graph import Graph
from engine.node import NodeDef
from engine.program import Program
from engine.run import Bounds
from engine.socket import Socket
from server.problem import Refusal
from server.settings import Limits

COUNTED = {"steps": "steps", "count": "batch"}
"""Parameters of any node, and the limit on each."""
ENTRIES = 16
"""Parameters and links that a node may have, on average, when there are as many nodes as allowed."""


class LimitExceeded(ValueError):
    """A call asks for more than is allowed; `kind` is the kind of refusal it amounts to."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Allowance(Bounds):
    """What calls may ask for, and what they may give."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def before(self, definition: NodeDef, arguments: Mapping[str, Any]) -> None:
        """Judge numbers of steps and pictures and the size of a canvas, wherever they come from."""
        for exceeded in self.excesses(arguments):
            raise exceeded

    def after(self, definition: NodeDef, outputs: Sequence[Socket]) -> None:
        """Judge the size of the pictures that a node gave."""
        for value in outputs:
            size, data = getattr(value, "size", None), getattr(value, "data", None)
            if isinstance(size, tuple) and data is not None:
                self._judge("pixels", size[0] * size[1], f"a picture of {size[0]} x {size[1]} px")
                self._judge("batch", len(data), f"a batch of {len(data)} pictures")

    def excesses(self, values: Mapping[str, Any]) -> Iterator[LimitExceeded]:
        """What is too much among the parameters of one call."""
        for name, limit in COUNTED.items():
            value = values.get(name)
            if isinstance(value, int) and value > getattr(self.limits, limit):
                yield self._exceeded(limit, f"{value} {name}")
        width, height = values.get("width"), values.get("height")
        if isinstance(width, int) and isinstance(height, int) and width * height > self.limits.pixels:
            yield self._exceeded("pixels", f"{width} x {height} px")

    def _judge(self, limit: str, amount: int, what: str) -> None:
        if amount > getattr(self.limits, limit):
            raise self._exceeded(limit, what)

    def _exceeded(self, limit: str, what: str) -> LimitExceeded:
        allowed = getattr(self.limits, limit)
        return LimitExceeded(f"limit-{limit}", f"{what}: at most {allowed} are allowed (limits.{limit})")


def judge_size(raw: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a document with too many entries before it is parsed: to say what is wrong with each takes long."""
    for part in ("nodes", "expose", "arguments", "outputs"):
        if _size(raw.get(part)) > limits.nodes:
            raise _refusal("limit-nodes", part, f"{_size(raw[part])} entries", limits.nodes)
    entries = sum(map(_entries, raw["nodes"].values())) if isinstance(raw.get("nodes"), Mapping) else 0
    if entries > ENTRIES * limits.nodes:
        allowed = f"{ENTRIES} for each of {limits.nodes} nodes"
        problem = Problem("nodes", f"{entries} parameters and links: at most {allowed} (limits.nodes)", "limit-nodes")
        raise Refusal("limit-nodes", str(problem), problems=[problem], setting="limits.nodes")


def _entries(node: object) -> int:
    """Parameters and links of a node."""
    if not isinstance(node, Mapping):
        return 1
    inputs = node.get("inputs")
    links = sum(map(_size, inputs.values())) if isinstance(inputs, Mapping) else 0
    return _size(node.get("params")) + _size(inputs) + links


def _size(value: object) -> int:
    return len(value) if isinstance(value, Mapping | list) else 0


def judge_document(graph: Graph, limits: Limits) -> None:
    """Refuse a graph that is too large or too deep, before anything is expanded."""
    depth, nodes = _extent(graph)
    if depth > limits.depth:
        raise _refusal("limit-depth", "nodes", f"{depth} graphs within graphs", limits.depth)
    sweep = graph.document.sweep
    lengths = [max(map(len, axis.values())) for _, axis in sweep.axes()] if sweep else []
    if math.prod(lengths) > limits.cells:
        raise _refusal("limit-sweep", "sweep", f"{math.prod(lengths)} cells", limits.cells, "cells")
    if nodes > limits.nodes:
        raise _refusal("limit-nodes", "nodes", f"{nodes} nodes", limits.nodes)


def judge_program(program: Program, limits: Limits) -> None:
    """Refuse an expanded graph with too many nodes, or with literals that ask for too much."""
    if len(program.steps) > limits.nodes:
        raise _refusal("limit-nodes", "nodes", f"{len(program.steps)} nodes, expanded", limits.nodes)
    allowance = Allowance(limits)
    found = [(step.id, exceeded) for step in program.steps for exceeded in allowance.excesses(step.values)]
    if found:
        problems = [Problem(f"nodes.{node}", str(exceeded), exceeded.kind) for node, exceeded in found]
        kind = found[0][1].kind
        raise Refusal(kind, str(problems[0]), problems=problems, setting=_setting(kind))


def _extent(graph: Graph, depth: int = 0) -> tuple[int, int]:
    """How deep graphs are nested, and how many nodes they have."""
    inner = [_extent(found, depth + 1) for found in graph.subgraphs.values()]
    nodes = len(graph.document.nodes) - len(inner) + sum(count for _, count in inner)
    return max([depth, *(deepest for deepest, _ in inner)]), nodes


def _refusal(kind: str, path: str, what: str, allowed: int, setting: str | None = None) -> Refusal:
    setting = f"limits.{setting}" if setting else _setting(kind)
    problem = Problem(path, f"{what}: at most {allowed} are allowed ({setting})", kind)
    return Refusal(kind, str(problem), problems=[problem], setting=setting)


def _setting(kind: str) -> str:
    return f"limits.{kind.removeprefix('limit-')}"
