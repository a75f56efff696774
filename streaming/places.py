"""Where a settler elsewhere goes on, given the log: small enough for every few seconds, and the numbers stay the same.

offset       the settler had read so far; what it had settled by then has the numbers below `next_number`
rebuild_from open decisions and what they heard follow from the log's records from here up to `offset`, which are read again
             without giving anything out
settled_to   what waited there is due at this time or later, and everything due before had its number
"""

import msgspec
from msgspec import Struct

from streaming.applied import Extra
from streaming.ports import Commit


class Place(Struct, frozen=True, array_like=True):
    """`ghosts`: packed uint64 id hashes of the decisions that early feedback waits for; `longest` as in `streaming.uploads`."""

    partition: int
    offset: int
    rebuild_from: int
    next_number: int
    settled_to: float
    clock: float
    longest: float
    ghosts: bytes


class Kept(Struct, frozen=True, array_like=True):
    """What a settler's commit holds besides the joiner's own. `rebuild_to`, `ghosts`, `settled_to`: of the place it has begun
    at, until what was open there is rebuilt; 0 then, and for all who began at the beginning of the log."""

    joiner: bytes = b""
    identity: str = ""  # of the log
    next_number: int = 0
    written: int = 0  # rows below are in files
    rebuild_to: int = 0
    ghosts: bytes = b""
    settled_to: float = 0.0


encode_kept = msgspec.msgpack.Encoder().encode
decode_kept = msgspec.msgpack.Decoder(Kept).decode


def beginning(place: Place, identity: str, outbox: tuple[int, list[bytes]], epoch: int) -> Commit:
    """The commit by which an empty store goes on from a place; `outbox`: rows that were settled there already."""
    whole = place.rebuild_from == place.offset
    kept = Kept(
        joiner=msgspec.msgpack.encode(Extra(longest=place.longest)),
        identity=identity,
        next_number=place.next_number,
        written=place.next_number,
        rebuild_to=0 if whole else place.offset,
        ghosts=b"" if whole else place.ghosts,
        settled_to=0.0 if whole else place.settled_to,
    )
    return Commit(
        partition=place.partition,
        offset=place.rebuild_from,
        clock=place.clock if whole else 0.0,  # else the first record sets it
        epoch=epoch,
        extra=encode_kept(kept),
        restart=True,
        outbox=outbox if outbox[1] else None,
    )
