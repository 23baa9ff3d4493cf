"""What both clients begin with."""

import io
import os
from pathlib import Path
from typing import Any, Literal

import httpx2
import PIL.Image

URL = "http://127.0.0.1:8420"
"""Where a service is that was started without any settings."""
_HERE = {"localhost", "127.0.0.1", "::1"}


def options(url: str | None, token: str | None, timeout: float) -> dict[str, Any]:
    """Options of an HTTP client. No proxy stands between a client and a service on the same machine."""
    url = url or os.environ.get("CALOTYPE_URL") or URL
    token = token or os.environ.get("CALOTYPE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    here = httpx2.URL(url).host in _HERE
    return {"base_url": url, "timeout": timeout, "headers": headers, "trust_env": not here}


def content(picture: str | Path | bytes | PIL.Image.Image) -> bytes:
    """The bytes of a picture: as they are, or as a PNG where it is Pillow's."""
    match picture:
        case bytes():
            return picture
        case PIL.Image.Image():
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            return stream.getvalue()
    return Path(picture).read_bytes()


def opened(data: bytes) -> PIL.Image.Image:
    """A picture of Pillow."""
    picture = PIL.Image.open(io.BytesIO(data))
    picture.load()
    return picture


def moved(priority: int | None, before: str | None, place: Literal["first", "last"] | None) -> dict[str, Any]:
    """Body of a request for another place in the queue."""
    given: dict[str, Any] = {"priority": priority, "before": before}
    if place:
        given[place] = True
    return {name: value for name, value in given.items() if value is not None}
