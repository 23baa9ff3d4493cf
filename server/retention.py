"""What is forgotten: old runs with the texts that only they refer to, and blobs that nobody refers to.

Each call does a bounded piece of it and says what it did, so that other writes come in between.
"""

from server.tables import Writer, places

PIECE = 200
"""Runs or blobs in one transaction at most."""
_DAY = 86_400.0
_HOUR = 3_600.0
_COLUMNS = ("document", "outputs", "report", "events", "problems", "uploads", "results")
_FREE = "finished IS NOT NULL AND id NOT IN (SELECT run FROM deliveries)"
_OLD = f"SELECT COUNT(*) FROM runs WHERE {_FREE} AND finished < ?"  # noqa: S608
_DOOM = f"INSERT INTO doomed SELECT number FROM runs WHERE {_FREE} ORDER BY finished LIMIT ?"  # noqa: S608
_NAMED = " UNION ALL ".join(f"SELECT {column} AS document FROM doomed JOIN runs USING (number)" for column in _COLUMNS)  # noqa: S608
_UNUSED = "number IN (SELECT number FROM documents WHERE uses = 0)"
_FORGET = (
    f"""UPDATE documents SET uses = uses - gone.times
        FROM (SELECT document, COUNT(*) AS times FROM ({_NAMED}) GROUP BY document) AS gone
        WHERE number = gone.document""",  # noqa: S608
    "DELETE FROM runs WHERE number IN (SELECT number FROM doomed)",
    "DELETE FROM doomed",
    f"""UPDATE blobs SET used = MAX(used, :now)
        WHERE upload AND digest IN (SELECT blob FROM bundles WHERE {_UNUSED})""",  # noqa: S608
    f"DELETE FROM bundles WHERE {_UNUSED}",  # noqa: S608
    f"DELETE FROM texts WHERE {_UNUSED}",  # noqa: S608
    "DELETE FROM documents WHERE uses = 0",
)
"""What the doomed runs take with them. The time of uploads that were theirs alone begins anew."""
_LOOSE = """SELECT digest, bytes, used FROM blobs
    WHERE NOT EXISTS (SELECT 1 FROM bundles WHERE blob = blobs.digest) ORDER BY used LIMIT ?"""


def prune(connection: Writer, now: float, runs: int, days: float) -> int:
    """Delete the oldest ended runs, by their end: those beyond `runs`, and those older than `days`; how many went.

    Queued and running runs stay, and so does a run whose webhook call is still owed.
    """
    excess = _one(connection, "SELECT COUNT(*) FROM runs WHERE finished IS NOT NULL") - runs
    old = _one(connection, _OLD, now - days * _DAY)
    doomed = connection.execute(_DOOM, (max(0, min(max(excess, old), PIECE)),)).rowcount
    if doomed:
        connection.known.clear()
        for statement in _FORGET:
            connection.execute(statement, {"now": now} if ":now" in statement else ())
    return doomed


def expire(connection: Writer, now: float, hours: float, quota: int) -> list[str]:
    """Take blobs that no run refers to out of the index; their digests.

    Those not used for `hours`; then, while all blobs together have more than `quota` bytes, the least recently used.
    """
    excess = _one(connection, "SELECT COALESCE(SUM(bytes), 0) FROM blobs") - quota
    gone = []
    for digest, size, used in connection.execute(_LOOSE, (PIECE,)).fetchall():
        if used >= now - hours * _HOUR and excess <= 0:
            break
        gone.append(digest)
        excess -= size
    connection.execute(f"DELETE FROM blobs WHERE digest IN ({places(1, len(gone))})", gone)  # noqa: S608
    return gone


def _one(connection: Writer, query: str, *values: float) -> int:
    return int(connection.execute(query, values).fetchone()[0])
