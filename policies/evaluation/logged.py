"""Logged decisions as off-policy estimators read them, and what may be wrong with them."""

from dataclasses import dataclass

import numpy as np

from policies.errors import Rejected
from policies.types import F64, I64, Mask


@dataclass(frozen=True, slots=True)
class Logged:
    """N logged decisions of up to K slots, one reward, one behaviour policy (its own at each decision) and one target.

    rewards (N, K)    reward of each slot; 0 where there is no slot
    behaviour (N, K)  logged probability of the slot's item given the slots before it; 1 where there is no slot or a pin
    target (N, K)     the target's probability of the same item given the same slots before it; 1 where there is no slot
    present (N, K)    whether there is a slot
    units (N,)        whom a decision was for, as numbers: intervals are clustered by unit
    times (N,)        seconds, ascending: models are fitted on earlier decisions only
    design (N, K)     E over the target of π/β at the slot given the logged prefix, Σ_a π(a)²/β(a); NaN where the full
                      distributions are not known
    predicted (N, K)  a model's reward of the slot's item, fitted on earlier decisions; None without a model
    expected (N, K)   the same model's mean reward over the target's distribution given the logged prefix; None without a model
    """

    rewards: F64
    behaviour: F64
    target: F64
    present: Mask
    units: I64
    times: F64
    design: F64 | None = None
    predicted: F64 | None = None
    expected: F64 | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def ratios(self) -> F64:
        """π/β of each slot (N, K); 1 where there is no slot."""
        return np.asarray(self.target / self.behaviour, np.float64)

    @property
    def prefix_ratios(self) -> F64:
        """Π_{s ≤ t} π/β (N, K)."""
        return np.asarray(np.cumprod(self.ratios, axis=1), np.float64)

    @property
    def weights(self) -> F64:
        """π/β of the whole slate (N,)."""
        return np.asarray(np.prod(self.ratios, axis=1), np.float64)

    @property
    def totals(self) -> F64:
        """Reward of the whole slate (N,): the sum over its slots."""
        return np.asarray(self.rewards.sum(axis=1), np.float64)


def checked(logged: Logged) -> Logged:
    """`logged` itself. Raises Rejected, naming the field, for what no estimator may turn into a number without saying so."""
    n, k = logged.rewards.shape
    if not n:
        raise Rejected("The log is empty", at="$.rewards", code="empty_log")
    for name in ("behaviour", "target", "present"):
        if getattr(logged, name).shape != (n, k):
            raise Rejected(f"Expected {(n, k)}, got {getattr(logged, name).shape}", at=f"$.{name}", code="bad_shape")
    if not np.isfinite(logged.rewards).all():
        raise Rejected("A reward is not finite", at="$.rewards", code="bad_reward")
    if not (np.isfinite(logged.behaviour) & (logged.behaviour > 0) & (logged.behaviour <= 1)).all():
        raise Rejected("Logged propensities must be in (0, 1]", at="$.behaviour", code="bad_propensity")
    if not (np.isfinite(logged.target) & (logged.target >= 0) & (logged.target <= 1)).all():
        raise Rejected("The target's probabilities must be in [0, 1]", at="$.target", code="bad_probability")
    return logged
