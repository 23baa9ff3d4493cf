"""Node types."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from server.problem import Refusal
from server.routes.state import described, service
from server.schema import NodeList
from server.views import dumped

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])


@router.get("", response_model=NodeList)
async def listed(request: Request) -> Response:
    """All node types: inputs, parameters with their JSON Schema, outputs."""
    found = service(request)
    types = {type_: found.front.describe(type_) for type_ in found.engine.registry}
    return Response(dumped({"nodes": types}), media_type="application/json")


@router.get("/{type_}", response_model=dict[str, Any], responses=described("not-found"))
async def one(request: Request, type_: Annotated[str, Path(max_length=200)]) -> Response:
    """One node type."""
    found = service(request)
    if type_ not in found.engine.registry:
        near = found.engine.registry.nearest(type_)
        hint = f', did you mean "{near}"?' if near else ""
        raise Refusal("not-found", f'There is no node type "{type_}"{hint}')
    return Response(dumped(dict(found.front.describe(type_))), media_type="application/json")
