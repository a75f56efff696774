"""Impression variance: who sees an item against who could have, without anybody learning who anybody is.

    distance_i   ½ Σ_g |delivered_ig / Σ delivered_i − eligible_ig / Σ eligible_i|, g over a sensitive attribute of people
    counts       of one request: one delivered (the item shown), one eligible (an item drawn evenly from those that could have been
                 shown), one of the unit's summary: three; a unit adds at most C counts in a window
    release      every count of the window + Laplace(C / ε_release); post-processed freely, added up over windows
    ledger       a unit that contributes to a release pays ε_release, and contributes to none that would take it over ε_total a day
    boost_is     gain · Σ_g err_ig (P(g|s) / P(g) − 1), clipped, in units of the scores; err is eligible − delivered, shrunk by
                 the noise of its shares; s is a summary of the unit that is not sensitive, such as a cluster of tastes

The attribute enters `Aggregator` and does not leave it: what is released are noisy sums, and a boost is a function of the item
and the summary alone, the same for all people of a summary. It is no feature of any model.

Controller   gain = exp(θ₀ + θ₁ log age) with age in releases, shrink = exp(θ₂), leaky boosts; θ is learned by antithetic evolution
             strategies on worlds: reward = reduction of the mean distance − cost · utility lost
Sources      Timmaraju et al., arXiv 2306.03293 (VRS); Dwork et al., TCC 2006 (Laplace); Feldman & Zrnic, NeurIPS 2021 (ledgers of
             units); Salimans et al., arXiv 1703.03864 (evolution strategies)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from policies.errors import Rejected
from policies.reranking.acting import Acting, spread
from policies.types import F32, F64, I64

SOURCE = "impression_variance"  # of boosts, in explanations, records and metrics
COUNTS_A_REQUEST = 3
STRONGEST = 4.0  # of a boost, in units of the scores


@dataclass(frozen=True, slots=True)
class Privacy:
    """counts C of a unit in a window; ε of one release and of all releases of a day. Raises Rejected naming the field."""

    counts: int = 6
    release: float = 0.5
    total: float = 4.0

    def __post_init__(self) -> None:
        if self.counts < COUNTS_A_REQUEST:
            raise Rejected(f"Expected at least {COUNTS_A_REQUEST}, a request's, got {self.counts}", at="$.counts")
        if not (0 < self.release < np.inf and self.release <= self.total < np.inf):
            raise Rejected(f"Expected 0 < release ≤ total, got {self.release} and {self.total}", at="$.release")

    @property
    def scale(self) -> float:
        """Of the Laplace noise on every released count."""
        return self.counts / self.release


@dataclass(frozen=True, slots=True)
class Released:
    """Noisy sums, over one window or many: delivered (n, G), eligible (n, G) by item, summaries (S, G). `releases` added up."""

    delivered: F64
    eligible: F64
    summaries: F64
    releases: int = 1

    def __add__(self, other: "Released") -> "Released":
        return Released(
            self.delivered + other.delivered,
            self.eligible + other.eligible,
            self.summaries + other.summaries,
            self.releases + other.releases,
        )


class Aggregator:
    """Knows the attribute of every unit, (U,) of 0…G−1, and tells noisy sums of it. Nothing else can be asked or printed."""

    def __init__(self, attribute: I64, groups: int, items: int, summaries: int, privacy: Privacy) -> None:
        if len(attribute) and not 0 <= attribute.min() <= attribute.max() < groups:
            raise Rejected(f"Expected values from 0 to {groups - 1}", at="$.attribute")
        self.__attribute, self._groups = attribute, groups
        self._shape, self.privacy = (items, items, summaries), privacy
        self._spent = np.zeros(len(attribute))
        self.left_out = 0  # requests over a unit's counts or its ledger
        self._begin()

    def __repr__(self) -> str:
        return f"Aggregator({len(self._spent)} units, {self._groups} groups)"

    def __reduce__(self) -> str:
        raise TypeError("an aggregator is not written down")

    def _begin(self) -> None:
        self.__sums = [np.zeros((rows, self._groups)) for rows in self._shape]
        self._counted = np.zeros(len(self._spent), np.int64)

    def add(self, units: I64, delivered: I64, eligible: I64, summaries: I64) -> None:
        """Requests (N,): the item shown (−1: none), one that could have been, the unit's summary."""
        affords = self._spent[units] + self.privacy.release <= self.privacy.total + 1e-9
        order = np.argsort(units, kind="stable")
        ranks = np.empty(len(units), np.int64)  # how many requests of the unit came before, here
        first = np.r_[True, units[order][1:] != units[order][:-1]] if len(units) else np.zeros(0, bool)
        starts = np.maximum.accumulate(np.where(first, np.arange(len(units)), 0))
        ranks[order] = np.arange(len(units)) - starts
        fits = (self._counted[units] + ranks + 1) * COUNTS_A_REQUEST <= self.privacy.counts
        keep = affords & fits
        self.left_out += int((~keep).sum())
        np.add.at(self._counted, units[keep], 1)
        kinds = self.__attribute[units]
        for sums, rows in zip(self.__sums, (delivered, eligible, summaries), strict=True):
            mine = keep & (rows >= 0)
            np.add.at(sums, (rows[mine], kinds[mine]), 1.0)

    def release(self, rng: np.random.Generator) -> Released:
        """The window's noisy sums; the next window begins, and those who contributed have paid."""
        self._spent[self._counted > 0] += self.privacy.release
        delivered, eligible, summaries = (s + rng.laplace(0.0, self.privacy.scale, s.shape) for s in self.__sums)
        self._begin()
        return Released(delivered, eligible, summaries)

    def new_day(self) -> None:
        self._spent[:] = 0.0


def distances(delivered: F64, eligible: F64) -> F64:
    """(n,) shuffle distance of counts (n, G) ≥ 0; nan where there are none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        d = delivered / delivered.sum(axis=1, keepdims=True)
        e = eligible / eligible.sum(axis=1, keepdims=True)
    return np.asarray(0.5 * np.abs(d - e).sum(axis=1))


def shares(counts: F64) -> tuple[F64, F64]:
    """(shares (n, G), total (n, 1)) of noisy counts, which may be negative."""
    whole = np.maximum(counts, 0.0)
    total = np.maximum(whole.sum(axis=1, keepdims=True), 1.0)
    return whole / total, total


@dataclass(frozen=True, slots=True)
class Controller:
    """θ (3,) = log gain, its growth with log age, log shrink. See the module; `start` is a reasonable one."""

    theta: F64 = field(default_factory=lambda: np.array([1.5, 0.0, 0.0]))

    def boosts(self, told: Released, privacy: Privacy, before: F64 | None = None) -> F64:
        """(n, S) in units of the scores, of noisy sums since the beginning. `before`: those in force, half of which stay."""
        (d, many), (e, could) = shares(told.delivered), shares(told.eligible)
        noise = privacy.scale * np.sqrt(2.0 * told.releases)
        spread = noise * np.hypot(1.0 / many, 1.0 / could) * np.exp(np.clip(self.theta[2], -5, 5))
        wrong = e - d
        sure = np.sign(wrong) * np.maximum(np.abs(wrong) - spread, 0.0)
        mix, _ = shares(told.summaries)
        overall, _ = shares(told.summaries.sum(axis=0, keepdims=True))
        lift = mix / np.maximum(overall, 1e-3) - 1.0  # (S, G)
        gain = np.exp(np.clip(self.theta[0] + self.theta[1] * np.log(told.releases), -5, 5))
        found = np.clip(gain * sure @ lift.T, -STRONGEST, STRONGEST)
        return found if before is None else np.asarray(0.5 * before + 0.5 * found)


@dataclass(frozen=True, slots=True)
class Lifts:
    """Boosts of one request's candidates, (n,) in interquartile ranges of its scores: those of its summary, whoever asks."""

    boosts: F64

    def acting(self, scores: F32) -> Acting:
        """As it acts on scores (n, m)."""
        return Acting(boosts={SOURCE: self.boosts * spread(scores)}) if self.boosts.any() else Acting()


def learned(
    reward: Callable[[Controller, int], float],
    *,
    rounds: int,
    pairs: int,
    seed: int,
    step: float = 0.5,
    sigma: float = 0.4,
) -> tuple[Controller, list[float]]:
    """(controller, mean reward of each round) by antithetic evolution strategies; `reward(controller, world)` is asked with
    the same world for both sides of a pair. Deterministic in the seed."""
    rng, theta, told = np.random.default_rng(seed), Controller().theta.copy(), []
    for number in range(rounds):
        slope, rewards = np.zeros(len(theta)), []
        for pair in range(pairs):
            away = rng.standard_normal(len(theta))
            one, other = (reward(Controller(theta + sign * sigma * away), number * pairs + pair) for sign in (1, -1))
            slope += (one - other) * away
            rewards += [one, other]
        told.append(float(np.mean(rewards)))
        length = float(np.linalg.norm(slope))
        theta = theta + step * slope / length * 0.9**number if length else theta
    return Controller(theta), told
