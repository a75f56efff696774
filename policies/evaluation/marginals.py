"""Slot and pair marginals of slates, from slates replayed with the bundle that made the decision.

    slot marginal   P(a at t) = mean over replays of p_t(a ∣ slots before): conditional probabilities, not counts
    Γ               P(a at s, b at t) over replayed slates, the logged one among them, so that 1_s is always in its range
    slot weight     ρ_t = π_t(a_t)/β_t(a_t) of the logged items
    slate weight    q_πᵀ Γ_β† 1_s,   q_π the target's slot marginals, 1_s the logged slate as an indicator over (slot, item)

Error    of Monte Carlo alone, by the jackknife over ten groups of replays
Missed   Σ_t mean_a π_t(a) (1 − β_t(a))^(M+1): what M replays see nothing of, the order of the slate weight's bias
Source   Swaminathan et al., NeurIPS 2017 (pseudo-inverse); Li et al., KDD 2018 (item-position)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from policies.errors import Rejected
from policies.types import F64, I64, Mask, Slate

REPLAYS = 2_000  # slot weights of items with a chance of 1% are then right to about 2%
GROUPS = 10  # of the jackknife
RANK = 1e-9  # singular values of Γ below this share of the largest are its null space (slots sum to 1) up to rounding


@dataclass(frozen=True, slots=True)
class Marginals:
    """Of N decisions with K slots: slot (N, K) and slate (N,) weights with mean 1, their Monte Carlo standard errors,
    design (N, K) = Σ_a π_t(a)²/β_t(a) of the marginals, missed (N,). 1, error 0, where there is no slot."""

    slot: F64
    slate: F64
    slot_error: F64
    slate_error: F64
    design: F64
    missed: F64

    def __getitem__(self, keep: I64 | Mask | slice) -> "Marginals":
        return Marginals(*(getattr(self, each.name)[keep] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Replay:
    """M slates of one policy for one decision: items (M, k), candidate rows; distributions (M, k, n), conditional."""

    items: I64
    distributions: F64

    @classmethod
    def of(cls, slates: Sequence[Slate]) -> "Replay":
        """Raises Rejected for slates drawn without their distributions: marginals need all candidates."""
        distributions = [slate.distributions for slate in slates if slate.distributions is not None]
        if not slates or len(distributions) < len(slates):
            raise Rejected("Marginals need slates with full distributions", at="$.marginals", code="no_candidates")
        return cls(np.stack([slate.items for slate in slates]), np.stack(distributions))

    @property
    def slots(self) -> F64:
        """Slot marginals (k, n)."""
        return np.asarray(self.distributions.mean(axis=0), np.float64)

    def without(self, group: int) -> "Replay":
        keep = np.arange(len(self.items)) % GROUPS != group
        return Replay(self.items[keep], self.distributions[keep])


def pairs(slates: I64, candidates: int, weights: F64 | None = None) -> F64:
    """Γ (k n, k n) of slates (M, k): how often (slot, item) comes with (slot, item), each slate weighing the same unless told."""
    count, k = slates.shape
    indicator = np.zeros((count, k * candidates))
    indicator[np.arange(count)[:, None], slates + candidates * np.arange(k)] = 1.0
    share = np.full(count, 1.0 / count) if weights is None else weights
    return np.asarray((indicator * share[:, None]).T @ indicator, np.float64)


def slate_weight(items: I64, gamma: F64, target: F64) -> float:
    """q_πᵀ Γ† 1_s: items (k,) logged, gamma (k n, k n), target (k, n) slot marginals."""
    logged = np.zeros(target.size)
    logged[items + target.shape[1] * np.arange(len(items))] = 1.0
    seen = gamma.diagonal() > 0  # what never came has no row
    solved = np.linalg.pinv(gamma[np.ix_(seen, seen)], rcond=RANK, hermitian=True) @ logged[seen]
    return float(target.ravel()[seen] @ solved)


def slot_weights(items: I64, behaviour: F64, target: F64) -> F64:
    """ρ (k,) from slot marginals (k, n) of both."""
    at = np.arange(len(items)), items
    return np.asarray(target[at] / behaviour[at], np.float64)


def replayed(items: I64, behaviour: Replay, target: Replay) -> Marginals:
    """Of one decision, as N = 1: items (k,) logged. Raises Rejected, naming the field, for replays that do not fit it."""
    for name, replay in (("behaviour", behaviour), ("target", target)):
        if len(replay.items) < GROUPS or replay.items.shape[1:] != items.shape:
            raise Rejected(f"Expected at least {GROUPS} slates of {len(items)}", at=f"$.{name}", code="bad_replay")
    slots = behaviour.slots, target.slots
    if slots[0].shape != slots[1].shape:
        raise Rejected("Both policies choose from the same candidates", at="$.target", code="bad_replay")
    if not slots[0][np.arange(len(items)), items].all():
        raise Rejected("The bundle could not have shown what was logged", at="$.behaviour", code="no_support")

    def found(one: Replay, other: Replay) -> F64:
        gamma = pairs(np.concatenate([one.items, items[None]]), slots[0].shape[1])
        return np.array([*slot_weights(items, one.slots, other.slots), slate_weight(items, gamma, other.slots)])

    whole = found(behaviour, target)
    parts = np.stack([found(behaviour.without(g), target.without(g)) for g in range(GROUPS)])
    error = np.sqrt((GROUPS - 1) / GROUPS * ((parts - parts.mean(axis=0)) ** 2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 is an item that neither shows
        second = np.where(slots[1] > 0, slots[1] ** 2 / slots[0], 0.0).sum(axis=1)
    missed = (slots[1] * (1.0 - slots[0]) ** (len(behaviour.items) + 1)).sum()
    return Marginals(whole[None, :-1], whole[-1:], error[None, :-1], error[-1:], second[None], np.array([missed]))


def stacked(decisions: Sequence[Marginals], slots: int) -> Marginals:
    """N decisions, each filled up to `slots`."""
    filled: dict[str, F64] = {}
    for each in fields(Marginals):
        empty = 0.0 if each.name == "slot_error" else 1.0
        rows = [getattr(one, each.name)[0] for one in decisions]
        if rows and np.ndim(rows[0]):
            rows = [np.pad(row, (0, slots - len(row)), constant_values=empty) for row in rows]
        filled[each.name] = np.array(rows)
    return Marginals(**filled)
