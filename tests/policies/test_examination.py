"""How often slots are looked at: estimated from draws that are logged, and what a learner makes of it."""

from dataclasses import replace

import numpy as np
import pytest

from policies import examination
from policies.algorithm import Problem
from policies.algorithms.linear_thompson import ALGORITHM, LinearThompson
from policies.features import Encoder
from policies.ridge_fitting import fit
from policies.slate import draw
from policies.surface import FeatureSpec, Number, Objective
from policies.types import F64, Arrays, Changes, DrawSettings
from policies.worlds.taste_world import TasteWorld
from services.studies import examination as study

SLOTS = 5


def harvested(seed: int, n: int, wrong: float = 0.0) -> tuple[TasteWorld, F64]:
    """Sums over n slates of a policy that knows the world's taste but for noise. `wrong`: logged probabilities are off by it."""
    rng, world, sums = np.random.default_rng(seed), TasteWorld(seed), examination.start(SLOTS)
    for _ in range(n):
        visit = world.visit(rng)
        scores = world.attraction(visit)[:, None] + 0.1 * rng.standard_normal((len(world.ids), 32))
        slate = draw(
            scores.astype(np.float32), SLOTS, rng.random(SLOTS), DrawSettings("softmax", temperature=0.1), full=True
        )
        assert slate.distributions is not None
        logged = slate.distributions * (1 - wrong * (np.arange(SLOTS) % 2)[:, None])
        rewards = (rng.random(SLOTS) < world.chances(visit, slate.items)).astype(float)
        group = int(visit.unit.removeprefix("visitor-")) % examination.GROUPS
        examination.add(sums, group, rewards, logged, slate.items, np.ones(SLOTS))
    return world, sums


def test_the_estimate_covers_what_is_true() -> None:
    """Of three worlds and four slots, at most three of the twelve 95% intervals miss (a chance of 0.2% otherwise)."""
    missed = 0
    for seed in range(3):
        world, sums = harvested(seed, 1200)
        found = examination.estimate(sums)
        assert found.estimate == pytest.approx(world.examined, rel=0.25)
        missed += int(((found.low > world.examined) | (found.high < world.examined)).sum())
        assert found.error[1:].min() > 0.02
        assert found.error.max() < 0.3
    assert missed <= 3


def test_wrong_probabilities_are_seen_in_it() -> None:
    world, sums = harvested(1, 1500, wrong=0.5)
    found = examination.estimate(sums)
    assert not (found.low[1] <= world.examined[1] <= found.high[1])


def test_shards_add_up_and_slots_without_clicks_are_not_told() -> None:
    _, one = harvested(1, 200)
    _, two = harvested(2, 200)
    assert examination.estimate(one + two).estimate[0] == 1.0
    one[:, :, 2:] = 0.0
    found = examination.estimate(one)
    assert np.isnan(found.estimate[3:]).all()
    assert np.isfinite(found.estimate[:3]).all()
    assert not found.news(None)


def test_it_is_news_once() -> None:
    flat = np.full(4, 0.04)
    found = examination.Examined(
        np.array([1.0, 0.8, 0.6, 0.5]), *(np.array([1.0, 0.8, 0.6, 0.5]) * np.exp(s * flat) for s in (-1, 1))
    )
    assert found.news(None)
    assert not found.news(np.array([1.0, 0.82, 0.61, 0.5]))
    assert found.news(np.array([1.0, 0.99, 0.61, 0.5]))


ENCODER = Encoder(FeatureSpec(items={"quality": Number(-1, 1)}))
PROBLEM = Problem(ENCODER, {"click": Objective("click", range=(0, 1))}, {"click": 1.0}, SLOTS)
EXAMINED = np.array([1.0, 0.7, 0.45, 0.3, 0.2])
BASE, EFFECT = 0.4, 0.35  # attraction = BASE + EFFECT · quality


def confounded(seed: int, slates: int, default: float = 0.0) -> Changes:
    """Good items are mostly shown late, where few look."""
    rng, n = np.random.default_rng(seed), slates * SLOTS
    quality = np.sort(rng.uniform(-1, 1, (slates, SLOTS)), axis=1)
    mixed = rng.random(slates) < 0.3
    quality[mixed] = rng.permuted(quality[mixed], axis=1)
    clicks = default + (rng.random((slates, SLOTS)) < EXAMINED * (BASE + EFFECT * quality)) * (1.0 - default)
    return Changes(
        context=np.zeros((n, 0), np.float32),
        items=quality.reshape(-1, 1).astype(np.float32),
        slots=np.tile(np.arange(SLOTS), slates),
        slates=np.repeat(np.arange(slates), SLOTS),
        times=np.zeros(n),
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=clicks.reshape(-1, 1),
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.full(n, 0.5),
    )


def sums_after(*batches: Changes) -> Arrays:
    assert ALGORITHM.learner is not None
    learner = ALGORITHM.learner(LinearThompson(), PROBLEM)
    for batch in batches:
        learner.learn(batch)
    return learner.arrays()


def slope(sums: Arrays) -> float:
    """What a unit of quality is worth to the model."""
    return float(fit(LinearThompson(), PROBLEM, sums, 0.0).mean[0, -1])


def test_a_linear_learner_finds_attraction_with_it_and_not_without() -> None:
    seen = confounded(3, 6000)
    assert (
        slope(sums_after(seen)) < 0.6 * EFFECT
    )  # slots of its own do not save it: few clicks late look like bad items
    known = sums_after(examination.taught(seen, EXAMINED, np.zeros(1)))
    assert slope(known) == pytest.approx(EFFECT, abs=0.04)  # four standard errors
    wrong = sums_after(examination.taught(seen, EXAMINED[::-1] / EXAMINED[-1], np.zeros(1)))
    assert abs(slope(wrong) - EFFECT) > 0.1


def test_it_ranks_better_where_an_order_hides_quality() -> None:
    """The strict editor of the study: the worst tier first, in slots that are looked at 1/(1 + t) as often, so all tiers are
    clicked alike. Six worlds; on average 2% of the clicks are between the two."""
    examined = 1 / (1 + np.arange(SLOTS))
    settings = DrawSettings("softmax", floor=0.02, temperature=0.2)
    earned = [study.edited_by(seed, examined, 1500, settings)[1] for seed in range(6)]
    share = {way: np.mean([one[way] / one["best"] for one in earned]) for way in ("random", "none", "given")}
    assert share["random"] < 0.65
    assert share["given"] > 0.985
    assert share["given"] - share["none"] > 0.02


def test_silence_with_a_reward_of_its_own() -> None:
    """Where silence earns 0.5, slots nobody looks at earn that, and not nothing."""
    seen = confounded(4, 6000, default=0.5)
    found = slope(sums_after(examination.taught(seen, EXAMINED, np.array([0.5]))))
    assert found == pytest.approx(EFFECT * 0.5, abs=0.03)


def test_corrections_subtract_what_was_taught() -> None:
    """Silence first, then its clicks, then some taken back: the sums of what is left."""
    whole = confounded(5, 50)
    quiet = replace(whole, rewards_after=np.zeros_like(whole.rewards_after))
    heard = replace(whole, present_before=whole.present_after, rewards_before=quiet.rewards_after)
    gone = whole.slates < 10
    unseen = replace(
        whole.part(0, int(gone.sum())),
        present_before=np.ones(gone.sum()),
        present_after=np.zeros(gone.sum()),
        rewards_before=whole.rewards_after[gone],
        rewards_after=np.zeros((int(gone.sum()), 1)),
    )
    left = whole.part(int(gone.sum()), len(whole))
    taught = [examination.taught(one, EXAMINED, np.zeros(1)) for one in (quiet, heard, unseen, left)]
    found, expected = sums_after(*taught[:3]), sums_after(taught[3])
    for name in ("S", "B", "Y", "n", "slate_S", "slate_B", "slate_Y", "pairs"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
