"""Have the features moved? The population stability index of each, from counts that add up over shards.

    PSI = Σ_b (p_b − q_b) log(p_b / q_b),  p the recent shares of a feature's bins, q those of the reference, in nats

It is Jeffreys' divergence, 0 when nothing moved; by custom 0.1 is worth a look and 0.25 is a shift. Half a count is added to
every bin, and what chance alone makes of it, (bins in use − 1) / n of the recent, is taken off.

Bins     a number: ten of equal width over its range; a category: its values and `unseen`; a bool: its two; and, of each,
         `missing`. A number exactly in the middle of its range is encoded like a missing one, and counted as such
Vectors  means and variances of the components instead: max_j (Δ mean_j)² / variance_j, which is what Jeffreys' divergence is
         between two normals of one variance, and the PSI of `missing`
Windows  both forget by decision time: the reference with a half-life of 14 days, the recent of one, so that no hour of the day
         is news. What is gone or unseen is found sooner: a bin that was empty weighs much in a PSI

Source   Kullback & Leibler 1951 (the divergence); Yurdakul 2018, Statistical Properties of Population Stability Index (its mean
         when nothing moved)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from policies.columns import (
    BoolColumn,
    CategoryColumns,
    Columns,
    CountedColumn,
    NumberColumn,
    VectorColumns,
    columns_of,
)
from policies.surface import Feature
from policies.types import F32, F64

DAY = 86_400.0
REFERENCE_SECONDS, RECENT_SECONDS = 14 * DAY, DAY  # half-lives
BINS = 10  # of a number, by custom
LEAST = 500.0  # rows in either window before anything is said
SPREADLESS = 1e-6  # variance a component is taken to have at least: encoded values are of the size of 1
MOST = 100.0  # nats that a vector's shift is cut to; a category's cannot get there


class Shift(NamedTuple):
    """What became of a feature. `missing`, `unseen`: shares of the recent rows; unseen is None where nothing can be."""

    nats: float
    missing: float
    unseen: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Weighted counts of one side's features, reference and recent, (B,) each, as they weigh at `at`."""

    at: float
    reference: F64
    recent: F64


class Bins:
    """Where the features of a context, or of items, are counted. `size`: B."""

    def __init__(self, features: Mapping[str, Feature]) -> None:
        self._parts: list[tuple[str, Columns, slice]] = []
        column = place = 0
        for name in sorted(features):
            part = columns_of(name, features[name], column)
            bins = _bins(part)
            self._parts.append((name, part, slice(place, place + bins)))
            column, place = column + len(part.names), place + bins
        self.size = place

    def start(self) -> Counts:
        return Counts(0.0, np.zeros(self.size), np.zeros(self.size))

    def add(self, counts: Counts, rows: F32, times: F64) -> Counts:
        """The counts after encoded rows (N, c) of decisions made at `times` (N,)."""
        if not len(rows):
            return counts
        counts = moved(counts, max(counts.at, float(times.max())))
        ages = (times - counts.at)[:, None] / np.array([REFERENCE_SECONDS, RECENT_SECONDS])
        weights = np.exp2(ages)  # (N, 2)
        found = [
            _counted(part, rows[:, part.place : part.place + len(part.names)], weights) for _, part, _ in self._parts
        ]
        if not found:
            return counts
        reference, recent = np.concatenate(found, axis=1)
        return Counts(counts.at, counts.reference + reference, counts.recent + recent)

    def shifts(self, counts: Counts) -> dict[str, Shift]:
        """Of each feature; none before both windows hold `LEAST` rows."""
        found = {}
        for name, part, place in self._parts:
            q, p = counts.reference[place], counts.recent[place]
            if isinstance(part, VectorColumns):
                shift = _shift_of_vector(q, p)
            else:
                unseen = float(p[-1] / p.sum()) if isinstance(part, CategoryColumns) and p.sum() else None
                shift = Shift(psi(q, p), float(p[0] / max(p.sum(), 1.0)), unseen)
            rows = min(q[:2].sum(), p[:2].sum()) if isinstance(part, VectorColumns) else min(q.sum(), p.sum())
            if rows >= LEAST:
                found[name] = shift
        return found


def moved(counts: Counts, at: float) -> Counts:
    """The counts as they weigh at a later time."""
    age = counts.at - at
    if age == 0.0:
        return counts
    return Counts(
        at, counts.reference * 2.0 ** (age / REFERENCE_SECONDS), counts.recent * 2.0 ** (age / RECENT_SECONDS)
    )


def pooled(parts: list[Counts]) -> Counts:
    """Counts that were kept apart as one, in any order. Raises ValueError without any."""
    at = max(part.at for part in parts)
    level = [moved(part, at) for part in parts]
    return Counts(at, np.sum([one.reference for one in level], axis=0), np.sum([one.recent for one in level], axis=0))


def psi(reference: F64, recent: F64) -> float:
    """Of counts (b,), at least 0: less what chance makes of it."""
    bins, n = len(recent), float(recent.sum())
    q = (reference + 0.5) / (reference.sum() + 0.5 * bins)
    p = (recent + 0.5) / (n + 0.5 * bins)
    used = int(((reference > 0) | (recent > 0)).sum())
    return max(float(((p - q) * np.log(p / q)).sum()) - max(used - 1, 0) / max(n, 1.0), 0.0)


def _bins(part: Columns) -> int:
    match part:
        case NumberColumn() | CountedColumn():
            return 1 + BINS
        case BoolColumn():
            return 3
        case VectorColumns():
            return 2 + 2 * len(part.names)
        case CategoryColumns():
            return 1 + len(part.names)


def _counted(part: Columns, x: F32, weights: F64) -> F64:
    """(2, bins) of one feature's columns (N, ·) under both windows' weights (N, 2)."""
    there = x.any(axis=1)
    if isinstance(part, VectorColumns):
        wide = x.astype(np.float64)
        held: F64 = np.column_stack([1.0 - there, 1.0 * there, wide, wide**2])
        return np.asarray(weights.T @ held, np.float64)
    if isinstance(part, NumberColumn | CountedColumn):
        code = 1 + np.clip(((x[:, 0].astype(np.float64) + 1.0) * (BINS / 2)).astype(np.int64), 0, BINS - 1)
    elif isinstance(part, BoolColumn):
        code = 1 + (x[:, 0] > 0).astype(np.int64)
    else:
        code = 1 + x.argmax(axis=1)
    code = np.where(there, code, 0)
    return np.stack([np.bincount(code, column, _bins(part)) for column in weights.T])


def _shift_of_vector(q: F64, p: F64) -> Shift:
    size = (len(q) - 2) // 2
    shown, missing = psi(q[:2], p[:2]), float(p[0] / max(p[:2].sum(), 1.0))
    if min(q[1], p[1]) < 1.0:
        return Shift(shown, missing, None)
    before, now = q[2 : 2 + size] / q[1], p[2 : 2 + size] / p[1]
    variance = np.maximum(q[2 + size :] / q[1] - before**2, SPREADLESS)
    chance = 2.0 * float(np.log(2.0 * size)) / float(p[1])  # of the largest of so many squared normals
    largest = float(((now - before) ** 2 / variance).max()) - chance
    return Shift(float(shown) + min(max(largest, 0.0), MOST), missing, None)
