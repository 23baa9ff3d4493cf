"""Events of runs as server-sent events: one log per run, read by any number of followers, each at its own pace.

Nothing is queued for a follower: it remembers how far it was sent, and looks for what is newer.
"""

import asyncio
import json
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, Self
from weakref import WeakSet

from server.problem import Refusal

Event = tuple[str, Mapping[str, Any]]
"""Name and data."""
RETRY = b"retry: 2000\n\n"
"""First of every stream: milliseconds after which a browser comes back."""
HEARTBEAT = b": \n\n"
BATCH = 256
"""Events that are sent together at most."""
_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


class Streams:
    """Logs of the runs that have not ended. Lives on the event loop; only `watched` may be called from elsewhere.

    At most `limit` followers are served. Passing events are sent together, `pace` seconds after the first of them.
    """

    def __init__(self, limit: int, *, pace: float = 0.1) -> None:
        self._limit = limit
        self._pace = pace
        self._logs: dict[str, _Log] = {}
        self._followers: WeakSet[Follower] = WeakSet()
        self._ended = False

    def open(self, run: str, attempt: int) -> None:
        """Begin the log of a run, or begin it anew where this is another attempt; followers stay."""
        log = self._logs.setdefault(run, _Log(attempt))
        if log.attempt != attempt:
            log.restart(attempt)

    def publish(self, run: str, name: str, data: Mapping[str, Any], *, slot: str | None = None) -> None:
        """Tell what happened. Without a `slot` it lasts and can be asked for again; with one, only the newest counts.

        `data` must be JSON without NaN, and must not change afterwards. What comes after the end of a run is dropped.
        """
        if (log := self._logs.get(run)) is None:
            return
        if slot is None:
            log.add(name, data)
            log.wake()
        else:
            log.show(slot, name, data)
            log.wake_in(self._pace)

    def close(self, run: str) -> None:
        """End a run: its followers are sent what is left, then their streams end. What is asked for later is stored."""
        if (log := self._logs.pop(run, None)) is not None:
            log.closed = True
            log.wake()

    def watched(self, run: str) -> bool:
        """Whether somebody listens. Safe to call from any thread."""
        log = self._logs.get(run)
        return log is not None and len(log.followers) > 0

    def log(self, run: str) -> list[Event]:
        """Lasting events so far, to be stored before `close`. KeyError when the run is not open."""
        return list(self._logs[run].events)

    def follow(self, run: str, after: str | None = None, *, heartbeat: float = 15.0) -> "Follower":
        """Frames of a run from now to its end, beginning with the lasting events after the id `after`.

        An id of another attempt, or no id at all, means all of this attempt. Silence is broken every `heartbeat`
        seconds. KeyError when the run is not open; refuses with `too-many-requests` beyond the limit.
        """
        log = self._logs[run]
        if len(self._followers) >= self._limit:
            detail = (
                f"All {self._limit} streams (limits.subscribers) are in use. Close some, or ask for the run instead."
            )
            raise Refusal("too-many-requests", detail, setting="limits.subscribers", limit=self._limit)
        follower = Follower(log, log.cursor(after), heartbeat, (self._followers, log.followers))
        if self._ended:
            follower.end()
        return follower

    def end(self) -> None:
        """End all streams where they stand, and those yet to come: the service stops, its followers come back later."""
        self._ended = True
        for follower in list(self._followers):
            follower.end()


class Follower(AsyncIterator[bytes]):
    """One listener's way through a log: whole frames, as they come. It counts until it ends, fails, or is let go of."""

    def __init__(self, log: "_Log", cursor: int, heartbeat: float, counted: "tuple[WeakSet[Follower], ...]") -> None:
        self._log: _Log | None = log
        self._cursor = cursor
        self._heartbeat = heartbeat
        self._counted = counted
        self._greeted = False
        for followers in counted:
            followers.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Next frames: the greeting, then everything that is newer than what was sent."""
        if self._log is None:
            raise StopAsyncIteration
        if not self._greeted:
            self._greeted = True
            return RETRY
        try:
            return await self._news(self._log)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop listening."""
        self._log = None
        for followers in self._counted:
            followers.discard(self)

    def end(self) -> None:
        """Send nothing more than what is on its way."""
        log, self._log = self._log, None
        if log is not None:
            log.wake()

    async def _news(self, log: "_Log") -> bytes:
        while True:
            frames, self._cursor = log.since(self._cursor)
            if frames:
                return frames
            if log.closed or self._log is None:
                raise StopAsyncIteration
            if not await log.changed(self._heartbeat):
                return HEARTBEAT


class _Log:
    """What happened in one attempt of a run. Every event has a stamp, and stamps only grow, over attempts too."""

    def __init__(self, attempt: int) -> None:
        self.followers: WeakSet[Follower] = WeakSet()
        self.closed = False
        self._stamp = 0
        self._waiting: set[asyncio.Future[bool]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.restart(attempt)

    def restart(self, attempt: int) -> None:
        self.attempt = attempt
        self.events: list[Event] = []
        self._stamps: list[int] = []
        self._frames: list[bytes] = []
        self._passing: dict[str, tuple[int, bytes]] = {}
        self._asked, self._answer = (0, 0), (b"", 0)

    def add(self, name: str, data: Mapping[str, Any]) -> None:
        """Append a lasting event."""
        self._frames.append(frame(name, data, f"{self.attempt}-{len(self._frames) + 1}"))
        self._stamps.append(self._next())
        self.events.append((name, data))

    def show(self, slot: str, name: str, data: Mapping[str, Any]) -> None:
        """Replace the passing event of a slot; the newest stands last."""
        shown = frame(name, data)
        self._passing.pop(slot, None)
        self._passing[slot] = (self._next(), shown)

    def cursor(self, after: str | None) -> int:
        """Stamp of the lasting event with the id `after`; 0 where that means nothing."""
        had = _had(after, self.attempt, len(self._stamps))
        return self._stamps[had - 1] if had else 0

    def since(self, cursor: int) -> tuple[bytes, int]:
        """Frames after a stamp, in the order of things and a BATCH at most, and the stamp of the last one."""
        if self._asked != (cursor, self._stamp):  # most followers ask the same
            self._asked, self._answer = (cursor, self._stamp), self._find(cursor)
        return self._answer

    def _find(self, cursor: int) -> tuple[bytes, int]:
        first = bisect_right(self._stamps, cursor)
        fresh = list(zip(self._stamps[first : first + BATCH], self._frames[first : first + BATCH], strict=True))
        fresh += takewhile(lambda shown: shown[0] > cursor, reversed(self._passing.values()))
        fresh = sorted(fresh)[:BATCH]
        return b"".join(frame for _, frame in fresh), (fresh[-1][0] if fresh else cursor)

    async def changed(self, seconds: float) -> bool:
        """Wait for news; False when none came for so long."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, partial(_settle, waiter, changed=False))
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    def wake(self) -> None:
        """Let everybody who waits look for news."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in self._waiting:
            _settle(waiter, changed=True)

    def wake_in(self, seconds: float) -> None:
        """Wake those who wait, once for all that comes until then; who is still reading finds it anyway."""
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.wake)

    def _next(self) -> int:
        self._stamp += 1
        return self._stamp


def replay(events: Sequence[Event], attempt: int, after: str | None) -> Iterator[bytes]:
    """Stream of a run that has ended, from its stored events: the frames that `follow` gave, after the id `after`."""
    yield RETRY
    had = _had(after, attempt, len(events))
    for number, (name, data) in enumerate(events[had:], had + 1):
        yield frame(name, data, f"{attempt}-{number}")


def frame(name: str, data: Mapping[str, Any], identifier: str | None = None) -> bytes:
    """One server-sent event. Its data stands on one line, because JSON escapes line ends."""
    head = f"id: {identifier}\n" if identifier else ""
    # A lone surrogate, which only a JSON text can bring here, goes as the JSON escape that it came as.
    return f"{head}event: {name}\ndata: {_JSON.encode(dict(data))}\n\n".encode(errors="backslashreplace")


def _had(after: str | None, attempt: int, count: int) -> int:
    """How many of `count` events precede what a client asks for that has seen the id `after`."""
    known = _ID.fullmatch(after or "")
    if known is None or int(known[1]) != attempt or int(known[2]) > count:
        return 0
    return int(known[2])


def _settle(waiter: asyncio.Future[bool], *, changed: bool) -> None:
    if not waiter.done():
        waiter.set_result(changed)
