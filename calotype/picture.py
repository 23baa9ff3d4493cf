"""Pictures on disk: a PNG carries the graph that made it, so that it can be made again."""

import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import PIL.Image
from PIL.PngImagePlugin import PngInfo

import pocket
from calotype.infotext import infotext
from calotype.library import INPUTS
from calotype.naming import stem, write
from engine.engine import Engine, Result
from engine.errors import FileError, GraphError, Problem
from engine.graph import Graph, Library
from engine.socket import Socket
from nodes.types import Image, Mask

CHUNK = "calotype"
"""Name of the PNG text chunk with the graph; the WebUI's is `parameters`."""


def save(result: Result, engine: Engine, folder: Path) -> dict[str, list[str]]:
    """Save every output that is a picture; returns the paths by output. Existing files are never replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    document = document_of(result, folder)
    program = engine.program(result.graph)
    digests = {name: file.digest.hex() for name, file in result.files.items()}
    paths: dict[str, list[str]] = {name: [] for name in result.outputs}
    for name, value in result.outputs.items():
        for index, picture in enumerate(pictures(value)):
            text = infotext(program, program.port(name), picture.size, digests, index)
            data = encode(picture, document, text)
            paths[name].append(str(write(folder, _stem(result.graph, name), data)))
    return paths


def pictures(value: Socket) -> Iterator[PIL.Image.Image]:
    """The pictures of an output; none where it is not one."""
    if isinstance(value, (Image, Mask)):
        for index in range(value.data.shape[0]):
            yield value.pil(index)


def document_of(result: Result, folder: Path | None = None, graph: Graph | None = None) -> str:
    """The graph as it ran: seeds drawn, subgraphs in place, digests of the files that it read.

    `meta.folders` says where files lay, seen from the picture's `folder`, so that they are found from elsewhere too;
    Calotype's own are always found. `graph` stands for the result's own, where only a part of that is wanted.
    """
    document = (graph or result.graph).dump(inline=True)
    files = {name: file.digest.hex() for name, file in sorted(result.files.items())}
    if folder is None:
        document["meta"] = {**document.get("meta", {}), "files": files}
        return json.dumps(document, ensure_ascii=False)
    named = [file for file in result.files.values() if file.path != pocket.FOLDER and not Path(file.name).is_absolute()]
    parents = {file.path.absolute().parents[len(Path(file.name).parts) - 1] for file in named} - {INPUTS}
    folders = sorted(os.path.relpath(parent, folder.absolute()) for parent in parents)
    document["meta"] = {**document.get("meta", {}), "files": files, "folders": folders}
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
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise GraphError([Problem("", f"{path} is not a picture that can be read: {error}", "unreadable")]) from error
    if text is None:
        raise GraphError([Problem("", f"{path} carries no graph; it was not made by Calotype", "no_graph")])
    graph = Graph.parse(text, library)
    graph.name = path.name
    return graph


def folders_of(graph: Graph, picture: Path) -> list[Path]:
    """Where the files of a picture's graph lay when it was made."""
    listed = graph.document.meta.get("folders")
    return [picture.parent / str(folder) for folder in listed] if isinstance(listed, list) else []


def changed_files(graph: Graph, engine: Engine, replaced: Collection[str]) -> list[Problem]:
    """Files that are not what they were when the picture that carries `graph` was made, but for those `replaced`."""
    known = graph.document.meta.get("files")
    problems = []
    for step in engine.program(graph).steps if isinstance(known, Mapping) else ():
        for name, named in step.files.items():
            place = f"{step.id}.{name}"
            expected = known.get(place) if isinstance(known, Mapping) else None
            if expected is None or place in replaced:
                continue
            try:
                found = engine.files.resolve(*named).digest.hex()
            except FileError:
                continue  # the run says so, with where it looked
            if found != expected:
                message = (
                    f"{named[1]!r} is not the file that the picture was made with; --set {place}=FILE takes another"
                )
                problems.append(Problem(f"nodes.{step.id}.params.{name}", message, "file_changed"))
    return problems


def _stem(graph: Graph, output: str) -> str:
    return stem(graph.name or "", graph.title(), output, graph.document.outputs)
