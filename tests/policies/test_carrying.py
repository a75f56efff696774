"""What is kept of a model when its surface changes: sums as if the same decisions had been learned under the new version."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from policies import ridge_fitting
from policies.algorithm import Addend, Problem
from policies.algorithms import linear_thompson, popular
from policies.algorithms.linear_thompson import LinearThompson
from policies.algorithms.popular import Popular
from policies.carrying import relevant
from policies.features import Encoder
from policies.forgetting import half_life_seconds
from policies.ridge import RidgeLearner, columns, sums_of
from policies.surface import Bool, Category, Feature, FeatureSpec, Number, Objective, Vector
from policies.types import Arrays, Changes, item_hashes

START, HOUR, SLATES, SLOTS = 1_764_000_000.0, 3600.0, 60, 3
NOW = START + 30 * HOUR
OBJECTIVES = {
    "click": Objective("click", range=(0, 1)),
    "watch": Objective("watch", default=0.5, range=(0, 60)),
}
CONTEXT: dict[str, Feature] = {"device": Category(["ios", "web", "tv"]), "hour": Number(0, 24)}
ITEMS: dict[str, Feature] = {
    "price": Number(0, 100),
    "genre": Category(["folk", "jazz", "rock"]),
    "new": Bool(),
    "taste": Vector(2),
}
CROSS = [("device", "genre"), ("hour", "price"), ("hour", "genre"), ("device", "price")]


def problem(
    context: Any = CONTEXT, items: Any = ITEMS, cross: Any = CROSS, objectives: Any = OBJECTIVES, slots: int = SLOTS
) -> Problem:
    weights = {name: 1.0 if name == "click" else 0.0 for name in objectives}
    return Problem(Encoder(FeatureSpec(context, items, cross)), objectives, weights, slots)


OLD = problem()


def told(asked: Problem, seed: int = 1, *, slots: int = SLOTS, start: float = START) -> Changes:
    """The same decisions for every problem, encoded as it encodes them: what it does not know is left out."""
    rng = np.random.default_rng(seed)
    n = SLATES * slots
    contexts: list[dict[str, Any]] = [
        {"device": str(rng.choice(["ios", "web", "tv"])), "hour": rng.uniform(0, 24)} for _ in range(SLATES)
    ]
    rows = [
        {
            "price": rng.uniform(0, 100),
            "genre": str(rng.choice(["folk", "jazz", "rock", "polka"])),
            "new": bool(rng.integers(2)),
            "taste": rng.normal(size=2).tolist(),
        }
        for _ in range(n)
    ]
    rewards = np.column_stack([rng.random(n) < 0.4, rng.uniform(0, 60, n)]).astype(float)
    spec, places = asked.encoder.spec, {"click": 0, "watch": 1}
    kept = [places[name] for name in asked.objectives]
    mine = [{name: value for name, value in row.items() if name in spec.context} for row in contexts]
    shown = [{name: value for name, value in row.items() if name in spec.items} for row in rows]
    return Changes(
        context=np.repeat(np.stack([asked.encoder.context(row) for row in mine]), slots, axis=0),
        items=asked.encoder.rows(shown, "$"),
        slots=np.tile(np.arange(slots), SLATES),
        slates=np.repeat(np.arange(SLATES), slots),
        times=np.repeat(start + np.sort(rng.uniform(0, 24 * HOUR, SLATES)), slots),
        weights=np.repeat(rng.uniform(0.4, 1, SLATES), slots),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, len(kept))),
        rewards_after=rewards[:, kept],
        item_hashes=item_hashes([f"item-{i}" for i in rng.integers(9, size=n)]),
        propensities=np.full(n, 0.5),
    )


def learned(asked: Problem, *batches: Changes, half_life: Any = None) -> Arrays:
    learner = RidgeLearner(asked, half_life_seconds(half_life))
    for batch in batches:
        learner.learn(batch)
    return learner.arrays()


def carried(asked: Problem, own: Arrays, *addends: Addend, half_life: Any = None, now: float = NOW) -> Arrays:
    return ridge_fitting.carry(LinearThompson(half_life=half_life), asked, own, addends, now)


def same(found: Arrays, wanted: Arrays, *names: str, tolerance: float = 1e-9) -> None:
    """Equal to `tolerance` of each array's largest number, at the index both carry."""
    assert float(np.asarray(found["index"])[0]) == float(np.asarray(wanted["index"])[0])
    for name in names or tuple(name for name in wanted if name != "columns"):
        left, right = np.asarray(found[name], float), np.asarray(wanted[name], float)
        largest = max(float(np.abs(right[np.isfinite(right)]).max(initial=0)), 1.0)
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance * largest, err_msg=name)


def without(features: dict[str, Feature], *names: str) -> dict[str, Feature]:
    return {name: feature for name, feature in features.items() if name not in names}


CHANGED = {
    "nothing": OLD,
    "an item feature removed": problem(items=without(ITEMS, "genre"), cross=[("hour", "price"), ("device", "price")]),
    "a context feature removed": problem(context=without(CONTEXT, "hour"), cross=[("device", "genre")]),
    "features added": problem(
        context=CONTEXT | {"age": Number()},
        items=ITEMS | {"brand": Category(["a", "b"])},
        cross=[*CROSS, ("age", "brand")],
    ),
    "a category value removed": problem(items=ITEMS | {"genre": Category(["jazz", "rock"])}),
    "values of both sides of a cross removed": problem(
        context=CONTEXT | {"device": Category(["web"])}, items=ITEMS | {"genre": Category(["rock"])}
    ),
    "a value added that nobody had": problem(items=ITEMS | {"genre": Category(["folk", "ambient", "jazz", "rock"])}),
    "another range of an item's number": problem(items=ITEMS | {"price": Number(-50, 450)}),
    "other ranges on both sides of a cross": problem(
        context=CONTEXT | {"hour": Number(-24, 72)}, items=ITEMS | {"price": Number(0, 1000)}
    ),
    "crosses removed": problem(cross=[("hour", "genre")]),
    "more slots": problem(slots=5),
    "an objective removed": problem(objectives={"click": OBJECTIVES["click"]}),
    "objectives in another order": problem(objectives=dict(reversed(OBJECTIVES.items()))),
    "all at once": problem(
        context={"hour": Number(0, 48), "device": Category(["ios", "web"]), "age": Number()},
        items={"price": Number(0, 200), "genre": Category(["jazz", "rock"]), "taste": Vector(2), "brand": Bool()},
        cross=[("hour", "price"), ("device", "genre")],
        objectives={"click": OBJECTIVES["click"]},
        slots=4,
    ),
}


@pytest.mark.parametrize("change", list(CHANGED))
def test_sums_are_as_if_learned_under_the_new_version(change: str) -> None:
    """The old decisions as an addend of the new version's own, against learning all of them under the new version: 1e-9, or
    where a number has another range, what encoding it to float32 leaves of it."""
    new = CHANGED[change]
    own, addend = learned(new, told(new, 2)), Addend(OLD, learned(OLD, told(OLD, 1)))
    found = carried(new, own, addend)
    assert list(found["columns"]) == columns(new)
    rescaled = "range" in change or change == "all at once"
    same(found, learned(new, told(new, 1), told(new, 2)), tolerance=1e-7 if rescaled else 1e-9)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2)])
def test_slots_come_and_go(before: int, after: int) -> None:
    """A slate of one showed every item in slot 0; ρ̂'s sums are those that were kept."""
    old, new = problem(slots=before), problem(slots=after)
    batch = told(old, slots=before)
    found, wanted = carried(new, learned(new), Addend(old, learned(old, batch))), learned(new, told(new, slots=before))
    same(found, wanted, "S", "B", "Y", "n")


def test_a_feature_that_comes_back_finds_what_it_knew() -> None:
    """Addends are translated from what they were learned under, not by way of the versions between."""
    middle = CHANGED["an item feature removed"]
    addends = [Addend(OLD, learned(OLD, told(OLD, 1))), Addend(middle, learned(middle, told(middle, 2)))]
    found = carried(OLD, learned(OLD), *addends)
    genre = [i for i, name in enumerate(columns(OLD)) if name.startswith("item.genre")]
    B = np.asarray(addends[0].arrays["B"], float)
    np.testing.assert_allclose(np.asarray(found["B"], float)[genre], B[genre], atol=1e-9)


def test_what_is_of_another_type_or_size_is_new() -> None:
    new = problem(items=ITEMS | {"taste": Vector(3), "price": Category(["cheap"])})
    names = columns(new)
    S = np.asarray(carried(new, learned(new), Addend(OLD, learned(OLD, told(OLD))))["S"], float)
    unknown = [i for i, name in enumerate(names) if "taste" in name or "price" in name]
    assert len(unknown) > 5
    assert not S[unknown].any()
    assert S[names.index("item.genre=jazz"), 0] > 0


def by_hand(asked: Problem, parts: list[tuple[Changes, float]], now: float) -> float:
    """Σ w 2^(−(now − t)/H) over parts, each with a half-life of its own."""
    return sum(float((batch.weights * np.exp2((batch.times - now) / half_life)).sum()) for batch, half_life in parts)


def present(arrays: Arrays, now: float) -> float:
    """Examples' worth at `now`."""
    sums = sums_of(arrays)
    return float(sums["n"][0] * np.exp2(sums["index"][0] - now / sums["half_life"][0]))


HALF_LIVES = [None, "1h", "6h", "30d"]


@pytest.mark.parametrize("was", HALF_LIVES)
@pytest.mark.parametrize("becomes", HALF_LIVES)
@pytest.mark.parametrize("later_hours", [0, 7, 500])
def test_every_addend_decays_at_its_own_rate(was: Any, becomes: Any, later_hours: int) -> None:
    """What was learned before a half-life changed goes on decaying as it did, what comes after as it should (1e-9)."""
    before, after, now = told(OLD, 1), told(OLD, 2, start=START + 24 * HOUR), START + (48 + later_hours) * HOUR
    own = learned(OLD, after, half_life=becomes)
    found = carried(OLD, own, Addend(OLD, learned(OLD, before, half_life=was)), half_life=becomes, now=now)
    wanted = by_hand(OLD, [(before, half_life_seconds(was)), (after, half_life_seconds(becomes))], now)
    assert present(found, now) == pytest.approx(wanted, rel=1e-9)
    assert float(np.asarray(found["half_life"])[0]) == half_life_seconds(becomes)


@pytest.mark.parametrize("becomes", HALF_LIVES)
def test_a_half_life_that_changes_changes_no_score_at_that_moment(becomes: Any) -> None:
    """Nothing has been learned since: what is published is what was published, to float32."""
    old = learned(OLD, told(OLD), half_life="6h")
    found = carried(OLD, learned(OLD, half_life=becomes), Addend(OLD, old), half_life=becomes)
    before = linear_thompson.publish(LinearThompson(half_life="6h"), OLD, old, NOW, 7)
    after = linear_thompson.publish(LinearThompson(half_life=becomes), OLD, found, NOW, 7)
    for name, array in before.arrays.items():
        np.testing.assert_allclose(np.asarray(after.arrays[name], float), np.asarray(array, float), atol=1e-5)
    assert after.slot_weight == pytest.approx(before.slot_weight)


def test_the_order_of_addends_says_nothing_and_none_is_changed() -> None:
    new = CHANGED["all at once"]
    addends = [Addend(old, learned(old, told(old, seed))) for seed, old in enumerate(CHANGED.values())]
    copies = [{name: np.array(array) for name, array in addend.arrays.items()} for addend in addends]
    own = learned(new, told(new, 2))
    same(carried(new, own, *addends), carried(new, own, *reversed(addends)))
    for addend, copied in zip(addends, copies, strict=True):
        assert all(np.array_equal(addend.arrays[name], array) for name, array in copied.items())


# objectives

NO_WATCH = problem(objectives={"click": OBJECTIVES["click"]})
BOTH = replace(OLD, weights={"click": 1.0, "watch": 0.1})


def test_a_changed_reward_keeps_what_old_decisions_earned() -> None:
    """Another aggregate, default or range is the same objective (`semantics.md` 17): as if nothing had changed."""
    changed = Objective("click", aggregate="max", default=0.1, range=(0, 2))
    new = problem(objectives=OBJECTIVES | {"click": changed})
    same(
        carried(new, learned(new, told(new, 2)), Addend(OLD, learned(OLD, told(OLD, 1)))),
        learned(OLD, told(OLD, 1), told(OLD, 2)),
    )


def test_an_objective_of_another_kind_is_another_objective() -> None:
    new = problem(objectives={"click": Objective("purchase", range=(0, 1)), "watch": OBJECTIVES["watch"]})
    addend = Addend(OLD, learned(OLD, told(OLD)))
    assert relevant(new, [addend]) == []
    assert present(carried(new, learned(new), addend), NOW) == 0
    assert relevant(replace(new, weights={"click": 1.0, "watch": 0.2}), [addend]) == [addend]


def test_a_new_objective_is_learned_from_those_that_know_it() -> None:
    """Beside 180 examples that never heard of `watch`: the known objective's sums are exact, and the new one's mean effects
    are those of the decisions that know it alone (ridge, λ = 1), not pulled to zero by the others."""
    own, addend = learned(BOTH, told(OLD, 2)), Addend(NO_WATCH, learned(NO_WATCH, told(NO_WATCH, 1)))
    found, all_of_it = sums_of(carried(BOTH, own, addend)), sums_of(learned(BOTH, told(OLD, 1), told(OLD, 2)))
    for name in ("S", "n", "slate_S", "pairs"):
        np.testing.assert_allclose(found[name], all_of_it[name], atol=1e-9)
    np.testing.assert_allclose(found["B"][:, 0], all_of_it["B"][:, 0], atol=1e-9)
    alone, eye = sums_of(own), np.eye(len(found["S"]))
    start = 0.5 * eye[0]  # the default of `watch`, at the intercept
    theta = start + np.linalg.solve(alone["S"] + eye, alone["B"][:, 1] - alone["S"] @ start)
    together = start + np.linalg.solve(found["S"] + eye, found["B"][:, 1] - found["S"] @ start)
    assert np.abs(together - theta).max() < 0.2 * np.abs(theta).max()
    assert np.linalg.eigvalsh(found["Y"]).min() > 0
    spread = linear_thompson.publish(LinearThompson(), BOTH, carried(BOTH, own, addend), NOW, 1)
    assert np.isfinite(spread.arrays["pool"]).all()


def test_before_anyone_knows_a_new_objective_it_is_its_default() -> None:
    found = sums_of(carried(BOTH, learned(BOTH), Addend(NO_WATCH, learned(NO_WATCH, told(NO_WATCH)))))
    np.testing.assert_allclose(found["B"][:, 1], 0.5 * found["S"][:, 0], atol=1e-9)


# popular: the same rule by item


def tally(asked: Problem, *batches: Changes, half_life: Any = None) -> Arrays:
    learner = popular.PopularLearner(Popular(half_life=half_life), asked)
    for batch in batches:
        learner.learn(batch)
    return learner.arrays()


@pytest.mark.parametrize("change", ["an item feature removed", "objectives in another order", "an objective removed"])
def test_items_keep_their_means(change: str) -> None:
    new = CHANGED[change]
    found = popular.carry(Popular(), new, tally(new, told(new, 2)), [Addend(OLD, tally(OLD, told(OLD, 1)))], NOW)
    wanted = tally(new, told(new, 1), told(new, 2))
    assert np.array_equal(found["item_hashes"], wanted["item_hashes"])
    same(found, wanted, "n", "B")


@pytest.mark.parametrize("was", HALF_LIVES)
@pytest.mark.parametrize("becomes", HALF_LIVES)
def test_items_decay_at_their_own_rate(was: Any, becomes: Any) -> None:
    before, after, now = told(OLD, 1), told(OLD, 2, start=START + 24 * HOUR), START + 50 * HOUR
    own = tally(OLD, after, half_life=becomes)
    found = popular.carry(Popular(half_life=becomes), OLD, own, [Addend(OLD, tally(OLD, before, half_life=was))], now)
    held = popular.sums_of(found)
    g = np.exp2(held["index"][0] - now / held["half_life"][0])
    wanted = by_hand(OLD, [(before, half_life_seconds(was)), (after, half_life_seconds(becomes))], now)
    assert g * held["n"].sum() == pytest.approx(wanted, rel=1e-9)


def test_items_get_a_new_objective_from_what_is_known_of_it() -> None:
    """A new objective's table is as learned since it is there, not pulled to zero by the examples before."""
    wanted_alone = replace(OLD, weights={"click": 0.0, "watch": 1.0})
    asked = replace(OLD, weights={"click": 1e-9, "watch": 1.0})
    own, addend = tally(OLD, told(OLD, 2)), Addend(NO_WATCH, tally(NO_WATCH, told(NO_WATCH, 1)))
    table = popular.publish(Popular(), asked, popular.carry(Popular(), asked, own, [addend], NOW), NOW, 1).arrays[
        "table"
    ]
    alone = popular.publish(Popular(), wanted_alone, own, NOW, 1).arrays["table"]
    np.testing.assert_allclose(np.asarray(table, float), np.asarray(alone, float), rtol=0.1)
