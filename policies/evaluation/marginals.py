"""Slot and pair marginals of slates, from slates replayed with the bundle that made the decision.

    slot marginal   P(a at t) = mean over replays of p_t(a ∣ slots before): conditional probabilities, not counts
    Γ               P(a at s, b at t) over replayed slates, the logged one among them, so that 1_s is always in its range
    slot weight     ρ_t = π_t(a_t)/β_t(a_t) of the logged items
    slate weight    q_πᵀ Γ_β† 1_s,   q_π the target's slot marginals, 1_s the logged slate as an indicator over (slot, item)

Error    of Monte Carlo alone, by the jackknife over ten groups of replays
Missed   Σ_t mean_a π_t(a) (1 − β_t(a))^(M+1): what M replays see nothing of, the order of the slate weight's bias
Source   Swaminathan et al., NeurIPS 2017 (pseudo-inverse); Li et al., KDD 2018 (item-position)
"""

from collections.abc import Iterable, Sequence
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
    design (N, K) = Σ_a π_t(a)²/β_t(a) of the marginals, missed (N,). 1, error 0, where there is no slot; slate NaN where Γ was
    left out."""

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
    """M slates of one policy for one decision: items (M, k), candidate rows; summed (GROUPS, k, n), the conditional distributions
    of every tenth slate added up."""

    items: I64
    summed: F64

    @classmethod
    def of(cls, slates: Iterable[Slate], slots: I64 | None = None) -> "Replay":
        """`slots` (k,): those that all must fill, default those of the first. Raises Rejected for slates that fill others, and
        for those drawn without their distributions: marginals need all candidates."""
        items: list[I64] = []
        summed = np.zeros((GROUPS, 0, 0))
        for number, slate in enumerate(slates):
            if slate.distributions is None:
                raise Rejected("Marginals need slates with full distributions", at="$.marginals", code="no_candidates")
            slots = slate.slots if slots is None else slots
            if not items:
                summed = np.zeros((GROUPS, *slate.distributions.shape))
            if not np.array_equal(slate.slots, slots):
                raise Rejected("Replayed slates fill different slots", at="$.marginals", code="uneven_slates")
            summed[number % GROUPS] += slate.distributions
            items.append(slate.items)
        if not items:
            raise Rejected("Marginals need slates with full distributions", at="$.marginals", code="no_candidates")
        return cls(np.stack(items), summed)

    @property
    def slots(self) -> F64:
        """Slot marginals (k, n)."""
        return np.asarray(self.summed.sum(axis=0) / len(self.items), np.float64)

    def without(self, group: int) -> "Replay":
        summed = self.summed.copy()
        summed[group] = 0.0
        return Replay(self.items[np.arange(len(self.items)) % GROUPS != group], summed)


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


def replayed(items: I64, behaviour: Replay, target: Replay, paired: bool = True) -> Marginals:
    """Of one decision, as N = 1: items (k,) logged. `paired` False: Γ, which costs (k n)³, is left out, and with it the slate
    weight. Raises Rejected, naming the field, for replays that do not fit.
    """
    for name, replay in (("behaviour", behaviour), ("target", target)):
        if len(replay.items) < GROUPS or replay.items.shape[1:] != items.shape:
            raise Rejected(f"Expected at least {GROUPS} slates of {len(items)}", at=f"$.{name}", code="bad_replay")
    slots = behaviour.slots, target.slots
    if slots[0].shape != slots[1].shape:
        raise Rejected("Both policies choose from the same candidates", at="$.target", code="bad_replay")
    if not slots[0][np.arange(len(items)), items].all():
        raise Rejected("The bundle could not have shown what was logged", at="$.behaviour", code="no_support")

    def found(one: Replay, other: Replay) -> F64:
        if not paired:
            return np.array([*slot_weights(items, one.slots, other.slots), np.nan])
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
