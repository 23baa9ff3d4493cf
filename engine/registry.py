"""Registry: an explicit, immutable mapping of node types to definitions."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from engine.errors import RegistryError
from engine.node import NodeDef, definition
from engine.socket import Bool, Float, Int, Socket, Text

ENTRY_POINTS = "calotype.nodes"
"""Group of entry points; each names a sequence of functions marked with @node."""


class Registry(Mapping[str, NodeDef]):
    """Node types by name. Made once from functions marked with @node; never changes."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        """Raises RegistryError when two functions claim one type, or two socket classes one name."""
        found: dict[str, NodeDef] = {}
        for made in map(definition, functions):
            if found.setdefault(made.type, made) is not made:
                raise RegistryError(f"{made.type!r} is defined twice: {_place(found[made.type])} and {_place(made)}")
        self._definitions = dict(sorted(found.items()))
        self.sockets = _sockets(found.values())

    @classmethod
    def installed(cls) -> "Registry":
        """Everything that installed packs offer through entry points."""
        functions: list[Callable[..., Any]] = []
        for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
            try:
                functions += entry.load()
            except (ImportError, AttributeError, TypeError) as error:
                raise RegistryError(f"node pack {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
        return cls(functions)

    def __getitem__(self, type_: str) -> NodeDef:
        """The definition of `type_`."""
        return self._definitions[type_]

    def __iter__(self) -> Iterator[str]:
        """Types in alphabetical order."""
        return iter(self._definitions)

    def __len__(self) -> int:
        """How many types there are."""
        return len(self._definitions)

    def with_nodes(self, *functions: Callable[..., Any]) -> "Registry":
        """A registry with more nodes."""
        return Registry([*(made.function for made in self.values()), *functions])

    def gatherer(self, socket: type[Socket]) -> NodeDef | None:
        """The node that puts many values of `socket` on one sheet."""
        for made in self.values():
            if made.gathers and any(entry.many and issubclass(socket, entry.socket) for entry in made.inputs.values()):
                return made
        return None

    def nearest(self, type_: str) -> str | None:
        """The type a person may have meant."""
        return next(iter(difflib.get_close_matches(type_, self._definitions, 1)), None)


def _sockets(definitions: Iterable[NodeDef]) -> Mapping[str, type[Socket]]:
    found: dict[str, type[Socket]] = {scalar.__name__: scalar for scalar in (Bool, Float, Int, Text)}
    for made in definitions:
        for socket in (*made.outputs.values(), *(entry.socket for entry in made.inputs.values())):
            if found.setdefault(socket.__name__, socket) is not socket:
                raise RegistryError(f"two socket classes are called {socket.__name__!r}: see {made.type}")
    return found


def _place(made: NodeDef) -> str:
    return f"{made.function.__module__}.{made.function.__qualname__}"
