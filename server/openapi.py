"""The OpenAPI document: what the routes say of themselves, and what is true of all of them because of the guard."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from server.routes.state import described
from server.schema import GraphRequest, MoveRequest, ProblemDocument, QueueRequest, RunRequest

_READ: tuple[type[BaseModel], ...] = (RunRequest, GraphRequest, MoveRequest, QueueRequest, ProblemDocument)
"""Models that the framework does not see, because routes read and write documents themselves, for speed."""
_GUARDED = ("malformed", "bad-origin", "bad-host", "internal")
_WITH_BODY = ("timeout", "too-large", "unsupported-media-type")
_OWN = ("HTTPValidationError", "ValidationError")
_TOKEN = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The header X-Calotype-Token is read in its place."}
}

Operation = dict[str, Any]


def openapi(app: FastAPI, *, tokens: bool) -> dict[str, Any]:
    """The document of an application behind the guard; with `tokens`, every route needs one."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = made.setdefault("components", {})
        _add_schemas(components.setdefault("schemas", {}))
        if tokens:
            components["securitySchemes"] = _TOKEN
            made["security"] = [{name: []} for name in _TOKEN]
        for operation in _operations(made):
            _complete(operation, ("unauthorized", *_GUARDED) if tokens else _GUARDED)
        app.openapi_schema = made
    return app.openapi_schema


def _add_schemas(schemas: dict[str, Any]) -> None:
    for model in _READ:
        described_ = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(described_.pop("$defs", {}))
        schemas[model.__name__] = described_
    for name in _OWN:  # a refused parameter is a problem document too
        schemas.pop(name, None)


def _operations(document: dict[str, Any]) -> Iterator[Operation]:
    for methods in document["paths"].values():
        yield from methods.values()


def _complete(operation: Operation, guarded: tuple[str, ...]) -> None:
    """Add what the guard may answer, and take out what the framework assumes."""
    responses = operation["responses"]
    for response in responses.values():
        if len(response.get("content", {})) > 1 and response["content"].get("application/json") == {"schema": {}}:
            del response["content"]["application/json"]
    if "HTTPValidationError" in str(responses.get("422")):
        responses.update(_by_text("invalid-request"))
    for kind in (*guarded, *(_WITH_BODY if "requestBody" in operation else ())):
        for status, response in _by_text(kind).items():
            _merge(responses.setdefault(status, {**response, "description": ""}), response["description"])
    operation["responses"] = dict(sorted(responses.items()))


def _merge(response: dict[str, Any], text: str) -> None:
    if text not in response["description"]:
        response["description"] = "; ".join(filter(None, [response["description"], text]))


def _by_text(kind: str) -> dict[str, Any]:
    """A refusal by its status, as JSON has it."""
    return {str(status): response for status, response in described(kind).items()}
