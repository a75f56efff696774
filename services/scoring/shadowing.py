"""The candidate of a release, drawn beside the policy that answers: its conditional propensities of the logged slate.

By the draw itself, with the logged slots before as its prefix (`policies.evaluation.conditionals`), under the rules that
acted on the request; of a candidate with goals as if it drew one for this decision alone. What it says goes into the record of the decision that was answered; it never answers, and nothing that
goes wrong with it reaches a caller.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np

from policies.errors import Corrupt, Rejected
from policies.evaluation.conditionals import conditionals, mixed
from policies.evaluation.logged import design
from policies.reranking.acting import Ready
from policies.slate import uniforms
from policies.types import F32, F64
from services.scoring.decide import Drawn, Served, capped, inputs_of
from services.scoring.goals import chances, one_hot
from services.scoring.query import Query
from streaming.events import Shadow

log = logging.getLogger("slatewise.scoring")


@dataclass(frozen=True, slots=True)
class Shadowing:
    """`rate`: share of decisions, by a uniform of their own, on which `served` is drawn beside what answers."""

    served: Served
    rate: float

    def chosen(self, decision_id: str, key: bytes) -> bool:
        return float(uniforms(key, decision_id, "shadow", 1)[0]) < self.rate

    def draw(self, query: Query, drawn: Drawn) -> tuple[list[Shadow], str]:
        """(what the record says, how it went). `drawn` with full distributions."""
        try:
            return [shadow_of(self.served, query, drawn)], "drawn"
        except Rejected as error:  # the request weighs what this policy does not
            return [], error.code
        except Corrupt as error:
            log.error("shadow_failed", extra={"policy": self.served.policy, "error": str(error)})
            return [], error.reason
        except Exception:  # whatever a graph can raise: the answer stands
            log.exception("shadow_failed", extra={"policy": self.served.policy})
            return [], "error"


def shadow_of(served: Served, query: Query, drawn: Drawn) -> Shadow:
    """Raises Rejected, Corrupt('nan_scores' | 'impossible')."""
    if query.shortlist is not None:
        raise Rejected(
            "The shortlist was made by other scores: this policy would have drawn from another", code="shortlist"
        )
    slate = drawn.slate
    assert slate.distributions is not None  # whoever wants a shadow draws in full
    own = propensities(served, query, drawn)
    rows = np.arange(len(own))
    spread = design(slate.distributions, own)
    return Shadow(
        policy=served.policy,
        bundle=served.bundle,
        propensities=own[rows, slate.items].tolist(),
        design=[one if np.isfinite(one) else None for one in spread.tolist()],
        overlap=float(np.minimum(own, slate.distributions).sum(axis=1).mean()) if len(own) else 0.0,
    )


def propensities(served: Served, query: Query, drawn: Drawn) -> F64:
    """(k', n) of a policy along a slate that another one drew; with goals, their mean over its manager's. Raises as `shadow_of`."""
    inputs = inputs_of(served, query)
    if not served.goals:
        return _along(served, served.scores(inputs), query, drawn)
    likely = chances(served.manager, inputs, served.settings.floor)
    parts = [
        _along(served, served.scores({**inputs, "goal": one_hot(goal, served.goals)}), query, drawn) for goal in likely
    ]
    return mixed([*likely.values()], parts, drawn.slate.items.tolist())


def _along(served: Served, scores: F32, query: Query, drawn: Drawn) -> F64:
    settings, ready, ruled = served.settings, Ready(), query.ruled
    if ruled is not None:
        if ruled.max_share is not None:
            settings = capped(settings, ruled.max_share)
        ready = ruled.on(scores).ready(len(query.ids), query.slots)
    if drawn.cap is not None:  # raised by the same lease, had it been drawn from
        settings = replace(settings, max_share=drawn.settings.max_share)
    slate = drawn.slate
    try:
        return conditionals(
            scores,
            slate.slots.tolist(),
            slate.items.tolist(),
            settings,
            pins=query.pins,
            asked=query.slots,
            **ready.arguments,
        )
    except ValueError as error:  # its rules forbid what was drawn
        raise Corrupt("impossible", str(error)) from None
