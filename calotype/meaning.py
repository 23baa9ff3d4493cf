"""What a name is judged by: its own parameter, and those that it feeds where it leads to a constant."""

from collections.abc import Iterator, Sequence

from engine.engine import Engine
from engine.errors import GraphError
from engine.graph import Graph
from engine.param import Param
from engine.program import Program

CONSTANTS = frozenset({"text", "number", "integer", "boolean"})
"""Nodes that pass on what they are given."""


def parameters(engine: Engine, graph: Graph, name: str) -> Sequence[Param]:
    """The parameter that `name` leads to, then those that are linked to it; nothing where it leads to none.

    Raises GraphError for a name that leads nowhere.
    """
    node, param = graph.locate(name)
    definition = engine.registry.get(graph.node_type(node))
    if definition is None or param not in definition.params:
        return ()
    own = definition.params[param]
    if definition.type not in CONSTANTS:
        return (own,)
    try:
        program = engine.program(graph)
    except GraphError:  # validation says what is wrong with it
        return (own,)
    return (own, *_fed(program, node))


def _fed(program: Program, node: str) -> Iterator[Param]:
    """The parameters that a node is linked to, also in the cells of a sweep."""
    for position, step in enumerate(program.steps):
        if step.id.partition("[")[0] != node:
            continue
        for consumer in program.consumers[position]:
            for source in program.steps[consumer].sources:
                if source.param is not None and any(port.step == position for port in source.ports):
                    yield source.param
