"""Where a shard goes on from: the local checkpoint, unless it is gone, of another log, or behind the newest upload.

From an upload come the sums, and which early feedback waits. The joins follow from the log's records from `rebuild_from` up to the
upload's offset, which are read again without teaching anything; only what comes after is learned. That the two are told
apart is part of every commit, so a shard that dies while it rebuilds goes on rebuilding.

Decisions that had closed before the upload are unknown from then on: feedback on them ends as `no_decision`, not as `too_late`.
"""

import msgspec
from msgspec import Struct

from policies.errors import Corrupt, Rejected, Unavailable
from streaming.applied import Extra
from streaming.ports import Commit, Loaded
from streaming.uploads import Checkpoint, Uploads


class Held(Struct, frozen=True, array_like=True):
    """What a commit's `extra` holds.

    log         which log the checkpoint is of; empty in those made before checkpoints said so
    learned_to  records before this offset are in the sums already, even if the joins are not there yet
    ghosts      packed uint64 id hashes that early feedback waits for at `learned_to`; empty once the joins are rebuilt
    joiner      the joiner's own
    """

    log: str = ""
    learned_to: int = 0
    ghosts: bytes = b""
    joiner: bytes = b""

    def extra(self) -> Extra:
        return msgspec.msgpack.decode(self.joiner, type=Extra) if self.joiner else Extra()


encode_held = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Held).decode


def read_held(loaded: Loaded) -> Held:
    """`extra` of a checkpoint; one made before there was more in it is the joiner's own."""
    if not loaded.extra:
        return Held()
    try:
        return _decode(loaded.extra)
    except msgspec.ValidationError:
        return Held(joiner=loaded.extra)


def better_upload(loaded: Loaded, uploads: Uploads | None, log: str) -> Checkpoint | None:
    """The upload to go on from; None: the local checkpoint it is, or there is nothing at all yet.

    Raises Rejected('another_log') when all there is was learned from another log, Unavailable and Corrupt('upload') when
    there is no local checkpoint and uploads cannot be read: to begin anew would be to forget.
    """
    held = read_held(loaded)
    offset = max(loaded.offset, held.learned_to)
    local = offset > 0 and held.log in (log, "")
    newest = None
    if uploads is not None:
        try:
            newest = uploads.newest()
            if newest is not None and newest.log == log:
                return uploads.read(newest) if not local or newest.offset > offset else None
        except (Unavailable, Corrupt):
            if not local:
                raise
            return None
    if local or (not offset and newest is None):
        return None
    other = newest.log if newest is not None else held.log
    raise Rejected(
        f"What was learned is of log {other!r}, this is {log!r}: go back to that log, or learn anew with another"
        " SLATEWISE_DATA and SLATEWISE_BUNDLES",
        code="another_log",
        status=409,
    )


def beginning(upload: Checkpoint, partition: int, epoch: int) -> Commit:
    """The commit that makes an upload the local checkpoint, with its joins still to be rebuilt."""
    extra = Extra(longest=upload.longest, examples=upload.examples)
    held = Held(upload.log, upload.offset, upload.ghosts, msgspec.msgpack.encode(extra))
    whole = upload.rebuild_from == upload.offset
    return Commit(
        partition=partition,
        offset=upload.rebuild_from,
        clock=upload.clock if whole else 0.0,  # else the first record sets it
        epoch=epoch,
        statistics=upload.statistics,
        extra=encode_held(held),
        restart=True,
    )
