"""The SQLite file of a cache folder: traces, warnings, what nodes last were, file digests, the index of values on disk.

Several processes may use one folder at a time (WAL, short transactions, idempotent writes). A folder that cannot be
written degrades to memory: `trouble` says why, nothing is half-written.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import CacheError

LAYOUT = 1
PATIENCE = 30.0
"""Seconds to wait for another process that writes into the same folder."""
_TABLES = """
CREATE TABLE IF NOT EXISTS traces (key BLOB PRIMARY KEY, outputs BLOB NOT NULL, seconds REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS warnings (key BLOB PRIMARY KEY, messages TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (node TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS digests (
    path TEXT PRIMARY KEY, inode INTEGER, size INTEGER, mtime INTEGER, ctime INTEGER, digest BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stored (
    identity BLOB PRIMARY KEY, bytes INTEGER NOT NULL, seconds REAL NOT NULL, uses INTEGER NOT NULL,
    priority REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
"""


class Catalogue:
    """One connection to `folder/calotype.sqlite`, shared by threads."""

    def __init__(self, folder: Path) -> None:
        """Raises CacheError when the folder was written by an incompatible version or is not a database."""
        self.folder = folder
        self.trouble: str | None = None
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(folder / "calotype.sqlite")
        except OSError as error:
            raise CacheError(f"cache folder {folder}: {error.strerror}") from error
        except sqlite3.Error as error:
            raise CacheError(f"cache folder {folder}: {error}; remove it or name another") from error

    def _open(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        give_up = time.monotonic() + PATIENCE
        try:
            while not self._lay_out(insist=time.monotonic() > give_up):
                time.sleep(0.02)
        except BaseException:
            self._connection.close()
            raise

    def _lay_out(self, *, insist: bool) -> bool:
        """Whether the tables are there; False while another process that opens the same folder is in the way."""
        layout = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if layout not in (0, LAYOUT):
            raise CacheError(f"cache folder {self.folder} has layout {layout}, this version writes {LAYOUT}")
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(_TABLES)
            self._connection.execute(f"PRAGMA user_version={LAYOUT}")
        except sqlite3.OperationalError as error:
            if insist or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return False
        return True

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row, or None."""
        return next(iter(self.all(query, *values)), None)

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows; none where the file is damaged, which is remembered as `trouble`."""
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                self._remember(error)
                return []

    def write(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """One statement for many rows, all or none. A full, read-only or damaged disk is remembered as `trouble`."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(query, rows)
                self._connection.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._remember(error)

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._connection.close()

    def _remember(self, error: sqlite3.DatabaseError) -> None:
        if isinstance(error, sqlite3.ProgrammingError):
            raise error
        self.trouble = f"{self.folder}: {error}"
