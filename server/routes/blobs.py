"""Blobs: pictures that go in, results that come out."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from server.problem import Refusal
from server.routes.state import described, service
from server.schema import BlobView
from server.submission import BLOB
from server.views import dumped

router = APIRouter(prefix="/v1/blobs", tags=["blobs"])
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="sha256 of the content, in hex.")]
SUFFIXES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/bmp": "bmp"}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_YEAR = 365 * 24 * 3600


@router.post(
    "",
    status_code=201,
    response_model=BlobView,
    responses={
        200: {"model": BlobView, "description": "It is there already."},
        **described("too-large", "unsupported-media-type", "unreadable-picture", "limit-pixels", "quota", "storage"),
    },
    openapi_extra={"requestBody": {"required": True, "content": dict.fromkeys(SUFFIXES, _PICTURE)}},
)
async def upload(request: Request) -> Response:
    """Upload a picture or a mask. A graph names it by the `source` that comes back."""
    found = service(request)
    blob, new = await found.upload(request.stream())
    view = {
        "digest": blob.digest,
        "source": f"{BLOB}{blob.digest}",
        "url": f"/v1/blobs/{blob.digest}",
        "type": blob.type,
        "width": blob.width,
        "height": blob.height,
        "bytes": blob.bytes,
    }
    headers = {"Location": view["url"]}
    return Response(dumped(view), 201 if new else 200, {k: str(v) for k, v in headers.items()}, "application/json")


@router.get(
    "/{digest}",
    response_model=None,
    responses={
        200: {"content": dict.fromkeys(SUFFIXES, _PICTURE), "description": "The file."},
        **described("not-found"),
    },
)
async def download(request: Request, digest: Digest) -> Response:
    """A picture by the sha256 of its content. It never changes."""
    found = service(request)
    blob = found.history.blob(digest)
    data = await asyncio.to_thread(found.content, digest) if blob else None
    if blob is None or data is None:
        raise Refusal("not-found", f"There is no blob {digest}; unused ones are deleted after a while.")
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": f"private, max-age={_YEAR}, immutable",
        "Content-Disposition": f'inline; filename="{digest[:16]}.{SUFFIXES[blob.type]}"',
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=blob.type, headers=headers)
