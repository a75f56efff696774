"""Ridge regression as sums that add: what linear algorithms learn.

    S = Σ w φφᵀ (D, D),  B = Σ w φrᵀ (D, o),  Y = Σ w rrᵀ (o, o),  n = Σ w
    φ = [1, context, slot one-hot | items, crosses]

and `slate_S`, `slate_B`, `slate_Y`, the same over slate totals Σ √w φ, Σ √w r, with `pairs` = Σ (Σ √w)² − Σ w: what they
exceed the sums over slots by is the correlation inside slates. The prior is never in the sums, so shards add, a correction is
w (after − before), and objectives are weighed when they are used. Learning costs O(D²) an example, in one block of BLAS calls
a batch.

The context's own columns change no ranking. They take up what a context does to every item, which items shown mostly to
generous contexts would otherwise be credited with.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from policies import forgetting
from policies.algorithm import Problem
from policies.types import F32, F64, I64, Arrays, Changes, Mask

ADDED = ("S", "B", "Y", "n", "slate_S", "slate_B", "slate_Y", "pairs")
ROWS = 4_000  # φ of so many examples stays in the processor's cache (measured: a sixth less time than 20,000 at once)
Sums = dict[str, F64]  # ADDED, and `index`, `half_life` of `policies.forgetting`


def columns(problem: Problem) -> list[str]:
    """Names of φ's columns; sums carry them, so that sums of another schema are known as such."""
    encoder = problem.encoder
    return [
        "1",
        *(f"context.{name}" for name in encoder.context_names),
        *(f"slot.{t}" for t in range(problem.slots) if problem.slots > 1),  # one slot is the intercept
        *(f"item.{name}" for name in encoder.item_names),
        *(f"cross.{name}" for name in encoder.cross_names),
    ]


def effects(names: Sequence[str]) -> Mask:
    """Which columns can change a ranking (D,): those right of the bar."""
    return np.array([name.startswith(("item.", "cross.")) for name in names])


def phi(problem: Problem, context: F32, items: F32, slots: I64, out: F64 | None = None) -> F64:
    """φ (N, D) of N examples, written to `out` when given."""
    encoder = problem.encoder
    c, d, k = encoder.context_size, encoder.item_size, problem.slots if problem.slots > 1 else 0
    of_context, of_item = encoder.cross
    x = np.empty((len(items), 1 + c + k + d + len(of_item))) if out is None else out
    x[:, 0] = 1
    x[:, 1 : 1 + c] = context
    x[:, 1 + c : 1 + c + k] = slots[:, None] == np.arange(k)
    x[:, 1 + c + k : 1 + c + k + d] = items
    if len(of_item):
        np.multiply(context[:, of_context], items[:, of_item], out=x[:, 1 + c + k + d :])
    return x


class RidgeLearner:
    """The sums of one problem. `arrays` gives them as they are: copy what must not move."""

    def __init__(self, problem: Problem, half_life: float) -> None:
        self.problem, self.half_life = problem, half_life
        self.columns = columns(problem)
        self._named = np.array(self.columns)
        self.sums = empty(len(self.columns), len(problem.objectives), half_life)
        # for φ and √w φ: memory asked for anew costs more than the sums
        self._room = np.empty((2, 0, len(self.columns)))

    def learn(self, changes: Changes) -> None:
        for block in blocks(changes):
            self._learn(block)

    def _learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        ages = forgetting.age(changes.times, self.half_life)
        index = forgetting.index_for(float(ages.max()), float(self.sums["index"][0]))
        self.sums = sums = forgetting.move(self.sums, ADDED, index)
        w = changes.weights * np.exp2(ages - index)
        if len(changes) > self._room.shape[1]:
            self._room = np.empty((2, len(changes), len(self.columns)))
        x, room = self._room[:, : len(changes)]
        phi(self.problem, changes.context, changes.items, changes.slots, x)
        first, last = changes.rewards_before, changes.rewards_after
        entered = w * (changes.present_after - changes.present_before)
        sums["S"] += gram(x, entered, room)
        sums["B"] += x.T @ (w[:, None] * (last - first))
        sums["Y"] += last.T @ (w[:, None] * last) - first.T @ (w[:, None] * first)
        sums["n"] += entered.sum()
        if self.problem.slots > 1:
            self._learn_slates(x, np.sqrt(w), changes)

    def _learn_slates(self, x: F64, root: F64, changes: Changes) -> None:
        starts = begins(changes.slates)
        known = np.add.reduceat(changes.present_before, starts) > 0
        self._add_slates(x, root * changes.present_after, root[:, None] * changes.rewards_after, starts, 1.0)
        if known.any():  # seldom: corrections of slates learned in an earlier batch
            rows = np.repeat(known, np.diff(starts, append=len(x)))
            old = begins(changes.slates[rows])
            self._add_slates(
                x[rows],
                (root * changes.present_before)[rows],
                (root[:, None] * changes.rewards_before)[rows],
                old,
                -1.0,
            )

    def _add_slates(self, x: F64, root: F64, reward: F64, starts: I64, sign: float) -> None:
        size = len(x) // len(starts)
        if len(x) == size * len(starts) and np.array_equal(starts, np.arange(0, len(x), size)):
            total = np.matmul(root.reshape(-1, 1, size), x.reshape(-1, size, x.shape[1]))[:, 0]
        else:
            total = np.add.reduceat(root[:, None] * x, starts)
        rewards, roots = np.add.reduceat(reward, starts), np.add.reduceat(root, starts)
        sums = self.sums
        sums["slate_S"] += sign * (total.T @ total)
        sums["slate_B"] += sign * (total.T @ rewards)
        sums["slate_Y"] += sign * (rewards.T @ rewards)
        sums["pairs"] += sign * float(roots @ roots - root @ root)

    def arrays(self) -> Arrays:
        return {**self.sums, "columns": self._named}

    def load(self, arrays: Arrays) -> None:
        """Take over sums. Raises ValueError when they are of other columns: those are addends of a publish."""
        if list(arrays["columns"]) != self.columns:
            raise ValueError("sums of other columns, see policies.ridge_carrying")
        self.sums = {name: value.copy() for name, value in sums_of(arrays).items()}


def begins(slates: I64) -> I64:
    """Where each slate's examples begin; there is at least one."""
    return np.concatenate(([0], np.flatnonzero(slates[1:] != slates[:-1]) + 1))


def blocks(changes: Changes) -> Iterator[Changes]:
    """Changes in parts that fit the processor's cache; a slate stays whole."""
    rows = len(changes)
    if rows <= ROWS:
        yield changes
        return
    places = np.searchsorted(changes.slates, changes.slates[np.arange(ROWS, rows, ROWS)])
    for start, end in pairwise([0, *np.unique(places[places > 0]).tolist(), rows]):
        yield changes if end - start == rows else changes.part(start, end)


def gram(x: F64, w: F64, room: F64) -> F64:
    """Σ w φφᵀ. Rows of weight zero (rewards that changed) cost little; when no weight is negative, half the work."""
    moved = np.flatnonzero(w)
    if len(moved) < len(x):
        x, w, room = np.take(x, moved, axis=0, out=room[: len(moved)], mode="clip"), w[moved], room[: len(moved)]
    if len(w) and w.min() > 0:
        scaled = np.multiply(x, np.sqrt(w)[:, None], out=room)
        return scaled.T @ scaled
    return x.T @ (x * w[:, None])


def sums_of(arrays: Mapping[str, NDArray[np.generic]], names: tuple[str, ...] = ADDED) -> Sums:
    """The numbers among named arrays, as float64."""
    return {name: np.asarray(arrays[name], np.float64) for name in (*names, "index", "half_life")}


def empty(d: int, o: int, half_life: float) -> Sums:
    """Sums of nothing, d columns and o objectives wide."""
    return {
        "S": np.zeros((d, d)),
        "B": np.zeros((d, o)),
        "Y": np.zeros((o, o)),
        "n": np.zeros(1),
        "slate_S": np.zeros((d, d)),
        "slate_B": np.zeros((d, o)),
        "slate_Y": np.zeros((o, o)),
        "pairs": np.zeros(1),
        "index": np.zeros(1),
        "half_life": np.array([half_life]),
    }


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different columns or half-lives."""
    return merged(parts, ADDED)


def merged(parts: Sequence[Arrays], names: tuple[str, ...]) -> Arrays:
    """As `merge`, of sums by these names."""
    if not parts:
        return {}
    first = parts[0]
    if any(p["half_life"] != first["half_life"] or list(p["columns"]) != list(first["columns"]) for p in parts):
        raise ValueError("sums of different columns or half-lives do not add, see policies.ridge_carrying")
    every = [sums_of(part, names) for part in parts]
    index = max(float(sums["index"][0]) for sums in every)
    level = [forgetting.move(sums, names, index) for sums in every]
    added: Arrays = {name: np.sum([sums[name] for sums in level], axis=0) for name in names}
    return added | {name: first[name].copy() for name in ("half_life", "columns")} | {"index": np.array([index])}
