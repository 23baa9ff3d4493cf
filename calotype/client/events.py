"""Following a run: its events, over as many connections as that takes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

import engine.event as engine_event
from calotype.client.exchange import Deadline, Patience, overdue

SILENCE = 60.0
"""Seconds without a byte after which a connection counts as lost; the service sends something every 15 seconds."""
LOOK = 5.0
"""Seconds of silence after which somebody who has a deadline looks at the clock."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run, and what the service says of it.

    `run.started`, `node.started`, `progress`, `preview`, `node.finished`, `nodes.reused`, `warning`, `trouble`,
    `run.finished`.
    """

    name: str
    data: Mapping[str, Any]
    id: str


class Feed:
    """How far a run has been followed: what to ask for next, and how long to wait before."""

    def __init__(self, run: str, tries: int, until: Deadline | None = None) -> None:
        self.path = f"/v1/runs/{run}/events"
        self.ended = False
        self.pause = 0.0
        self._run = run
        self._until = until or Deadline()
        self._limited = until is not None
        self._patience = Patience(tries, self._until)
        self._last = ""

    @property
    def headers(self) -> dict[str, str]:
        """What tells the service where to go on."""
        return {"Last-Event-ID": self._last} if self._last else {}

    @property
    def timeout(self) -> httpx2.Timeout:
        """How long to wait for each byte."""
        silence = max(0.001, min(LOOK, self._until.left)) if self._limited else SILENCE
        return httpx2.Timeout(SILENCE, read=silence)

    def take(self, event: httpx2.ServerSentEvent) -> Event:
        """An event that came. Raises TimeoutError after the deadline."""
        self._patience.renew()
        self._last = event.id or self._last
        self.ended = event.event == "run.finished"
        if not self.ended:
            self._check()
        return Event(event.event, json.loads(event.data), event.id)

    def refused(self, answer: httpx2.Response) -> None:
        """No events came, but a refusal. Raises ServiceError where trying again is of no use."""
        self.pause = self._patience.refused(answer).seconds

    def lost(self, error: httpx2.TransportError) -> None:
        """The connection broke. Raises TimeoutError after the deadline, Unreachable after too many tries."""
        self._check()
        silent = self._limited and isinstance(error, httpx2.ReadTimeout)
        self.pause = 0.0 if silent else self._patience.lost(error).seconds

    def broke_off(self) -> None:
        """The stream ended before the run did: the service stops, and another process will go on."""
        if not self.ended:
            self.lost(httpx2.RemoteProtocolError("the events ended before the run did"))

    def _check(self) -> None:
        if not self._until.left:
            raise overdue(self._run)


def bearing(event: httpx2.ServerSentEvent) -> bool:
    """Whether an event carries data; one that does not only says when to come back."""
    return bool(event.data)


_SAID = {"warning": engine_event.Warned, "trouble": engine_event.Trouble}


def told(event: Event, run: str) -> Iterator[engine_event.Event]:
    """What the engine told its listeners, as far as an event tells it."""
    data = event.data
    match event.name:
        case "run.started":
            yield engine_event.RunStarted(run, data["nodes"])
        case "node.started":
            yield engine_event.NodeStarted(run, data["node"], data["type"], data["reason"])
        case "progress":
            yield engine_event.NodeProgress(run, data["node"], data["done"], data["total"])
        case "node.finished":
            outcome = engine_event.Outcome(data["outcome"])
            yield engine_event.NodeFinished(run, data["node"], data["type"], outcome, data["reason"], data["seconds"])
        case "nodes.reused":
            for word, nodes in data.items():
                for node in nodes:
                    yield engine_event.NodeFinished(run, node, "", engine_event.Outcome(word), word)
        case "warning" | "trouble":
            yield _SAID[event.name](run, data["node"], data["message"])
        case "run.finished":
            yield engine_event.RunFinished(run, data["state"], data["seconds"])
