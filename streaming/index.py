"""Which row a decision id has: 64-bit hash → row numbers, 16 bytes an id, answered a batch at a time.

New hashes land in a dict; when it is full it becomes a sorted run, and runs of like size are merged, so adding costs
O(log n) an id over its life and asking is a binary search in a few sorted arrays. Two ids may share a hash: every row of
a hash is returned, and whoever asks compares the full id of what it loads.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policies.types import Mask

U64 = NDArray[np.uint64]
RECENT = 1 << 13  # ids held in the dict: some 1 MB; more cost memory and save no time


def id_hash(key: str) -> int:
    """First 8 bytes, little-endian, of the BLAKE2b of an id."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class Index:
    """Hash → rows. Rows ascend as they are added; rows below `evicted` are as good as gone."""

    def __init__(self, recent: int = RECENT) -> None:
        self._limit = recent
        self._recent: dict[int, int] = {}
        self._runs: list[tuple[U64, U64]] = []  # (hashes ascending, their rows), largest run first
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._recent) + sum(len(hashes) for hashes, _ in self._runs)

    def add(self, hashed: int, row: int) -> None:
        if hashed in self._recent or len(self._recent) >= self._limit:
            self._settle()
        self._recent[hashed] = row

    def add_block(self, hashes: U64, first: int) -> None:
        """Rows first, first + 1, … of hashes that `any` does not know."""
        listed = hashes.tolist()
        new = dict(zip(listed, range(first, first + len(listed)), strict=True))
        if len(new) < len(listed):  # two of one hash
            for row, hashed in enumerate(listed, first):
                self.add(hashed, row)
            return
        if len(self._recent) + len(new) > self._limit:
            self._settle()
        self._recent |= new

    def any(self, hashes: U64) -> Mask:
        """For each hash whether any row may hold its id; rows that were given back count until they are swept."""
        found = np.zeros(len(hashes), np.bool_)
        if not len(hashes):
            return found
        order = np.argsort(hashes)
        sought = hashes[order]
        for run, _ in self._runs:
            found[order] |= run[np.minimum(np.searchsorted(run, sought), len(run) - 1)] == sought
        recent = self._recent
        if recent:
            found |= np.array([hashed in recent for hashed in hashes.tolist()], np.bool_)
        return found

    def load(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Rows first, first + 1, … of each (first row, little-endian uint64 hashes), as commits hold them."""
        hashes = [np.frombuffer(packed, "<u8").astype(np.uint64) for _, packed in blocks]
        rows = [np.arange(first, first + len(h), dtype=np.uint64) for (first, _), h in zip(blocks, hashes, strict=True)]
        if hashes:
            self._push(np.concatenate(hashes), np.concatenate(rows))

    def find(self, hashes: Sequence[int]) -> list[list[int]]:
        """For each hash the rows that may hold its id, ascending."""
        found: list[list[int]] = [[] for _ in hashes]
        if not hashes:
            return found
        needles = np.array(hashes, np.uint64)
        order = np.argsort(needles)  # neighbours in the search are neighbours in memory
        sought = needles[order]
        for run, rows in self._runs:
            at = np.searchsorted(run, sought)
            inside = at < len(run)
            for i in np.flatnonzero(run[np.where(inside, at, 0)] == sought).tolist():
                position = int(at[i])
                while position < len(run) and run[position] == sought[i]:
                    found[order[i]].append(int(rows[position]))
                    position += 1
        recent = self._recent
        for i, hashed in enumerate(hashes):
            if hashed in recent:
                found[i].append(recent[hashed])
        return [sorted(row for row in rows if row >= self.evicted) if rows else rows for rows in found]

    def _settle(self) -> None:
        hashes = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
        rows = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        self._recent = {}
        self._push(hashes, rows)

    def _push(self, hashes: U64, rows: U64) -> None:
        while self._runs and len(self._runs[-1][0]) <= 2 * len(hashes):
            older_hashes, older_rows = self._runs.pop()
            hashes = np.concatenate([older_hashes, hashes])
            rows = np.concatenate([older_rows, rows])
        alive = rows >= self.evicted
        if not alive.all():
            hashes, rows = hashes[alive], rows[alive]
        order = np.argsort(hashes, kind="stable")
        self._runs.append((hashes[order], rows[order]))
