"""Drift of residuals: how often an alarm is false, how soon a change is found, and what a reset is worth.

    streams   clicks that are expected with 0.3, 40 decisions a block, judged after every block by `policies.evaluation.detector`
    life      linear_thompson among eight arms, whose taste begins anew once; a batch of 50 decisions is a bundle and a block

Detector, sums, addends and draws are those that serve; numbers of decisions are smaller than a surface's, see the notes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from policies.algorithm import Addend
from policies.carrying import discounted
from policies.evaluation import detector
from policies.surface import FeatureSpec, Objective, PolicySpec, Surface, Vector
from policies.types import F32, F64, Arrays, Changes
from policies.worlds.switches import Switches, drifted
from services.studies.study import Cell, Study, proportion, with_interval
from streaming.configuration import compile_surface
from streaming.publish import merged

STREAMS, DAYS, A_DAY = 40, 30, 96  # blocks of a quarter of an hour
EACH, EXPECTED, REFERENCE = 40, 0.3, 4_000
SEEDS, SWITCH, BATCHES = 12, 80, 120
BATCH, WARM, BASE = 50, 500, 1_000  # decisions of a batch, before residuals count, and of their reference
TASTE = 0.15 / 4  # so that what people want varies by 0.15
LEFT = 0.0625
HALF_LIFE = 1_000.0  # decisions, of the third way

SURFACE = Surface(
    "home",
    slots=1,
    features=FeatureSpec(context={"taste": Vector(4)}, items={"kind": Vector(4)}, cross=[("taste", "kind")]),
    objectives={"joy": Objective("joy", range=(0, 1))},
    policies={"ts": PolicySpec("linear_thompson", options={"draws": 32}, on_drift=LEFT)},
    live="ts",
)


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`seeds`: lives. `quick`: two of them, and streams of a day."""
    study = Study("Drift of residuals: false alarms, delay, and what a reset is worth")
    streams, days = (4, 1) if quick else (STREAMS, DAYS)
    _alarms(study, streams, days)
    _lives(study, seeds or (2 if quick else SEEDS))
    return study


# -- alarms --------------------------------------------------------------------------------------------------------------


def residuals(rng: np.random.Generator, blocks: int, chance: float) -> F64:
    """Sums (blocks, 5) of clicks less what was expected, every other prediction above the mean."""
    e = (rng.random((blocks, EACH)) < chance) - EXPECTED
    z = e * np.where(np.arange(EACH) % 2, 1.0, -1.0)
    x, z = 0.5 + 0.5 * e, 0.5 + 0.5 * z
    columns = [np.full(blocks, float(EACH)), x.sum(axis=1), (x**2).sum(axis=1), z.sum(axis=1), (z**2).sum(axis=1)]
    return np.stack(columns, axis=1)


def run_length(rng: np.random.Generator, off: float, most: int) -> int | None:
    """Blocks until an alarm, of clicks that are `off` (in units of τ) from the reference's own; None: none within `most`."""
    reference = residuals(rng, REFERENCE // EACH, EXPECTED).sum(axis=0).tolist()
    base = detector.evidence(reference, np.zeros((0, detector.SIZE)))
    chance = EXPECTED + 2.0 * (base.reference + off * base.tolerated - 0.5)
    rows = residuals(rng, most, chance)
    for j in range(1, most + 1):
        if detector.evidence(reference, rows[max(0, j - A_DAY) : j]).alarm:
            return j
    return None


def _alarms(study: Study, streams: int, days: int) -> None:
    rows: list[list[Cell]] = []
    for off, what in ((0.0, "nothing changes"), (1.0, "as far off as is tolerated"), (2.0, ""), (3.0, ""), (5.0, "")):
        rng = np.random.default_rng([int(off), 5])
        found = [run_length(rng, off, days * A_DAY) for _ in range(streams)]
        alarms = [one for one in found if one is not None]
        share, low, high = proportion(len(alarms), streams)
        median = float(np.median([days * A_DAY if one is None else one for one in found]))
        blocks = None if median >= days * A_DAY else median
        fine = bool(share <= 1.0 - np.exp(-1.0)) if off <= 1.0 else None  # what alarms evenly c blocks apart would give
        rows.append([f"{off:g} τ", what, streams, share, f"[{low:.2f}, {high:.2f}]", blocks, fine])
    columns = ["mean is off by", "", "streams", f"alarm within {days} days", "95%", "median blocks until", "≤ 0.63"]
    study.table("Alarms, c = 2,880 blocks", columns, rows)
    study.note(
        "Promised is a run of at least 2,880 blocks on average; alarms that came evenly, as often as that, would be in 63% of "
        f"streams within {DAYS} days. τ is a tenth of a standard deviation and three standard errors of a reference of {REFERENCE:,}: "
        f"{2 * _tau():.3f} in chance of a click."
    )


def _tau() -> float:
    rng = np.random.default_rng(5)
    reference = residuals(rng, REFERENCE // EACH, EXPECTED).sum(axis=0).tolist()
    return detector.evidence(reference, np.zeros((0, detector.SIZE))).tolerated


# -- resets --------------------------------------------------------------------------------------------------------------


@dataclass
class Life:
    """One policy in a world of eight arms whose taste W begins anew at batch `switch`.

    way     none | reset | half-life
    regret  mean of each batch;   reset_at: batches
    """

    seed: int
    way: str
    switch: int
    regret: list[float] = field(default_factory=list)
    reset_at: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        surface, options = SURFACE, dict(SURFACE.policies["ts"].options)
        if self.way == "half-life":
            spec = msgspec.structs.replace(surface.policies["ts"], options={**options, "half_life": HALF_LIFE})
            surface = msgspec.structs.replace(surface, policies={"ts": spec})
        self.policy = compile_surface(surface).policies["ts"]
        self.rng = np.random.default_rng(self.seed)
        self.arms, self.W = self.rng.standard_normal((8, 4)), TASTE * self.rng.standard_normal((4, 4))
        self.addends: list[Addend] = []
        self.begin()

    def begin(self) -> None:
        assert self.policy.algorithm.learner is not None  # linear_thompson has one
        self.learner = self.policy.algorithm.learner(self.policy.config, self.policy.problem)
        self.reference, self.blocks, self.expected = np.zeros(detector.SIZE), list[F64](), list[float]()
        self.waits = 0.0

    def live(self, batches: int) -> "Life":
        algorithm, problem = self.policy.algorithm, self.policy.problem
        for batch in range(batches):
            if batch == self.switch:  # nothing is left of what people wanted: the walk begins anew
                self.W = drifted(Switches(drift=TASTE), 0 * self.W, 1.0, np.random.default_rng([self.seed, 1]))
            now = float(batch * BATCH)
            held = merged(self.policy, [self.learner.arrays()], self.addends, now)
            made = algorithm.publish(self.policy.config, problem, held, now, batch)
            contexts = self.rng.standard_normal((BATCH, 4))
            worth = np.clip(0.5 + contexts @ self.W @ self.arms.T, 0, 1)
            scores = np.stack([self.scored(made.arrays, one) for one in contexts.astype(np.float32)])  # (n, arms, m)
            row, column = np.arange(BATCH), self.rng.integers(scores.shape[2], size=BATCH)
            chosen = scores[row, :, column].argmax(axis=1)
            rewards = np.clip(worth[row, chosen] + 0.1 * self.rng.standard_normal(BATCH), 0, 1)
            self.regret.append(float((worth.max(axis=1) - worth[row, chosen]).mean()))
            expected = np.clip(scores.mean(axis=2)[row, chosen], 0, 1).astype(np.float64)
            self.learner.learn(changes_of(contexts, self.arms[chosen], rewards, now))
            self.look(batch, rewards, expected, made.diagnostics["examples"])
        return self

    def scored(self, arrays: Arrays, context: F32) -> F32:
        inputs = {"context": context, "items": self.arms.astype(np.float32), "weights": np.ones(1, np.float32)}
        return self.policy.algorithm.reference(self.policy.config, self.policy.problem, arrays, inputs)

    def look(self, batch: int, rewards: F64, expected: F64, examples: float) -> None:
        """As `streaming.watching` has it."""
        if self.waits > 0 or examples < WARM:
            self.waits -= BATCH
            return
        signs = np.sign(expected - (np.mean(self.expected) if self.expected else np.inf))
        self.expected.append(float(expected.mean()))
        sums = np.sum([detector.sums_of(*pair) for pair in zip(rewards - expected, signs, strict=True)], axis=0)
        if self.reference[0] < BASE:
            self.reference += sums
            return
        self.blocks.append(sums)
        found = detector.evidence(self.reference.tolist(), np.stack(self.blocks[-A_DAY:]))
        if found.alarm and self.way == "reset":
            self.reset_at.append(batch)
            every = [*self.addends, Addend(self.policy.problem, self.learner.arrays())]
            self.addends = [replace(one, arrays=discounted(one.arrays, LEFT)) for one in every]
            self.begin()
            self.waits = 2 * LEFT * examples


def changes_of(contexts: F64, items: F64, rewards: F64, at: float) -> Changes:
    n = len(rewards)
    return Changes(
        context=contexts.astype(np.float32),
        items=items.astype(np.float32),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=np.full(n, at),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=rewards[:, None],
        item_hashes=np.arange(n, dtype=np.uint64),  # nothing here reads them, nor what follows
        propensities=np.ones(n),
    )


def _lives(study: Study, seeds: int) -> None:
    rows: list[list[Cell]] = []
    base: Sequence[Life] = []
    told = []
    for way in ("none", "reset", "half-life"):
        lives = [Life(2_000 + seed, way, SWITCH).live(BATCHES) for seed in range(seeds)]
        base = base or lives
        before, after, late = (
            np.array([np.mean(life.regret[span]) for life in lives])
            for span in (slice(SWITCH // 2, SWITCH), slice(SWITCH, None), slice(BATCHES - 10, None))
        )
        first = np.array([np.mean(life.regret[SWITCH:]) for life in base])
        less = None if way == "none" else with_interval(100 * (1 - after / first))
        rows.append([way, with_interval(before), with_interval(after), with_interval(late), less])
        if way == "reset":
            early = sum(at < SWITCH for life in lives for at in life.reset_at)
            delays = [min(at for at in life.reset_at if at >= SWITCH) - SWITCH for life in lives if life.reset_at]
            told = [early, len(delays), float(np.median(delays or [0])) * BATCH]
    columns = ["way", "regret before", "after the switch", "its last 500 decisions", "less than none, %"]
    study.table(
        f"Taste begins anew after {SWITCH * BATCH:,} decisions; {(BATCHES - SWITCH) * BATCH:,} follow", columns, rows
    )
    study.note(
        f"{seeds} lives, regret a decision of rewards from 0 to 1; nothing was tuned on them. `none` never forgets. Resets before "
        f"the switch: {told[0]}; {told[1]} of {seeds} lives reset after it, the median one {told[2]:.0f} decisions later. `half-life` "
        f"forgets half in {HALF_LIFE:,.0f} decisions all along, and pays for it where nothing changes."
    )
    study.note(
        f"A reset leaves {LEFT:g} of the evidence. In these lives residuals count from {WARM} examples on, and {BASE:,} are the reference "
        "(1,000 and 4,000 in the service)."
    )
