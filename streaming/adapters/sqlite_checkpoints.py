"""What a shard commits, in one SQLite file a partition; a load reads packed id hashes and statistics, never join rows."""

import json
import os
from functools import lru_cache

import numpy as np

from policies.types import Arrays
from streaming.adapters.rules import NOTHING, next_row, refuse_gap, refuse_outrun, without
from streaming.adapters.sqlite_file import SqliteFile
from streaming.ports import Commit, Loaded

_SCHEMA = """
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), partition INTEGER, "offset" INTEGER,
  clock REAL, epoch INTEGER, next_row INTEGER, evicted INTEGER, extra BLOB);
CREATE TABLE IF NOT EXISTS joins (row INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ids (first INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS statistics (key TEXT, name TEXT, dtype TEXT, shape TEXT, data BLOB, PRIMARY KEY (key, name));
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY, value BLOB NOT NULL)
"""
_shape = lru_cache(1_000)(json.dumps)  # of a thousand learners most are alike
_HEAD = 'SELECT "offset", clock, epoch, next_row, evicted, extra FROM head'


class SqliteCheckpoints:
    """One transaction a commit, durable on return. Raises Rejected('fenced') for an epoch below the one committed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # rows of about 2 kB: eight share a page, where a page of 4 kB would hold one and waste the rest
        self._file = SqliteFile(path, _SCHEMA, page_bytes=16384, wal_bytes=64 << 20)

    def commit(self, commit: Commit) -> None:
        with self._file.write() as db:
            row = db.execute("SELECT epoch, next_row, evicted FROM head").fetchone()
            epoch, reached, evicted = row or (0, 0, 0)
            refuse_outrun(commit.epoch, epoch)
            if commit.restart:
                reached = evicted = 0
                for table in ("joins", "ids", "statistics"):
                    db.execute(f"DELETE FROM {table}")
            db.executemany("INSERT OR REPLACE INTO joins VALUES (?, ?)", commit.joins)
            if commit.ids:
                db.execute("INSERT OR REPLACE INTO ids VALUES (?, ?)", commit.ids)
            evicted = max(evicted, commit.evicted)
            db.execute("DELETE FROM joins WHERE row < ?", (evicted,))
            db.execute("DELETE FROM ids WHERE first < ? AND first + length(packed) / 8 <= ?", (evicted, evicted))
            db.executemany(
                "INSERT OR REPLACE INTO statistics VALUES (?, ?, ?, ?, ?)",
                [
                    (key, name, array.dtype.str, _shape(array.shape), array.tobytes())
                    for key, arrays in (commit.statistics or {}).items()
                    for name, array in arrays.items()
                ],
            )
            if commit.outbox is not None:
                first, rows = commit.outbox
                db.executemany("INSERT OR REPLACE INTO outbox VALUES (?, ?)", list(enumerate(rows, first)))
            head = (commit.partition, commit.offset, commit.clock, commit.epoch, next_row(reached, commit), evicted)
            db.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?, ?, ?)", (*head, commit.extra))

    def load(self, epoch: int = 0) -> Loaded:
        with self._file.write() as db:  # a transaction, so that no other owner commits between the queries
            if epoch:
                row = db.execute("SELECT epoch FROM head").fetchone()
                refuse_outrun(epoch, row[0] if row else 0)
                db.execute("INSERT OR IGNORE INTO head VALUES (1, NULL, 0, 0.0, 0, 0, 0, x'')")
                db.execute("UPDATE head SET epoch = ?", (epoch,))
            head = db.execute(_HEAD).fetchone()
            if head is None:
                return NOTHING
            ids = db.execute("SELECT first, packed FROM ids ORDER BY first").fetchall()
            statistics: dict[str, Arrays] = {}
            for key, name, dtype, shape, data in db.execute("SELECT * FROM statistics"):
                array = np.frombuffer(bytearray(data), dtype).reshape(json.loads(shape))  # bytearray: writable
                statistics.setdefault(key, {})[name] = array
        offset, clock, epoch, reached, evicted, extra = head
        return Loaded(offset, clock, epoch, reached, evicted, without(ids, evicted), statistics, extra)

    def reached(self) -> tuple[int, float]:
        """(offset, clock) committed, without all the rest; (0, 0.0) before the first commit."""
        rows = self._file.read('SELECT "offset", clock FROM head')
        return rows[0] if rows else (0, 0.0)

    def join(self, row: int) -> bytes | None:
        rows = self._file.read("SELECT value FROM joins WHERE row = ?", (row,))
        return rows[0][0] if rows else None

    def pull(self, number: int, limit: int) -> list[tuple[int, bytes]]:
        rows = self._file.read(
            "SELECT number, value FROM outbox WHERE number >= ? ORDER BY number LIMIT ?", (number, limit)
        )
        if not rows or rows[0][0] != number:
            refuse_gap(number, rows, self.numbers())
        return rows

    def numbers(self) -> tuple[int, int]:
        ((first, last),) = self._file.read("SELECT (SELECT min(number) FROM outbox), (SELECT max(number) FROM outbox)")
        return (0, 0) if first is None else (first, last + 1)

    def trim(self, before: int) -> None:
        with self._file.write() as db:
            db.execute("DELETE FROM outbox WHERE number < min(?, (SELECT max(number) FROM outbox))", (before,))

    def close(self) -> None:
        self._file.close()
