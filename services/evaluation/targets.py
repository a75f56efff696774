"""Whose value is wanted: a target says, for a logged decision, how likely it would have drawn what at each slot.

uniform        every candidate that was left equally likely
greedy         the item the logged policy held best, always; where the log says which that was
logged         the policy of the log itself: its value is the mean reward
bernoulli_ts   Zozotown's Thompson sampler before it learned from the log (Open Bandit Dataset only), `bernoulli`
a bundle, or a policy fitted on the earlier part of the log: its own scores, through the draw of `policies.slate`
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from msgspec import structs

from policies.errors import Rejected
from policies.evaluation.conditionals import conditionals, mixed
from policies.features import Encoder
from policies.slate import draw
from policies.types import F32, F64, Arrays, DrawSettings, Slate
from services.evaluation.decisions import LoggedDecision
from services.scoring.decide import Served, inputs_of
from services.scoring.goals import NEUTRAL, chances, one_hot
from services.scoring.query import Query

HISTORY = frozenset({"history", "history_rows"})
# inputs of graphs that a log answers
KNOWN = HISTORY | {
    "context",
    "items",
    "item_rows",
    "item_keys",
    "group_rows",
    "weights",
    "goal",
}
EVEN = DrawSettings(floor=0.0)
NO_GAP = 1e-300  # temperature at which only the largest means are drawn
SURE = DrawSettings(head="softmax", floor=0.0, temperature=NO_GAP)


@dataclass(frozen=True, slots=True)
class Law:
    """What one policy draws the slate of a decision by: scores (n, m), settings, and the decision with what acts on the draw.

    others  what acts is not what the log was drawn under, and may forbid what was logged
    """

    scores: F32
    settings: DrawSettings
    decision: LoggedDecision
    others: bool = False

    def along(self) -> F64:
        """(k, n) at each slot given the logged slots before. Raises ValueError for a slate that it cannot have drawn."""
        one = self.decision
        return conditionals(
            self.scores,
            one.slots.tolist(),
            one.rows.tolist(),
            self.settings,
            boosts=one.boosts,
            masks=one.masks,
            pins=one.pins,
            within=one.within,
            asked=one.asked,
            others=self.others,
        )

    def slates(self, uniforms: F64) -> Iterator[Slate]:
        """Slates drawn anew with full distributions, one a row of `uniforms` (M, asked)."""
        one, width = self.decision, uniforms.shape[1]
        acted: dict[str, Any] = {"boosts": one.boosts, "masks": one.masks, "pins": one.pins, "within": one.within}
        for u in uniforms:
            yield draw(self.scores, width, u, self.settings, full=True, **acted)


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

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        """What it draws whole slates by, `logged` being what the logged one was drawn by. Raises Rejected."""


def unknown(reason: str, message: str) -> Rejected:
    return Rejected(message, at="--policy", code=reason)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a reader must know of a target before it reads; see `Target`."""

    name: str
    encoder: Encoder | None = None
    follows: bool = False
    remembers: bool = False


@dataclass(frozen=True, kw_only=True)
class Uniform(Traits):
    """Masks and constraints hold for it too; boosts and diversity do not make it prefer anything."""

    name: str = "uniform"
    follows: bool = True

    def conditionals(self, decision: LoggedDecision) -> F64:
        return self.law(decision, None).along()

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        within = decision.within
        if within is not None:
            within = structs.replace(within, weights=np.zeros_like(within.weights))
        alone = replace(decision, boosts=None, within=within)
        return Law(np.zeros((len(decision.candidates), 1), np.float32), EVEN, alone)


@dataclass(frozen=True, kw_only=True)
class Greedy(Traits):
    """The logged bundle without its exploration: one item is certain at each slot; several equally good ones share it."""

    name: str = "greedy"

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

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        return replace(_known(logged), settings=SURE)


@dataclass(frozen=True, kw_only=True)
class Behaviour(Traits):
    """The logged policy itself; where its distributions are not in the log, only the drawn item's probability is known."""

    name: str = "logged"

    def conditionals(self, decision: LoggedDecision) -> F64:
        if decision.distributions is not None:
            return decision.distributions
        out = np.full((len(decision.rows), len(decision.candidates)), np.nan)
        out[np.arange(len(decision.rows)), decision.rows] = decision.propensities
        return out

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        return _known(logged)


@dataclass(frozen=True, kw_only=True)
class Positions(Traits):
    """A distribution for each position, whoever is asked: (n items, positions)."""

    items: tuple[str, ...]
    distribution: F64

    def conditionals(self, decision: LoggedDecision) -> F64:
        if tuple(decision.candidates) != self.items:
            raise unknown(
                "other_candidates", f"{self.name} is a distribution over the {len(self.items)} items of its campaign"
            )
        return np.asarray(self.distribution[:, decision.slots].T, np.float64)

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        raise unknown("positions_only", f"{self.name} says each position's distribution, and draws no slates")


@dataclass(frozen=True, kw_only=True)
class Scored(Traits):
    """What scoring serves, asked once more about a decision that was made by another policy."""

    served: Served
    follows: bool = True

    def conditionals(self, decision: LoggedDecision) -> F64:
        """With goals: as if one were drawn for this decision alone."""
        if not self.served.goals:
            return self.under(decision, NEUTRAL).along()
        goals = self.goals(decision)
        return mixed([*goals.values()], [self.under(decision, goal).along() for goal in goals], decision.rows.tolist())

    def law(self, decision: LoggedDecision, logged: Law | None) -> Law:
        if self.served.goals:
            raise unknown("draws_goals", f"{self.name} draws slates by the goal of a session, which is not replayed")
        return self.under(decision, NEUTRAL)

    def under(self, decision: LoggedDecision, goal: int) -> Law:
        """What it draws by under a goal; of policies without goals it reads none."""
        inputs = self._inputs(decision)
        if self.served.goals:
            inputs["goal"] = one_hot(goal, self.served.goals)
        return Law(self.served.scores(inputs), self.served.settings, decision)

    def goals(self, decision: LoggedDecision) -> dict[int, float]:
        """Goal → its chance, were it drawn now."""
        return chances(self.served.manager, self._inputs(decision), self.served.settings.floor)

    def _inputs(self, decision: LoggedDecision) -> Arrays:
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


def _known(logged: Law | None) -> Law:
    if logged is None:
        raise unknown("logged_unknown", "What the logged slate was drawn by is not known")
    return logged


def check_inputs(name: str, inputs: tuple[str, ...]) -> None:
    """Raises Rejected for a graph that asks for what a logged decision cannot answer."""
    missing = sorted(set(inputs) - KNOWN)
    if missing:
        raise Rejected(
            f"{name} reads {', '.join(missing)}, which a logged decision does not hold",
            at="--policy",
            code="unknown_input",
        )
