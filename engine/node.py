"""@node: a typed Python function becomes a node. Its signature is the only source of truth.

    @node("mask.grow", version=1)
    def grow(mask: Mask, by: Pixels = 8) -> Mask:
        \"\"\"Grow the repainted area `by` pixels.\"\"\"

A parameter annotated with a socket class is an input, `Mask | None = None` an optional input, `tuple[Image, ...]` a
list of links; `Context` is injected; every other annotation is a parameter. The function stays a plain callable.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from engine import errors
from engine.context import Context
from engine.param import REQUIRED, Param
from engine.socket import Socket

F = TypeVar("F", bound=Callable[..., Any])
Arguments = Mapping[str, Any]
Rounds = Generator[Mapping[int, Any], Sequence[Arguments], None]
"""Calls on their way. Each round gives what is finished: by the number of the call, its result or what it met instead.

Calls are numbered in the order in which they come, from 0. Those that come between two rounds are what `yield` returns.
"""
Many = Callable[[Sequence[Arguments]], Rounds]
"""Companion of a node, a generator function: the same function over several argument sets at once, round by round."""

Outputs = Mapping[str, type[Socket]]
"""Ports and what they carry, in order."""

OUT = "out"
_TYPE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


@dataclass(frozen=True, slots=True)
class Input:
    """One input: what may be linked to it."""

    name: str
    socket: type[Socket]
    optional: bool = False
    many: bool = False


@dataclass(frozen=True)
class NodeDef:
    """What the engine knows of a node."""

    type: str
    version: int
    function: Callable[..., Any]
    inputs: Mapping[str, Input]
    params: Mapping[str, Param]
    outputs: Outputs
    named: bool
    context: str | None = None
    many: Many | None = None
    gathers: bool = False

    @cached_property
    def doc(self) -> str:
        """The whole docstring, dedented."""
        return inspect.getdoc(self.function) or ""

    @property
    def pack(self) -> str:
        """The top-level package that the function comes from; packs may share a cache folder but no results."""
        return str(self.function.__module__).partition(".")[0]

    @property
    def help(self) -> str:
        """The first line of the docstring."""
        return self.doc.splitlines()[0]

    def unpack(self, returned: object) -> tuple[Socket, ...]:
        """The outputs in the order of `outputs`. Raises OutputRefused where they are not what the signature says."""
        named = self.named and getattr(returned, "_fields", None) == tuple(self.outputs)
        values = tuple(cast("tuple[Any, ...]", returned)) if named else (returned,)
        if len(values) != len(self.outputs):
            raise errors.OutputRefused(f"{self.type} returned {type(returned).__name__}, expected {self._promise()}")
        for (port, expected), value in zip(self.outputs.items(), values, strict=True):
            if not isinstance(value, expected):
                raise errors.OutputRefused(
                    f"{self.type} returned {type(value).__name__} as {port!r}, expected {expected.__name__}"
                )
            try:
                value.check()
            except ValueError as error:
                raise errors.OutputRefused(f"{self.type} returned a bad {port!r}: {error}") from error
        return values

    def _promise(self) -> str:
        return ", ".join(f"{name}: {socket.__name__}" for name, socket in self.outputs.items())


def node(type_: str, *, version: int, many: Many | None = None, gathers: bool = False) -> Callable[[F], F]:
    """Make a function a node called `type_`. `version` is part of every key: raise it when the results change.

    `many` is the companion that makes several pending calls at once. `gathers` marks the node that a sweep uses to put
    its cells on one sheet. Each misuse raises its own subclass of DefinitionError.
    """

    def mark(function: F) -> F:
        function.__node__ = read(function, type_, version=version, many=many, gathers=gathers)  # type: ignore[attr-defined]
        return function

    return mark


def definition(function: Callable[..., Any]) -> NodeDef:
    """The NodeDef of a function marked with @node."""
    found = getattr(function, "__node__", None)
    if not isinstance(found, NodeDef):
        raise errors.DefinitionError(f"{getattr(function, '__name__', function)!r} is not marked with @node")
    return found


def read(
    function: Callable[..., Any], type_: str, *, version: int, many: Many | None = None, gathers: bool = False
) -> NodeDef:
    """Read a signature into a NodeDef."""
    _check_name(type_, version)
    _check_function(function, type_)
    hints = _hints(function, type_)
    inputs: dict[str, Input] = {}
    params: dict[str, Param] = {}
    context: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        where = f"{type_}: parameter {parameter.name!r}"
        _check_parameter(parameter, hints, where)
        hint = hints[parameter.name]
        if hint is Context:
            if context is not None:
                raise errors.SeveralContexts(f"{where}: {context!r} already is the Context")
            context = parameter.name
        elif (found := _input(parameter, hint, where)) is not None:
            inputs[parameter.name] = found
        else:
            params[parameter.name] = _param(parameter, hint, where)
    outputs, named = _outputs(hints, type_)
    made = NodeDef(type_, version, function, inputs, params, outputs, named, context, many, gathers)
    _check_gatherer(made)
    _check_companion(made)
    return made


def _check_name(type_: str, version: int) -> None:
    if not isinstance(type_, str) or not _TYPE.fullmatch(type_):
        raise errors.BadNodeType(f"{type_!r}: a node type is lower case words joined by dots, such as 'mask.grow'")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise errors.BadVersion(f"{type_}: version must be a positive int, got {version!r}")


def _check_function(function: Callable[..., Any], type_: str) -> None:
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise errors.NotAPlainFunction(f"{type_}: @node marks plain functions, got {function!r}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise errors.NotAPlainFunction(f"{type_}: {function.__name__} is async or a generator; nodes return values")
    if inspect.isasyncgenfunction(function):
        raise errors.NotAPlainFunction(f"{type_}: {function.__name__} is an async generator; nodes return values")
    if not (inspect.getdoc(function) or "").strip():
        raise errors.MissingDocstring(
            f"{type_}: {function.__name__} needs a docstring; its first line is the help text"
        )


def _hints(function: Callable[..., Any], type_: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise errors.UnsupportedAnnotation(f"{type_}: an annotation cannot be read: {error}") from error


def _check_parameter(parameter: inspect.Parameter, hints: Mapping[str, Any], where: str) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise errors.VariadicParameter(f"{where}: name every parameter instead of {parameter}")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise errors.PositionalOnlyParameter(f"{where} is positional only; remove the '/'")
    if parameter.name not in hints:
        raise errors.MissingAnnotation(f"{where} has no type")


def _is_socket(hint: object) -> typing.TypeGuard[type[Socket]]:
    return isinstance(hint, type) and issubclass(hint, Socket)


def _input(parameter: inspect.Parameter, hint: Any, where: str) -> Input | None:
    origin, args = get_origin(hint), get_args(hint)
    required = parameter.default is parameter.empty
    if hint is Socket:
        raise errors.UnsupportedAnnotation(f"{where}: Socket itself says nothing; name a class of sockets")
    if _is_socket(hint):
        if not required:
            raise errors.OptionalInputDefault(f"{where}: an optional input is `{hint.__name__} | None = None`")
        return Input(parameter.name, hint)
    if origin is tuple and args and _is_socket(args[0]):
        if len(args) != 2 or args[1] is not Ellipsis or not required:
            raise errors.UnsupportedAnnotation(f"{where}: a list of links is `tuple[{args[0].__name__}, ...]`")
        return Input(parameter.name, args[0], many=True)
    if origin in (Union, types.UnionType) and any(map(_is_socket, args)):
        if len(args) != 2 or type(None) not in args:
            raise errors.UnsupportedAnnotation(f"{where}: an input has one type; write a common base class instead")
        if parameter.default is not None:
            raise errors.OptionalInputDefault(f"{where}: an optional input needs the default None")
        return Input(parameter.name, next(arg for arg in args if _is_socket(arg)), optional=True)
    if any(_is_socket(arg) for arg in args) and origin in (list, set, dict, Sequence):
        raise errors.UnsupportedAnnotation(f"{where}: a list of links is `tuple[..., ...]`, not {hint}")
    return None


def _param(parameter: inspect.Parameter, hint: Any, where: str) -> Param:
    if hint is Any or hint is object:
        raise errors.UnsupportedAnnotation(f"{where}: {hint} says nothing; give it a JSON-able type")
    try:
        made = Param(parameter.name, hint, REQUIRED if parameter.default is parameter.empty else parameter.default)
    except (TypeError, ValueError) as error:
        raise errors.UnsupportedAnnotation(
            f"{where}: {hint} is neither a socket nor a JSON-able type ({error})"
        ) from error
    if made.default is not REQUIRED:
        try:
            _ = made.parsed_default
        except ValueError as error:
            raise errors.BadDefault(f"{where}: default {made.default!r} is refused: {error}") from error
    return made


def _outputs(hints: Mapping[str, Any], type_: str) -> tuple[dict[str, type[Socket]], bool]:
    if "return" not in hints:
        raise errors.MissingReturn(f"{type_}: say what it returns: `-> Image`, or a NamedTuple of sockets")
    hint = hints["return"]
    if _is_socket(hint) and hint is not Socket:
        return {OUT: hint}, False
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        ports = _hints(hint, type_)
        if ports and all(_is_socket(port) for port in ports.values()):
            return ports, True
    raise errors.UnsupportedReturn(f"{type_}: returns {hint}; expected one socket or a NamedTuple of sockets")


def _check_gatherer(made: NodeDef) -> None:
    if not made.gathers:
        return
    lists = [entry for entry in made.inputs.values() if entry.many]
    if len(lists) != 1 or not {"columns", "x_labels", "y_labels"} <= made.params.keys() or made.named:
        raise errors.BadGatherer(
            f"{made.type}: a gatherer takes one `tuple[T, ...]`, the parameters columns, x_labels and y_labels, "
            "and returns one socket"
        )


def _check_companion(made: NodeDef) -> None:
    if made.many is not None and not inspect.isgeneratorfunction(made.many):
        raise errors.BadCompanion(
            f"{made.type}: many is {made.many!r}, expected a generator function, which takes a list of argument sets "
            "and yields results by number, round by round"
        )
