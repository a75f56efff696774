"""Sums of `policies.ridge` under another feature spec, as if they had been learned under it.

Every column of the new φ is, where it can be, a sum of columns of the old one: φ' = Mφ. So S' = MSMᵀ, B' = MB, and the sums
are to rounding those that the same decisions would have given:

    removed      the column is left out, as it would be from sums learned without it; a value taken off a category's list
                 counts as unseen, a slot that is no longer there as none
    added        0 in every old decision, as for a missing value: nothing is known of it
    kept         by name; a number of another range is rescaled, where a missing value goes on counting as the middle of the
                 range it was encoded with; a vector of another size or a feature of another type is a new one
    crosses      the products of the above, where the pair was crossed before; a new cross is a new column

An earlier plan was to marginalise a removed column out. That keeps the others' effects as they were beside it, but the model
that is asked from now on does not have it: what it explained through them is theirs again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np

from policies.algorithm import Addend, Problem
from policies.carrying import index_at, places, relevant, scaled
from policies.columns import CategoryColumns, NumberColumn, VectorColumns, columns_of
from policies.features import Encoder
from policies.ridge import ADDED, Sums, columns, empty, sums_of
from policies.surface import Feature
from policies.types import F64, I64, Arrays


def carry(problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    """Own sums plus what the addends say about this problem, at the half-life of the own ones."""
    return total(problem, carried(problem, own, addends, now))


def total(problem: Problem, parts: Sequence[Sums]) -> Arrays:
    """One set of sums of parts at the same index."""
    added: Arrays = {name: reduce(np.add, [sums[name] for sums in parts]) for name in ADDED}
    return added | {name: parts[0][name] for name in ("index", "half_life")} | {"columns": np.array(columns(problem))}


def carried(problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> list[Sums]:
    """What `carry` adds up: the own sums, and those of every addend that is `relevant`, in this problem's terms."""
    held = sums_of(own)
    half_life = float(held["half_life"][0])
    index = index_at(half_life, float(held["index"][0]), now)
    parts = [(scaled(held, ADDED, half_life, index, now), list[int | None](range(len(problem.objectives))))]
    for addend in relevant(problem, addends):
        kept = places(addend.problem, problem)
        parts.append((scaled(_turned(addend, problem, kept), ADDED, half_life, index, now), kept))
    g = float(np.exp2(index - now / half_life))
    for o, objective in enumerate(problem.objectives.values()):
        if any(kept[o] is None for _, kept in parts):
            # as `linear_thompson` has it: a span of 1 either way where none is set
            low, high = objective.range or (
                0.0,
                2.0,
            )
            _fill(o, objective.default, (high - low) ** 2 / 4, g, parts)
    return [sums for sums, _ in parts]


def _turned(addend: Addend, problem: Problem, kept: Sequence[int | None]) -> Sums:
    """An addend's sums in the columns and objectives of another problem; objectives it does not know are left at 0."""
    old = sums_of(addend.arrays)
    M = translation(addend.problem.encoder, addend.problem.slots, problem.encoder, problem.slots)
    made = empty(M.rows, len(kept), float(old["half_life"][0])) | {name: old[name] for name in ("n", "pairs", "index")}
    new = [o for o, place in enumerate(kept) if place is not None]
    was = [place for place in kept if place is not None]
    for S, B, Y in (("S", "B", "Y"), ("slate_S", "slate_B", "slate_Y")):
        made[S] = M.around(old[S])
        made[B][:, new] = M.times(old[B][:, was])
        made[Y][np.ix_(new, new)] = old[Y][np.ix_(was, was)]
    return made


def _fill(
    o: int, default: float, variance: float, g: float, parts: Sequence[tuple[Sums, Sequence[int | None]]]
) -> None:
    """Give objective `o` to the parts that do not know it: what ridge regression on those that do expects, and its noise."""
    knowing = [sums for sums, kept in parts if kept[o] is not None]
    S, b = np.sum([sums["S"] for sums in knowing], axis=0), np.sum([sums["B"][:, o] for sums in knowing], axis=0)
    y, n = sum(float(sums["Y"][o, o]) for sums in knowing), sum(float(sums["n"][0]) for sums in knowing)
    start = np.zeros(len(S))
    start[0] = default
    theta = start + np.linalg.solve(g * S + np.eye(len(S)), g * (b - S @ start))
    noise = (g * max(float(y - 2 * theta @ b + theta @ S @ theta), 0.0) + variance) / (g * n + 1)
    for sums, kept in parts:
        if kept[o] is None:
            for of_S, of_B, of_Y in (("S", "B", "Y"), ("slate_S", "slate_B", "slate_Y")):
                sums[of_B][:, o] = sums[of_S] @ theta
                sums[of_Y][o, :] = sums[of_Y][:, o] = theta @ sums[of_B]
                sums[of_Y][o, o] += float(sums["n"][0]) * noise


@dataclass(frozen=True, slots=True)
class Translation:
    """M by its entries: at most one of each row in `row`, `column`, `value`, the few others in `more`.

    So MS costs no more than a copy of S; `still` where M is the identity.
    """

    rows: int
    row: I64
    column: I64
    value: F64
    more: Sequence[tuple[int, int, float]]
    still: bool

    @classmethod
    def of(cls, M: F64) -> "Translation":
        row, column = np.nonzero(M)
        first = np.diff(row, prepend=-1) > 0
        more = [(int(i), int(j), float(M[i, j])) for i, j in zip(row[~first], column[~first], strict=True)]
        still = M.shape[0] == M.shape[1] and bool(np.array_equal(M, np.eye(len(M))))
        row, column = row[first], column[first]
        return cls(len(M), row, column, M[row, column], more, still)

    def times(self, array: F64) -> F64:
        """M (D', D) times (D, n)."""
        made = np.zeros((self.rows, array.shape[1]))
        taken = array[self.column]
        taken *= self.value[:, None]
        made[self.row] = taken
        for row, column, value in self.more:
            made[row] += value * array[column]
        return made

    def around(self, S: F64) -> F64:
        """MSMᵀ (D', D')."""
        return S if self.still else self.times(np.ascontiguousarray(self.times(S).T)).T


@lru_cache(maxsize=256)  # a surface's versions pass by here at every publish
def translation(old: Encoder, old_slots: int, new: Encoder, new_slots: int) -> Translation:
    """M, see above; encoders are compared as objects, which a process has one of for each version."""
    c, d, k = old.context_size, old.item_size, old_slots if old_slots > 1 else 0
    c_new, d_new, k_new = new.context_size, new.item_size, new_slots if new_slots > 1 else 0
    crossed, crossed_new = list(zip(*old.cross, strict=True)), list(zip(*new.cross, strict=True))
    context, items = _side(old.spec.context, new.spec.context), _side(old.spec.items, new.spec.items)
    of_context, of_item = [0, *range(1, 1 + c)], [0, *range(1 + c + k, 1 + c + k + d)]  # where they are in the old φ
    M = np.zeros((1 + c_new + k_new + d_new + len(crossed_new), 1 + c + k + d + len(crossed)))
    M[0, 0] = 1
    M[1 : 1 + c_new, of_context] = context
    for t in range(min(k_new, old_slots)):
        M[1 + c_new + t, 1 + c + t if k else 0] = 1  # a slate of one showed every item in slot 0
    M[1 + c_new + k_new : 1 + c_new + k_new + d_new, of_item] = items
    place = {(int(i), int(j)): 1 + c + k + d + at for at, (i, j) in enumerate(crossed)}
    for at, (i, j) in enumerate(crossed_new, 1 + c_new + k_new + d_new):
        terms = [(int(p), int(q)) for p in np.flatnonzero(context[i]) for q in np.flatnonzero(items[j])]
        if all((p - 1, q - 1) in place for p, q in terms if p and q):
            for p, q in terms:
                column = place[p - 1, q - 1] if p and q else of_context[p] if p else of_item[q]
                M[at, column] = context[i, p] * items[j, q]
    return Translation.of(M)


def _side(old: Mapping[str, Feature], new: Mapping[str, Feature]) -> F64:
    """Each new column out of [1, old columns]: (new size, 1 + old size)."""
    before, size = {}, 0
    for name in sorted(old):
        before[name] = columns_of(name, old[name], size)
        size += len(before[name].names)
    blocks = [np.zeros((0, 1 + size))]
    for name in sorted(new):
        made = columns_of(name, new[name], 0)
        block = np.zeros((len(made.names), 1 + size))
        was = before.get(name)
        if was is not None and type(was) is type(made):
            at = 1 + was.place
            if isinstance(was, NumberColumn) and isinstance(made, NumberColumn):
                block[0, [0, at]] = (was.middle - made.middle) / made.half, was.half / made.half
            elif isinstance(was, CategoryColumns) and isinstance(made, CategoryColumns):
                for value, code in was.codes.items():
                    block[made.codes.get(value, made.unseen), at + code] = 1
                block[made.unseen, at + was.unseen] = 1
            elif not isinstance(was, VectorColumns) or len(was.names) == len(made.names):
                block[:, at : at + len(made.names)] = np.eye(len(made.names))
        blocks.append(block)
    return np.concatenate(blocks)
