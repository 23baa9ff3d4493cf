"""What a run tells its listeners: frozen values, in the order in which things happen."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.socket import Socket


class Outcome(StrEnum):
    """What became of a node in a run."""

    RAN = "ran"
    HIT = "hit"
    UNNEEDED = "unneeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `run` is the run's id."""

    run: str


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """A run begins; `nodes` is how many the requested outputs depend on."""

    nodes: int


@dataclass(frozen=True, slots=True)
class NodeStarted(Event):
    """A node begins to run, and why."""

    node: str
    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeProgress(Event):
    """A running node has done `done` of `total` steps.

    `preview` makes a picture of where it stands, at a price: call it only while somebody looks, before the listener
    returns.
    """

    node: str
    done: int
    total: int
    preview: Callable[[], Socket] | None = None


@dataclass(frozen=True, slots=True)
class NodeMeasured(Event):
    """A running node has something to count: `value` of what `name` says, such as the latents in one UNet call."""

    node: str
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class NodeFinished(Event):
    """A node is settled. `seconds` is its own time, 0 where it did not run."""

    node: str
    type: str
    outcome: Outcome
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """A node has something to say about what it gave, which is no failure; said again whenever that is used again."""

    node: str
    message: str


@dataclass(frozen=True, slots=True)
class Trouble(Event):
    """Worth knowing, though the run goes on: a value re-made differently, a cache that cannot be written."""

    node: str
    message: str


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """A run ends: `done`, `failed` or `cancelled`."""

    state: str
    seconds: float
