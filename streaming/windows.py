"""Which settled decisions make up a file: a function of the log, so a file that is written again is the same file.

    <tenant>/<surface>/date=<UTC day of the decision>/p<partition>-<first offset>-<last offset>.parquet
    versions/<config hash>.json      the surface version, with the names of the columns of its encoded vectors

A window is five minutes of due times. It is written when nothing can fall into it any more, or as soon as it has enough
decisions for a piece of its own; the offsets are those of the decisions in the file. The store's `put` is durable and never
half-done, so whoever dies in between writes the same bytes under the same names again.
"""

import hashlib
import io
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from streaming.configuration import Configs
from streaming.experiences import Experience, Experiences, Row
from streaming.forgets import forgotten
from streaming.parquet import ROW_GROUP, table_of, writer
from streaming.ports import Bundles

WINDOW_SECONDS = 300.0
PIECE_ROWS = 10_000  # decisions: some tens of MB in memory while they are written

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Windows:
    """Files of one partition, written to a store in the order of the outbox."""

    def __init__(
        self,
        experiences: Experiences,
        store: Bundles,
        configs: Configs,
        *,
        window_seconds: float = WINDOW_SECONDS,
        piece_rows: int = PIECE_ROWS,
    ) -> None:
        self._experiences, self._store, self._configs = experiences, store, configs
        self._window_seconds, self._piece_rows = window_seconds, piece_rows
        self._stored: set[str] = set()  # surface versions
        self._closes = 0.0  # when the window that was looked at last is over

    def write(self, number: int, frontier: float) -> tuple[int, list[str]]:
        """(next number, files) of the next piece from `number`; nothing when it may still grow. Raises Unavailable, Corrupt."""
        waiting = self._experiences.numbers()[1] - number
        if not waiting or (waiting < self._piece_rows and frontier < self._closes):
            return number, []
        rows = self._experiences.rows(number, self._piece_rows)
        window = rows[0][1].due // self._window_seconds
        piece = [pair for pair in rows if pair[1].due // self._window_seconds == window]
        self._closes = (window + 1) * self._window_seconds
        if len(piece) == len(rows) < self._piece_rows and frontier < self._closes:
            return number, []  # it may still grow
        self._closes = 0.0
        files = sorted(self._files(piece).items())
        for name, data in files:
            self._store.put(name, data)
        return number + len(piece), [name for name, _ in files]

    def _files(self, piece: Sequence[tuple[int, Row]]) -> dict[str, bytes]:
        """name → bytes."""
        files: dict[str, _File] = {}
        for start in range(0, len(piece), ROW_GROUP):
            for one in self._experiences.of(piece[start : start + ROW_GROUP]):
                if forgotten(self._configs.forgotten, one.decision.unit, one.decision.at):
                    continue
                self._store_version(one.decision.config)
                folder = folder_of(one)
                if folder not in files:
                    files[folder] = _File()
                files[folder].add(one)
        partition = self._experiences.partition
        return {
            f"{folder}/p{partition:04d}-{file.first:012d}-{file.last:012d}.parquet": file.close()
            for folder, file in files.items()
        }

    def _store_version(self, config: str) -> None:
        compiled = None if config in self._stored else self._configs.get(config)
        if compiled is None:
            return
        document = {
            "config": config,
            "schema": compiled.encoder.schema,
            "context": compiled.encoder.context_names,
            "items": compiled.encoder.item_names,
            "surface": compiled.surface,
        }
        self._store.put(f"versions/{config}.json", msgspec.json.encode(document))
        self._stored.add(config)


class _File:
    """One file in the making, compressed a row group at a time: memory holds no more than a group as Python objects."""

    def __init__(self) -> None:
        self._sink, self._group = io.BytesIO(), list[Experience]()
        self._writer = writer(self._sink)
        self.first, self.last = sys.maxsize, 0

    def add(self, one: Experience) -> None:
        self.first, self.last = min(self.first, one.row.offset), max(self.last, one.row.offset)
        self._group.append(one)
        if len(self._group) == ROW_GROUP:
            self._flush()

    def close(self) -> bytes:
        if self._group:
            self._flush()
        self._writer.close()
        return self._sink.getvalue()

    def _flush(self) -> None:
        self._writer.write_table(table_of(self._group))
        self._group = []


def folder_of(one: Experience) -> str:
    """Where a decision's file lies: tenant, surface, and the day it was made."""
    day = datetime.fromtimestamp(one.decision.at, UTC).date().isoformat()
    return f"{plain(one.decision.tenant)}/{plain(one.decision.surface)}/date={day}"


def plain(name: str) -> str:
    """A name fit for a path: itself, or a hash of it where it is not plain (a producer may send anything as tenant)."""
    if _PLAIN.fullmatch(name):
        return name
    return f"hashed={hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
