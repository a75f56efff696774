"""What trainers have come to, in a bundle store: enough to go on from when their disk is lost, given the log.

    training/<epoch>-<hash>.npz      the checkpoint's arrays: weights, optimisers, replay, open sequences
    training/<epoch>-<hash>.order    its cursors, the entries of the order since, and where each settler was (`Taken`)
    training/<epoch>-<hash>.json     the manifest
    pointer "training" → manifest    moved last, refused to an older epoch

Between two checkpoints only the order is written again, so at most what was recorded since the last upload is lost with a disk; rows that
were recorded there are then recorded anew, in another order. Unlike sums, what trainers have come to is not a function of the log alone:
of a disk and an upload the one with the newer epoch counts, whichever is further.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from policies.errors import Corrupt, Rejected
from policies.types import Arrays
from streaming.places import Place, beginning
from streaming.ports import Bundles, Commit
from streaming.settle import Settlements, Settler
from streaming.shelf import Shelf, packed, unpacked
from streaming.trainer import Training

FOLDER, VERSION = "training", 1  # the version of manifests: a newer one may mean something else by the rest
MOST_ROWS = 100_000  # settled rows of a partition that an upload takes along, some 300 bytes each


class Taken(Struct, frozen=True, array_like=True):
    """What an upload holds besides arrays.

    head       the checkpoint's, as `streaming.trainer` wrote it
    entries    of the order, from number `first` on: those since the checkpoint, and the one before, so that numbers are known
    places     of the settlers, one a partition
    outboxes   (first number, rows) of each of them: rows that entries since the checkpoint need or the next ones will, and the
               one before
    """

    head: bytes
    first: int
    entries: list[bytes]
    places: list[Place]
    outboxes: list[tuple[int, list[bytes]]]


class Manifest(Struct, frozen=True):
    """An upload by its files. `entries`: how many entries of the order it knows."""

    log: str
    epoch: int
    entries: int
    arrays: str
    order: str
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as read back."""

    log: str
    taken: Taken
    statistics: dict[str, Arrays]


class TrainingUploads:
    """Uploads of a log's trainers, by one owner. `store` holds nothing else but shards' checkpoints."""

    def __init__(self, store: Bundles, epoch: int) -> None:
        self._epoch = epoch
        self._shelf = Shelf(store, FOLDER, epoch, lambda name: _files(self._manifest(name)))
        self._arrays = ""  # file of our last upload's
        self._checkpoint = -1  # … and of how many entries they were

    def newest(self) -> Manifest | None:
        """The newest upload, by whomever; None before the first. Raises Unavailable, Corrupt('upload')."""
        name = self._shelf.pointed()
        return None if name is None else self._manifest(name)

    def read(self, manifest: Manifest) -> Upload:
        """All of an upload. Raises Unavailable, Corrupt('upload')."""
        statistics: dict[str, Arrays] = {}
        for key, name, array in unpacked(manifest.arrays, self._shelf.get(manifest.arrays)):
            statistics.setdefault(key, {})[name] = array
        try:
            taken = msgspec.msgpack.decode(self._shelf.get(manifest.order), type=Taken)
        except msgspec.MsgspecError as error:
            raise Corrupt("upload", f"{manifest.order}: {error}") from None
        return Upload(manifest.log, taken, statistics)

    def put(self, log: str, checkpoint: int, taken: Taken, store: Settlements) -> bool:
        """Upload what was `taken`; arrays out of the trainers' store when the checkpoint is another than last time. False: that
        has a newer one by now, which is for the next upload.

        Raises Unavailable, Rejected('fenced').
        """
        if checkpoint != self._checkpoint:
            loaded = store.load()
            if loaded.epoch > self._epoch:
                raise Rejected(f"epoch {self._epoch} is over, {loaded.epoch} has begun", code="fenced", status=409)
            if loaded.extra != taken.head:
                return False
            self._arrays, self._checkpoint = self._shelf.put(packed(loaded.statistics), "npz"), checkpoint
        order = self._shelf.put(msgspec.msgpack.encode(taken), "order")
        manifest = Manifest(log, self._epoch, taken.first + len(taken.entries), self._arrays, order)
        self._shelf.point(msgspec.json.encode(manifest), _files(manifest))
        return True

    def _manifest(self, name: str) -> Manifest:
        try:
            found = msgspec.json.decode(self._shelf.get(name), type=Manifest)
        except msgspec.MsgspecError as error:
            raise Corrupt("upload", f"{name}: {error}") from None
        if found.v != VERSION:
            raise Corrupt("upload", f"{name}: version {found.v}, this build reads {VERSION}")
        return found


def take(
    training: Training, order: Settlements, settlers: Sequence[Settler], outboxes: Sequence[Settlements]
) -> Taken | None:
    """What to upload, between two steps; None while a settler has no place, or is too far ahead of the trainers."""
    needed, places, rows = training.needed(), list[Place](), list[tuple[int, list[bytes]]]()
    for settler, outbox in zip(settlers, outboxes, strict=True):
        place, end = settler.place(), outbox.numbers()[1]
        first = max(min(needed[settler.partition], end - 1), 0)
        if place is None or end - first > MOST_ROWS:
            return None
        places.append(place)
        rows.append((first, [value for _, value in outbox.pull(first, MOST_ROWS)]))
    first = max(training.checkpointed - 1, order.numbers()[0])
    entries = [value for _, value in order.pull(first, training.entry - first)] if training.entry else []
    return Taken(training.head, first, entries, places, rows)


def go_on(upload: Upload, order: Settlements, outboxes: Sequence[Settlements], epoch: int) -> None:
    """Make an upload what lies on an empty disk. The order comes last: without it nothing has begun."""
    taken = upload.taken
    for place, rows in zip(taken.places, taken.outboxes, strict=True):
        outboxes[place.partition].commit(beginning(place, upload.log, rows, epoch))
    order.commit(
        Commit(
            partition=0,
            offset=taken.first + len(taken.entries),
            clock=0.0,
            epoch=epoch,
            statistics=upload.statistics,
            extra=taken.head,
            restart=True,
            outbox=(taken.first, taken.entries) if taken.entries else None,
        )
    )


def _files(manifest: Manifest) -> list[str]:
    return [manifest.arrays, manifest.order]
