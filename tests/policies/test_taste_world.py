"""The demo's world: what it states about random and best slates is what happens in it."""

import numpy as np

from policies.worlds.taste_world import DAYPARTS, DEVICES, TasteWorld, Visit

VISITS = [Visit("u", device, daypart) for device in range(len(DEVICES)) for daypart in range(len(DAYPARTS))]


def test_random_value_is_the_mean_of_random_slates() -> None:
    world, generator = TasteWorld(7), np.random.default_rng(3)
    for visit in VISITS:
        slates = np.array([generator.permutation(len(world.ids))[: world.slots] for _ in range(4_000)])
        earned = world.attraction(visit)[slates] @ world.examined
        error = earned.std() / np.sqrt(len(earned))
        assert abs(earned.mean() - world.random_value(visit)) < 4 * error


def test_no_slate_beats_the_best() -> None:
    world, generator = TasteWorld(7), np.random.default_rng(4)
    for visit in VISITS:
        best = np.argsort(-world.attraction(visit))[: world.slots]
        assert np.isclose(world.chances(visit, best).sum(), world.best_value(visit))
        for _ in range(500):
            slate = generator.permutation(len(world.ids))[: world.slots]
            assert world.chances(visit, slate).sum() <= world.best_value(visit) + 1e-12


def test_random_slates_earn_a_third_and_no_fixed_slate_comes_near() -> None:
    """The demo has something to learn, and it is in the context."""
    for seed in range(20):
        world = TasteWorld(seed)
        best = np.mean([world.best_value(visit) for visit in VISITS])
        assert 0.2 < np.mean([world.random_value(visit) for visit in VISITS]) / best < 0.4
        fixed = np.argsort(-np.mean([world.attraction(visit) for visit in VISITS], axis=0))[: world.slots]
        assert np.mean([world.chances(visit, fixed).sum() for visit in VISITS]) / best < 0.65


def test_same_seed_same_world() -> None:
    assert TasteWorld(5).catalogue == TasteWorld(5).catalogue
    assert TasteWorld(5).catalogue != TasteWorld(6).catalogue
    assert TasteWorld(5).visit(np.random.default_rng(1)) == TasteWorld(5).visit(np.random.default_rng(1))
