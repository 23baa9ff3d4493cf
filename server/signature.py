"""Signatures of webhook calls, as https://www.standardwebhooks.com has them; for who calls and for who is called."""

import base64
import binascii
import hmac
import time
from collections.abc import Mapping

from engine.errors import CalotypeError

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_PREFIX = "whsec_"


class BadSignature(CalotypeError):
    """A webhook call was not made by who knows the secret, or not just now; do nothing of what it says."""


def key(secret: str) -> bytes:
    """Bytes to sign with: what follows `whsec_` is base64, any other secret stands for itself.

    ValueError where it is not base64.
    """
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"expected base64 after {_PREFIX} in the webhook secret; copy it again, whole") from None


def sign(secret: bytes, message: str, timestamp: int, body: bytes) -> str:
    """Signature of one call: `message` is its id, the same for every try; `timestamp` is in Unix seconds."""
    digest = hmac.digest(secret, f"{message}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def verify(
    secret: bytes, headers: Mapping[str, str], body: bytes, *, now: float | None = None, tolerance: float = 300
) -> str:
    """Id of a call that was signed with `secret` within `tolerance` seconds of `now`; equal ids are equal calls.

    Raises BadSignature. `body` is what came, byte by byte, before any parsing.
    """
    given = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in (ID, TIMESTAMP, SIGNATURE) if name not in given]:
        raise BadSignature(f"expected the header {missing[0]}, got none; is this a webhook call?")
    timestamp = _seconds(given[TIMESTAMP])
    away = (time.time() if now is None else now) - timestamp
    if abs(away) > tolerance:
        raise BadSignature(f"signed {away:.0f} seconds ago, at most {tolerance:g} are accepted; check both clocks")
    expected = sign(secret, given[ID], timestamp, body).encode()
    if not any(hmac.compare_digest(expected, one.encode()) for one in given[SIGNATURE].split()):
        raise BadSignature("no signature fits the body; check that both sides have the same secret")
    return given[ID]


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadSignature(f"expected {TIMESTAMP} in Unix seconds, got {text[:20]!r}")
    return int(text)
