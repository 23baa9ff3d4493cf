"""What the service is given from above: where graphs come from, and how their results become files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from engine.engine import Result
from engine.graph import Graph
from engine.socket import Socket


@dataclass(frozen=True)
class Rendered:
    """A result as a file: its bytes, MIME type, and size in pixels."""

    data: bytes
    type: str
    width: int
    height: int


class Front(Protocol):
    """The library of saved graphs, and the painter of results."""

    version: str

    def saved(self) -> Iterable[str]:
        """Names of the saved graphs."""

    def find(self, name: str) -> Graph:
        """The saved graph of that name. Raises GraphError."""

    def parse(self, document: Mapping[str, Any]) -> Graph:
        """A graph document, with the saved graphs that it contains. Raises GraphError."""

    def describe(self, type_: str) -> Mapping[str, Any]:
        """A node type in full, as JSON values. Raises KeyError."""

    def models(self, kind: str | None) -> Iterable[Mapping[str, Any]]:
        """The models that can be named, of one kind or of all, as JSON values without paths."""

    def render(self, result: Result) -> Mapping[str, list[Rendered]]:
        """The files of every output that is a picture."""

    def preview(self, value: Socket) -> Rendered | None:
        """A small picture of where a node stands; None where the value is none."""
