"""The embedded adapters on SQLite: log, state, claims, dead letters; checkpoints are in `sqlite_checkpoints`.

Every file may be opened by several processes at once.
"""

import os
from collections.abc import Sequence
from itertools import starmap

from policies.errors import Corrupt, Rejected
from streaming.adapters.sqlite_file import NOW_SECONDS, SqliteFile
from streaming.partition import partitions_of
from streaming.ports import Position, Record

__all__ = ["SqliteLog"]


class SqliteLog:
    """One table a partition, whose row number is the offset; an append is one transaction with its spool position.

    A transaction's records carry one append time, taken by the transaction itself and never below the partition's
    newest. Raises Rejected('partitions') when the file was made with another number of partitions: records would be
    found in other keys' partitions, so that is a migration and not a setting.
    """

    def __init__(self, path: str | os.PathLike[str], partitions: int = 4) -> None:
        tables = "".join(
            f"CREATE TABLE IF NOT EXISTS log_{p} (offset INTEGER PRIMARY KEY, appended REAL, key BLOB, value BLOB);"
            for p in range(partitions)
        )
        self._file = SqliteFile(
            path,
            "CREATE TABLE IF NOT EXISTS ends (partition INTEGER PRIMARY KEY, next INTEGER, first INTEGER, clock REAL);"
            "CREATE TABLE IF NOT EXISTS positions (spool TEXT PRIMARY KEY, segment INTEGER, byte INTEGER)",
            page_bytes=16384,  # a record of a few kB stays in one page
        )
        with self._file.write() as db:
            (made,) = db.execute("SELECT count(*) FROM ends").fetchone()
            if made not in (0, partitions):
                raise Rejected(f"{path} has {made} partitions, not {partitions}", at=str(path), code="partitions")
            for statement in tables.split(";"):
                db.execute(statement)
            db.executemany("INSERT OR IGNORE INTO ends VALUES (?, 0, 0, 0.0)", [(p,) for p in range(partitions)])
        self._partitions = partitions
        self._read = [
            f"SELECT offset, appended, key, value FROM log_{p} WHERE offset >= ? ORDER BY offset LIMIT ?"
            for p in range(partitions)
        ]

    @property
    def partitions(self) -> int:
        return self._partitions

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        batches: dict[int, list[tuple[bytes, bytes]]] = {}
        for record, p in zip(records, partitions_of([key for key, _ in records], self._partitions), strict=True):
            batches.setdefault(p, []).append(record)
        with self._file.write() as db:
            for p, batch in sorted(batches.items()):
                (start, appended) = db.execute(
                    f"SELECT next, max(clock, {NOW_SECONDS}) FROM ends WHERE partition = ?", (p,)
                ).fetchone()
                db.executemany(
                    f"INSERT INTO log_{p} VALUES (?, ?, ?, ?)",
                    [(start + i, appended, key, value) for i, (key, value) in enumerate(batch)],
                )
                db.execute(
                    "UPDATE ends SET next = ?, clock = ? WHERE partition = ?", (start + len(batch), appended, p)
                )
            if position is not None:
                db.execute(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                    (position.spool, position.segment, position.byte),
                )

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        rows = self._file.read(self._read[partition], (offset, limit))
        if limit > 0 and (not rows or rows[0][0] != offset):
            ((first, end),) = self._file.read("SELECT first, next FROM ends WHERE partition = ?", (partition,))
            if not first <= offset <= end:
                raise Corrupt("offset_out_of_range", f"partition {partition} has {first}..{end}, not {offset}")
        return list(starmap(Record, rows))

    def end(self, partition: int) -> tuple[int, float]:
        ((end, clock),) = self._file.read("SELECT next, clock FROM ends WHERE partition = ?", (partition,))
        return end, clock

    def position(self, spool: str) -> Position | None:
        rows = self._file.read("SELECT spool, segment, byte FROM positions WHERE spool = ?", (spool,))
        return Position(*rows[0]) if rows else None

    def trim(self, partition: int, before: int) -> None:
        """Retention: records below an offset are gone, and reading them is Corrupt('offset_out_of_range')."""
        with self._file.write() as db:
            (first, end) = db.execute("SELECT first, next FROM ends WHERE partition = ?", (partition,)).fetchone()
            before = min(max(before, first), end)
            db.execute(f"DELETE FROM log_{partition} WHERE offset < ?", (before,))
            db.execute("UPDATE ends SET first = ? WHERE partition = ?", (before, partition))

    def close(self) -> None:
        self._file.close()
