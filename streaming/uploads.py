"""Checkpoints in the bundle store: enough to go on from when the disk of a shard is lost, small enough for every few seconds.

    <partition>/<epoch>-<hash>.npz      sums of the learner keys that changed since the upload before
    <partition>/<epoch>-<hash>.json     the manifest: where it stands in which log, and which file holds the sums of which key
    pointer "<partition>" → manifest    moved last, refused to an older epoch

Joins are not uploaded: they follow from the log's records from `rebuild_from` on (`semantics.md` 13). Sums are a function
of the log up to `offset`, so an upload of an owner that was replaced meanwhile is old but never wrong.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.errors import Corrupt, Unavailable
from policies.types import Arrays
from streaming.ports import Bundles

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
    v: int = 1


class Uploads:
    """Uploads of one partition, by one owner. `store` holds nothing else."""

    def __init__(self, store: Bundles, partition: int, epoch: int) -> None:
        self._store, self._partition, self._epoch = store, partition, epoch
        self._files: dict[str, str] = {}  # of the last upload of ours: learner key → file
        self._versions: dict[str, int] = {}
        self._kept: list[set[str]] = []  # files of our last uploads, newest last
        self._swept = False

    def newest(self) -> Manifest | None:
        """The newest upload, by whomever; None before the first. Raises Unavailable, Corrupt('upload')."""
        name = self._store.pointers().get(str(self._partition))
        return None if name is None else self._manifest(name)

    def read(self, manifest: Manifest) -> Checkpoint:
        """All of an upload. Raises Unavailable, Corrupt('upload')."""
        statistics: dict[str, Arrays] = {key: {} for key in manifest.files}
        for name in sorted(set(manifest.files.values())):
            for key, array_name, array in _unpacked(name, self._get(name)):
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
        packed = _packed(checkpoint.statistics)
        name = self._name(packed, "npz")
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
        data = msgspec.json.encode(manifest)
        pointer = str(self._partition)
        replaced = self._store.pointers().get(pointer)
        if checkpoint.statistics:
            self._store.put(name, packed)
        self._store.put(self._name(data, "json"), data)
        self._store.point(pointer, self._name(data, "json"), self._epoch)
        self._files, self._versions = files, dict(checkpoint.versions)
        self._kept.append({self._name(data, "json"), *files.values()})
        if not self._swept:
            self._sweep(replaced)
        if len(self._kept) > 2:  # the one before may be being read by a successor
            gone = self._kept.pop(0)
            for old in sorted(gone.difference(*self._kept)):
                self._store.remove(old)

    def _sweep(self, replaced: str | None) -> None:
        """Once: what owners before us have left, but for the upload that ours replaced. No successor's is older than ours."""
        kept = set().union(*self._kept)
        if replaced is not None:
            kept.add(replaced)
            with suppress(Unavailable, Corrupt):  # spoilt: nobody can go on from it
                kept |= set(self._manifest(replaced).files.values())
        for name in self._store.names(str(self._partition)):
            epoch = name.rpartition("/")[2].partition("-")[0]
            if name not in kept and epoch.isdigit() and int(epoch) < self._epoch:
                self._store.remove(name)
        if replaced is not None:
            self._kept.insert(0, kept - self._kept[-1])
        self._swept = True

    def _manifest(self, name: str) -> Manifest:
        try:
            return msgspec.json.decode(self._get(name), type=Manifest)
        except msgspec.MsgspecError as error:
            raise Corrupt("upload", f"{name}: {error}") from None

    def _get(self, name: str) -> bytes:
        data = self._store.get(name)
        if _hash(data) not in name:
            raise Corrupt("upload", f"{name} is not what was written")
        return data

    def _name(self, data: bytes, kind: str) -> str:
        # the epoch keeps an owner that was replaced from removing what its successor has written
        return f"{self._partition}/{self._epoch}-{_hash(data)}.{kind}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _packed(statistics: Mapping[str, Arrays]) -> bytes:
    named = {f"{key}/{name}": array for key, arrays in statistics.items() for name, array in arrays.items()}
    with io.BytesIO() as file:
        np.savez(file, allow_pickle=False, **named)
        return file.getvalue()


def _unpacked(name: str, data: bytes) -> list[tuple[str, str, NDArray[np.generic]]]:
    """(learner key, array name, array) of each."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return [(*_split(full), file[full]) for full in file.files]
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Corrupt("upload", f"{name}: {error}") from None


def _split(full: str) -> tuple[str, str]:
    key, _, name = full.rpartition("/")
    return key, name
