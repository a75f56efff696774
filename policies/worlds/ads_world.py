"""Ads, audiences and auctions: a world in which who sees an ad is not who could have seen it.

    people    U units of C clusters of taste (not sensitive) and G groups (sensitive), P(g | c) ∝ exp(MIX · N(0, 1)); how often one
              comes is lognormal
    ads       n of them; an audience is 85% of the clusters; log pctr = LOG_CTR + skew · (P(g | c) − mean)·N(0, I_G) + TASTE · N(0, 1): skew is what
              makes delivery depend on groups, though nobody looks at them
    auction   the ad with the largest log(bid · pctr) + N(0, NOISE) + boost among those whose audience the unit is in and whose
              budget lasts; it pays bid · pctr, its value, which is the utility of the impression
    budgets   a day's, `budget` times an even share of what the best ads would be worth; infinite by default

Optimum   the most valuable ad of every cluster, without budgets; `values` and `weights` are what a linear program needs for any
          other (services/studies/fairness.py). Regret is the optimum's utility less that of what was shown.
Switches  delay, loss, duplicates act on impressions on their way to whoever counts (`heard`); drift walks log pctr; turnover
          replaces ads. A second is a request.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.types import F64, I64, Mask
from policies.worlds.switches import Switches, arrivals, drifted, replaced

MIX, LOG_CTR, TASTE, NOISE, AUDIENCE, BIDS = 1.3, -3.0, 0.15, 0.4, 0.85, 0.15


@dataclass(frozen=True, slots=True)
class Shown:
    """Requests (N,): who came, what won (−1: nobody), what could have won (N, n), and the value of what was shown (N,)."""

    units: I64
    ads: I64
    eligible: Mask
    value: F64


class AdsWorld:
    """groups (U,) and clusters (U,) of units; values (C, n), −∞ in log where no audience; spent and budget (n,)."""

    def __init__(
        self,
        seed: int,
        *,
        groups: int = 2,
        ads: int = 40,
        clusters: int = 16,
        units: int = 60_000,
        skew: float = 1.0,
        budget: float = np.inf,
        switches: Switches | None = None,
    ) -> None:
        rng = np.random.default_rng([seed, 31])
        self.switches = switches or Switches()
        mix = np.exp(MIX * rng.standard_normal((clusters, groups)))
        self.mix: F64 = mix / mix.sum(axis=1, keepdims=True)
        self.clusters: I64 = rng.integers(clusters, size=units)
        self.groups: I64 = (rng.random(units)[:, None] > self.mix[self.clusters].cumsum(axis=1)[:, :-1]).sum(axis=1)
        self.number, self.skew = ads, skew
        activity = np.exp(0.5 * rng.standard_normal(units))
        self._come = np.cumsum(activity / activity.sum())
        self.weights: F64 = np.bincount(self.clusters, activity, clusters) / activity.sum()
        self.bids, self.audience, self._log_ctr = self._ads(ads, rng)
        self.spent: F64 = np.zeros(ads)
        best = float(self.weights @ self.values.max(axis=1))
        self.budget = budget * best / ads  # a request; a day's when it is multiplied by a day's requests

    def _ads(self, ads: int, rng: np.random.Generator) -> tuple[F64, Mask, F64]:
        clusters, groups = self.mix.shape
        centred = self.mix - self.mix.mean(axis=0)
        wants = self.skew * centred @ rng.standard_normal((groups, ads)) + TASTE * rng.standard_normal((clusters, ads))
        return np.exp(BIDS * rng.standard_normal(ads)), rng.random((clusters, ads)) < AUDIENCE, LOG_CTR + wants

    @property
    def values(self) -> F64:
        """(C, n) utility of an impression, 0 outside the audience."""
        return np.where(self.audience, self.bids * np.exp(self._log_ctr), 0.0)

    @property
    def optimum(self) -> float:
        """Utility of a request when every cluster sees its most valuable ad."""
        return float(self.weights @ self.values.max(axis=1))

    def arrive(self, requests: int, rng: np.random.Generator) -> I64:
        """Units (N,) that come."""
        return np.minimum(np.searchsorted(self._come, rng.random(requests)), len(self._come) - 1)

    def auction(self, units: I64, rng: np.random.Generator, boosts: F64 | None = None, day: int = 0) -> Shown:
        """Requests of units (N,) under boosts (n, C); `day`: its requests, for budgets. Budgets are looked at before the batch."""
        lasting = self.spent < self.budget * day if day and np.isfinite(self.budget) else np.ones(self.number, bool)
        open_to = self.audience & lasting
        with np.errstate(divide="ignore"):
            scores = np.where(open_to, np.log(np.maximum(self.values, 1e-300)), -np.inf)
        if boosts is not None:
            scores = scores + boosts.T
        of = self.clusters[units]
        noisy = scores[of] + NOISE * rng.standard_normal((len(units), self.number), np.float32)
        ads = np.where(open_to[of].any(axis=1), noisy.argmax(axis=1), -1)
        value = np.where(ads >= 0, self.values[of, ads], 0.0)
        np.add.at(self.spent, ads[ads >= 0], value[ads >= 0])
        return Shown(units, ads, open_to[of], value)

    def heard(self, shown: Shown, rng: np.random.Generator) -> I64:
        """Rows of impressions as whoever counts hears of them: lost, twice, late."""
        return arrivals(self.switches, np.arange(len(shown.units), dtype=np.float64), rng)[0]

    def pass_time(self, requests: int, rng: np.random.Generator, *, new_day: bool = False) -> None:
        """Drift and turnover of as many requests; budgets begin again with a day."""
        self._log_ctr = drifted(self.switches, self._log_ctr, float(requests), rng)
        gone = replaced(self.switches, self.number, float(requests), rng)
        if len(gone):
            bids, audience, wants = self._ads(len(gone), rng)
            self.bids[gone], self.spent[gone] = bids, 0.0
            self.audience[:, gone], self._log_ctr[:, gone] = audience, wants
        if new_day:
            self.spent[:] = 0.0


class AdsEnv:
    """A day of auctions with gymnasium's signatures: an action is a boost (n, C), a step `batch` requests.

    An observation is delivered and eligible counts (n, 2G) so far, as shares; the reward is the batch's utility a request;
    `info` has the regret. `spaces` needs gymnasium, nothing else does.
    """

    def __init__(self, batch: int = 1_000, steps: int = 20, **world: Any) -> None:
        self.batch, self.steps, self._options, self._seed = batch, steps, world, 0
        self.world = AdsWorld(0, **world)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[F64, dict[str, Any]]:
        self._seed = self._seed + 1 if seed is None else seed
        self.world = AdsWorld(self._seed, **self._options)
        self._rng, self._done = np.random.default_rng([self._seed, 5]), 0
        self._counts = np.zeros((2, self.world.number, self.world.mix.shape[1]))
        return self._observation(), {}

    def step(self, action: F64) -> tuple[F64, float, bool, bool, dict[str, Any]]:
        world, rng = self.world, self._rng
        shown = world.auction(world.arrive(self.batch, rng), rng, np.asarray(action), self.batch * self.steps)
        delivered, eligible = true_counts(world, shown)
        self._counts += [delivered, eligible]
        world.pass_time(self.batch, rng)
        self._done += 1
        utility = float(shown.value.mean())
        return self._observation(), utility, False, self._done >= self.steps, {"regret": world.optimum - utility}

    @property
    def spaces(self) -> tuple[Any, Any]:
        """(observation, action) as gymnasium has them."""
        from gymnasium import spaces

        n, (clusters, groups) = self.world.number, self.world.mix.shape
        return spaces.Box(0.0, 1.0, (n, 2 * groups), np.float64), spaces.Box(-4.0, 4.0, (n, clusters), np.float64)

    def _observation(self) -> F64:
        totals = np.maximum(self._counts.sum(axis=2, keepdims=True), 1.0)
        return np.concatenate(list(self._counts / totals), axis=1)


def true_counts(world: AdsWorld, shown: Shown) -> tuple[F64, F64]:
    """(delivered, eligible) (n, G): what nobody but the world and an aggregator may know."""
    groups = world.groups[shown.units]
    delivered, eligible = np.zeros((2, world.number, world.mix.shape[1]))
    won = shown.ads >= 0
    np.add.at(delivered, (shown.ads[won], groups[won]), 1.0)
    for group in range(eligible.shape[1]):
        eligible[:, group] = shown.eligible[groups == group].sum(axis=0)
    return delivered, eligible
