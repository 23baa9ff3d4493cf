"""Parameters: what stands as a literal in a graph. Parsed strictly, described as JSON Schema.

Constraints are the frozen dataclasses of `annotated_types` (`Ge`, `Le`, `Len`, ...); pydantic applies them.
"""

import csv
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic_core import to_jsonable_python

from engine.file import File
from engine.socket import SCALARS, Socket, Text


class Required:
    """Stands where a parameter has no default."""

    def __repr__(self) -> str:
        """Shown in signatures."""
        return "REQUIRED"


REQUIRED = Required()


@dataclass(frozen=True, slots=True)
class Fresh:
    """The literal `when` asks for a new random number below `below` at each submission."""

    when: int
    below: int

    def draw(self) -> int:
        """A new value; it is written into the graph before anything is keyed."""
        return secrets.randbelow(self.below)


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a number, for documentation."""

    name: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parameter's value for the node, and the canonical JSON that enters the key."""

    value: Any
    canonical: Any


@dataclass(frozen=True)
class Param:
    """One parameter of a node, read from its annotation."""

    name: str
    annotation: Any
    default: Any = REQUIRED

    def __post_init__(self) -> None:
        """Build the parser once; raises TypeError for a type that JSON cannot hold."""
        if self.file is None:
            _refuse_parts(self.annotation)
        try:
            _ = self._type_schema
        except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema, PydanticUserError) as error:
            raise TypeError(str(error).splitlines()[0]) from error

    @cached_property
    def file(self) -> type[File] | None:
        """The kind of file, where the parameter names one."""
        bare = _bare(self.annotation)
        return bare if isinstance(bare, type) and issubclass(bare, File) else None

    @cached_property
    def scalar(self) -> type[Socket] | None:
        """The socket that may be linked instead of a literal."""
        bare = _bare(self.annotation)
        if get_origin(bare) is Literal:
            kinds = {type(choice) for choice in get_args(bare)}
            return SCALARS.get(kinds.pop()) if len(kinds) == 1 else None
        if isinstance(bare, type) and issubclass(bare, Enum):
            return Text if all(isinstance(member.value, str) for member in bare) else None
        return None if self.file else SCALARS.get(bare)

    @cached_property
    def fresh(self) -> Fresh | None:
        """How a random value is drawn, where the parameter has one."""
        return next((note for note in _notes(self.annotation) if isinstance(note, Fresh)), None)

    @cached_property
    def unit(self) -> str:
        """The unit, or nothing."""
        return next((note.name for note in _notes(self.annotation) if isinstance(note, Unit)), "")

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The strict parser."""
        kind = self.annotation
        if self.file:
            kind = str | None if _is_optional(self.annotation) else str
        owns_config = is_dataclass(_bare(kind))
        return TypeAdapter(kind, config=None if owns_config else ConfigDict(strict=True, allow_inf_nan=False))

    @cached_property
    def schema(self) -> Mapping[str, Any]:
        """JSON Schema of the literal."""
        if self.default is REQUIRED:
            return self._type_schema
        return {**self._type_schema, "default": self._written_default}

    def parse(self, raw: object) -> Parsed:
        """Parse a JSON value. Raises ValueError that says what was expected."""
        if (fast := _EXACT.get(type(raw))) is not None and fast is self.annotation:
            return Parsed(raw, raw)
        try:
            value = self._read(raw)
        except ValidationError as error:
            raise ValueError(self._explain(error, raw)) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{raw!r} is not JSON: {error}") from error
        if self._confuses_numbers(raw, value):
            raise ValueError(f"expected the {type(value).__name__} {value!r}, got {_short(raw)}")
        canonical = self.adapter.dump_python(value, mode="json")
        if self.scalar is None and not self.file and self._read(canonical) != value:
            raise ValueError(f"the JSON form of {self.annotation} leaves something out, so it cannot be part of a key")
        return Parsed(value, canonical)

    def _read(self, raw: object) -> Any:
        return self.adapter.validate_json(json.dumps(raw, allow_nan=False), strict=True)

    def parse_text(self, text: str) -> Any:
        """The JSON value that a person means by `text` on a command line; `parse` still judges it.

        `null` is no file where there may be none; else what stands for a file or a text is taken as it is written. A
        list may be JSON, or bare, as a line of CSV: `night,ink`.
        """
        if self.file and text == "null" and _is_optional(self.annotation):
            return None
        if self.file or self.scalar is Text:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return _listed(text) if self._type_schema.get("type") == "array" else text

    @cached_property
    def parsed_default(self) -> Parsed:
        """The default, as if it had been written out."""
        parsed = self.parse(self._written_default)
        if not self.file and parsed.value != self.default:
            raise ValueError(f"the JSON form of {self.default!r} leaves something out, so it cannot be part of a key")
        return parsed

    @property
    def _written_default(self) -> Any:
        """The default as a graph would spell it; a file's is its name."""
        return to_jsonable_python(self.default.name if isinstance(self.default, File) else self.default)

    @cached_property
    def _type_schema(self) -> Mapping[str, Any]:
        return self.adapter.json_schema()

    def _confuses_numbers(self, raw: object, value: object) -> bool:
        """`True` for `Literal[1]`, which pydantic takes for equal."""
        literal = get_origin(_bare(self.annotation)) is Literal
        return literal and isinstance(raw, int | float) and type(raw) is not type(value)

    def _explain(self, error: ValidationError, raw: object) -> str:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"[{part!r}]" for part in first["loc"])
        return f"{where}{' ' if where else ''}{_plain(first['msg'])}, got {_short(raw)}{self._range()}"

    def _range(self) -> str:
        branches = [branch for branch in self._type_schema.get("anyOf", ()) if branch.get("type") != "null"]
        schema = branches[0] if len(branches) == 1 else self._type_schema
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None and high is None:
            return ""
        unit = f" {self.unit}" if self.unit else ""
        return f" (range {'' if low is None else low}..{'' if high is None else high}{unit})"


def _listed(line: str) -> list[str]:
    return next(csv.reader([line], skipinitialspace=True), [])


_EXACT: Mapping[type, type] = {str: str, int: int, bool: bool}


_UNFIT = (Socket, File, PurePath, set, frozenset)
"""What may not stand inside a parameter's type: links, files, and what has no order that a key could keep."""


def _refuse_parts(annotation: Any) -> None:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, _UNFIT):
            raise TypeError(f"{part.__name__} cannot be part of a parameter's type")


def _parts(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for inner in get_args(annotation):
        yield from _parts(inner)


def _bare(annotation: Any) -> Any:
    """The type without its constraints, and without `None` where it is optional."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _bare(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _is_optional(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_optional(get_args(annotation)[0])
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _notes(annotation: Any) -> tuple[Any, ...]:
    """The constraints, also of an optional type."""
    if get_origin(annotation) is Annotated:
        return (*get_args(annotation)[1:], *_notes(get_args(annotation)[0]))
    if get_origin(annotation) in (Union, UnionType):
        return tuple(note for kind in get_args(annotation) for note in _notes(kind))
    return ()


def _plain(message: str) -> str:
    """A message of pydantic's in our words; an input is something else here."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return message[:1].lower() + message[1:]


def _short(raw: object) -> str:
    text = json.dumps(raw, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."
