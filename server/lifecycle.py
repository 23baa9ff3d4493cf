"""What happens to runs once they are in: functions of the writing connection. A run that has ended never changes."""

import json
from collections.abc import Sequence

from server.intake import ending
from server.rows import Blob, Finished, Recovered, State
from server.shelf import Shelf, add_blob, indexed
from server.tables import Writer

_START = "UPDATE runs SET state = 'running', attempts = attempts + 1, started = ? WHERE id = ? AND state = 'queued'"
_REQUEUE = "UPDATE runs SET state = 'queued', started = NULL, stops = stops + ? WHERE id = ? AND state = 'running'"
_END = """UPDATE runs SET state = ?, finished = ?, seconds = ?, outputs = ?, report = ?, events = ?, problems = ?,
    results = ? WHERE id = ?"""


def start(connection: Writer, runs: Sequence[str], now: float) -> tuple[str, ...]:
    """Queued runs begin to run; the ids of those that did, for some may have been cancelled meanwhile."""
    return tuple(run for run in runs if connection.execute(_START, (now, run)).rowcount)


def requeue(connection: Writer, runs: Sequence[str]) -> tuple[str, ...]:
    """Running runs wait again, and that they were stopped is no failure; the ids of those that do."""
    return tuple(run for run in runs if connection.execute(_REQUEUE, (1, run)).rowcount)


def finish(
    connection: Writer, run: str, finished: Finished, blobs: Sequence[str] = (), made: Sequence[Blob] = ()
) -> bool:
    """A running run ends; False where it was not running.

    `made` are new blobs for the index, `blobs` those that the results refer to; what the index lacks is passed over.
    """
    for blob in made:
        add_blob(connection, blob)
    if _state(connection, run) is not State.RUNNING:
        return False
    _end(connection, run, finished, blobs)
    return True


def cancel(connection: Writer, run: str, now: float) -> State | None:
    """A queued run is cancelled; the state it is in now, None where there is no such run."""
    state = _state(connection, run)
    if state is not State.QUEUED:
        return state
    _end(connection, run, Finished(State.CANCELLED, now, 0.0, None))
    return State.CANCELLED


def recover(connection: Writer, attempts: int, now: float) -> Recovered:
    """After a process ended in the middle: what was running waits again, or fails at its last attempt."""
    query = "SELECT id, attempts - stops FROM runs WHERE state = 'running' ORDER BY number"
    running = connection.execute(query).fetchall()
    again = tuple(run for run, tried in running if tried < attempts)
    spent = tuple((run, tried) for run, tried in running if tried >= attempts)
    for run in again:
        connection.execute(_REQUEUE, (0, run))
    for run, tried in spent:
        _end(connection, run, Finished(State.FAILED, now, 0.0, None, problems=_spent(tried)))
    return Recovered(again, tuple(run for run, _ in spent))


def move(connection: Writer, run: str, priority: int | None = None, rank: float | None = None) -> bool:
    """A queued run gets another place; whether it was queued."""
    query = (
        "UPDATE runs SET priority = COALESCE(?, priority), rank = COALESCE(?, rank) WHERE id = ? AND state = 'queued'"
    )
    return connection.execute(query, (priority, rank, run)).rowcount == 1


def pause(connection: Writer, paused: bool) -> None:  # noqa: FBT001  the fact itself
    """Remember whether the queue stands still."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('paused', ?)", (paused,))


def settle(connection: Writer, run: str) -> bool:
    """A webhook call is owed no longer, because it arrived or was given up; whether it was owed."""
    return connection.execute("DELETE FROM deliveries WHERE run = ?", (run,)).rowcount == 1


def retry(connection: Writer, run: str, next_: float, error: str) -> bool:
    """A webhook call failed and is due again later; whether it is owed."""
    query = "UPDATE deliveries SET tries = tries + 1, next = ?, error = ? WHERE run = ?"
    return connection.execute(query, (next_, error, run)).rowcount == 1


def _state(connection: Writer, run: str) -> State | None:
    row = connection.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
    return State(row[0]) if row else None


def _end(connection: Writer, run: str, finished: Finished, blobs: Sequence[str] = ()) -> None:
    shelf = Shelf(connection)
    digests = [*ending(shelf, finished), shelf.bundle(indexed(connection, blobs))]
    numbers = shelf.settle()
    documents = [numbers[digest] for digest in digests]
    connection.execute(_END, (finished.state.value, finished.finished, finished.seconds, *documents, run))
    query = "INSERT INTO deliveries SELECT id, webhook, 0, ?, '' FROM runs WHERE id = ? AND webhook IS NOT NULL"
    connection.execute(query, (finished.finished, run))


def _spent(tried: int) -> str:
    message = (
        f"the service ended {tried} times while this run was running, and will not try it again; "
        "see the service's log for the cause, then submit the run again"
    )
    return json.dumps([{"path": "", "message": message, "code": "attempts"}])
