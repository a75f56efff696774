"""Estimates of policies' values in one SQLite file: a row a partition."""

import os

from policies.errors import Rejected
from streaming.adapters.sqlite_file import SqliteFile

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS folded (partition INTEGER PRIMARY KEY, number INTEGER NOT NULL, state BLOB NOT NULL)"
)


class SqliteEstimates:
    """One transaction a commit."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SqliteFile(path, _SCHEMA)

    def load(self, partition: int) -> tuple[int, bytes]:
        rows = self._file.read("SELECT number, state FROM folded WHERE partition = ?", (partition,))
        return (rows[0][0], rows[0][1]) if rows else (0, b"")

    def commit(self, partition: int, since: int, number: int, state: bytes) -> None:
        with self._file.write() as db:
            found = db.execute("SELECT number FROM folded WHERE partition = ?", (partition,)).fetchone()
            if (found[0] if found else 0) != since:
                message = f"estimates are at {found and found[0]} in partition {partition}, not at {since}"
                raise Rejected(message, code="fenced", status=409)
            db.execute("INSERT OR REPLACE INTO folded VALUES (?, ?, ?)", (partition, number, state))

    def close(self) -> None:
        self._file.close()
