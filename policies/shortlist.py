"""A shortlist of a catalogue too large to be drawn from whole, with the chance that it had of holding each item.

    T   kept for certain: pinned items, and of each of a few posterior draws, and of their mean, the `EACH` best
    U   r of the M other items, every set of r equally likely
    L = T ∪ U is what `policies.slate` draws from, as if nothing else were eligible

    inclusion of a_t given the slots before   1 for a_t ∈ T, (r − j) / (M − j) for a_t ∈ U, j of the slots before being of U

T is a function of policy, context and eligible items; U of the server's key and the decision's id. So inclusion is known for
every eligible item and never 0, and the product over the slots is exactly the chance that L holds the whole slate. What `draw`
gives are conditionals on L. A weight 1 / Π inclusion · propensity is unbiased for any slate of eligible items:

    E[1{A = a} / (incl(a) p(a ∣ L))] = Σ_{L ∋ a} P(L) / incl(a) = 1

although the marginal Σ_L P(L) p(a ∣ L) is never computed. Ratios of two policies on the same L need no inclusion: they compare
the policies as they draw from the shortlists that were made.

Scores that are affine in an item's features are found without the graph: a graph asked about [0; I] tells bias and slope, and
a matrix product of a batch of items, which stays in the cache, does the rest. Whether they are affine is checked on real
items of every decision (`Slope.explains`). Policies whose scores are not, and those that cannot tell items apart, draw from a uniform sample.

Source   methods.md §0; sequential inclusion of simple random sampling, Särndal et al., Model Assisted Survey Sampling, 1992, 3.3
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from policies.types import F32, F64, I64

WHOLE = 2_000  # eligible items that are still drawn from whole; as many a uniform sample has
DRAWS = 7  # posterior draws that are asked for their best, their mean beside them: with EACH a quarter of a thousand at most
EACH = 32  # best items of each; a slate longer than that gets as many as it has slots
RANDOM = 64  # size of U beside a T
BATCH = 16_384  # items scored at a time: 2 MB of 32 features
FIRST = 2_048  # items, evenly among all, that say how good the best will be at least
MANY = 64  # times what is wanted may be held before it is sorted out
ROUNDING = 1e-5  # of the largest score: products of another batch add up in another order
CHECKED = 8  # real items on which a slope is checked
CLOSE = 1e-3  # of the spread of scores: rounding is a thousandth of that, curvature of any use far more


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Positions (l,) among the N eligible items: the `kept` first ascending, then those drawn at random, ascending."""

    positions: I64
    kept: int
    eligible: int

    @property
    def drawn(self) -> int:
        return len(self.positions) - self.kept

    def inclusions(self, rows: I64) -> F64:
        """(k',) chance that the shortlist holds each item of a slate, rows of L, given that it holds those before."""
        random = rows >= self.kept
        before: I64 = np.cumsum(random) - random
        chances: F64 = (self.drawn - before) / np.maximum(self.eligible - self.kept - before, 1)
        return np.where(random, chances, 1.0)


@dataclass(frozen=True, slots=True)
class Slope:
    """What the scores (n, m) of a graph that is affine in its items are made of.

    bias (m,), slope (d, m)
    """

    bias: F32
    slope: F32

    @classmethod
    def of(cls, scores: F32) -> "Slope":
        """From the scores (1 + d, m) of `probes`."""
        return cls(scores[0], scores[1:] - scores[0])

    def explains(self, items: F32, scores: F32) -> bool:
        """Whether scores (n, m) of real items (n, d) are what is expected of them."""
        expected = self.bias + items @ self.slope
        spread = float(np.ptp(np.concatenate([scores, self.bias[None]]), axis=0).max())
        rounding = (
            64 * float(np.finfo(np.float32).eps) * float(max(np.abs(self.slope).max(initial=0), np.abs(scores).max()))
        )
        return bool(np.abs(expected - scores).max() <= CLOSE * spread + rounding)

    @property
    def flat(self) -> bool:
        """Whether no item is better than another in any draw."""
        return not self.slope.any()

    def views(self) -> F32:
        """(d, v) slopes of the mean and of `DRAWS` draws, evenly among all."""
        m = self.slope.shape[1]
        if m == 1:
            return self.slope
        mean = self.slope.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        return np.concatenate([mean, self.slope[:, np.unique(np.arange(DRAWS) * m // DRAWS)]], axis=1)


def probes(size: int) -> F32:
    """(1 + size, size): no features, then each alone."""
    return np.concatenate([np.zeros((1, size), np.float32), np.eye(size, dtype=np.float32)])


def shortlist(
    matrix: F32, rows: I64, slope: Slope | None, slots: int, uniforms: Callable[[int], F64], forced: Sequence[int] = ()
) -> Shortlist:
    """A shortlist of the eligible `rows` (N,) ascending of `matrix` (…, d); N > `WHOLE`.

    slope     of the policy's scores, None: a uniform sample
    uniforms  count → (count,) in [0, 1), the decision's
    forced    positions that must be in it
    """
    kept: I64 = np.unique(np.array(forced, np.int64))
    size = WHOLE - len(kept)
    if slope is not None and not slope.flat:
        kept = np.union1d(kept, best(matrix, rows, slope.views(), max(EACH, slots)))
        size = max(RANDOM, slots)
    size = min(size, len(rows) - len(kept))
    others = sample(uniforms(size), len(rows) - len(kept))
    # the i-th of what is left over lies behind as many kept ones as have at most i of what is left over before them
    others += np.searchsorted(kept - np.arange(len(kept)), others, side="right")
    return Shortlist(np.concatenate([kept, others]), len(kept), len(rows))


def best(matrix: F32, rows: I64, views: F32, each: int) -> I64:
    """Positions in `rows`, ascending, of the `each` best of every view (d, v); of equals those with the smaller position."""
    v = views.shape[1]
    some = matrix[rows[np.linspace(0, len(rows) - 1, min(FIRST, len(rows))).astype(np.int64)]] @ views
    lows = np.full(v, -np.inf, np.float32)
    if len(some) >= each:  # as many as are wanted are known to be that good, so only what is as good is looked at
        lows = np.partition(some, len(some) - each, axis=0)[len(some) - each] - ROUNDING * np.abs(some).max(axis=0)
    bars = np.empty((BATCH, v), np.float32)  # repeated: a comparison with one row of eight costs more than the product
    bars[:] = lows
    held: list[tuple[I64, I64, F32]] = []  # positions, views and scores of those above the bars
    count = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        first, span = int(part[0]), int(part[-1] - part[0]) + 1
        if span <= 2 * len(part):  # few holes: what is not eligible is scored and passed over
            scores = matrix[first : first + span] @ views
            scores = scores if span == len(part) else scores[part - first]
        else:
            scores = matrix[part] @ views
        over = np.flatnonzero(scores > bars[: len(scores)])
        held.append((start + over // v, over % v, scores.ravel()[over]))
        count += len(over)
        if count > MANY * each * v:
            held = [_top(held, each, v)]
            positions, view, score = held[0]
            count = len(positions)
            lows = np.full(v, np.inf, np.float32)
            np.minimum.at(lows, view, score)
            bars[:] = np.where(np.bincount(view, minlength=v) >= each, lows, bars[0])  # later equals have lost
    return np.unique(_top(held, each, v)[0])


def sample(uniforms: F64, of: int) -> I64:
    """Numbers below `of`, as many as uniforms, ascending, every set of them equally likely: Floyd's algorithm.

    Source   Bentley & Floyd, Communications of the ACM 30 (1987) 754
    """
    chosen: set[int] = set()
    for j, u in zip(range(of - len(uniforms), of), uniforms.tolist(), strict=True):
        t = int(u * (j + 1))
        chosen.add(j if t in chosen else t)
    return np.array(sorted(chosen), np.int64)


def _top(parts: Sequence[tuple[I64, I64, F32]], each: int, views: int) -> tuple[I64, I64, F32]:
    """The `each` largest of every view, of equals those with the smaller position."""
    positions, view, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept: list[I64] = []
    for j in range(views):
        mine = np.flatnonzero(view == j)
        if len(mine) > each:
            own = scores[mine]
            bar = np.partition(own, len(own) - each)[len(own) - each]
            stays, at = own > bar, np.flatnonzero(own == bar)
            at = at[np.argsort(positions[mine[at]], kind="stable")]
            stays[at[: each - int(stays.sum())]] = True
            mine = mine[stays]
        kept.append(mine)
    chosen = np.concatenate(kept)
    return positions[chosen], view[chosen], scores[chosen]
