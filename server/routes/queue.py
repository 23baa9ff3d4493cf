"""The queue: what waits, and whether it moves."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.routes.state import body, described, service
from server.schema import QueueRequest, QueueView
from server.service import Service
from server.submission import read
from server.views import dumped

router = APIRouter(prefix="/v1/queue", tags=["queue"])


@router.get("", response_model=QueueView)
async def look(request: Request) -> Response:
    """What waits, in the order in which it will be taken, and what runs."""
    return _view(service(request))


@router.patch(
    "",
    response_model=QueueView,
    responses=described("invalid-request", "storage"),
    openapi_extra={"requestBody": body("QueueRequest")},
)
async def pause(request: Request) -> Response:
    """Have the queue stand still, or go on; what runs goes on. It is remembered over restarts."""
    found = service(request)
    await found.runs.pause(paused=read(await request.body(), QueueRequest).paused)
    return _view(found)


def _view(found: Service) -> Response:
    lane = found.runs.lane
    view = {"paused": lane.paused, "waiting": lane.order(), "running": [job.id for job in lane.running()]}
    return Response(dumped(view), media_type="application/json")
