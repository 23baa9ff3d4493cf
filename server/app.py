"""The application: routes behind the guard, the service behind the routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

from server.auth import Guard
from server.openapi import openapi
from server.problem import install
from server.routes import blobs, cache, graphs, health, models, nodes, queue, runs
from server.service import Service

ROUTERS = (
    runs.router,
    queue.router,
    graphs.router,
    nodes.router,
    models.router,
    blobs.router,
    cache.router,
    health.router,
)
UPLOADS = frozenset({"/v1/blobs"})
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
    app.openapi = lambda: openapi(app, tokens=bool(service.settings.clients))  # type: ignore[method-assign]
    return Guard(app, service.settings, uploads=UPLOADS)
