"""How records lie in a spool segment: length, CRC, key length, key, value; and how they are found again.

    u32 length of key and value | u32 CRC-32 | u16 length of key | key | value        little-endian

The CRC starts from the key's length and a constant, so that a hole of zeros, which a power cut may leave, is no record.
"""

from struct import Struct
from typing import NamedTuple
from zlib import crc32

import numpy as np

HEADER = Struct("<IIH")
MAX_BYTES = 1 << 20  # of key and value; more than any record, and far less than four letters read as a length
_SEED = 0x51A7E000


class Scan(NamedTuple):
    """What a piece of a segment holds.

    records   whole records, in order
    used      bytes they take up: the next record starts here
    broken    the record at `used` is whole by its length and does not check, or cannot be a record
    """

    records: list[tuple[bytes, bytes]]
    used: int
    broken: bool


def frame(key: bytes, value: bytes) -> bytes:
    """One record's bytes."""
    crc = crc32(value, crc32(key, _SEED + len(key)))
    return b"%b%b%b" % (HEADER.pack(len(key) + len(value), crc, len(key)), key, value)


def scan(piece: bytes) -> Scan:
    """Records from the start of a piece up to the first that is incomplete or broken."""
    records: list[tuple[bytes, bytes]] = []
    at, size, head, unpack = 0, len(piece), HEADER.size, HEADER.unpack_from
    while at + head <= size:
        length, crc, key_length = unpack(piece, at)
        if length > MAX_BYTES or key_length > length:
            return Scan(records, at, True)
        end = at + head + length
        if end > size:
            break
        middle = at + head + key_length
        key, value = piece[at + head : middle], piece[middle:end]
        if crc32(value, crc32(key, _SEED + key_length)) != crc:
            return Scan(records, at, True)
        records.append((key, value))
        at = end
    return Scan(records, at, False)


def next_record(piece: bytes, after: int) -> int | None:
    """Where the next whole record that checks starts, after a place that does not; None when there is none.

    Lengths are read at every byte at once; text read as a length is too large, so few places are left to check.
    """
    head = HEADER.size
    places = np.arange(after + 1, len(piece) - head + 1)
    if not len(places):
        return None
    data = np.frombuffer(piece, np.uint8)
    length = sum(data[places + i].astype(np.int64) << (8 * i) for i in range(4))
    key_length = data[places + 8].astype(np.int64) | data[places + 9].astype(np.int64) << 8
    likely = places[(length <= MAX_BYTES) & (key_length <= length) & (places + head + length <= len(piece))]
    for at in map(int, likely):
        total, crc, keys = HEADER.unpack_from(piece, at)
        middle = at + head + keys
        if crc32(piece[middle : at + head + total], crc32(piece[at + head : middle], _SEED + keys)) == crc:
            return at
    return None
