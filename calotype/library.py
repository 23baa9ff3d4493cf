"""Where graphs come from: files, saved graphs by name, pictures made by Calotype, standard input."""

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from engine.errors import GraphError, Problem
from engine.graph import Graph, suggest

SUFFIXES = (".json", ".yaml", ".yml")
SAVED = Path(str(files("graphs")))
"""The graphs that come with Calotype."""
INPUTS = SAVED / "inputs"
"""The pictures that they begin with."""


class Library:
    """Finds graphs by name: beside the graph that asks, in the current folder, among the saved ones."""

    def __init__(self, *folders: Path) -> None:
        self.folders = (*folders, Path(), SAVED)
        self._open: list[Path] = []

    def __call__(self, name: str) -> Graph:
        """The graph called `name`. Raises LookupError."""
        path = self._path(name)
        if path is None:
            known = sorted({found.name for folder in self.folders for found in graphs_in(folder)})
            raise LookupError(f"no saved graph {name!r}{suggest(name, known)}")
        if path.resolve() in self._open:
            raise LookupError(f"{name!r} contains itself")
        self._open.append(path.resolve())
        try:
            return Graph.load(path, self)
        finally:
            self._open.pop()

    def _path(self, name: str) -> Path | None:
        for folder in self.folders:
            for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)):
                if candidate.is_file():
                    return candidate
        return None


def find(name: str) -> Graph:
    """A graph by file, by saved name, from a picture made by Calotype, or `-` for standard input. Raises GraphError."""
    if name == "-":
        return Graph.parse(sys.stdin.buffer.read(), Library())
    try:
        return _find(Path(name).expanduser(), name)
    except (OSError, ValueError, RuntimeError) as error:
        raise GraphError(
            [Problem("", f"{name[:80]!r} is not the name of a graph: {error}", "unknown_graph")]
        ) from error


def _find(path: Path, name: str) -> Graph:
    if path.suffix.lower() == ".png" and path.is_file():
        from calotype.picture import read_graph  # noqa: PLC0415  pictures need Pillow

        return read_graph(path, Library(path.parent))
    library = Library(path.parent)
    if path.is_file():
        return Graph.load(path, library)
    try:
        return library(name)
    except LookupError as error:
        raise GraphError([Problem("", str(error.args[0]), "unknown_graph")]) from error


def graphs_in(folder: Path) -> Iterator[Path]:
    """The graph documents of a folder, by name."""
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
