"""Constraints inside a slate: what may come next, given the slots before. Packed as arrays for the draw.

A constraint gives each candidate a code, what kind of thing it is, or −1: it does not concern it. At slot t it lets through:

    mask     only candidates it does not concern: the reason to leave them out may yield, unlike `masks` of the draw
    most     candidates whose kind was shown fewer than limits[t] times in slots 0..t, pins ahead counted where they stand
    least    all, while members (code ≥ 0) can still make up limits[s] of the slots 0..s for every s ≥ t; else members
    spacing  candidates of no kind that stands within limits[t] − 1 slots of t, before or (pinned) after

They are applied in their order. One that would leave no candidate is passed over for that slot, and those after it hold
where they can: so the first yields last. A minimum asks for no more than the members that are left; minima are added up
as if no candidate met two of them, which forces early and never late. `acts` says what each did in each slot.

Diversity is subtracted from every draw's score of the candidates left after each pick:

    w_mmr · max(0, largest cosine to an item shown before)  +  Σ w_cover · 1[its value was shown before, or it has none]

Source   Carbonell & Goldstein, SIGIR 1998 (MMR; its λ is folded into the weight); coverage is that of distinct values
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from policies.compiling import compiled
from policies.types import F32, F64, I64, Mask

Op = Literal["mask", "most", "least", "spacing"]
MASK, MOST, LEAST, SPACING = 0, 1, 2, 3
OPS: dict[Op, int] = {"mask": MASK, "most": MOST, "least": LEAST, "spacing": SPACING}
NO_VECTORS = np.empty((0, 0), np.float32)
SHORTEST = np.float32(1e-18)  # a vector below it is like nothing; its square is still a float32
HEAVIEST = 1e30  # weight of diversity: float32 scores stay finite under it
# values of `acts`; a minimum that was not reached is passed over where it was due
NOTHING, ACTED, PASSED_OVER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint on a slate of k slots out of n candidates, under the name that explanations and metrics give it.

    codes (n,) int64, −1 = not concerned; limits (k,) int64, never falling for `most` and `least`, unused by `mask`
    """

    name: str
    op: Op
    codes: I64
    limits: I64


class Lines(Struct, frozen=True, eq=False, gc=False):
    """Constraints of one request by priority, as the draw reads them: names (L,), ops (L,), codes (L, n), limits (L, k)."""

    names: tuple[str, ...]
    ops: I64
    codes: I64
    limits: I64

    def __add__(self, other: "Lines") -> "Lines":
        """Both, those of the left one first; either may be `NO_LINES`."""
        if not self.names or not other.names:
            return self if self.names else other
        ops, codes, limits = (
            np.concatenate([getattr(self, part), getattr(other, part)]) for part in ("ops", "codes", "limits")
        )
        return Lines(self.names + other.names, ops, codes, limits)


_NO_CODES = np.empty((0, 0), np.int64)
NO_LINES = Lines((), np.empty(0, np.int64), _NO_CODES, _NO_CODES)


def stacked(constraints: Sequence[Constraint], n: int, k: int) -> Lines:
    """Constraints by priority, of n candidates and k slots."""
    return Lines(
        tuple(one.name for one in constraints),
        np.array([OPS[one.op] for one in constraints], np.int64),
        _stacked([one.codes for one in constraints], n),
        _stacked([one.limits for one in constraints], k),
    )


class Within(Struct, frozen=True, eq=False, gc=False):
    """Everything that depends on the slots before, as the draw reads it.

    ops (L,), codes (L, n), limits (L, k)   constraints by priority, the first yields last
    weights (1 + P,)    of MMR, then of each coverage, in units of the scores; ≥ 0
    covers (P, n)       codes of the values that a coverage counts, −1 = none
    vectors (v, n)      float32, candidates' vectors of length 1 (or 0) as columns
    """

    ops: I64
    codes: I64
    limits: I64
    weights: F64 = field(default_factory=lambda: np.zeros(1))
    covers: I64 = _NO_CODES
    vectors: F32 = NO_VECTORS

    @property
    def arrays(self) -> tuple[Any, ...]:
        """As the compiled draw takes them, each another type."""
        return self.ops, self.codes, self.limits, self.weights, self.covers, self.vectors

    def check(self, n: int, k: int) -> None:
        """Raises ValueError for arrays that do not fit n candidates and k slots, or each other."""
        lines, covers = len(self.ops), len(self.covers)
        if self.codes.shape != (lines, n):
            raise ValueError(f"codes of the constraints must be {(lines, n)}, got {self.codes.shape}")
        if self.limits.shape != (lines, k):
            raise ValueError(f"limits of the constraints must be {(lines, k)}, got {self.limits.shape}")
        if self.weights.shape != (1 + covers,):
            raise ValueError(f"weights of diversity must be {1 + covers}, got {self.weights.shape}")
        if covers and self.covers.shape[1] != n:
            raise ValueError(f"covers must be codes of {n} candidates, got {self.covers.shape}")
        if self.weights[0] and self.vectors.shape[1:] != (n,):
            raise ValueError(f"vectors must be columns of {n} candidates, got {self.vectors.shape}")
        for weight in self.weights.tolist():
            if not 0.0 <= weight <= HEAVIEST:
                raise ValueError(f"weights of diversity must be from 0 to {HEAVIEST:g}, got {self.weights}")


class Prefix:
    """The law of the module's docstring in numpy, to be read and to be compared with: constraints, slot after slot."""

    def __init__(self, within: Within, pins: I64, n: int) -> None:
        self._within, self._n = within, n
        self.shown: dict[int, int] = {}  # slot → row, of the slots that were drawn
        self._pins = {t: int(row) for t, row in enumerate(pins) if row >= 0}
        self._acts = np.zeros(within.limits.shape, np.uint8)

    def _standing(self, line: int, code: int | None, until: int) -> list[int]:
        """Slots up to `until` that show a code (None: any): drawn, or pinned before or ahead."""
        codes = self._within.codes[line]
        return [
            t
            for t, row in (self.shown | self._pins).items()
            if t <= until and codes[row] >= 0 and code in (None, codes[row])
        ]

    def passing(self, t: int, R: I64) -> I64:
        """Those of R_t that the constraints let through at slot t."""
        for _, gone in self.narrowing(t, R):
            R = R[~np.isin(R, gone)]
        return R

    def narrowing(self, t: int, R: I64) -> list[tuple[int, I64]]:
        """(constraint, rows it does not let through at slot t), in their order."""
        held: list[int] = []
        before, found = R, []
        for line, op in enumerate(self._within.ops.tolist()):
            if op == LEAST:
                keep = self._makes_up(t, before, R, [*held, line])
            else:
                keep = np.array([self._lets(op, line, t, int(c)) for c in R], bool)
            if keep.any():
                if not keep.all():
                    self._acts[line, t] = ACTED
                    found.append((line, R[~keep]))
                R = R[keep]
                held += [line] if op == LEAST else []
            elif op != LEAST and len(R):
                self._acts[line, t] = PASSED_OVER
        return found

    def _lets(self, op: int, line: int, t: int, c: int) -> bool:
        code, limits = int(self._within.codes[line, c]), self._within.limits[line]
        if code < 0:
            return True
        if op == MASK:
            return False
        if op == SPACING:
            return all(abs(s - t) >= limits[t] for s in self._standing(line, code, self._n + len(limits)))
        later = [s for s in self._pins if s > t]
        return all(len(self._standing(line, code, s)) + 1 <= limits[s] for s in [t, *later])

    def _makes_up(self, t: int, before: I64, R: I64, lines: list[int]) -> Mask:
        """Which of R leave enough free slots for what the minima still need by every slot."""
        codes, limits = self._within.codes, self._within.limits
        keep = np.ones(len(R), bool)
        for s in range(t, limits.shape[1]):
            needs = {
                line: min(limits[line, s] - len(self._standing(line, None, s)), int((codes[line, before] >= 0).sum()))
                for line in lines
            }
            needs = {line: need for line, need in needs.items() if need > 0}
            free = sum(slot not in self._pins for slot in range(t + 1, s + 1))
            met = sum((codes[line, R] >= 0 for line in needs), np.zeros(len(R), int))
            keep &= sum(needs.values()) - met <= free
        return keep

    def penalties(self, t: int) -> F32:
        """What the slots before t take from each candidate's scores, (n,)."""
        within = self._within
        near, covered = np.zeros(self._n, np.float32), within.covers < 0
        for row in [row for s, row in sorted((self.shown | self._pins).items()) if s < t]:
            if within.weights[0] > 0.0:
                cosine = np.zeros(self._n, np.float32)
                for column in within.vectors:
                    cosine += column * column[row]
                near = np.maximum(near, cosine)
            for codes, already in zip(within.covers, covered, strict=True):
                already |= codes == codes[row]
        less = within.weights[0] * near.astype(float)
        for weight, already in zip(within.weights[1:], covered, strict=True):
            less = less + weight * already
        rounded: F32 = less.astype(np.float32)
        return rounded

    def acts_at_the_end(self) -> NDArray[np.uint8]:
        """What each constraint did in each slot, with the minima that were not reached where they were due."""
        for line, op in enumerate(self._within.ops.tolist()):
            limits = self._within.limits[line]
            for t in range(len(limits)):
                rises = limits[t] > (limits[t - 1] if t else 0)
                if op == LEAST and rises and len(self._standing(line, None, t)) < limits[t]:
                    self._acts[line, t] = PASSED_OVER
        return self._acts


def packed(
    constraints: Sequence[Constraint],
    n: int,
    k: int,
    *,
    mmr: tuple[float, F32] | None = None,
    coverage: Sequence[tuple[float, I64]] = (),
) -> Within | None:
    """Constraints by priority and diversity as the draw reads them; None of nothing.

    mmr       (weight, vectors (n, v) of any length)
    coverage  (weight, codes (n,)) of each attribute
    """
    columns = None if mmr is None else (mmr[0], unit_columns(np.ascontiguousarray(mmr[1]), 0, mmr[1].shape[1]))
    return joined(stacked(constraints, n, k), n, k, mmr=columns, coverage=coverage)


def joined(
    lines: Lines,
    n: int,
    k: int,
    *,
    mmr: tuple[float, F32] | None = None,
    coverage: Sequence[tuple[float, I64]] = (),
) -> Within | None:
    """As `packed`, with constraints that are stacked, and with vectors as `unit_columns` gives them."""
    weight, vectors = (0.0, NO_VECTORS) if mmr is None or mmr[0] == 0.0 else mmr
    coverage = [pair for pair in coverage if pair[0] != 0.0]
    if not lines.names and not weight and not coverage:
        return None
    return Within(
        lines.ops,
        lines.codes if lines.names else np.empty((0, n), np.int64),
        lines.limits if lines.names else np.empty((0, k), np.int64),
        np.array([weight, *(weight for weight, _ in coverage)]),
        coverage[0][1].reshape(1, n) if len(coverage) == 1 else _stacked([codes for _, codes in coverage], n),
        vectors,
    )


@compiled
def unit_columns(vectors: F32, start: int, stop: int) -> F32:
    """Columns start … stop − 1 of (n, d) → (v, n) with columns of length 1; a vector of zeros, which is like nothing, stays so."""
    n = vectors.shape[0]
    columns, lengths = np.empty((stop - start, n), np.float32), np.zeros(n, np.float32)
    for j in range(stop - start):
        for c in range(n):
            value = vectors[c, start + j]
            columns[j, c] = value
            lengths[c] += value * value
    for c in range(n):
        lengths[c] = max(np.sqrt(lengths[c]), SHORTEST)
    for j in range(stop - start):
        for c in range(n):
            columns[j, c] /= lengths[c]
    return columns


def _stacked(rows: Sequence[I64], width: int) -> I64:
    table = np.empty((len(rows), width), np.int64)
    for place, row in enumerate(rows):
        table[place] = row
    return table
