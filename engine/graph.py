"""Graph documents: parse, dump, edit. One format for disk, HTTP, command line and editor; JSON first, YAML accepted."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from copy import deepcopy
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
)

from engine.errors import GraphError, Problem

FORMAT = "calotype/1"
MAX_BYTES = 16 << 20
"""A longer document is refused."""
MAX_DEPTH = 16
"""Graphs within graphs within graphs, at most."""
SUBGRAPH = "graph"
"""The type of a node that is a graph itself."""

COMPARED = 20_000
"""Names that wrong words are compared with for hints, in one graph at most."""
LONGEST = 100
"""Characters of a word for which there are hints, at most."""
LISTED = 20
"""Names that one message lists at most."""

Library = Callable[[str], "Graph"]
"""Finds a graph by the name that a node of type `graph` gives; raises LookupError."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_LINK = re.compile(r"(\$?)([A-Za-z_][A-Za-z0-9_-]*)(?:\.([A-Za-z_][A-Za-z0-9_]*))?")


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("expected a name of letters, digits, _ and -, beginning with a letter or _")
    return value


def _link(value: object) -> str:
    if not isinstance(value, str) or not _LINK.fullmatch(value):
        raise ValueError("expected a link such as 'photo', 'model.vae' or '$image'")
    return value


def _links(value: object) -> str | list[str]:
    return [_link(item) for item in value] if isinstance(value, list) else _link(value)


def _target(value: object) -> str:
    if not isinstance(value, str) or len(value.split(".")) != 2 or not all(map(_NAME.fullmatch, value.split("."))):
        raise ValueError("expected 'node.parameter'")
    return value


def _subgraph(value: object) -> Any:
    if not isinstance(value, str | Mapping):
        raise ValueError("expected the name of a saved graph, or a whole graph document")  # noqa: TRY004  for pydantic
    return value


_LINK_SCHEMA = {"type": "string", "pattern": f"^{_LINK.pattern}$"}
Name = Annotated[str, PlainValidator(_name, json_schema_input_type=str)]
LinkText = Annotated[str, PlainValidator(_link), WithJsonSchema(_LINK_SCHEMA)]
Links = Annotated[
    str | list[str],
    PlainValidator(_links),
    WithJsonSchema({"anyOf": [_LINK_SCHEMA, {"type": "array", "items": _LINK_SCHEMA}]}),
]
Target = Annotated[
    str, PlainValidator(_target), WithJsonSchema({"type": "string", "pattern": rf"^{_NAME.pattern}\.{_NAME.pattern}$"})
]
Subgraph = Annotated[
    Any, PlainValidator(_subgraph), WithJsonSchema({"anyOf": [{"type": "string"}, {"x-document": True}]})
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Node(_Model):
    """One node: its type, literals under `params`, links under `inputs`."""

    type: str
    params: dict[str, JsonValue] = {}
    inputs: dict[str, Links] = {}
    graph: Subgraph = None


class Argument(_Model):
    """An open socket of a graph: its type, and the link that stands in when nobody binds it."""

    type: str
    default: LinkText | None = None


def _argument_form(value: object) -> str:
    return "brief" if isinstance(value, str) else "full"


ArgumentText = Annotated[Annotated[str, Tag("brief")] | Annotated[Argument, Tag("full")], Discriminator(_argument_form)]
_NAMED = Field(json_schema_extra={"propertyNames": {"pattern": f"^{_NAME.pattern}$"}})
Axis = dict[str, Annotated[list[JsonValue], Field(min_length=1)]]
BATCH = "batch"
AXES = ("x", "y", "z", BATCH)
"""Axes of a sweep; the first three are those of a sheet."""


class Sweep(_Model):
    """Axes of a sweep: exposed names (or node.param) and their values. Names on one axis advance together."""

    x: Axis = Field({}, description="Across a sheet.")
    y: Axis = Field({}, description="Down a sheet.")
    z: Axis = Field({}, description="From sheet to sheet.")
    batch: Axis = Field({}, description="Pictures beside one another: output `image` becomes `image-1`, `image-2`, ...")
    replace: dict[Literal["x", "y", "z", "batch"], Annotated[str, Field(min_length=1)]] = Field(
        {}, description="A word of the texts on an axis, in the place of which its values are put."
    )
    vary: dict[str, Annotated[list[Literal["x", "y", "z", "batch"]], Field(min_length=1)]] = Field(
        {}, description="Whole numbers that count up along these axes, from the first of them to the last."
    )
    labels: dict[Literal["x", "y", "z"], list[str]] = Field({}, description="Labels of an axis, one for each value.")
    legend: bool = Field(default=True, description="Whether sheets have labels.")
    margin: int = Field(0, ge=0, le=500, description="Space between the cells of a sheet, in pixels.")

    def axes(self) -> Iterator[tuple[str, Axis]]:
        """The axes that have values."""
        for name in AXES:
            axis = getattr(self, name)
            if axis:
                yield name, axis


class Document(_Model):
    """A graph as it stands on disk."""

    schema_: str | None = Field(None, alias="$schema", description="Where the JSON Schema lies, for editors.")
    format: Literal["calotype/1"]
    nodes: Annotated[dict[Name, Node], _NAMED]
    expose: Annotated[dict[Name, Target], _NAMED] = {}
    arguments: Annotated[dict[Name, ArgumentText], _NAMED] = {}
    outputs: Annotated[dict[Name, LinkText], _NAMED] = {}
    sweep: Sweep | None = None
    meta: dict[str, JsonValue] = {}


def no_library(name: str) -> "Graph":
    """The library of a graph that stands alone."""
    raise LookupError(f"no saved graph {name!r}")


def _beside(path: Path, name: str) -> "Graph":
    if not (path.parent / name).is_file():
        return no_library(name)
    return Graph.load(path.parent / name)


class Graph:
    """An immutable graph document, with the graphs that it contains. Edits return new graphs."""

    def __init__(self, document: Document, subgraphs: Mapping[str, "Graph"], name: str | None = None) -> None:
        self.document = document
        self.subgraphs = dict(subgraphs)
        self.name = name
        self.parent: tuple[Graph, Mapping[str, Mapping[str, Any]]] | None = None
        """The graph this one was edited from, and the literals that differ, where nothing else does."""

    @classmethod
    def parse(cls, source: Mapping[str, Any] | str | bytes, library: Library = no_library) -> "Graph":
        """Read a document: a mapping, JSON or YAML. Raises GraphError with every problem found."""
        raw = source if isinstance(source, Mapping) else _read(source)
        if not _DEPTH.get():
            judge_anew()
        problems: list[Problem] = []
        graph = _build(raw, library, "", problems, depth=_DEPTH.get())
        if graph is None or problems:
            raise GraphError(problems)
        return graph

    @classmethod
    def load(cls, path: Path | str, library: Library | None = None) -> "Graph":
        """Read a document from a file; graphs within are looked for beside it. Raises GraphError."""
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise GraphError([Problem("", f"cannot read {path}: {error.strerror}", "unreadable")]) from error
        graph = cls.parse(data, library or (lambda name: _beside(path, name)))
        graph.name = path.name
        return graph

    def dump(self, *, inline: bool = False) -> dict[str, Any]:
        """The document as JSON values; defaults left out. `inline` puts contained graphs in place of their names."""
        data = self.document.model_dump(mode="json", exclude_defaults=True, warnings=False)
        data = {"format": FORMAT, **data}
        for node, subgraph in self.subgraphs.items():
            if inline or not isinstance(self.document.nodes[node].graph, str):
                data["nodes"][node]["graph"] = subgraph.dump(inline=inline)
        return data

    def dumps(self, *, inline: bool = False) -> str:
        """The document as JSON text."""
        return json.dumps(self.dump(inline=inline), indent=2, ensure_ascii=False)

    def title(self) -> str:
        """The title in `meta`, or the file's name."""
        return str(self.document.meta.get("title") or self.name or "untitled")

    def exposed(self) -> Sequence[str]:
        """The names in the graph's signature."""
        return tuple(self.document.expose)

    def locate(self, name: str) -> tuple[str, str]:
        """Where `name` (an exposed name, or `node.param`) leads: flat node id and parameter. Raises GraphError."""
        node, param = self._target(name)
        subgraph = self.subgraphs.get(node)
        if subgraph is None:
            return node, param
        try:
            inner, innermost = subgraph.locate(param)
        except GraphError as error:
            raise GraphError([Problem(name, item.message, item.code) for item in error.problems]) from error
        return f"{node}/{inner}", innermost

    def node_type(self, flat: str) -> str:
        """The type of a node given by its flat id. Raises KeyError."""
        head, _, rest = flat.partition("/")
        return self.subgraphs[head].node_type(rest) if rest else self.document.nodes[head].type

    def set(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> "Graph":
        """A graph with other literals. Names are exposed names, `node.param`, or `first/node.param` within a subgraph.

        Raises GraphError listing every name that leads nowhere; the values themselves are judged when the graph is
        validated against a registry.
        """
        judge_anew()
        changes: dict[str, dict[str, Any]] = {}
        problems: list[Problem] = []
        for name, value in {**(values or {}), **named}.items():
            try:
                node, param = self.locate(name)
                owned = deepcopy(value)
            except GraphError as error:
                problems += error.problems
                continue
            except RecursionError:
                problems.append(Problem(name, "nested too deeply", "value"))
                continue
            changes.setdefault(node, {})[param] = owned
        if problems:
            raise GraphError(problems)
        edited = self._with(changes)
        if self.document.sweep is None:
            edited.parent = (self, changes)
        return edited

    def replace(self, **parts: Any) -> "Graph":
        """A graph with other parts (`nodes`, `outputs`, `sweep`, `meta`, ...), given as JSON values."""
        data = {**self.dump(), **parts}
        graph = Graph.parse(data, lambda name: self._named(name) or no_library(name))
        graph.name = self.name
        return graph

    def _with(self, changes: Mapping[str, Mapping[str, Any]]) -> "Graph":
        nodes, subgraphs = dict(self.document.nodes), dict(self.subgraphs)
        inner: dict[str, dict[str, Mapping[str, Any]]] = {}
        for flat, params in changes.items():
            head, _, rest = flat.partition("/")
            if rest:
                inner.setdefault(head, {})[rest] = params
            else:
                node = nodes[head]
                inputs = {name: link for name, link in node.inputs.items() if name not in params}
                nodes[head] = node.model_copy(update={"params": {**node.params, **params}, "inputs": inputs})
        for head, within in inner.items():
            nodes[head], subgraphs[head] = self._with_inner(head, within)
        return Graph(self.document.model_copy(update={"nodes": nodes}), subgraphs, self.name)

    def _with_inner(self, head: str, within: Mapping[str, Mapping[str, Any]]) -> tuple[Node, "Graph"]:
        """Set what a subgraph exposes on the node that holds it; anything deeper changes the subgraph itself."""
        node, subgraph = self.document.nodes[head], self.subgraphs[head]
        exposed = {subgraph.locate(name): name for name in subgraph.document.expose}
        params, inputs = dict(node.params), dict(node.inputs)
        deeper: dict[str, dict[str, Any]] = {}
        for flat, values in within.items():
            for param, value in values.items():
                name = exposed.get((flat, param))
                if name is None:
                    deeper.setdefault(flat, {})[param] = value
                else:
                    for other in subgraph.document.expose:
                        if subgraph.locate(other) == (flat, param):
                            params.pop(other, None)
                            inputs.pop(other, None)
                    params[name] = value
        edited: dict[str, Any] = {"params": params, "inputs": inputs}
        if deeper:
            subgraph = subgraph._with(deeper)
            edited["graph"] = None  # it is not what its name stands for any more
        return node.model_copy(update=edited), subgraph

    def _named(self, name: str) -> "Graph | None":
        """The contained graph that a node, here or in a graph that stands inline, refers to as `name`."""
        for node, subgraph in self.subgraphs.items():
            given = self.document.nodes[node].graph
            found = subgraph if given == name else None if isinstance(given, str) else subgraph._named(name)
            if found is not None:
                return found
        return None

    def _target(self, name: str) -> tuple[str, str]:
        head, slash, rest = name.partition("/")
        if slash and head in self.subgraphs:
            return head, rest
        target = self.document.expose.get(name, name)
        node, dot, param = target.partition(".")
        if not dot or node not in self.document.nodes:
            raise GraphError([Problem(name, self._unknown(name), "unknown_name")])
        return node, param

    def _unknown(self, name: str) -> str:
        hint = suggest(name, self.document.expose) or suggest(name.split(".", 1)[0], self.document.nodes)
        return f"neither an exposed name nor node.param{hint or '; this graph has ' + self._names()}"

    def _names(self) -> str:
        """What may be set, for a message."""
        known = chain(self.document.expose, (f"{node}." for node in self.document.nodes))
        left = len(self.document.expose) + len(self.document.nodes) - LISTED
        return ", ".join(islice(known, LISTED)) + (f" and {left} more" if left > 0 else "")


def schema() -> dict[str, Any]:
    """JSON Schema of a graph document."""
    text = json.dumps(Document.model_json_schema())
    made = json.loads(text.replace('{"x-document": true}', '{"$ref": "#"}'))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "Calotype graph"}


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean "..."?`, or nothing."""
    names = list(known)
    compared = _COMPARED.get() + len(names)
    if compared > COMPARED or len(word) > LONGEST:
        return ""
    _COMPARED.set(compared)
    near = difflib.get_close_matches(word, [name for name in names if len(name) <= LONGEST], 1)
    return f', did you mean "{near[0]}"?' if near else ""


def judge_anew() -> None:
    """Begin to count what `suggest` compares: hints are given for as many as COMPARED names per graph that is judged.

    Thousands of wrong words in a graph of thousands of names would take minutes else.
    """
    _COMPARED.set(0)


def split(link: str) -> tuple[str, str]:
    """A link's node and port; the port is empty where the link names none."""
    node, _, port = link.partition(".")
    return node, port


_COMPARED: ContextVar[int] = ContextVar("compared", default=0)
_DEPTH: ContextVar[int] = ContextVar("depth", default=0)
"""How many graphs stand around the one that a library is reading."""


def _read(source: str | bytes) -> Any:
    if len(source) > MAX_BYTES:
        raise GraphError([Problem("", f"the document is longer than {MAX_BYTES} bytes", "too_large")])
    try:
        text = source.decode("utf-8-sig") if isinstance(source, bytes) else source
        looks_like_json = text.lstrip()[:1] in ("{", "[")
        return _json(text) if looks_like_json else yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except UnicodeDecodeError as error:
        raise GraphError([Problem("", f"not UTF-8 text: {error.reason} at byte {error.start}", "syntax")]) from error
    except RecursionError as error:
        raise GraphError([Problem("", "nested too deeply", "syntax")]) from error
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise GraphError([Problem("", f"not a graph document: {error}", "syntax")]) from error


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


class _Loader(yaml.SafeLoader):
    """The plain data of JSON: `no` and `2024-01-01` are texts, `1e-3` is a number, no doubled keys.

    Without aliases, by which a small file could grow without bound.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        if isinstance(node, yaml.MappingNode):
            if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
                raise yaml.YAMLError("keys are plain names")
            _unique([(key.value, None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


_PLAIN = {
    "null": r"null|~|",
    "bool": r"true|false",
    "int": r"-?(0|[1-9][0-9]*)",
    "float": r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?",
}
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), None)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _finite(node.value))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice in one object")
        found[name] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _build(raw: Any, library: Library, path: str, problems: list[Problem], *, depth: int) -> Graph | None:
    if not isinstance(raw, Mapping):
        problems.append(Problem(path, f"expected a graph document (an object), got {type(raw).__name__}", "syntax"))
        return None
    if depth > MAX_DEPTH:
        problems.append(
            Problem(path, f"more than {MAX_DEPTH} graphs within graphs; does a graph contain itself?", "depth")
        )
        return None
    try:
        document = Document.model_validate(raw)
    except ValidationError as error:
        problems += [_problem(item, path, raw) for item in error.errors(include_url=False)]
        return None
    subgraphs: dict[str, Graph] = {}
    for node_id, node in document.nodes.items():
        where = f"{path}nodes.{node_id}.graph"
        if node.type == SUBGRAPH and (found := _find(node.graph, library, where, problems, depth)) is not None:
            subgraphs[node_id] = found
        elif node.type != SUBGRAPH and node.graph is not None:
            problems.append(Problem(where, f'only nodes of type "{SUBGRAPH}" have a graph', "unexpected"))
    return Graph(document, subgraphs)


def _find(given: Any, library: Library, where: str, problems: list[Problem], depth: int) -> Graph | None:
    if isinstance(given, Mapping):
        return _build(given, library, f"{where}.", problems, depth=depth + 1)
    if given is None:
        problems.append(Problem(where, "missing: the name of a saved graph, or a graph document", "missing"))
        return None
    if depth >= MAX_DEPTH:
        problems.append(
            Problem(where, f"more than {MAX_DEPTH} graphs within graphs; does a graph contain itself?", "depth")
        )
        return None
    outside = _DEPTH.set(depth + 1)
    try:
        return library(str(given))
    except LookupError as error:
        problems.append(Problem(where, str(error.args[0] if error.args else error), "unknown_graph"))
    except GraphError as error:
        problems += [Problem(f"{where}({given}).{inner.path}", inner.message, inner.code) for inner in error.problems]
    finally:
        _DEPTH.reset(outside)
    return None


def _problem(item: Any, path: str, raw: Mapping[str, Any]) -> Problem:
    parts = _parts(item["loc"], raw)
    where = path + ".".join(parts).replace(".[", "[")
    match item["type"]:
        case "extra_forbidden":
            known = Document if len(parts) == 1 else Sweep if parts[0] == "sweep" else Node
            hint = suggest(parts[-1], known.model_fields)
            return Problem(where, f"unknown field{hint}", "unknown_field")
        case "missing":
            return Problem(f"{where}.{item['loc'][-1]}".removeprefix("."), "missing", "missing")
        case "value_error":
            return Problem(where, f"{item['ctx']['error']}, got {_show(item['input'])}", "invalid")
        case "literal_error" if parts == ["format"]:
            return Problem(where, f'expected "{FORMAT}", got {_show(raw.get("format"))}', "format")
        case "recursion_loop" | "recursion_depth_exceeded":
            return Problem(path + ".".join(parts[:2]), "nested too deeply", "syntax")
        case _:
            message = str(item["msg"]).replace("Input should be", "expected")
            message = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", message)
            return Problem(where, f"{message[:1].lower()}{message[1:]}, got {_show(item['input'])}", "invalid")


def _parts(location: Sequence[str | int], raw: Any) -> list[str]:
    """The steps of pydantic's location that lead through the document; its own marks for branches are left out."""
    found: list[str] = []
    for part in location:
        if isinstance(raw, Mapping) and part in raw:
            found.append(str(part))
        elif isinstance(raw, list) and isinstance(part, int) and 0 <= part < len(raw):
            found.append(f"[{part}]")
        else:
            continue
        raw = raw[part]
    return found


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, default=repr)
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 60 else text[:57] + "..."
