"""Calls that tell a client's server of the end of a run: signed, tried again for a day, only where they are allowed."""

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import httpx2

from server.problem import Refusal
from server.rows import Delivery
from server.signature import ID, SIGNATURE, TIMESTAMP, sign

DELAYS = (10, 30, 120, 600, 3600, 4 * 3600, 12 * 3600)
"""Seconds from one failed try to the next; after one try more than there are delays it is given up."""
SPREAD = 0.2
"""Part of a delay that chance adds, so that what failed together is not tried again together."""
TIMEOUT = 10.0
"""Seconds for one call."""
TOGETHER = 16
"""Calls under way at the same time."""
HORIZON = 60.0
"""Seconds that the courier looks ahead, and waits when it cannot record what it did."""
_PORTS = {"http": 80, "https": 443}
_PATTERN = re.compile(r"(\*\.)?(\[[^]]*\]|[^:]*)(?::([0-9]+))?")
_log = logging.getLogger("calotype.server")


def allowed(url: str, patterns: Sequence[str]) -> None:
    """Refuse with `webhook-refused` what is not an http(s) URL whose host and port one of the `patterns` names.

    A pattern is `host[:port]`; `*.host` stands for everything below a host. Without a port it means the scheme's own.
    """
    parsed = _parsed(url)
    if parsed.scheme not in _PORTS or not parsed.host:
        raise _refusal("expected an absolute http or https URL")
    if parsed.userinfo or "#" in url:
        raise _refusal("expected a URL without user name, password or fragment")
    host, port = parsed.netloc.decode().removesuffix(f":{parsed.port}"), parsed.port or _PORTS[parsed.scheme]
    if not any(_matches(pattern.lower(), host, port, _PORTS[parsed.scheme]) for pattern in patterns):
        raise _refusal(
            f"{host}:{port} is not among the hosts that may be called; the service's webhooks.allow lists them"
        )


class Deliveries(Protocol):
    """Where calls are owed. What changes it is done when the future is."""

    def due(self, now: float, limit: int) -> Sequence[Delivery]:
        """Calls to be made by `now`, the longest due first."""

    def delivered(self, delivery: str) -> Future[Any]:
        """The call arrived."""

    def retry(self, delivery: str, next_: float, error: str) -> Future[Any]:
        """The call failed, and is due again at `next_`."""

    def give_up(self, delivery: str) -> Future[Any]:
        """The call is not tried again."""


class Courier:
    """Makes the calls that are due. Lives on the event loop; `body` gives what to say of a run, None if it is gone."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        secret: bytes,
        history: Deliveries,
        body: Callable[[str], bytes | None],
        allow: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._secret, self._history, self._body, self._allow = client, secret, history, body, allow
        self._clock, self._chance = clock, chance
        self._news = asyncio.Event()
        self._under_way: set[str] = set()
        self._resting = 0.0
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs whole URLs, and those may hold secrets

    def wake(self) -> None:
        """Look at once for what is due."""
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled. A call under way then is made again by the next process."""
        async with asyncio.TaskGroup() as calls:
            while True:
                self._news.clear()
                now = self._clock()
                coming = self._coming(now)
                for delivery in coming[: TOGETHER - len(self._under_way)]:
                    if delivery.next <= now:
                        self._under_way.add(delivery.id)
                        calls.create_task(self._deliver(delivery))
                await self._pause(
                    min((delivery.next - now for delivery in coming if delivery.next > now), default=HORIZON)
                )

    def _coming(self, now: float) -> list[Delivery]:
        """Calls that are due within the HORIZON and not under way, the longest due first."""
        if now < self._resting:
            return []
        try:
            coming = self._history.due(now + HORIZON, 2 * TOGETHER)
        except Exception:  # noqa: BLE001  the courier outlives a full disk
            self._rest("what is due cannot be read")
            return []
        return [delivery for delivery in coming if delivery.id not in self._under_way]

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def _deliver(self, delivery: Delivery) -> None:
        """Make one call and record what came of it."""
        try:
            await asyncio.wrap_future(await self._attempt(delivery))
        except Exception:  # noqa: BLE001  the courier outlives a full disk
            self._rest(f"what became of the call for run {delivery.run} cannot be recorded")
        finally:
            self._under_way.discard(delivery.id)
            self.wake()

    async def _attempt(self, delivery: Delivery) -> Future[Any]:
        """Make one call, then tell the history."""
        if (body := self._body(delivery.run)) is None:
            return self._give_up(delivery, "the run is no longer kept")
        try:
            allowed(delivery.url, self._allow)
        except Refusal as refusal:
            return self._give_up(delivery, refusal.detail)
        error = await self._call(delivery, body)
        if error is None:
            return self._history.delivered(delivery.id)
        if delivery.tries >= len(DELAYS):
            return self._give_up(delivery, error)
        delay = DELAYS[delivery.tries] * (1 + SPREAD * self._chance())
        _log.warning("webhook of run %s at %s: %s; again in %.0f s", delivery.run, _place(delivery.url), error, delay)
        return self._history.retry(delivery.id, self._clock() + delay, error)

    async def _call(self, delivery: Delivery, body: bytes) -> str | None:
        """What went wrong, in words without the URL; None where the call arrived."""
        try:
            async with asyncio.timeout(TIMEOUT):
                request = self._client.build_request(
                    "POST", delivery.url, content=body, headers=self._headers(delivery, body)
                )
                response = await self._client.send(request, stream=True, follow_redirects=False)
                await response.aclose()  # whatever it says is not read
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} seconds"
        except Exception as error:  # noqa: BLE001  whatever goes wrong with somebody's server is one failed try
            return f"no answer ({type(error).__name__})"
        return None if response.is_success else f"answered {response.status_code}"

    def _headers(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        now = int(self._clock())
        signature = sign(self._secret, delivery.id, now, body)
        return {ID: delivery.id, TIMESTAMP: str(now), SIGNATURE: signature, "content-type": "application/json"}

    def _give_up(self, delivery: Delivery, error: str) -> Future[Any]:
        _log.error("webhook of run %s at %s: %s; given up", delivery.run, _place(delivery.url), error)
        return self._history.give_up(delivery.id)

    def _rest(self, trouble: str) -> None:
        """Do nothing for a while: calls that cannot be recorded would be made over and over."""
        _log.exception("webhooks rest for %.0f s: %s", HORIZON, trouble)
        self._resting = self._clock() + HORIZON


def _matches(pattern: str, host: str, port: int, usual: int) -> bool:
    parts = _PATTERN.fullmatch(pattern)
    if parts is None or port != int(parts[3] or usual):
        return False
    return host.endswith(f".{parts[2]}") if parts[1] else host == parts[2]


def _parsed(url: str) -> httpx2.URL:
    """The URL as the client will understand it."""
    try:
        return httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        raise _refusal("expected an absolute http or https URL") from None


def _place(url: str) -> str:
    """Where a URL leads, without path and query, which may hold secrets."""
    with contextlib.suppress(Refusal):
        parsed = _parsed(url)
        return f"{parsed.scheme}://{parsed.netloc.decode()}"
    return "an unreadable URL"


def _refusal(reason: str) -> Refusal:
    return Refusal("webhook-refused", f"The webhook is refused: {reason}.", setting="webhooks.allow")
