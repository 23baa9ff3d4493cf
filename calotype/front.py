"""The front door: an engine with Calotype's nodes, files and settings, and graphs by name."""

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import engine.engine
import engine.graph
import pocket
from calotype import library
from engine.context import CancelToken
from engine.device import Device, default_device
from engine.engine import Result
from engine.file import Files
from engine.plan import Planned
from engine.registry import Registry
from engine.run import Listener
from engine.socket import Socket

Graph = engine.graph.Graph
MODELS = {"pocket": pocket.FOLDER}
"""Models that come with Calotype, by name."""
AnyGraph = Graph | str | Path | Mapping[str, Any]
"""A graph, a whole document, or what `calotype.find` finds one by."""


class Engine(engine.engine.Engine):
    """Runs graphs with Calotype's nodes and those of installed packs.

    `cache` names the folder of the disk tier (default: the environment variable CALOTYPE_CACHE; none without it).
    `device` is `cpu` or `cuda[:n]` (default: CUDA where there is one). `roots` are folders to look for files in, before
    the current one. `memory` is a budget in bytes for cached values and models together. `exact` never fuses calls and
    gives the same bits on every run. `registry` replaces the installed nodes, `files` the places where files are.
    """

    def __init__(
        self,
        *,
        cache: str | Path | None = None,
        device: str | None = None,
        roots: Iterable[str | Path] = (),
        registry: Registry | None = None,
        files: Files | None = None,
        **options: Any,
    ) -> None:
        """Raises ValueError for a device that is not there, CacheError for a folder that cannot be used."""
        folder = cache or os.environ.get("CALOTYPE_CACHE")
        super().__init__(
            registry or Registry.installed(),
            device=Device(device or default_device()),
            files=files or Files([*map(Path, roots), Path(), library.INPUTS], named=MODELS),
            cache=Path(folder).expanduser() if folder else None,
            numerics=versions(),
            **options,
        )

    def run(
        self,
        graph: AnyGraph,
        outputs: Sequence[str] | None = None,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002  the command line's word
        arguments: Mapping[str, Socket] | None = None,
        listener: Listener = lambda _: None,
        token: CancelToken | None = None,
        check: bool = True,
    ) -> Result:
        """Run a graph, a document, or the graph of that name, with other literals where `set` says so."""
        return super().run(
            _edited(graph, set), outputs, arguments=arguments, listener=listener, token=token, check=check
        )

    def plan(
        self,
        graph: AnyGraph,
        outputs: Sequence[str] | None = None,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002  the command line's word
        arguments: Mapping[str, Socket] | None = None,
    ) -> list[Planned]:
        """What a run would do, and why, without running anything."""
        return super().plan(_edited(graph, set), outputs, arguments=arguments)


def _edited(graph: AnyGraph, settings: Mapping[str, Any] | None) -> Graph:
    if isinstance(graph, str | Path):
        graph = library.find(str(graph))
    elif isinstance(graph, Mapping):
        graph = Graph.parse(graph, library.Library())
    return graph.set(settings) if settings else graph


def versions() -> dict[str, str]:
    """Versions of the libraries that results may depend on; read without importing them."""
    found = {}
    for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
