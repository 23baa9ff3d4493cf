"""Sweeps and batches from the command line: `NAME=VALUES` -> axes of a graph, by the types of its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calotype.labels import hint
from calotype.meaning import parameters
from calotype.values import check_count, listed, number_range, parted, reordered, whole_range
from engine.engine import Engine
from engine.errors import FileError, GraphError, Problem
from engine.file import File
from engine.graph import AXES, BATCH, Graph
from engine.param import Param
from engine.program import Program
from engine.socket import Float, Int, Text

SIZE = ("width", "height")
WILD = frozenset("*?[")


@dataclass(frozen=True)
class Axis:
    """One axis: names and their values, labels where the values themselves are none, and a word that they replace."""

    names: Mapping[str, Sequence[Any]]
    labels: Sequence[str] = ()
    word: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a person asks for: axes by letter, what counts up along them, and how the sheet looks."""

    axes: Mapping[str, str] = field(default_factory=dict)
    vary: Sequence[str] = ()
    margin: int | None = None
    legend: bool | None = None


def swept(engine: Engine, graph: Graph, wanted: Wanted) -> Graph:
    """The graph with a sweep as asked for, its fresh seeds drawn. Raises GraphError.

    Where no axis of a sheet is asked for, those of the graph's own sweep are kept.
    """
    own = graph.dump().get("sweep", {})
    settled = engine.settle(graph.replace(sweep=None))
    reader = _Reader(engine, settled)
    axes = {name: reader.axis(name, text) for name, text in wanted.axes.items()}
    sweep: dict[str, Any] = {} if axes.keys() - {BATCH} else own
    sweep |= {name: axis.names for name, axis in axes.items()}
    labels = {name: list(axis.labels) for name, axis in axes.items() if axis.labels and name != BATCH}
    words = {name: axis.word for name, axis in axes.items() if axis.word}
    sweep["replace"] = {**sweep.get("replace", {}), **words}
    sweep["labels"] = {**sweep.get("labels", {}), **labels}
    sweep["vary"] = {**sweep.get("vary", {}), **dict(_counting(text, sweep) for text in wanted.vary)}
    if wanted.axes.get(BATCH, "").isdigit() and BATCH in sweep["vary"].get("seed", ()):
        sweep[BATCH] = {"seed": [sweep[BATCH]["seed"][0]] * len(sweep[BATCH]["seed"])}
    if reader.problems:
        raise GraphError(reader.problems)
    look = {"margin": wanted.margin, "legend": wanted.legend}
    sweep |= {name: value for name, value in look.items() if value is not None}
    return engine.settle(settled.replace(sweep=sweep))


def everything(program: Program, *, cells: bool, sheets: bool) -> list[str]:
    """The outputs of a sweep, with their cells, and with the sheets they are put together from."""
    swept = [found for found in program.swept.values() if not found.pictures]
    links = [cell.link for found in swept if cells for cell in found.cells]
    return [*program.outputs, *links, *(sheet for found in swept if sheets for sheet in found.sheets)]


def _counting(text: str, sweep: Mapping[str, Any]) -> tuple[str, list[str]]:
    """`seed` counts along all axes, `seed=x,y` along these."""
    name, equals, axes = text.partition("=")
    return name.strip(), [axis.strip() for axis in axes.split(",")] if equals else [key for key in AXES if key in sweep]


class _Reader:
    """Reads axes of a graph; what is wrong with them is added to `problems`."""

    def __init__(self, engine: Engine, graph: Graph) -> None:
        self.engine = engine
        self.graph = graph
        self.program = engine.program(graph)
        self.problems: list[Problem] = []

    def axis(self, letter: str, text: str) -> Axis:
        """One axis from `NAME=VALUES`, or a batch from the number of its pictures."""
        name, equals, values = (part.strip() for part in text.partition("="))
        path = f"--{letter} {name}"
        try:
            if letter == BATCH and text.isdigit():
                return self._seeds(int(text))
            if not equals:
                raise ValueError("expected NAME=VALUE,VALUE,...")
            return self._read(name, values)
        except GraphError as error:
            self.problems += [Problem(path, item.message, item.code) for item in error.problems]
        except (ValueError, FileError) as error:
            self.problems.append(Problem(path, str(error), "value"))
        return Axis({name: [None]})

    def _read(self, name: str, text: str) -> Axis:
        name, _, kind = name.partition(":")
        if kind:
            return self._words(name, kind, listed(text))
        if name == "size" and name not in self.graph.exposed() and set(SIZE) <= set(self.graph.exposed()):
            return self._joined(name, SIZE, listed(text))
        names = [part.strip() for part in name.split("+")]
        if len(names) > 1:
            return self._joined(name, names, listed(text))
        return Axis({name: self._values(name, text)})

    def _seeds(self, count: int) -> Axis:
        """`count` pictures whose seeds count up from the graph's own."""
        if "seed" not in self.graph.exposed():
            raise ValueError("the graph exposes no seed; say what the pictures differ in: --batch NAME=VALUE,VALUE,...")
        check_count(str(count), count)
        first = self._literal("seed")
        return Axis({"seed": [first + number for number in range(count)]})

    def _words(self, name: str, kind: str, words: list[str]) -> Axis:
        if len(words) < 2:
            raise ValueError("expected the word that stands there, and at least one more")
        if kind == "order":
            text = self._literal(name)
            if not isinstance(text, str):
                raise ValueError(f"{text} holds no words to put into another order")
            orders = reordered(text, words)
            return Axis({name: [text for _, text in orders]}, [", ".join(order) for order, _ in orders])
        if kind != "replace":
            raise ValueError(f"expected {name}:replace or {name}:order, got {name}:{kind}")
        also = ["negative"] if name == "prompt" and "negative" in self.graph.exposed() else []
        return Axis(dict.fromkeys([name, *also], words), word=words[0])

    def _joined(self, title: str, names: Sequence[str], texts: Sequence[str]) -> Axis:
        """Names that advance together, from values such as `512x768` and `euler:karras`."""
        if not texts:
            raise ValueError("no values")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        labels = []
        for text in texts:
            rows = self._rows(names, parted(text, len(names)))
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    columns[name].append(self._judged(name, value))
                labels.append(f"{title}: {text}" if len(rows) == 1 else f"{title}: {Path(row[0]).stem}")
        return Axis(columns, labels)

    def _rows(self, names: Sequence[str], parts: Sequence[str]) -> list[tuple[str, ...]]:
        """One value for each name; where the first is a pattern, one row for each file that it finds."""
        first = self._param(names[0])
        if first is None or not _is_pattern(first, parts[0]):
            return [tuple(parts)]
        return [
            (file, *(self._beside(file, part) if part.endswith("/") else part for part in parts[1:]))
            for file in self._matching(first, parts[0])
        ]

    def _values(self, name: str, text: str) -> list[Any]:
        param = self._param(name)
        if param is None:
            return list(listed(text))
        found = [value for part in listed(text) for value in self._value(param, part)]
        if not found:
            raise ValueError("no values")
        return [self._judged(name, value) for value in found]

    def _value(self, param: Param, text: str) -> list[Any]:
        """What one entry of a list stands for."""
        if _takes_list(param):
            return [[text] if text else []]
        if not text:
            return []
        if param.scalar is Int and (numbers := whole_range(text)) is not None:
            return numbers
        if param.scalar is Float and (decimals := number_range(text)) is not None:
            return decimals
        if text == "*" and (choices := self._choices(param)):
            return choices
        return list(self._matching(param, text)) if _is_pattern(param, text) else [param.parse_text(text)]

    def _choices(self, param: Param) -> list[Any]:
        """Everything that a parameter may be, where there is a list of it."""
        if param.file is not None:
            return sorted(self.engine.files.names(param.file))
        branches = [param.schema, *param.schema.get("anyOf", ())]
        if any(branch.get("type") == "boolean" for branch in branches):
            return [False, True]
        return [choice for branch in branches for choice in branch.get("enum", ())]

    def _matching(self, param: Param, pattern: str) -> list[str]:
        """The files that match a pattern, by name, from the first folder that has any."""
        try:
            path = Path(pattern).expanduser()
        except RuntimeError as error:
            raise ValueError(f"{pattern!r}: {error}") from error
        roots = [Path(path.anchor)] if path.is_absolute() else [*self.engine.files.roots]
        relative = str(path.relative_to(path.anchor))
        for root in roots:
            folders = param.file is not None and param.file.marks
            found = sorted(each for each in root.glob(relative) if folders or each.is_file())
            if found:
                return [str(each if path.is_absolute() else each.relative_to(root)) for each in found]
        raise ValueError(f"no file matches {pattern!r} (searched {', '.join(map(str, roots))})")

    def _beside(self, file: str, folder: str) -> str:
        """The file of the same name, but for its ending, in a folder."""
        kind = Param("file", File)
        try:
            return self._matching(kind, f"{folder}{_literally(Path(file).stem)}.*")[0]
        except ValueError:
            raise ValueError(f"{folder} holds nothing that is called as {file!r} is") from None

    def _judged(self, name: str, value: Any) -> Any:
        """A value, which is refused where its parameter does not take it."""
        param = self._param(name)
        value = param.parse_text(value) if param is not None and isinstance(value, str) else value
        if param is not None:
            try:
                param.parse(value)
            except ValueError as error:
                raise ValueError(f"{error}{hint(param, value)}") from None
        return value

    def _param(self, name: str) -> Param | None:
        """The parameter that a name leads to; None where validation has something to say of it."""
        own, *fed = parameters(self.engine, self.graph, name) or (None,)
        return next((param for param in fed if own and own.scalar is Text and param.scalar is Text), own)

    def _literal(self, name: str) -> Any:
        """What stands at a name."""
        node, param = self.graph.locate(name)
        step = self.program.steps[self.program.index[node]]
        if param in step.files:
            return step.files[param][1]
        if param not in step.values:
            raise ValueError(f"{node}.{param} is linked; name the literal that it comes from")
        return step.values[param]


def _takes_list(param: Param) -> bool:
    return param.schema.get("type") == "array"


def _is_pattern(param: Param, text: str) -> bool:
    return param.file is not None and not param.file.literal_counts and bool(WILD & set(text))


def _literally(text: str) -> str:
    """A name in which nothing is a pattern."""
    return "".join(f"[{sign}]" if sign in WILD else sign for sign in text)
