"""A reset for drift, from the record to what is drawn from: what it does to sums, and what it is good for."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from policies.algorithm import Addend
from policies.carrying import discounted
from policies.evaluation import detector
from policies.surface import FeatureSpec, Objective, PolicySpec, Surface, Vector
from policies.types import F32, F64, Arrays, Changes
from policies.worlds.switches import Switches, drifted
from streaming import adjusting
from streaming.adapters.memory import MemoryState
from streaming.adjusting import Adjustments
from streaming.configuration import CompiledPolicy, ConfigInvalid, Configs, compile_surface, publish_surface
from streaming.publish import by_lineage, merged, older_sums, reset_factor

SURFACE = Surface(
    "home",
    slots=1,
    features=FeatureSpec(context={"taste": Vector(4)}, items={"kind": Vector(4)}, cross=[("taste", "kind")]),
    objectives={"joy": Objective("joy", range=(0, 1))},
    policies={"ts": PolicySpec("linear_thompson", options={"draws": 32}, on_drift=0.0625)},
    live="ts",
)
BATCH, WARM, REFERENCE = 50, 500, 1000
TASTE = 0.15 / 4  # so that what people want varies by 0.15


def following(state: MemoryState) -> tuple[Configs, CompiledPolicy]:
    configs = Configs()
    configs.follow(state)
    compiled = configs.current("home")
    assert compiled is not None
    return configs, compiled.policies["ts"]


def taught(policy: CompiledPolicy, seed: int, n: int = 60) -> Arrays:
    rng = np.random.default_rng(seed)
    assert policy.algorithm.learner is not None
    learner = policy.algorithm.learner(policy.config, policy.problem)
    learner.learn(changes(rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.random(n)))
    return learner.arrays()


def changes(contexts: F64, items: F64, rewards: F64) -> Changes:
    n = len(rewards)
    return Changes(
        context=contexts.astype(np.float32),
        items=items.astype(np.float32),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=np.zeros(n),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=rewards[:, None],
        item_hashes=np.arange(n, dtype=np.uint64),
        propensities=np.ones(n),
    )


def test_evidence_counts_less_by_every_reset_since_and_corrections_go_where_they_were() -> None:
    state = MemoryState()
    publish_surface(state, SURFACE)
    _, first = following(state)
    learned = {first.key: taught(first, 1)}
    adjusting.record(state, "home", Adjustments(1.0, resets={"ts": [0.25]}), 0)
    publish_surface(state, SURFACE)
    _, second = following(state)
    learned[second.key] = taught(second, 2)
    entry = state.get(adjusting.KIND, "home")
    assert entry is not None
    adjusting.record(state, "home", Adjustments(2.0, resets={"ts": [0.25, 0.5]}), entry.version)
    publish_surface(state, SURFACE)
    configs, third = following(state)
    assert len({first.key, second.key, third.key}) == 3
    own = taught(third, 3)
    found = merged(third, [own], older_sums(configs, third, by_lineage([learned])), 0.0)
    for name in ("S", "B", "Y", "n"):
        expected = own[name] + 0.5 * learned[second.key][name] + 0.125 * learned[first.key][name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    publish_surface(state, SURFACE)
    assert following(state)[1].key == third.key  # applied again: nothing more


def test_a_factor_is_of_what_came_since() -> None:
    assert reset_factor((), ()) == 1.0
    assert reset_factor((0.5,), (0.5, 0.25, 0.5)) == 0.125
    assert reset_factor((0.5, 0.25), (0.5,)) == 1.0  # it knows more than the version that asks


def test_no_reset_leaves_keys_and_versions_as_they_were() -> None:
    plain = Surface(
        **{
            **{n: getattr(SURFACE, n) for n in SURFACE.__struct_fields__},
            "policies": {"ts": PolicySpec("linear_thompson")},
        }
    )
    asked = compile_surface(SURFACE)
    assert compile_surface(plain).policies["ts"].key == asked.policies["ts"].key
    assert b"resets" not in adjusting.msgspec.json.encode(asked.surface)


@pytest.mark.parametrize(
    ("policy", "at"),
    [
        (PolicySpec("linear_thompson", on_drift=1.0), "on_drift"),
        (PolicySpec("linear_thompson", on_drift=0.0), "on_drift"),
        (PolicySpec("uniform", on_drift=0.5), "on_drift"),
    ],
)
def test_what_cannot_be_reset_is_named(policy: PolicySpec, at: str) -> None:
    with pytest.raises(ConfigInvalid, match=at):
        compile_surface(Surface("home", objectives={"joy": Objective("joy")}, policies={"ts": policy}))


@dataclass
class Life:
    """One policy in a world of eight arms whose taste W changes once, at `switch`. A batch is a bundle and a block."""

    seed: int
    resets: bool
    switch: int
    regret: list[float] = field(default_factory=list)
    reset_at: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = compile_surface(SURFACE).policies["ts"]
        self.rng = np.random.default_rng(self.seed)
        self.arms, self.W = self.rng.standard_normal((8, 4)), TASTE * self.rng.standard_normal((4, 4))
        self.addends: list[Addend] = []
        self.begin()

    def begin(self) -> None:
        assert self.policy.algorithm.learner is not None
        self.learner = self.policy.algorithm.learner(self.policy.config, self.policy.problem)
        self.reference, self.blocks, self.expected = np.zeros(detector.SIZE), list[F64](), list[float]()
        self.waits = 0.0

    def live(self, batches: int) -> "Life":
        algorithm, problem = self.policy.algorithm, self.policy.problem
        for batch in range(batches):
            if batch == self.switch:  # nothing is left of what people wanted: the walk begins anew
                self.W = drifted(Switches(drift=TASTE), 0 * self.W, 1.0, np.random.default_rng([self.seed, 1]))
            held = merged(self.policy, [self.learner.arrays()], self.addends, 0.0)
            made = algorithm.publish(self.policy.config, problem, held, 0.0, batch)
            contexts = self.rng.standard_normal((BATCH, 4))
            worth = np.clip(0.5 + contexts @ self.W @ self.arms.T, 0, 1)
            scores = np.stack([self.scored(made.arrays, one) for one in contexts.astype(np.float32)])  # (n, arms, m)
            column = self.rng.integers(scores.shape[2], size=BATCH)
            chosen = scores[np.arange(BATCH), :, column].argmax(axis=1)
            rewards = np.clip(worth[np.arange(BATCH), chosen] + 0.1 * self.rng.standard_normal(BATCH), 0, 1)
            self.regret.append(float((worth.max(axis=1) - worth[np.arange(BATCH), chosen]).mean()))
            expected = scores.mean(axis=2)[np.arange(BATCH), chosen]
            self.learner.learn(changes(contexts, self.arms[chosen], rewards))
            self.look(batch, rewards, np.clip(expected, 0, 1), made.diagnostics["examples"])
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
        if self.reference[0] < REFERENCE:
            self.reference += sums
            return
        self.blocks.append(sums)
        found = detector.evidence(self.reference.tolist(), np.stack(self.blocks[-96:]))
        if found.alarm and self.resets:
            self.reset_at.append(batch)
            left = SURFACE.policies["ts"].on_drift
            assert isinstance(left, float)
            self.addends = [
                Addend(one.problem, discounted(one.arrays, left))
                for one in [*self.addends, Addend(self.policy.problem, self.learner.arrays())]
            ]
            self.begin()
            self.waits = 2 * left * examples


def test_with_a_reset_it_recovers_sooner_and_none_comes_while_nothing_changes() -> None:
    """Three worlds, 4,000 decisions before the switch and 1,500 after: regret after it, at most 0.6 of what it is without."""
    lives = [[Life(seed, resets, 80).live(110) for resets in (False, True)] for seed in range(3)]
    assert [min(life.reset_at) >= 80 for _, life in lives] == [True] * 3
    without, reset = (np.mean([life.regret[80:] for life in side]) for side in zip(*lives, strict=True))
    assert reset < 0.6 * without
    calm = [Life(10 + seed, True, 1_000).live(110) for seed in range(2)]
    assert [life.reset_at for life in calm] == [[], []]
