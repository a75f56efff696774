"""BLAKE2b-64 of ids, compiled, and records grouped by the decision they name.

Source   RFC 7693; what `hashlib.blake2b(id, digest_size=8)` gives, little-endian, for ids of at most one block of 128 bytes
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled, compiled_beside
from policies.types import I64
from streaming.plain.scan import FORM, ID, ID_END, OTHER, U8

U64 = NDArray[np.uint64]

BLOCK = 128  # longest id that is hashed here, in bytes
WIDTH = 48  # longest item id that is remembered
PLACES = 1 << 16  # items remembered: 4 MB
NOTHING = np.uint64(1 << 63)  # no length
MIX = np.uint64(0x9E3779B97F4A7C15)
START = np.array(
    [
        *(0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1),
        *(0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179),
    ],
    np.uint64,
)
ORDER = np.array(
    [
        *(
            (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
        ),
        *(
            (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
            (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
        ),
        *(
            (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
            (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
        ),
        *(
            (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
            (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
        ),
        *(
            (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
            (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
        ),
        *(
            (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
        ),
    ]
)


@compiled
def _turned(x: Any, by: Any) -> Any:
    return x >> np.uint64(by) | x << np.uint64(64 - by)


@compiled
def blake(text: U8, start: int, end: int, m: U64, v: U64) -> Any:
    """First eight bytes of the BLAKE2b-64 of at most BLOCK bytes; m (16,) and v (16,) are room to work in."""
    for j in range(16):
        m[j] = np.uint64(0)
    for j in range(end - start):
        m[j >> 3] |= np.uint64(text[start + j]) << np.uint64(8 * (j & 7))
    for j in range(8):
        v[j] = v[j + 8] = START[j]
    v[0] ^= np.uint64(0x01010008)
    v[12] ^= np.uint64(end - start)
    v[14] = ~v[14]
    for turn in range(12):
        for g in range(8):
            if g < 4:
                a, b, c, d = g, g + 4, g + 8, g + 12
            else:
                a, b, c, d = g - 4, 4 + (g + 1 & 3), 8 + (g + 2 & 3), 12 + (g + 3 & 3)
            v[a] += v[b] + m[ORDER[turn, 2 * g]]
            v[d] = _turned(v[d] ^ v[a], 32)
            v[c] += v[d]
            v[b] = _turned(v[b] ^ v[c], 24)
            v[a] += v[b] + m[ORDER[turn, 2 * g + 1]]
            v[d] = _turned(v[d] ^ v[a], 16)
            v[c] += v[d]
            v[b] = _turned(v[b] ^ v[c], 63)
    return START[0] ^ np.uint64(0x01010008) ^ v[0] ^ v[8]


@compiled_beside
def id_hashes(text: U8, ints: I64, records: I64, out: U64) -> U64:
    """Hash of the id that each of some records names, at most BLOCK bytes; in `out` at the record's number too."""
    m, v, found = np.empty(16, np.uint64), np.empty(16, np.uint64), np.empty(len(records), np.uint64)
    for i in range(len(records)):
        r = records[i]
        found[i] = out[r] = blake(text, ints[r, ID], ints[r, ID_END], m, v)
    return found


@compiled
def word(text: U8, start: int, end: int) -> Any:
    """At most eight bytes as a number, little-endian."""
    found = np.uint64(0)
    for j in range(end - start):
        found |= np.uint64(text[start + j]) << np.uint64(8 * j)
    return found


@compiled
def quick(text: U8, start: int, end: int) -> Any:
    """A number to look bytes up by; whoever looks compares the bytes."""
    found = np.uint64(end - start)
    for j in range(start, end, 8):
        found = (found ^ word(text, j, min(j + 8, end))) * MIX
        found ^= found >> np.uint64(29)
    return found


@compiled
def same(text: U8, a: int, b: int, length: int) -> bool:
    for j in range(length):  # noqa: SIM110 - compiled: a generator is not
        if text[a + j] != text[b + j]:
            return False
    return True


@compiled_beside
def group(text: U8, ints: I64, of: I64, first: I64, second: I64, table: I64) -> int:
    """How many ids the plain records name. of (n,): the number of a record's id, −1 for OTHER records.

    first, second  its first two records;   second −1: it has one, −2: it has more than two
    table          room, a power of two of at least 2n places, all −1
    """
    ids, last = 0, len(table) - 1
    for r in range(len(of)):
        of[r] = -1
        if ints[r, FORM] == OTHER:
            continue
        start, end = ints[r, ID], ints[r, ID_END]
        place = np.int64(quick(text, start, end)) & last
        while True:
            g = table[place]
            if g < 0:
                table[place] = of[r] = ids
                first[ids], second[ids] = r, -1
                ids += 1
                break
            known = ints[first[g], ID]
            if ints[first[g], ID_END] - known == end - start and same(text, known, start, end - start):
                of[r] = g
                second[g] = r if second[g] == -1 else -2
                break
            place = place + 1 & last
    return ids


class Items:
    """Hashes of item ids, remembered: each item has one place, and the latest of those that share it stays.

    places  (PLACES, 8): length, hash, and the id's letters in six words: a line of the processor's cache
    """

    def __init__(self) -> None:
        self.places = np.full((PLACES, 8), NOTHING)


@compiled
def item_hash(text: U8, start: int, end: int, places: U64, m: U64, v: U64) -> Any:
    """Hash of an item id of at most BLOCK bytes."""
    length = end - start
    if length > WIDTH:
        return blake(text, start, end, m, v)
    for j in range(6):
        m[j] = np.uint64(0)
    mixed = np.uint64(length)
    for j in range(start, end, 8):
        m[j - start >> 3] = word(text, j, min(j + 8, end))
        mixed = (mixed ^ m[j - start >> 3]) * MIX
        mixed ^= mixed >> np.uint64(29)
    place = places[np.int64(mixed >> np.uint64(48))]
    known = place[0] == np.uint64(length)
    for j in range(6):
        known &= place[2 + j] == m[j]
    if not known:
        place[0] = np.uint64(length)
        for j in range(6):
            place[2 + j] = m[j]
        place[1] = blake(text, start, end, m, v)
    return place[1]
