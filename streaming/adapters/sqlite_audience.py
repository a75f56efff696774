"""Attributes of people, their ledgers, and counts of open windows, in one SQLite file that only the aggregator opens."""

import os
from collections.abc import Callable, Mapping, Sequence

import msgspec

from policies.errors import Rejected
from streaming.adapters.sqlite_file import SqliteFile
from streaming.impressions import Counts, Ledger, Opened, Place, counted_as

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attributes (unit TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (unit, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledgers (unit TEXT PRIMARY KEY, day INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (partition INTEGER PRIMARY KEY, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counts (scheme TEXT, window INTEGER, kind TEXT, name TEXT, value TEXT, count REAL NOT NULL,
  PRIMARY KEY (scheme, window, kind, name, value)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS opened (surface TEXT PRIMARY KEY, scheme TEXT NOT NULL, window INTEGER NOT NULL, since REAL NOT NULL,
  told BLOB NOT NULL) WITHOUT ROWID
"""
_PAGE = 500  # units asked for at once: SQLite allows so many variables in any build
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Ledger).decode


class SqliteAudience:
    """Both `Audience` and `Counting`. The file and its folder are its owner's alone."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SqliteFile(path, _SCHEMA)
        self._file.read("PRAGMA secure_delete=ON")  # what is forgotten is overwritten
        for file in (self._file.path, *self._file.path.parent.glob(f"{self._file.path.name}-*")):
            file.chmod(0o600)

    def tell(self, people: Mapping[str, Mapping[str, str | None]]) -> None:
        said = [(unit, name, value) for unit, known in people.items() for name, value in known.items()]
        with self._file.write() as db:
            db.executemany(
                "INSERT OR REPLACE INTO attributes VALUES (?, ?, ?)", [one for one in said if one[2] is not None]
            )
            db.executemany(
                "DELETE FROM attributes WHERE unit = ? AND name = ?", [one[:2] for one in said if one[2] is None]
            )

    def values(self, units: Sequence[str], attribute: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(units), _PAGE):
            page = units[start : start + _PAGE]
            query = f"SELECT unit, value FROM attributes WHERE name = ? AND unit IN ({','.join('?' * len(page))})"
            found |= dict(self._file.read(query, (attribute, *page)))
        return found

    def forget(self, unit: str) -> int:
        with self._file.write() as db:
            gone = db.execute("DELETE FROM attributes WHERE unit = ?", (unit,)).rowcount
            return gone + db.execute("DELETE FROM ledgers WHERE unit = ?", (unit,)).rowcount

    def cursor(self, partition: int) -> int:
        rows = self._file.read("SELECT number FROM cursors WHERE partition = ?", (partition,))
        return int(rows[0][0]) if rows else 0

    def ledgers(self, units: Sequence[str]) -> dict[str, Ledger]:
        found: dict[str, Ledger] = {}
        for start in range(0, len(units), _PAGE):
            page = units[start : start + _PAGE]
            query = f"SELECT unit, value FROM ledgers WHERE unit IN ({','.join('?' * len(page))})"
            found |= {unit: _decode(value) for unit, value in self._file.read(query, page)}
        return found

    def commit(
        self, partition: int, since: int, number: int, counts: Mapping[Place, Counts], ledgers: Mapping[str, Ledger]
    ) -> None:
        with self._file.write() as db:
            found = db.execute("SELECT number FROM cursors WHERE partition = ?", (partition,)).fetchone()
            if (found[0] if found else 0) != since:
                message = f"impressions are counted to {found and found[0]} in partition {partition}, not to {since}"
                raise Rejected(message, code="fenced", status=409)
            added = [(*place, *cell, count) for place, cells in counts.items() for cell, count in cells.items()]
            db.executemany(
                "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                added,
            )
            written = [(unit, max(ledger.spent, default=0), _encode(ledger)) for unit, ledger in ledgers.items()]
            db.executemany("INSERT OR REPLACE INTO ledgers VALUES (?, ?, ?)", written)
            db.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (partition, number))

    def opened(self, surface: str) -> Opened | None:
        rows = self._file.read("SELECT scheme, window, since, told FROM opened WHERE surface = ?", (surface,))
        return Opened(*rows[0]) if rows else None

    def open(self, surface: str, opened: Opened) -> None:
        with self._file.write() as db:
            before = db.execute("SELECT scheme FROM opened WHERE surface = ?", (surface,)).fetchone()
            if before is not None:
                db.execute("DELETE FROM counts WHERE scheme = ?", (counted_as(surface, before[0]),))
            db.execute("INSERT OR REPLACE INTO opened VALUES (?, ?, ?, ?, ?)", (surface, *opened))

    def release(self, surface: str, window: int, oldest: int, made: Callable[[Opened, Counts], bytes]) -> bool:
        with self._file.write() as db:
            row = db.execute("SELECT scheme, window, since, told FROM opened WHERE surface = ?", (surface,)).fetchone()
            if row is None or row[1] != window:
                return False
            opened = Opened(*row)
            place = (counted_as(surface, opened.scheme), window)
            cells = db.execute("SELECT kind, name, value, count FROM counts WHERE scheme = ? AND window = ?", place)
            told = made(opened, {(kind, name, value): count for kind, name, value, count in cells.fetchall()})
            db.execute("DELETE FROM counts WHERE scheme = ? AND window = ?", place)
            db.execute("DELETE FROM ledgers WHERE day < ?", (oldest,))
            db.execute("UPDATE opened SET window = ?, told = ? WHERE surface = ?", (window + 1, told, surface))
        return True

    def close(self) -> None:
        self._file.close()
