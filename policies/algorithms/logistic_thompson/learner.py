"""Sums of logistic regression, linearised at a point that stays fixed for an epoch.

    log σ-likelihood of an example at θ_e, to second order:  θᵀb − ½θᵀAθ,  z = φᵀθ_e, p = σ(z), v = p(1 − p)
    A += w v φφᵀ,  b += w (r − p + v z) φ

Rewards are moved into [0, 1] by the objective's range (values outside are clipped; 0 to 1 where it has none). Those that are not
just yes and no vary less than p(1 − p): sums are used over the dispersion, see there (quasi-likelihood; 1 for clicks).

Epoch 0 has no point yet: it keeps S and B of `policies.ridge`, from which the sums at any point (c, 0, 0, …) follow,
A = v S and b = B − (p − v c) S₁, so c can be the log odds of the mean reward whenever that is known best. `policies.ridge`'s
sums go on for all evidence: they tell how slots of a slate correlate.

An epoch ends when as many examples came in it as were remembered at its start, and no fewer than `first`. Then θ is solved
for, and its mean is the point for decisions made later than any seen so far. How far it may be off is known: s² is the mean
variance of φᵀθ, and what is expanded is σ averaged over it, p = σ(κz), v = κ p(1 − p), κ = (1 + πs²/8)^(−½). That takes away
the bias which a point beside the truth leaves in what it expanded (measured: half). A point belongs to a span of decision
times, so a decision that comes late, is corrected, or is taken back, moves the sums by what it moved them by before; a changed
reward moves b by w Δr φ, at whatever point. As epochs grow like what is known, the crude points of early ones come to weigh
next to nothing.

Nothing passes from a publish back to the learners, so every partition finds points of its own from its own evidence: its sums are
expansions of its own examples, and expansions add up whatever their points. What differs from sums that are exact: where an
epoch of a partition ends, and at which point the next begins, depends on the order in which its log was read. Within
an epoch state is a function of the set of events.

Source   Laplace's expansion: Bishop 2006, 4.5; dispersion: McCullagh & Nelder, Generalized Linear Models, 1989, 9; averaging σ: MacKay, Neural Computation 4, 1992 (the evidence framework applied
         to classification networks)
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from policies import forgetting, ridge_carrying
from policies.algorithm import Addend, Problem
from policies.carrying import places, relevant, scaled
from policies.ridge import ADDED, RidgeLearner, Sums, blocks, effects, gram, merged, phi, sums_of
from policies.ridge_fitting import RidgeOptions, discount, fit
from policies.ridge_posterior import Quadratic
from policies.types import F64, I64, Arrays, Changes, Mask

POINTS = 64  # kept; what is taken back from before the oldest of them is taken back at the oldest
FAR = 6.0  # log odds that a point says at most: p from 0.0025 to 0.9975, where an example still tells something
STILL = 1e-3  # rewards are taken to vary as much as this share of what yes and no would
RARE = 1e-4  # the mean reward is taken to be this far from 0 and 1 at least
EXPANDED = ("A", "b")
POINT = ("points", "widths", "since")
COUNTED = ("epoch", "fresh", "due", "newest")


class LogisticLearner:
    """The sums of one problem. `arrays` gives them as they are.

    A (o, D, D), b (D, o)      expansions, once an epoch has ended; zeros before
    points (E, D, o), widths (E, o), since (E,)  point e and its s² are for decision times above since[e], up to since[e + 1]
    epoch                      how many have ended;   fresh  examples of this one;   due  how many end it
    newest                     decision time seen
    """

    def __init__(self, problem: Problem, half_life: float, grid: F64, first: int) -> None:
        self.raw, self.problem, self.grid, self.first = problem, unit(problem), grid, float(first)
        self.ridge = RidgeLearner(self.problem, half_life)
        D, o = len(self.ridge.columns), len(problem.objectives)
        self.sums = {"A": np.zeros((o, D, D)), "b": np.zeros((D, o)), "index": np.zeros(1)}
        self.points, self.widths, self.since = np.zeros((0, D, o)), np.zeros((0, o)), np.zeros(0)
        self.epoch, self.fresh, self.due, self.newest = 0.0, 0.0, self.first, -np.inf

    def learn(self, changes: Changes) -> None:
        changes = in_units(self.raw, changes)
        net = changes.present_after - changes.present_before
        start = 0
        while start < len(changes):
            over = np.flatnonzero(self.fresh + np.cumsum(net[start:]) >= self.due)
            end = len(changes)
            if len(over):  # a slate stays whole
                end = int(np.searchsorted(changes.slates, changes.slates[start + over[0]], side="right"))
            self._learn(changes.part(start, end))
            if self.fresh >= self.due:
                self._end_epoch()
            start = end

    def _learn(self, changes: Changes) -> None:
        self.ridge.learn(changes)
        self.fresh += float((changes.present_after - changes.present_before).sum())
        self.newest = max(self.newest, float(changes.times.max()))
        index = float(self.ridge.sums["index"][0])
        self.sums = forgetting.move(self.sums, EXPANDED, index)
        if not self.epoch:
            return
        A, b = self.sums["A"], self.sums["b"]
        for block in blocks(changes):
            x = phi(self.problem, block.context, block.items, block.slots)
            w = block.weights * np.exp2(forgetting.age(block.times, self.ridge.half_life) - index)
            entered, room = block.present_after - block.present_before, np.empty_like(x)
            at = np.maximum(np.searchsorted(self.since, block.times, side="left") - 1, 0)
            for o in range(A.shape[0]):
                z, p, v = self._expansion(x, at, o)
                A[o] += gram(x, w * entered * v, room)
                moved = block.rewards_after[:, o] - block.rewards_before[:, o] + entered * (v * z - p)
                b[:, o] += x.T @ (w * moved)

    def _expansion(self, x: F64, at: I64, o: int) -> tuple[F64, F64, F64]:
        """z, p and v (N,) of rows at the points of their epochs."""
        z = np.empty(len(x))
        for e in np.unique(at):
            rows = at == e
            z[rows] = x[rows] @ self.points[e, :, o]
        z, narrow = np.clip(z, -FAR, FAR), 1 / np.sqrt(1 + np.pi / 8 * self.widths[at, o])
        p = 1 / (1 + np.exp(-narrow * z))
        return z, p, narrow * p * (1 - p)

    def _end_epoch(self) -> None:
        sums, now = self.ridge.sums, self.newest
        g = discount(sums, self.ridge.half_life, now)
        c = log_odds(sums, g)
        if not self.epoch:
            self.sums["A"], self.sums["b"] = expanded(sums["S"], sums["B"], c)
            first = np.zeros(self.points.shape[1:])
            first[0] = c
            self.points, self.widths, self.since = first[None], np.zeros((1, len(c))), np.array([-np.inf])
        effect, n = effects(self.ridge.columns), max(float(sums["n"][0]), np.finfo(float).tiny)
        g_each = g / dispersion(self.problem, self.ridge.arrays(), self.sums["A"], now)
        found = [
            solved(
                g_each[o] * self.sums["A"][o],
                g_each[o] * self.sums["b"][:, o],
                float(c[o]),
                effect,
                self.grid,
                sums["S"] / n,
            )
            for o in range(len(c))
        ]
        point, width = np.stack([theta for theta, _ in found], axis=1), np.array([width for _, width in found])
        if (
            np.isfinite(point).all() and np.isfinite(width).all()
        ):  # else the point before stays, which is as good as any
            self.points = np.concatenate([self.points, point[None]])[-POINTS:]
            self.widths = np.concatenate([self.widths, width[None]])[-POINTS:]
            self.since = np.append(self.since, now)[-POINTS:]
            self.since[0] = -np.inf
        self.epoch += 1
        self.fresh, self.due = 0.0, max(self.first, g * n)

    def arrays(self) -> Arrays:
        counted = {name: np.array([getattr(self, name)]) for name in COUNTED}
        return {
            **self.ridge.arrays(),
            **{name: self.sums[name] for name in EXPANDED},
            "points": self.points,
            "widths": self.widths,
            "since": self.since,
            **counted,
        }

    def load(self, arrays: Arrays) -> None:
        """Take over sums. Raises ValueError when they are of other columns: those are addends of a publish."""
        self.ridge.load(arrays)
        self.sums = {name: np.array(arrays[name], np.float64) for name in (*EXPANDED, "index")}
        self.points, self.widths, self.since = (np.array(arrays[name], np.float64) for name in POINT)
        self.epoch, self.fresh, self.due, self.newest = (float(arrays[name][0]) for name in COUNTED)


def unit(problem: Problem) -> Problem:
    """The problem with every objective moved into [0, 1]; its weights are times what the objectives span."""
    objectives, weights = {}, {}
    for (name, objective), (low, high) in zip(problem.objectives.items(), ranges(problem), strict=True):
        default = (objective.default - low) / (high - low)
        objectives[name] = msgspec.structs.replace(objective, range=(0.0, 1.0), default=default)
        if name in problem.weights:
            weights[name] = problem.weights[name] * (high - low)
    return replace(problem, objectives=objectives, weights=weights)


def ranges(problem: Problem) -> list[tuple[float, float]]:
    """(low, high) of every objective; (0, 1) where it has none."""
    return [objective.range or (0.0, 1.0) for objective in problem.objectives.values()]


def in_units(problem: Problem, changes: Changes) -> Changes:
    """The changes with rewards in [0, 1], and 0 where an example is absent."""
    low, high = np.array(ranges(problem)).T

    def moved(rewards: F64, present: F64) -> F64:
        return np.asarray(present[:, None] * np.clip((rewards - low) / (high - low), 0, 1))

    return replace(
        changes,
        rewards_before=moved(changes.rewards_before, changes.present_before),
        rewards_after=moved(changes.rewards_after, changes.present_after),
    )


def log_odds(sums: Sums, g: float) -> F64:
    """Of the mean reward of each objective (o,), half an example of either outcome added."""
    n = g * max(float(sums["n"][0]), 0.0)
    p = np.clip((g * sums["B"][0] + 0.5) / (n + 1), RARE, 1 - RARE)
    return np.asarray(np.log(p / (1 - p)))


def expanded(S: F64, B: F64, c: F64) -> tuple[F64, F64]:
    """A (o, D, D) and b (D, o) at the points (c, 0, 0, …), c (o,)."""
    p = 1 / (1 + np.exp(-c))
    v = p * (1 - p)
    return v[:, None, None] * S, B - S[:, :1] * (p - v * c)


def dispersion(problem: Problem, sums: Arrays, A: F64, now: float) -> F64:
    """How much less each objective (o,) varies than yes and no of its mean do: 1 for clicks, less for rewards in between.

    The variance that ridge regression leaves, over the mean of p(1 − p) in A. Both are known without another pass, and of
    clicks the first is the larger, as ridge regression explains no more than there is: more than 1 counts as 1.
    """
    half_life = float(sums_of(sums)["half_life"][0])
    options = RidgeOptions(half_life=None if np.isinf(half_life) else half_life)
    n = float(sums_of(sums)["n"][0])
    if n <= 0:
        return np.ones(len(A))
    left = [fit(options, replace(problem, weights={name: 1.0}), sums, now).sigma ** 2 for name in problem.objectives]
    return np.clip(np.array(left) * n / np.maximum(A[:, 0, 0], np.finfo(float).tiny), STILL, 1)


def quadratic(A: F64, b: F64, c: float, effect: Mask, grid: F64) -> Quadratic:
    """The posterior of θ − (c, 0, 0, …) of one objective: the prior is around the mean reward, not around one half."""
    return Quadratic(A, (b - c * A[:, 0])[:, None], effect, grid)


def solved(A: F64, b: F64, c: float, effect: Mask, grid: F64, each: F64) -> tuple[F64, float]:
    """θ (D,), the posterior's mean, and the mean variance of φᵀθ where `each` is the mean φφᵀ."""
    found = quadratic(A, b, c, effect, grid)
    shares = found.unit_shares()
    theta: F64 = found.mean(shares)[0]
    theta[0] += c
    root = found.root(shares)
    return theta, float(np.sum(root * (each @ root)))


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One state of several shards', for a publish. Exact while none has ended an epoch; afterwards a sum of expansions at
    several points, of which the state names those of the shard that is furthest. Raises ValueError like `policies.ridge`."""
    if not parts:
        return {}
    whole, sums = merged(parts, ADDED), [dict(part) for part in parts]
    if any(part["epoch"][0] for part in parts):
        c = log_odds(sums_of(whole), 1.0)
        for part in sums:
            if not part["epoch"][0]:
                held = sums_of(part)
                part["A"], part["b"] = expanded(held["S"], held["B"], c)
    furthest = max(parts, key=lambda part: float(part["epoch"][0]))
    return (
        whole
        | {name: array for name, array in merged(sums, EXPANDED).items() if name in EXPANDED}
        | {name: furthest[name] for name in POINT}
        | {name: np.max([part[name] for part in parts], axis=0) for name in ("epoch", "due", "newest")}
        | {"fresh": np.sum([part["fresh"] for part in parts], axis=0)}
    )


def carry(problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    """Own sums and those of other versions of the surface, for a publish: ridge sums as `policies.ridge_carrying` has it, and
    expansions alike, for a linearised example is one in whatever columns. What an addend has no expansion of, an objective it
    does not know or an epoch 0, is expanded at the mean reward of all."""
    target, every = unit(problem), [Addend(unit(a.problem), a.arrays) for a in relevant(problem, addends)]
    parts = ridge_carrying.carried(target, own, every, now)
    made = ridge_carrying.total(target, parts)
    if not any(arrays["epoch"][0] for arrays in (own, *(addend.arrays for addend in every))):
        return own | made
    half_life, index = float(parts[0]["half_life"][0]), float(parts[0]["index"][0])
    c = log_odds(sums_of(made), float(np.exp2(index - now / half_life)))
    A, b = np.zeros_like(own["A"], np.float64), np.zeros_like(own["b"], np.float64)
    for part, addend in zip(parts, (Addend(target, own), *every), strict=True):
        at_mean = expanded(part["S"], part["B"], c)
        kept = places(addend.problem, target) if addend.arrays["epoch"][0] else [None] * len(c)
        theirs = scaled(sums_of(addend.arrays, EXPANDED), EXPANDED, half_life, index, now)
        M = ridge_carrying.translation(addend.problem.encoder, addend.problem.slots, target.encoder, target.slots)
        for o, place in enumerate(kept):
            A[o] += at_mean[0][o] if place is None else M.around(theirs["A"][place])
            b[:, o] += at_mean[1][:, o] if place is None else M.times(theirs["b"][:, [place]])[:, 0]
    return own | made | {"A": A, "b": b, "epoch": np.ones(1)}
