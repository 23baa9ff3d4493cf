"""What every route needs: the service behind it, who asks, and how refusals are described."""

from typing import Any

from starlette.requests import Request

from server.problem import KINDS
from server.service import Service


def service(request: Request) -> Service:
    """The service that a request is for."""
    found: Service = request.app.state.service
    return found


def client(request: Request) -> str:
    """Who asks, as the guard found out."""
    found: str = request.scope["state"]["client"]
    return found


def body(model: str) -> dict[str, Any]:
    """OpenAPI's words for a JSON body that the route reads itself."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def described(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's words for refusals, by status."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title = KINDS[kind].status, KINDS[kind].title
        entry = found.setdefault(
            status,
            {
                "description": "",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
            },
        )
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{kind}`: {title}"]))
    return found
