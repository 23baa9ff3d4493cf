"""What is said to a service, and what its answers mean, without input or output of its own.

An exchange is a generator: it yields calls to make and pauses to take, is sent each answer, is thrown what went wrong
on the way, and returns what came of it. So the blocking client and the asynchronous one differ only in how they wait.
"""

import json
import math
import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx2
from pydantic import BaseModel, ValidationError

from calotype.client.errors import ServiceError, Unreachable, refusal
from engine.errors import CalotypeError, Problem
from engine.graph import Graph
from server.schema import Brief, RunView, Validation

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
AnyGraph = Graph | Mapping[str, Any] | str | Path
"""A graph or a document, the name of a graph that the service knows, or the path of a file here."""

BUSY = frozenset({429, 502, 503, 504})
"""Statuses after which a call is made again: the service, or what stands before it, has no time at present."""
PASSING = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
"""Failures that may be over in a moment."""
FIRST, LONGEST = 0.2, 5.0
"""Seconds of the first pause and, as they double, of the longest one."""
POLL = 30.0
"""Seconds for which the service is asked to hold an answer back until a run has ended."""
MEDIA = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)
"""How files begin that are taken as pictures."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to make; `path` begins after the service's address."""

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The end of an exchange, and what came of it."""

    value: T


Reply: TypeAlias = httpx2.Response | httpx2.TransportError | None
"""What comes of a call; nothing comes of a pause."""
Exchange: TypeAlias = Generator[Call | Pause, httpx2.Response | None, T]


def proceed(exchange: Exchange[T], reply: Reply) -> Call | Pause | Done[T]:
    """The next step of an exchange, after this reply to the last one; the first step follows None."""
    try:
        return exchange.throw(reply) if isinstance(reply, Exception) else exchange.send(reply)
    except StopIteration as end:
        return Done(end.value)


class Deadline:
    """A point in time that many steps share; None means that there is none."""

    def __init__(self, seconds: float | None = None) -> None:
        self._at = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, never below 0."""
        return max(0.0, self._at - time.monotonic())


class Patience:
    """How often something is tried again without success in between, and after which pauses."""

    def __init__(self, tries: int, until: Deadline) -> None:
        self._tries = tries
        self._until = until
        self._failed = 0

    def lost(self, error: httpx2.TransportError) -> Pause:
        """Pause before the next try after no answer came. Raises Unreachable where there is none."""
        return self._next(Unreachable.of(error), again=isinstance(error, PASSING))

    def refused(self, answer: httpx2.Response) -> Pause:
        """Pause before the next try after a refusal. Raises ServiceError where there is none."""
        return self._next(refusal(answer), again=answer.status_code in BUSY, at_least=_retry_after(answer))

    def renew(self) -> None:
        """Something succeeded."""
        self._failed = 0

    def _next(self, error: CalotypeError, *, again: bool, at_least: float = 0.0) -> Pause:
        if not again or self._failed >= self._tries or not self._until.left:
            raise error
        seconds = min(FIRST * 2**self._failed, LONGEST) * random.uniform(0.5, 1)  # noqa: S311  spreads, hides nothing
        self._failed += 1
        return Pause(min(max(seconds, at_least), self._until.left))


class Dialogue:
    """Everything that can be said to a service.

    A call is made again up to `tries` times where no answer comes or the service has no time. All calls are such that
    making them twice does what making them once does; of a submission, its key takes care.
    """

    def __init__(self, tries: int, timeout: float) -> None:
        self.tries = tries
        self._poll = min(POLL, timeout / 2)

    def ask(self, call: Call, until: Deadline | None = None) -> Exchange[httpx2.Response]:
        """The answer to a call. Raises ServiceError and Unreachable."""
        patience = Patience(self.tries, until or Deadline())
        while True:
            try:
                answer = yield call
            except httpx2.TransportError as error:
                yield patience.lost(error)
                continue
            assert answer is not None
            if answer.is_success:
                return answer
            yield patience.refused(answer)

    def read(
        self,
        model: type[M],
        method: str,
        path: str,
        document: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Exchange[M]:
        """The answer as a document of this model."""
        answer = yield from self.ask(_call(method, path, document, headers or {}))
        return _parsed(model, answer)

    def look(self, path: str) -> Exchange[dict[str, Any]]:
        """The answer as plain JSON."""
        answer = yield from self.ask(Call("GET", path))
        try:
            found: dict[str, Any] = answer.json()
        except ValueError:
            raise _unexpected(answer) from None
        return found

    def submit(self, body: Mapping[str, Any], key: str | None) -> Exchange[Brief]:
        """A run, accepted for good. With one key it is accepted once, however often it is sent."""
        return self.read(Brief, "POST", "/v1/runs", body, {"Idempotency-Key": key or uuid4().hex})

    def validate(self, body: Mapping[str, Any]) -> Exchange[list[Problem]]:
        """Everything that is wrong with a graph."""
        found = yield from self.read(Validation, "POST", "/v1/graphs/validate", body)
        return [Problem(item.path, item.message, item.code) for item in found.problems]

    def ended(self, run: str, until: Deadline) -> Exchange[RunView]:
        """A run, once it has ended. Raises TimeoutError, and the run goes on."""
        while True:
            wait, began = min(self._poll, until.left), time.monotonic()
            answer = yield from self.ask(Call("GET", f"/v1/runs/{run}?wait={wait:.3f}"), until)
            view = _parsed(RunView, answer)
            if view.state.final:
                return view
            if not until.left:
                raise overdue(run)
            if time.monotonic() - began < wait / 2:  # a service that stops holds no answer back
                yield Pause(FIRST)

    def picture(self, digest: str) -> Exchange[bytes]:
        """The file with this sha256. Raises ServiceError where another one comes."""
        answer = yield from self.ask(Call("GET", f"/v1/blobs/{quote(digest, safe='')}"))
        if sha256(answer.content).hexdigest() != digest:
            raise ServiceError(answer.status_code, "damaged", f"What came as {digest} has another sha256; try again.")
        return answer.content

    def upload(self, data: bytes) -> Exchange[str]:
        """What a file parameter takes as the name of this picture."""
        type_ = next((type_ for start, type_ in MEDIA if data.startswith(start)), "image/unknown")
        answer = yield from self.ask(Call("POST", "/v1/blobs", data, {"Content-Type": type_}))
        return str(answer.json()["source"])


def overdue(run: str) -> TimeoutError:
    """Error of a wait that took too long."""
    return TimeoutError(f"run {run} has not ended in time; it goes on, wait again or cancel it")


def asked(
    graph: AnyGraph,
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002  the service's word
    sweep: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Body of a request about a graph; what is None is left out. Raises GraphError for a file."""
    fields = {"set": set, "sweep": sweep, "outputs": list(outputs) if outputs else None, **more}
    return {"graph": _document(graph), **{name: value for name, value in fields.items() if value is not None}}


def name_of(graph: AnyGraph) -> str:
    """What pictures of a graph are named after; empty where it is its title."""
    match graph:
        case str():
            return graph
        case Path():
            return graph.name
        case Graph():
            return graph.name or ""
    return ""


def _document(graph: AnyGraph) -> str | dict[str, Any]:
    match graph:
        case str():
            return graph
        case Path():
            from calotype.library import find  # noqa: PLC0415  who sends no files needs no library

            return find(str(graph)).dump(inline=True)
        case Graph():
            return graph.dump(inline=True)
    return dict(graph)


def _call(method: str, path: str, document: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Call:
    if document is None:
        return Call(method, path, None, headers)
    body = json.dumps(document, ensure_ascii=False, allow_nan=False, default=_refuse).encode()
    return Call(method, path, body, {"Content-Type": "application/json", **headers})


def _refuse(value: object) -> NoReturn:
    hint = "; a picture is not sent by itself: give what `upload` returns" if isinstance(value, Path) else ""
    raise TypeError(f"expected values of JSON, got {value!r:.100}{hint}")


def _parsed(model: type[M], answer: httpx2.Response) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise _unexpected(answer) from None


def _unexpected(answer: httpx2.Response) -> ServiceError:
    detail = f"Expected an answer of Calotype's service from {answer.url}, got {answer.text[:100]!r}."
    return ServiceError(answer.status_code, "unexpected", detail)


def _retry_after(answer: httpx2.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), 60.0) if text.isdigit() else 0.0
