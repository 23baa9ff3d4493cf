"""The disk tier: one safetensors file per value, written under another name and renamed, checked when read.

A file that is damaged, truncated, of another type or simply gone is a miss, never an error. The index lies in the
catalogue, so that several processes share one budget; values are chosen for eviction as in memory.
"""

import contextlib
import hashlib
import json
import os
import queue
import sqlite3
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.catalogue import Catalogue
from engine.digest import Digest, encode
from engine.socket import Array, Packed, Socket

_GARBLED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What reading a damaged or foreign file may raise."""
PART = ".part"
ABANDONED = 3600
"""Seconds after which a half-written file has no writer any more."""
_INFLATION = "COALESCE((SELECT value FROM facts WHERE name='inflation'), 0)"
_USE = f"UPDATE stored SET uses = uses + 1, priority = {_INFLATION} + (uses + 2) * seconds / bytes WHERE identity = ?"  # noqa: S608
_ADMIT = f"INSERT OR REPLACE INTO stored SELECT ?1, ?2, ?3, 0, {_INFLATION} + ?3 / ?2"


class Disk:
    """identity -> value, in `folder/values`. Writing happens on a thread of its own; reading is immediate."""

    def __init__(self, catalogue: Catalogue, sockets: Mapping[str, type[Socket]], budget: int) -> None:
        self.folder = catalogue.folder / "values"
        self.budget = budget
        self._catalogue = catalogue
        self._sockets = sockets
        self._pending: dict[Digest, tuple[Socket, float]] = {}
        self._queue: queue.SimpleQueue[Digest | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._writer: threading.Thread | None = None
        self.unwritten: dict[str, str] = {}
        """Types whose values cannot be packed, and why; they are kept in memory alone."""
        self._sweep()

    @property
    def trouble(self) -> str | None:
        """Why values are not kept on disk, if they are not."""
        return self._catalogue.trouble

    def __contains__(self, identity: Digest) -> bool:
        """Whether the value is there, or about to be."""
        return identity in self._pending or self._path(identity).exists()

    def put(self, identity: Digest, value: Socket, seconds: float) -> None:
        """Write a value that took `seconds` to make, soon; does nothing where it is there already."""
        if identity in self or self._catalogue.trouble:
            return
        self._pending[identity] = (value, seconds)
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_all, name="calotype-disk", daemon=True)
            self._writer.start()
        self._queue.put(identity)

    def get(self, identity: Digest) -> Socket | None:
        """Read a value onto the CPU; None where it is missing or damaged."""
        if (pending := self._pending.get(identity)) is not None:
            return pending[0]
        try:
            packed, name = decode(self._path(identity).read_bytes(), identity)
            value = self._sockets[name].unpack(packed)
            value.check()
        except FileNotFoundError:
            return None
        except _GARBLED:
            self.discard(identity)
            return None
        self._catalogue.write(_USE, [(identity,)])
        return value

    def worth(self, identity: Digest) -> tuple[float, int]:
        """Seconds that the value took to make and how often it was used since, as far as the index knows."""
        row = self._catalogue.one("SELECT seconds, uses FROM stored WHERE identity=?", identity)
        return (row[0], row[1]) if row else (0.0, 0)

    def discard(self, identity: Digest) -> None:
        """Forget a value."""
        self.flush()
        try:
            self._path(identity).unlink(missing_ok=True)
        except OSError as error:
            self._catalogue.trouble = f"{self.folder}: {error}"
        self._catalogue.write("DELETE FROM stored WHERE identity=?", [(identity,)])

    def flush(self) -> None:
        """Wait until everything that was put is written."""
        with self._idle:
            self._idle.wait_for(lambda: not self._pending)

    def clear(self) -> None:
        """Delete all values."""
        self.flush()
        for path in self._files():
            path.unlink(missing_ok=True)
        self._catalogue.write("DELETE FROM stored", [()])

    def close(self) -> None:
        """Write what is pending and stop."""
        self.flush()
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None

    def held(self) -> int:
        """Bytes of all values in the folder, whoever wrote them."""
        row = self._catalogue.one("SELECT COALESCE(SUM(bytes), 0) FROM stored")
        return int(row[0]) if row else 0

    def _sweep(self) -> None:
        """Remove what killed processes left half-written; nobody takes an hour to write one value."""
        for path in self.folder.glob(f"??/*{PART}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()

    def _path(self, identity: Digest) -> Path:
        name = identity.hex()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _files(self) -> Iterator[Path]:
        return self.folder.glob("??/*.safetensors")

    def _write_all(self) -> None:
        while (identity := self._queue.get()) is not None:
            value, seconds = self._pending[identity]
            try:
                self._write(identity, value, seconds)
            except (OSError, sqlite3.Error) as error:
                self._catalogue.trouble = f"{self.folder}: {error}"
            except Exception as error:  # noqa: BLE001  whatever a value does, the thread lives on
                self.unwritten[type(value).__name__] = str(error)
            finally:
                with self._idle:
                    del self._pending[identity]
                    self._idle.notify_all()

    def _write(self, identity: Digest, value: Socket, seconds: float) -> None:
        """The index first: what dies in between is counted and evicted, not forgotten in the folder."""
        data = encode_value(value, identity)
        if len(data) > self.budget:
            return
        self._make_room(len(data))
        self._catalogue.write(_ADMIT, [(identity, len(data), max(seconds, 1e-6))])
        if self._catalogue.trouble:
            return
        try:
            _place(data, self._path(identity))
        except OSError:
            self._catalogue.write("DELETE FROM stored WHERE identity=?", [(identity,)])
            raise

    def _make_room(self, size: int) -> None:
        excess = self.held() + size - self.budget
        while excess > 0:
            row = self._catalogue.one("SELECT identity, bytes, priority FROM stored ORDER BY priority LIMIT 1")
            if row is None:
                return
            self._path(row[0]).unlink(missing_ok=True)
            self._catalogue.write("DELETE FROM stored WHERE identity=?", [(row[0],)])
            self._catalogue.write("INSERT OR REPLACE INTO facts VALUES ('inflation', ?)", [(row[2],)])
            excess -= row[1]


def _place(data: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def encode_value(value: Socket, identity: Digest = b"") -> bytes:
    """A safetensors file: header with offsets, identity, fields and checksum in `__metadata__`, then the raw arrays."""
    packed = value.pack()
    offset, entries = 0, {}
    for name, array in packed.arrays.items():
        entries[name] = _entry(array, offset)
        offset += len(array.data)
    body = b"".join(array.data for array in packed.arrays.values())
    meta = json.dumps(packed.meta)
    kind = type(value).__name__
    checksum = _checksum(identity.hex(), kind, packed.meta, entries, body)
    metadata = {"calotype": "1", "identity": identity.hex(), "type": kind, "fields": meta, "sha256": checksum}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def decode(data: bytes, identity: Digest | None = None) -> tuple[Packed, str]:
    """The value's parts and the name of its type. Raises ValueError when the file is not what was written.

    With an `identity`, a whole file of another value is refused too.
    """
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("header too long")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    metadata = header.pop("__metadata__")
    fields = json.loads(metadata["fields"])
    if _checksum(metadata["identity"], metadata["type"], fields, header, body) != metadata["sha256"]:
        raise ValueError("checksum differs")
    if identity is not None and metadata["identity"] != identity.hex():
        raise ValueError("another value's file")
    arrays = {
        name: Array(entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
    return Packed(fields, arrays), metadata["type"]


def _entry(array: Array, offset: int) -> dict[str, Any]:
    return {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(array.data)]}


def _checksum(identity: str, kind: str, fields: Any, entries: Mapping[str, Any], body: bytes) -> str:
    state = hashlib.sha256(encode([identity, kind, fields, entries]))
    state.update(body)
    return state.hexdigest()
