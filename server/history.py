"""The durable memory of the service: queue, history, Idempotency-Keys, blob index and owed webhook calls in one file.

Writes are handed to one thread and answered by a future once they are on the disk; reads come straight from the
calling thread and never wait for a write. What can go wrong is drawn in `server/tables.py`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from server import archive, intake, lifecycle, retention, shelf
from server.intake import Submission
from server.ledger import Ledger
from server.rows import Accepted, Blob, Delivery, Finished, Page, Queued, Receipt, Recovered, Run, State
from server.tables import (
    BadCursor,
    BlobMissing,
    HistoryError,
    IdempotencyConflict,
    Reader,
    StorageFull,
    open_reader,
)

__all__ = [
    "Accepted",
    "BadCursor",
    "Blob",
    "BlobMissing",
    "Delivery",
    "Finished",
    "History",
    "HistoryError",
    "IdempotencyConflict",
    "Page",
    "Queued",
    "Receipt",
    "Recovered",
    "Run",
    "State",
    "StorageFull",
]


class History:
    """The SQLite file at `path`, which may grow to `limit` bytes.

    Every method that returns a future writes: the future resolves once the change is durable, with HistoryError (its
    message says what to do) where it was refused, and with StorageFull where there was no room; nothing is written
    then, and the next write tries again. Times are seconds since 1970.
    """

    def __init__(self, path: Path, *, limit: int | None = None, clock: Callable[[], float] = time.time) -> None:
        """Raises HistoryError when the file is of another program or layout, or cannot be opened."""
        self.path = path
        self._clock = clock
        self._ledger = Ledger(path, limit)
        self._readers = threading.local()

    def close(self) -> None:
        """Write what was handed in, then release the file."""
        self._readers = threading.local()
        self._ledger.close()

    # Runs

    def accept(self, run: Accepted) -> Future[Receipt]:
        """Queue a run. Raises IdempotencyConflict or BlobMissing; a known key gives the earlier run's receipt."""
        return self._ledger.gather(intake.submit, Submission(run))

    def record(self, run: Accepted, finished: Finished, blobs: Sequence[str] = ()) -> Future[Receipt]:
        """Keep a run that is finished as it comes, with the blobs of its results; raises what `accept` raises."""
        return self._ledger.gather(intake.submit, Submission(run, finished, blobs))

    def start(self, runs: Sequence[str]) -> Future[tuple[str, ...]]:
        """Queued runs begin to run; gives those that did: one may have been cancelled meanwhile."""
        return self._ledger.write(partial(lifecycle.start, runs=runs, now=self._clock()))

    def finish(
        self, run: str, finished: Finished, blobs: Sequence[str] = (), made: Sequence[Blob] = ()
    ) -> Future[bool]:
        """A running run ends; True for the one call that ended it, which also makes its webhook call due.

        `blobs` are the digests that its results refer to, `made` those that are new to the index.
        """
        return self._ledger.write(partial(lifecycle.finish, run=run, finished=finished, blobs=blobs, made=made))

    def cancel(self, run: str) -> Future[State | None]:
        """Cancel a run if it is queued; gives the state it is in now, None where there is no such run."""
        return self._ledger.write(partial(lifecycle.cancel, run=run, now=self._clock()))

    def requeue(self, runs: Sequence[str]) -> Future[tuple[str, ...]]:
        """Running runs wait again and the attempt counts as no failure; gives those that were running."""
        return self._ledger.write(partial(lifecycle.requeue, runs=runs))

    def recover(self, attempts: int, now: float) -> Future[Recovered]:
        """After a start: runs that were running wait again, those that failed to end `attempts` times fail."""
        return self._ledger.write(partial(lifecycle.recover, attempts=attempts, now=now))

    def move(self, run: str, *, priority: int | None = None, rank: float | None = None) -> Future[bool]:
        """Give a queued run another place; False where it is not queued."""
        return self._ledger.write(partial(lifecycle.move, run=run, priority=priority, rank=rank))

    def pause(self, paused: bool) -> Future[None]:  # noqa: FBT001  the fact itself
        """Remember whether the queue stands still."""
        return self._ledger.write(partial(lifecycle.pause, paused=paused))

    def prune(self, now: float, runs: int, days: float) -> Future[int]:
        """Delete the oldest ended runs beyond `runs` and older than `days`, with all that only they refer to.

        In pieces, other writes in between; gives how many went. A run whose webhook call is owed stays.
        """
        return self._ledger.repeat(partial(retention.prune, now=now, runs=runs, days=days))

    # Blobs

    def add_blob(self, blob: Blob) -> Future[bool]:
        """Put a blob into the index; False where it is there already, which then counts as used."""
        return self._ledger.write(partial(shelf.add_blob, blob=blob))

    def use_blob(self, digest: str) -> Future[bool]:
        """Mark a blob as used; False where it is not in the index."""
        return self._ledger.write(partial(shelf.use_blob, digest=digest, now=self._clock()))

    def forget_blob(self, digest: str) -> Future[bool]:
        """Take a damaged blob out of the index, whoever refers to it; False where it was not there."""
        return self._ledger.write(partial(shelf.forget_blob, digest=digest))

    def expire(self, now: float, hours: float, quota: int) -> Future[list[str]]:
        """Take blobs that no run refers to out of the index: unused for `hours`, or, over `quota` bytes, the oldest.

        Gives their digests, whose files may then be deleted.
        """
        return self._ledger.repeat(partial(retention.expire, now=now, hours=hours, quota=quota))

    # Webhook calls

    def delivered(self, delivery: str) -> Future[bool]:
        """A webhook call arrived; False where it was not owed."""
        return self._ledger.write(partial(lifecycle.settle, run=delivery))

    def give_up(self, delivery: str) -> Future[bool]:
        """A webhook call will not be tried again; False where it was not owed."""
        return self._ledger.write(partial(lifecycle.settle, run=delivery))

    def retry(self, delivery: str, next_: float, error: str) -> Future[bool]:
        """A webhook call failed and is due again at `next_`; False where it was not owed."""
        return self._ledger.write(partial(lifecycle.retry, run=delivery, next_=next_, error=error))

    def due(self, now: float, limit: int) -> list[Delivery]:
        """Webhook calls to be made by now, the longest due first."""
        return archive.due(self._reader, now, limit)

    # Reading

    @property
    def paused(self) -> bool:
        """Whether the queue was told to stand still."""
        return archive.paused(self._reader)

    def run(self, run: str) -> Run | None:
        """A run by its id."""
        return archive.run(self._reader, run)

    def document(self, digest: bytes) -> str | None:
        """A text by its sha256, such as `Run.document`."""
        return archive.document(self._reader, digest)

    def graph_of(self, run: str) -> str | None:
        """A run's whole graph as JSON."""
        return archive.text_of(self._reader, run, "document")

    def report_of(self, run: str) -> str | None:
        """A run's report as JSON, None until there is one."""
        return archive.text_of(self._reader, run, "report")

    def events_of(self, run: str) -> str | None:
        """A run's lasting events as a JSON list, None until it has ended."""
        return archive.text_of(self._reader, run, "events")

    def page(
        self, *, state: State | None = None, client: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page:
        """Some runs, newest first; `after` is the last page's. Raises BadCursor for any other text.

        Runs that come in between two pages are in neither; none is left out or given twice.
        """
        return archive.page(self._reader, state, client, after, limit)

    def queued(self) -> list[Queued]:
        """All waiting runs: by priority, then by rank, then as they came."""
        return archive.queued(self._reader)

    def counts(self) -> dict[State, int]:
        """How many runs are in each state."""
        return archive.counts(self._reader)

    def blob(self, digest: str) -> Blob | None:
        """A blob's row in the index."""
        return archive.blob(self._reader, digest)

    def blob_bytes(self) -> int:
        """Bytes of all blobs in the index."""
        return archive.blob_bytes(self._reader)

    def check(self) -> str:
        """`ok`, or what SQLite finds wrong with the file."""
        return archive.check(self._reader)

    @property
    def _reader(self) -> Reader:
        """The calling thread's own connection."""
        reader: Reader | None = getattr(self._readers, "own", None)
        if reader is None:
            reader = self._readers.own = open_reader(self.path)
        return reader
