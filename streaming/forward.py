"""From the spools of a host to the log, every record once: one forwarder a host, whatever writers come and go.

The log keeps the position of each spool together with its records, so a forwarder that is killed anywhere goes on
where the log says. Only segments that the log has wholly are deleted. What cannot be read is set aside, never dropped:

    torn     the last record of a segment nobody writes any more is incomplete: its writer was killed before it
             could answer; the tail is cut
    corrupt  bytes that do not check are copied to <segment>-<byte>.corrupt, and the next record that checks follows
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from policies.errors import Unavailable
from streaming.durable import make_folder, replace_file
from streaming.frames import HEADER, MAX_BYTES, next_record, scan
from streaming.ports import Log, Position
from streaming.spool import hold, segment_path, segments, spools

_RECORD_BYTES = HEADER.size + MAX_BYTES  # at most


@dataclass(frozen=True, slots=True)
class ForwarderStats:
    """Counts since this forwarder began. `waiting`: another forwarder holds the folder."""

    waiting: bool = True
    records: int = 0
    bytes: int = 0
    torn: int = 0
    corrupt: int = 0
    corrupt_bytes: int = 0
    segments_deleted: int = 0
    spools: int = 0


class Forwarder:
    """Moves one piece of each spool at a `step`; does nothing while another forwarder holds the folder."""

    def __init__(self, folder: str | os.PathLike[str], log: Log, *, piece_bytes: int = 4 << 20) -> None:
        if piece_bytes < 2 * _RECORD_BYTES:
            raise ValueError(f"a piece of {piece_bytes} bytes may be smaller than two records")
        self._folder, self._log, self._piece_bytes = Path(folder), log, piece_bytes
        self._holder: int | None = None
        self._positions: dict[str, Position] = {}
        self.stats = ForwarderStats()

    def step(self) -> int:
        """Records forwarded; 0 when idle. Raises Unavailable when log or disk is: call again later."""
        try:
            if not self._hold():
                return 0
            found = spools(self._folder)
            self.stats = replace(self.stats, spools=len(found))
            return sum(self._forward(spool) for spool in found)
        except OSError as error:
            raise Unavailable(f"forwarder: {error}") from error

    def written(self) -> bool:
        """Whether any process still writes to a spool of the folder. Raises Unavailable."""
        try:
            for spool in spools(self._folder):
                with _orphan(spool) as orphan:
                    if not orphan:
                        return True
        except OSError as error:
            raise Unavailable(f"forwarder: {error}") from error
        return False

    def close(self) -> None:
        if self._holder is not None:
            os.close(self._holder)
            self._holder = None

    def _hold(self) -> bool:
        if self._holder is None:
            make_folder(self._folder)
            handle = os.open(self._folder / "forwarder.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            self._holder = handle
            self.stats = replace(self.stats, waiting=False)
        return True

    def _forward(self, spool: Path) -> int:
        """One piece of a spool, from the first segment that has something."""
        position = self._positions.get(spool.name) or self._log.position(spool.name) or Position(spool.name, -1, 0)
        there = list(segments(spool))
        for segment in there[:-1]:  # a newer one exists: nobody writes these
            forwarded = self._segment(spool, segment, position, sealed=True)
            if forwarded:
                return forwarded
        for segment in there[-1:]:
            forwarded = self._segment(spool, segment, position, sealed=False)
            if forwarded:
                return forwarded
            with _orphan(spool) as orphan:
                if orphan:
                    return self._segment(spool, segment, position, sealed=True)
        return 0

    def _segment(self, spool: Path, segment: int, position: Position, *, sealed: bool) -> int:
        """Records of one segment from the position on; a sealed one of which nothing is left is deleted."""
        path = segment_path(spool, segment)
        start = at = position.byte if segment == position.segment else 0
        while segment >= position.segment:
            piece = _piece(path, at, self._piece_bytes)
            found = scan(piece)
            if found.records:
                return self._append(Position(spool.name, segment, at + found.used), found.records, found.used)
            if not piece:
                break
            good = next_record(piece, 0)
            torn = good is None and not found.broken and at == start
            if torn and sealed:
                self._cut(path, at)
                break
            if good is None and len(piece) == self._piece_bytes:
                good = len(piece) - _RECORD_BYTES  # a record may begin after this and end in the next piece
            if good is None and not sealed:
                return 0  # being written, or what comes next will tell where it goes on
            at += self._set_aside(path, at, piece[:good])
        if sealed:
            path.unlink()
            self._count(segments_deleted=1)
        return 0

    def _append(self, position: Position, records: list[tuple[bytes, bytes]], size: int) -> int:
        self._positions.pop(position.spool, None)  # if the append fails half-known, the log knows better
        self._log.append(records, position)
        self._positions[position.spool] = position
        self._count(records=len(records), bytes=size)
        return len(records)

    def _cut(self, path: Path, at: int) -> None:
        os.truncate(path, at)
        self._count(torn=1)

    def _set_aside(self, path: Path, at: int, bad: bytes) -> int:
        replace_file(path.with_name(f"{path.stem}-{at}.corrupt"), bad)
        self._count(corrupt=1, corrupt_bytes=len(bad))
        return len(bad)

    def _count(self, **more: int) -> None:
        self.stats = replace(self.stats, **{name: getattr(self.stats, name) + n for name, n in more.items()})


def _piece(path: Path, at: int, size: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.pread(handle, size, at)
    finally:
        os.close(handle)


@contextmanager
def _orphan(spool: Path) -> Iterator[bool]:
    """Whether nobody writes to a spool; nobody begins to, meanwhile."""
    handle = hold(spool)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)
