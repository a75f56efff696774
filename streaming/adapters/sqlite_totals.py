"""Totals of experiments' units in one SQLite file."""

import os
from collections.abc import Mapping, Sequence

import msgspec

from policies.errors import Rejected
from streaming.adapters.sqlite_file import SqliteFile
from streaming.totals import Kept, Unit

_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (experiment TEXT, key TEXT, partition INTEGER NOT NULL, closes REAL, value BLOB NOT NULL,
  PRIMARY KEY (experiment, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (experiment TEXT, partition INTEGER, number INTEGER NOT NULL, frontier REAL NOT NULL,
  PRIMARY KEY (experiment, partition)) WITHOUT ROWID
"""
_PAGE = 500  # keys asked for at once: SQLite allows so many variables in any build

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Unit).decode


class SqliteTotals:
    """One transaction a commit."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SqliteFile(path, _SCHEMA)

    def cursor(self, experiment: str, partition: int) -> tuple[int, float]:
        query = "SELECT number, frontier FROM cursors WHERE experiment = ? AND partition = ?"
        rows = self._file.read(query, (experiment, partition))
        return (rows[0][0], rows[0][1]) if rows else (0, 0.0)

    def load(self, experiment: str, keys: Sequence[str]) -> dict[str, Unit]:
        found: dict[str, Unit] = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            query = f"SELECT key, value FROM units WHERE experiment = ? AND key IN ({','.join('?' * len(page))})"
            found |= {key: _decode(value) for key, value in self._file.read(query, (experiment, *page))}
        return found

    def commit(
        self, experiment: str, partition: int, since: int, number: int, frontier: float, units: Mapping[str, Unit]
    ) -> None:
        with self._file.write() as db:
            query = "SELECT number FROM cursors WHERE experiment = ? AND partition = ?"
            found = db.execute(query, (experiment, partition)).fetchone()
            if (found[0] if found else 0) != since:
                message = f"{experiment} is at {found and found[0]} in partition {partition}, not at {since}"
                raise Rejected(message, code="fenced", status=409)
            db.executemany(
                "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)",
                [
                    (experiment, key, partition, unit.closes if unit.arm else None, _encode(unit))
                    for key, unit in units.items()
                ],
            )
            db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?, ?)", (experiment, partition, number, frontier))

    def units(self, experiment: str) -> list[Kept]:
        query = (
            "SELECT value, closes < frontier FROM units JOIN cursors USING (experiment, partition)"
            " WHERE experiment = ? AND closes IS NOT NULL"
        )
        return [Kept(_decode(value), bool(complete)) for value, complete in self._file.read(query, (experiment,))]

    def forget(self, key: str) -> int:
        with self._file.write() as db:
            return db.execute("DELETE FROM units WHERE key = ?", (key,)).rowcount

    def close(self) -> None:
        self._file.close()
