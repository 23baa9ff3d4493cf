"""Health and figures."""

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.routes.state import service
from server.schema import Health
from server.views import dumped

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=Health)
async def health(request: Request) -> Response:
    """Whether the service works, and what hinders it. The status is 200 as long as it answers."""
    found = service(request)
    reasons = found.hindrances()
    status = "stopping" if found.runs.closing else "degraded" if reasons else "ok"
    view = {
        "status": status,
        "reasons": reasons,
        "version": found.front.version,
        "device": found.engine.device.name,
        "queued": len(found.runs.lane),
        "running": len(found.runs.lane.running()),
    }
    return Response(dumped(view), media_type="application/json")


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' format."}},
)
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    text = await asyncio.to_thread(service(request).metrics.text)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})
