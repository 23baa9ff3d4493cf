"""Reading the history: functions of a reading connection, each of which sees one state of the file."""

import base64
import contextlib
import json
import sqlite3
from dataclasses import fields
from typing import Any

from server.rows import Blob, Delivery, Page, Queued, Run, State
from server.tables import BadCursor

_RUN = """SELECT runs.number, id, client, title, digest, requested, priority, rank, state, attempts, submitted, started,
    finished, seconds, made.text, wrong.text, webhook, labels
    FROM runs JOIN documents ON documents.number = document
    LEFT JOIN texts AS made ON made.number = outputs LEFT JOIN texts AS wrong ON wrong.number = problems"""
_NEWEST = f"""{_RUN} WHERE runs.number < ?1 AND (?2 IS NULL OR client = ?2) AND (?3 IS NULL OR state = ?3)
    ORDER BY runs.number DESC LIMIT ?4"""
_QUEUED = """SELECT id, client, priority, rank, attempts FROM runs WHERE state = 'queued'
    ORDER BY priority DESC, rank, number"""
_COUNTS = """SELECT state, COUNT(*) FROM runs WHERE state <> 'done' GROUP BY state
    UNION ALL SELECT 'all', COUNT(*) FROM runs"""
_DUE = "SELECT run, run, url, tries, next, error FROM deliveries WHERE next <= ? ORDER BY next LIMIT ?"
_RUN_FIELDS = tuple(field.name for field in fields(Run))
_BLOB_FIELDS = tuple(field.name for field in fields(Blob))
_BEGINNING = (1 << 63) - 1


def run(connection: sqlite3.Connection, id_: str) -> Run | None:
    """One run."""
    row = connection.execute(f"{_RUN} WHERE id = ?", (id_,)).fetchone()
    return _run(row) if row else None


def document(connection: sqlite3.Connection, digest: bytes) -> str | None:
    """A text by its sha256."""
    row = connection.execute(
        "SELECT text FROM documents JOIN texts USING (number) WHERE digest = ?", (digest,)
    ).fetchone()
    return row[0] if row else None


def text_of(connection: sqlite3.Connection, id_: str, column: str) -> str | None:
    """The text that a column of a run refers to."""
    query = f"SELECT text FROM runs JOIN texts ON texts.number = runs.{column} WHERE id = ?"  # noqa: S608
    row = connection.execute(query, (id_,)).fetchone()
    return row[0] if row else None


def page(
    connection: sqlite3.Connection, state: State | None, client: str | None, after: str | None, limit: int
) -> Page:
    """Up to `limit` runs, newest first, of one state or client where given, following the page that gave `after`."""
    below = _BEGINNING if after is None else _number(after)
    rows = connection.execute(_NEWEST, (below, client, state and state.value, limit + 1)).fetchall()
    runs = tuple(_run(row) for row in rows[:limit])
    return Page(runs, _cursor(runs[-1].number) if len(rows) > limit and runs else None)


def queued(connection: sqlite3.Connection) -> list[Queued]:
    """All waiting runs: by priority, then by rank, then as they came."""
    return [Queued(*row) for row in connection.execute(_QUEUED).fetchall()]


def counts(connection: sqlite3.Connection) -> dict[State, int]:
    """How many runs are in each state."""
    found = dict(connection.execute(_COUNTS).fetchall())
    whole = found.pop("all")
    found[State.DONE.value] = whole - sum(found.values())
    return {state: found.get(state.value, 0) for state in State}


def paused(connection: sqlite3.Connection) -> bool:
    """Whether the queue was told to stand still."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'paused'").fetchone()
    return bool(row and row[0])


def blob(connection: sqlite3.Connection, digest: str) -> Blob | None:
    """A blob's row in the index."""
    query = "SELECT digest, bytes, type, width, height, made, used, upload FROM blobs WHERE digest = ?"
    row = connection.execute(query, (digest,)).fetchone()
    if row is None:
        return None
    values = dict(zip(_BLOB_FIELDS, row, strict=True))
    return Blob(**{**values, "upload": bool(values["upload"])})


def blob_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of all blobs in the index."""
    return int(connection.execute("SELECT COALESCE(SUM(bytes), 0) FROM blobs").fetchone()[0])


def due(connection: sqlite3.Connection, now: float, limit: int) -> list[Delivery]:
    """Webhook calls that are to be made by now, the longest due first."""
    return [Delivery(*row) for row in connection.execute(_DUE, (now, limit)).fetchall()]


def check(connection: sqlite3.Connection) -> str:
    """`ok`, or what SQLite finds wrong with the file."""
    return "\n".join(line for (line,) in connection.execute("PRAGMA integrity_check").fetchall())


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_RUN_FIELDS, row, strict=True))
    names, labels = values["requested"], values["labels"]
    values["requested"] = None if names is None else tuple(json.loads(names))
    values["labels"] = json.loads(labels) if labels else {}
    return Run(**{**values, "state": State(values["state"])})


def _cursor(number: int) -> str:
    return base64.urlsafe_b64encode(b"1" + number.to_bytes(8)).decode()


def _number(cursor: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        number = int.from_bytes(base64.b64decode(cursor, altchars=b"-_")[1:])
        if number <= _BEGINNING and _cursor(number) == cursor:
            return number
    raise BadCursor(f"cursor: expected what a page gave as the next one, got {cursor[:40]!r}; start without one")
