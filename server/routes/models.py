"""Models that graphs may name."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.routes.state import described, service
from server.schema import ModelKind, ModelList
from server.views import dumped

router = APIRouter(prefix="/v1/models", tags=["models"])
Kind = Annotated[ModelKind | None, Query(description="Only these.")]


@router.get("", response_model=ModelList, responses=described("invalid-request"))
async def listed(request: Request, kind: Kind = None) -> Response:
    """The models that can be named: what each is by its tensors, and what is wrong with it."""
    found: list[dict[str, Any]] = await asyncio.to_thread(lambda: list(map(dict, service(request).front.models(kind))))
    return Response(dumped({"models": found}), media_type="application/json")
