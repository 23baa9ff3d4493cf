"""The one gate before the application: who asks, by which name, from which web page, and with what kind of body.

Everything is decided on the raw headers before any route runs, because a route that can be forgotten will be.
"""

import ipaddress
import itertools
import re
import secrets
from collections.abc import Awaitable, Collection, Mapping
from hashlib import sha256
from hmac import compare_digest

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.body import Allowance
from server.problem import Refusal
from server.settings import Settings

LONGEST_PATH = 2048
"""Bytes of a path at most."""
_SINGLE = frozenset(
    b"host origin authorization x-calotype-token content-type content-length content-encoding transfer-encoding"
    b" sec-fetch-site access-control-request-method".split()
)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FOREIGN = frozenset({b"cross-site", b"same-site"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(rb"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_EXPOSED = (b"access-control-expose-headers", b"Location, Retry-After, X-Request-Id")
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Calotype-Token",
    "Access-Control-Max-Age": "600",
}

Headers = Mapping[bytes, bytes]
Field = tuple[bytes, bytes]


class Guard:
    """ASGI middleware around the whole application; `uploads` are the paths whose bodies are pictures, not JSON.

    Sets `scope["state"]["client"]` to the name of the token, or "local" where no tokens are configured, and
    `scope["state"]["request"]` to the id that the answer carries as X-Request-Id.
    """

    def __init__(self, app: ASGIApp, settings: Settings, uploads: Collection[str] = ()) -> None:
        limits = settings.limits
        self._app, self._uploads = app, frozenset(uploads)
        self._json = Allowance(pictures=False, size=limits.body, setting="limits.body", seconds=limits.body_seconds)
        self._pictures = Allowance(
            pictures=True, size=limits.upload, setting="limits.upload", seconds=limits.body_seconds
        )
        self._names, self._numeric = _names(settings)
        self._origins = frozenset(origin.encode() for origin in settings.origins)
        self._tokens = [(_digest(token.get_secret_value().encode()), name) for name, token in settings.clients.items()]
        self._always = (*_ALWAYS, (b"vary", b"Origin")) if self._origins else _ALWAYS
        self._prefix, self._numbers = secrets.token_hex(6), itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        number = f"{self._prefix}{next(self._numbers):08x}"
        scope.setdefault("state", {})["request"] = number
        answer = Answer(send, (*self._always, (b"x-request-id", number.encode())))
        try:
            await self._pass(scope, receive, answer)
        except Refusal as refusal:
            if answer.started:
                raise
            await refusal.response()(scope, receive, answer)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start and end of the process concern the application; WebSockets are not served."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _pass(self, scope: Scope, receive: Receive, answer: "Answer") -> None:
        headers = _headers(scope)
        self._check_host(headers)
        if b"origin" in headers or b"sec-fetch-site" in headers:
            self._check_origin(scope, headers, answer)
            if b"access-control-request-method" in headers and scope["method"] == "OPTIONS":
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, answer)
                return
        scope["state"]["client"] = self._client(headers)
        allowance = self._pictures if scope["path"] in self._uploads else self._json
        await self._app(scope, allowance.admit(headers, receive), answer)

    def _check_host(self, headers: Headers) -> None:
        """Refuse names that are not ours: a foreign name that resolves to us is DNS rebinding."""
        host = headers.get(b"host", b"")
        if host in self._names:
            return
        if not host:
            raise Refusal("malformed", "The Host header is missing.")
        match = _HOST.fullmatch(host.lower())
        if not match or not (match[1] in self._names or (self._numeric and _is_address(match[1]))):
            shown = ascii(host[:100].decode("latin-1"))
            raise Refusal("bad-host", f"{shown} is not a name of this service; add it to the setting `hosts`.")

    def _check_origin(self, scope: Scope, headers: Headers, answer: "Answer") -> None:
        """Refuse what a foreign web page makes a browser send; let allowed pages read the answer."""
        origin = headers.get(b"origin")
        if origin is None:
            if scope["method"] not in _SAFE and headers.get(b"sec-fetch-site") in _FOREIGN:
                raise Refusal("bad-origin", "A web page of another origin sent this without naming its origin.")
            return
        host = headers[b"host"].lower()
        if origin.lower() in self._origins:
            answer.fields = (*answer.fields, (b"access-control-allow-origin", origin), _EXPOSED)
        elif origin.lower() not in {b"http://" + host, b"https://" + host}:
            shown = ascii(origin[:100].decode("latin-1"))
            raise Refusal("bad-origin", f"Web pages of {shown} may not use this service; add it to `origins`.")

    def _client(self, headers: Headers) -> str:
        """Name of the client whose token came."""
        if not self._tokens:
            return "local"
        digest = _digest(_token(headers))
        # Every token is compared, so that the time tells nothing of which one is nearly right.
        found = [name for known, name in self._tokens if compare_digest(known, digest)]
        if not found:
            raise Refusal("unauthorized", "The token that came is not known here.")
        return found[0]


class Answer:
    """ASGI send that adds `fields` to the headers, where the application has not set its own."""

    __slots__ = ("_send", "fields", "started")

    def __init__(self, send: Send, fields: tuple[Field, ...]) -> None:
        self._send, self.fields, self.started = send, fields, False

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send a message on."""
        if message["type"] == "http.response.start":
            self.started = True
            own = list(message.get("headers", ()))
            present = {name for name, _ in own}
            present.discard(b"vary")  # several may stand side by side
            message["headers"] = own + [field for field in self.fields if field[0] not in present]
        return self._send(message)


def _headers(scope: Scope) -> Headers:
    """Headers by name; refuses what two programs could read in two ways."""
    listed = scope["headers"]
    headers = dict(listed)
    if len(headers) != len(listed):
        single = [name for name, _ in listed if name in _SINGLE]
        if len(single) != len(set(single)):
            raise Refusal("malformed", "A header came twice that may come once, such as Host or Content-Length.")
    path = scope["path"]
    if len(scope.get("raw_path") or path) > LONGEST_PATH or "\0" in path:
        raise Refusal("malformed", f"The path has a NUL character or more than {LONGEST_PATH} bytes.")
    return headers


def _token(headers: Headers) -> bytes:
    """Token out of the headers. Never out of the address, which ends in logs and histories."""
    own, bearer = headers.get(b"x-calotype-token"), headers.get(b"authorization")
    if own is not None and bearer is not None:
        raise Refusal("malformed", "Authorization and X-Calotype-Token came together; send one of them.")
    if bearer is not None:
        scheme, _, own = bearer.partition(b" ")
        own = own if scheme.lower() == b"bearer" else b""
    if not own or not own.strip():
        raise Refusal("unauthorized", "Send the token as `Authorization: Bearer TOKEN` or `X-Calotype-Token: TOKEN`.")
    return own.strip()


def _digest(token: bytes) -> bytes:
    return sha256(token).digest()


def _names(settings: Settings) -> tuple[frozenset[bytes], bool]:
    """Host headers that name this service, and whether every numeric address does.

    A service bound to all addresses accepts numeric ones: only names can be rebound.
    """
    bound = f"[{settings.host}]" if ":" in settings.host else settings.host
    everywhere = bound in {"0.0.0.0", "[::]"}  # noqa: S104
    names = {bound, *settings.hosts, *(_LOOPBACK if everywhere or settings.loopback else ())}
    return frozenset(name.encode() for name in names | {f"{name}:{settings.port}" for name in names}), everywhere


def _is_address(name: bytes) -> bool:
    try:
        ipaddress.ip_address(name.strip(b"[]").decode())
    except ValueError:
        return False
    return True
