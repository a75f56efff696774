"""Who is in which arm: sticky, salted, independent between layers, and moved no more than a change of shares needs.

    bucket of a unit   BLAKE2b-64(layer ‖ key) mod 10,000, where the key is the unit's keyed hash or the session
    arm of a bucket    a table of the experiment; experiments of one layer hold disjoint buckets

The table is state: with new shares an arm gives up only what is too much, and takes first what others give up. Which
buckets are taken is shuffled by the experiment's name, so that one experiment does not inherit another's arms.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.errors import Rejected
from policies.experiments.document import Condition, Experiment, Scalar, Trial
from policies.types import I64, Mask

BUCKETS = 10_000
NOBODY = 255  # number of no arm
MAX_ARMS = 64
Buckets = NDArray[np.uint8]  # (BUCKETS,): arm of each


def bucket(key: str, layer: str) -> int:
    """A unit's place in a layer. Layers are independent of each other, as hashes of different texts are."""
    return int.from_bytes(hashlib.blake2b(f"{layer}\0{key}".encode(), digest_size=8).digest(), "little") % BUCKETS


def allocated(name: str, shares: Sequence[float], before: Buckets, taken: Mask) -> Buckets:
    """The table with new shares (arms,), from the one before. Raises Rejected when they do not fit.

    taken (BUCKETS,)  buckets that other experiments of the layer hold
    """
    wanted = _counts(shares)
    if sum(wanted) > BUCKETS - int(taken.sum()):
        free = 1 - taken.mean()
        raise Rejected(f"Shares add up to {sum(shares):g}, the layer has {free:g} left", at="$.arms", code="layer_full")
    order = _shuffled(name)
    after = np.where(taken, NOBODY, before).astype(np.uint8)
    after[(after != NOBODY) & (after >= len(wanted))] = NOBODY  # arms that are no more
    given: list[int] = []
    for arm, count in enumerate(wanted):
        held = order[after[order] == arm]
        given += held[count:].tolist()
        after[held[count:]] = NOBODY
    spare = [*given, *order[(after[order] == NOBODY) & ~taken[order] & ~np.isin(order, given)].tolist()]
    at = 0
    for arm, count in enumerate(wanted):
        more = count - int((after == arm).sum())
        after[spare[at : at + more]] = arm
        at += more
    return after


def empty() -> Buckets:
    """Nobody in any arm."""
    return np.full(BUCKETS, NOBODY, np.uint8)


def _counts(shares: Sequence[float]) -> list[int]:
    """Buckets of each share, by largest remainders: together as many as the shares' sum."""
    exact = np.array(shares, np.float64) * BUCKETS
    counts: I64 = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    found: list[int] = counts.tolist()
    return found


def _shuffled(name: str) -> I64:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).permutation(BUCKETS)


@dataclass(frozen=True, slots=True)
class Choice:
    """The arm of one request. `override`: a tester's, left out of every readout."""

    experiment: str
    arm: str
    mode: str  # live | holdout
    allocation: int
    override: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """One experiment as requests meet it.

    choices    by the arm's number;   table: bytes (BUCKETS,), the arm's number of each bucket
    eligible   (context feature, condition)
    overrides  key → what its override says
    """

    name: str
    layer: str
    by_session: bool
    table: bytes
    choices: tuple[Choice, ...]
    eligible: tuple[tuple[str, Condition], ...] = ()
    overrides: Mapping[str, Choice] = field(default_factory=dict)
    start: float = 0.0
    stop: float = float("inf")


def split_of(trial: Trial) -> Split:
    """A running experiment, ready to choose."""
    document, allocation = trial.document, len(trial.allocations) - 1
    choices = {
        name: Choice(document.experiment, name, "holdout" if arm.holdout else "live", allocation)
        for name, arm in document.arms.items()
    }
    overrides = {
        key: Choice(document.experiment, arm, choices[arm].mode, allocation, override=True)
        for key, arm in document.overrides.items()
    }
    return Split(
        name=document.experiment,
        layer=document.layer,
        by_session=document.unit == "session",
        table=trial.buckets,
        choices=tuple(choices.values()),
        eligible=tuple((feature, condition_of(said)) for feature, said in document.eligible.items()),
        overrides=overrides,
        start=trial.start,
        stop=trial.stop or float("inf"),
    )


def in_order(splits: Sequence[Split]) -> tuple[Split, ...]:
    """The order in which they are asked: those with a holdout, then by layer and name."""

    def place(split: Split) -> tuple[bool, str, str]:
        return all(choice.mode != "holdout" for choice in split.choices), split.layer, split.name

    return tuple(sorted(splits, key=place))


def choose(
    splits: Sequence[Split], unit: str, session: str | None, context: Mapping[str, Any], now: float
) -> Choice | None:
    """The arm of a request; None: no experiment wants it. `splits` as `in_order`, `unit` is the unit's hash."""
    for split in splits:
        if split.overrides:
            forced = split.overrides.get(unit)
            if forced is not None:
                return forced
        if not split.start <= now < split.stop:
            continue
        key = session if split.by_session else unit
        if key is None or (split.eligible and not _holds(split.eligible, context)):
            continue
        arm = split.table[bucket(key, split.layer)]
        if arm != NOBODY:
            return split.choices[arm]
    return None


def condition_of(said: Scalar | list[Scalar] | Condition) -> Condition:
    """What a document says about a feature, in its one form."""
    if isinstance(said, Condition):
        return said
    return Condition(any=list(said) if isinstance(said, list) else [said])


def _holds(conditions: Sequence[tuple[str, Condition]], context: Mapping[str, Any]) -> bool:
    return all(_fulfils(context.get(feature), condition) for feature, condition in conditions)


def _fulfils(value: Any, condition: Condition) -> bool:
    if value is None or (condition.any is not None and value not in condition.any):
        return False
    if condition.none is not None and value in condition.none:
        return False
    if condition.min is None and condition.max is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (condition.min is None or value >= condition.min) and (condition.max is None or value <= condition.max)


def overlapping(trials: Sequence[Trial], document: Experiment) -> Mask:
    """Buckets that other running experiments of the document's layer on its surface hold, (BUCKETS,)."""
    taken = np.zeros(BUCKETS, np.bool_)
    for trial in trials:
        other = trial.document
        if (
            trial.status == "running"
            and other.experiment != document.experiment
            and other.surface == document.surface
            and other.layer == document.layer
        ):
            taken |= np.frombuffer(trial.buckets, np.uint8) != NOBODY
    return taken
