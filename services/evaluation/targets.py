"""Whose value is wanted: a target says, for a logged decision, how likely it would have drawn what at each slot.

uniform        every candidate that was left equally likely
greedy         the item the logged policy held best, always; where the log says which that was
logged         the policy of the log itself: its value is the mean reward
bernoulli_ts   Zozotown's Thompson sampler before it learned from the log (Open Bandit Dataset only), `bernoulli`
a bundle, or a policy fitted on the earlier part of the log: its own scores, through the draw of `policies.slate`
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from policies.errors import Rejected
from policies.evaluation.conditionals import conditionals
from policies.features import Encoder
from policies.types import F32, F64, DrawSettings
from services.evaluation.decisions import LoggedDecision
from services.scoring.decide import Served, inputs_of
from services.scoring.query import Query

HISTORY = frozenset({"history", "history_rows"})
KNOWN = HISTORY | {
    "context",
    "items",
    "item_rows",
    "item_keys",
    "group_rows",
    "weights",
}  # inputs of graphs that a log answers
EVEN = DrawSettings(floor=0.0)


class Target(Protocol):
    """`encoder` None: it reads no features. `follows`: it draws under whatever acted on the logged draw, which must be known.
    `remembers`: it reads what the unit did before."""

    @property
    def name(self) -> str: ...

    @property
    def encoder(self) -> Encoder | None: ...

    @property
    def follows(self) -> bool: ...

    @property
    def remembers(self) -> bool: ...

    def conditionals(self, decision: LoggedDecision) -> F64:
        """(k, n) its distribution at each slot given the logged slots before. Raises Rejected, whose code is the reason."""


def unknown(reason: str, message: str) -> Rejected:
    return Rejected(message, at="--policy", code=reason)


@dataclass(frozen=True)
class Uniform:
    """Masks and constraints hold for it too; boosts and diversity do not make it prefer anything."""

    name: str = "uniform"
    encoder: Encoder | None = None
    follows: bool = True
    remembers: bool = False

    def conditionals(self, decision: LoggedDecision) -> F64:
        within = decision.within
        if within is not None:
            within = replace(within, weights=np.zeros_like(within.weights))
        alone = replace(decision, boosts=None, within=within)
        return forced(np.zeros((len(decision.candidates), 1), np.float32), alone, EVEN)


@dataclass(frozen=True)
class Greedy:
    """The logged bundle without its exploration: one item is certain at each slot; several equally good ones share it."""

    name: str = "greedy"
    encoder: Encoder | None = None
    follows: bool = False
    remembers: bool = False

    def conditionals(self, decision: LoggedDecision) -> F64:
        k, n = len(decision.rows), len(decision.candidates)
        out = np.zeros((k, n))
        if decision.greedy is not None:
            out[np.arange(k), decision.greedy] = 1.0
            return out
        full = decision.distributions
        if full is None:
            raise unknown("greedy_unknown", "The log does not say which item its policy held best")
        best = full >= full.max(axis=1, keepdims=True) * (1 - 1e-9)
        return np.asarray(best / best.sum(axis=1, keepdims=True), np.float64)


@dataclass(frozen=True)
class Behaviour:
    """The logged policy itself; where its distributions are not in the log, only the drawn item's probability is known."""

    name: str = "logged"
    encoder: Encoder | None = None
    follows: bool = False
    remembers: bool = False

    def conditionals(self, decision: LoggedDecision) -> F64:
        if decision.distributions is not None:
            return decision.distributions
        out = np.full((len(decision.rows), len(decision.candidates)), np.nan)
        out[np.arange(len(decision.rows)), decision.rows] = decision.propensities
        return out


@dataclass(frozen=True)
class Positions:
    """A distribution for each position, whoever is asked: (n items, positions)."""

    name: str
    items: tuple[str, ...]
    distribution: F64
    encoder: Encoder | None = None
    follows: bool = False
    remembers: bool = False

    def conditionals(self, decision: LoggedDecision) -> F64:
        if tuple(decision.candidates) != self.items:
            raise unknown(
                "other_candidates", f"{self.name} is a distribution over the {len(self.items)} items of its campaign"
            )
        return np.asarray(self.distribution[:, decision.slots].T, np.float64)


@dataclass(frozen=True)
class Scored:
    """What scoring serves, asked once more about a decision that was made by another policy."""

    name: str
    served: Served
    encoder: Encoder
    follows: bool = True
    remembers: bool = False

    def conditionals(self, decision: LoggedDecision) -> F64:
        return forced(self.served.scores(self._inputs(decision)), decision, self.served.settings)

    def _inputs(self, decision: LoggedDecision) -> Mapping[str, Any]:
        """Those of a request that asks for this decision."""
        items = decision.matrix
        if items is None or decision.context is None:
            raise unknown(
                "features_unknown", "The log has only the ids of the candidates, and this target reads features"
            )
        ids, past = decision.candidates, decision.past
        query = Query(ids, items, decision.context, len(decision.rows), False, None, None, decision.history, past)
        inputs = inputs_of(self.served, query)
        asked = decision.weights
        if self.served.weights is not None and asked and list(asked) == list(self.served.signs):
            inputs["weights"] = np.array(list(asked.values()), np.float32)  # as the request weighed its objectives
        return inputs


def forced(scores: F32, decision: LoggedDecision, settings: DrawSettings) -> F64:
    """Conditionals of scores along a logged slate, under whatever acted on the logged draw."""
    return conditionals(
        scores,
        decision.slots.tolist(),
        decision.rows.tolist(),
        settings,
        boosts=decision.boosts,
        masks=decision.masks,
        pins=decision.pins,
        within=decision.within,
        asked=decision.asked,
    )


def check_inputs(name: str, inputs: tuple[str, ...]) -> None:
    """Raises Rejected for a graph that asks for what a logged decision cannot answer."""
    missing = sorted(set(inputs) - KNOWN)
    if missing:
        raise Rejected(
            f"{name} reads {', '.join(missing)}, which a logged decision does not hold",
            at="--policy",
            code="unknown_input",
        )
