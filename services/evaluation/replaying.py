"""Marginals of a log's slates: each decision is drawn again, a few thousand times, by the bundle that drew it and by the target.

Both draw with the same uniforms, so that a target which is the logged policy weighs 1. A decision is set aside, and counted, where

    bundle_gone, bundle_refused, policy_gone   nothing in the data folder says what drew it
    other_schema    its bundle reads other columns than the log was encoded to for the target
    not_replayed    the bundle does not draw with the logged propensities what was logged
    uneven_slates   replayed slates do not fill the slots of the logged one
    draws_goals     the target draws slates by the goals of sessions
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from policies.evaluation.marginals import Marginals, Replay, replayed
from policies.features import Encoder
from policies.slate import uniforms
from policies.types import F64
from services.evaluation.decisions import LoggedDecision
from services.evaluation.targets import Law, Scored, Target, unknown

TOLERANCE = 1e-6  # of a probability drawn again on another machine (semantics.md 21)
PAIRED = "pseudo_inverse"
NEEDING = ("iips", PAIRED)


@dataclass(frozen=True)
class Replaying:
    """`drew`: the policy that a decision was drawn from, see `bundled`; `encoder`: what the log was encoded by; `paired`: whether
    pseudo_inverse is wanted, whose pairs of slots cost most."""

    drew: Callable[[LoggedDecision], Scored]
    encoder: Encoder | None
    replays: int
    seed: int = 0
    paired: bool = True

    def marginals(self, decision: LoggedDecision, target: Target) -> Marginals:
        """Of one decision, as N = 1. Raises Rejected, whose code is the reason."""
        logged = self.logged(decision)
        width = decision.asked or int(decision.slots[-1]) + 1
        u = uniforms(f"evaluate {self.seed}".encode(), decision.decision_id, "replay", self.replays * width)
        u = u.reshape(self.replays, width)
        laws = logged, target.law(decision, logged)
        behaviour, other = (Replay.of(law.slates(u), decision.slots) for law in laws)
        return replayed(decision.rows, behaviour, other, self.paired)

    def logged(self, decision: LoggedDecision) -> Law:
        """What the decision was drawn by, found to be it: it gives the logged propensities. Raises Rejected."""
        policy = self.drew(decision)
        if self.encoder is None or policy.encoder is None or policy.encoder.schema != self.encoder.schema:
            raise unknown("other_schema", f"{policy.name} reads other columns than the log was encoded to")
        law = policy.under(decision, -1 if decision.goal is None else decision.goal.id)
        if decision.settings is not None:  # an experiment's arm may change the bundle's own
            law = replace(law, settings=decision.settings)
        found = law.along()
        told: F64 = found[np.arange(len(decision.rows)), decision.rows]
        off = np.abs(told - decision.propensities).max(initial=0.0)
        if decision.distributions is not None:
            off = max(off, np.abs(found - decision.distributions).max(initial=0.0))
        if off > TOLERANCE:
            raise unknown("not_replayed", f"{policy.name} draws what was logged with a chance that is {off:.2g} off")
        return law
