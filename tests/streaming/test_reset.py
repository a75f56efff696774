"""A reset for drift, from the record to what is drawn from: what it does to sums, and what it is good for."""

import msgspec
import numpy as np
import pytest

from policies.surface import Objective, PolicySpec, Surface
from policies.types import Arrays
from services.studies.drift import SURFACE, Life, changes_of
from streaming import adjusting
from streaming.adapters.memory import MemoryState
from streaming.adjusting import Adjustments
from streaming.configuration import CompiledPolicy, ConfigInvalid, Configs, compile_surface, publish_surface
from streaming.publish import by_lineage, merged, older_sums, reset_factor


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
    learner.learn(changes_of(rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.random(n), 0.0))
    return learner.arrays()


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
    unasked = msgspec.structs.replace(SURFACE.policies["ts"], on_drift=msgspec.UNSET)
    plain = msgspec.structs.replace(SURFACE, policies={"ts": unasked})
    asked = compile_surface(SURFACE)
    assert compile_surface(plain).policies["ts"].key == asked.policies["ts"].key
    assert b"resets" not in msgspec.json.encode(asked.surface)


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


def test_with_a_reset_it_recovers_sooner_and_none_comes_while_nothing_changes() -> None:
    """Three worlds, 4,000 decisions before the switch and 1,500 after: regret after it, at most 0.6 of what it is without."""
    lives = [[Life(seed, way, 80).live(110) for way in ("none", "reset")] for seed in range(3)]
    assert [min(life.reset_at) >= 80 for _, life in lives] == [True] * 3
    without, reset = (np.mean([life.regret[80:] for life in side]) for side in zip(*lives, strict=True))
    assert reset < 0.6 * without
    calm = [Life(10 + seed, "reset", 1_000).live(110) for seed in range(2)]
    assert [life.reset_at for life in calm] == [[], []]
