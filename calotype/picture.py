"""Pictures on disk: a PNG carries the graph that made it, so that it can be made again."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from calotype.infotext import infotext
from engine.engine import Engine, Result
from engine.errors import GraphError, Problem
from engine.graph import Graph, Library
from engine.socket import Socket
from nodes.types import Image, Mask

CHUNK = "calotype"
"""Name of the PNG text chunk with the graph; the WebUI's is `parameters`."""


def save(result: Result, engine: Engine, folder: Path) -> dict[str, list[str]]:
    """Save every output that is a picture; returns the paths by output. Existing files are never replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    document = document_of(result)
    program = engine.program(result.graph)
    paths: dict[str, list[str]] = {}
    for name, value in result.outputs.items():
        for index, picture in enumerate(pictures(value)):
            text = infotext(program, program.port(name), picture.size, result.files, index)
            data = encode(picture, document, text)
            paths.setdefault(name, []).append(str(_write(folder, _stem(result.graph, name), data)))
    return paths


def pictures(value: Socket) -> Iterator[PIL.Image.Image]:
    """The pictures of an output; none where it is not one."""
    if isinstance(value, (Image, Mask)):
        for index in range(value.data.shape[0]):
            yield value.pil(index)


def document_of(result: Result) -> str:
    """The graph as it ran: seeds drawn, subgraphs in place, and the digests of the files that it read."""
    document = result.graph.dump(inline=True)
    files = dict(sorted(result.files.items()))
    document["meta"] = {**document.get("meta", {}), "files": files}
    return json.dumps(document, ensure_ascii=False)


def encode(picture: PIL.Image.Image, document: str, text: str | None) -> bytes:
    """A PNG with the graph and the `parameters` text in it."""
    chunks = PngInfo()
    if text:
        chunks.add_itxt("parameters", text)
    chunks.add_itxt(CHUNK, document)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()


def read_graph(path: Path, library: Library) -> Graph:
    """The graph in a picture made by Calotype. Raises GraphError."""
    try:
        with PIL.Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(CHUNK)
    except (OSError, SyntaxError, ValueError) as error:
        raise GraphError([Problem("", f"{path} is not a picture that can be read: {error}", "unreadable")]) from error
    if text is None:
        raise GraphError([Problem("", f"{path} carries no graph; it was not made by Calotype", "no_graph")])
    graph = Graph.parse(text, library)
    graph.name = path.name
    return graph


def other_files(graph: Graph, files: Mapping[str, str]) -> Iterable[str]:
    """Files that are not what they were when the picture that carries `graph` was made."""
    known = graph.document.meta.get("files")
    if isinstance(known, Mapping):
        for name, digest in files.items():
            if known.get(name, digest) != digest:
                yield name


def _stem(graph: Graph, output: str) -> str:
    name = re.sub(r"\.\w+$", "", graph.name or "")
    known = "|".join(map(re.escape, graph.document.outputs))
    name = re.sub(rf"-({known})-\d{{5}}$", "", name) or graph.title()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", f"{name}-{output}").strip("_")


def _write(folder: Path, stem: str, data: bytes) -> Path:
    """Write under the next free number; the file appears whole or not at all."""
    taken = [
        int(found[1]) for path in folder.glob(f"{stem}-*.png") if (found := re.search(r"-(\d{5})\.png$", path.name))
    ]
    temporary = folder / f".{stem}.{os.getpid()}.part"
    temporary.write_bytes(data)
    try:
        for number in count(max(taken, default=0) + 1):
            path = folder / f"{stem}-{number:05}.png"
            try:
                os.link(temporary, path)
            except FileExistsError:
                continue
            return path
    finally:
        temporary.unlink()
    raise AssertionError
