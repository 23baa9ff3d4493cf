"""Refusals of the HTTP service: what an answer that is not a success says, as RFC 9457 problem documents."""

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import CalotypeError, GraphError, Problem

LISTED = 100
"""Problems that one answer lists at most; `omitted` counts the rest."""
CLIPPED = 1000
"""Characters of one text at most: a client may have named something in megabytes."""
_log = logging.getLogger("calotype.server")


class Kind(NamedTuple):
    """What all refusals of one kind have in common."""

    status: int
    title: str
    headers: Mapping[str, str] = {}


_LATER = {"Retry-After": "5"}

KINDS: Mapping[str, Kind] = {
    "malformed": Kind(400, "The request cannot be understood"),
    "unauthorized": Kind(401, "A token is needed", {"WWW-Authenticate": "Bearer"}),
    "bad-origin": Kind(403, "This web page may not use the service"),
    "not-found": Kind(404, "There is no such thing"),
    "method-not-allowed": Kind(405, "The method is not possible here"),
    "not-acceptable": Kind(406, "Nothing acceptable can be sent"),
    "timeout": Kind(408, "The request took too long to arrive", {"Connection": "close"}),
    "conflict": Kind(409, "The state of things does not allow it"),
    "gone": Kind(410, "It is no longer kept"),
    "too-large": Kind(413, "The body is too large"),
    "unsupported-media-type": Kind(415, "The body is of a type that is not read here"),
    "bad-host": Kind(421, "The service is not known by this name"),
    "invalid-request": Kind(422, "The request does not fit its description"),
    "invalid-graph": Kind(422, "The graph is refused"),
    "idempotency-conflict": Kind(422, "The Idempotency-Key was used for another request"),
    "webhook-refused": Kind(422, "The webhook may not be called"),
    "limit-bytes": Kind(422, "The graph document is too large"),
    "limit-nodes": Kind(422, "The graph has too many nodes"),
    "limit-depth": Kind(422, "The graph is nested too deeply"),
    "limit-pixels": Kind(422, "A picture is too large"),
    "limit-steps": Kind(422, "Too many sampling steps"),
    "limit-batch": Kind(422, "The batch is too large"),
    "limit-sweep": Kind(422, "The sweep has too many cells"),
    "unreadable-picture": Kind(422, "The picture cannot be read"),
    "too-many-requests": Kind(429, "Too many at once", _LATER),
    "internal": Kind(500, "The service failed"),
    "queue-full": Kind(503, "The queue is full", _LATER),
    "unavailable": Kind(503, "The service cannot do this now", _LATER),
    "quota": Kind(507, "The quota is used up"),
    "storage": Kind(507, "The disk is full or cannot be written"),
}
"""Every kind of refusal; the type of a problem document is `urn:calotype:problem:KIND`."""

_OF_STATUS = {kind.status: name for name, kind in reversed([*KINDS.items()])} | {403: "malformed", 503: "unavailable"}


class Refusal(CalotypeError):
    """An HTTP request is refused. `kind` is a key of KINDS, `detail` says what came, what was expected, what to do."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        problems: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        self.kind, self.detail, self.problems, self.extra = kind, detail, tuple(problems), extra
        self.status, self.title, own = KINDS[kind]
        self.headers = {**own, **(headers or {})}
        super().__init__(detail)

    def document(self, instance: str = "") -> dict[str, Any]:
        """Problem document as plain values. `instance` is the path that was asked for."""
        document: dict[str, Any] = {
            "type": f"urn:calotype:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": _clip(self.detail),
        }
        if instance:
            document["instance"] = instance
        if self.problems:
            document["problems"] = [listed(problem) for problem in self.problems[:LISTED]]
        if len(self.problems) > LISTED:
            document["omitted"] = len(self.problems) - LISTED
        return document | self.extra

    def response(self, instance: str = "") -> Response:
        """Problem document as an answer."""
        # Escaped to ASCII, because a lone surrogate out of a request would not encode.
        body = json.dumps(self.document(instance), separators=(",", ":"))
        return Response(body, self.status, self.headers, "application/problem+json")


def listed(problem: Problem) -> dict[str, str]:
    """One entry of `problems`."""
    return {"path": _clip(problem.path), "message": _clip(problem.message), "code": problem.code}


def install(app: FastAPI) -> None:
    """Make every error that leaves a route of `app` a problem document."""
    for error in (Refusal, GraphError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, refused)
    app.add_middleware(Incidents)


async def refused(request: Request, error: Exception) -> Response:
    """Answer to an error that the client can do something about."""
    return refusal(request, error).response(quote(request.scope["path"], errors="replace"))


def refusal(request: Request, error: Exception) -> Refusal:
    """Refusal that an error amounts to."""
    if isinstance(error.__cause__, Refusal):  # FastAPI wraps what reading a body raises
        return error.__cause__
    match error:
        case Refusal():
            return error
        case GraphError():
            return Refusal("invalid-graph", _counted(error.problems, "the graph"), problems=error.problems)
        case RequestValidationError():
            return _invalid(error.errors())
        case HTTPException():
            return _http(request, error)
        case _:
            raise error


def _invalid(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """Refusal of a request that FastAPI could not parse."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Refusal("malformed", f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    problems = [Problem(_dotted(error["loc"]), error["msg"], error["type"]) for error in errors]
    return Refusal("invalid-request", _counted(problems, "the request"), problems=problems)


def _http(request: Request, error: HTTPException) -> Refusal:
    """Refusal that the framework raised: an unknown path, an unknown method, a body that is not JSON."""
    kind = _OF_STATUS.get(error.status_code, "malformed" if error.status_code < 500 else "internal")
    detail = str(error.detail)
    if kind == "not-found":
        detail = f"Nothing is at {_clip(request.scope['path'])}; /openapi.json lists what there is."
    elif kind == "method-not-allowed":
        allowed = _allowed(request, error)
        detail = f"{request.method} is not possible here; allowed: {allowed or 'nothing'}."
        return Refusal(kind, detail, headers={"Allow": allowed})
    elif isinstance(error.__cause__, (ValueError, RecursionError)):
        detail = "The body is not JSON in UTF-8, or is nested too deeply; send one JSON object."
    return Refusal(kind, detail, headers=error.headers)


def _allowed(request: Request, error: HTTPException) -> str:
    """Methods of all routes that share a path: the framework names those of one of them only."""
    path, paths = request.scope["path"], request.app.openapi().get("paths", {})
    shared = next((methods for at, methods in paths.items() if compile_path(at)[0].match(path)), ())
    named = (error.headers or {}).get("Allow", "").split(", ")
    return ", ".join(sorted({*map(str.upper, shared), *filter(None, named)}))


class Incidents:
    """ASGI middleware: an error that nobody expected becomes `internal`, and only the log tells what it was."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            return
        except Exception:
            if scope["type"] != "http":
                raise
            response = incident(scope)
            if not started:
                await response(scope, receive, send)


def incident(scope: Scope) -> Response:
    """Log the error being handled under a new incident id, and make an answer that names nothing but the id."""
    number = secrets.token_hex(8)
    _log.exception("incident %s: %s %s", number, scope["method"], quote(scope["path"], errors="replace"))
    detail = "The service failed in a way nobody expected. Its log says more, under the incident id."
    return Refusal("internal", detail, incident=number).response()


def _counted(problems: Sequence[Problem], subject: str) -> str:
    """`One thing is wrong with the graph: PATH: MESSAGE`, so that the detail alone helps already."""
    if len(problems) == 1:
        return f"One thing is wrong with {subject}: {problems[0]}"
    return f"{len(problems)} things are wrong with {subject}; the first: {problems[0]}"


def _dotted(parts: Iterable[str | int]) -> str:
    return ".".join(map(str, parts))


def _clip(text: str) -> str:
    return text if len(text) <= CLIPPED else f"{text[:CLIPPED]}…"
