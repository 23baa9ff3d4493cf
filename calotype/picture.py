"""Pictures on disk: a PNG carries the graph that made it, so that it can be made again."""

import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL.Image

from calotype import png
from calotype.caption import caption
from calotype.library import INPUTS
from calotype.naming import stem, write
from engine.engine import Engine, Result
from engine.errors import FileError, GraphError, Problem
from engine.file import File
from engine.flat import Cell
from engine.graph import Graph, Library
from engine.program import Program, Step
from engine.socket import Socket
from engine.sweep import suffix, within
from nodes.files import Styles
from nodes.types import Image, Mask

CHUNK = "calotype"
"""Name of the PNG text chunk with the graph; the WebUI's is `parameters`."""


def save(result: Result, engine: Engine, folder: Path) -> dict[str, list[str]]:
    """Save every output that is a picture; returns the paths by output. Existing files are never replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    program = engine.program(result.graph)
    paths: dict[str, list[str]] = {name: [] for name in result.outputs}
    for name, data in _encoded(_drawn(result, program, folder)):
        paths[name].append(str(write(folder, _stem(result.graph, called(program, name)), data)))
    return paths


class _Drawn(NamedTuple):
    """A picture of an output, and what is written into its file."""

    output: str
    picture: PIL.Image.Image
    document: str
    text: str | None


def _drawn(result: Result, program: Program, folder: Path) -> Iterator[_Drawn]:
    whole = document_of(result, folder=folder)
    for name, value in result.outputs.items():
        cell = program.cells.get(name)
        document = document_of(result, cell, folder) if cell else whole
        for index, picture in enumerate(pictures(value)):
            text = caption(program, program.port(name), picture.size, result.files, index=index, graph=result.graph)
            yield _Drawn(name, picture, document, text)


def _encoded(drawn: Iterable[_Drawn]) -> Iterator[tuple[str, bytes]]:
    """The outputs and their PNGs, in order, as many made at a time as there are cores: zlib lets other threads run."""
    most = os.cpu_count() or 1
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    with ThreadPoolExecutor(most, "png") as pool:
        for each in drawn:
            waiting.append((each.output, pool.submit(encode, each.picture, each.document, each.text)))
            if len(waiting) > most:
                output, oldest = waiting.popleft()
                yield output, oldest.result()
        yield from ((output, oldest.result()) for output, oldest in waiting)


def pictures(value: Socket) -> Iterator[PIL.Image.Image]:
    """The pictures of an output; none where it is not one."""
    if isinstance(value, (Image, Mask)):
        for index in range(value.data.shape[0]):
            yield value.pil(index)


def called(program: Program, output: str) -> str:
    """What an output is called in a file's name: a cell by where it stands, such as `image-x1-y0`."""
    cell = program.cells.get(output)
    if output in program.outputs:
        return output
    if cell is not None:
        return f"{cell.output}-{suffix(cell.place).replace(',', '-')}"
    sheets = {link: f"{name}-z{at}" for name, swept in program.swept.items() for at, link in enumerate(swept.sheets)}
    return sheets.get(output, output)


def document_of(result: Result, cell: Cell | None = None, folder: Path | None = None) -> str:
    """The graph as it ran, or that of one cell alone: seeds drawn, subgraphs in place, digests of the files it read.

    `meta.folders` says where files lay, seen from the picture's `folder`, so that they are found from elsewhere too;
    Calotype's own are always found.
    """
    graph = result.graph.replace(sweep=None).set(cell.set) if cell else result.graph
    document = graph.dump(inline=True)
    files = {name: file.digest.hex() for name, file in sorted(_files_of(result, cell).items())}
    if folder is None:
        document["meta"] = {**document.get("meta", {}), "files": files}
        return json.dumps(document, ensure_ascii=False)
    roots = {part.root.absolute() for file in result.files.values() for part in file.parts if part.root is not None}
    folders = sorted(os.path.relpath(root, folder.absolute()) for root in roots - {INPUTS})
    document["meta"] = {**document.get("meta", {}), "files": files, "folders": folders}
    return json.dumps(document, ensure_ascii=False)


def _files_of(result: Result, cell: Cell | None) -> dict[str, File]:
    """`node.param` -> the files that the result, or one cell of it, was made of."""
    found = {}
    for place, file in result.files.items():
        step, _, param = place.rpartition(".")
        node = within(step, cell.place) if cell else step
        if node is not None:
            found[f"{node}.{param}"] = file
    return found


def encode(picture: PIL.Image.Image, document: str, text: str | None) -> bytes:
    """A PNG with the graph and the `parameters` text in it."""
    return png.encode(picture, {"parameters": text, CHUNK: document} if text else {CHUNK: document})


def read_graph(path: Path, library: Library) -> Graph:
    """The graph in a picture made by Calotype. Raises GraphError."""
    try:
        with PIL.Image.open(path) as picture:
            text = getattr(picture, "text", {}).get(CHUNK)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise GraphError([Problem("", f"{path} is not a picture that can be read: {error}", "unreadable")]) from error
    if text is None:
        raise GraphError(
            [Problem("", f"{path} carries no graph; it was not made by Calotype (see calotype import)", "no_graph")]
        )
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
            if expected is None or place in replaced or _is_idle(named[0], step):
                continue
            try:
                found = engine.files.resolve(*named).digest.hex()
            except FileError:
                continue  # the run says so, with where it looked
            if found != expected:
                problems.append(Problem(f"nodes.{step.id}.params.{name}", _changed(*named, place), "file_changed"))
    return problems


def _is_idle(kind: type[File], step: Step) -> bool:
    """Whether a file says nothing in a node: a table of styles, of which none is asked for."""
    return kind is Styles and not step.values.get("styles")


def _changed(kind: type[File], literal: str, place: str) -> str:
    if kind.literal_counts:
        return f"a file that {literal!r} mentions is not what it was for the picture; --set {place}=TEXT takes others"
    return f"{literal!r} is not the file that the picture was made with; --set {place}=FILE takes another"


def _stem(graph: Graph, output: str) -> str:
    return stem(graph.name or "", graph.title(), output, graph.document.outputs)
