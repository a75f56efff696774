"""One SQLite file that several threads and processes share: how every SQLite adapter opens, reads and writes.

Write-ahead log, so readers never wait for a writer; writers take the lock at the start of a transaction (IMMEDIATE),
so none is refused half way. Failures become the error tree: a busy, full or unreadable file is Unavailable, a file
that is not a sound database is Corrupt('database'). A file carries the number of its tables' format (`user_version`): one
that a newer build has raised is Corrupt('format'), and nothing in it is touched.
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, Literal

from policies.errors import Corrupt, Unavailable

# unixepoch('subsec') needs SQLite 3.42; this is the same clock, which counts whole milliseconds.
NOW_SECONDS = "round((julianday('now') - 2440587.5) * 86400000) / 1000"

FORMAT = 1  # raised when a table changes its meaning or a column goes; a file from before there was a number says 0
_OPENING_SECONDS = 30.0  # several processes may make a file at the same moment
_ATTEMPTS, _PAUSE_SECONDS = 250, 0.02


class SqliteFile:
    """A connection with its lock.

    synchronous   FULL: a commit is on the disk; NORMAL: it survives the process, not the power
    wait_seconds  for another process's transaction, before Unavailable is raised
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: str,
        *,
        synchronous: Literal["FULL", "NORMAL"] = "FULL",
        page_bytes: int = 4096,
        wal_bytes: int = 4 << 20,
        wait_seconds: float = _OPENING_SECONDS,
    ) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        with _named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=_OPENING_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._db.execute(f"PRAGMA page_size={page_bytes}")  # acts on a new file only
            weakref.finalize(self, self._db.close)  # a file nobody holds any more is closed without a warning
            self._write_ahead()
            self._db.execute(f"PRAGMA synchronous={synchronous}")
            self._db.execute(f"PRAGMA wal_autocheckpoint={wal_bytes // page_bytes}")
        with self.write() as db:
            self._numbered(db)
            for statement in schema.split(";"):  # executescript would commit the transaction we are in
                db.execute(statement)
        self._db.execute(f"PRAGMA busy_timeout={int(wait_seconds * 1000)}")

    def _numbered(self, db: sqlite3.Connection) -> None:
        [said] = db.execute("PRAGMA user_version").fetchone()
        if said > FORMAT:
            raise Corrupt("format", f"{self.path} is of format {said}, this build reads {FORMAT}")
        if said < FORMAT:
            db.execute(f"PRAGMA user_version={FORMAT}")

    def _write_ahead(self) -> None:
        """Switching a new file to the write-ahead log does not wait for another process doing the same: try again."""
        for _ in range(_ATTEMPTS - 1):
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            Event().wait(_PAUSE_SECONDS)  # a pause, not a clock: nothing below services reads one
        self._db.execute("PRAGMA journal_mode=WAL")

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of one query, from one consistent state of the file."""
        with self._lock, _named(self.path):
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing, whatever is raised inside."""
        with self._lock, _named(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        with self._lock:
            self._db.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError, OSError) as error:
        raise Unavailable(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Corrupt("database", f"{path}: {error}") from error
