"""Taking runs in: many submissions in one transaction, each recognised by its Idempotency-Key or given a row."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.rows import Accepted, Finished, Receipt, State
from server.shelf import Shelf
from server.tables import BlobMissing, HistoryError, IdempotencyConflict, Writer, insert, places

KEPT = 86_400.0
"""Seconds for which an Idempotency-Key is remembered, as long as its run is."""
_RUNS = """INSERT INTO runs (number, id, state, client, title, priority, rank, attempts, submitted, started, finished,
    seconds, requested, labels, webhook, key, body, document, outputs, report, events, problems, uploads, results)"""
_KEYED = """SELECT runs.client, runs.key, runs.id, runs.rank, runs.body, runs.submitted
    FROM (VALUES {}) AS wanted CROSS JOIN runs ON runs.client = wanted.column1 AND runs.key = wanted.column2"""
_FORGET = "UPDATE runs SET key = NULL, body = NULL WHERE client = ? AND key = ?"


@dataclass(frozen=True, slots=True)
class Submission:
    """A run to be queued, or one that is finished as it comes, with the blobs of its results."""

    run: Accepted
    finished: Finished | None = None
    blobs: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Earlier:
    """The run that a key made."""

    id: str
    rank: float
    body: bytes
    submitted: float


def submit(connection: Writer, submissions: Sequence[Submission]) -> list[Receipt | HistoryError]:
    """Take runs in: a receipt for each, or IdempotencyConflict or BlobMissing; a known key inserts nothing."""
    intake = _Intake(connection, [each.run for each in submissions if each.run.key])
    answers = [intake.take(submission) for submission in submissions]
    intake.settle()
    return answers


class _Intake:
    """What one transaction takes in."""

    def __init__(self, connection: Writer, keyed: Sequence[Accepted]) -> None:
        self._connection = connection
        self._shelf = Shelf(connection)
        self._rows: list[tuple[tuple[Any, ...], list[bytes | None]]] = []
        self._owed: list[tuple[Any, ...]] = []
        self._earlier = _look_up(connection, [(run.client, run.key[0]) for run in keyed if run.key])

    def take(self, submission: Submission) -> Receipt | HistoryError:
        """Recognise or admit one; nothing of a refused one is kept."""
        run = submission.run
        if run.key and (earlier := self._earlier.get((run.client, run.key[0]))):
            if run.submitted - earlier.submitted < KEPT:
                return _recognise(run.key, earlier)
            self._connection.execute(_FORGET, (run.client, run.key[0]))
        try:
            self._shelf.require(run.blobs)
            self._shelf.require(submission.blobs)
        except BlobMissing as error:
            return error
        return self._admit(submission)

    def settle(self) -> None:
        """Write what was admitted."""
        numbers = self._shelf.settle()
        rows = [(*row, *[numbers[digest] for digest in digests]) for row, digests in self._rows]
        insert(self._connection, _RUNS, rows)
        insert(self._connection, "INSERT INTO deliveries", self._owed)

    def _admit(self, submission: Submission) -> Receipt:
        self._connection.run += 1
        run, finished, number = submission.run, submission.finished, self._connection.run
        if run.key:
            self._earlier[run.client, run.key[0]] = _Earlier(run.id, float(number), run.key[1], run.submitted)
        if run.webhook and finished:
            self._owed.append((run.id, run.webhook, 0, finished.finished, ""))
        digests = [self._shelf.text(run.document), *ending(self._shelf, finished)]
        digests += [self._shelf.bundle(run.blobs), self._shelf.bundle(submission.blobs)]
        self._rows.append((_row(number, run, finished), digests))
        return Receipt(run.id, known=False, rank=float(number))


def ending(shelf: Shelf, finished: Finished | None) -> list[bytes | None]:
    """The digests of a finished run's texts: outputs, report, events, problems."""
    if finished is None:
        return [None] * 4
    return [shelf.text(text) for text in (finished.outputs, finished.report, finished.events, finished.problems)]


def _row(number: int, run: Accepted, finished: Finished | None) -> tuple[Any, ...]:
    """A run's own columns, up to those that name documents."""
    state = finished.state if finished else State.QUEUED
    times = (run.submitted, finished.finished, finished.seconds) if finished else (None, None, None)
    names = None if run.outputs is None else json.dumps(run.outputs)
    labels = json.dumps(dict(run.labels)) if run.labels else None
    who = (number, run.id, state.value, run.client, run.title, run.priority, float(number), 0, run.submitted)
    return (*who, *times, names, labels, run.webhook, *(run.key or (None, None)))


def _look_up(connection: Writer, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Earlier]:
    """What these keys made so far, of each client's own."""
    if not keys:
        return {}
    wanted = [value for key in keys for value in key]
    found = connection.execute(_KEYED.format(places(2, len(keys))), wanted)
    return {(client, key): _Earlier(*values) for client, key, *values in found}


def _recognise(key: tuple[str, bytes], earlier: _Earlier) -> Receipt | IdempotencyConflict:
    if key[1] == earlier.body:
        return Receipt(earlier.id, known=True, rank=earlier.rank)
    return IdempotencyConflict(
        f"Idempotency-Key {key[0]!r}: expected the body that came with it for run {earlier.id}, got another; "
        "send another key with another body"
    )
