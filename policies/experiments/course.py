"""The course of an experiment: drafted, started, given other shares, stopped. Pure; the time is an argument.

A stopped experiment stays stopped: what it showed belongs to the units it had. An edit of its document keeps its course,
except that other shares in the document are a new allocation.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from msgspec.structs import replace

from policies.errors import Rejected
from policies.experiments.assignment import allocated, empty, overlapping
from policies.experiments.document import Allocation, Experiment, Trial


def epoch_seconds(written: str, at: str = "$") -> float:
    """Of RFC 3339 with an offset. Raises Rejected."""
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        raise Rejected(f"Expected RFC 3339 such as 2026-11-23T10:00:00Z, got {written[:64]!r}", at=at) from None
    if found.tzinfo is None:
        raise Rejected("Expected a time with an offset, such as 2026-11-23T10:00:00Z", at=at)
    return found.timestamp()


def shares_of(document: Experiment) -> dict[str, float]:
    return {name: arm.share for name, arm in document.arms.items()}


def drafted(document: Experiment, others: Sequence[Trial], now: float, *, managed: bool = False) -> Trial:
    """A new experiment; with a `start` it is started, to begin then. Raises Rejected."""
    trial = Trial(document, empty().tobytes(), [], shares_of(document), managed=managed)
    return started(trial, others, now) if document.start is not None else trial


def edited(trial: Trial, document: Experiment, others: Sequence[Trial], now: float) -> Trial:
    """Another document, the same course. Raises Rejected for what a running experiment must keep."""
    before = trial.document
    if trial.status == "stopped":
        return replace(trial, document=document) if _same_arms(before, document) else _refuse(trial, "is stopped")
    if trial.status == "running":
        for name in ("surface", "layer", "unit", "kind"):
            if getattr(before, name) != getattr(document, name):
                raise Rejected(f"A running experiment keeps its {name}", at=f"$.{name}", code="running", status=409)
        if not _same_arms(before, document):
            raise Rejected("A running experiment keeps its arms", at="$.arms", code="running", status=409)
    after = replace(trial, document=document)
    if shares_of(document) == trial.written:
        return after
    after = replace(after, written=shares_of(document))
    return given(after, shares_of(document), others, now) if trial.status == "running" else after


def started(trial: Trial, others: Sequence[Trial], now: float) -> Trial:
    """Assigning from now on, or from its `start`. Raises Rejected: 409 when it has been started before."""
    if trial.status != "draft":
        return _refuse(trial, f"is {trial.status}")
    document = trial.document
    begin = epoch_seconds(document.start, "$.start") if document.start else now
    end = epoch_seconds(document.stop, "$.stop") if document.stop else 0.0
    trial = replace(trial, status="running", start=max(begin, now), stop=end)
    last = trial.allocations[-1].shares if trial.allocations else shares_of(document)
    return given(trial, last, others, now)


def given(trial: Trial, shares: Mapping[str, float], others: Sequence[Trial], now: float) -> Trial:
    """Other shares; units move only where a share needs them. Raises Rejected."""
    if trial.status == "stopped":
        return _refuse(trial, "is stopped")
    names = list(trial.document.arms)
    for name, share in shares.items():
        if name not in names:
            raise Rejected(f"No arm {name!r}, expected {', '.join(names)}", at=f"$.shares.{name[:64]}")
        if not 0 <= share <= 1:
            raise Rejected(f"Expected a share from 0 to 1, got {share:g}", at=f"$.shares.{name[:64]}")
    last = trial.allocations[-1].shares if trial.allocations else shares_of(trial.document)
    wanted = {name: float(shares.get(name, last.get(name, 0.0))) for name in names}
    if sum(wanted.values()) > 1 + 1e-9:
        raise Rejected(f"Shares add up to {sum(wanted.values()):g}, at most 1", at="$.shares")
    if trial.status == "draft":  # nobody is in it yet: the table is made when it starts
        return replace(trial, allocations=[Allocation(now, wanted)])
    before = np.frombuffer(trial.buckets, np.uint8)
    document = trial.document
    table = allocated(document.experiment, list(wanted.values()), before, overlapping(others, document))
    return replace(trial, buckets=table.tobytes(), allocations=[*trial.allocations, Allocation(now, wanted)])


def stopped(trial: Trial, reason: str, now: float) -> Trial:
    """Nobody is assigned any more. Raises Rejected(409) when it does not run."""
    if trial.status != "running":
        return _refuse(trial, f"is {trial.status}")
    return replace(trial, status="stopped", stop=now, reason=reason)


def _same_arms(before: Experiment, after: Experiment) -> bool:
    def plan(document: Experiment) -> list[tuple[object, ...]]:
        return [(name, arm.policy, arm.holdout, arm.draw) for name, arm in document.arms.items()]

    return plan(before) == plan(after)


def _refuse(trial: Trial, why: str) -> Trial:
    raise Rejected(f"Experiment {trial.document.experiment!r} {why}", code=trial.status, status=409)
