"""Counters and profiles in a SQLite file each. They are derived, so a commit survives the process and not the power: the
file is then at an older mark, which its writer finds out, and writes all of it again."""

import os
from collections.abc import Mapping, Sequence

from streaming.adapters.sqlite_file import SqliteFile
from streaming.adapters.tables import TableCounters, TableProfiles, Verdict, verdict
from streaming.ports import Mark

_SCHEMA = """
CREATE TABLE IF NOT EXISTS marks (partition INTEGER PRIMARY KEY, epoch INTEGER, "offset" INTEGER);
CREATE TABLE IF NOT EXISTS "rows" (partition INTEGER, name TEXT, value BLOB NOT NULL, PRIMARY KEY (partition, name))
  WITHOUT ROWID
"""
_ASKED = 500  # names in one query: SQLite's oldest limit of variables is 999


class SqliteTable:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        # a reader never waits (write-ahead log); a writer is told soon, and tries again after its next commit
        self._file = SqliteFile(path, _SCHEMA, synchronous="NORMAL", wait_seconds=1.0)

    def write(self, partition: int, mark: Mark, rows: Mapping[str, bytes], since: Mark | None) -> bool:
        with self._file.write() as db:
            row = db.execute('SELECT epoch, "offset" FROM marks WHERE partition = ?', (partition,)).fetchone()
            found = verdict(Mark(*row) if row else None, mark, since)
            if found is Verdict.WRITE:
                if since is None:
                    db.execute('DELETE FROM "rows" WHERE partition = ?', (partition,))
                written = [(partition, name, value) for name, value in rows.items() if value]
                gone = [(partition, name) for name, value in rows.items() if not value]
                db.executemany('INSERT OR REPLACE INTO "rows" VALUES (?, ?, ?)', written)
                db.executemany('DELETE FROM "rows" WHERE partition = ? AND name = ?', gone)
                db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (partition, *mark))
            return found is not Verdict.ALL

    def read(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Sequence[bytes | None]]:
        return {place: self._rows(place, names) for place, names in wanted.items()}

    def forget(self, wanted: Mapping[int, Sequence[str]]) -> int:
        rows = [(place, name) for place, names in wanted.items() for name in names]
        with self._file.write() as db:
            return db.executemany('DELETE FROM "rows" WHERE partition = ? AND name = ?', rows).rowcount

    def _rows(self, partition: int, names: Sequence[str]) -> Sequence[bytes | None]:
        found: dict[str, bytes] = {}
        for start in range(0, len(names), _ASKED):
            some = names[start : start + _ASKED]
            marks = ",".join("?" * len(some))
            query = f'SELECT name, value FROM "rows" WHERE partition = ? AND name IN ({marks})'
            found.update(self._file.read(query, (partition, *some)))
        return [found.get(name) for name in names]

    def flush(self) -> None:
        """Lose everything, as a store does that is flushed."""
        with self._file.write() as db:
            db.execute('DELETE FROM "rows"')
            db.execute("DELETE FROM marks")

    def close(self) -> None:
        self._file.close()


class SqliteCounters(TableCounters):
    def __init__(self, path: str | os.PathLike[str], partitions: int = 1) -> None:
        self.table = SqliteTable(path)
        super().__init__(self.table, partitions)

    def flush(self) -> None:
        self.table.flush()

    def close(self) -> None:
        self.table.close()


class SqliteProfiles(TableProfiles):
    def __init__(self, path: str | os.PathLike[str], partitions: int = 1) -> None:
        self.table = SqliteTable(path)
        super().__init__(self.table, partitions)

    def flush(self) -> None:
        self.table.flush()

    def close(self) -> None:
        self.table.close()
