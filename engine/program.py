"""A flat graph resolved against a registry: every literal parsed, every link checked, in an order that can run."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import networkx as nx

from engine.digest import encode
from engine.errors import GraphError, Problem
from engine.expand import expand
from engine.file import File
from engine.flat import MAX_NODES, Cell, Flat, FlatNode, Link, Linked, Swept
from engine.graph import Graph, judge_anew, suggest
from engine.node import OUT, Input, NodeDef
from engine.param import REQUIRED, Fresh, Param, Parsed
from engine.registry import Registry
from engine.socket import Float, Int, Socket

OPEN = object()
"""Stands for an argument whose value is not known yet, where a graph is only checked."""


class Port(NamedTuple):
    """An output: index of the step, index of the output."""

    step: int
    output: int


@dataclass(frozen=True, slots=True)
class Source:
    """What one name of a step's inputs is linked to; `param` is set where the link stands for a parameter."""

    name: str
    ports: tuple[Port, ...]
    many: bool = False
    param: Param | None = None
    prefix: bytes = b""


@dataclass(frozen=True, eq=False)
class Step:
    """One node that can run. `argument` is the value of an open socket that the caller bound."""

    id: str
    definition: NodeDef
    values: Mapping[str, Any] = field(default_factory=dict)
    canonical: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[type[File], str]] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    argument: Socket | None = None

    @cached_property
    def head(self) -> bytes:
        """The part of the key that does not depend on inputs and files."""
        outputs = [[port, socket.__name__] for port, socket in self.definition.outputs.items()]
        return encode([self.definition.pack, self.definition.type, self.definition.version, outputs, self.canonical])

    @cached_property
    def needs(self) -> tuple[Port, ...]:
        """The outputs that the step depends on, each once."""
        return tuple(dict.fromkeys(port for source in self.sources for port in source.ports))


@dataclass(frozen=True)
class Program:
    """Steps in topological order, where the outputs are, and what a sweep made of them."""

    steps: Sequence[Step]
    outputs: Mapping[str, Port]
    index: Mapping[str, int]
    swept: Mapping[str, Swept] = field(default_factory=dict)

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For each step, the steps that link to it."""
        found: list[list[int]] = [[] for _ in self.steps]
        for position, step in enumerate(self.steps):
            for number in {port.step for source in step.sources for port in source.ports}:
                found[number].append(position)
        return found

    def needs(self, step: Step) -> tuple[str, ...]:
        """Ids of the nodes that a step links to, each once."""
        return tuple(dict.fromkeys(self.steps[port.step].id for port in step.needs))

    def ancestors(self, wanted: Iterable[Port]) -> list[int]:
        """The steps that the wanted outputs depend on, in topological order."""
        found = {port.step for port in wanted}
        for position in range(len(self.steps) - 1, -1, -1):
            if position in found:
                found.update(port.step for source in self.steps[position].sources for port in source.ports)
        return sorted(found)

    @cached_property
    def unsettled(self) -> list[tuple[str, str, Fresh]]:
        """(node, parameter, how to draw) for every literal that asks for a fresh random number."""
        return [
            (step.id, name, fresh)
            for step in self.steps
            for name, value in step.values.items()
            if (fresh := step.definition.params[name].fresh) is not None and value == fresh.when
        ]

    def wanted(self, names: Iterable[str] | None) -> dict[str, Port]:
        """The ports of these outputs, by default of all; a batch stands for its pictures. Raises GraphError."""
        if names is None:
            return dict(self.outputs)
        found = [(self.swept[name].pictures if name in self.swept else ()) or (name,) for name in names]
        return {name: self.port(name) for listed in found for name in listed}

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """Every cell that can be asked for: as `node.port`, and as one of the pictures of a batch."""
        links = {cell.link: cell for swept in self.swept.values() for cell in swept.cells}
        batches = [zip(swept.pictures, swept.cells, strict=True) for swept in self.swept.values() if swept.pictures]
        return links | {name: cell for batch in batches for name, cell in batch}

    def port(self, name: str) -> Port:
        """An output by name: one of the graph's outputs, or `node` or `node.port`. Raises GraphError."""
        if name in self.outputs:
            return self.outputs[name]
        node, _, port = name.rpartition(".") if "." in name else (name, "", "")
        position = self.index.get(node)
        if position is None:
            hint = suggest(name, [*self.outputs, *self.index])
            raise GraphError([Problem(name, f"neither an output of the graph nor a node{hint}", "unknown_output")])
        ports = self.steps[position].definition.outputs
        if not port:
            port = next(iter(ports)) if len(ports) == 1 else OUT
        if port not in ports:
            raise GraphError([Problem(name, f"{node} has the outputs {', '.join(ports)}", "unknown_output")])
        return Port(position, list(ports).index(port))

    def edited(self, changes: Mapping[str, Mapping[str, Any]]) -> "Program":
        """The same program with other literals. Raises GraphError."""
        problems: list[Problem] = []
        steps = list(self.steps)
        for node, params in changes.items():
            position = self.index[node]
            step = steps[position]
            parsed = {name: _literal(step.definition, node, name, raw, problems) for name, raw in params.items()}
            values, canonical, files = dict(step.values), dict(step.canonical), dict(step.files)
            for name, value in parsed.items():
                _store(step.definition.params[name], value, values, canonical, files)
            steps[position] = replace(step, values=values, canonical=canonical, files=files)
        if problems:
            raise GraphError(problems)
        return replace(self, steps=steps)

    def editable(self, changes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether `changes` concern literals alone."""
        return all(
            node in self.index
            and all(name in self.steps[self.index[node]].definition.params for name in params)
            and not any(source.name in params for source in self.steps[self.index[node]].sources)
            for node, params in changes.items()
        )


def compile_graph(graph: Graph, registry: Registry, arguments: Mapping[str, Socket] | None = None) -> Program:
    """Expand and check a graph. Raises GraphError with every problem found."""
    program, problems = _compile(graph, registry, arguments or {})
    if problems or program is None:
        raise GraphError(problems)
    return program


def validate(graph: Graph, registry: Registry, arguments: Collection[str] = ()) -> list[Problem]:
    """Everything that is wrong with a graph; open arguments are no problem where they are listed."""
    return _compile(graph, registry, dict.fromkeys(arguments, OPEN))[1]


def _compile(graph: Graph, registry: Registry, arguments: Mapping[str, object]) -> tuple[Program | None, list[Problem]]:
    judge_anew()
    problems: list[Problem] = []
    for name in arguments:
        if name not in graph.document.arguments:
            message = f"the graph has no argument {name!r}{suggest(name, graph.document.arguments)}"
            problems.append(Problem(f"arguments.{name}", message, "unknown_name"))
    flat = expand(graph, registry, problems, bound=arguments)
    program = _Compiler(flat, registry, arguments, problems).program()
    return program, list(dict.fromkeys(problems))


class _Compiler:
    def __init__(
        self, flat: Flat, registry: Registry, arguments: Mapping[str, object], problems: list[Problem]
    ) -> None:
        self.flat = flat
        self.registry = registry
        self.arguments = arguments
        self.problems = problems
        self.definitions = {name: made for name, node in flat.nodes.items() if (made := self._definition(name, node))}
        for name, type_ in flat.arguments.items():
            self._open(name, type_)

    def program(self) -> Program | None:
        """The program, or None where problems were found."""
        if len(self.flat.nodes) > MAX_NODES:
            self._complain("nodes", f"{len(self.flat.nodes)} nodes, at most {MAX_NODES} are allowed", "too_many_nodes")
            return None
        checked = {name: self._check(name, node) for name, node in self.flat.nodes.items() if name in self.definitions}
        for name, link in self.flat.outputs.items():
            self._port(link, f"outputs.{name}")
        order = self._order()
        if self.problems or order is None:
            return None
        names = [name for name in order if name in self.definitions]
        index = {name: position for position, name in enumerate(names)}
        steps = [self._step(name, checked.get(name), index) for name in names]
        outputs = {name: self._located(link, index) for name, link in self.flat.outputs.items()}
        return Program(steps, outputs, index, self.flat.swept)

    def _definition(self, name: str, node: FlatNode) -> NodeDef | None:
        made = self.registry.get(node.type)
        if made is None:
            hint = suggest(node.type, self.registry)
            self._complain(f"nodes.{name}.type", f'unknown node type "{node.type}"{hint}', "unknown_type")
        return made

    def _open(self, name: str, type_: str) -> None:
        path = f"arguments.{name[1:]}"
        socket = self.registry.sockets.get(type_)
        if socket is None:
            return
        if name[1:] not in self.arguments:
            self._complain(path, f"open: bind it to a value of type {type_}, or give it a default", "unbound")
        value = self.arguments.get(name[1:], OPEN)
        if value is not OPEN and not isinstance(value, socket):
            got = f"{type(value).__module__}.{type(value).__qualname__}"
            self._complain(path, f"expected {type_} ({socket.__module__}), got {got}", "type")
        elif isinstance(value, socket):
            self._check_argument(value, path)
        self.definitions[name] = NodeDef("argument", 1, _nothing, {}, {}, {"out": socket}, named=False)

    def _check_argument(self, value: Socket, path: str) -> None:
        try:
            value.check()
        except ValueError as error:
            self._complain(path, f"a bad {type(value).__name__}: {error}", "value")

    def _check(self, name: str, node: FlatNode) -> "_Checked":
        made = self.definitions[name]
        checked = _Checked()
        for param, raw in node.params.items():
            if param in node.inputs:
                self._complain(
                    f"nodes.{name}.params.{param}", "stands under params and under inputs; keep one", "twice"
                )
            elif (literal := _literal(made, name, param, raw, self.problems)) is not None:
                _store(made.params[param], literal, checked.values, checked.canonical, checked.files)
        for unset in made.params.values():
            if unset.name not in node.params and unset.name not in node.inputs:
                self._default(name, unset, checked)
        for port, linked in node.inputs.items():
            self._check_links(name, made, port, linked)
        for entry in made.inputs.values():
            if entry.name not in node.inputs and not entry.optional:
                message = f"missing: link {'a list of ' if entry.many else ''}{entry.socket.__name__}"
                self._complain(f"nodes.{name}.inputs.{entry.name}", message, "missing")
        return checked

    def _default(self, name: str, param: Param, checked: "_Checked") -> None:
        if param.default is REQUIRED:
            self._complain(f"nodes.{name}.params.{param.name}", "missing: it has no default", "missing")
        else:
            _store(param, param.parsed_default, checked.values, checked.canonical, checked.files)

    def _check_links(self, name: str, made: NodeDef, port: str, linked: Linked) -> None:
        path = f"nodes.{name}.inputs.{port}"
        entry, param = made.inputs.get(port), made.params.get(port)
        if entry is None and param is None:
            hint = suggest(port, [*made.inputs, *made.params])
            self._complain(path, f'{made.type} has no input "{port}"{hint}', "unknown_input")
            return
        if linked.many and not (entry and entry.many):
            self._complain(path, "expected one link, got a list", "type")
            return
        if entry and linked.many and not linked.links:
            self._complain(path, f"expected at least one {entry.socket.__name__}", "missing")
        for number, link in enumerate(linked.links):
            self._check_link(f"{path}[{number}]" if linked.many else path, link, entry, param)

    def _check_link(self, path: str, link: Link, entry: Input | None, param: Param | None) -> None:
        found = self._port(link, path)
        if found is None:
            return
        port, socket = found
        expected = entry.socket if entry else param.scalar if param else None
        said = f"{link.node}.{port}"
        if expected is None:
            self._complain(
                path, f"this parameter cannot be linked; write a literal under params (linked to {said})", "type"
            )
        elif not issubclass(socket, expected) and not (param and expected is Int and issubclass(socket, Float)):
            self._complain(path, f"expected {expected.__name__}, got {socket.__name__} from {said}", "type")

    def _port(self, link: Link, path: str) -> tuple[str, type[Socket]] | None:
        made = self.definitions.get(link.node)
        if made is None:
            if link.node not in self.flat.nodes and link.node not in self.flat.arguments:
                self._complain(path, f"no node {link.node!r}{suggest(link.node, self.flat.nodes)}", "unknown_node")
            return None
        if not link.port and len(made.outputs) == 1:
            return next(iter(made.outputs.items()))
        port = link.port or ("out" if "out" in made.outputs else "")
        if port in made.outputs:
            return port, made.outputs[port]
        listed = ", ".join(f"{link.node}.{name}" for name in made.outputs)
        said = f"{made.type} has no output {port!r}" if port else f"{made.type} has several outputs"
        self._complain(path, f"{said}: write {listed}", "unknown_output")
        return None

    def _order(self) -> list[str] | None:
        net: nx.DiGraph[str] = nx.DiGraph()
        net.add_nodes_from(self.flat.arguments)
        net.add_nodes_from(self.flat.nodes)
        net.add_edges_from(
            (link.node, name)
            for name, node in self.flat.nodes.items()
            for linked in node.inputs.values()
            for link in linked.links
            if link.node in net
        )
        rank = {name: number for number, name in enumerate(net)}
        try:
            return [name for level in nx.topological_generations(net) for name in sorted(level, key=rank.__getitem__)]
        except nx.NetworkXUnfeasible:
            cycle = [edge[0] for edge in nx.find_cycle(net)]
            self._complain(f"nodes.{cycle[0]}", f"a cycle: {' -> '.join([*cycle, cycle[0]])}", "cycle")
            return None

    def _step(self, name: str, checked: "_Checked | None", index: Mapping[str, int]) -> Step:
        made = self.definitions[name]
        if checked is None:
            return Step(name, made, argument=cast("Socket | None", self.arguments.get(name[1:])))
        inputs = self.flat.nodes[name].inputs
        sources = tuple(self._source(made, port, inputs[port], index) for port in sorted(inputs))
        return Step(name, made, checked.values, checked.canonical, checked.files, sources)

    def _source(self, made: NodeDef, port: str, linked: Linked, index: Mapping[str, int]) -> Source:
        ports = tuple(self._located(link, index) for link in linked.links)
        entry = made.inputs.get(port)
        prefix = encode([port, len(ports)])
        return Source(port, ports, entry is not None and entry.many, made.params.get(port), prefix)

    def _located(self, link: Link, index: Mapping[str, int]) -> Port:
        outputs = self.definitions[link.node].outputs
        port = link.port or ("out" if "out" in outputs else next(iter(outputs)))
        return Port(index[link.node], list(outputs).index(port))

    def _complain(self, path: str, message: str, code: str) -> None:
        self.problems.append(Problem(path, message, code))


@dataclass(slots=True)
class _Checked:
    """Literals of one node, parsed."""

    values: dict[str, Any] = field(default_factory=dict)
    canonical: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[type[File], str]] = field(default_factory=dict)


def _literal(made: NodeDef, node: str, name: str, raw: Any, problems: list[Problem]) -> Parsed | None:
    path = f"nodes.{node}.params.{name}"
    param = made.params.get(name)
    if param is None:
        hint = suggest(name, [*made.params, *made.inputs])
        message = f'{made.type} has no parameter "{name}"{hint}'
        if name in made.inputs:
            message = f'"{name}" is an input of {made.type}: link it under inputs'
        problems.append(Problem(path, message, "unknown_parameter"))
        return None
    try:
        return param.parse(raw)
    except ValueError as error:
        problems.append(Problem(path, str(error), "value"))
        return None


def _store(
    param: Param,
    literal: Parsed | None,
    values: dict[str, Any],
    canonical: dict[str, Any],
    files: dict[str, tuple[type[File], str]],
) -> None:
    """Files enter the key by content, so their names stay out of `canonical`, unless the literal counts as well."""
    if literal is None:
        return
    for known in (values, canonical, files):
        known.pop(param.name, None)
    if param.file is not None and literal.value is not None:
        files[param.name] = (param.file, literal.value)
    if param.file is None or param.file.literal_counts or literal.value is None:
        values[param.name] = literal.value
        canonical[param.name] = literal.canonical


def _nothing() -> None:
    """An argument: never called."""


def walk(program: Program) -> Iterator[tuple[Step, Step]]:
    """Every link as (from, to)."""
    for step in program.steps:
        for number in {port.step for source in step.sources for port in source.ports}:
            yield program.steps[number], step
