"""What the history is told and what it tells: frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a run is in its life: it is queued, then running, then one of the three others for good."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in {State.DONE, State.FAILED, State.CANCELLED}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A run as it was submitted.

    `document` is the whole graph as JSON; `outputs` are the names asked for, None for all; `submitted` is in seconds
    since 1970; `key` is the Idempotency-Key with the sha256 of the body it came with; `blobs` are the hex digests of
    the blobs that the graph refers to, which must be in the index and are kept as long as the run.
    """

    id: str
    client: str
    title: str
    document: str
    outputs: tuple[str, ...] | None
    priority: int
    submitted: float
    webhook: str | None = None
    key: tuple[str, bytes] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    blobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended: a final state, the time, the engine's seconds, and texts of JSON.

    `outputs` are the results; each text is None where there is nothing to say.
    """

    state: State
    finished: float
    seconds: float
    outputs: str | None
    report: str | None = None
    events: str | None = None
    problems: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a submitter gets: the run's id, whether an earlier submission with the same key made it, and its rank."""

    id: str
    known: bool
    rank: float


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands; `document` is the sha256 of its graph, `requested` the output names asked for.

    `outputs` and `problems` are texts of JSON. Graph, report and events are read on their own, being long.
    """

    number: int
    id: str
    client: str
    title: str
    document: bytes
    requested: tuple[str, ...] | None
    priority: int
    rank: float
    state: State
    attempts: int
    submitted: float
    started: float | None
    finished: float | None
    seconds: float | None
    outputs: str | None
    problems: str | None
    webhook: str | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some runs, newest first, and the cursor of the page that follows, None after the last."""

    runs: tuple[Run, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class Queued:
    """What the queue must know of a waiting run; a client's runs are in the order of `rank`."""

    id: str
    client: str
    priority: int
    rank: float
    attempts: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of the runs that were running when the process ended: their ids."""

    requeued: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blob:
    """A content-addressed file: sha256 in hex, bytes, MIME type, pixels, when it was made and last used."""

    digest: str
    bytes: int
    type: str
    width: int
    height: int
    made: float
    used: float
    upload: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook call that is owed: one per run, so its id is the run's; `tries` were made, `error` was the last."""

    id: str
    run: str
    url: str
    tries: int
    next: float
    error: str
