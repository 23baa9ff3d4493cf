"""The SQLite file of the service: its tables, how it is opened, and what may be wrong with it.

HistoryError                the history cannot do what was asked
├── StorageFull             the disk or the file's limit is reached; nothing was written
├── IdempotencyConflict     an Idempotency-Key came again with another body
├── BlobMissing             a run refers to blobs that are not in the index
└── BadCursor               a cursor that no page gave out
"""

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from engine.errors import CalotypeError

LAYOUT = 1
APPLICATION = 0x43414C4F
"""`CALO`, in the file's header: what tells a history from any other SQLite file."""
PATIENCE = 30.0
"""Seconds to wait for somebody who looks into the file with a tool of their own."""
_CHECKPOINT = 4_000
"""Pages in the write-ahead log after which they are copied into the file: a write now and then waits for that."""
_JOURNAL = 32 << 20
"""Bytes to which the write-ahead log is cut back after it has grown."""
_PIECE = 64
"""Rows in one statement at most: a statement of each length stays prepared."""
_TABLES = """
-- A run names what it shares with other runs, texts of JSON and bundles of blobs, by a document's number.
-- `uses` counts the columns of runs that name a document; its content is in `texts` or in `bundles`.
CREATE TABLE runs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, client TEXT NOT NULL,
    title TEXT NOT NULL, priority INTEGER NOT NULL, rank REAL NOT NULL, attempts INTEGER NOT NULL,
    stops INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, started REAL, finished REAL, seconds REAL, requested TEXT, labels TEXT, webhook TEXT,
    key TEXT, body BLOB, document INTEGER NOT NULL, outputs INTEGER, report INTEGER, events INTEGER,
    problems INTEGER, uploads INTEGER, results INTEGER);
CREATE INDEX runs_client ON runs (client);
CREATE INDEX runs_finished ON runs (finished) WHERE finished IS NOT NULL;
CREATE INDEX runs_state ON runs (state) WHERE state <> 'done';
CREATE UNIQUE INDEX runs_key ON runs (client, key) WHERE key IS NOT NULL;
CREATE TABLE documents (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, uses INTEGER NOT NULL);
CREATE INDEX documents_unused ON documents (number) WHERE uses = 0;
CREATE TABLE texts (number INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE bundles (number INTEGER NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (number, blob)) WITHOUT ROWID;
CREATE INDEX bundles_blob ON bundles (blob);
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, type TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, made REAL NOT NULL, used REAL NOT NULL, upload INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX blobs_used ON blobs (used, bytes);
CREATE TABLE deliveries (
    run TEXT PRIMARY KEY, url TEXT NOT NULL, tries INTEGER NOT NULL, next REAL NOT NULL,
    error TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX deliveries_next ON deliveries (next);
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
"""
_LAY_OUT = f"""BEGIN EXCLUSIVE;
{_TABLES}
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {LAYOUT};
COMMIT;
"""


class HistoryError(CalotypeError):
    """The history cannot do what was asked; nothing was written."""


class StorageFull(HistoryError):
    """The disk, or the file's own limit, is reached."""


class IdempotencyConflict(HistoryError):
    """An Idempotency-Key came again with another body."""


class BlobMissing(HistoryError):
    """A run refers to blobs that are not in the index (any more); `digests` names them."""

    def __init__(self, digests: tuple[str, ...]) -> None:
        self.digests = digests
        super().__init__(f"expected blobs that are stored here, got {', '.join(digests)}; upload them again")


class BadCursor(HistoryError):
    """A cursor that no page of this history gave out."""


class Writer(sqlite3.Connection):
    """The one connection that writes, with what it need not ask the file."""

    known: dict[bytes, int]
    """Digests and numbers of some documents that are certainly in the file."""
    run: int
    """The last run's number."""
    document: int
    """The last document's number."""


class Reader(sqlite3.Connection):
    """A connection of one thread that only reads; closed when nobody refers to it, so never in the middle of a read."""

    def __del__(self) -> None:
        """Whichever thread is the last."""
        self.close()


def open_writer(path: Path, limit: int | None = None) -> Writer:
    """Open or create the file; `limit` is the size in bytes that it may grow to.

    Raises HistoryError when the file cannot be opened, is of another program or of a newer layout.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
            factory=Writer,
            cached_statements=512,
        )
    except (OSError, sqlite3.Error) as error:
        raise HistoryError(f"{path}: cannot be opened: {error}; name another data folder") from error
    try:
        _prepare(connection, path, limit)
    except sqlite3.Error as error:
        connection.close()
        raise HistoryError(f"{path}: {error}; move the file away or name another data folder") from error
    except HistoryError:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> Reader:
    """Open an existing file for reading; never waits for the writer."""
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False, factory=Reader)
    connection.execute("PRAGMA query_only = ON")
    return connection


def explain(error: sqlite3.Error, path: Path) -> HistoryError:
    """What SQLite says, as an error that says what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{path}: no room left ({error}); free some disk space or keep fewer runs, then try again")
    if code == sqlite3.SQLITE_READONLY:
        return HistoryError(f"{path}: cannot be written ({error}); make file and folder writable, then try again")
    if isinstance(error, sqlite3.IntegrityError):
        return HistoryError(f"{path}: this is there already ({error}); use an id of its own for each run")
    return HistoryError(f"{path}: {error}; see whether the disk is in order, then try again")


def insert(connection: Writer, into: str, rows: Sequence[Sequence[Any]], after: str = "") -> None:
    """Insert many rows by one statement, as each statement costs a turn of the interpreter's lock.

    `into` and `after` stand around VALUES.
    """
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        values = list(chain.from_iterable(piece))
        connection.execute(f"{into} VALUES {places(len(piece[0]), len(piece))} {after}", values)


@lru_cache(maxsize=512)
def places(columns: int, rows: int) -> str:
    """Where the values of some rows go: `(?,?),(?,?)`."""
    return ",".join([f"({','.join('?' * columns)})"] * rows)


def _prepare(connection: Writer, path: Path, limit: int | None) -> None:
    """Nothing is changed in a file before it is known to be a history."""
    if _is_new(connection, path):
        _journal(connection, path)
        connection.executescript(_LAY_OUT)
    else:
        _journal(connection, path)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL}")
    if limit is not None:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {max(limit // size, 1)}")
    connection.execute("CREATE TEMP TABLE doomed (number INTEGER PRIMARY KEY)")
    connection.known = {}
    connection.run = _last(connection, "runs")
    connection.document = _last(connection, "documents")


def _last(connection: Writer, table: str) -> int:
    return int(connection.execute(f"SELECT COALESCE(MAX(number), 0) FROM {table}").fetchone()[0])  # noqa: S608


def _is_new(connection: Writer, path: Path) -> bool:
    """Whether the file is empty; raises HistoryError when it is neither empty nor a history of this layout."""
    application, layout, tables = (
        connection.execute(query).fetchone()[0]
        for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT COUNT(*) FROM sqlite_master")
    )
    if (application, layout, tables) == (0, 0, 0):
        return True
    if application != APPLICATION:
        raise HistoryError(
            f"{path}: expected a history of Calotype, got the database of another program; "
            "move the file away or name another data folder"
        )
    if layout != LAYOUT:
        raise HistoryError(
            f"{path}: expected layout {LAYOUT}, got layout {layout}; "
            "start the version of Calotype that wrote it, or name another data folder"
        )
    return False


def _journal(connection: Writer, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise HistoryError(
            f"{path}: its file system allows no write-ahead log (got {mode!r}); name a local data folder"
        )
