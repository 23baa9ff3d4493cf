"""A sweep -> one flat graph: every node stands once for each combination of the axes that reach it.

So a node that no axis reaches stands once. Where an output is reached, a gathering node puts its cells on one sheet: x
across, y down, a sheet beside the other for z. Pictures of a batch are outputs of their own, or share a cell.
"""

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engine.errors import GraphError, Problem
from engine.file import File, ModelFile
from engine.flat import MAX_NODES, Cell, Flat, FlatNode, Link, Linked, Place, Swept
from engine.graph import AXES, BATCH, Graph, Sweep, suggest
from engine.node import OUT, NodeDef
from engine.param import REQUIRED, Param
from engine.registry import Registry
from engine.socket import Int, Socket

MAX_CELLS = 10_000
"""A sweep with more cells is refused."""
LAYOUT = ("z", "y", "x", BATCH)
"""Axes in the order in which a sheet shows them, the slowest first."""

Target = tuple[str, str]
"""Flat node and parameter."""

_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")


def swept(graph: Graph, flat: Flat, registry: Registry, problems: list[Problem]) -> Flat:
    """`flat` with every cell of its graph's sweep in it. What is wrong with the sweep is added to `problems`."""
    return _Sweep(graph, flat, registry, problems).flat()


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: its labels, and for each index what it sets and under which names, or puts in the place of a word."""

    name: str
    labels: tuple[str, ...]
    settings: tuple[Mapping[Target, Any], ...]
    names: Mapping[Target, str]
    word: str | None = None

    def __len__(self) -> int:
        return len(self.settings)


@dataclass(frozen=True, slots=True)
class _Count:
    """A whole number that counts up along axes: `strides` says how far for each step on them."""

    name: str
    target: Target
    strides: Mapping[str, int]
    literal: int | None

    def value(self, place: Place, given: int | None) -> int:
        """The number at a place; `given` is what an axis sets there."""
        start = self.literal if given is None else given
        assert start is not None
        return start + sum(stride * place[axis] for axis, stride in self.strides.items())


class _Sweep:
    def __init__(self, graph: Graph, flat: Flat, registry: Registry, problems: list[Problem]) -> None:
        assert graph.document.sweep is not None
        self.source = flat
        self.registry = registry
        self.problems = problems
        self.document: Sweep = graph.document.sweep
        taken: dict[Target, str] = {}
        axes = [self._axis(graph, name, names, taken) for name, names in self.document.axes()]
        self.axes = {axis.name: axis for axis in axes if axis is not None}
        known = dict(self.document.axes())
        for letter in (letter for letter in self.document.labels if letter not in known):
            self._complain(f"labels.{letter}", f"this sweep has no axis {letter}", "unknown_axis")
        self.counts: dict[Target, _Count] = {}
        for name, listed in self.document.vary.items():
            if (count := self._count(graph, name, listed)) is not None:
                self.counts[count.target] = count
        self._judge_words()
        self.reach = self._reach()

    def flat(self) -> Flat:
        """The flat graph with every cell in it."""
        if problem := self._too_large():
            self.problems.append(problem)
            return self.source
        nodes = {
            _cell_id(name, place): self._at(name, node, place)
            for name, node in self.source.nodes.items()
            for place in self._places(self.reach[name], self.order)
        }
        outputs: dict[str, Link] = {}
        found: dict[str, Swept] = {}
        for name, link in self.source.outputs.items():
            if self.reach.get(link.node):
                output = _Output(self, name, link, nodes)
                outputs |= output.links()
                found[name] = output.swept()
            else:
                outputs[name] = link
        return Flat(nodes, outputs, self.source.arguments, found)

    def at(self, link: Link, place: Place) -> Link:
        """What a link of the source leads to at a place."""
        reach = self.reach.get(link.node, frozenset())
        return Link(_cell_id(link.node, {axis: place[axis] for axis in place if axis in reach}), link.port)

    def places(self, reach: frozenset[str]) -> Iterator[Place]:
        """All combinations of the given axes, as a sheet shows them."""
        return self._places(reach, LAYOUT)

    def set(self, place: Place) -> dict[str, Any]:
        """What the sweep sets at a place, by name."""
        axes = [axis for name, axis in self.axes.items() if name in place]
        names = {target: count.name for target, count in self.counts.items()}
        names |= {target: name for axis in axes for target, name in axis.names.items()}
        targets = [target for target in names if self.reach[target[0]] <= place.keys()]
        return {names[target]: self._value(target, place) for target in targets}

    def _value(self, target: Target, place: Place) -> Any:
        """What stands at a parameter at a place that all axes are part of which reach it."""
        axes = [axis for axis in self.axes.values() if target in axis.names]
        given = next((axis.settings[place[axis.name]][target] for axis in axes if axis.word is None), None)
        if target in self.counts:
            return self.counts[target].value(place, given)
        words = [(axis.word, axis.settings[place[axis.name]][target]) for axis in axes if axis.word is not None]
        if not words:
            return given
        text = str(self._literal(target) if given is None else given)
        for word, other in words:
            text = text.replace(word, str(other))
        return text

    def _axis(
        self, graph: Graph, axis: str, names: Mapping[str, Sequence[Any]], taken: dict[Target, str]
    ) -> _Axis | None:
        """One axis; `taken` remembers which name sweeps what, because no parameter can be on two axes."""
        lengths = {len(values) for values in names.values()}
        if len(lengths) != 1:
            self._complain(axis, "names on one axis advance together and need equally many values", "uneven_axis")
            return None
        targets: dict[str, Target] = {}
        word = next((word for name, word in self.document.replace.items() if name == axis), None)
        for name in names:
            if (target := self._target(graph, f"{axis}.{name}", name)) is None:
                continue
            targets[name] = target
            if target in taken and word is None:
                self._complain(
                    f"{axis}.{name}", f"{'.'.join(target)} is swept already, by sweep.{taken[target]}", "twice"
                )
            if word is None:
                taken[target] = f"{axis}.{name}"
        settings = tuple({targets[name]: names[name][i] for name in targets} for i in range(lengths.pop()))
        labels = self._axis_labels(axis, names, targets, title=word is None)
        return _Axis(axis, labels, settings, {target: name for name, target in targets.items()}, word)

    def _axis_labels(
        self, axis: str, names: Mapping[str, Sequence[Any]], targets: Mapping[str, Target], *, title: bool
    ) -> tuple[str, ...]:
        """The labels that the document gives; else the values, behind the first name of the axis if `title` says so."""
        first, values = next(iter(names.items()))
        given = next((listed for name, listed in self.document.labels.items() if name == axis), None)
        if given is not None and len(given) != len(values):
            self._complain(f"labels.{axis}", f"{len(given)} labels for {len(values)} values", "labels")
        elif given is not None:
            return tuple(given)
        param = self._param(targets[first]) if first in targets else None
        shown = (_label(value, param.file if param else None) for value in values)
        return tuple(f"{first}: {label}" if title else label for label in shown)

    def _count(self, graph: Graph, name: str, listed: Sequence[str]) -> _Count | None:
        where = f"vary.{name}"
        target = self._target(graph, where, name)
        known = dict(self.document.axes())
        for axis in listed:
            if axis not in known:
                self._complain(where, f"this sweep has no axis {axis}", "unknown_axis")
        if target is None or not set(listed) <= self.axes.keys():
            return None
        if target in self.counts:
            self._complain(where, f"{'.'.join(target)} counts already, as {self.counts[target].name}", "twice")
            return None
        setting = next((axis for axis in self.axes.values() if target in axis.names and axis.word is None), None)
        if setting is None and self._is_linked(where, target):
            return None
        starts = [values[target] for values in setting.settings] if setting else [self._literal(target)]
        param = self._param(target)
        if param is not None and param.scalar is not Int:
            self._complain(where, f"only whole numbers count up, and {'.'.join(target)} is none", "value")
        if param is None or param.scalar is not Int or not all(type(start) is int for start in starts):
            return None  # a literal of another type is complained of with the node
        strides, stride = {}, 1
        for axis in self.axes:
            if axis in listed:
                strides[axis], stride = stride, stride * len(self.axes[axis])
        return _Count(name, target, strides, None if setting else starts[0])

    def _is_linked(self, where: str, target: Target) -> bool:
        """Whether there is no literal at a parameter to begin from, which is complained of."""
        node, name = self.source.nodes[target[0]], target[1]
        made = self.registry.get(node.type)
        if name in node.inputs:
            self._complain(where, f"{'.'.join(target)} is linked; name the literal that it comes from", "linked")
        elif made is not None and name not in made.params:
            message = f'{made.type} has no parameter "{name}"{suggest(name, made.params)}'
            self._complain(where, message, "unknown_parameter")
        else:
            return False
        return True

    def _literal(self, target: Target) -> Any:
        """What stands at a parameter; None where there is nothing."""
        node, param = self.source.nodes[target[0]], self._param(target)
        if target[1] in node.params or param is None:
            return node.params.get(target[1])
        return None if param.default is REQUIRED else param.parsed_default.value

    def _judge_words(self) -> None:
        """Words stand in texts that something writes there: the literal, or another axis."""
        for axis, word in self.document.replace.items():
            where = f"replace.{axis}"
            if axis not in dict(self.document.axes()):
                self._complain(where, f"this sweep has no axis {axis}", "unknown_axis")
            targets = self.axes[axis].names if axis in self.axes else {}
            if any(self._is_linked(where, target) for target in targets if not self._texts(target, axis)):
                continue
            if targets and not any(word in text for target in targets for text in self._texts(target, axis)):
                self._complain(where, f"{word!r} stands nowhere in {', '.join(targets.values())}", "value")

    def _texts(self, target: Target, but: str) -> list[str]:
        """What the literal and all axes but one write at a parameter."""
        axes = [axis for name, axis in self.axes.items() if name != but and target in axis.names]
        written = [values[target] for axis in axes for values in axis.settings]
        if target[1] not in self.source.nodes[target[0]].inputs:
            written.append(self._literal(target))
        return [text for text in written if isinstance(text, str)]

    def _target(self, graph: Graph, where: str, name: str) -> Target | None:
        try:
            return graph.locate(name)
        except GraphError as error:
            self.problems += [Problem(f"sweep.{where}", item.message, item.code) for item in error.problems]
            return None

    def _param(self, target: Target) -> Param | None:
        node = self.source.nodes.get(target[0])
        made = self.registry.get(node.type) if node else None
        return made.params.get(target[1]) if made else None

    def _too_large(self) -> Problem | None:
        """Said before anything is expanded, so that a short document cannot fill the memory."""
        cells = math.prod(map(len, self.axes.values()))
        if cells > MAX_CELLS:
            return Problem("sweep", f"{cells} cells, at most {MAX_CELLS} are allowed", "too_many_cells")
        nodes = sum(math.prod(len(self.axes[axis]) for axis in reach) for reach in self.reach.values())
        if nodes > MAX_NODES:
            return Problem("sweep", f"{nodes} nodes, at most {MAX_NODES} are allowed", "too_many_nodes")
        return None

    def _reach(self) -> dict[str, frozenset[str]]:
        """Which axes change what a node gives: those that set a parameter of it, and those that reach its inputs."""
        reach = {name: set[str]() for name in self.source.nodes}
        for axis in self.axes.values():
            for node, _ in axis.names:
                reach.get(node, set()).add(axis.name)
        for node, name in self.counts:
            reach.get(node, set()).update(self.counts[node, name].strides)
        consumers: dict[str, list[str]] = {}
        for name, flat in self.source.nodes.items():
            for linked in flat.inputs.values():
                for link in linked.links:
                    consumers.setdefault(link.node, []).append(name)
        pending = [name for name, axes in reach.items() if axes]
        while pending:
            name = pending.pop()
            for consumer in consumers.get(name, ()):
                if not reach[name] <= reach[consumer]:
                    reach[consumer] |= reach[name]
                    pending.append(consumer)
        return {name: frozenset(axes) for name, axes in reach.items()}

    @cached_property
    def targets(self) -> Mapping[str, Collection[str]]:
        """Node -> the parameters of it that the sweep sets."""
        found: dict[str, dict[str, None]] = {}
        for node, param in (*(target for axis in self.axes.values() for target in axis.names), *self.counts):
            found.setdefault(node, {})[param] = None
        return found

    @cached_property
    def order(self) -> Sequence[str]:
        """Axes in the order in which cells are made, the slowest first: models are swapped as rarely as can be."""
        return sorted(LAYOUT, key=self._cost, reverse=True)

    def _cost(self, name: str) -> tuple[int, int]:
        """Models before other files before plain values; of two axes of files, the one that reaches more nodes."""
        axis = self.axes.get(name)
        params = [param for target in (axis.names if axis else ()) if (param := self._param(target)) is not None]
        weight = max((_weight(param.file) for param in params), default=0)
        return weight, sum(name in reach for reach in self.reach.values()) if weight else 0

    def _places(self, reach: frozenset[str], order: Sequence[str]) -> Iterator[Place]:
        axes = [self.axes[name] for name in order if name in reach]
        for indexes in itertools.product(*(range(len(axis)) for axis in axes)):
            yield {axis.name: index for axis, index in zip(axes, indexes, strict=True)}

    def _at(self, name: str, node: FlatNode, place: Place) -> FlatNode:
        params, inputs = dict(node.params), dict(node.inputs)
        for param in self.targets.get(name, ()):
            params[param] = self._value((name, param), place)
            inputs.pop(param, None)
        moved = {
            port: Linked(tuple(self.at(link, place) for link in linked.links), linked.many)
            for port, linked in inputs.items()
        }
        return FlatNode(node.type, params, moved)

    def _complain(self, path: str, message: str, code: str) -> None:
        self.problems.append(Problem(f"sweep.{path}", message, code))


@dataclass(frozen=True)
class _Output:
    """One output that axes reach; the sheets that it needs are added to `nodes`."""

    sweep: _Sweep
    name: str
    link: Link
    nodes: dict[str, FlatNode]

    def links(self) -> dict[str, Link]:
        """The outputs that stand for it: one sheet, or the pictures of a batch."""
        cells = [self.sweep.at(self.link, place) for place in self.sweep.places(self.reach)]
        if self.port is None:
            return {self.name: cells[0]}
        if self.reach == {BATCH}:
            return dict(zip(self.pictures, cells, strict=True))
        if self.gatherer is None:
            message = f"no node puts many {self.port[1].__name__} on one sheet; sweep an output of another type"
            self._complain(message, "not_gatherable")
            return {self.name: cells[0]}
        return {self.name: self._whole()}

    def swept(self) -> Swept:
        """Where its cells and sheets are."""
        port = self.port[0] if self.port else self.link.port
        cells = tuple(
            Cell(self.name, place, f"{self.sweep.at(self.link, place).node}.{port}", self.sweep.set(place))
            for place in self.sweep.places(self.reach)
        )
        sheets = tuple(f"{self._sheet_id(place)}.{OUT}" for place in self._beside()) if self.gatherer else ()
        return Swept(cells, self.pictures if self.port and self.reach == {BATCH} else (), sheets)

    @cached_property
    def reach(self) -> frozenset[str]:
        """The axes that reach it."""
        return self.sweep.reach[self.link.node]

    @cached_property
    def port(self) -> tuple[str, type[Socket]] | None:
        """The name and type of the port; None where they are unknown, of which the compiler complains."""
        made = self.sweep.registry.get(self.sweep.source.nodes[self.link.node].type)
        if made is None:
            return None
        name = self.link.port or (next(iter(made.outputs)) if len(made.outputs) == 1 else OUT)
        return (name, made.outputs[name]) if name in made.outputs else None

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        """Names of the pictures of a batch."""
        names = tuple(f"{self.name}-{number}" for number in range(1, len(self.sweep.axes[BATCH]) + 1))
        for name in names:
            if name in self.sweep.source.outputs:
                self._complain(f"the batch calls a picture of it {name!r}, as another output is called", "twice")
        return names

    @cached_property
    def gatherer(self) -> NodeDef | None:
        """The node that puts what it gives on sheets."""
        return None if self.port is None else self.sweep.registry.gatherer(self.port[1])

    def _whole(self) -> Link:
        """The sheet of everything."""
        if beside := list(self._beside()):
            sheets = [self._plane(self._sheet_id(place), self.reach - {"z"}, place) for place in beside]
            return self._sheet(self._sheet_id({}), sheets, across=self._labels("z"))
        return self._plane(self._sheet_id({}), self.reach, {})

    def _beside(self) -> Iterator[Place]:
        """Where sheets stand beside one another: z moves sheets where x or y make them, and cells where not."""
        if "z" in self.reach and self.reach & {"x", "y"}:
            yield from self.sweep.places(frozenset("z"))

    def _plane(self, node: str, reach: frozenset[str], fixed: Place) -> Link:
        """One sheet of cells: x across, y down; z across where it is alone."""
        cells = [self._cell({**place, **fixed}) for place in self.sweep.places(reach - {BATCH})]
        axis = "z" if "z" in reach else "x"
        return self._sheet(node, cells, across=self._labels(axis), down=self._labels("y") if "y" in reach else None)

    def _cell(self, place: Place) -> Link:
        """What a sheet shows at a place: the value there, or a sheet of its batch."""
        if BATCH not in self.reach:
            return self.sweep.at(self.link, place)
        batch = [self.sweep.at(self.link, {**place, **within}) for within in self.sweep.places(frozenset({BATCH}))]
        return self._add(self._sheet_id(place), batch, {"columns": 0, "x_labels": [], "y_labels": []})

    def _labels(self, axis: str) -> Sequence[str] | None:
        return self.sweep.axes[axis].labels if axis in self.reach else None

    def _sheet(
        self, node: str, links: Sequence[Link], *, across: Sequence[str] | None, down: Sequence[str] | None = None
    ) -> Link:
        """A labelled sheet; None where no axis runs across or down."""
        legend, margin = self.sweep.document.legend, self.sweep.document.margin
        labels = {"x_labels": list(across or ()) if legend else [], "y_labels": list(down or ()) if legend else []}
        params = {"columns": 1 if across is None else len(across), **labels}
        if margin and self.gatherer and "margin" in self.gatherer.params:
            params["margin"] = margin
        return self._add(node, links, params)

    def _add(self, node: str, links: Sequence[Link], params: Mapping[str, Any]) -> Link:
        assert self.gatherer is not None
        entry = next(entry.name for entry in self.gatherer.inputs.values() if entry.many)
        self.nodes[node] = FlatNode(self.gatherer.type, params, {entry: Linked(tuple(links), many=True)})
        return Link(node, "")

    def _sheet_id(self, place: Place) -> str:
        return _cell_id(f"grid:{self.name}", place)

    def _complain(self, message: str, code: str) -> None:
        self.sweep.problems.append(Problem(f"outputs.{self.name}", message, code))


def suffix(place: Place) -> str:
    """A place in a cell's id: `x1,y0`; a batch stands last, as `b2`."""
    return ",".join(f"{axis[0]}{place[axis]}" for axis in AXES if axis in place)


def within(node: str, place: Place) -> str | None:
    """The id that a node has in the graph of one cell alone; None where it belongs to other cells."""
    name, bracket, rest = node.partition("[")
    axes = set(rest.rstrip("]").split(",")) if bracket else set()
    return name if axes <= set(suffix(place).split(",")) else None


def _cell_id(name: str, place: Place) -> str:
    return f"{name}[{suffix(place)}]" if place else name


def _weight(kind: type[File] | None) -> int:
    """What it costs to swap a file of this kind: 2 for a model, 1 for another file, 0 for what is none."""
    if kind is None or kind.literal_counts:
        return 0
    return 2 if issubclass(kind, ModelFile) else 1


def _label(value: Any, kind: type[File] | None = None) -> str:
    """A value in few letters: numbers to eight digits, models without folder and ending."""
    if isinstance(value, list):
        return ", ".join(map(_label, value)) or "none"
    if isinstance(value, str) and _weight(kind) and kind and (kind.suffixes or kind.marks):
        return _SUFFIX.sub("", value.rstrip("/").rpartition("/")[2])
    return f"{value:.8g}" if isinstance(value, float) else str(value)
