"""What a surface's settled decisions say about change, folded each exactly once: features that move, predictions that fail.

    features   of contexts (one row a decision) and of shown items (one a slot), counted in two windows (`evaluation.stability`)
    residuals  of each policy that predicts rewards: first slot's reward less what its bundle expected of that item there, in
               spans of the objectives, and whether that was more than it mostly expects, in blocks of decision time
               (`evaluation.detector`)
    pairs      of neighbouring slots (`policies.examination`), where the surface asks for an estimate of how slots are examined: of
               sampled decisions without pins, masks of some slots only, or constraints inside the slate

A residual is out of sample: its bundle was published before the decision. One bundle serves for `bundle_seconds` of decisions,
and `each` decisions of a policy and page are scored, whichever come first, so scoring costs a bounded share of any traffic.
A policy's residuals begin anew with its learner key. They begin when its bundles hold `warm` examples: before, it is the model
that moves; after a reset for drift, when `outweighs` times as many examples have come as the reset had left. State is by partition
and written in one transaction with how far it goes; partitions add up.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies import examination
from policies.algorithm import Problem
from policies.bundle import Manifest
from policies.errors import Corrupt
from policies.evaluation import detector, stability
from policies.evaluation.detector import Evidence
from policies.evaluation.stability import Bins, Counts, Shift
from policies.examination import Examined
from policies.types import F32, F64
from streaming.configuration import Compiled
from streaming.events import Decision, floats
from streaming.experiences import Experience

BLOCKS = 96  # kept: a day of quarters of an hour
SIDES = ("context", "item")
UNIT = re.compile("[0-9a-f]{1,16}")
Sums = list[float]  # as `detector.evidence` takes them


@dataclass(frozen=True, slots=True)
class Watch:
    """How closely it is looked.

    reference  scored decisions that make a policy's reference;   warm: examples of a bundle from which on residuals count
    """

    block_seconds: float = 900.0
    bundle_seconds: float = 60.0
    each: int = 64
    warm: float = 1_000.0
    outweighs: float = 2.0
    reference: int = 4_000
    alarm_blocks: float = detector.ALARM_BLOCKS


WATCH = Watch()


class Side(Struct, array_like=True):
    """`stability.Counts` as bytes."""

    at: float
    reference: bytes
    recent: bytes


class Residuals(Struct, array_like=True):
    """Of one policy, as long as its learner `key` is the same. `bundle` predicts decisions until `until`.

    expected   n and Σ of what was expected;   resets: of the policy when this began
    waits      examples to be seen first; −1: not known yet
    """

    key: str
    bundle: str = ""
    until: float = 0.0
    reference: Sums = []
    blocks: dict[int, Sums] = {}
    expected: list[float] = []
    resets: int = 0
    waits: float = 0.0


class OfSurface(Struct):
    """`schema`: of the encoder whose features are counted; `unscored`: decisions whose bundle could not be read; `pairs`: sums
    (groups, 2, slots − 1) of rewards of the objective `of`."""

    schema: str = ""
    sides: dict[str, Side] = {}
    residuals: dict[str, Residuals] = {}
    unscored: int = 0
    of: str = ""
    pairs: bytes = b""
    paired: int = 0


Watched = dict[str, OfSurface]  # by surface
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Watched).decode


class Expecting(Protocol):
    """Bundles that predict."""

    def manifest(self, bundle: str) -> Manifest:
        """Raises Corrupt where it cannot be read."""

    def expected(self, bundle: str, decision: Decision) -> float:
        """Weighted reward of the first slot's item in that slot. Raises Corrupt."""


def read(state: bytes) -> Watched:
    return _decode(state) if state else {}


def written(state: Watched) -> bytes:
    return _encode(state)


def fold(
    state: Watched,
    settled: Sequence[Experience],
    current: Callable[[str], Compiled | None],
    expecting: Expecting,
    partitions: int,
    watch: Watch = WATCH,
) -> Watched:
    """The state after the next settled decisions of a partition. `state` is changed. `partitions`: that share the reference."""
    for name in dict.fromkeys(one.decision.surface for one in settled):
        compiled = current(name)
        if compiled is None:
            continue
        of = state.setdefault(name, OfSurface())
        schema = compiled.encoder.schema
        found = [one for one in settled if one.decision.surface == name and one.row.schema == schema]
        if of.schema != schema:
            of.schema, of.sides = schema, {}
        _count(of, compiled, found)
        if compiled.surface.examination == "estimated" and compiled.surface.slots > 1:
            _pair(of, compiled, [one for one in settled if one.decision.surface == name])
        for policy in dict.fromkeys(one.decision.policy for one in found):
            mine = [one for one in found if one.decision.policy == policy and _usable(one)]
            _score(of, compiled, policy, mine, expecting, watch, partitions)
    return state


def shifts(compiled: Compiled, parts: Iterable[OfSurface]) -> dict[str, Shift]:
    """`context.device`, `item.price` … → what became of it; nothing of features that were seen too seldom."""
    held = [part for part in parts if part.schema == compiled.encoder.schema]
    found: dict[str, Shift] = {}
    for side in SIDES:
        counts = [_counts(part.sides[side]) for part in held if side in part.sides]
        if counts:
            pooled = bins_of(compiled, side).shifts(stability.pooled(counts))
            found |= {f"{side}.{name}": shift for name, shift in pooled.items()}
    return found


def evidence(parts: Iterable[OfSurface], policy: str, key: str, watch: Watch = WATCH) -> Evidence | None:
    """Of a policy's residuals over partitions; None before half of the reference is there."""
    held = [one for part in parts if (one := part.residuals.get(policy)) is not None and one.key == key]
    reference = np.sum([one.reference for one in held], axis=0) if held else np.zeros(detector.SIZE)
    if reference[0] < max(watch.reference / 2, 1):
        return None
    blocks: dict[int, F64] = {}
    for one in held:
        for block, sums in one.blocks.items():
            blocks[block] = blocks.get(block, np.zeros(detector.SIZE)) + sums
    rows = np.array([blocks[block] for block in sorted(blocks)[-BLOCKS:]]).reshape(-1, detector.SIZE)
    return detector.evidence(reference.tolist(), rows, watch.alarm_blocks)


def examined(compiled: Compiled, parts: Iterable[OfSurface]) -> Examined | None:
    """How often each slot of a surface is looked at; None where nothing was counted."""
    size = examination.start(compiled.surface.slots).size
    held = [np.frombuffer(part.pairs) for part in parts if part.of == clicked(compiled)]
    held = [one for one in held if one.size == size]
    if not held or compiled.surface.examination != "estimated":
        return None
    return examination.estimate(np.sum(held, axis=0).reshape(examination.GROUPS, 2, -1))


def clicked(compiled: Compiled) -> str:
    """The objective that tells whether a slot was looked at: the first that the live policy weighs."""
    surface = compiled.surface
    live = compiled.policies[surface.live or surface.fallback]
    return next((name for name, weight in live.problem.weights.items() if weight), "")


def span_of(problem: Problem) -> tuple[float, float] | None:
    """(low, high) of the weighted reward of a slot; None where an objective that is weighed has no range."""
    low = high = 0.0
    for name, weight in problem.weights.items():
        span = problem.objectives[name].range
        if weight == 0.0:
            continue
        if span is None:
            return None
        ends = sorted((weight * span[0], weight * span[1]))
        low, high = low + ends[0], high + ends[1]
    return (low, high) if high > low else None


def bins_of(compiled: Compiled, side: str) -> Bins:
    spec = compiled.encoder.spec
    return Bins(spec.context if side == "context" else spec.items)


def _count(of: OfSurface, compiled: Compiled, found: Sequence[Experience]) -> None:
    """Features of decisions of the encoder that answers now."""
    encoder = compiled.encoder
    times = np.array([one.decision.at for one in found])
    contexts = [_vector(one.decision.context) for one in found]
    shown = [_vector(one.decision.shown) for one in found]
    filled = np.array([len(one.decision.slate) for one in found], np.int64)
    sound = [
        i
        for i, (context, items) in enumerate(zip(contexts, shown, strict=True))
        if context.size == encoder.context_size and items.size == filled[i] * encoder.item_size
    ]
    if not sound:
        return
    rows = {
        "context": (np.stack([contexts[i] for i in sound]), times[sound]),
        "item": (
            np.concatenate([shown[i] for i in sound]).reshape(-1, max(encoder.item_size, 1)),
            np.repeat(times[sound], filled[sound]),
        ),
    }
    for side, (encoded, at) in rows.items():
        bins = bins_of(compiled, side)
        if not bins.size:
            continue
        before = _counts(of.sides[side]) if side in of.sides else bins.start()
        after = bins.add(before, encoded, at)
        of.sides[side] = Side(after.at, after.reference.tobytes(), after.recent.tobytes())


def _pair(of: OfSurface, compiled: Compiled, found: Sequence[Experience]) -> None:
    """Neighbouring slots of sampled decisions."""
    name, slots = clicked(compiled), compiled.surface.slots
    sums = np.frombuffer(of.pairs).copy()
    empty = examination.start(slots)
    if of.of != name or sums.size != empty.size:
        of.of, of.paired, sums = name, 0, empty
    sums = sums.reshape(empty.shape)
    for one in found:
        if name not in one.row.objectives or not _free(one.decision):
            continue
        decision, column = one.decision, one.row.objectives.index(name)
        k = len(decision.slate)
        assert decision.sample is not None  # `_free` asks for it
        distributions = np.frombuffer(decision.sample.distributions).reshape(k, -1)
        rewards = one.rewards[:, column] - compiled.surface.objectives[name].default
        viewed = np.frombuffer(one.row.viewed, np.uint8).astype(np.float64)
        group = int(decision.unit, 16) % examination.GROUPS
        examination.add(sums, group, rewards * viewed, distributions, np.array(decision.rows), viewed)
        of.paired += 1
    of.pairs = sums.tobytes()


def _free(decision: Decision) -> bool:
    """Whether a decision logs its distributions and any item could follow any other, whatever was drawn."""
    sample, k = decision.sample, len(decision.slate)
    if sample is None or k < 2 or decision.slots != list(range(k)) or decision.pinned or sample.pins:
        return False
    if sample.within is not None and sample.within.names:
        return False
    if sample.masks is not None:
        masks = np.frombuffer(sample.masks, np.uint8).reshape(-1, len(decision.candidates))
        if (masks != masks[0]).any():
            return False
    return len(sample.distributions) == 8 * k * len(decision.candidates) and UNIT.fullmatch(decision.unit) is not None


def _score(
    of: OfSurface,
    compiled: Compiled,
    name: str,
    found: Sequence[Experience],
    expecting: Expecting,
    watch: Watch,
    partitions: int,
) -> None:
    """Residuals of a policy's decisions."""
    policy = compiled.policies.get(name)
    if policy is None or "predicts" not in policy.algorithm.traits:
        return
    span = span_of(policy.problem)
    if span is None:
        return
    kept = of.residuals.get(name)
    if kept is None or kept.key != policy.key:
        resets, before = len(policy.resets), 0 if kept is None else kept.resets
        waits = -1.0 if kept is not None and resets > before else 0.0
        kept = of.residuals[name] = Residuals(
            policy.key,
            reference=[0.0] * detector.SIZE,
            blocks={},
            expected=[0.0, 0.0],
            resets=resets,
            waits=waits,
        )
    low, high = span
    scored = 0
    for one in found:
        if scored >= watch.each:
            break
        decision = one.decision
        if decision.at >= kept.until or not kept.bundle:
            kept.bundle, kept.until = decision.bundle, decision.at + watch.bundle_seconds
        try:
            manifest = expecting.manifest(kept.bundle)
            examples = manifest.diagnostics.get("examples", 0.0)
            if manifest.key != policy.key:
                kept.bundle = ""  # of a version before: the next may be of this one
                continue
            if kept.waits < 0.0:
                kept.waits = watch.outweighs * examples / partitions
            if kept.waits > 0.0:
                kept.waits = max(kept.waits - decision.weight * sum(one.row.present), 0.0)
                continue
            if manifest.created_at > decision.at or examples < watch.warm:
                continue
            expected = expecting.expected(kept.bundle, decision)
        except Corrupt:
            of.unscored += 1
            kept.bundle = ""
            continue
        scored += 1
        weights = [manifest.weights.get(objective, 0.0) for objective in one.row.objectives]
        reward = float(np.dot(weights, one.rewards[0]))
        cut = [min(max(value, low), high) for value in (reward, expected)]
        count, total = kept.expected
        sign = float(np.sign(cut[1] - total / count)) if count else 0.0
        kept.expected = [count + 1.0, total + cut[1]]
        found_sums = detector.sums_of((cut[0] - cut[1]) / (high - low), sign).tolist()
        into = kept.reference
        if into[0] >= watch.reference // partitions:
            into = kept.blocks.setdefault(int(decision.at // watch.block_seconds), [0.0] * detector.SIZE)
        for i, value in enumerate(found_sums):
            into[i] += value
    for old in sorted(kept.blocks)[:-BLOCKS]:
        del kept.blocks[old]


def _usable(one: Experience) -> bool:
    """Whether the first slot of a decision was drawn from a bundle, filled and seen."""
    decision = one.decision
    if decision.mode not in ("live", "holdout") or not decision.bundle or not decision.slots:
        return False
    return decision.slots[0] == 0 and 0 not in decision.pinned and bool(one.row.viewed) and one.row.viewed[0] == 1


def _counts(side: Side) -> Counts:
    return Counts(side.at, np.frombuffer(side.reference), np.frombuffer(side.recent))


def _vector(vector: bytes | list[float]) -> F32:
    try:
        return floats(vector)
    except Corrupt:  # of a producer that is not ours: the joiner has set it aside
        return np.zeros(0, np.float32)
