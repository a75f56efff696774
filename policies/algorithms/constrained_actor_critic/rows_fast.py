"""Loops over a trainer's rows, compiled: one pass each over arrays that are as large as the memory's caches and more.

Floats are read as their bits: without the sign these are in the order of the numbers, 0 is zero and `INFINITE` and above is
not finite, so the largest of a row tells both, with integer arithmetic that runs along memory.
"""

from typing import Any

import numpy as np

from policies.compiling import compiled_beside, plain
from policies.types import F32, I64, Mask

UNSIGNED, INFINITE = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


def finite(value: F32) -> Mask:
    """(N,) which rows of float32 (N, …) have finite numbers only."""
    rows = plain(value).reshape(1, len(value), -1)
    return np.asarray(_largest(rows.view(np.uint32))[0] < INFINITE)


def lives(history: F32, alive: Mask, most: int) -> tuple[F32, F32, Mask]:
    """(history (N, most, d), live (N, most), finite (N,)) of the newest rows of (N, H, d), padded in front: rows that are not
    `alive` are zeros, and `live` is 1 where a row says anything. What is so already is not copied."""
    count, h, d = history.shape
    top, start = _largest(plain(history).view(np.uint32))[:, -most:], max(h - most, 0)
    alive = alive[:, start:]
    said = (top > 0) & alive
    sound = np.asarray(np.where(said, top, 0).max(axis=1, initial=0) < INFINITE)
    if h == most and (said == (top > 0)).all():
        return history, said.astype(np.float32), sound
    kept: F32 = np.zeros((count, most, d), np.float32)
    live: F32 = np.zeros((count, most), np.float32)
    kept[:, most - (h - start) :] = np.where(said[:, :, None], history[:, start:], np.float32(0))
    live[:, most - (h - start) :] = said
    return kept, live, sound


def chosen(candidates: F32, allowed: Mask, slate: I64, most: int, seeds: I64) -> tuple[F32, Mask, I64, I64, I64]:
    """Of N decisions the drawn candidates and `most` others, evenly drawn of those allowed: (N, k + most, d).

    slate (N, k) rows or −1; seeds (N,) of the draws. Gives candidates, which of them are allowed, the slate as rows of them, how many
    undrawn there were (N,), and how many of these are kept (N,). Places beyond them hold zeros and are not allowed.
    """
    count, k = slate.shape
    kept: F32 = np.zeros((count, k + most, candidates.shape[2]), np.float32)
    may: Mask = np.zeros((count, k + most), np.bool_)
    places, there, left = np.full((count, k), -1), np.zeros(count, np.int64), np.zeros(count, np.int64)
    _chosen(plain(candidates), plain(allowed), plain(slate), most, plain(seeds), kept, may, places, there, left)
    return kept, may, places, there, left


@compiled_beside
def _largest(bits: Any) -> Any:
    """(N, H) of (N, H, d)."""
    count, h, d = bits.shape
    found = np.zeros((count, h), np.uint32)
    for i in range(count):
        for j in range(h):
            top = np.uint32(0)
            for x in range(d):
                each = np.uint32(bits[i, j, x] & UNSIGNED)
                top = each if each > top else top  # as `max`, but vectorised
            found[i, j] = top
    return found


@compiled_beside
def _copied(row: Any, kept: Any) -> None:
    for x in range(len(row)):
        kept[x] = row[x]


@compiled_beside
def _chosen(
    candidates: Any,
    allowed: Any,
    slate: Any,
    most: Any,
    seeds: Any,
    kept: Any,
    may: Any,
    places: Any,
    there: Any,
    left: Any,
) -> None:
    count, n = allowed.shape
    k = slate.shape[1]
    rows, drawn = np.empty(n, np.int64), np.empty(n, np.bool_)
    for i in range(count):
        drawn[:] = False
        place = 0
        for t in range(k):
            row = slate[i, t]
            if row >= 0 and not drawn[row]:
                drawn[row] = True
                _copied(candidates[i, row], kept[i, place])
                may[i, place], places[i, t] = allowed[i, row], place
                place += 1
        others = 0
        for row in range(n):
            if allowed[i, row] and not drawn[row]:
                rows[others] = row
                others += 1
        there[i], left[i] = others, min(others, most)
        state = np.uint64(seeds[i])
        for s in range(left[i]):  # the first of a shuffle
            state += np.uint64(0x9E3779B97F4A7C15)  # splitmix64 (Steele, Lea & Flood, OOPSLA 2014)
            x = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
            at = s + np.int64(x % np.uint64(others - s))  # of at most thousands: the remainder's bias is below 2⁻⁵⁰
            rows[s], rows[at] = rows[at], rows[s]
            _copied(candidates[i, rows[s]], kept[i, place])
            may[i, place] = True
            place += 1
