"""The story of one run as its events tell it: lasting ones for the record, passing ones for those who watch."""

import base64
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any, Protocol

from engine.event import (
    Event,
    NodeFinished,
    NodeMeasured,
    NodeProgress,
    NodeStarted,
    Outcome,
    RunStarted,
    Trouble,
    Warned,
)
from engine.socket import Socket
from server.front import Front
from server.metrics import Metrics

PREVIEW = 0.25
"""Seconds between two previews of a run, at least."""
_log = logging.getLogger("calotype.server")

Lasting = tuple[str, Mapping[str, Any]]


class Post(Protocol):
    """Carries events from the worker's thread to those who watch."""

    def watched(self, run: str) -> bool:
        """Whether somebody does."""

    def publish(self, run: str, name: str, data: Mapping[str, Any], slot: str | None = None) -> None:
        """Send one event; of those with a `slot` only the newest counts."""

    def later(self, call: Callable[[], None]) -> None:
        """Make a call on another thread, soon; what runs need not wait for it."""


class Outbox:
    """Hands calls over to another thread, many at a time: `wake` is called when there is something to `deliver`."""

    def __init__(self, wake: Callable[[Callable[[], None]], object]) -> None:
        self._wake = wake
        self._waiting: deque[Callable[[], None]] = deque()
        self._lock = Lock()
        self._called = False

    def put(self, call: Callable[[], None]) -> None:
        """Have a call made there, in order."""
        with self._lock:
            self._waiting.append(call)
            called, self._called = self._called, True
        if not called:
            self._wake(self.deliver)

    def deliver(self) -> None:
        """Make all calls that wait."""
        with self._lock:
            waiting, self._waiting, self._called = self._waiting, deque(), False
        for call in waiting:
            call()


class Story:
    """Listens to one run."""

    def __init__(self, run: str, post: Post, front: Front, metrics: Metrics) -> None:
        self.run = run
        self.lasting: list[Lasting] = []
        self._post = post
        self._front = front
        self._metrics = metrics
        self._reused: dict[str, list[str]] = {}
        self._shown = 0.0
        self._drawing = False
        """Whether a preview is on its way."""
        self._closed = False

    def __call__(self, event: Event) -> None:
        """Take an event of the engine."""
        match event:
            case NodeMeasured():
                self._metrics.measured(event.name, event.value)
            case NodeProgress():
                self._progress(event)
            case RunStarted():
                self.tell("run.started", nodes=event.nodes)
            case NodeStarted():
                self.tell("node.started", node=event.node, type=event.type, reason=event.reason)
            case NodeFinished():
                self._finished(event)
            case Warned():
                self.tell("warning", node=event.node, message=event.message)
            case Trouble():
                self.tell("trouble", node=event.node, message=event.message)

    def tell(self, name: str, **data: Any) -> None:
        """Publish a lasting event."""
        self.lasting.append((name, data))
        self._post.publish(self.run, name, data)

    def close(self) -> None:
        """Say what did not have to run; previews come too late from now on."""
        self._closed = True
        if self._reused:
            self.tell("nodes.reused", **self._reused)
            self._reused = {}

    def _finished(self, event: NodeFinished) -> None:
        if event.outcome in (Outcome.HIT, Outcome.UNNEEDED):
            self._reused.setdefault(str(event.outcome), []).append(event.node)
        else:
            outcome = {"outcome": str(event.outcome), "reason": event.reason, "seconds": round(event.seconds, 6)}
            self.tell("node.finished", node=event.node, type=event.type, **outcome)

    def _progress(self, event: NodeProgress) -> None:
        if not self._post.watched(self.run):
            return
        data = {"node": event.node, "done": event.done, "total": event.total}
        self._post.publish(self.run, "progress", data, f"progress:{event.node}")
        now = time.monotonic()
        if event.preview is not None and now - self._shown >= PREVIEW and not self._drawing:
            self._preview(event, event.preview)
            self._shown = now

    def _preview(self, event: NodeProgress, make: Callable[[], Socket]) -> None:
        """A picture of where a node stands. It is a courtesy: what goes wrong with it harms nobody.

        The device is told to make it, and does not wait until it is fetched and encoded.
        """
        try:
            value = make()
        except Exception:  # noqa: BLE001  whatever it is, the run goes on
            _log.warning("no preview of %s", event.node, exc_info=True, extra={"run": self.run})
            return
        self._drawing = True
        self._post.later(partial(self._draw, event.node, value))

    def _draw(self, node: str, value: Socket) -> None:
        """Encode a preview and send it, unless the run has ended meanwhile."""
        try:
            picture = self._front.preview(value)
            if picture is not None and not self._closed:
                data = {"node": node, "type": picture.type, "data": base64.b64encode(picture.data).decode()}
                self._post.publish(self.run, "preview", data, f"preview:{node}")
        except Exception:  # noqa: BLE001  whatever it is, the run goes on
            _log.warning("no preview of %s", node, exc_info=True, extra={"run": self.run})
        finally:
            self._drawing = False


def told(nodes: Mapping[str, Mapping[str, Any]]) -> list[Lasting]:
    """The story of a run in which nothing ran, from its report."""
    reused: dict[str, list[str]] = {}
    for node, report in nodes.items():
        reused.setdefault(report["outcome"], []).append(node)
    needed = sum(report["outcome"] != "unneeded" or report["reason"] != "not asked for" for report in nodes.values())
    warned = [
        ("warning", {"node": node, "message": message})
        for node, report in nodes.items()
        for message in report.get("warnings", ())
    ]
    return [("run.started", {"nodes": needed}), *warned, ("nodes.reused", reused)]
