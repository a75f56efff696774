"""Checkpoints in the bundle store: enough to go on from when the disk of a shard is lost, small enough for every few seconds.

    <partition>/<epoch>-<hash>.npz      sums of the learner keys that changed since the upload before
    <partition>/<epoch>-<hash>.json     the manifest: where it stands in which log, and which file holds the sums of which key
    pointer "<partition>" → manifest    moved last, refused to an older epoch

Joins are not uploaded: they follow from the log's records from `rebuild_from` on (`semantics.md` 13). Sums are a function
of the log up to `offset`, so an upload of an owner that was replaced meanwhile is old but never wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from policies.errors import Corrupt
from policies.types import Arrays
from streaming.ports import Bundles
from streaming.shelf import Shelf, packed, unpacked

VERSION = 1  # of manifests; a newer one may mean something else by the rest
MOST_FILES = 8  # files that hold the sums of a partition; then all are written into one again


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a shard goes on from, given the log.

    log, offset    records of this log before this offset are in the sums
    rebuild_from   … and those from here on make the joins that later records may still change
    ghosts         packed uint64 id hashes of the decisions that early feedback waits for
    longest        the longest `correctable` where the rebuilding begins
    statistics     learner key → sums; for `Uploads.put` those that changed
    versions       learner key → number that grows with each change, of all keys; empty in what was read
    """

    log: str
    offset: int
    rebuild_from: int
    clock: float
    longest: float
    ghosts: bytes
    examples: dict[str, int]
    statistics: dict[str, Arrays]
    versions: dict[str, int] = field(default_factory=dict)


class Manifest(Struct, frozen=True):
    """A checkpoint without its sums: `files` says where those of each learner key are."""

    log: str
    offset: int
    rebuild_from: int
    clock: float
    longest: float
    ghosts: bytes
    examples: dict[str, int]
    files: dict[str, str]
    v: int = VERSION


class Uploads:
    """Uploads of one partition, by one owner. `store` holds nothing else."""

    def __init__(self, store: Bundles, partition: int, epoch: int) -> None:
        self._shelf = Shelf(store, str(partition), epoch, lambda name: self._manifest(name).files.values())
        self._files: dict[str, str] = {}  # of the last upload of ours: learner key → file
        self._versions: dict[str, int] = {}

    def newest(self) -> Manifest | None:
        """The newest upload, by whomever; None before the first. Raises Unavailable, Corrupt('upload')."""
        name = self._shelf.pointed()
        return None if name is None else self._manifest(name)

    def read(self, manifest: Manifest) -> Checkpoint:
        """All of an upload. Raises Unavailable, Corrupt('upload')."""
        statistics: dict[str, Arrays] = {key: {} for key in manifest.files}
        for name in sorted(set(manifest.files.values())):
            for key, array_name, array in unpacked(name, self._shelf.get(name)):
                if manifest.files.get(key) == name:
                    statistics[key][array_name] = array
        if not all(statistics.values()):
            raise Corrupt("upload", "a file lacks sums that the manifest says it has")
        return Checkpoint(
            log=manifest.log,
            offset=manifest.offset,
            rebuild_from=manifest.rebuild_from,
            clock=manifest.clock,
            longest=manifest.longest,
            ghosts=manifest.ghosts,
            examples=manifest.examples,
            statistics=statistics,
        )

    def known(self) -> Mapping[str, int]:
        """Versions of the sums that need not be uploaded again."""
        return self._versions if len(set(self._files.values())) < MOST_FILES else {}

    def put(self, checkpoint: Checkpoint) -> None:
        """Upload a checkpoint whose `statistics` leave out what is `known`. Raises Unavailable, Rejected('fenced')."""
        name = self._shelf.put(packed(checkpoint.statistics), "npz") if checkpoint.statistics else ""
        files = {key: name if key in checkpoint.statistics else self._files[key] for key in checkpoint.versions}
        manifest = Manifest(
            log=checkpoint.log,
            offset=checkpoint.offset,
            rebuild_from=checkpoint.rebuild_from,
            clock=checkpoint.clock,
            longest=checkpoint.longest,
            ghosts=checkpoint.ghosts,
            examples=checkpoint.examples,
            files=files,
        )
        self._shelf.point(msgspec.json.encode(manifest), files.values())
        self._files, self._versions = files, dict(checkpoint.versions)

    def _manifest(self, name: str) -> Manifest:
        try:
            found = msgspec.json.decode(self._shelf.get(name), type=Manifest)
        except msgspec.MsgspecError as error:
            raise Corrupt("upload", f"{name}: {error}") from None
        if found.v != VERSION:
            raise Corrupt("upload", f"{name}: version {found.v}, this build reads {VERSION}")
        return found
