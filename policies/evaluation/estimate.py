"""What an estimator says: a sum of ratios of means, so that every interval can be made from it, and where it comes from.

    V̂ = Σ_j mean(a_j) / mean(b_j),    influence of decision i on V̂:  Σ_j (a_ij − v_j b_ij) / mean(b_j),  v_j = mean(a_j)/mean(b_j)

Plain averages have b = 1, self-normalised ones b = w. The influences have mean 0; `contributions` are V̂ plus them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from policies.errors import Rejected
from policies.evaluation.logged import Logged, checked
from policies.types import F64, I64

Weighting = Literal["none", "slot", "prefix", "slate", "marginal"]
Needs = Literal["model", "features", "marginals"]


class Ratio(NamedTuple):
    """mean(numerator) / mean(denominator), both (N,)."""

    numerator: F64
    denominator: F64

    @property
    def value(self) -> float:
        return float(self.numerator.mean() / self.denominator.mean())


@dataclass(frozen=True, slots=True)
class Estimate:
    """The target's mean reward of a whole decision (the sum over its slots), unless the estimator says otherwise.

    parts               as the module says; all of N decisions (or trajectories)
    units (N,)          whom each was for: what intervals are clustered by
    details             what else must be said: cap and its bias, decisions without a model, decisions without support …
    monte_carlo_error   standard error from replayed slates alone; 0 where nothing was replayed
    """

    estimator: str
    parts: tuple[Ratio, ...]
    units: I64
    details: Mapping[str, float] = field(default_factory=dict)
    monte_carlo_error: float = 0.0

    @property
    def value(self) -> float:
        return sum(part.value for part in self.parts)

    @property
    def contributions(self) -> F64:
        """(N,), with mean `value`: exact for plain averages, to first order for ratios."""
        influence = np.zeros(len(self.units))
        for a, b in self.parts:
            influence += (a - b * (a.mean() / b.mean())) / b.mean()
        return np.asarray(self.value + influence, np.float64)


def mean_of(values: F64) -> Ratio:
    """The plain average."""
    return Ratio(values, np.ones(len(values)))


@dataclass(frozen=True, slots=True)
class Estimator:
    """One line of the registry.

    weighting   which product of π/β it rests on: its effective sample size is that of these weights
    unbiased    whether its expectation is the target's value under the assumption, at every N
    options     what may be given by name, with the defaults
    """

    name: str
    function: Callable[..., Estimate]
    assumption: str
    formula: str
    source: str
    weighting: Weighting = "slot"
    needs: tuple[Needs, ...] = ()
    unbiased: bool = False
    options: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, logged: Logged, **options: float) -> Estimate:
        """Raises Rejected for bad input, for a missing one, and for an option it has not or that is not above 0."""
        given = chosen(self.name, self.options, options)
        for name in self.needs:
            at = "predicted" if name == "model" else name
            if getattr(logged, at) is None:
                raise Rejected(f"{self.name} needs {name}", at=f"$.{at}", code=f"no_{name}")
        found = self.function(checked(logged), **given)
        if logged.design is None:
            return found
        unsupported = float(np.isinf(logged.design).any(axis=1).sum())
        return replace(found, details={**found.details, "unsupported": unsupported}) if unsupported else found


def chosen(name: str, defaults: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Options as given, else the defaults. Raises Rejected for one that is not there, and one not above 0 and finite."""
    for option, value in given.items():
        if option not in defaults:
            raise Rejected(f"{name} has no option {option!r}", at=f"$.{option}", code="unknown_option")
        if not 0 < value < np.inf:
            raise Rejected("Must be above 0 and finite", at=f"$.{option}", code="bad_option")
    return {**defaults, **given}


def supported(denominator: F64) -> F64:
    """Weights to normalise by. Raises Rejected when none is above 0: the target shows nothing that was logged."""
    if not denominator.any():
        raise Rejected("No logged item has a chance under the target", at="$.target", code="no_support")
    return denominator
