"""Sums of each item, in rows by the item's hash, sorted: what algorithms with effects of single items learn.

A table is named float64 arrays whose first axis is the item. Tables of shards add by hash, items that one of them has not seen
being zeros there.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from policies.types import F64, I64

Hashes = NDArray[np.uint64]
Table = dict[str, F64]


def spread_out(table: Mapping[str, F64], hashes: Hashes, every: Hashes) -> Table:
    """The rows of `hashes` among those of a larger sorted set."""
    rows = np.searchsorted(every, hashes)
    made = {}
    for name, values in table.items():
        made[name] = np.zeros((len(every), *values.shape[1:]))
        made[name][rows] = values
    return made


def widened(table: Table, hashes: Hashes, wanted: Hashes) -> tuple[Table, Hashes]:
    """A table with rows for all of `wanted`: itself when it has them, which is usual once a catalogue has been seen."""
    if len(hashes):
        at = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        wanted = wanted[hashes[at] != wanted]
    if not len(wanted):
        return table, hashes
    every = np.union1d(hashes, wanted)
    return spread_out(table, hashes, every), every


def added(parts: Sequence[tuple[Mapping[str, F64], Hashes]]) -> tuple[Table, Hashes]:
    """One table of several."""
    every = np.unique(np.concatenate([hashes for _, hashes in parts]))
    level = [spread_out(table, hashes, every) for table, hashes in parts]
    return {name: np.sum([table[name] for table in level], axis=0) for name in level[0]}, every


def by_item(hashes: Hashes) -> tuple[Hashes, I64, I64]:
    """(distinct hashes sorted, order that sorts the rows by them, where each begins in it): for `np.add.reduceat`."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[starts], order, starts
