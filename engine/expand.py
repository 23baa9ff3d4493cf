"""Subgraphs and sweeps -> one flat graph: ids such as `first/start` and `paint[x2,y0]`, links between them, no nesting.

In a sweep every node stands once for each combination of the axes that reach it, so a node that no axis reaches stands
once. Where an output is reached, a gathering node puts its cells on one sheet.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.errors import GraphError, Problem
from engine.graph import SUBGRAPH, Argument, Document, Graph, Node, split, suggest
from engine.registry import Registry

MAX_NODES = 100_000
"""A flat graph with more nodes is refused."""
MAX_CELLS = 10_000
"""A sweep with more cells is refused."""


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
class Flat:
    """A graph without subgraphs or sweeps. `arguments` are the types of the open sockets that something links to."""

    nodes: Mapping[str, FlatNode]
    outputs: Mapping[str, Link]
    arguments: Mapping[str, str] = field(default_factory=dict)


def expand(graph: Graph, registry: Registry, problems: list[Problem], bound: Collection[str] = ()) -> Flat:
    """Flatten `graph`. What is wrong with it is added to `problems`; the rest is expanded all the same.

    `bound` names the arguments that the caller gives values for; other arguments fall back to their defaults.
    """
    scope = _Scope(graph, problems, bound=bound)
    scope.take_over()
    scope.check_signature(registry)
    nodes = dict(scope.nodes())
    outputs = {
        name: link
        for name, text in graph.document.outputs.items()
        if (link := scope.resolve(text, f"outputs.{name}")) is not None
    }
    flat = Flat(nodes, outputs, scope.opened)
    if graph.document.sweep is None or not any(graph.document.sweep.axes()):
        return flat
    return _Sweep(graph, flat, registry, problems).flat()


class _Scope:
    """One graph being flattened: knows its prefix, what its parent binds, and the scopes of its subgraphs."""

    def __init__(
        self,
        graph: Graph,
        problems: list[Problem],
        prefix: str = "",
        outer: "tuple[_Scope, str] | None" = None,
        bound: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.document: Document = graph.document
        self.problems = problems
        self.prefix = prefix
        self.outer = outer
        self.bound = bound
        self.opened: dict[str, str] = outer[0].opened if outer else {}
        self.literals: dict[str, dict[str, Any]] = {}
        self.linked: dict[str, dict[str, Linked]] = {}
        self._resolving: set[str] = set()
        self.inner = {
            node: _Scope(subgraph, problems, f"{prefix}{node}/", (self, node))
            for node, subgraph in graph.subgraphs.items()
        }
        if outer and self.document.sweep:
            self._complain(f"nodes.{outer[1]}.graph", "a graph within a graph cannot sweep; sweep in the outermost one")

    def params(self, node: str) -> dict[str, Any]:
        """Literals of a node, with what the parent sets through exposed names."""
        stated = {**self.document.nodes[node].params, **self.literals.get(node, {})}
        return {name: value for name, value in stated.items() if name not in self.linked.get(node, {})}

    def nodes(self) -> Iterator[tuple[str, FlatNode]]:
        """Flat nodes of this graph and of those within."""
        for name, node in self.document.nodes.items():
            if name in self.inner:
                yield from self.inner[name].nodes()
            elif node.type != SUBGRAPH:
                yield f"{self.prefix}{name}", FlatNode(node.type, self.params(name), self._inputs(name, node))

    def check_signature(self, registry: Registry) -> None:
        """Every exposed name leads to a parameter, every argument has a known type, here and in the graphs within."""
        for name, target in self.document.expose.items():
            node, param = target.split(".")
            path = f"{self.prefix}expose.{name}"
            known = self._parameters(node, registry)
            if node not in self.document.nodes:
                self._complain(path, f"no node {node!r}{suggest(node, self.document.nodes)}", "unknown_node")
            elif known is not None and param not in known:
                self._complain(path, f"{node} has no parameter {param!r}{suggest(param, known)}", "unknown_parameter")
        for name, declared in self.document.arguments.items():
            type_ = declared if isinstance(declared, str) else declared.type
            if type_ not in registry.sockets:
                message = f'unknown type "{type_}"{suggest(type_, registry.sockets)}'
                self._complain(f"{self.prefix}arguments.{name}", message, "unknown_type")
        for inner in self.inner.values():
            inner.check_signature(registry)

    def _parameters(self, node: str, registry: Registry) -> Collection[str] | None:
        """Names that may be set on a node; None where its type is unknown."""
        if node in self.inner:
            return self.inner[node].document.expose
        made = registry.get(self.document.nodes[node].type) if node in self.document.nodes else None
        return None if made is None else made.params

    def resolve(self, text: str, path: str) -> Link | None:
        """Follow a link through arguments and outputs of subgraphs to a flat node."""
        if text in self._resolving:
            return self._refuse(path, f"{text!r} leads back to itself")
        self._resolving.add(text)
        try:
            return self._argument(text[1:], path) if text.startswith("$") else self._output(*split(text), path)
        finally:
            self._resolving.discard(text)

    def take_over(self) -> None:
        """Sort what the nodes that hold subgraphs give into arguments, literals and linked parameters, outermost first.

        After all scopes are there, because a link may lead into any of them.
        """
        for name, inner in self.inner.items():
            inner._take(self, name)
            inner.take_over()

    def _take(self, parent: "_Scope", name: str) -> None:
        where = f"nodes.{parent.prefix}{name}"
        links = parent._inputs(name, parent.document.nodes[name], leave=self.document.arguments)
        for param, value in parent.params(name).items():
            path = f"{where}.params.{param}"
            target = self._exposed(param, path, "parameter")
            if param in links:
                self._complain(path, "stands under params and under inputs; keep one", "twice")
            elif target and target[1] in self.literals.get(target[0], {}):
                self._complain(path, f"another exposed name sets {'.'.join(target)} too; keep one", "twice")
            elif target:
                self.literals.setdefault(target[0], {})[target[1]] = value
        for param, given in links.items():
            target = self._exposed(param, f"{where}.inputs.{param}", "argument or parameter")
            known = {**self.literals.get(target[0], {}), **self.linked.get(target[0], {})} if target else {}
            if target and target[1] in known:
                self._complain(f"{where}.inputs.{param}", f"another exposed name sets {'.'.join(target)} too", "twice")
            elif target:
                self.linked.setdefault(target[0], {})[target[1]] = given

    def _exposed(self, name: str, path: str, kind: str) -> list[str] | None:
        target = self.document.expose.get(name)
        if target is None:
            known = [*self.document.expose, *self.document.arguments]
            self._complain(path, f"{self.graph.title()!r} has no {kind} {name!r}{suggest(name, known)}", "unknown_name")
            return None
        return target.split(".")

    def _inputs(self, name: str, node: Node, leave: Collection[str] = ()) -> dict[str, Linked]:
        """What is linked to a node, with what the parent sets through exposed names; `leave` out its arguments."""
        found: dict[str, Linked] = {}
        for port, text in node.inputs.items():
            if port in leave:
                continue
            found[port] = self._linked(text, f"nodes.{self.prefix}{name}.inputs.{port}")
        literal = self.literals.get(name, {})
        return {**{port: links for port, links in found.items() if port not in literal}, **self.linked.get(name, {})}

    def _linked(self, text: str | list[str], path: str) -> Linked:
        many = isinstance(text, list)
        places = {f"{path}[{index}]": item for index, item in enumerate(text)} if many else {path: str(text)}
        links = [self.resolve(item, place) for place, item in places.items()]
        found = tuple(link for link in links if link is not None)
        return Linked(found, many) if len(found) == len(links) else Linked(())

    def _argument(self, name: str, path: str) -> Link | None:
        declared = self.document.arguments.get(name)
        if declared is None:
            return self._refuse(path, f"no argument ${name}{suggest(name, self.document.arguments)}", "unknown_name")
        if self.outer:
            parent, node = self.outer
            bound = parent.document.nodes[node].inputs.get(name)
            if isinstance(bound, list):
                return self._refuse(path, f"argument ${name} takes one link, not a list")
            if bound is not None:
                return parent.resolve(bound, f"nodes.{parent.prefix}{node}.inputs.{name}")
        if isinstance(declared, Argument) and declared.default is not None and name not in self.bound:
            return self.resolve(declared.default, f"{self.prefix}arguments.{name}.default")
        if self.outer:
            parent, node = self.outer
            where = f"nodes.{parent.prefix}{node}.inputs.{name}"
            return self._refuse(where, "missing: link it", "missing")
        self.opened[f"${name}"] = declared.type if isinstance(declared, Argument) else declared
        return Link(f"${name}", "")

    def _output(self, node: str, port: str, path: str) -> Link | None:
        if node not in self.document.nodes:
            hint = suggest(node, self.document.nodes)
            return self._refuse(path, f"no node {node!r}{hint}", "unknown_node")
        if self.document.nodes[node].type != SUBGRAPH:
            return Link(f"{self.prefix}{node}", port)
        return self.inner[node].output(port, path) if node in self.inner else None

    def output(self, port: str, path: str) -> Link | None:
        """The flat node behind an output of this graph."""
        outputs = self.document.outputs
        if not port and len(outputs) == 1:
            port = next(iter(outputs))
        if port not in outputs:
            listed = ", ".join(outputs) or "none"
            said = f"no output {port!r}" if port else "say which output"
            return self._refuse(path, f"{said} of {self.graph.title()!r} (it has {listed})", "unknown_output")
        return self.resolve(outputs[port], f"{self.prefix}outputs.{port}")

    def _refuse(self, path: str, message: str, code: str = "invalid") -> Link | None:
        self._complain(path, message, code)
        return None

    def _complain(self, path: str, message: str, code: str = "invalid") -> None:
        self.problems.append(Problem(path, message, code))


Cell = Mapping[str, int]
"""Axis letter -> index on that axis."""


@dataclass(frozen=True, slots=True)
class _Axis:
    letter: str
    labels: tuple[str, ...]
    settings: tuple[Mapping[tuple[str, str], Any], ...]
    """For each index, (flat node, parameter) -> value."""


class _Sweep:
    def __init__(self, graph: Graph, flat: Flat, registry: Registry, problems: list[Problem]) -> None:
        self.source = flat
        self.registry = registry
        self.problems = problems
        assert graph.document.sweep is not None
        taken: dict[tuple[str, str], str] = {}
        axes = [_axis(graph, letter, names, taken, problems) for letter, names in graph.document.sweep.axes()]
        self.axes = [axis for axis in axes if axis is not None]
        self.reach = self._reach()

    def flat(self) -> Flat:
        """The flat graph with every cell in it."""
        if problem := self._too_large():
            self.problems.append(problem)
            return self.source
        nodes = {
            _cell_id(name, cell): self._at(name, node, cell)
            for name, node in self.source.nodes.items()
            for cell in self._cells(self.reach[name])
        }
        outputs = {name: self._gather(name, link, nodes) for name, link in self.source.outputs.items()}
        return Flat(nodes, outputs, self.source.arguments)

    def _too_large(self) -> Problem | None:
        """Said before anything is expanded, so that a short document cannot fill the memory."""
        lengths = {axis.letter: len(axis.labels) for axis in self.axes}
        cells = math.prod(lengths.values())
        if cells > MAX_CELLS:
            return Problem("sweep", f"{cells} cells, at most {MAX_CELLS} are allowed", "too_many_cells")
        nodes = sum(math.prod(lengths[letter] for letter in reach) for reach in self.reach.values())
        if nodes > MAX_NODES:
            return Problem("sweep", f"{nodes} nodes, at most {MAX_NODES} are allowed", "too_many_nodes")
        return None

    def _reach(self) -> dict[str, frozenset[str]]:
        """Which axes change what a node gives: those that set a parameter of it, and those that reach its inputs."""
        reach = {name: set[str]() for name in self.source.nodes}
        for axis in self.axes:
            for target, _ in (key for setting in axis.settings for key in setting):
                reach.get(target, set()).add(axis.letter)
        consumers: dict[str, list[str]] = {}
        for name, node in self.source.nodes.items():
            for linked in node.inputs.values():
                for link in linked.links:
                    consumers.setdefault(link.node, []).append(name)
        pending = [name for name, letters in reach.items() if letters]
        while pending:
            name = pending.pop()
            for consumer in consumers.get(name, ()):
                if not reach[name] <= reach[consumer]:
                    reach[consumer] |= reach[name]
                    pending.append(consumer)
        return {name: frozenset(letters) for name, letters in reach.items()}

    def _cells(self, letters: frozenset[str]) -> Iterator[Cell]:
        """All combinations of the given axes; z outermost, then y, then x."""
        axes = [axis for axis in reversed(self.axes) if axis.letter in letters]
        for indexes in itertools.product(*(range(len(axis.labels)) for axis in axes)):
            yield {axis.letter: index for axis, index in zip(axes, indexes, strict=True)}

    def _at(self, name: str, node: FlatNode, cell: Cell) -> FlatNode:
        params, inputs = dict(node.params), dict(node.inputs)
        for axis in self.axes:
            if axis.letter in cell:
                for (target, param), value in axis.settings[cell[axis.letter]].items():
                    if target == name:
                        params[param] = value
                        inputs.pop(param, None)
        moved = {
            port: Linked(tuple(self._link(link, cell) for link in linked.links), linked.many)
            for port, linked in inputs.items()
        }
        return FlatNode(node.type, params, moved)

    def _link(self, link: Link, cell: Cell) -> Link:
        reach = self.reach.get(link.node, frozenset())
        return Link(_cell_id(link.node, {axis: cell[axis] for axis in cell if axis in reach}), link.port)

    def _gather(self, name: str, link: Link, nodes: dict[str, FlatNode]) -> Link:
        reach = self.reach.get(link.node, frozenset())
        if not reach:
            return link
        gatherer = self._gatherer(name, link)
        if gatherer is None:
            return self._link(link, dict.fromkeys(reach, 0))
        if "z" not in reach:
            return self._sheet(f"grid:{name}", link, reach, fixed={}, gatherer=gatherer, nodes=nodes)
        sheets = [
            self._sheet(
                f"grid:{name}[{_suffix(cell)}]", link, reach - {"z"}, fixed=cell, gatherer=gatherer, nodes=nodes
            )
            for cell in self._cells(frozenset("z"))
        ]
        labels = self._labels("z", reach)
        params = {"columns": len(sheets), "x_labels": labels, "y_labels": []}
        nodes[f"grid:{name}"] = FlatNode(gatherer[0], params, {gatherer[1]: Linked(tuple(sheets), many=True)})
        return Link(f"grid:{name}", "")

    def _sheet(
        self,
        node: str,
        link: Link,
        letters: frozenset[str],
        *,
        fixed: Cell,
        gatherer: tuple[str, str],
        nodes: dict[str, FlatNode],
    ) -> Link:
        columns = self._labels("x", letters)
        links = tuple(self._link(link, {**cell, **fixed}) for cell in self._cells(letters))
        params = {"columns": max(1, len(columns)), "x_labels": columns, "y_labels": self._labels("y", letters)}
        nodes[node] = FlatNode(gatherer[0], params, {gatherer[1]: Linked(links, many=True)})
        return Link(node, "")

    def _labels(self, letter: str, letters: frozenset[str]) -> list[str]:
        return [label for axis in self.axes if axis.letter == letter and letter in letters for label in axis.labels]

    def _gatherer(self, name: str, link: Link) -> tuple[str, str] | None:
        """Type of the gathering node, and the name of its list input."""
        made = self.registry.get(self.source.nodes[link.node].type) if link.node in self.source.nodes else None
        socket = None if made is None else made.outputs.get(link.port or next(iter(made.outputs)))
        if socket is None:
            return None
        gatherer = self.registry.gatherer(socket)
        if gatherer is None:
            message = f"no node puts many {socket.__name__} on one sheet; sweep an output of another type"
            self.problems.append(Problem(f"outputs.{name}", message, "not_gatherable"))
            return None
        return gatherer.type, next(entry.name for entry in gatherer.inputs.values() if entry.many)


def _axis(
    graph: Graph,
    letter: str,
    names: Mapping[str, Sequence[Any]],
    taken: dict[tuple[str, str], str],
    problems: list[Problem],
) -> _Axis | None:
    """One axis; `taken` remembers which name sweeps what, because no parameter can be on two axes."""
    lengths = {len(values) for values in names.values()}
    if len(lengths) != 1:
        message = "names on one axis advance together and need equally many values"
        problems.append(Problem(f"sweep.{letter}", message, "uneven_axis"))
        return None
    targets: dict[str, tuple[str, str]] = {}
    for name in names:
        try:
            targets[name] = graph.locate(name)
        except GraphError as error:
            problems += [Problem(f"sweep.{letter}.{name}", item.message, item.code) for item in error.problems]
            continue
        if targets[name] in taken:
            message = f"{'.'.join(targets[name])} is swept already, by {taken[targets[name]]}"
            problems.append(Problem(f"sweep.{letter}.{name}", message, "twice"))
        taken[targets[name]] = f"sweep.{letter}.{name}"
    settings = tuple({targets[name]: names[name][i] for name in targets} for i in range(lengths.pop()))
    first = next(iter(names))
    labels = tuple(f"{first}: {_label(value)}" for value in names[first])
    return _Axis(letter, labels, settings)


def _label(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _suffix(cell: Cell) -> str:
    return ",".join(f"{letter}{cell[letter]}" for letter in sorted(cell))


def _cell_id(name: str, cell: Cell) -> str:
    return f"{name}[{_suffix(cell)}]" if cell else name
