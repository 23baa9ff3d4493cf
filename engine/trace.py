"""Traces: the key of a node's call -> the identities of its outputs. Traces outlive values."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from engine.catalogue import Catalogue
from engine.content import DigestMemory, Stamp
from engine.digest import Digest

SIZE = 32
"""Bytes of one identity."""
REMEMBERED = 100_000
"""Traces in memory, where the catalogue has them all."""
_SELECT = "SELECT outputs, seconds, messages FROM traces LEFT JOIN warnings USING (key) WHERE key=?"


@dataclass(frozen=True, slots=True)
class Trace:
    """What a call gave: the identities of its outputs in port order, its seconds, and what the node warned of."""

    outputs: tuple[Digest, ...]
    seconds: float
    warnings: tuple[str, ...] = ()


class Traces:
    """key -> Trace, in memory and, with a catalogue, on disk."""

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self._memory: dict[Digest, Trace] = {}
        self._catalogue = catalogue

    def get(self, key: Digest) -> Trace | None:
        """What this call gave before."""
        found = self._memory.get(key)
        if found is None and self._catalogue is not None:
            row = self._catalogue.one(_SELECT, key)
            if row is not None:
                found = Trace(_split(row[0]), row[1], tuple(json.loads(row[2] or "[]")))
                self._remember(key, found)
        return found

    def put(self, key: Digest, trace: Trace) -> None:
        """Remember what a call gave. The first trace of a key stands: another process may have promised it already."""
        self._remember(key, trace)
        if self._catalogue is not None:
            if trace.warnings:
                self._catalogue.write(
                    "INSERT OR IGNORE INTO warnings VALUES (?,?)", [(key, json.dumps(trace.warnings))]
                )
            self._catalogue.write("INSERT OR IGNORE INTO traces VALUES (?,?,?)", [_row(key, trace)])

    def _remember(self, key: Digest, trace: Trace) -> None:
        self._memory.setdefault(key, trace)
        if len(self._memory) > REMEMBERED and self._catalogue is not None and self._catalogue.trouble is None:
            for old in list(islice(self._memory, REMEMBERED // 2)):
                del self._memory[old]

    def clear(self) -> None:
        """Forget everything."""
        self._memory.clear()
        if self._catalogue is not None:
            self._catalogue.write("DELETE FROM traces", [()])
            self._catalogue.write("DELETE FROM warnings", [()])


def _row(key: Digest, trace: Trace) -> tuple[Digest, bytes, float]:
    return key, b"".join(trace.outputs), trace.seconds


def _split(joined: bytes) -> tuple[Digest, ...]:
    return tuple(joined[start : start + SIZE] for start in range(0, len(joined), SIZE))


@dataclass(frozen=True, slots=True)
class Record:
    """What a node was when it last was settled; compared with what it is now to say why it runs."""

    type: str
    version: int
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)


class Records:
    """Node id -> Record, in memory and, with a catalogue, on disk. Only explanations depend on it, never results."""

    def __init__(self, catalogue: Catalogue | None = None) -> None:
        self._catalogue = catalogue
        self._memory: dict[str, Record] = {}
        for node, text in catalogue.all("SELECT node, record FROM records") if catalogue else ():
            self._memory[node] = Record(**json.loads(text))

    def get(self, node: str) -> Record | None:
        """What `node` was last."""
        return self._memory.get(node)

    def news(self, records: Mapping[str, Record]) -> dict[str, Record]:
        """Those of the records that say something new."""
        known = self._memory
        return {node: record for node, record in records.items() if node not in known or known[node].key != record.key}

    def put(self, records: Mapping[str, Record]) -> None:
        """Remember what nodes are now."""
        if not records:
            return
        self._memory.update(records)
        if self._catalogue is not None:
            self._catalogue.write("INSERT OR REPLACE INTO records VALUES (?,?)", _rows(records))


def _rows(records: Mapping[str, Record]) -> Iterable[tuple[str, str]]:
    return [(node, json.dumps(asdict(record))) for node, record in records.items()]


class CataloguedDigests(DigestMemory):
    """Digests of files, kept over restarts."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__()
        self._catalogue = catalogue
        for path, inode, size, mtime, ctime, value in catalogue.all("SELECT * FROM digests"):
            super().put((path, inode, size, mtime, ctime), value)

    def put(self, stamp: Stamp, value: Digest) -> None:
        """Remember a digest."""
        super().put(stamp, value)
        self._catalogue.write("INSERT OR REPLACE INTO digests VALUES (?,?,?,?,?,?)", [(*stamp, value)])
