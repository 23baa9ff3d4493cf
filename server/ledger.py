"""The writer thread of the history: what waits is written together, and answered when it is on the disk.

A batch is one transaction. Where one operation of it fails, everything is rolled back and done again with a savepoint
around each, so that none spoils another; a disk that refuses fails them all, and the next batch tries again.
"""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from server.tables import HistoryError, Writer, explain, open_writer

A = TypeVar("A")
R = TypeVar("R")
Gathering = Callable[[Writer, Sequence[A]], Sequence[R | Exception]]
"""Does one thing for many items; each gets its result, or an error that spoils nothing for the others."""
TOGETHER = 512
"""Operations in one transaction at most."""
_REFUSALS = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_BUSY,
}
"""SQLite's codes for what no operation is to blame for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Alone:
    """An operation that nothing can be gathered with."""

    operation: Callable[[Writer], Any]

    def __call__(self, connection: Writer, items: Sequence[None]) -> list[Any]:
        return [self.operation(connection)]


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A write that waits."""

    operation: Callable[[Writer, Sequence[Any]], Sequence[Any]]
    item: Any
    future: Future[Any]


class Ledger:
    """Writes into the file at `path`, in the order in which it was told; the file may grow to `limit` bytes."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """Raises HistoryError when the file cannot be used."""
        self.path = path
        self._connection = open_writer(path, limit)
        self._waiting: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="calotype-history", daemon=True)
        self._thread.start()

    def write(self, operation: Callable[[Writer], R]) -> Future[R]:
        """Carry out one operation; the future gives what it returns once that is durable."""
        return self.gather(_Alone(operation), None)

    def gather(self, operation: Gathering[A, R], item: A) -> Future[R]:
        """Carry out an operation for one item, together with the items of its neighbours in the queue.

        The future cannot be cancelled: what was handed in is written, whether or not somebody still waits.
        """
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        with self._door:
            if not self._open:
                raise HistoryError(f"{self.path}: closed; nothing can be written any more")
            self._waiting.put(_Entry(operation, item, future))
        return future

    def repeat(self, operation: Callable[[Writer], R]) -> Future[R]:
        """Carry out an operation again and again, other writes in between, until it returns nothing; gives the sum."""
        whole: Future[R] = Future()
        whole.set_running_or_notify_cancel()

        def follow(part: Future[Any], before: Any = None) -> None:
            try:
                result = part.result()
                if not result:
                    whole.set_result(result if before is None else before)
                    return
                total = result if before is None else before + result
                self.write(operation).add_done_callback(lambda following: follow(following, total))
            except Exception as error:  # noqa: BLE001  whatever it is, somebody waits for it
                whole.set_exception(error)

        self.write(operation).add_done_callback(follow)
        return whole

    def close(self) -> None:
        """Write what waits, then release the file."""
        with self._door:
            if self._open:
                self._open = False
                self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        closing = False
        while not closing:
            batch = self._batch()
            closing = batch[-1] is None
            if entries := [entry for entry in batch if entry is not None]:
                self._commit(entries)

    def _batch(self) -> list[_Entry | None]:
        """What waits, at least one; None comes last, after everything that was handed in before the end."""
        batch = [self._waiting.get()]
        while batch[-1] is not None and len(batch) < TOGETHER and not self._waiting.empty():
            batch.append(self._waiting.get())
        return batch

    def _commit(self, entries: Sequence[_Entry]) -> None:
        """Write the entries and answer them."""
        results = self._attempt(self._together, entries)
        if isinstance(results, Exception) and len(entries) > 1 and not _refusal(results):
            results = self._attempt(self._apart, entries)
        for number, entry in enumerate(entries):
            self._answer(entry, results if isinstance(results, Exception) else results[number])

    def _attempt(
        self, way: Callable[[Sequence[_Entry]], list[Any]], entries: Sequence[_Entry]
    ) -> list[Any] | Exception:
        """The results, one for each entry, once they are on the disk; or why nothing is."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = way(entries)
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  whatever an operation does, the thread lives on
            self._connection.known.clear()
            self._roll_back()
            return error
        return results

    def _together(self, entries: Sequence[_Entry]) -> list[Any]:
        results: list[Any] = []
        for operation, group in groupby(entries, attrgetter("operation")):
            results += operation(self._connection, [entry.item for entry in group])
        return results

    def _apart(self, entries: Sequence[_Entry]) -> list[Any]:
        return [self._guarded(entry) for entry in entries]

    def _guarded(self, entry: _Entry) -> Any:
        self._connection.execute("SAVEPOINT one")
        try:
            (result,) = entry.operation(self._connection, [entry.item])
        except Exception as error:
            if _refusal(error):
                raise
            self._connection.known.clear()
            self._connection.execute("ROLLBACK TO one")
            result = error
        self._connection.execute("RELEASE one")
        return result

    def _roll_back(self) -> None:
        """A failed statement may have rolled back already; where this fails too, the next batch begins with it."""
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _answer(self, entry: _Entry, result: Any) -> None:
        if isinstance(result, sqlite3.Error):
            entry.future.set_exception(explain(result, self.path))
        elif isinstance(result, Exception):
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)


def _refusal(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _REFUSALS
