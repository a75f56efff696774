"""Logged decisions as off-policy estimators read them, and what may be wrong with them."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from policies.errors import Rejected
from policies.evaluation.marginals import Marginals
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
                      distributions are not known, inf where the target may show what the log never could; 1 where no slot
    predicted (N, K)  a model's reward of the slot's item, fitted on earlier decisions; None without a model, NaN where no
                      earlier decision could be learned from
    expected (N, K)   the same model's mean reward over the target's distribution given the logged prefix; as `predicted`
    features (N, K, d)           what a linear reward model reads of context, item and slot; None where no model is wanted
    expected_features (N, K, d)  their mean over the target's distribution given the logged prefix: all that `expected` needs
    marginals         weights from replayed slates; None where candidates were not all logged
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
    features: F64 | None = None
    expected_features: F64 | None = None
    marginals: Marginals | None = None

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

    def rows(self, keep: I64 | Mask | slice) -> "Logged":
        """Some of the decisions, in the order asked for."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        kept: dict[str, Any] = {name: value[keep] for name, value in values.items() if value is not None}
        return Logged(**kept)


def one_slot(
    rewards: F64,
    items: I64,
    behaviour: F64,
    target: F64,
    units: I64 | None = None,
    times: F64 | None = None,
    features: F64 | None = None,
) -> Logged:
    """N decisions of one slot, from the full distributions over n candidates.

    rewards (N,), items (N,) candidate drawn, behaviour and target (N, n), features (N, n, d) of every candidate. Without
    `units` each decision is a unit of its own, without `times` the order is the time. Raises Rejected, naming the field.
    """
    for name, distribution in (("behaviour", behaviour), ("target", target)):
        if not (np.isfinite(distribution) & (distribution >= 0)).all() or not np.allclose(distribution.sum(axis=1), 1):
            raise Rejected("Each row must be a distribution", at=f"$.{name}", code="bad_probability")
    rows = np.arange(len(rewards))
    return checked(
        Logged(
            rewards=np.asarray(rewards, np.float64)[:, None],
            behaviour=behaviour[rows, items][:, None],
            target=target[rows, items][:, None],
            present=np.ones((len(rewards), 1), np.bool_),
            units=rows if units is None else units,
            times=rows.astype(np.float64) if times is None else times,
            design=design(behaviour, target)[:, None],
            features=None if features is None else features[rows, items][:, None],
            expected_features=None if features is None else np.einsum("in,ind->id", target, features)[:, None],
        )
    )


def design(behaviour: F64, target: F64) -> F64:
    """Σ_a π(a)²/β(a) over the last axis of two distributions (…, n); inf where π > 0 and β = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 is an item that neither shows
        return np.asarray(np.where(target > 0, target**2 / behaviour, 0.0).sum(axis=-1), np.float64)


def checked(logged: Logged) -> Logged:
    """`logged` itself. Raises Rejected, naming the field, for what no estimator may turn into a number without saying so."""
    if logged.rewards.ndim != 2:
        raise Rejected(f"Expected (N, K), got {logged.rewards.shape}", at="$.rewards", code="bad_shape")
    n, k = logged.rewards.shape
    if not n:
        raise Rejected("The log is empty", at="$.rewards", code="empty_log")
    shapes = dict.fromkeys(("behaviour", "target", "present", "design", "predicted", "expected"), (n, k))
    for name, shape in {**shapes, "units": (n,), "times": (n,)}.items():
        value = getattr(logged, name)
        if value is not None and value.shape != shape:
            raise Rejected(f"Expected {shape}, got {value.shape}", at=f"$.{name}", code="bad_shape")
    for one, other in (("predicted", "expected"), ("features", "expected_features")):
        first, second = getattr(logged, one), getattr(logged, other)
        if (first is None) != (second is None):
            raise Rejected(f"{one} and {other} come together", at=f"$.{other if second is None else one}")
    if logged.features is not None and logged.expected_features is not None:
        for name, found in (("features", logged.features), ("expected_features", logged.expected_features)):
            if found.shape != (n, k, logged.features.shape[-1]):
                raise Rejected(f"Expected {(n, k)} and a width, got {found.shape}", at=f"$.{name}", code="bad_shape")
            if not np.isfinite(found[logged.present]).all():
                raise Rejected("A feature is not finite", at=f"$.{name}", code="bad_feature")
    if logged.marginals is not None:
        for name, shape in (("slot", (n, k)), ("slate", (n,))):
            weights = getattr(logged.marginals, name)
            left_out = name == "slate" and np.isnan(weights).all()
            if weights.shape != shape or not (left_out or np.isfinite(weights).all()):
                raise Rejected(f"Expected {shape} finite weights", at=f"$.marginals.{name}", code="bad_weight")
    if not np.isfinite(logged.rewards).all():
        raise Rejected("A reward is not finite", at="$.rewards", code="bad_reward")
    if not (np.isfinite(logged.behaviour) & (logged.behaviour > 0) & (logged.behaviour <= 1)).all():
        raise Rejected("Logged propensities must be in (0, 1]", at="$.behaviour", code="bad_propensity")
    if not (np.isfinite(logged.target) & (logged.target >= 0) & (logged.target <= 1)).all():
        raise Rejected("The target's probabilities must be in [0, 1]", at="$.target", code="bad_probability")
    absent = ~logged.present
    for name, empty in (("rewards", 0.0), ("behaviour", 1.0), ("target", 1.0)):
        if (getattr(logged, name)[absent] != empty).any():
            raise Rejected(f"Where there is no slot, {name} is {empty:g}", at=f"$.{name}", code="bad_slot")
    if not np.isfinite(logged.times).all() or (np.diff(logged.times) < 0).any():
        raise Rejected("Decisions come in the order of their times", at="$.times", code="bad_order")
    return logged
