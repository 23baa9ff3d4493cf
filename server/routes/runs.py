"""Runs: submit, look at, cancel, move, follow."""

import json
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from server.history import BadCursor, Run, State
from server.problem import Refusal
from server.routes.state import body, client, described, service
from server.schema import Brief, MoveRequest, RunList, RunView
from server.service import Service
from server.story import told
from server.stream import replay
from server.submission import read
from server.views import brief, dumped, whole

router = APIRouter(prefix="/v1/runs", tags=["runs"])
Id = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="A run's id.")]
Wait = Annotated[float, Query(ge=0, le=3600, description="Seconds to wait for the end of the run.")]
PAGE = 200
"""Runs on one page, at most."""
_SSE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.post(
    "",
    status_code=202,
    response_model=None,
    responses={
        200: {"model": RunView, "description": "With `wait`: the run has ended."},
        202: {"model": Brief, "description": "Accepted: it is on the disk, and will run whatever happens."},
        **described("malformed", "invalid-request", "invalid-graph", "queue-full", "storage"),
    },
    openapi_extra={
        "requestBody": body("RunRequest"),
        "parameters": [
            {
                "name": "wait",
                "in": "query",
                "required": False,
                "description": "Seconds to wait for the end of the run, at most `limits.wait`.",
                "schema": {"type": "number", "minimum": 0, "maximum": 3600, "default": 0},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "A second submission with the same key and body within 24 hours is the first one.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]*$"},
            },
        ],
    },
)
async def submit(request: Request) -> Response:
    """Submit a graph."""
    found = service(request)
    seconds = _seconds(request.query_params.get("wait"))
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise Refusal("invalid-request", "Idempotency-Key: send 1 to 255 visible ASCII characters.")
    receipt, state = await found.runs.submit(await request.body(), client(request), key)
    headers = {"Location": f"/v1/runs/{receipt.id}"}
    if receipt.known:
        headers["Idempotency-Replayed"] = "true"
    if seconds:
        await found.runs.wait(receipt.id, min(seconds, found.settings.limits.wait))
        run = _run(found, receipt.id)
        if run.state.final:
            return _json(whole(run, found.history), headers=headers)
        return _json(brief(run.id, str(run.state)), 202, headers)
    return _json(brief(receipt.id, state.value), 202, headers)


@router.get("", response_model=RunList, responses=described("invalid-request"))
async def listed(
    request: Request,
    state: Annotated[State | None, Query(description="Only runs in this state.")] = None,
    of: Annotated[str | None, Query(max_length=64, description="Only runs of this client.")] = None,
    after: Annotated[str | None, Query(max_length=200, description="From the `next` of a page.")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE, description="Runs on a page.")] = 50,
) -> Response:
    """List runs, newest first."""
    found = service(request)
    try:
        page = found.history.page(state=state, client=of, after=after, limit=limit)
    except BadCursor as error:
        raise Refusal("invalid-request", str(error)) from None
    query = {"state": state, "of": of, "limit": limit, "after": page.after}
    address = f"/v1/runs?{urlencode({name: value for name, value in query.items() if value is not None})}"
    runs = [whole(run, found.history, nodes=False) for run in page.runs]
    return _json({"runs": runs, "next": address if page.after else None})


@router.get("/{run}", response_model=RunView, responses=described("not-found"))
async def one(request: Request, run: Id, wait: Wait = 0) -> Response:
    """Look at a run, or wait for its end."""
    found = service(request)
    row = _run(found, run)
    if wait and not row.state.final:
        await found.runs.wait(run, min(wait, found.settings.limits.wait))
        row = _run(found, run)
    return _json(whole(row, found.history))


@router.get("/{run}/graph", response_model=dict[str, Any], responses=described("not-found"))
async def graph(request: Request, run: Id) -> Response:
    """The graph of a run as it ran: seeds drawn, graphs within it in place."""
    text = service(request).history.graph_of(run)
    if text is None:
        raise _unknown(run)
    return Response(text.encode(), media_type="application/json")


@router.delete("/{run}", response_model=RunView, responses=described("not-found", "storage"))
async def cancel(request: Request, run: Id) -> Response:
    """Cancel a run: at once where it waits, within one step of a sampler where it runs. Ended runs stay as they are."""
    found = service(request)
    return _json(whole(await found.runs.cancel(run), found.history))


@router.patch(
    "/{run}",
    response_model=RunView,
    responses=described("not-found", "conflict", "invalid-request"),
    openapi_extra={"requestBody": body("MoveRequest")},
)
async def move(request: Request, run: Id) -> Response:
    """Give a waiting run another priority, or another place among the waiting runs of its client."""
    found = service(request)
    _run(found, run)
    await found.runs.move(run, read(await request.body(), MoveRequest))
    return _json(whole(_run(found, run), found.history))


@router.get("/{run}/events", response_model=None, responses={**_SSE, **described("not-found", "too-many-requests")})
async def events(
    request: Request,
    run: Id,
    last_event_id: Annotated[str | None, Header(max_length=64, description="Go on after this event.")] = None,
) -> Response:
    """Follow a run: what it has done so far, then what it does, until it ends."""
    found = service(request)
    row = _run(found, run)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if not row.state.final:
        try:
            live = found.streams.follow(run, last_event_id)
            return StreamingResponse(live, media_type="text/event-stream", headers=headers)
        except KeyError:
            row = _run(found, run)  # it has ended in between
    frames = b"".join(replay(_stored(found, row), max(row.attempts, 1), last_event_id))
    return Response(frames, media_type="text/event-stream", headers=headers)


def _stored(found: Service, row: Run) -> list[Any]:
    """Events of a run that has ended; those of one in which nothing ran follow from its report."""
    text = found.history.events_of(row.id)
    if text is not None:
        return list(json.loads(text))
    report = json.loads(found.history.report_of(row.id) or "{}")
    return [*(told(report) if report else []), ("run.finished", {"state": str(row.state), "seconds": row.seconds})]


def _run(found: Service, run: str) -> Run:
    row = found.history.run(run)
    if row is None:
        raise _unknown(run)
    return row


def _unknown(run: str) -> Refusal:
    return Refusal("not-found", f"There is no run {run}; /v1/runs lists those that are remembered.")


def _seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise Refusal("invalid-request", f"wait: expected seconds between 0 and 3600, got {text[:40]!r}.")
    return value


def _json(document: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumped(document), status, headers, "application/json")
