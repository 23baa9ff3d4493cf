"""What runs share: texts under their sha256, bundles of blobs under the sha256 of their members, and the blob index.

A text is stored once, however many runs repeat it. A bundle is the set of blobs that a run refers to; as many runs
refer to the same ones, a run names the bundle. A blob is kept as long as it is in a bundle.
"""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache

from server.rows import Blob
from server.tables import BlobMissing, Writer, insert, places

_SHORT = 1 << 16
"""Characters up to which a text's digest is remembered."""
_KNOWN = 1 << 14
"""Documents remembered as being in the file."""
_COUNT = "ON CONFLICT (number) DO UPDATE SET uses = uses + excluded.uses"


class Shelf:
    """What one transaction needs: texts and bundles are asked for, then `settle` writes what is new, all at once."""

    def __init__(self, connection: Writer) -> None:
        self._connection = connection
        self._uses: Counter[bytes] = Counter()
        self._texts: dict[bytes, str] = {}
        self._members: dict[bytes, Collection[str]] = {}

    def text(self, text: str | None) -> bytes | None:
        """One use of a text; gives its digest."""
        if text is None:
            return None
        digest = digest_of(text)
        self._uses[digest] += 1
        self._texts[digest] = text
        return digest

    def require(self, blobs: Collection[str]) -> None:
        """Raise BlobMissing unless the index has all these blobs."""
        if bundle_of(blobs) in self._connection.known:
            return
        if missing := set(blobs) - indexed(self._connection, blobs):
            raise BlobMissing(tuple(sorted(missing)))

    def bundle(self, blobs: Collection[str]) -> bytes | None:
        """One use of a set of blobs; gives its digest, None for the empty set."""
        if not blobs:
            return None
        digest = bundle_of(blobs)
        self._uses[digest] += 1
        self._members[digest] = frozenset(blobs)
        return digest

    def settle(self) -> dict[bytes | None, int | None]:
        """Write what is new and count the uses; gives the number of everything that was asked for."""
        known, new = self._connection.known, self._new()
        uses = [(known[digest], digest, count) for digest, count in self._uses.items()]
        texts = [(known[digest], self._texts[digest]) for digest in new if digest in self._texts]
        bundles = [(known[digest], blob) for digest in new for blob in self._members.get(digest, ())]
        insert(self._connection, "INSERT INTO documents", uses, _COUNT)
        insert(self._connection, "INSERT INTO texts", texts)
        insert(self._connection, "INSERT INTO bundles", bundles)
        return {None: None, **{digest: number for number, digest, _ in uses}}

    def _new(self) -> list[bytes]:
        """Digests that get a number only now; afterwards all that were asked for are known."""
        known = self._connection.known
        if len(known) > _KNOWN:
            known.clear()
        if unsure := [digest for digest in self._uses if digest not in known]:
            query = f"SELECT digest, number FROM documents WHERE digest IN ({places(1, len(unsure))})"  # noqa: S608
            known.update(self._connection.execute(query, unsure).fetchall())
        new = [digest for digest in unsure if digest not in known]
        for digest in new:
            self._connection.document += 1
            known[digest] = self._connection.document
        return new


def digest_of(text: str) -> bytes:
    """The sha256 of a text in UTF-8."""
    return _remembered(text) if len(text) <= _SHORT else hashlib.sha256(text.encode()).digest()


def bundle_of(blobs: Iterable[str]) -> bytes:
    """The sha256 of a set of blobs; no text of JSON has the same."""
    return digest_of("blobs " + " ".join(sorted(blobs)))


@lru_cache(maxsize=256)
def _remembered(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def indexed(connection: sqlite3.Connection, digests: Collection[str]) -> set[str]:
    """Those of some blobs that are in the index."""
    if not digests:
        return set()
    query = f"SELECT digest FROM blobs WHERE digest IN ({places(1, len(digests))})"  # noqa: S608
    return {digest for (digest,) in connection.execute(query, tuple(digests))}


def add_blob(connection: Writer, blob: Blob) -> bool:
    """Put a blob into the index; whether it was not there. One that is there is marked as used."""
    values = (blob.digest, blob.bytes, blob.type, blob.width, blob.height, blob.made, blob.used, blob.upload)
    cursor = connection.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    if cursor.rowcount == 0:
        connection.execute(
            "UPDATE blobs SET used = MAX(used, ?), upload = upload OR ? WHERE digest = ?",
            (blob.used, blob.upload, blob.digest),
        )
    return cursor.rowcount == 1


def use_blob(connection: Writer, digest: str, now: float) -> bool:
    """Mark a blob as used; whether it is in the index."""
    return connection.execute("UPDATE blobs SET used = MAX(used, ?) WHERE digest = ?", (now, digest)).rowcount == 1


def forget_blob(connection: Writer, digest: str) -> bool:
    """Take a blob out of the index, whatever refers to it; whether it was there."""
    connection.known.clear()
    return connection.execute("DELETE FROM blobs WHERE digest = ?", (digest,)).rowcount == 1
