"""What the documentation says of nodes, types, errors and graphs is read from the code. `make docs` writes it down."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from engine.errors import DefinitionError
from engine.graph import Graph, schema
from engine.node import Input, NodeDef
from engine.param import REQUIRED, Param
from engine.registry import Registry

if TYPE_CHECKING:
    from server.metrics import Metrics
    from server.problem import Kind

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SCHEMA = HERE / "graph.schema.json"
"""JSON Schema of a graph document, shipped with the package."""

_WORDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "pattern": "matching {}",
}
_WIDE = {2**32 - 1: "2^32 - 1", 2**63 - 1: "2^63 - 1", 2**64 - 1: "2^64 - 1", -(2**63): "-2^63"}
"""Numbers that are easier to read as powers."""


def describe(definition: NodeDef) -> str:
    """A node in full, as Markdown that also reads well on a terminal: docstring, inputs, parameters, outputs."""
    parts = [
        f"{definition.type} (version {definition.version})",
        definition.doc,
        _listed("Inputs", {entry.name: _input(entry) for entry in definition.inputs.values()}),
        _listed("Parameters", {param.name: parameter(param) for param in definition.params.values()}),
        _listed("Outputs", {name: socket.__name__ for name, socket in definition.outputs.items()}),
        "A sweep puts its cells on one sheet with this node." if definition.gathers else "",
        "Pending calls may run together." if definition.many else "",
    ]
    return "\n\n".join(filter(None, parts))


def parameter(param: Param) -> str:
    """What a parameter takes: type, choices, range and unit, and what stands there when nobody sets it."""
    kind = _kind(param.schema, param.unit, param.schema)
    if param.file and not param.file.literal_counts:
        kind = kind.replace(_WORDS["string"], f"name of a {param.file.kind}")
    default = "required" if param.default is REQUIRED else f"default {_json(param.schema['default'])}"
    fresh = f"{param.fresh.when} draws a new one at each submission" if param.fresh else ""
    return "; ".join(filter(None, [kind, fresh, default]))


def main() -> None:
    """Write every generated part into its file."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


def generated() -> dict[Path, str]:
    """The files with generated parts, as they should be."""
    from calotype.library import SAVED, graphs_in  # noqa: PLC0415  describe() does without
    from nodes import NODES  # noqa: PLC0415
    from server.metrics import Metrics  # noqa: PLC0415
    from server.problem import KINDS  # noqa: PLC0415
    from server.settings import Settings  # noqa: PLC0415

    registry = Registry(NODES)
    service = {
        "settings": "\n".join([*_header("Setting", "Default", "Meaning"), *_settings(Settings)]),
        "kinds": "\n".join([*_header("Kind", "Status", "Meaning"), *_kinds(KINDS)]),
        "metrics": "\n".join([*_header("Name", "Kind", "Meaning"), *_metrics(Metrics())]),
    }
    bodies = {
        "nodes.md": {"types": _types(registry), "nodes": _nodes(registry), "errors": _errors()},
        "graphs.md": {"graphs": _graphs(map(Graph.load, graphs_in(SAVED)))},
        "http.md": service,
    }
    texts = {DOCS / name: _renewed(DOCS / name, parts) for name, parts in bodies.items()}
    return {**texts, SCHEMA: json.dumps(schema(), indent=2) + "\n"}


def _renewed(path: Path, parts: Mapping[str, str]) -> str:
    """A page with other text between its markers. Raises ValueError where a marker is missing."""
    text = path.read_text(encoding="utf-8")
    for name, body in parts.items():
        begin, end = f"<!-- begin {name}: written by `make docs` -->\n", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{path} lacks the lines {begin!r} and {end!r}")
        text = f"{before}{begin}\n{body}\n\n{end}{after}"
    return text


def _nodes(registry: Registry) -> str:
    return "\n\n".join(f"### {describe(made)}" for made in registry.values())


def _types(registry: Registry) -> str:
    documented = {name: inspect.getdoc(socket) or "" for name, socket in sorted(registry.sockets.items())}
    return "\n".join(f"- **{name}**: {_one_line(text)}" for name, text in documented.items())


def _errors() -> str:
    kinds = DefinitionError.__subclasses__()
    return "\n".join(f"- `{kind.__name__}`: {_one_line(kind.__doc__ or '')}" for kind in kinds)


def _graphs(graphs: Iterable[Graph]) -> str:
    return "\n\n".join(map(_graph, graphs))


def _graph(graph: Graph) -> str:
    outputs = ", ".join(f"`{name}`" for name in graph.document.outputs)
    opened = ", ".join(f"`{name}`" for name in graph.document.arguments)
    exposed = ", ".join(f"`{name}`" for name in graph.exposed())
    lines = [
        f"### {Path(graph.name or '').stem}",
        str(graph.document.meta.get("description", graph.title())),
        f"Gives {outputs}." + (f" Takes {opened} from another graph." if opened else ""),
        f"Exposes {exposed}.",
    ]
    return "\n\n".join(lines)


def _header(*names: str) -> tuple[str, str]:
    return f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"


def _settings(section: type[BaseModel], before: str = "") -> Iterator[str]:
    """A line for every setting, those of sections by their dotted names."""
    from server.spelling import spelled  # noqa: PLC0415

    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _settings(type(field.default), f"{before}{name}.")
            continue
        default = "`~/.local/share/calotype`" if field.default_factory else f"`{_json(spelled(field.default))}`"
        yield f"| `{before}{name}` | {default.replace('`null`', '')} | {field.description} |"


def _kinds(kinds: "Mapping[str, Kind]") -> Iterator[str]:
    return (f"| `{name}` | {kind.status} | {kind.title} |" for name, kind in kinds.items())


def _metrics(metrics: "Metrics") -> Iterator[str]:
    metrics.gauges(dict, dict)
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"| `{name}` | {family.type} | {family.documentation} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(title: str, entries: Mapping[str, str]) -> str:
    return "\n".join([f"{title}:\n", *(f"- `{name}`: {text}" for name, text in entries.items())]) if entries else ""


def _input(entry: Input) -> str:
    if entry.many:
        return f"list of {entry.socket.__name__}"
    return f"{entry.socket.__name__}, optional" if entry.optional else entry.socket.__name__


def _kind(schema: Mapping[str, Any], unit: str, root: Mapping[str, Any]) -> str:
    """A JSON Schema in words."""
    match schema:
        case {"$ref": str(name)}:
            said = _kind(root["$defs"][name.rpartition("/")[2]], unit, root)
        case {"anyOf": list(kinds)}:
            said = ", or ".join(_kind(kind, "" if kind.get("type") == "null" else unit, root) for kind in kinds)
        case {"const": value}:
            said = _json(value)
        case {"enum": list(choices)}:
            said = " | ".join(map(_json, choices))
        case {"type": "array", "prefixItems": list(items)}:
            said = f"[{', '.join(_kind(item, '', root) for item in items)}]"
        case {"type": "array"}:
            said = _limited(f"list of {_kind(schema.get('items', {}), '', root)}", schema, unit)
        case {"type": str(name)}:
            said = _limited(_WORDS.get(name, name), schema, unit)
        case _:
            said = "any JSON"
    return said


def _limited(kind: str, schema: Mapping[str, Any], unit: str) -> str:
    """A type with its range and unit: `integer 1..512 px`."""
    known = {name: _WIDE.get(schema[name], schema[name]) for name in _LIMITS if name in schema}
    both = {"minimum", "maximum"} <= known.keys()
    limits = [f"{known.pop('minimum')}..{known.pop('maximum')}"] if both else []
    limits += [_LIMITS[name].format(value) for name, value in known.items()]
    return " ".join(filter(None, [kind, ", ".join(limits), f"({unit})" if unit and not limits else unit]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
