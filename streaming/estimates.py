"""What policies earn, folded from settled decisions, each exactly once: values that hold at any time, and the gate of a release.

    served, uniform, greedy   from decisions that no experiment took: as they were, with w = (1/∣R_t∣)/p_t, and with
                              w = 1[greedy item]/p_t, slot by slot given the slots before as logged
    a policy by name          from its own decisions (w = 1), and from those it was drawn beside (w = π/β of `shadows`)
    gate                      of the release that runs: w r − r of its candidate on the baseline's decisions after it began

State is kept by partition, in the order in which decisions settle, and is written in one transaction with how far it goes. It
is a function of the log (of the release too, for the gate), so an interrupted or repeated fold comes to the same numbers.
Partitions add up: each one's predictions rest on its own past (`confidence.pooled`).

Source   methods.md §5; `policies.evaluation.anytime`, `policies.evaluation.gate`
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Rejected
from policies.evaluation import anytime, confidence, gate
from policies.evaluation.anytime import Running
from policies.evaluation.confidence import Evidence
from policies.evaluation.gate import Gate, Judged
from policies.evaluation.logged import Logged, checked
from policies.releases import WATCHED, Release
from policies.surface import Surface
from policies.types import F64
from streaming.events import Decision
from streaming.experiences import Experience

SERVED, UNIFORM, GREEDY = "served", "uniform", "greedy"
BLOCK_SECONDS, BLOCKS = 3600.0, 48  # estimates of the last two days by the hour: is it learning?
Sums = list[float]  # count, total, scatter


class Value(Struct, array_like=True):
    """Of one policy and objective: evidence on w r and w (1 − r); `slots` Σ of slots shown; `blocks` hour → [n, Σ w r]."""

    gained: Sums
    missed: Sums
    slots: float = 0.0
    blocks: dict[int, list[float]] = {}


class Judging(Struct, array_like=True):
    """`gate.Judged`, and Σ overlap, of the run it was judged in."""

    run: int
    evidence: Sums
    design: list[float]
    designed: list[float]
    decisions: int = 0
    learned_from: int = 0
    outside: int = 0
    overlap: float = 0.0


class OfSurface(Struct):
    """`values` by (policy, `scale_of` an objective); `unusable`: decisions of a producer that does not say what was needed; `outside`:
    rewards clipped to their range."""

    values: dict[str, dict[str, Value]] = {}
    judging: Judging | None = None
    decisions: int = 0
    unusable: int = 0
    outside: int = 0
    since: float = 0.0


Estimated = dict[str, OfSurface]  # by surface
Versions = Callable[[str], Surface | None]  # of the hash a decision names
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Estimated).decode


class Estimates(Protocol):
    """State by partition, and how far each has been folded."""

    def load(self, partition: int) -> tuple[int, bytes]:
        """(next number to fold, state); (0, b"") before the first commit. Raises Unavailable."""

    def commit(self, partition: int, since: int, number: int, state: bytes) -> None:
        """In one transaction. Raises Unavailable, and Rejected('fenced') when the partition is not at `since`."""


def read(state: bytes) -> Estimated:
    return _decode(state) if state else {}


def written(state: Estimated) -> bytes:
    return _encode(state)


def fold(
    state: Estimated, settled: Sequence[Experience], versions: Versions, releases: Mapping[str, Release]
) -> Estimated:
    """The state after the next settled decisions of a partition, in order. `state` is changed."""
    for name in dict.fromkeys(one.decision.surface for one in settled):
        of = state.setdefault(name, OfSurface())
        found = [one for one in settled if one.decision.surface == name and any(one.row.viewed)]
        usable = [one for one in found if _usable(one.decision)]
        of.unusable += len(found) - len(usable)
        of.decisions += len(usable)
        if usable and not of.since:
            of.since = usable[0].decision.at
        for version in dict.fromkeys(one.decision.config for one in usable):
            surface = versions(version)
            part = [one for one in usable if one.decision.config == version]
            if surface is None:  # nobody knows what its rewards mean
                of.unusable += len(part)
                continue
            _values(of, surface, part)
        release = releases.get(name)
        if release is not None and release.stage in WATCHED:
            _judge(of, release, versions, usable)
    return state


def pooled_value(values: Iterable[Value], size: float, low: float, level: float = 0.95) -> dict[str, float | None]:
    """Estimate and anytime-valid bounds, reward a decision, of one policy's parts. `size` (high − low)·slots."""
    parts = list(values)
    running = Running(
        *(confidence.pooled([_evidence(getattr(p, side), 0.5) for p in parts]) for side in ("gained", "missed"))
    )
    found = anytime.bounds(running, level)
    count = float(found.count)
    base = low * sum(part.slots for part in parts) / max(count, 1.0)
    below, above = float(found.low), float(found.high)
    return {
        "decisions": count,
        "estimate": base + size * float(found.estimate) if count else None,
        "low": base + size * below,
        "high": base + size * max(below, above),
    }


def pooled_gate(parts: Iterable[Judging]) -> Judged | None:
    """The gate's state over partitions; None before a decision was judged."""
    found = [
        Judged(
            _evidence(part.evidence, 1.0),
            np.array(part.design),
            np.array(part.designed),
            part.decisions,
            part.learned_from,
            part.outside,
        )
        for part in parts
    ]
    return gate.pooled(found) if found else None


def gate_of(release: Release, surface: Surface) -> Gate:
    """What was agreed when the release began. Raises Rejected where the objective is gone or lost its range."""
    objective = surface.objectives.get(release.objective)
    if objective is None or objective.range is None:
        raise Rejected(f"Objective {release.objective!r} has no range now", at="$.terms.objective", code="no_range")
    terms = release.terms
    return Gate(
        objective.range,
        trained_through=release.began,  # a shadow's bundle is older than its decision: it cannot have learned from it
        candidate=release.gate,
        alpha=terms.alpha,
        weighting=terms.weighting,
        margin=terms.margin,
        lower_is_better=objective.better == "lower",
    )


def scale_of(surface: Surface, objective: str) -> str:
    """Name of an objective's sums: another range or number of slots begins others, and coming back goes on with these."""
    span = surface.objectives[objective].range
    return f"{objective} {surface.slots} {span}"


def _usable(decision: Decision) -> bool:
    k = len(decision.slate)
    sizes = (decision.propensities, decision.remaining, decision.greedy, decision.rows)
    whole = k > 0 and all(len(one) == k for one in sizes)
    return whole and min(decision.remaining) > 0 and all(0.0 < p <= 1.0 for p in decision.propensities)


def _weights(decision: Decision) -> dict[str, F64]:
    """Weight of every slot (k,), of the policies that a decision says something of."""
    p, k = np.array(decision.propensities), len(decision.propensities)
    found: dict[str, F64] = {}
    if decision.mode in ("live", "holdout") and decision.policy not in (SERVED, UNIFORM, GREEDY):
        found[decision.policy] = np.ones(k)
    if decision.mode == "live" and decision.experiment is None:
        found[SERVED] = np.ones(k)
        if decision.shortlist is None:  # there ∣R∣ is the shortlist's, and uniform would draw from all that is eligible
            found[UNIFORM] = 1.0 / (np.array(decision.remaining) * p)
        found[GREEDY] = (np.array(decision.rows) == np.array(decision.greedy)) / p
    for shadow in decision.shadows:
        if len(shadow.propensities) == k and shadow.policy not in found:
            found[shadow.policy] = np.array(shadow.propensities) / p
    return found


def _values(of: OfSurface, surface: Surface, part: Sequence[Experience]) -> None:
    """Add decisions of one version."""
    ranges = [(name, one.range) for name, one in surface.objectives.items() if one.range is not None]
    gains: dict[tuple[str, str], list[tuple[float, float, int, float]]] = {}
    for one in part:
        weights, rewards, k = _weights(one.decision), one.rewards, len(one.decision.slate)
        empty = max(0, surface.slots - k)  # slots without a candidate earn nothing, and are missed
        for name, span in ranges:
            r, outside = anytime.scaled(rewards[:, one.row.objectives.index(name)], span)
            of.outside += outside
            for policy, w in weights.items():
                gained, missed = float(w @ r), float(w @ (1.0 - r)) + empty
                size = max(surface.slots, k)
                gains.setdefault((policy, name), []).append((gained / size, missed / size, k, one.decision.at))
    for (policy, name), rows in gains.items():
        value = of.values.setdefault(policy, {}).setdefault(
            scale_of(surface, name), Value([0.0] * 3, [0.0] * 3, 0.0, {})
        )
        value.gained = _updated(value.gained, [row[0] for row in rows], 0.5)
        value.missed = _updated(value.missed, [row[1] for row in rows], 0.5)
        value.slots += sum(row[2] for row in rows)
        for gained, _, _, at in rows:
            block = value.blocks.setdefault(int(at // BLOCK_SECONDS), [0.0, 0.0])
            block[0] += 1.0
            block[1] += gained
        for old in sorted(value.blocks)[:-BLOCKS]:
            del value.blocks[old]


def _judge(of: OfSurface, release: Release, versions: Versions, usable: Sequence[Experience]) -> None:
    """Add what the candidate of a release says of the baseline's decisions."""
    if of.judging is None or of.judging.run != release.run:
        of.judging = None
    kept: list[tuple[Experience, F64, list[float]]] = []
    overlap, agreed = 0.0, None
    for one in sorted(usable, key=lambda e: e.decision.at):
        decision = one.decision
        if decision.policy != release.baseline or decision.mode != "live" or decision.at <= release.began:
            continue
        for shadow in decision.shadows:
            if shadow.policy != release.candidate:
                continue
            surface = versions(decision.config)
            fits = len(shadow.propensities) == len(decision.slate) == len(shadow.design)
            if not fits or surface is None or release.objective not in one.row.objectives:
                of.unusable += 1
                continue
            agreed = surface
            design = [np.inf if value is None else value for value in shadow.design]
            kept.append((one, np.array(shadow.propensities), design))
            overlap += shadow.overlap
    if not kept or agreed is None:
        return
    try:
        settings = gate_of(release, agreed)
    except Rejected:  # an edit took the range away: there is nothing to judge by
        of.unusable += len(kept)
        return
    before = of.judging
    k = len(before.design) if before is not None else agreed.slots
    state = gate.begin(k) if before is None else pooled_gate([before])
    assert state is not None
    after = gate.judge(settings, state, _logged(release, kept, k))
    of.judging = Judging(
        release.run,
        _sums(after.evidence),
        after.design.tolist(),
        after.designed.tolist(),
        after.decisions,
        after.learned_from,
        after.outside,
        overlap + (before.overlap if before is not None else 0.0),
    )


def _logged(release: Release, kept: Sequence[tuple[Experience, F64, list[float]]], k: int) -> Logged:
    """(N, k); slots beyond the first k of a version with more are left out: what was agreed has so many."""
    n = len(kept)
    rewards, behaviour, target = np.zeros((n, k)), np.ones((n, k)), np.ones((n, k))
    present, design = np.zeros((n, k), np.bool_), np.ones((n, k))
    for i, (one, own, spread) in enumerate(kept):
        size = min(k, len(own))
        rewards[i, :size] = one.rewards[:size, one.row.objectives.index(release.objective)]
        behaviour[i, :size] = one.decision.propensities[:size]
        target[i, :size] = np.minimum(own[:size], 1.0)  # sums of floats pass 1 in the last digit
        present[i, :size] = True
        design[i, :size] = spread[:size]
    times = np.array([one.decision.at for one, _, _ in kept])
    return checked(Logged(rewards, behaviour, target, present, np.arange(n), times, design=design))


def _evidence(sums: Sums, guess: float) -> Evidence:
    count, total, scatter = (np.asarray(value) for value in sums)
    return Evidence(count, total, scatter, guess)


def _sums(evidence: Evidence) -> Sums:
    return [float(evidence.count), float(evidence.total), float(evidence.scatter)]


def _updated(sums: Sums, values: Sequence[float], guess: float) -> Sums:
    return _sums(confidence.update(_evidence(sums, guess), np.array(values)))
