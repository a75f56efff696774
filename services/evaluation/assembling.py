"""A log and a target to the arrays estimators read, slot by slot along what was logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from policies.algorithm import Problem
from policies.errors import Rejected
from policies.evaluation.diagnostics import BOUND, inverse_z
from policies.evaluation.logged import Logged, checked
from policies.evaluation.marginals import Marginals, stacked
from policies.evaluation.models import with_model
from policies.evaluation.truth import Truth
from policies.ridge import columns, phi
from policies.types import F64, I64
from services.evaluation.decisions import Log, LoggedDecision, nothing_left
from services.evaluation.replaying import Replaying
from services.evaluation.targets import Target

ARMS = 50  # item identities a reward model tells apart where the log has no item features
CELLS = 30_000_000  # φ of the reward model, N × K × d: 240 MB, twice
CHECKED = 3_000_000  # probabilities that the calibration of propensities looks at: seconds


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether the logged propensities are the probabilities that were drawn from.

    worst_z     over items and slots, from full distributions (NaN: none in the log);   decisions: how many had them
    inverse_z   standard errors between mean 1/p and the mean number that could be drawn (NaN: not in the log)
    z           slot → items' z, for a picture
    """

    worst_z: float
    arm: str
    decisions: int
    inverse_z: float
    z: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Within 4 standard errors, as far as the log can tell."""
        return not (abs(self.worst_z) > BOUND or abs(self.inverse_z) > BOUND)


@dataclass(frozen=True, slots=True)
class Assembled:
    """`logged` with its reward model, and what is known of its support and its propensities.

    outside     mean share of the target's probability that lies where the log could not draw; NaN where unknown
    known       share of slots with full distributions
    certain     slots that were drawn with probability 1 though others could have been: no other policy can be judged there
    """

    logged: Logged
    calibration: Calibration
    outside: float
    known: float
    certain: int
    decisions: list[LoggedDecision]


def assemble(log: Log, target: Target, objective: str, replaying: Replaying | None = None) -> Assembled:
    """Raises Rejected for an empty log, an objective it has not, and what `checked` refuses."""
    column = objective_column(log, objective)
    kept: list[LoggedDecision] = []
    laws: list[F64] = []
    marginals: list[Marginals] = []
    for decision in log.decisions:
        try:
            law = target.conditionals(decision)
            if replaying is not None:
                marginals.append(replaying.marginals(decision, target))
        except (Rejected, ValueError) as error:
            set_aside(log, decision, error)
            continue
        kept.append(decision)
        laws.append(law)
    if not kept:
        raise nothing_left(log)
    n, k = len(kept), max(len(decision.rows) for decision in kept)
    rewards, behaviour, hit = np.zeros((n, k)), np.ones((n, k)), np.ones((n, k))
    present, design, outside = np.zeros((n, k), bool), np.ones((n, k)), np.zeros((n, k))
    for i, (decision, law) in enumerate(zip(kept, laws, strict=True)):
        size = len(decision.rows)
        rewards[i, :size] = decision.rewards[:, column]
        behaviour[i, :size] = np.where(decision.pinned, 1.0, decision.propensities)
        hit[i, :size] = np.where(decision.pinned, 1.0, law[np.arange(size), decision.rows])
        present[i, :size] = True
        design[i, :size], outside[i, :size] = support(decision, law)
    _, units = np.unique([decision.unit for decision in kept], return_inverse=True)
    logged = Logged(
        rewards=rewards,
        behaviour=behaviour,
        target=np.minimum(hit, 1.0),
        present=present,
        units=units.astype(np.int64),
        times=np.array([decision.at for decision in kept]),
        design=design,
        marginals=stacked(marginals, k) if marginals else None,
    )
    checked(logged)
    missing = np.isnan(outside)
    known = float(1.0 - missing[present].mean())
    off = outside[present & ~missing]
    known_features = features_of(kept, laws, log)
    if known_features is not None:
        logged = with_model(replace(logged, features=known_features[0], expected_features=known_features[1]))
    return Assembled(
        logged,
        calibrate(kept),
        float(off.mean()) if len(off) else float("nan"),
        known,
        sum(map(certain, kept)),
        kept,
    )


def set_aside(log: Log, decision: LoggedDecision, error: Rejected | ValueError) -> None:
    """Count a decision that a target could not be asked about; a ValueError is of a slate that no draw of it can have made."""
    code, said = (error.code, error.message) if isinstance(error, Rejected) else ("impossible_slate", str(error))
    log.rejected.add(code, f"decision {decision.decision_id}: {said}")


def certain(decision: LoggedDecision) -> int:
    """Slots that were drawn with probability 1 though others could have been."""
    left = np.inf if decision.remaining is None else decision.remaining
    return int(((decision.propensities >= 1.0) & ~decision.pinned & (left > 1)).sum())


def objective_column(log: Log, objective: str) -> int:
    if objective not in log.objectives:
        raise Rejected(
            f"The log has no objective {objective!r}; it has {', '.join(log.objectives) or 'none'}",
            at="--objective",
            code="unknown_objective",
        )
    return log.objectives.index(objective)


def support(decision: LoggedDecision, law: F64) -> tuple[F64, F64]:
    """(Σ_a π²/β, share of π where β = 0) by slot; NaN where β or π is not known as a whole."""
    full = decision.distributions
    if full is None or np.isnan(law).any():
        unknown = np.where(decision.pinned, 1.0, np.nan)
        return unknown, np.where(decision.pinned, 0.0, np.nan)
    possible = full > 0.0
    ratio = np.divide(law**2, full, out=np.zeros_like(law), where=possible).sum(axis=1)
    outside = np.where(possible, 0.0, law).sum(axis=1)
    ratio[outside > 0.0] = np.inf
    return ratio, outside


def calibrate(decisions: Sequence[LoggedDecision]) -> Calibration:
    """Of the decisions with full distributions, or of evenly spread ones where these are too many to look at all."""
    full = [decision for decision in decisions if decision.distributions is not None]
    cells = sum(len(d.rows) * len(d.candidates) for d in full)
    looked = full[:: max(1, -(-cells // CHECKED))]
    truth = Truth()
    for decision in looked:
        assert decision.distributions is not None
        law = decision.distributions / decision.distributions.sum(axis=1, keepdims=True)  # Vowpal Wabbit writes float32
        for slot, row, pinned, p in zip(
            decision.slots.tolist(), decision.rows.tolist(), decision.pinned.tolist(), law, strict=True
        ):
            if not pinned:
                truth.add(
                    slot,
                    dict(zip(decision.candidates, p.tolist(), strict=True)),
                    decision.candidates[row],
                    float(p[row]),
                )
    z = truth.z
    worst = max(z, key=lambda arm: abs(z[arm]), default=None)
    by_slot: dict[str, list[float]] = {}
    for (slot, _), value in z.items():
        by_slot.setdefault(str(slot), []).append(value)
    counted = [d for d in decisions if d.remaining is not None]
    free = [(p, r) for d in counted for p, r, pin in zip(d.propensities, d.remaining, d.pinned, strict=True) if not pin]  # type: ignore[arg-type]  # counted have it
    inverse = float("nan")
    if free:
        propensities, remaining = np.array(free).T
        inverse = inverse_z(propensities, remaining.astype(np.int64))
    arm = "" if worst is None else f"slot {worst[0]}, {'rare items together' if worst[1] is None else worst[1]}"
    return Calibration(float("nan") if worst is None else z[worst], arm, len(looked), inverse, by_slot)


def features_of(decisions: Sequence[LoggedDecision], laws: Sequence[F64], log: Log) -> tuple[F64, F64] | None:
    """φ of what was shown and its mean over the target, both (N, K, d): what the ridge of policies sees, or item identities
    without features.

    None where the target's distribution is unknown, or where φ would not fit into memory.
    """
    n, k = len(decisions), max(len(decision.rows) for decision in decisions)
    if any(np.isnan(law).any() for law in laws):
        return None
    known = log.encoder is not None and all(d.context is not None and d.items is not None for d in decisions)
    if known:
        assert log.encoder is not None
        problem = Problem(log.encoder, {}, {}, max(int(d.slots[-1]) for d in decisions) + 1)
        width = len(columns(problem))
    else:
        arms = _arms(decisions)
        width = 1 + k + len(arms)
    if n * k * width > CELLS:
        log.notes.append(f"No reward model: {n} decisions × {k} slots × {width} columns are too many")
        return None
    features, expected = np.zeros((n, k, width)), np.zeros((n, k, width))
    for i, (decision, law) in enumerate(zip(decisions, laws, strict=True)):
        size = len(decision.rows)
        if known:
            assert decision.context is not None
            matrix = decision.matrix
            assert matrix is not None
            context = np.broadcast_to(decision.context, (size, len(decision.context)))
            mean = (law @ matrix).astype(np.float32)
            features[i, :size] = phi(problem, context, matrix[decision.rows], decision.slots)
            expected[i, :size] = phi(problem, context, mean, decision.slots)
        else:
            one_hot = np.array([arms.get(item, -1) for item in decision.candidates])
            features[i, :size], expected[i, :size] = _identities(decision.rows, law, one_hot, k, len(arms))
    return features, expected


def _arms(decisions: Sequence[LoggedDecision]) -> dict[str, int]:
    """The items shown most often, each a column."""
    shown: dict[str, int] = {}
    for decision in decisions:
        for row in decision.rows.tolist():
            shown[decision.candidates[row]] = shown.get(decision.candidates[row], 0) + 1
    most = sorted(shown, key=lambda item: (-shown[item], item))[:ARMS]
    return {item: place for place, item in enumerate(most)}


def _identities(rows: I64, law: F64, one_hot: I64, k: int, arms: int) -> tuple[F64, F64]:
    size = len(rows)
    features, expected = np.zeros((size, 1 + k + arms)), np.zeros((size, 1 + k + arms))
    for out in (features, expected):
        out[:, 0] = 1.0
        out[np.arange(size), 1 + np.arange(size)] = 1.0
    told = one_hot[rows]
    features[np.flatnonzero(told >= 0), 1 + k + told[told >= 0]] = 1.0
    columns_of = np.flatnonzero(one_hot >= 0)
    expected[:, 1 + k + one_hot[columns_of]] = law[:, columns_of]
    return features, expected
