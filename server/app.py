"""The application: routes behind the guard, the service behind the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from server.auth import Guard
from server.problem import install
from server.routes import blobs, cache, graphs, health, nodes, queue, runs
from server.schema import GraphRequest, MoveRequest, QueueRequest, RunRequest
from server.service import Service

ROUTERS = (runs.router, queue.router, graphs.router, nodes.router, blobs.router, cache.router, health.router)
UPLOADS = frozenset({"/v1/blobs"})
_READ = (RunRequest, GraphRequest, MoveRequest, QueueRequest)
"""Bodies that routes read themselves, for speed."""
_DESCRIPTION = """Submit typed node graphs for image diffusion. Nothing is ever computed twice, an accepted run is
never lost, and every node says why it ran."""


def application(service: Service) -> ASGIApp:
    """The whole service as an ASGI application. It opens the service when it starts, and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.open()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="Calotype",
        version=service.front.version,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    install(app)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    return Guard(app, service.settings, uploads=UPLOADS)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the bodies that routes read themselves."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        for model in _READ:
            described = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas[model.__name__] = described
        app.openapi_schema = made
    return app.openapi_schema
