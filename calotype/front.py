"""The front door: an engine with Calotype's nodes, files and settings, and graphs by name."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from server.settings import places

Graph = engine.graph.Graph
MODELS = {"pocket": pocket.FOLDER}
"""Models that come with Calotype, by name."""
AnyGraph = Graph | str | Path | Mapping[str, Any]
"""A graph, a whole document, or what `calotype.find` finds one by."""


class Engine(engine.engine.Engine):
    """Runs graphs with Calotype's nodes and those of installed packs.

    `cache` names the folder of the disk tier (default: the environment variable CALOTYPE_CACHE; none without it).
    `device` is `cpu` or `cuda[:n]` (default: CUDA where there is one). `roots` are folders to look for files in, before
    the current one and those of models in a calotype.yaml: the file `config`, else the one that is found (see
    docs/models.md). `memory` is a budget in bytes for cached values and models together. `exact` never fuses calls and
    gives the same bits on every run. `compiled` compiles UNets: that takes minutes at first, and what comes of it is
    kept in the cache folder. `registry` replaces the installed nodes, `files` the places where files are.
    """

    def __init__(
        self,
        *,
        cache: str | Path | None = None,
        device: str | None = None,
        roots: Iterable[str | Path] = (),
        config: str | Path | None = None,
        registry: Registry | None = None,
        files: Files | None = None,
        **options: Any,
    ) -> None:
        """Raises ValueError for a device that is not there, CacheError for a folder, SettingsError for a `config`."""
        folder = cache or os.environ.get("CALOTYPE_CACHE")
        if folder and options.get("compiled"):
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(folder).expanduser().absolute() / "compiled"))
        super().__init__(
            registry or Registry.installed(),
            device=Device(device or default_device()),
            files=files or files_in(roots, config, tell=lambda said: warnings.warn(said, stacklevel=4)),
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


def files_in(roots: Iterable[str | Path], config: str | Path | None = None, *, tell: Callable[[str], None]) -> Files:
    """The files that a person can name: in `roots`, here, and where the settings in calotype.yaml say.

    `tell` is told what is probably not as it was meant. Raises SettingsError.
    """
    found = places(Path(config) if config is not None else None)
    for said in found.warnings():
        tell(said)
    own = [*map(Path, roots), Path(), *found.roots, *found.tables, library.INPUTS]
    return Files(own, places=with_own(found.folders()), named=MODELS)


def with_own(folders: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """Folders of models by kind, and after them those of what comes with Calotype."""
    return {kind: (*paths, *filter(None, [pocket.PLACES.get(kind)])) for kind, paths in folders.items()}


def _edited(graph: AnyGraph, settings: Mapping[str, Any] | None) -> Graph:
    if isinstance(graph, str | Path):
        graph = library.find(str(graph))
    elif isinstance(graph, Mapping):
        graph = Graph.parse(graph, library.Library())
    return graph.set(settings) if settings else graph


def versions() -> dict[str, str]:
    """Versions of the libraries that results may depend on; read without importing them."""
    found = {}
    for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", "spandrel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
