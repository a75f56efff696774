"""What was answered is on this machine first: segments of framed records that a forwarder moves to the log.

    <folder>/<spool id>/lock               held by the one process that writes here; holds the next unreserved segment number
    <folder>/<spool id>/000000000007.seg   records, see `frames`; only the newest segment of a spool grows

A spool outlives its process: the next process adopts one that nobody holds, and always begins a new segment.
Segment numbers are never used twice, because the log remembers how far each was read; they are reserved a thousand at
a time, so that starting a segment inside a request costs no flush.
"""

import fcntl
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Literal

from policies.errors import Rejected, Unavailable
from streaming.durable import flush_folder, make_folder
from streaming.frames import MAX_BYTES, frame

Bytes = bytes  # inside the class `bytes` is what waits in it
Level = Literal["ok", "feedback_full", "full"]
SEGMENT_SUFFIX = ".seg"
LOCK = "lock"
_FEEDBACK_SHARE = 0.9
SEGMENTS = 4  # of a full spool, at least
_RESERVED = 1000
_UNFLUSHED_SEGMENTS = 8
_ATTEMPTS, _ATTEMPTS_FOR_AN_ORPHAN, _PAUSE_SECONDS = 100, 3, 0.01
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def segment_path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:012d}{SEGMENT_SUFFIX}"


def segments(folder: Path) -> dict[int, int]:
    """Segment number → bytes, ascending."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SEGMENT_SUFFIX):
                with suppress(FileNotFoundError):  # forwarded and deleted meanwhile
                    found[int(entry.name[: -len(SEGMENT_SUFFIX)])] = entry.stat().st_size
    return dict(sorted(found.items()))


class Spool:
    """One writer's spool. `append` reaches the page cache, which outlives the process; `sync` reaches the disk.

    quota_bytes    what may wait here: at 90% feedback should be refused (`level`), at 100% `append` refuses
    segment_bytes  a segment is deleted as a whole, once all of it is in the log; at most a quarter of the quota, or a full
                   spool would be one segment that is written still, and stay full for ever

    Raises Unavailable when a spool that was asked for by id is held by another process.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        spool_id: str | None = None,
        quota_bytes: int = 1 << 30,
        segment_bytes: int = 16 << 20,
    ) -> None:
        self._quota, self._segment_bytes = quota_bytes, min(segment_bytes, quota_bytes // SEGMENTS)
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._full = False
        self._retired: list[int] = []  # written to the end, not flushed yet
        self._folder_changed = False
        self._appended = self._flushed = 0  # records
        self._lost = (0, 0)  # records (after, up to) which the disk refused
        try:
            make_folder(Path(folder))
            self._folder, self._holder = _adopt(Path(folder), spool_id)
            left = segments(self._folder)
            self._older = sum(left.values())
            self._unreserved = max(int(os.pread(self._holder, 20, 0) or b"0"), *(n + 1 for n in left), 0)
            self._begin(self._unreserved)
            flush_folder(self._folder)
        except OSError as error:
            raise Unavailable(f"spool {folder}: {error}") from error

    @property
    def spool_id(self) -> str:
        return self._folder.name

    @property
    def bytes(self) -> int:
        """What waits here, or is kept until its segment is forwarded."""
        return self._older + self._size

    @property
    def level(self) -> Level:
        if self._full or self.bytes >= self._quota:
            return "full"
        return "feedback_full" if self.bytes >= _FEEDBACK_SHARE * self._quota else "ok"

    def append(self, key: Bytes, value: Bytes) -> None:
        """One record, one write. Raises Unavailable when the spool or the disk is full, Rejected when it is too large."""
        if len(key) + len(value) > MAX_BYTES or not 0 < len(key) <= 0xFFFF:
            raise Rejected(f"{len(key) + len(value)} bytes are no record", code="too_large", status=413)
        record = frame(key, value)
        size = len(record)
        with self._lock:
            if self._older + self._size + size > self._quota:
                self._count(self._sizes())
                if self._older + self._size + size > self._quota:
                    self._full = True
                    raise Unavailable(f"spool {self._folder} is full")
                self._full = False
            if self._size + size > self._segment_bytes and self._size:
                self._next()
            try:
                written = os.write(self._handle, record)
            except OSError as error:
                raise Unavailable(f"spool {self._folder}: {error}") from error
            if written != size:
                self._take_back(written)
            self._size += size
            self._appended += 1

    def sync(self) -> None:
        """Every record appended before the call is on the disk. Threads that wait share one flush. Raises Unavailable."""
        wanted = self._appended
        with self._flushing:
            if self._lost[0] < wanted <= self._lost[1]:
                raise Unavailable(f"spool {self._folder}: the disk refused")
            if wanted > self._flushed:
                self._flush()

    def look(self) -> None:
        """See what the forwarder, another process, has deleted: call it now and then. Raises Unavailable."""
        segment, sizes = self._segment, self._sizes()  # without the lock: nobody who answers waits for a folder
        with self._lock:
            self._count(sizes if segment == self._segment else self._sizes())

    def close(self) -> None:
        """Flush and let the next process have it."""
        self.sync()
        for handle in (self._handle, self._holder):
            os.close(handle)

    def _flush(self) -> None:
        with self._lock:
            appended, handle = self._appended, self._handle
            retired, self._retired = self._retired, []
            changed, self._folder_changed = self._folder_changed, False
        try:
            for old in retired:
                os.fsync(old)
            if changed:
                flush_folder(self._folder)
            os.fsync(handle)
        except OSError as error:
            # what a failed flush leaves behind cannot be flushed again, so those who wait for it are told so
            self._lost = (self._flushed, appended)
            with self._lock, suppress(Unavailable):
                self._next()
            raise Unavailable(f"spool {self._folder}: {error}") from error
        finally:
            for old in retired:
                os.close(old)
        self._flushed = appended

    def _sizes(self) -> dict[int, int]:
        try:
            return segments(self._folder)
        except OSError as error:
            raise Unavailable(f"spool {self._folder}: {error}") from error

    def _count(self, sizes: dict[int, int]) -> None:
        self._older = sum(size for segment, size in sizes.items() if segment != self._segment)
        self._full = self._full and self.bytes >= _FEEDBACK_SHARE * self._quota

    def _take_back(self, written: int) -> None:
        """A part of a record is none: the disk is full."""
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            self._next()  # nothing may follow a part of a record
        raise Unavailable(f"spool {self._folder}: only {written} bytes could be written")

    def _next(self) -> None:
        """Go on in a new segment. Raises Unavailable, with nothing changed."""
        old, size = self._handle, self._size
        try:
            self._begin(self._segment + 1)
            self._retired.append(old)
            self._older += size
            if len(self._retired) > _UNFLUSHED_SEGMENTS:  # nobody calls sync: do not collect handles for ever
                oldest = self._retired.pop(0)
                os.fsync(oldest)
                os.close(oldest)
        except OSError as error:
            raise Unavailable(f"spool {self._folder}: {error}") from error

    def _begin(self, segment: int) -> None:
        if segment >= self._unreserved:
            self._reserve(segment)
        path = segment_path(self._folder, segment)
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._segment, self._size = segment, 0
        self._folder_changed = True

    def _reserve(self, first: int) -> None:
        """Numbers first … first + 999 are ours, durably, before the first of them is used."""
        os.pwrite(self._holder, b"%020d" % (first + _RESERVED), 0)
        os.fsync(self._holder)
        self._unreserved = first + _RESERVED


def hold(spool: Path) -> int | None:
    """The handle that holds a spool, or None while another process does. Closing it lets go."""
    handle = os.open(spool / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def spools(folder: Path) -> list[Path]:
    """The spools in a folder, by id."""
    return sorted(path for path in folder.iterdir() if (path / LOCK).is_file())


def _adopt(folder: Path, spool_id: str | None) -> tuple[Path, int]:
    """(folder, holding handle) of the spool asked for, else of a free one, else of a new one."""
    if spool_id is not None and not _ID.fullmatch(spool_id):
        raise ValueError(f"not a spool id: {spool_id!r}")
    for attempt in range(_ATTEMPTS):  # the forwarder holds an orphan for a moment while it looks at its end
        found = spools(folder) if spool_id is None else [folder / spool_id]
        if spool_id is None and attempt >= _ATTEMPTS_FOR_AN_ORPHAN:
            found = [folder / os.urandom(8).hex()]
        for spool in found:
            make_folder(spool)
            handle = hold(spool)
            if handle is not None:
                return spool, handle
        if found:
            Event().wait(_PAUSE_SECONDS)  # a pause, not a clock: nothing below services reads one
    raise Unavailable(f"spool {spool_id} in {folder} is held by another process")
