"""Records that a stranger has put into another unit's partition, by another hash or with another key (`semantics.md` 8).

What counts is the unit in the record, not its key: a backend that produces without a key, or with the raw user's id, means
the same unit. Records of ours and of well-behaved strangers are told by two cheap looks: the key's partition is this one,
and the value names the key in quotes. Only what fails one of them is decoded.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from policies.errors import Corrupt
from streaming.adapters.kafka_reader import Headers
from streaming.adapters.kafka_writer import Letter
from streaming.events import decode
from streaming.partition import partition_of, partitions_of
from streaming.ports import DeadLetter, Record

REROUTED = "slatewise-rerouted"  # header: the partition:offset where the record was found first


class Sorted(NamedTuple):
    """`moved` is to be produced again, `letters` had been already and are still in the wrong place."""

    ours: list[Record]
    moved: list[Letter]
    letters: list[DeadLetter]


def sort_out(partition: int, partitions: int, records: Sequence[Record], marked: Mapping[int, Headers]) -> Sorted:
    """What of a partition's records belongs there; `marked` holds the headers of those that have any, by offset."""
    keys = [record.key for record in records]
    here = [home == partition for home in partitions_of(keys, partitions)]
    named = [b'"%b"' % key in record.value for key, record in zip(keys, records, strict=True)]
    if all(here) and all(named) and all(keys):  # which is usual
        return Sorted([*records], [], [])
    found = Sorted([], [], [])
    for record, plain in zip(records, map(all, zip(keys, here, named, strict=True)), strict=True):
        if plain:
            found.ours.append(record)
            continue
        unit = _unit(record.value)
        right = partition if unit is None else partition_of(unit, partitions)
        if unit is None or right == partition:
            found.ours.append(record)
            continue
        before = marked.get(record.offset, {}).get(REROUTED)
        if before is None:
            where = f"{partition}:{record.offset}".encode()
            found.moved.append(Letter(unit, record.value, ((REROUTED, where),), right))
        else:
            detail = f"belongs to partition {right}, was found at {before.decode(errors='replace')} before"
            letter = DeadLetter(partition, record.offset, "misplaced", detail, record.key, record.value)
            found.letters.append(letter)
    return found


def _unit(value: bytes) -> bytes | None:
    """The unit that a record is about; None when it cannot be read: wherever it lies, it will be set aside."""
    try:
        return decode(value).unit.encode()
    except Corrupt:
        return None
