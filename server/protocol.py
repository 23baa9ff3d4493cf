"""HTTP over one connection: uvicorn's own protocol, but without patience for clients that never finish asking."""

from asyncio import TimerHandle, Transport
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADER_BYTES = 32 * 1024
"""Bytes of a request line and its headers at most."""


class Oversized(Exception):
    """The headers of a request are too large; ends the parsing."""


class Impatient(HttpToolsProtocol):
    """Connection that is closed when it takes more than `seconds` to send the headers of a request.

    Time runs from the opening of the connection, and again from the first byte of each further request. It also
    bounds how long the rest of a body is swallowed whose request was answered before all of it had arrived.
    """

    seconds: ClassVar[float] = 10.0
    _deadline: TimerHandle | None = None
    _requests = 0  # begun on this connection
    _begun = False  # some of a request is here, not yet all of its headers
    _unfinished = False  # all headers of a request are here, not yet all of its body
    _earlier = 0  # bytes of unfinished headers that came in earlier pieces
    _piece = 0  # bytes of the piece being parsed
    _oversized = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Give the client its time to ask."""
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a piece, and see whether it leaves headers unfinished."""
        idle, requests = not (self._begun or self._unfinished), self._requests
        self._piece = len(data)
        super().data_received(data)
        began = self._requests - requests
        if self._begun and began == idle:  # otherwise much of the piece belonged to another request
            self._earlier += len(data)
            if self._earlier > HEADER_BYTES:
                self._refuse_headers()
        if self._deadline is None and (self._begun or (idle and not began)):
            self._start()

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        self._requests += 1
        self._begun, self._earlier = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Pass the request on, unless its headers are too large."""
        if self._earlier + self._piece > HEADER_BYTES and self._header_bytes() > HEADER_BYTES:
            self._oversized = True
            raise Oversized
        self._begun, self._unfinished = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request has arrived in full."""
        self._unfinished = False
        self._stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client that is still sending its time to finish, so that it can read the answer."""
        super().on_response_complete()
        if self._unfinished and not self.transport.is_closing():
            self._start()

    def send_400_response(self, msg: str) -> None:
        """Answer to what cannot be parsed, unless that would end up in the middle of another answer."""
        if self._oversized:
            self._refuse_headers()
        elif self._answering():
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _start(self) -> None:
        self._stop()
        self._deadline = self.loop.call_later(self.seconds, self._expire)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        """The time is up."""
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._answering():
            self._start()  # it is the client who waits
        elif self._begun:
            self._close(408, f"The headers of the request have not arrived within {self.seconds:g} seconds.")
        else:
            self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _header_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_headers(self) -> None:
        self._close(431, f"The request line and the headers have more than {HEADER_BYTES} bytes.")

    def _close(self, status: int, text: str) -> None:
        """Say why, unless another answer is on its way, and close."""
        if not self._answering() and not self.transport.is_closing():
            body = text.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def impatient(seconds: float) -> type[Impatient]:
    """Protocol class for `uvicorn.Config(http=...)` that waits this long for the headers of a request."""
    return type("Impatient", (Impatient,), {"seconds": seconds})
