"""The cache: what it holds, and how to empty it."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.routes.state import service
from server.schema import CacheView
from server.service import Service
from server.views import dumped

router = APIRouter(prefix="/v1/cache", tags=["cache"])


@router.get("", response_model=CacheView)
async def look(request: Request) -> Response:
    """Bytes per tier."""
    return await asyncio.to_thread(_view, service(request))


@router.delete("", response_model=CacheView)
async def clear(request: Request) -> Response:
    """Forget all computed values, on every tier. Runs and their results stay."""
    found = service(request)
    await asyncio.to_thread(found.engine.clear)
    return await asyncio.to_thread(_view, found)


def _view(found: Service) -> Response:
    return Response(dumped({"tiers": dict(found.engine.held())}), media_type="application/json")
