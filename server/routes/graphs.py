"""Graphs: the saved ones, and what is wrong with, or would become of, others."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from engine.errors import GraphError
from engine.program import validate
from server.problem import Refusal, listed
from server.routes.state import body, described, service
from server.schema import GraphList, GraphRequest, PlanView, Validation
from server.service import Service
from server.submission import read, refused
from server.views import dumped

router = APIRouter(prefix="/v1", tags=["graphs"])
Name = Annotated[str, Path(max_length=200, description="Name of a saved graph.")]
_BODY = {"requestBody": body("GraphRequest")}


@router.post(
    "/plan",
    response_model=PlanView,
    responses=described("malformed", "invalid-request", "invalid-graph"),
    openapi_extra=_BODY,
)
async def plan(request: Request) -> Response:
    """What a run would do with every node, and why, without running anything."""
    return _json(await asyncio.to_thread(_plan, service(request), await request.body()))


@router.post(
    "/graphs/validate",
    response_model=Validation,
    responses=described("malformed", "invalid-request"),
    openapi_extra=_BODY,
)
async def check(request: Request) -> Response:
    """Everything that is wrong with a graph, at once."""
    return _json(await asyncio.to_thread(_validate, service(request), await request.body()))


@router.get("/graphs", response_model=GraphList)
async def saved(request: Request) -> Response:
    """The saved graphs, and what each of them exposes."""
    found = service(request)
    return _json({"graphs": await asyncio.to_thread(lambda: [_brief(found, name) for name in found.front.saved()])})


@router.get("/graphs/{name}", response_model=dict[str, Any], responses=described("not-found"))
async def one(request: Request, name: Name) -> Response:
    """A saved graph, as a document."""
    try:
        graph = await asyncio.to_thread(service(request).front.find, name)
    except GraphError as error:
        raise Refusal("not-found", str(error)) from None
    return _json(graph.dump())


def _plan(found: Service, body: bytes) -> dict[str, Any]:
    _, prepared = found.runs.prepare(body, GraphRequest)
    planned = found.engine.plan(prepared.graph, prepared.outputs)
    return {
        "nodes": [
            {
                "node": item.node,
                "type": item.type,
                "verdict": str(item.verdict),
                "reason": item.reason,
                "needs": list(item.needs),
            }
            for item in planned
        ]
    }


def _validate(found: Service, body: bytes) -> dict[str, Any]:
    request = read(body, GraphRequest)
    try:
        graph = found.runs.preparer.graph(request)
        problems = validate(graph, found.engine.registry, list(graph.document.arguments))
        if not problems and not graph.document.arguments:
            found.runs.preparer.prepare(graph, request.outputs)
    except (GraphError, Refusal) as error:
        problems = refused(error)
    return {"valid": not problems, "problems": [listed(problem) for problem in problems]}


def _brief(found: Service, name: str) -> dict[str, Any]:
    graph = found.front.find(name)
    return {
        "name": name,
        "title": graph.title(),
        "description": str(graph.document.meta.get("description", "")),
        "exposes": list(graph.exposed()),
        "outputs": list(graph.document.outputs),
        "url": f"/v1/graphs/{name}",
    }


def _json(document: dict[str, Any]) -> Response:
    return Response(dumped(document), media_type="application/json")
