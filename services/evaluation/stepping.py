"""A target along an episode that another policy made: for each step how likely it would have done what was done.

A step is a decision. Its weight is the product of π/β over its slots, each given the slots before it, times the ratio of a goal
where one was drawn there:

    logged under a goal   the target draws under the same one; the ratio of the goals' chances counts once, at the decision that
                          drew it. The neutral goal is nobody's draw. A goal that the target does not have has no chance
    logged without        a target with goals draws one when a session begins, and every `goal_steps` decisions. Which it was is
                          not known: a step's chance is the mean over goals, each as likely as the steps since then make it
"""

from dataclasses import dataclass, field

import numpy as np

from policies.evaluation.conditionals import mixed
from policies.evaluation.marginals import Replay
from policies.slate import uniforms
from policies.types import F64
from services.evaluation.assembling import support
from services.evaluation.decisions import LoggedDecision
from services.evaluation.targets import Law, Scored, Target
from services.scoring.goals import NEUTRAL

DRAWS = 64  # slates drawn of a step with several slots, for what a model takes to be the target's mean


@dataclass(frozen=True, slots=True)
class Step:
    """behaviour, target   chances of the whole decision, and of a goal drawn there;   design: Σ π²/β of both, NaN where not known
    law, marginals (k, n)  of the target at each slot, given the slots before and whatever they are; None where nothing says
    outside (k,)           share of the target's chance where the log could not draw, NaN where not known
    """

    decision: LoggedDecision
    behaviour: float
    target: float
    design: float
    law: F64
    marginals: F64 | None
    outside: F64


@dataclass
class Walk:
    """One episode of one target. `modelled`: whether anybody wants the marginals."""

    policy: Target
    modelled: bool = True
    _likely: dict[int, float] = field(default_factory=dict)  # goals of this stretch, given its steps so far
    _taken: int = 0

    def step(self, decision: LoggedDecision) -> Step:
        """The next decision. Raises Rejected, and ValueError for a slate that the target cannot have drawn."""
        laws, drawn = self._laws(decision)
        self._taken += 1
        if laws:
            parts = [law.along() for _, law in laws.values()]
            shares = [share for share, _ in laws.values()]
            law = parts[0] if len(parts) == 1 else mixed(shares, parts, decision.rows.tolist())
            self._weigh({goal: _chance(decision, part) for goal, part in zip(laws, parts, strict=True)})
        else:
            law = self.policy.conditionals(decision)
        spread, outside = support(decision, law)
        behaviour, target = drawn or (1.0, 1.0)
        return Step(
            decision,
            behaviour * float(np.where(decision.pinned, 1.0, decision.propensities).prod()),
            min(target * _chance(decision, law), 1.0),
            float("nan") if drawn else float(np.prod(spread)),
            law,
            self._marginals(decision, law, [*laws.values()]),
            outside,
        )

    def _laws(self, decision: LoggedDecision) -> tuple[dict[int, tuple[float, Law]], tuple[float, float] | None]:
        """(goal → (its share, what is drawn by under it), (β, π) of a goal drawn here). No laws of a target that only says
        conditionals."""
        policy = self.policy
        if not policy.follows:
            return {}, None
        if not isinstance(policy, Scored) or not policy.served.goals:
            return {NEUTRAL: (1.0, policy.law(decision, None))}, None
        said = decision.goal
        if said is not None:
            here = said.id != NEUTRAL and said.drawn_at_decision == decision.decision_id
            drawn = (said.propensity, policy.goals(decision).get(said.id, 0.0)) if here else None
            return {said.id: (1.0, policy.under(decision, said.id))}, drawn
        steps = policy.served.goal_steps
        if not self._likely or (steps and self._taken % steps == 0):
            self._likely = policy.goals(decision)
        return {goal: (share, policy.under(decision, goal)) for goal, share in self._likely.items()}, None

    def _weigh(self, chances: dict[int, float]) -> None:
        """Goals after a step that was so likely under each."""
        if len(chances) > 1:
            likely = {goal: self._likely[goal] * chance for goal, chance in chances.items()}
            total = sum(likely.values())
            if total > 0.0:
                self._likely = {goal: share / total for goal, share in likely.items()}

    def _marginals(self, decision: LoggedDecision, law: F64, laws: list[tuple[float, Law]]) -> F64 | None:
        if not self.modelled:
            return None
        if len(decision.rows) == 1:
            return law
        if not laws:
            return None
        width = decision.asked or int(decision.slots[-1]) + 1
        u = uniforms(b"evaluate", decision.decision_id, "step", DRAWS * width).reshape(DRAWS, width)
        return np.asarray(
            sum(share * Replay.of(one.slates(u), decision.slots).slots for share, one in laws if share > 0.0),
            np.float64,
        )


def _chance(decision: LoggedDecision, law: F64) -> float:
    """Of the whole slate, pins aside."""
    hit = law[np.arange(len(decision.rows)), decision.rows]
    return float(np.where(decision.pinned, 1.0, hit).prod())
