"""The `parameters` text in pictures: PNG's text, EXIF's comment (JPEG, WebP, AVIF), GIF's comment; or a text file."""

from collections.abc import Mapping
from pathlib import Path

import PIL.Image
from PIL.ExifTags import IFD, Base

from engine.errors import GraphError, Problem

MAX_BYTES = 1 << 20
"""A longer text file holds no parameters."""
UNICODE = b"UNICODE\0"
CODES: Mapping[bytes, str] = {b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8"}
"""What EXIF's comments begin with, and how they go on; Unicode is UTF-16 of either order."""


def read(path: Path) -> str:
    """The `parameters` text of a picture or of a text file. Raises GraphError."""
    try:
        with PIL.Image.open(path) as picture:
            text = _text_of(picture)
    except PIL.UnidentifiedImageError:
        return _text_file(path)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise _refusal(f"{path} cannot be read: {error}") from error
    if not text:
        raise _refusal(f"{path} holds no parameters: it was not made by the WebUI, or somebody took them out")
    return text


def _text_of(picture: PIL.Image.Image) -> str:
    """PNG's chunk `parameters`, else EXIF's UserComment (JPEG, WebP, AVIF), else a comment (GIF)."""
    held = {**picture.info, **getattr(picture, "text", {})}
    if "workflow" in held and "parameters" not in held:
        raise _refusal("it holds a workflow of ComfyUI, which is another format")
    found = held.get("parameters") or _user_comment(picture) or held.get("comment") or ""
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def _user_comment(picture: PIL.Image.Image) -> str:
    raw = picture.getexif().get_ifd(IFD.Exif).get(Base.UserComment, b"")
    if isinstance(raw, str):
        return raw
    code, text = bytes(raw[:8]), bytes(raw[8:])
    if code == UNICODE:
        return max((text.decode(f"utf-16-{order}", "replace") for order in ("be", "le")), key=_latin)
    return text.decode(CODES[code], "replace").strip("\0 ") if code in CODES else bytes(raw).decode("utf-8", "replace")


def _latin(text: str) -> int:
    """How much of a text is ASCII: bytes read in the wrong order give next to none."""
    return sum(sign.isascii() and sign != "\0" for sign in text)


def _text_file(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _refusal(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(data) > MAX_BYTES:
        raise _refusal(f"{path} is neither a picture nor a text in UTF-8")
    return text


def _refusal(message: str) -> GraphError:
    return GraphError([Problem("", message, "no_parameters")])
