"""What is kept, and what goes (`semantics.md` 22): bundles by age and hour, files by being named, records by age and need.

    bundles  all of the last `correctable`; before that the one that was live at each full hour; those that a pointer, a hold or
             a release names
    files    of bundles that are kept. One that nothing names goes when it has been so for `grace_seconds`: its manifest may
             be on its way. A name that is written while files are removed stays, see `Guarded`
    records  of the log, younger than the retention, or not read yet by whoever has to; dead letters as long as their record

Removing is safe beside readers and other writers: a manifest goes before its files, nothing a pointer names goes, and whoever
writes a bundle writes every file of it that is not there. Two processes that keep the same store do no harm.
"""

import math
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from sys import intern
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.errors import Unavailable
from policies.types import F64, Mask
from streaming.ports import Bundles, Log

HOUR = 3600.0
GRACE_SECONDS = 600.0
FILES = ("arrays", "graphs")
SLICE = 16  # manifests removed before pointers and releases are read again: less than the second a rollback waits
SLICE_RECORDS = 5_000  # of a log removed in one transaction, which writers wait for: some 20 ms
MOST_FILES = 100_000  # removed in one go, some 10 MB of names
LISTED = 1_000  # names looked at together
WRITERS = 8  # an object store takes 30 ms to remove a file
U64 = NDArray[np.uint64]
Item = TypeVar("Item")
_HASH = re.compile(rb"[0-9a-f]{32}")


class Kept(NamedTuple):
    """A manifest that is there. `files`: first 8 bytes of every hash in it, whatever its format."""

    surface: str
    policy: str
    created_at: float
    files: bytes


class _Head(Struct):
    surface: str
    policy: str
    created_at: float


_head = msgspec.json.Decoder(_Head).decode
_NOBODY = _Head("", "", math.inf)  # of a manifest that cannot be read: it stays, and so does what it names


@dataclass(slots=True)
class Swept:
    """What a sweep removed, by kind, and what is there after it. `unreadable` manifests stay until a person looks."""

    removed: dict[str, int] = field(default_factory=lambda: {"manifests": 0, "arrays": 0, "graphs": 0})
    bundles: int = 0
    unreadable: int = 0


class Guarded:
    """A bundle store that knows what is being written, so that a sweep does not remove it.

    A writer finds a file in place and leaves it, just as the sweep has decided that nothing names it: so what was put since
    the last pointer moved, and what pointers moved to since the lists were read, is not removed.
    """

    def __init__(self, store: Bundles) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._open: set[str] = set()  # put, and no pointer has moved since
        self._closed: set[str] = set()  # a pointer has moved since, after the sweep began
        self._removing: set[str] = set()
        self.get, self.remove, self.names = store.get, store.remove, store.names
        self.pointers, self.epochs = store.pointers, store.epochs

    def put(self, name: str, data: bytes) -> None:
        with self._changed:
            self._open.add(name)
            self._changed.wait_for(lambda: name not in self._removing)
        self._store.put(name, data)

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        self._store.point(policy, bundle, epoch)
        with self._changed:
            self._closed |= self._open
            self._open = set()

    def begin(self) -> None:
        """A sweep begins, whose lists have the manifests of all that pointers moved to before."""
        with self._changed:
            self._closed = set()

    def remove_unwritten(self, name: str) -> bool:
        """Remove a file unless it is being written; whether it was removed."""
        with self._changed:
            if name in self._open or name in self._closed:
                return False
            self._removing.add(name)
        try:
            self._store.remove(name)
        finally:
            with self._changed:
                self._removing.discard(name)
                self._changed.notify_all()
        return True


def expired(known: Mapping[str, Kept], now: float, keep_seconds: Callable[[str], float]) -> list[str]:
    """Bundles that neither their age nor an hour keeps, oldest first: pointers and releases are still to be asked."""
    by_policy: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for bundle, kept in known.items():
        by_policy[kept.surface, kept.policy].append((kept.created_at, bundle))
    gone: list[tuple[float, str]] = []
    for (surface, _), made in by_policy.items():
        since = now - keep_seconds(surface)
        for (at, bundle), (until, _) in pairwise(sorted(made)):
            if until < since and math.ceil(at / HOUR) * HOUR >= until:  # it ended before, and in the hour it began
                gone.append((at, bundle))
    return [bundle for _, bundle in sorted(gone)]


class Retention:
    """Sweeps one bundle store; every manifest is read once in the life of this value, and takes some 0.5 kB.

    bundles  the store, for whoever writes bundles in this process
    """

    def __init__(self, bundles: Bundles, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self.bundles = Guarded(bundles)
        self._grace_seconds = grace_seconds
        self._known: dict[str, Kept] = {}
        # files that nothing names, by the first 8 bytes of their hash, ascending, and since when: 16 bytes a file
        self._unnamed, self._since = np.empty(0, np.uint64), np.empty(0)
        self._next_files = -math.inf

    def sweep(
        self,
        now: float,
        keep_seconds: Callable[[str], float],
        named: Callable[[], Collection[str]],
        stop: Callable[[], bool] = lambda: False,
    ) -> Swept:
        """Remove what is not kept at `now`. Files are looked at once in `grace_seconds`, manifests every time.

        keep_seconds  of a surface: its `correctable`
        named         bundles that a hold or a release names
        stop          asked between slices: whether to leave the rest to the next sweep
        Raises Unavailable; what was removed until then is gone, and the next sweep goes on.
        """
        swept = Swept()
        if self._follow(stop):
            self._sweep_manifests(swept, expired(self._known, now, keep_seconds), named, stop)
            if now >= self._next_files and not stop():
                self.bundles.begin()
                there = {folder: self.bundles.names(folder) for folder in FILES}
                # manifests after files: a new file has its manifest by now, or it is young
                if self._follow(stop) and self._complete():
                    self._sweep_files(swept, now, there, stop)
                    self._next_files = now + self._grace_seconds
        swept.bundles = len(self._known)
        swept.unreadable = sum(not kept.surface for kept in self._known.values())
        return swept

    def _follow(self, stop: Callable[[], bool]) -> bool:
        """Know every manifest that is there; False when told to stop before."""
        there = {name.removeprefix("manifests/").removesuffix(".json") for name in self.bundles.names("manifests")}
        for bundle in self._known.keys() - there:
            del self._known[bundle]
        for bundle in there - self._known.keys():
            if stop():
                return False
            try:
                data = self.bundles.get(f"manifests/{bundle}.json")
            except Unavailable:  # gone since it was listed, or the store is: then the next call says so
                continue
            self._known[bundle] = _read(data)
        return True

    def _complete(self) -> bool:
        """Whether what pointers name is among what was listed: a listing that lacks it is not to be trusted with files."""
        return self._known.keys() >= set(self.bundles.pointers().values())

    def _sweep_manifests(
        self, swept: Swept, gone: Iterable[str], named: Callable[[], Collection[str]], stop: Callable[[], bool]
    ) -> None:
        for some in _slices(gone, SLICE):
            if stop():
                return
            held = {*self.bundles.pointers().values(), *named()}
            for bundle in some:
                if bundle not in held:
                    self.bundles.remove(f"manifests/{bundle}.json")
                    del self._known[bundle]
                    swept.removed["manifests"] += 1

    def _sweep_files(self, swept: Swept, now: float, there: Mapping[str, list[str]], stop: Callable[[], bool]) -> None:
        named = np.unique(np.frombuffer(b"".join(kept.files for kept in self._known.values()), ">u8").astype(np.uint64))
        names: list[str] = []
        hashes = [np.empty(0, np.uint64)]
        for some in _slices((name for listed in there.values() for name in listed), LISTED):
            found, of = _missing(some, named)
            names += found
            hashes.append(of)
        names, unnamed = names[:MOST_FILES], np.concatenate(hashes)[:MOST_FILES]
        since = np.where(_among(unnamed, self._unnamed), self._since_when(unnamed), now)
        order = np.argsort(unnamed)
        self._unnamed, self._since = unnamed[order], since[order]
        due = np.flatnonzero(now - since >= self._grace_seconds).tolist()
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="retention") as threads:
            for places in _slices(due, 100):
                if stop():
                    return
                some = [names[place] for place in places]
                for name, removed in zip(some, threads.map(self.bundles.remove_unwritten, some), strict=True):
                    swept.removed[name.partition("/")[0]] += removed
                stays = ~np.isin(self._unnamed, unnamed[places])
                self._unnamed, self._since = self._unnamed[stays], self._since[stays]

    def _since_when(self, hashes: U64) -> F64:
        """Of files that were unnamed before; anything of others."""
        if not len(self._since):
            return np.zeros(len(hashes))
        return self._since[np.minimum(np.searchsorted(self._unnamed, hashes), len(self._since) - 1)]


class TrimmedLog(Log, Protocol):
    """A log whose retention is ours: a broker keeps its own."""

    def trim(self, partition: int, before: int) -> None: ...


class TrimmedLetters(Protocol):
    """Dead letters whose retention is ours."""

    def trim(self, partition: int, before: int) -> int: ...


def trim(log: TrimmedLog, partition: int, *, older_than: float, needed: int, most: int = SLICE_RECORDS) -> int:
    """Remove records appended before `older_than`, the oldest `most` of them, none from offset `needed` on; their number."""
    first = log.first(partition)
    low, high = first, min(log.end(partition)[0], needed, first + most)
    while low < high:  # the first that stays
        middle = (low + high) // 2
        if log.read(partition, middle, 1)[0].appended < older_than:
            low = middle + 1
        else:
            high = middle
    if low > first:
        log.trim(partition, low)
    return max(low - first, 0)


def _read(data: bytes) -> Kept:
    """A manifest of this format or of one to come."""
    try:
        head = _head(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        head = _NOBODY
    return Kept(
        intern(head.surface),
        intern(head.policy),
        head.created_at,
        b"".join(bytes.fromhex(h[:16].decode()) for h in _HASH.findall(data)),
    )


def _missing(names: Sequence[str], known: U64) -> tuple[list[str], U64]:
    """Files `folder/<hash>.kind` whose hash is not among the first 8 bytes of those known, ascending; and theirs."""
    hashes = [name.rpartition("/")[2].partition(".")[0] for name in names]
    ours = [(name, h[:16]) for name, h in zip(names, hashes, strict=True) if _HASH.fullmatch(h.encode())]
    mine = np.frombuffer(bytes.fromhex("".join(h for _, h in ours)), ">u8").astype(np.uint64)
    missing = ~_among(mine, known)
    return [name for (name, _), gone in zip(ours, missing.tolist(), strict=True) if gone], mine[missing]


def _among(hashes: U64, known: U64) -> Mask:
    """Whether each is among those known, which ascend."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    found: Mask = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
    return found


def _slices(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
