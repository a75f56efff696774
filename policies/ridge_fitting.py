"""What algorithms on ridge sums share: their options, their learner, and the model at a publish.

g = 2^(index − now/H),  the model of `policies.ridge_posterior` on gS, gB, gY, gn
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from policies import forgetting, ridge_carrying
from policies.algorithm import Addend, Config, Problem, Published
from policies.errors import Corrupt
from policies.linear_graph import arrays_of, chosen, weights_of
from policies.ridge import RidgeLearner, Sums, columns, effects, empty, sums_of
from policies.ridge_posterior import GRID, Posterior, correlation
from policies.types import F64, Arrays


class RidgeOptions(Config, frozen=True):
    """Options.

    half_life  duration after which an example counts half, by the time of its decision; nothing is forgotten by default
    prior      λ when it is to be fixed instead of inferred
    """

    half_life: str | float | None = None
    prior: Annotated[float, Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        forgetting.half_life_seconds(self.half_life)

    @property
    def grid(self) -> F64:
        """Values that λ may have."""
        return GRID if self.prior is None else np.array([self.prior])


def learner(config: RidgeOptions, problem: Problem) -> RidgeLearner:
    return RidgeLearner(problem, forgetting.half_life_seconds(config.half_life))


def carry(config: RidgeOptions, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    return ridge_carrying.carry(problem, own, addends, now)


@dataclass(frozen=True, slots=True)
class Fit:
    """The model at a publish.

    posterior, shares (l,)  of the objectives the policy weighs; weights (o,) their default weights
    mean (o, D)             Θ averaged over λ
    examples                Σ w as it counts now;   g  what the sums were multiplied with for that
    """

    problem: Problem
    posterior: Posterior
    shares: F64
    weights: F64
    mean: F64
    examples: float
    g: float
    rho: float

    @property
    def sigma(self) -> float:
        """Of the weighted reward's noise."""
        return float(np.sqrt(self.shares @ self.posterior.variance(self.weights)))

    @property
    def slot_weight(self) -> float:
        """1/(1+(k−1)ρ̂)."""
        return 1 / (1 + (self.problem.slots - 1) * self.rho)

    def published(self, theta: F64, temperature: float | None = None, **diagnostics: float) -> Published:
        """θ (o, D, m) in the arrays of `policies.linear_graph`, with the numbers every ridge model reports."""
        known = {
            "sigma": self.sigma,
            "examples": self.examples,
            "rho": self.rho,
            "prior": float(np.exp2(self.shares @ np.log2(self.posterior.grid))),
        }
        return Published(arrays_of(self.problem, theta), self.slot_weight, known | diagnostics, temperature)


def fit(config: RidgeOptions, problem: Problem, sums: Arrays, now: float) -> Fit:
    """The model of the sums at `now`. Raises Corrupt('nonfinite')."""
    names, half_life = columns(problem), forgetting.half_life_seconds(config.half_life)
    held = sums_of(sums) if sums else empty(len(names), len(problem.objectives), half_life)
    g = discount(held, half_life, now)
    S, B, Y, n = (g * held[name] for name in ("S", "B", "Y", "n"))
    if not all(np.isfinite(s).all() for s in (S, B, Y, n)):
        raise Corrupt("nonfinite", "the sums are not finite")
    own, weights = chosen(problem), weights_of(problem)
    beta = np.diag([(span / 2) ** 2 for span in spans(problem)])
    posterior = Posterior(S, B[:, own], Y[np.ix_(own, own)], float(n[0]), effects(names), beta, config.grid)
    shares = posterior.shares(weights)
    mean = posterior.mean(shares)
    rho = correlation(weights @ mean, weights, own, held, problem.slots)
    return Fit(problem, posterior, shares, weights, mean, float(n[0]), g, rho)


def discount(sums: Sums, half_life: float, now: float) -> float:
    """What an example of the sums' own reference time counts at `now`."""
    return float(np.exp2(float(sums["index"][0]) - now / half_life))


def spans(problem: Problem) -> list[float]:
    """high − low of the range of each objective the policy weighs; 1 where it has none."""
    every = [1.0 if o.range is None else o.range[1] - o.range[0] for o in problem.objectives.values()]
    return [every[i] for i in chosen(problem)]
