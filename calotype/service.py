"""`calotype serve`: the service over Calotype's nodes, saved graphs and pictures."""

import contextlib
import io
import logging
import re
import resource
import shlex
import socket
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import PIL.Image
import uvicorn

from calotype import __version__
from calotype.caption import caption
from calotype.front import MODELS, Engine, with_own
from calotype.library import INPUTS, SAVED, Library, graphs_in
from calotype.models import KINDS, models
from calotype.picture import document_of, encode, pictures
from calotype.reference import parameter
from engine.engine import Result
from engine.errors import FileError, GraphError, Problem
from engine.file import Files
from engine.graph import Graph
from engine.node import NodeDef
from engine.socket import Socket
from nodes.types import Image, Mask
from server.app import application
from server.front import Rendered
from server.journal import configure
from server.limits import Allowance
from server.protocol import impatient
from server.service import Service
from server.settings import Settings

PREVIEW = 256
"""Longest side of a preview, in pixels."""
SWITCH = 0.0005
"""Seconds after which a thread gives way to another: the writer of the history waits so long for every statement."""
KEEP_ALIVE = 30
"""Seconds that an idle connection stays open."""
_log = logging.getLogger("calotype")
_PLAIN = re.compile(r"(parts/)?[A-Za-z0-9_-]{1,200}(\.(json|yaml|yml))?")
_BLOB = re.compile(r"[0-9a-f]{64}")


class Shelf(Library):
    """Saved graphs by plain name, in these folders and among Calotype's own; nothing else can be named."""

    def __init__(self, *folders: Path) -> None:
        super().__init__()
        self.folders = (*folders, SAVED)

    def _path(self, name: str) -> Path | None:
        path = super()._path(name) if _PLAIN.fullmatch(name) else None
        allowed = path is not None and any(path.resolve().is_relative_to(folder.resolve()) for folder in self.folders)
        return path if allowed else None


class Painting:
    """What the service asks of Calotype: graphs by name, node descriptions, pictures that carry their graph."""

    version = __version__

    def __init__(self, folders: Iterable[Path], engine: Engine) -> None:
        self._folders = tuple(folders)
        self._engine = engine
        self._describe = cache(lambda type_: _described(engine.registry[type_]))

    def saved(self) -> list[str]:
        """Names of the saved graphs."""
        return sorted({path.stem for folder in (*self._folders, SAVED) for path in graphs_in(folder)})

    def find(self, name: str) -> Graph:
        """The saved graph of that name. Raises GraphError."""
        try:
            return Shelf(*self._folders)(name)
        except LookupError as error:
            raise GraphError([Problem("graph", str(error.args[0]), "unknown_graph")]) from None

    def parse(self, document: Mapping[str, Any]) -> Graph:
        """A graph document, with the saved graphs that it contains. Raises GraphError."""
        return Graph.parse(document, cache(Shelf(*self._folders)))  # thousands of nodes may be one and the same graph

    def describe(self, type_: str) -> Mapping[str, Any]:
        """A node type in full, as JSON values."""
        return self._describe(type_)

    def models(self, kind: str | None) -> list[Mapping[str, Any]]:
        """The models that can be named, of one kind or of all, as JSON values without paths."""
        found: list[Mapping[str, Any]] = []
        for each in KINDS if kind is None else (kind,):
            try:
                found += [one.document() for one in models(self._engine.files, each) if one.hidden_by is None]
            except FileError as error:
                _log.warning("%s are not listed: %s", each, error)
        return found

    def render(self, result: Result) -> dict[str, list[Rendered]]:
        """PNGs of every output that is a picture, each with the graph that makes it."""
        whole, cells = document_of(result), self._engine.program(result.graph).cells
        return {
            name: self._rendered(result, name, value, document_of(result, cells[name]) if name in cells else whole)
            for name, value in result.outputs.items()
            if isinstance(value, (Image, Mask))
        }

    def _rendered(self, result: Result, name: str, value: Socket, document: str) -> list[Rendered]:
        program = self._engine.program(result.graph)
        found = []
        for index, picture in enumerate(pictures(value)):
            text = caption(program, program.port(name), picture.size, result.files, index=index, graph=result.graph)
            found.append(Rendered(encode(picture, document, text), "image/png", *picture.size))
        return found

    def preview(self, value: Socket) -> Rendered | None:
        """A JPEG of the first picture, enlarged or reduced to at most 256 pixels."""
        picture = next(pictures(value), None)
        if picture is None:
            return None
        scale = PREVIEW / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        stream = io.BytesIO()
        picture.resize(size, PIL.Image.Resampling.BILINEAR).convert("RGB").save(stream, "JPEG", quality=75)
        return Rendered(stream.getvalue(), "image/jpeg", *size)


def _described(definition: NodeDef) -> dict[str, Any]:
    return {
        "version": definition.version,
        "help": definition.help,
        "doc": definition.doc,
        "inputs": {
            entry.name: {"type": entry.socket.__name__, "optional": entry.optional, "many": entry.many}
            for entry in definition.inputs.values()
        },
        "params": {
            param.name: {"description": parameter(param), "schema": dict(param.schema)}
            for param in definition.params.values()
        },
        "outputs": {name: socket.__name__ for name, socket in definition.outputs.items()},
    }


def build(settings: Settings) -> Service:
    """A service with an engine of its own. Raises FolderTaken, HistoryError, CacheError, ValueError for a device."""
    inputs = settings.data / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    blobs = settings.data / "blobs"

    def blob(digest: str) -> Path | None:
        path = blobs / digest[:2] / digest
        return path if _BLOB.fullmatch(digest) and path.is_file() else None

    roots = [inputs, *settings.inputs, *settings.roots, *settings.tables, INPUTS]
    files = Files(
        roots,
        places=with_own(settings.folders()),
        named=MODELS,
        schemes={"blob": blob},
        anywhere=False,
        elsewhere=settings.hub,
    )
    for said in settings.warnings():
        _log.warning(said)
    engine = Engine(
        cache=settings.disk_cache,
        device=settings.device,
        files=files,
        memory=settings.memory,
        disk=settings.disk,
        exact=settings.exact,
        compiled=settings.compiled,
        bounds=Allowance(settings.limits),
    )
    try:
        return Service(settings, engine, Painting(settings.graphs, engine))
    except BaseException:
        engine.close()
        raise


class Server(uvicorn.Server):
    """uvicorn, which says how it is reached, and ends the streams of events when it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if self.started and self.servers:
            self._welcome(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; whoever listens to events comes back to the next process."""
        self._service.stop()
        super().handle_exit(sig, frame)

    def _welcome(self, port: int) -> None:
        settings = self._service.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  how it is reached, not bound
        address = f"http://{host}:{port}"
        body = """{"graph": "inpaint_after_img2img", "set": {"inpaint_prompt": "crying face"}}"""
        token = next(iter(settings.clients.values()), None)
        secret = token.get_secret_value() if token and sys.stdout.isatty() else "$CALOTYPE_TOKEN"
        header = f' -H "Authorization: Bearer {secret}"' if token else ""
        lines = [f"Calotype {__version__} at {address}, {self._service.engine.device.name}, data in {settings.data}"]
        if token:
            lines.append(f"token: {secret}")
        lines.append(
            f"curl -s '{address}/v1/runs?wait=60'{header} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )
        print("\n".join(lines), flush=True)  # noqa: T201  a person reads it


def serve(settings: Settings) -> None:
    """Serve until a signal says to stop."""
    configure(settings.log)
    sys.setswitchinterval(SWITCH)
    _allow_files(settings.limits.connections)
    service = build(settings)
    config = uvicorn.Config(
        application(service),
        host=settings.host,
        port=settings.port,
        http=impatient(settings.limits.header_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.limits.connections,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
    )
    server = Server(config, service)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)


def _allow_files(connections: int) -> None:
    """As many open files as connections may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
