"""What a client asks for, read and prepared: bodies, the graphs in them, and a memory of those that come again."""

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from engine.digest import Digest
from engine.engine import Engine
from engine.errors import GraphError, Problem
from engine.file import ModelFile
from engine.flat import Cell
from engine.graph import Graph
from engine.program import Program
from engine.run import NodeReport
from server.front import Front
from server.limits import judge_document, judge_program, judge_size
from server.problem import Refusal
from server.schema import GraphRequest, Request, RunRequest
from server.settings import Limits

R = TypeVar("R", bound=Request)
BLOB = "blob:"
"""What the name of an uploaded file begins with, in a graph."""
REMEMBERED = 10_000
"""Nodes of all graphs that are remembered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a finished run of a graph is answered with, as long as the same values come out."""

    identities: Mapping[str, Digest]
    nodes: Mapping[str, NodeReport]
    outputs: str
    report: str
    blobs: tuple[str, ...]


@dataclass(eq=False)
class Prepared:
    """A graph that has been judged, with what a run of it needs."""

    graph: Graph
    program: Program
    outputs: tuple[str, ...] | None
    document: str
    title: str
    models: frozenset[str]
    blobs: tuple[str, ...]
    cells: Mapping[str, Sequence[Cell]]
    drawn: bool = False
    """Whether fresh seeds were written into it, so that the next submission of the same body is another graph."""
    answer: Answer | None = None

    @property
    def wanted(self) -> list[str]:
        """Names of everything that the engine shall give: the outputs, and the cells behind them."""
        return [*self.names, *(cell.link for listed in self.cells.values() for cell in listed)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(self.program.outputs) if self.outputs is None else self.outputs


class Preparer:
    """Reads graphs and judges them. Safe to use from several threads."""

    def __init__(self, engine: Engine, front: Front, limits: Limits) -> None:
        self._engine = engine
        self._front = front
        self._limits = limits
        self._known: OrderedDict[bytes, tuple[RunRequest, Prepared]] = OrderedDict()
        self._nodes = 0
        self._lock = threading.Lock()

    def known(self, key: bytes) -> tuple[RunRequest, Prepared] | None:
        """What a body with this sha256 was found to ask for, unless it is too long ago."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def remember(self, key: bytes, request: RunRequest, prepared: Prepared) -> None:
        """Keep what was prepared, for as long as there is room; not where every submission draws other seeds."""
        with self._lock:
            if key in self._known:
                return
            self._known[key] = request, prepared
            self._nodes += len(prepared.program.steps)
            while self._nodes > REMEMBERED and len(self._known) > 1:
                _, (_, old) = self._known.popitem(last=False)
                self._nodes -= len(old.program.steps)

    def forget_answers(self) -> None:
        """The files of some answers may be gone."""
        with self._lock:
            for _, prepared in self._known.values():
                prepared.answer = None

    def graph(self, request: GraphRequest) -> Graph:
        """The graph that a request describes. Raises GraphError and Refusal."""
        if isinstance(request.graph, str):
            graph = self._front.find(request.graph)
        else:
            judge_size(request.graph, self._limits)
            graph = self._front.parse(request.graph)
        judge_document(graph, self._limits)
        if request.set:
            graph = graph.set(request.set)
        if request.sweep is not None:
            graph = graph.replace(sweep=request.sweep.model_dump(mode="json", exclude_defaults=True))
            judge_document(graph, self._limits)
        return graph

    def prepare(self, graph: Graph, outputs: Sequence[str] | None) -> Prepared:
        """Judge a graph, and draw its fresh seeds. Raises GraphError and Refusal."""
        settled = self._engine.settle(graph)
        program = self._engine.program(settled)
        judge_program(program, self._limits)
        names = tuple(program.wanted(outputs)) if outputs else None
        files = [named for step in program.steps for named in step.files.values() if not named[0].literal_counts]
        return Prepared(
            settled,
            program,
            names,
            compact(settled.dump(inline=True)),
            settled.title()[:200],
            frozenset(name for kind, name in files if issubclass(kind, ModelFile)),
            tuple(sorted({name.removeprefix(BLOB) for _, name in files if name.startswith(BLOB)})),
            {name: program.swept[name].cells for name in names or program.outputs if name in program.swept},
            drawn=settled is not graph,
        )

    def again(self, document: str, outputs: tuple[str, ...] | None) -> Prepared:
        """A run that was accepted before, from its document. Raises GraphError and Refusal."""
        key = sha256(compact([document, outputs]).encode()).digest()
        found = self.known(key)
        if found is not None:
            return found[1]
        prepared = self.prepare(self._front.parse(json.loads(document)), outputs)
        self.remember(key, _PLAIN, prepared)
        return prepared


_PLAIN = RunRequest(graph="")


def read(body: bytes, model: type[R]) -> R:
    """A JSON body as a request. Raises Refusal, naming everything that is wrong with it."""
    raw = loads(body)
    if not isinstance(raw, dict):
        raise Refusal("invalid-request", f"The body is a JSON {_kind(raw)}; send one JSON object.")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False, include_context=False)]
        raise Refusal("invalid-request", f"The body is refused: {problems[0]}", problems=problems) from None
    except RecursionError:
        raise Refusal("malformed", "The body is nested too deeply.") from None


def loads(body: bytes) -> Any:
    """JSON in UTF-8, in which every name stands once and numbers are finite. Raises Refusal."""
    try:
        raw = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_not_finite, parse_float=_finite
        )
        if b"\\ud" in body.lower():
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refusal("malformed", "A text holds half of a surrogate pair; send whole characters.") from None
    except UnicodeDecodeError as error:
        raise Refusal("malformed", f"The body is not UTF-8: {error.reason} at byte {error.start}.") from None
    except RecursionError:
        raise Refusal("malformed", "The body is nested too deeply.") from None
    except ValueError as error:
        raise Refusal("malformed", f"The body is not JSON: {error}; send one JSON object.") from None
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _problem(item: Mapping[str, Any]) -> Problem:
    return Problem(".".join(map(str, item["loc"])), str(item["msg"]), str(item["type"]))


def _kind(raw: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(raw), "number")


def refused(error: GraphError | Refusal) -> list[Problem]:
    """What is wrong, as a list."""
    return list(error.problems) or [Problem("", str(error), getattr(error, "kind", "invalid"))]


def compact(value: Any) -> str:
    """Short JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
