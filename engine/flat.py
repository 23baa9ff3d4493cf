"""What a graph is once it is expanded: nodes with ids, links between them, and where the outputs and cells are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_NODES = 100_000
"""A flat graph with more nodes is refused."""

Place = Mapping[str, int]
"""Where a cell stands: axis -> index on it."""


class Link(NamedTuple):
    """An output of a flat node; the port is empty where the link names none. Open arguments are nodes `$name`."""

    node: str
    port: str


@dataclass(frozen=True, slots=True)
class Linked:
    """What stands under one name of a node's inputs: links, and whether they were written as a list.

    No links where one of them leads nowhere, which has been complained of by then.
    """

    links: tuple[Link, ...]
    many: bool = False


@dataclass(frozen=True, slots=True)
class FlatNode:
    """One node of a flat graph."""

    type: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Linked]


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of an output: where it stands, its value as `node.port`, and what the sweep sets there, by name."""

    output: str
    place: Place
    link: str
    set: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Swept:
    """One output of a swept graph.

    `pictures` are the names of the outputs that stand for it where it is a batch, `sheets` the sheets that it is put
    together from where a z axis reaches it, as `node.port`.
    """

    cells: tuple[Cell, ...]
    pictures: tuple[str, ...] = ()
    sheets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Flat:
    """A graph without subgraphs or sweeps.

    `arguments` are the types of the open sockets that something links to, `swept` the outputs that a sweep reaches, by
    the name that they have in the document.
    """

    nodes: Mapping[str, FlatNode]
    outputs: Mapping[str, Link]
    arguments: Mapping[str, str] = field(default_factory=dict)
    swept: Mapping[str, Swept] = field(default_factory=dict)
