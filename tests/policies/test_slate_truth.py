"""The logged propensity is the probability that was drawn from: shown on 20,000 draws, and shown to be able to fail."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from policies.evaluation.truth import Truth, propensity_z
from policies.slate import HEADS, draw, uniforms
from policies.types import DrawSettings, Slate

DECISIONS, N, K = 20_000, 12, 4
IDS = [f"item-{c}" for c in range(N)]


@cache
def drawn(head: Any) -> list[Slate]:
    """Decisions over a changing world: pool, boosts, masks, a pin and a cap, as a service would ask for them."""
    rng = np.random.default_rng(11)
    pools = [(rng.normal(size=(N, 1)) * 0.7 + rng.normal(size=(N, 64))).astype(np.float32) for _ in range(8)]
    settings = DrawSettings(head=head, floor=0.1, max_share=0.7)
    masks = np.ones((K, N), bool)
    masks[:, 3] = False
    masks[2, 5:8] = False
    slates = []
    for i in range(DECISIONS):
        u = uniforms(b"truth", f"decision-{i}", "slate", K)
        boosts = np.where(np.arange(N) == i % 3, 0.5, 0.0)
        slates.append(draw(pools[i % 8], K, u, settings, boosts=boosts, masks=masks, pins={1: 3}, full=True))
    return slates


def heard(slates: list[Slate], said: Any = lambda p: p) -> Truth:
    """Truth fed with the log, in which the distributions are what `said` makes of them."""
    truth = Truth()
    for slate in slates:
        assert slate.distributions is not None
        for slot, item, p in zip(slate.slots.tolist(), slate.items.tolist(), slate.distributions, strict=True):
            logged = said(p)
            truth.add(slot, dict(zip(IDS, logged.tolist(), strict=True)), IDS[item], float(logged[item]))
    return truth


@pytest.mark.parametrize("head", sorted(HEADS))
def test_what_is_drawn_is_what_is_logged(head: Any) -> None:
    truth = heard(drawn(head))
    assert set(truth.z) == {(slot, name) for slot in range(K) for name in IDS}  # none too rare for a z of its own
    assert truth.worst_z < 4
    assert abs(truth.mean_inverse.z) < 4
    remaining = np.mean([slate.remaining for slate in drawn(head)])
    assert truth.mean_inverse.expected == pytest.approx(remaining)


@pytest.mark.parametrize("arm", [0, 4, 11])
def test_an_arm_that_is_a_fifth_off_is_caught(arm: int) -> None:
    def off(p: Any) -> Any:
        if p[arm] < 0.05 or p[arm] == 1.0:
            return p
        wrong = p.copy()
        wrong[arm] *= 1.2
        return wrong / wrong.sum()

    assert heard(drawn("draws"), off).worst_z > 4


def test_a_draw_that_forgets_its_floor_is_caught() -> None:
    """A fault of the draw and not of the log: greedy items drawn more often than their probability says."""
    truth = Truth()
    rng = np.random.default_rng(0)
    for _ in range(5_000):
        p = {"a": 0.9, "b": 0.1}
        item = "a" if rng.random() < 0.93 else "b"
        truth.add(0, p, item, p[item])
    assert truth.worst_z > 4
    assert abs(truth.mean_inverse.z) > 4


def test_arrays_and_records_give_the_same_z() -> None:
    slates = [slate for slate in drawn("draws") if slate.distributions is not None]
    z = propensity_z(np.array([s.distributions[0] for s in slates]), np.array([s.items[0] for s in slates]))
    by_arm = heard(slates).z
    assert z[3] == 0.0  # it is pinned elsewhere
    np.testing.assert_allclose(z, [by_arm[0, name] for name in IDS], atol=1e-9)


def test_rare_arms_share_one_z_and_cannot_hide() -> None:
    """200 arms of one in 20,000 each come ten times too often: no arm has a z of its own, together they are caught."""
    p = {"common": 0.99} | {f"rare-{i}": 5e-5 for i in range(200)}
    truth = Truth()
    for i in range(3_000):
        item = f"rare-{i % 200}" if i % 10 == 0 else "common"
        truth.add(0, p, item, p[item])
    assert set(truth.z) == {(0, "common"), (0, None)}
    assert truth.z[0, None] > 4


def test_too_little_data_gives_no_verdict() -> None:
    truth = Truth()
    for _ in range(20):
        truth.add(0, {"a": 0.9, "b": 0.1}, "b", 0.1)
    assert truth.z == {}


def test_what_had_to_come_must_come() -> None:
    truth = Truth()
    for _ in range(10):
        truth.add(0, {"a": 1.0, "b": 0.0}, "a", 1.0)
    assert truth.worst_z == 0.0
    assert truth.mean_inverse == (1.0, 1.0, 0.0)
    assert truth.mean_inverse.z == 0.0
    assert propensity_z(np.array([[1.0, 0.0]] * 3), np.array([0, 0, 1])).tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize(
    ("distribution", "item", "propensity"),
    [
        ({"a": 0.5, "b": 0.4}, "a", 0.5),
        ({"a": 1.1, "b": -0.1}, "a", 1.1),
        ({"a": 1.0, "b": 0.0}, "b", 0.0),
        ({"a": 1.0}, "b", 1.0),
        ({"a": 0.5, "b": 0.5}, "a", 0.6),
        ({}, "a", 1.0),
    ],
    ids=str,
)
def test_a_log_that_contradicts_itself_is_named(distribution: Any, item: str, propensity: float) -> None:
    with pytest.raises(ValueError, match="slot 0"):
        Truth().add(0, distribution, item, propensity)


def test_nothing_added_proves_nothing() -> None:
    assert Truth().worst_z == 0.0
    assert Truth().mean_inverse.standard_error == np.inf
