"""Stores that may be away, with a copy on the local disk to start from (`semantics.md` 18, promise 6).

    reached   the store answers, and is followed
    away      it was reached since the process began, and now it is not: what is served goes on, Unavailable says why
    copied    it has not been reached since the process began: what an earlier process kept is served

A store that failed is left alone for `pause_seconds`, so that nobody waits for its timeouts more than once in a while.
`clock` is monotonic seconds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Generic, Literal, TypeVar

from policies.bundle import Manifest, files, manifest_file, read, read_manifest
from policies.errors import Corrupt, Unavailable
from streaming.ports import Bundles, State, Versioned
from streaming.snapshot import Snapshot

Standing = Literal["reached", "away", "copied"]
S = TypeVar("S")
T = TypeVar("T")
PAUSE_SECONDS = 1.0


class Reaching(Generic[S]):
    """The store behind a copy: opened when it can be, asked when it is worth it."""

    def __init__(self, opened: Callable[[], S], clock: Callable[[], float], pause_seconds: float) -> None:
        self._opened, self._clock, self._pause_seconds = opened, clock, pause_seconds
        self._store: S | None = None
        self._opening = Lock()
        self._again_at, self._why = float("-inf"), ""
        self.ever = self.away = False

    @property
    def standing(self) -> Standing:
        return "reached" if not self.away else "away" if self.ever else "copied"

    def ask(self, question: Callable[[S], T], *, tells: bool = True) -> T:
        """Raises Unavailable, at once while the store is left alone. `tells`: whether that means that the store is away."""
        if self._clock() < self._again_at:
            raise Unavailable(self._why)
        try:
            with self._opening:
                if self._store is None:
                    self._store = self._opened()
            answer = question(self._store)
        except Unavailable as error:
            if tells:
                self.failed(str(error))
            raise
        self.away, self.ever = False, True
        return answer

    def failed(self, why: str) -> None:
        self._again_at, self._why, self.away = self._clock() + self._pause_seconds, why, True


class KeptState:
    """The state record, and the snapshot that stands for it until the record has been reached."""

    def __init__(
        self,
        opened: Callable[[], State],
        snapshot: Snapshot,
        clock: Callable[[], float],
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._store = Reaching(opened, clock, pause_seconds)
        self._snapshot = snapshot
        self._copied: list[Versioned] | None = None  # read once, forgotten when the record has been reached
        self._kept = 0

    @property
    def standing(self) -> Standing:
        return self._store.standing

    def put(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None = None) -> int:
        return self._store.ask(lambda store: store.put(entries, expect))

    def get(self, kind: str, key: str) -> Versioned | None:
        return self._store.ask(lambda store: store.get(kind, key))

    def version(self) -> int:
        return self._store.ask(lambda store: store.version())

    def read(self, after: int = 0, limit: int = 10_000) -> list[Versioned]:
        """Raises Unavailable where the record is away and the snapshot knows nothing newer."""
        try:
            found = self._store.ask(lambda store: store.read(after, limit))
        except Unavailable:
            if self._store.ever or not (newer := [entry for entry in self._copy() if entry.version > after]):
                raise
            return newer[:limit]
        self._copied = None
        return found

    def keep(self) -> bool:
        """Bring the snapshot up to date with the record; whether there was anything to do. Raises Unavailable."""
        version = self.version()
        if version <= self._kept:
            return False
        self._snapshot.save(version, self._entries())
        self._kept = version
        return True

    def _entries(self) -> Iterator[Versioned]:
        after = 0
        while found := self._store.ask(lambda store: store.read(after, 1_000)):  # noqa: B023 - asked before it changes
            yield from found
            after = found[-1].version

    def _copy(self) -> list[Versioned]:
        if self._copied is None:
            try:
                self._copied = self._snapshot.load()[1]
            except Corrupt as error:
                raise Unavailable(str(error)) from None
        return self._copied


class KeptBundles:
    """A bundle store, and a local one that stands for it until it has been reached. Only what passed a gate is kept.

    A store without any pointer, where the copy knows some, counts as away: a shared folder that is not mounted is empty.
    """

    def __init__(
        self,
        opened: Callable[[], Bundles],
        copy: Bundles,
        clock: Callable[[], float],
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        self._store = Reaching(opened, clock, pause_seconds)
        self._copy = copy

    @property
    def standing(self) -> Standing:
        return self._store.standing

    def put(self, name: str, data: bytes) -> None:
        self._store.ask(lambda store: store.put(name, data))

    def get(self, name: str) -> bytes:
        try:
            return self._store.ask(lambda store: store.get(name), tells=False)  # one file may be gone
        except Unavailable as error:
            try:
                return self._copy.get(name)
            except Unavailable:
                raise error from None

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        self._store.ask(lambda store: store.point(policy, bundle, epoch))

    def pointers(self) -> dict[str, str]:
        """Raises Unavailable where the store is away and was reached before: what is served then is newer than the copy."""
        try:
            found = self._store.ask(lambda store: store.pointers())
        except Unavailable:
            if self._store.ever or not (copied := self._copy.pointers()):
                raise
            return copied
        if not found and (copied := self._copy.pointers()):
            self._store.ever = False
            self._store.failed("the store is empty, and was not")
            return copied
        return found

    def epochs(self) -> dict[str, int]:
        return self._store.ask(lambda store: store.epochs())

    def names(self, folder: str) -> list[str]:
        return self._store.ask(lambda store: store.names(folder))

    def remove(self, name: str) -> None:
        self._store.ask(lambda store: store.remove(name))

    def keep(self, served: Mapping[str, str]) -> bool:
        """Make the copy hold policy → bundle as served, and nothing else; whether there was anything to do.

        One process at a time. Raises Unavailable, Corrupt.
        """
        pointers = self._copy.pointers()
        changed = {policy: bundle for policy, bundle in served.items() if bundle and pointers.get(policy) != bundle}
        for policy, bundle in changed.items():
            for name, data in files(read(bundle, self.get)).items():
                self._copy.put(name, data)
            self._copy.point(policy, bundle, 0)
        if changed:
            self._prune()
        return bool(changed)

    def _prune(self) -> None:
        named = {name for bundle in self._copy.pointers().values() for name in _names(bundle, self._copy)}
        for folder in ("manifests", "arrays", "graphs"):
            for name in self._copy.names(folder):
                if name not in named:
                    self._copy.remove(name)


def _names(bundle: str, store: Bundles) -> Iterator[str]:
    manifest: Manifest = read_manifest(bundle, store.get)
    yield manifest_file(bundle)
    yield f"graphs/{manifest.graph}.onnx"
    if isinstance(manifest.manager, str):
        yield f"graphs/{manifest.manager}.onnx"
    for part in (manifest.arrays, manifest.probes):
        yield from (f"arrays/{wanted}.npy" for wanted in part.values())
