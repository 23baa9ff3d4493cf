"""Cells of a sweep, so that each can be had on its own beside the sheet that gathers them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.graph import Graph
from engine.program import Port, Program

_INDEXES = re.compile(r"\[((?:[xyz]\d+,?)+)\]$")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the link to its value, and what the sweep set there."""

    link: str
    set: Mapping[str, Any]


def cells(graph: Graph, program: Program, output: str) -> list[Cell]:
    """The cells behind an output, in the order of the sheet; none where no axis reaches it."""
    sweep = graph.document.sweep
    if sweep is None or output not in program.outputs:
        return []
    axes = dict(sweep.axes())
    return [Cell(_link(program, port), _set(program, port, axes)) for port in _leaves(program, program.outputs[output])]


def _leaves(program: Program, port: Port) -> Iterator[Port]:
    step = program.steps[port.step]
    if not step.id.startswith("grid:"):
        if _INDEXES.search(step.id):
            yield port
        return
    for source in step.sources:
        for inner in source.ports:
            yield from _leaves(program, inner)


def _link(program: Program, port: Port) -> str:
    step = program.steps[port.step]
    return f"{step.id}.{list(step.definition.outputs)[port.output]}"


def _set(program: Program, port: Port, axes: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, Any]:
    found = _INDEXES.search(program.steps[port.step].id)
    indexes = {part[0]: int(part[1:]) for part in found[1].split(",")} if found else {}
    return {
        name: values[indexes[letter]]
        for letter, axis in axes.items()
        if letter in indexes
        for name, values in axis.items()
    }
