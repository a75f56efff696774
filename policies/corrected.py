"""`silence: corrected`: an algorithm on sums that add, made to count a decision by what share of its feedback has come.

    A = Σ F(a) w φφᵀ,  B = Σ w φ r̃,  r̃ = r − the default, as far as it was heard:   E[B] = Σ F(a) w φφᵀ θ,  a the decision's age

Every decision, clicked or not, weighs F of its age (`policies.delays`), and what was heard of it counts in full, so silence
that is only young says nothing. Sums over all decisions are kept as they always are; beside them those of young decisions, by
the 32nd of a horizon in which they were made. A publish takes (1 − F) of each off again. So nothing is learned twice as a
decision grows older, shards add, and a correction is a subtraction wherever the decision is by then.

    horizon    from then on F = 1, whatever comes later
    not known  of less than 200 decisions that were heard about, none of them younger than the horizon: the young are left
               out altogether, which is what `wait` does. What nobody said anything about tells nothing of delays
    several    a policy that weighs several objectives has one A: a decision weighs the least of their F, and the rewards r̃ of
               those that come sooner are scaled by it, so that each is as its A has it
    slates     what ρ̂ is estimated from: decisions older than the horizon, since parts of a slate come at different times
    ahead      a producer whose clock is more than a horizon ahead of the others makes their young decisions count in full

Memory and commit: the sums 33 times over, at most 65 (horizons below a minute, where clocks that are ahead weigh more), S by its
upper triangle.

Source   delayed conversions as a censored share: Chapelle, KDD 2014; Vernade, Cappé and Perchet, UAI 2017 (arXiv 1706.09186), whose
         estimate divides by the sum of such shares, as A⁻¹B does here
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies import forgetting
from policies.algorithm import Addend, Algorithm, Problem, Published
from policies.carrying import places, relevant, scaled
from policies.delays import BUCKETS, EARLY, RESTS_ON, Curve
from policies.types import F64, I64, Arrays, Changes, Delays

PARTS = 32  # of a horizon
AHEAD_SECONDS = 60.0  # how far a decision's own time may be ahead of the log's (`streaming.join`)
LEAST = 200.0  # decisions that F rests on
DELAYS = ("delay_mass", "delay_count")
SHARED = ("columns", "half_life")  # the same for every part: kept once
PLACE = ("pending_parts", "pending_lengths", "pending_clock")
WEIGHTS = ("S", "n", "replicate_S", "item_n", "item_P")  # sums of w
REWARDS = {"B": "S", "replicate_B": "replicate_S", "item_B": "item_n"}  # sums of w r, and where Σ w for them is
SYMMETRIC = ("S", "slate_S")  # of young decisions the upper triangle is kept
SLATES = ("slate_S", "slate_B", "slate_Y", "pairs")


def corrected(algorithm: Algorithm) -> Algorithm:
    """The algorithm for problems with a `horizon`; its trait `corrects` says that it has only sums named here."""
    if "corrects" not in algorithm.traits or algorithm.merge is None:
        raise ValueError(f"{algorithm.name} has no sums that could be corrected")
    return replace(
        algorithm,
        learner=partial(_learner, algorithm),
        merge=partial(merge, algorithm),
        carry=partial(_carry, algorithm) if algorithm.carry is not None else None,
        publish=partial(_publish, algorithm),
    )


def _learner(algorithm: Algorithm, config: Any, problem: Problem) -> "CorrectedLearner":
    return CorrectedLearner(algorithm, config, problem)


class CorrectedLearner:
    """Sums of all decisions, sums of the young ones by when they were made, and how late they were heard about."""

    def __init__(self, algorithm: Algorithm, config: Any, problem: Problem) -> None:
        assert algorithm.learner is not None  # `corrected` takes algorithms that merge
        self._half_life = forgetting.half_life_seconds(getattr(config, "half_life", None))
        self._objectives, self.width = len(problem.objectives), problem.horizon / PARTS
        self._kept = PARTS + 1 + min(PARTS, math.ceil(AHEAD_SECONDS / self.width))
        self._total, self._part = algorithm.learner(config, problem), algorithm.learner(config, problem)
        self._nothing = {name: np.array(value) for name, value in self._part.arrays().items()}
        empty = self._nothing | _silent(self._objectives)
        self._empty = {name: _flat(name, value)[:0] for name, value in empty.items() if name not in SHARED}
        self._delays = _silent(self._objectives)
        self._newest, self._young = -(2**62), dict[int, Arrays]()

    def learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        self._total.learn(changes)
        parts = np.floor(changes.times / self.width).astype(np.int64)
        self._newest = max(self._newest, int(parts.max()))
        self._young = {part: sums for part, sums in self._young.items() if part > self._newest - self._kept}
        for part, some in _by_part(changes, parts):
            if part > self._newest - self._kept:
                held = self._young.get(part, self._nothing | _silent(self._objectives))
                self._part.load(held)
                self._part.learn(some)
                self._young[part] = self._part.arrays() | {name: held[name] for name in (*DELAYS, "delay_index")}
        if changes.delays is not None and len(changes.delays.times):
            self._hear(changes.delays)

    def _hear(self, delays: Delays) -> None:
        self._delays = _added(self._delays, delays, self._half_life)
        parts = np.floor(delays.times / self.width).astype(np.int64)
        for part in np.unique(parts).tolist():
            if part in self._young:
                here = Delays(*(column[parts == part] for column in delays))
                self._young[part] |= _added(self._young[part], here, self._half_life)

    def arrays(self) -> Arrays:
        made = self._total.arrays() | self._delays
        return made | _packed(self._young, self._empty, self._newest, self._kept)

    def load(self, arrays: Arrays) -> None:
        """Take over sums. Raises ValueError when they are of other columns, see `policies.ridge_carrying`."""
        self._total.load(arrays)
        self._delays = {name: np.array(arrays[name]) for name in (*DELAYS, "delay_index")}
        self._newest, self._young = int(arrays["pending_clock"][0]), _unpacked(arrays)


def _by_part(changes: Changes, parts: I64) -> Iterator[tuple[int, Changes]]:
    """Rows of each part, whole slates: the rows of one have one time."""
    if (parts[1:] < parts[:-1]).any():
        order = np.argsort(parts, kind="stable")
        changes, parts = changes.of(order), parts[order]
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(parts)]
    for start, end in pairwise(edges):
        yield int(parts[start]), changes.part(start, end)


def _silent(objectives: int) -> Arrays:
    """Nothing was heard."""
    nothing = {"delay_mass": np.zeros((objectives, BUCKETS)), "delay_count": np.zeros(objectives), "index": np.zeros(1)}
    return _named(nothing)


def _heard(arrays: Arrays) -> dict[str, F64]:
    """The sums of delays as `policies.forgetting` moves them."""
    return {name: np.asarray(arrays[name], np.float64) for name in DELAYS} | {"index": _f64(arrays["delay_index"])}


def _named(heard: Mapping[str, F64]) -> Arrays:
    made: Arrays = {name: heard[name] for name in DELAYS}
    return made | {"delay_index": heard["index"]}


def _added(arrays: Arrays, delays: Delays, half_life: float) -> Arrays:
    """Sums of delays with more of them, which weigh as their decisions do."""
    ages = forgetting.age(delays.times, half_life)
    held = _heard(arrays)
    index = forgetting.index_for(float(ages.max()), float(held["index"][0]))
    moved = {name: np.array(value) for name, value in forgetting.move(held, DELAYS, index).items()}
    w = np.exp2(ages - index)
    np.add.at(moved["delay_mass"], (delays.objectives, delays.buckets), w * delays.masses)
    np.add.at(moved["delay_count"], delays.objectives, w * delays.counts)
    return _named(moved)


def _together(parts: Sequence[Arrays], signs: Sequence[float] | None = None) -> Arrays:
    """Sums of delays added up."""
    every = [_heard(part) for part in parts]
    index = max(float(heard["index"][0]) for heard in every)
    level = [forgetting.move(heard, DELAYS, index) for heard in every]
    w = np.ones(len(parts)) if signs is None else np.array(signs)
    return _named(
        {name: np.tensordot(w, [heard[name] for heard in level], 1) for name in DELAYS} | {"index": np.array([index])}
    )


# -- young decisions as arrays of fixed names --------------------------------------------------------------------------


def _packed(young: Mapping[int, Arrays], nothing: Arrays, newest: int, kept: int) -> Arrays:
    """`pending.NAME` of every sum, parts one after the other along the first axis, and how many rows each has.

    nothing  NAME → an array of no rows
    """
    parts, names = sorted(young), sorted(nothing)
    flat = [[_flat(name, young[part][name]) for part in parts] for name in names]
    made: Arrays = {
        "pending_parts": np.array(parts, np.int64),
        "pending_lengths": np.array([[len(each) for each in every] for every in flat], np.int64),
        "pending_clock": np.array([newest, kept], np.int64),
    }
    return made | {
        f"pending.{name}": np.concatenate([nothing[name], *every]) for name, every in zip(names, flat, strict=True)
    }


def _unpacked(arrays: Arrays) -> dict[int, Arrays]:
    parts = arrays["pending_parts"].tolist()
    names = sorted(name.removeprefix("pending.") for name in arrays if name.startswith("pending."))
    young: dict[int, Arrays] = {part: {name: arrays[name] for name in SHARED if name in arrays} for part in parts}
    for name, lengths in zip(names, arrays["pending_lengths"], strict=True):
        ends = np.cumsum(lengths)
        for part, start, end in zip(parts, ends - lengths, ends, strict=True):
            young[part][name] = _whole(name, arrays[f"pending.{name}"][start:end])
    return young


def _flat(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array[_upper(len(array))] if name in SYMMETRIC else array


def _whole(name: str, flat: NDArray[np.generic]) -> NDArray[np.generic]:
    if name not in SYMMETRIC:
        return flat
    D = math.isqrt(2 * len(flat))
    made = np.empty((D, D))
    row, column = _upper(D)
    made[row, column] = made[column, row] = flat
    return made


@lru_cache(maxsize=64)  # widths of φ that a process meets
def _upper(D: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(D)


def _is_pending(name: str) -> bool:
    return name in PLACE or name.startswith("pending.")


def merge(algorithm: Algorithm, parts: Sequence[Arrays]) -> Arrays:
    """One state of several shards'. Raises ValueError as the algorithm's own does."""
    assert algorithm.merge is not None  # see `corrected`
    if not parts:
        return {}
    newest = max(int(part["pending_clock"][0]) for part in parts)
    kept = int(parts[0]["pending_clock"][1])
    every = [_unpacked(part) for part in parts]
    young: dict[int, Arrays] = {}
    for number in sorted({number for one in every for number in one if number > newest - kept}):
        same = [one[number] for one in every if number in one]
        young[number] = algorithm.merge(same) | _together(same) if len(same) > 1 else same[0]
    made = algorithm.merge(parts) | _together(parts)
    nothing = {name.removeprefix("pending."): parts[0][name][:0] for name in parts[0] if name.startswith("pending.")}
    return made | _packed(young, nothing, newest, kept)


# -- what they come to at a publish ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Young:
    """Decisions that are younger than the horizon at a publish, by the part they were made in; ages (P,) in seconds."""

    sums: list[Arrays]
    youngest: F64
    oldest: F64

    @classmethod
    def of(cls, arrays: Arrays, horizon: float, now: float) -> "Young":
        young, width = _unpacked(arrays), horizon / PARTS
        parts = np.array(sorted(young), np.int64)
        parts = parts[now - (parts + 1) * width < horizon]
        return cls(
            [young[part] for part in parts.tolist()],
            np.maximum(now - (parts + 1) * width, 0.0),
            np.maximum(now - parts * width, 0.0),
        )


def settled(algorithm: Algorithm, problem: Problem, arrays: Arrays, now: float) -> tuple[Arrays, list[Curve]]:
    """The algorithm's own sums as they count at `now`, and each objective's F."""
    assert algorithm.merge is not None  # see `corrected`
    young = Young.of(arrays, problem.horizon, now)
    found = curves(arrays, young, problem.horizon, now)
    total = {name: value for name, value in arrays.items() if not _is_pending(name)}
    if not young.sums:
        return total, found
    weight, scale = weighed(found, [problem.weights.get(name, 0.0) for name in problem.objectives], young)
    defaults = np.array([objective.default for objective in problem.objectives.values()])
    taken = [_taken(sums, f, r, defaults) for sums, f, r in zip(young.sums, weight.tolist(), scale, strict=True)]
    return algorithm.merge([total, *taken]), found


def curves(arrays: Arrays, young: Young, horizon: float, now: float) -> list[Curve]:
    """F of each objective, from decisions none of which is younger than the horizon."""
    mature = _heard(_mature(arrays, young))
    g = float(np.exp2(float(mature["index"][0]) - now / float(_f64(arrays["half_life"])[0])))
    mass, count = np.maximum(mature["delay_mass"], 0.0), g * mature["delay_count"]
    return [Curve(mass[o], float(count[o]), horizon) for o in range(len(count))]


def _mature(arrays: Arrays, young: Young) -> Arrays:
    return _together([arrays, *young.sums], [1.0] + [-1.0] * len(young.sums))


def weighed(found: Sequence[Curve], weights: Sequence[float], young: Young) -> tuple[F64, F64]:
    """(weight of a decision (P,), what its rewards are scaled by (P, o)) in each part, for these weights of objectives (o,).

    Rewards of an objective that weighs nothing are scaled as far as its F is known, and never up; else as if all had come.
    """
    shares = np.stack([curve.between(young.youngest, young.oldest) for curve in found], axis=1)
    known = np.array([curve.decisions >= LEAST for curve in found])
    wanted = np.array([bool(weight) for weight in weights])
    if not wanted.any() or not known[wanted].all():
        return np.zeros(len(shares)), np.zeros(shares.shape)
    weight: F64 = shares[:, wanted].min(axis=1)
    scale = np.where(known, 1.0, weight[:, None])
    sooner = known & (shares > weight[:, None])
    scale[sooner] = (weight[:, None] / np.where(sooner, shares, 1.0))[sooner]
    return weight, scale


def _taken(sums: Arrays, f: float, r: F64, defaults: F64) -> Arrays:
    """What is to be added to sums over all decisions so that these weigh f and their rewards r (o,): of rewards beyond the default."""
    made = dict(sums)
    for name in WEIGHTS:
        if name in sums:
            made[name] = (f - 1.0) * _f64(sums[name])
    for name, unit in REWARDS.items():
        if name in sums:
            silent = _weight(sums, unit)[..., None] * defaults
            made[name] = (f - 1.0) * silent + (r - 1.0) * (_f64(sums[name]) - silent)
    if "Y" in sums:
        made["Y"] = _squares(sums, f, r, defaults) - _f64(sums["Y"])
    for name in SLATES:
        if name in sums:
            made[name] = -_f64(sums[name])
    return made


def _weight(sums: Arrays, unit: str) -> F64:
    """Σ w φ for sums of rewards by column, Σ w for those by item."""
    found = _f64(sums[unit if unit in sums else "n"])
    return found[..., 0] if unit in sums and unit != "item_n" else found  # φ begins with 1


def _squares(sums: Arrays, f: float, r: F64, defaults: F64) -> F64:
    """Σ w r rᵀ as if decisions had weighed f, and r (o,) of what was heard of them."""
    n = float(_f64(sums["n"])[0])
    beyond = _f64(sums["B"])[0] - n * defaults  # Σ w r̃
    cross = np.outer(beyond, defaults)
    own = _f64(sums["Y"]) - cross - cross.T - n * np.outer(defaults, defaults)  # Σ w r̃ r̃ᵀ
    cross = np.outer(r * beyond, defaults)
    return np.sqrt(np.outer(r, r)) * own + cross + cross.T + f * n * np.outer(defaults, defaults)


def _f64(array: Any) -> F64:
    return np.asarray(array, np.float64)


def _publish(algorithm: Algorithm, config: Any, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    if "pending_parts" not in sums:  # nothing was ever learned
        return algorithm.publish(config, problem, sums, now, seed)
    own, found = settled(algorithm, problem, sums, now)
    made = algorithm.publish(config, problem, own, now, seed)
    said = {}
    for name, curve in zip(problem.objectives, found, strict=True):
        said[EARLY + name] = float(curve.share(np.array([problem.horizon / 2]))[0])
        said[RESTS_ON + name] = curve.decisions
    return replace(made, diagnostics=made.diagnostics | said)


def _carry(
    algorithm: Algorithm, config: Any, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float
) -> Arrays:
    """Own sums plus what other versions say, the young decisions of each by its own F; one that was not corrected counts in full.

    What is known of delays is carried from versions of the same horizon, so that a change need not wait for it again.
    """
    assert algorithm.carry is not None  # see `corrected`
    level, delays = [], [_heard(own)]
    half_life, index = float(_f64(own["half_life"])[0]), float(delays[0]["index"][0])
    for addend in relevant(problem, addends):
        before, arrays = addend.problem, addend.arrays
        if "pending_parts" in arrays:
            if before.horizon == problem.horizon:
                known = _heard(_mature(arrays, Young.of(arrays, before.horizon, now)))
                known = scaled(known | {"half_life": _f64(arrays["half_life"])}, DELAYS, half_life, index, now)
                delays.append(_matched(known, places(before, problem)))
            arrays = settled(algorithm, before, arrays, now)[0]
        level.append(Addend(before, arrays))
    total = {name: value for name, value in own.items() if not _is_pending(name)}
    summed = {name: np.sum([one[name] for one in delays], axis=0) for name in DELAYS} | {"index": delays[0]["index"]}
    return own | algorithm.carry(config, problem, total, level, now) | _named(summed)


def _matched(heard: Mapping[str, F64], columns: Sequence[int | None]) -> dict[str, F64]:
    """Sums of delays by the objectives of another problem; nothing is known of those that are not there."""
    mass, count = heard["delay_mass"], heard["delay_count"]
    none = np.zeros(BUCKETS)
    return {
        "delay_mass": np.stack([none if at is None else mass[at] for at in columns]),
        "delay_count": np.array([0.0 if at is None else count[at] for at in columns]),
    }
