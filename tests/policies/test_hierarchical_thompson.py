"""Hierarchical Thompson sampling: the posterior against ones written out, what shrinks to what, and cold items."""

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import CALM, decisions, publish, surface

from policies import bundle, item_draws
from policies.algorithm import Addend, Problem
from policies.algorithms import hierarchical_thompson as hierarchical
from policies.algorithms.hierarchical_thompson import HierarchicalLearner, HierarchicalThompson, Model, kappas
from policies.features import Encoder
from policies.ridge import columns, phi
from policies.surface import Category, FeatureSpec, Logging, Number, Objective, PolicySpec
from policies.types import F64, Arrays, Changes, item_hashes
from services.keys import Keys
from services.scoring.service import Scoring
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.configuration import ConfigInvalid, compile_surface
from streaming.publish import Publisher
from streaming.replay import recompute
from streaming.spool import Spool

GENRES = ["folk", "jazz", "rock"]
SPEC = FeatureSpec(
    context={"hour": Number(0, 1)},
    items={"genre": Category(GENRES), "price": Number(0, 1)},
    cross=[("hour", "genre")],
)
PLAIN = FeatureSpec(items={"genre": Category(GENRES)})
CLICK = {"click": Objective("click", range=(0, 1))}
BOTH = CLICK | {"watch": Objective("watch", range=(0, 10))}
CONFIG = HierarchicalThompson(group="genre")


def problem(spec: FeatureSpec = SPEC, objectives: Any = CLICK, slots: int = 1) -> Problem:
    return Problem(Encoder(spec), objectives, dict.fromkeys(objectives, 1.0), slots)


def shown(asked: Problem, items: Any, genres: Any, rewards: F64, seed: int = 1, price: float | None = None) -> Changes:
    """Item numbers (N,), their genres (of every item) and rewards (N, o), in one slot each."""
    rng, n = np.random.default_rng(seed), len(items)
    raw = [{"genre": GENRES[genres[i]]} if genres[i] >= 0 else {} for i in items]
    if "price" in asked.encoder.spec.items:
        raw = [row | {"price": float(rng.random()) if price is None else price} for row in raw]
    hours = rng.random(n)
    if asked.encoder.context_size:
        context = np.stack([asked.encoder.context({"hour": float(hour)}) for hour in hours])
    else:
        context = np.zeros((n, 0), np.float32)
    one = np.ones(n)
    return Changes(
        context=context,
        items=asked.encoder.rows(raw, "$"),
        slots=np.zeros(n, np.int64),
        slates=np.arange(n),
        times=0 * one,
        weights=one,
        present_before=0 * one,
        present_after=one,
        rewards_before=0 * rewards,
        rewards_after=rewards,
        item_hashes=item_hashes([f"item-{i}" for i in items]),
        propensities=one / 4,
    )


def learned(asked: Problem, *batches: Changes) -> Arrays:
    learner = HierarchicalLearner(CONFIG, asked)
    for batch in batches:
        learner.learn(batch)
    return learner.arrays()


def scores(asked: Problem, sums: Arrays, ids: list[str], genres: list[str], config: Any = CONFIG, seed: int = 1) -> F64:
    """(n, m) of candidates at a middle price and hour."""
    made = hierarchical.publish(config, asked, sums, 0.0, seed).arrays
    raw: list[dict[str, Any]] = [{"genre": genre} if genre else {} for genre in genres]
    items = asked.encoder.rows(raw, "$")
    context = asked.encoder.context({})
    inputs: Any = {"context": context, "items": items, **bundle.item_inputs(made, items, item_hashes(ids))}
    return hierarchical.reference(config, asked, made, inputs).astype(float)


# shrinkage


def test_items_shrink_to_their_group_as_by_hand() -> None:
    """No context: an item's mean is μ_g + n/(n + κ)·(its average − μ_g), and its variance σ²/(n + κ) beside μ's own."""
    asked = problem(PLAIN)
    counts, means, kappa = np.array([1, 4, 20, 100]), np.array([0.9, 0.8, 0.3, 0.5]), 4.0
    items = np.repeat(np.arange(4), counts)
    clicks = np.concatenate([np.arange(n) < round(n * p) for n, p in zip(counts, means, strict=True)]).astype(float)
    averages = np.bincount(items, clicks) / counts
    sums = learned(asked, shown(asked, items, [1, 1, 1, 1], clicks[:, None]))
    table = hierarchical.table_of(sums)
    names = columns(asked)
    model = Model(*(np.asarray(sums[name], float) for name in ("S", "B", "Y")), 125.0, table, np.full(4, 1), 3)
    S, B, _ = model.without_items(np.full(4, kappa))

    # θ = (intercept, jazz): both are in every row, so their sum is μ under a prior of precision 1/(1/1 + 1/λ), λ = 1
    weight = counts * kappa / (counts + kappa)  # what an average is worth for μ
    mu = (weight @ averages) / (weight.sum() + 0.5)
    theta = np.linalg.solve(S + np.eye(len(S)), B)[:, 0]
    at = theta[0] + theta[names.index("item.genre=jazz")]
    assert at == pytest.approx(mu, abs=1e-12)
    order = np.argsort(item_hashes([f"item-{i}" for i in range(4)]))
    found = (table["item_B"][:, 0] + kappa * at) / (table["item_n"] + kappa)
    by_hand = mu + counts / (counts + kappa) * (averages - mu)
    np.testing.assert_allclose(found, by_hand[order], atol=1e-12)


def test_the_posterior_is_the_one_of_all_effects_written_out() -> None:
    """Mean of θ and of every item, and the covariance of scores, against one dense regression with a column an item."""
    asked, rng = problem(), np.random.default_rng(2)
    genres = rng.integers(3, size=9)
    items = rng.integers(9, size=400)
    rewards = (rng.random(400) < 0.2 + 0.06 * items).astype(float)[:, None]
    batch = shown(asked, items, genres, rewards)
    config = HierarchicalThompson(group="genre", spread=1.0, prior=1.0, draws=4096)
    sums = learned(asked, batch)
    made = hierarchical.publish(config, asked, sums, 0.0, 3)
    sigma = made.diagnostics["sigma"]
    kappa = (sigma / np.asarray(made.arrays["group_scale"], float)) ** 2

    D, order = len(columns(asked)), np.argsort(item_hashes([f"item-{i}" for i in range(9)]))
    x = np.hstack([phi(asked, batch.context, batch.items, batch.slots), np.eye(9)[items][:, order]])
    A = x.T @ x + np.diag(np.concatenate([np.ones(D), kappa[genres[order]]]))
    effect, cov = np.linalg.solve(A, x.T @ rewards[:, 0]), sigma**2 * np.linalg.inv(A)

    candidates = [0, 3, 8]
    rows = asked.encoder.rows([{"genre": GENRES[genres[i]]} for i in candidates], "$")
    situation = np.repeat(asked.encoder.context({})[None], 3, axis=0)
    asking = np.hstack([phi(asked, situation, rows, np.zeros(3, np.int64)), np.eye(9)[candidates][:, order]])
    found = scores(asked, sums, [f"item-{i}" for i in candidates], [GENRES[genres[i]] for i in candidates], config, 3)
    np.testing.assert_allclose(found.mean(axis=1), asking @ effect, atol=1e-5)
    wanted = asking @ cov @ asking.T
    spread = np.sqrt(np.diag(wanted))
    np.testing.assert_allclose(np.cov(found) / np.outer(spread, spread), wanted / np.outer(spread, spread), atol=0.1)


def test_what_is_known_well_is_certain_although_its_group_is_not() -> None:
    """Two items a genre: μ stays wide, scores do not."""
    asked = problem(PLAIN)
    items = np.repeat(np.arange(4), 20_000)
    clicks = (np.random.default_rng(1).random(80_000) < np.array([0.2, 0.6, 0.3, 0.5])[items]).astype(float)
    sums = learned(asked, shown(asked, items, [0, 0, 1, 1], clicks[:, None]))
    found = scores(asked, sums, ["item-1", "new"], ["folk", "folk"])
    assert found[0].std() < 0.01
    assert found[1].std() > 0.05


def test_the_spread_of_a_group_is_found() -> None:
    """Folk items differ by 0.3 (standard deviation), jazz items by none: κ says so. 40 items a genre, 200 examples each."""
    asked, rng = problem(PLAIN), np.random.default_rng(4)
    genres = np.repeat([0, 1], 40)
    truth = np.where(genres == 0, 0.5 + 0.3 * rng.choice([-1, 1], 80), 0.5)
    items = np.repeat(np.arange(80), 200)
    clicks = (rng.random(len(items)) < truth[items]).astype(float)
    sums = learned(asked, shown(asked, items, genres, clicks[:, None]))
    made = hierarchical.publish(CONFIG, asked, sums, 0.0, 1)
    s = np.asarray(made.arrays["group_scale"], float) / CONFIG.spread
    assert s[0] == pytest.approx(0.3, abs=0.06)
    assert s[1] < 0.08, "pulled towards folk's by four items' worth"
    assert s[1] < s[2] < s[0], "rock, of which nobody saw an item, is like all items"


def test_two_items_do_not_make_a_group_sure_of_itself() -> None:
    model = Model(
        np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)), 0.0, hierarchical.empty_table(1, 1), np.zeros(0, int), 2
    )
    assert kappas(model, np.ones(1), np.zeros(1, bool), 1.0, 0.25).tolist() == [4, 4, 4]
    asked = problem(PLAIN)
    clicks = np.tile([1.0, 0.0], 200)
    sums = learned(asked, shown(asked, np.repeat([0, 1], 200), [0, 0], clicks[:, None]))
    found = np.asarray(hierarchical.publish(CONFIG, asked, sums, 0.0, 1).arrays["group_scale"], float)
    assert found.min() > 0.03


# cold items


def test_a_new_item_starts_from_its_groups_mean() -> None:
    """Folk is clicked (0.8), jazz is not (0.1): a folk item that nobody saw is expected to be clicked, one without a genre lies
    between, and each is less certain than items that were seen."""
    asked, rng = problem(PLAIN), np.random.default_rng(6)
    genres = np.repeat([0, 1], 15)
    items = rng.integers(30, size=3_000)
    clicks = (rng.random(3_000) < np.where(genres[items] == 0, 0.8, 0.1)).astype(float)
    sums = learned(asked, shown(asked, items, genres, clicks[:, None]))
    found = scores(asked, sums, ["new-a", "new-b", "new-c", "item-0"], ["folk", "jazz", "", "folk"])
    folk, jazz, nothing, seen = found.mean(axis=1)
    assert folk == pytest.approx(0.8, abs=0.05)
    assert jazz == pytest.approx(0.1, abs=0.05)
    assert jazz < nothing < folk
    assert seen == pytest.approx(0.8, abs=0.1)
    assert found[3].std() < found[0].std()
    assert (found[0] > found[1]).mean() > 0.95


def test_new_items_of_a_group_have_draws_of_their_own() -> None:
    """Ten folk items that nobody saw, when what folk items are like is known: they do not rise and fall together."""
    asked, rng = problem(PLAIN), np.random.default_rng(6)
    items = rng.integers(30, size=3_000)
    clicks = (rng.random(3_000) < rng.choice([0.2, 0.8], 30)[items]).astype(float)
    sums = learned(asked, shown(asked, items, np.zeros(30, int), clicks[:, None]))
    found = scores(asked, sums, [f"new-{i}" for i in range(10)], ["folk"] * 10)
    off = np.corrcoef(found)[~np.eye(10, dtype=bool)]
    assert abs(off.mean()) < 0.2
    assert len(np.unique(found.argmax(axis=0))) == 10


def test_without_groups_all_items_are_one() -> None:
    asked = problem(PLAIN)
    made = hierarchical.publish(HierarchicalThompson(), asked, learned(asked), 0.0, 1)
    assert made.arrays["group_columns"].shape == (0,)
    assert made.arrays["group_scale"].shape == (1,)
    rows = bundle.item_inputs(made.arrays, asked.encoder.rows([{"genre": "folk"}], "$"), item_hashes(["a"]))
    assert rows["group_rows"].tolist() == [-1]


def test_group_rows_are_of_listed_values() -> None:
    asked = problem(PLAIN)
    made = hierarchical.publish(CONFIG, asked, {}, 0.0, 1).arrays
    items = asked.encoder.rows([{"genre": "rock"}, {"genre": "folk"}, {"genre": "polka"}, {}], "$")
    found = bundle.item_inputs(made, items, item_hashes(["a", "b", "c", "d"]))
    assert found["group_rows"].tolist() == [2, 0, -1, -1]
    assert found["item_rows"].tolist() == [-1] * 4


# normals by hash


def test_normals_of_items_are_standard_and_independent() -> None:
    keys = item_draws.keys_of(item_hashes([f"item-{i}" for i in range(2_000)]))
    z = item_draws.normals(keys, item_draws.turn(5), 64)
    assert keys.min() >= 0
    np.testing.assert_allclose(z.mean(axis=1), 0, atol=1e-6)  # opposite pairs
    half = z[:, :32]  # the others are these turned
    assert abs(half.mean()) < 4 / np.sqrt(half.size / 10)  # rows of the table are shared, so fewer are independent
    assert half.var() == pytest.approx(1, abs=0.1)
    products = np.corrcoef(half)[np.triu_indices(2_000, 1)]
    assert 0 < products.mean() < 0.01, "a pair shares one row of four in 64 times: 1/256 on average"
    assert (products > 0.9).mean() < 1e-3
    other = item_draws.normals(keys, item_draws.turn(6), 64)
    assert abs(np.corrcoef(z.ravel(), other.ravel())[0, 1]) < 0.02


# other versions of a surface


@pytest.mark.parametrize("change", ["a feature removed", "a value removed", "an objective added", "more slots"])
def test_what_items_learned_is_carried(change: str) -> None:
    """Old decisions as an addend, against learning them under the new version."""
    new = {
        "a feature removed": problem(replace_spec(items={"genre": Category(GENRES)})),
        "a value removed": problem(replace_spec(items={"genre": Category(GENRES[1:]), "price": Number(0, 1)})),
        "an objective added": problem(objectives=BOTH),
        "more slots": problem(slots=3),
    }[change]
    old, rng = problem(), np.random.default_rng(3)
    genres, items = rng.integers(3, size=6), rng.integers(6, size=60)
    rewards = (rng.random((60, 1)) < 0.4).astype(float)
    before = shown(old, items, genres, rewards, price=0.3)
    o = len(new.objectives)
    empty = learned(new)
    found = hierarchical.carry(CONFIG, new, empty, [Addend(old, learned(old, before))], 0.0)
    as_new = shown(new, items, genres, np.hstack([rewards] * o), price=0.3)
    wanted = learned(new, as_new)
    assert np.array_equal(found["item_hashes"], wanted["item_hashes"])
    for name in ("item_n", "item_P"):
        np.testing.assert_allclose(np.asarray(found[name], float), np.asarray(wanted[name], float), atol=1e-9)
    np.testing.assert_allclose(np.asarray(found["item_B"])[:, 0], np.asarray(wanted["item_B"])[:, 0], atol=1e-9)
    if o > 1:
        np.testing.assert_allclose(np.asarray(found["item_B"])[:, 1], 0, atol=1e-9)  # its default
    made = hierarchical.publish(CONFIG, new, found, 0.0, 1).arrays
    assert all(np.isfinite(np.asarray(array, float)).all() for array in made.values())


def replace_spec(**items: Any) -> FeatureSpec:
    return msgspec.structs.replace(SPEC, **items)


# the service


def test_a_group_that_is_no_category_is_named() -> None:
    for group, hint in (("price", "genre"), ("gener", "genre")):
        policy = PolicySpec("hierarchical_thompson", objective="click", options={"group": group})
        with pytest.raises(ConfigInvalid, match=rf"(?s)policies.home-h.group.*{hint}"):
            compile_surface(surface(policies={"home-h": policy}, live="home-h"))


def test_the_service_scores_items_by_id_and_group_and_recomputes_what_it_drew(tmp_path: Path) -> None:
    """Two objectives, half the items learned from: sampled records recomputed from record and bundle, bit for bit."""
    policy = PolicySpec("hierarchical_thompson", objectives={"click": 1.0, "watch": 0.5}, options={"group": "genre"})
    document = surface(policies={"home-h": policy}, live="home-h", logging=Logging(1.0))
    state, bundles = MemoryState(), MemoryBundles()
    configs = publish(state, bundles, document)
    compiled = configs.current("home")
    assert compiled is not None
    mine = compiled.policies["home-h"]
    learner = HierarchicalLearner(CONFIG, mine.problem)
    batch = evidence(mine.problem)
    learner.learn(batch)
    assert Publisher(bundles, configs, 1).publish(mine, [learner.arrays()], {}, time.time()).result == "published"
    spool, keys = Spool(tmp_path / "spool", quota_bytes=1 << 30), Keys.load(tmp_path)
    scoring = Scoring(state=state, claims=MemoryClaims(), bundles=bundles, spool=spool, keys=keys, patience=CALM)
    scoring.start()
    for number in range(5):
        genres = ["jazz", "rock"]
        candidates = [{"id": f"c{i}", "features": {"genre": genres[i % 2], "price": i}} for i in range(8)]
        body = {"surface": "home", "unit": f"u{number}", "context": {"device": "ios"}, "candidates": candidates}
        assert msgspec.json.decode(scoring.decide(msgspec.json.encode(body)))["mode"] == "live"
    scoring.close()
    made = decisions(tmp_path)
    assert len(made) == 5
    for decision in made:
        held = bundle.read(decision.bundle, bundles.get)
        assert len(held.arrays["item_hashes"]) == 4
        slate = recompute(decision, held)
        assert slate.items.tolist() == decision.rows
        assert slate.propensities.tolist() == decision.propensities
        assert set(held.manifest.inputs) >= {"item_rows", "group_rows", "item_keys"}


def evidence(asked: Problem) -> Changes:
    """Items c0 … c3 of a surface, one clicked more than the others."""
    rng, items = np.random.default_rng(1), np.arange(40) % 4
    one = np.ones(40)
    return Changes(
        context=np.zeros((40, asked.encoder.context_size), np.float32),
        items=asked.encoder.rows([{"genre": ["jazz", "rock"][i % 2]} for i in items], "$"),
        slots=np.zeros(40, np.int64),
        slates=np.arange(40),
        times=one,
        weights=one,
        present_before=0 * one,
        present_after=one,
        rewards_before=np.zeros((40, 2)),
        rewards_after=rng.random((40, 2)) * (items == 1)[:, None],
        item_hashes=item_hashes([f"c{i}" for i in items]),
        propensities=one / 4,
    )
