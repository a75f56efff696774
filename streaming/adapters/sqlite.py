"""The embedded adapters on SQLite: log, state, claims, leases, dead letters; checkpoints are in `sqlite_checkpoints`.

Every file may be opened by several processes at once.
"""

import os
import sqlite3
from collections.abc import Sequence
from functools import partial

from policies.errors import Corrupt, Rejected
from streaming.adapters.rules import refuse_stale
from streaming.adapters.sqlite_checkpoints import SqliteCheckpoints
from streaming.adapters.sqlite_file import NOW_SECONDS, SqliteFile
from streaming.partition import partitions_of
from streaming.ports import DeadLetter, Position, Record, Versioned

__all__ = ["SqliteCheckpoints", "SqliteClaims", "SqliteDeadLetters", "SqliteLeases", "SqliteLog", "SqliteState"]

_record = partial(tuple.__new__, Record)  # a third of the time of `Record._make`
_SWEEP_EVERY = 256  # claims between two removals of expired ones


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
            "CREATE TABLE IF NOT EXISTS positions (spool TEXT PRIMARY KEY, segment INTEGER, byte INTEGER);"
            "CREATE TABLE IF NOT EXISTS identity (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL);"
            "INSERT OR IGNORE INTO identity VALUES (1, lower(hex(randomblob(8))))",
            page_bytes=32768,  # records of a few kB share a page instead of filling chains of overflow pages
            wal_bytes=64 << 20,  # fewer, larger copies from the write-ahead log into the file
        )
        with self._file.write() as db:
            (made,) = db.execute("SELECT count(*) FROM ends").fetchone()
            if made not in (0, partitions):
                raise Rejected(f"{path} has {made} partitions, not {partitions}", at=str(path), code="partitions")
            for statement in tables.split(";"):
                db.execute(statement)
            db.executemany("INSERT OR IGNORE INTO ends VALUES (?, 0, 0, 0.0)", [(p,) for p in range(partitions)])
        self._partitions = partitions
        ((made_as,),) = self._file.read("SELECT name FROM identity")
        self.identity = f"sqlite {made_as} of {partitions}"
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
                db.execute("UPDATE ends SET next = ?, clock = ? WHERE partition = ?", (start + len(batch), appended, p))
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
        return list(map(_record, rows))

    def first(self, partition: int) -> int:
        first: int = self._file.read("SELECT first FROM ends WHERE partition = ?", (partition,))[0][0]
        return first

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


class SqliteState:
    """Each entry written takes the next version; an entry written again leaves its old version (compaction)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SqliteFile(
            path,
            "CREATE TABLE IF NOT EXISTS entries"
            " (version INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB, UNIQUE (kind, key));"
            "CREATE TABLE IF NOT EXISTS reached (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL);"
            "INSERT OR IGNORE INTO reached VALUES (1, 0)",
        )

    def put(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None = None) -> int:
        with self._file.write() as db:
            version: int = db.execute("SELECT version FROM reached").fetchone()[0]
            if expect is not None:
                refuse_stale(expect, (self.get(kind, key) for kind, key, _ in entries))
            db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
                [(version + i, kind, key, value) for i, (kind, key, value) in enumerate(entries, 1)],
            )
            version += len(entries)
            db.execute("UPDATE reached SET version = ?", (version,))
            return version

    def read(self, after: int = 0, limit: int = 10_000) -> list[Versioned]:
        query = "SELECT version, kind, key, value FROM entries WHERE version > ? ORDER BY version LIMIT ?"
        return [Versioned(*row) for row in self._file.read(query, (after, limit))]

    def get(self, kind: str, key: str) -> Versioned | None:
        query = "SELECT version, kind, key, value FROM entries WHERE kind = ? AND key = ?"
        rows = self._file.read(query, (kind, key))
        return Versioned(*rows[0]) if rows else None

    def version(self) -> int:
        version: int = self._file.read("SELECT version FROM reached")[0][0]
        return version

    def close(self) -> None:
        self._file.close()


class SqliteClaims:
    """Claims can be drawn afresh, so a commit survives the process and not the power; a wait for the lock is short,
    because the caller has an answer without a claim (`semantics.md` 6)."""

    def __init__(self, path: str | os.PathLike[str], *, life_seconds: float = 3600.0) -> None:
        self._life_seconds = life_seconds
        self._since_sweep = 0
        self._file = SqliteFile(
            path,
            "CREATE TABLE IF NOT EXISTS claims (tenant TEXT, decision_id TEXT, value BLOB NOT NULL, expires REAL,"
            " PRIMARY KEY (tenant, decision_id));"
            "CREATE INDEX IF NOT EXISTS claims_by_expiry ON claims (expires)",
            synchronous="NORMAL",
            wait_seconds=0.25,
        )

    def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        return self.claim_all(tenant, [(decision_id, value)], now)[0]

    def claim_all(self, tenant: str, claims: Sequence[tuple[str, bytes]], now: float) -> list[bytes | None]:
        if not claims:
            return []
        with self._file.write() as db:
            found = [self._claim(db, tenant, decision_id, value, now) for decision_id, value in claims]
            self._since_sweep += found.count(None)
            if self._since_sweep >= _SWEEP_EVERY:
                expired = "SELECT rowid FROM claims WHERE expires <= ? ORDER BY expires LIMIT ?"
                db.execute(f"DELETE FROM claims WHERE rowid IN ({expired})", (now, 2 * self._since_sweep))
                self._since_sweep = 0
            return found

    def forget(self, tenant: str, unit: str) -> int:
        """Found by reading, so that nobody's claim waits for it."""
        query = "SELECT rowid FROM claims WHERE tenant = ? AND (instr(value, ?) > 0 OR instr(decision_id, ?) > 0)"
        found = self._file.read(query, (tenant, unit.encode(), unit))
        with self._file.write() as db:
            db.executemany("DELETE FROM claims WHERE rowid = ?", found)
        return len(found)

    def _claim(self, db: sqlite3.Connection, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        query = "SELECT value FROM claims WHERE tenant = ? AND decision_id = ? AND expires > ?"
        winner = db.execute(query, (tenant, decision_id, now)).fetchone()
        if winner:
            held: bytes = winner[0]
            return held
        row = (tenant, decision_id, value, now + self._life_seconds)
        db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?)", row)
        return None

    def close(self) -> None:
        self._file.close()


class SqliteLeases:
    """A commit survives the process and not the power: the log tells what was spent meanwhile."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        schema = "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, value BLOB NOT NULL)"
        self._file = SqliteFile(path, schema, synchronous="NORMAL", wait_seconds=0.25)

    def read(self, names: Sequence[str]) -> list[bytes]:
        query = "SELECT value FROM leases WHERE name = ?"
        return [row[0] if (row := next(iter(self._file.read(query, (name,))), None)) else b"" for name in names]

    def exchange(self, name: str, held: bytes, value: bytes) -> bool:
        with self._file.write() as db:
            if held:
                changed = db.execute("UPDATE leases SET value = ? WHERE name = ? AND value = ?", (value, name, held))
            else:
                changed = db.execute("INSERT OR IGNORE INTO leases VALUES (?, ?)", (name, value))
            return changed.rowcount == 1

    def close(self) -> None:
        self._file.close()


class SqliteDeadLetters:
    """Numbered as they come; a second letter for the same (partition, offset) changes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SqliteFile(
            path,
            "CREATE TABLE IF NOT EXISTS letters (sequence INTEGER PRIMARY KEY AUTOINCREMENT, partition INTEGER,"
            ' "offset" INTEGER, reason TEXT, detail TEXT, key BLOB, value BLOB, UNIQUE (partition, "offset"));'
            "CREATE INDEX IF NOT EXISTS letters_by_reason ON letters (reason)",
        )

    def put(self, letters: Sequence[DeadLetter]) -> None:
        if not letters:
            return
        with self._file.write() as db:
            db.executemany(
                'INSERT OR IGNORE INTO letters (partition, "offset", reason, detail, key, value) VALUES (?,?,?,?,?,?)',
                [(x.partition, x.offset, x.reason, x.detail, x.key, x.value) for x in letters],
            )

    def read(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, DeadLetter]]:
        query = "SELECT * FROM letters WHERE sequence > ? ORDER BY sequence LIMIT ?"
        return [(row[0], DeadLetter(*row[1:])) for row in self._file.read(query, (after, limit))]

    def trim(self, partition: int, before: int) -> int:
        """Retention: letters of records below an offset are gone; their number."""
        with self._file.write() as db:
            gone = db.execute('DELETE FROM letters WHERE partition = ? AND "offset" < ?', (partition, before))
            return int(gone.rowcount)

    def count(self) -> dict[str, int]:
        return dict(self._file.read("SELECT reason, count(*) FROM letters GROUP BY reason"))

    def close(self) -> None:
        self._file.close()
