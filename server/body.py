"""What the body of a request may be: its type and size are judged by the headers, the rest while it arrives."""

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

from starlette.types import Message, Receive

from server.problem import Refusal

Headers = Mapping[bytes, bytes]
JSON = b"application/json"
_JSON = re.compile(rb'application/json\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE)
_PICTURE = re.compile(rb"image/[a-z0-9.+-]{1,60}\s*(?:;.*)?", re.IGNORECASE)


class Allowance(NamedTuple):
    """What is taken in: JSON, or pictures; at most `size` bytes, as the setting of this name says, in `seconds`."""

    pictures: bool
    size: int
    setting: str
    seconds: float

    def admit(self, headers: Headers, receive: Receive) -> Receive:
        """How the application may read the body; raises Refusal where the headers tell that it may not."""
        length = headers.get(b"content-length")
        if b"transfer-encoding" not in headers:
            if length is None or length == b"0":
                return receive
        elif length is not None:
            raise Refusal("malformed", "Content-Length and Transfer-Encoding came together; send one of them.")
        self._check_type(headers)
        if length is not None:
            self._check_length(length)
        return Body(self, receive)

    def _check_type(self, headers: Headers) -> None:
        """Refuse a body of another type: a web page can send other types without asking first."""
        given = headers.get(b"content-type", b"")
        if self.pictures:
            if not _PICTURE.fullmatch(given):
                raise Refusal("unsupported-media-type", _expected("image/png or another image type", given))
        elif given != JSON and not _JSON.fullmatch(given):
            raise Refusal("unsupported-media-type", _expected("application/json", given))
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise Refusal(
                "unsupported-media-type", f"Send the body unpacked: {_quoted(encoding)} is not unpacked here."
            )

    def _check_length(self, length: bytes) -> None:
        if not length.isdigit() or len(length) > 18:
            raise Refusal("malformed", f"Content-Length is {_quoted(length)}, which is not a number of bytes.")
        if int(length) > self.size:
            raise self.too_large(f"{int(length)} bytes")

    def too_large(self, came: str) -> Refusal:
        """Refusal of a body over the limit."""
        detail = f"The body may have {self.size} bytes ({self.setting}), and {came} came."
        return Refusal("too-large", detail, setting=self.setting, limit=self.size)

    def too_slow(self) -> Refusal:
        """Refusal of a body that has not arrived in time."""
        detail = f"The body has not arrived within {self.seconds:g} seconds (limits.body_seconds); send it again."
        return Refusal("timeout", detail, setting="limits.body_seconds", limit=self.seconds)


class Body:
    """ASGI receive that counts what arrives and how long it takes."""

    __slots__ = ("_allowance", "_arrived", "_complete", "_deadline", "_receive")

    def __init__(self, allowance: Allowance, receive: Receive) -> None:
        self._allowance, self._receive = allowance, receive
        self._arrived, self._complete, self._deadline = 0, False, 0.0

    async def __call__(self) -> Message:
        """Next message; raises Refusal where the body is too large or too slow."""
        if self._complete:
            return await self._receive()
        self._deadline = self._deadline or asyncio.get_running_loop().time() + self._allowance.seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise self._allowance.too_slow() from None
        self._arrived += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._arrived > self._allowance.size:
            raise self._allowance.too_large("more")
        return message


def _expected(wanted: str, given: bytes) -> str:
    came = f"{_quoted(given)} came" if given else "no Content-Type came"
    return f"Send the body as Content-Type: {wanted}; {came}."


def _quoted(value: bytes) -> str:
    """Header value as it may stand in a text."""
    return ascii(value[:100].decode("latin-1"))
