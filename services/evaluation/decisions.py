"""Logged decisions as evaluation reads them, whatever file they came from: one value a decision, and a count of what could not be read."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from policies.errors import Rejected
from policies.features import Encoder
from policies.reranking.within import Within
from policies.types import F32, F64, I64, DrawSettings, Mask
from streaming.events import Goal


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision with n candidates and k filled slots.

    candidates (n)      ids, in the order the draw saw them
    slots, rows (k,)    slot numbers ascending, and the slate as candidate rows
    propensities (k,)   of each item given the slots before it; 1 for a pin
    rewards (k, o)      one column an objective of the log
    pinned, present (k,)  pinned slots; slots that learners are taught
    context (c,), items (n, d)   encoded for the target; None: not asked for, or not known. Items may be made when asked for
    distributions (k, n)  what was drawn from, given the slots before; None: not in the log
    greedy (k,)         row of the greedy item given the slots before; None: not in the log
    settings            of the draw; None: not in the log
    boosts (n,), masks (asked, n), within (of `asked` slots)  what acted on the draw, where the log has it
    weights             objective → weight of the request
    history (h), past (h, d)   items of the unit's last interactions, oldest first, and what they were encoded to
    slot_weight         what a slot's example counts
    policy, bundle, config   what drew it, and the surface version it was made under; "" where the log has none
    goal                what it was drawn under, of policies that have goals
    remaining (k,)      candidates that could have been drawn; None: not in the log
    place               (partition, offset) of the record in our log
    catalogue           version of the catalogue that the candidates were read from
    """

    decision_id: str
    unit: str
    at: float
    candidates: Sequence[str]
    slots: I64
    rows: I64
    propensities: F64
    rewards: F64
    pinned: Mask
    present: Mask
    context: F32 | None = None
    items: F32 | Callable[[], F32] | None = None
    distributions: F64 | None = None
    greedy: I64 | None = None
    settings: DrawSettings | None = None
    boosts: F64 | None = None
    masks: Mask | None = None
    within: Within | None = None
    asked: int | None = None
    weights: dict[str, float] | None = None
    history: Sequence[str] = ()
    past: F32 | None = None
    slot_weight: float = 1.0
    policy: str = ""
    bundle: str = ""
    config: str = ""
    goal: Goal | None = None
    remaining: I64 | None = None
    place: tuple[int, int] | None = None
    catalogue: int = 0

    @property
    def matrix(self) -> F32 | None:
        """`items`, made now where they were left to be made."""
        return self.items() if callable(self.items) else self.items

    @property
    def pins(self) -> dict[int, int]:
        return {int(s): int(r) for s, r, pin in zip(self.slots, self.rows, self.pinned, strict=True) if pin}


class Placed(NamedTuple):
    """Where a decision stands in its unit's sequence, be it usable or not: `reason` says why not.

    partition, number   of its settling, which sequences are cut by;   due: when it settled;   timeout   seconds
    """

    decision_id: str
    unit: str
    session: str
    at: float
    due: float
    timeout: float
    partition: int
    number: int
    reason: str


@dataclass(slots=True)
class Rejections:
    """Records that were set aside: how many for which reason, and the first place of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        return [f"{n} {reason} (first: {self.first[reason]})" for reason, n in sorted(self.counts.items())]


@dataclass(slots=True)
class Log:
    """All that was read of one log, in order of time.

    kind        experiences | obd | dsjson | hillstrom
    objectives  names of the columns of `rewards`;  ranges  objective → (low, high) of one slot's reward, where known
    whole       the reward is of the whole slate, and stands on its last slot
    placed      every record that was read, where the log says which decisions follow each other
    encoder     what `context` and `items` were encoded by; None: the log has no features, or none were asked for
    """

    kind: str
    name: str
    decisions: list[LoggedDecision]
    rejected: Rejections
    objectives: tuple[str, ...]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    encoder: Encoder | None = None
    notes: list[str] = field(default_factory=list)
    whole: bool = False
    placed: list[Placed] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decisions)

    def with_decisions(self, decisions: Iterable[LoggedDecision]) -> "Log":
        return replace(self, decisions=list(decisions))


def sound(decision: LoggedDecision) -> str:
    """Why no estimator may use a decision; empty where it may.

    no_slots, bad_propensity (zero, negative, above 1 or not a number), bad_reward, bad_slate (an item twice, a row that is
    no candidate), bad_distribution (not one, or not the propensity's)
    """
    n, p = len(decision.candidates), decision.propensities
    if not len(decision.slots):
        return "no_slots"
    if not (np.isfinite(p) & (p > 0) & (p <= 1)).all():
        return "bad_propensity"
    if not np.isfinite(decision.rewards).all():
        return "bad_reward"
    rows = decision.rows
    if len(set(rows.tolist())) < len(rows) or rows.min() < 0 or rows.max() >= n or (np.diff(decision.slots) <= 0).any():
        return "bad_slate"
    full = decision.distributions
    if full is not None:
        if full.shape != (len(rows), n) or not np.isfinite(full).all() or (full < 0).any():
            return "bad_distribution"
        if np.abs(full.sum(axis=1) - 1.0).max() > 1e-4:  # Vowpal Wabbit writes float32
            return "bad_distribution"
        if (np.abs(full[np.arange(len(rows)), rows] - p) > 1e-4 * p).any():
            return "bad_distribution"
    return ""


def nothing_left(log: Log) -> Rejected:
    """What is said of a log without a decision that can be used."""
    said = "; ".join(log.rejected.lines()) or "it holds none"
    if log.kind == "experiences" and not log.rejected.total:
        said += " that has settled; --unsettled adds those whose horizon has not passed"
    return Rejected(f"No decision of the log can be used: {said}", at="$.log", code="empty_log")


def no_rules(without: int, of: int) -> Rejected:
    """What is said where rules acted on draws, and the log does not say how."""
    return Rejected(
        f"On {without} of {of} decisions rules acted (masks, boosts, constraints or diversity), and only sampled decisions hold what "
        "they did: evaluate these alone with --sampled",
        at="$.acted",
        code="rules_unknown",
    )


def no_features(without: int, of: int, reader: str = "this target") -> Rejected:
    """What is said where features are read and the log has candidates by id alone."""
    return Rejected(
        f"Of {without} of {of} decisions the log has only the ids of the candidates, and {reader} reads their features: give "
        "the catalogue with --data FOLDER (of our own log), or evaluate the sampled decisions alone with --sampled",
        at="$.candidates",
        code="features_unknown",
    )
