"""What every algorithm of the registry promises: one function a promise, run over all of them by `test_algorithms.py`.

An algorithm opts out of a promise by a trait it declares, never by its name.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import bundle, slate
from policies.algorithm import Addend, Algorithm, Config, Learner, Problem, Published, draw_settings
from policies.algorithms import uniform
from policies.carrying import discounted
from policies.features import Encoder
from policies.surface import Bool, Category, FeatureSpec, Number, Objective, Vector
from policies.types import F32, F64, Arrays, Changes, DrawSettings, item_hashes
from streaming.scorer import score

DAY = 86_400.0
START = 1_764_000_000.0
SLOTS = 3
ITEMS = 12
GENRES = ["jazz", "rock", "folk"]
SPEC = FeatureSpec(
    context={"device": Category(values=["ios", "web"]), "hour": Number(min=0, max=23)},
    items={
        "price": Number(min=0, max=100),
        "genre": Category(values=GENRES),
        "new": Bool(),
        "taste": Vector(size=2),
    },
    cross=[("device", "genre"), ("hour", "price")],
)
ENCODER = Encoder(SPEC)
CLICK = {"click": Objective(kind="click", range=(0, 1))}
BOTH = {**CLICK, "watch": Objective(kind="watch", range=(0, 60))}
PROBLEM = Problem(ENCODER, CLICK, {"click": 1.0}, SLOTS)
TWO = Problem(ENCODER, BOTH, {"click": 1.0, "watch": 0.1}, SLOTS)

Check = Callable[[Algorithm], None]
CHECKS: dict[str, tuple[Check, frozenset[str], frozenset[str]]] = {}


def check(*needs: str, without: tuple[str, ...] = ()) -> Callable[[Check], Check]:
    """Register a promise for algorithms that have all traits of `needs` and none of `without`."""

    def register(function: Check) -> Check:
        CHECKS[function.__name__] = (function, frozenset(needs), frozenset(without))
        return function

    return register


@dataclass(frozen=True)
class Catalogue:
    """Twelve items with raw features: what candidates are made of."""

    ids: list[str]
    encoded: F32

    @classmethod
    def of(cls, seed: int, encoder: Encoder = ENCODER) -> "Catalogue":
        rng = np.random.default_rng(seed)
        raw: list[dict[str, Any]] = [
            {
                "price": float(rng.uniform(0, 100)),
                "genre": GENRES[i % 3],
                "new": bool(i % 2),
                "taste": rng.normal(size=2).tolist(),
            }
            for i in range(ITEMS)
        ]
        known = [{name: value for name, value in row.items() if name in encoder.spec.items} for row in raw]
        return cls([f"item-{i}" for i in range(ITEMS)], encoder.rows(known, "$.items"))

    @property
    def hashes(self) -> Any:
        return item_hashes(self.ids)


CATALOGUE = Catalogue.of(5)


def context(rng: np.random.Generator) -> F32:
    return ENCODER.context({"device": str(rng.choice(["ios", "web"])), "hour": float(rng.uniform(0, 23))})


def evidence(seed: int, slates: int = 40, *, objectives: int = 1, spread: float = DAY) -> Changes:
    """Random slates with random rewards over `spread` seconds, all entering."""
    rng = np.random.default_rng(seed)
    n = slates * SLOTS
    rows = np.concatenate([rng.choice(ITEMS, SLOTS, replace=False) for _ in range(slates)])
    rewards = (rng.random((n, objectives)) < 0.4) * rng.uniform(0.5, 1, (n, objectives))
    return Changes(
        context=np.repeat(np.stack([context(rng) for _ in range(slates)]), SLOTS, axis=0),
        items=CATALOGUE.encoded[rows],
        slots=np.tile(np.arange(SLOTS), slates),
        slates=np.repeat(np.arange(slates), SLOTS),
        times=np.repeat(START + np.sort(rng.uniform(0, spread, slates)), SLOTS),
        weights=np.repeat(rng.uniform(0.4, 1, slates), SLOTS),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, objectives)),
        rewards_after=rewards,
        item_hashes=CATALOGUE.hashes[rows],
        propensities=np.full(n, 1 / ITEMS),
    )


def only(changes: Changes, keep: Any) -> Changes:
    """The rows of some slates, their numbers made 0.. again."""
    rows = np.isin(changes.slates, keep)
    taken = {name: getattr(changes, name)[rows] for name in Changes.__slots__ if name != "delays"}
    taken["slates"] = np.unique(taken["slates"], return_inverse=True)[1]
    return Changes(**taken)


def query(problem: Problem, arrays: Arrays, *, items: F32 | None = None, seed: int = 1) -> dict[str, Any]:
    """Everything of the fixed vocabulary a graph may read, for the catalogue's items unless others are given."""
    hashes = CATALOGUE.hashes if items is None else item_hashes([f"unheard-{i}" for i in range(len(items))])
    made: dict[str, Any] = {
        "context": context(np.random.default_rng(seed)),
        "items": CATALOGUE.encoded if items is None else items,
        "weights": np.array(list(problem.weights.values()), np.float32),
        "history": CATALOGUE.encoded[[3, 1, 4]],
        "goal": np.eye(1, 8, 2, dtype=np.float32)[0],  # as many goals as those that have any have by default
    }
    if "item_hashes" in arrays:
        made |= bundle.item_inputs(arrays, made["items"], hashes)
        made["history_rows"] = bundle.item_rows(arrays, CATALOGUE.hashes[[3, 1, 4]])
    return made


def trained(algorithm: Algorithm, config: Config, problem: Problem, *batches: Changes) -> Learner:
    assert algorithm.learner is not None
    learner = algorithm.learner(config, problem)
    for batch in batches:
        learner.learn(batch)
    return learner


def published(algorithm: Algorithm, problem: Problem = PROBLEM, config: Config | None = None, seed: int = 7) -> Arrays:
    """Arrays after 40 slates, for algorithms that learn."""
    config = config or algorithm.config()
    sums: Arrays = {}
    if algorithm.learner:
        sums = trained(algorithm, config, problem, evidence(3, objectives=len(problem.objectives))).arrays()
    return algorithm.publish(config, problem, sums, START + DAY, seed).arrays


def graph_scores(algorithm: Algorithm, problem: Problem, arrays: Arrays, asked: dict[str, Any]) -> F32:
    config = algorithm.config()
    return score(algorithm.graph(config, problem).SerializeToString(), arrays, asked)


def same(one: Arrays, two: Arrays, tolerance: float = 1e-9) -> None:
    """Named arrays equal to `tolerance` of each array's own size."""
    assert one.keys() == two.keys()
    for name, left in one.items():
        right = two[name]
        assert left.shape == right.shape, name
        if left.dtype.kind != "f":
            assert np.array_equal(left, right), name
        else:
            size = float(np.abs(np.where(np.isfinite(left), left, 0)).max(initial=0))
            np.testing.assert_allclose(right, left, rtol=tolerance, atol=tolerance * size, err_msg=name)


def configs(algorithm: Algorithm) -> Iterator[Config]:
    """The default configuration and, where there is forgetting, one that moves its reference time within the evidence."""
    yield within_an_epoch(algorithm)
    if "half_life" in algorithm.config.__struct_fields__:
        yield within_an_epoch(algorithm, half_life="20m")  # 72 of them in a day


def within_an_epoch(algorithm: Algorithm, **options: Any) -> Config:
    """A configuration under which sums of the evidence are exact, for algorithms that are so only within an epoch."""
    return algorithm.config(**({"first_epoch": 10_000} if "epochs" in algorithm.traits else {}), **options)


# the draw on its scores


@check()
def distribution_sums_to_one(algorithm: Algorithm) -> None:
    """Under every head, each slot's conditional distribution is one, to a thousand roundings."""
    arrays = published(algorithm)
    scores = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays))
    for head in slate.HEADS:
        drawn = slate.draw(scores, SLOTS, np.array([0.1, 0.5, 0.9]), DrawSettings(head), full=True)  # type: ignore[arg-type] - a literal in a loop
        assert drawn.distributions is not None
        np.testing.assert_allclose(drawn.distributions.sum(axis=1), 1, atol=1e-12)


@check()
def floor_respected(algorithm: Algorithm) -> None:
    """No remaining candidate has less than ε/∣R_t∣, whatever was learned."""
    arrays = published(algorithm)
    scores = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays))
    drawn = slate.draw(scores, SLOTS, np.array([0.1, 0.5, 0.9]), DrawSettings(floor=0.06), full=True)
    assert drawn.distributions is not None
    for t, p in enumerate(drawn.distributions):
        remaining = np.delete(p, drawn.items[:t])
        assert remaining.min() >= 0.06 / (ITEMS - t) * (1 - 1e-12)


@check(without=("ordered",))
def order_of_candidates_irrelevant(algorithm: Algorithm) -> None:
    """Shuffled candidates have the same scores (float32 rounding) and so the same probabilities (one draw of 256 may tip)."""
    arrays, turned = published(algorithm), np.random.default_rng(2).permutation(ITEMS)
    asked = query(PROBLEM, arrays)
    shuffled = {
        name: value[turned] if name in ("items", "item_rows", "group_rows", "item_keys") else value
        for name, value in asked.items()
    }
    straight = graph_scores(algorithm, PROBLEM, arrays, asked)
    other = graph_scores(algorithm, PROBLEM, arrays, shuffled)
    np.testing.assert_allclose(other, straight[turned], atol=1e-5 * np.abs(straight).max())
    one = slate.draw(straight, 1, np.array([0.3]), DrawSettings(), full=True).distributions
    two = slate.draw(other, 1, np.array([0.3]), DrawSettings(), full=True).distributions
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(two[0], one[0][turned], atol=1.01 / 256)


@check()
def draws_what_it_logs(algorithm: Algorithm) -> None:
    """E[1/p] over many decisions is the number of candidates (4 standard errors)."""
    arrays = published(algorithm)
    scores = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays))
    u = np.random.default_rng(11).random(20_000)
    inverse = np.array(
        [1 / slate.draw(scores, 1, u[i : i + 1], DrawSettings(floor=0.3)).propensities[0] for i in range(20_000)]
    )
    assert abs(inverse.mean() - ITEMS) <= 4 * inverse.std() / np.sqrt(len(inverse)) + 1e-9


@check("predicts", without=("trains",))
def scores_are_expected_rewards(algorithm: Algorithm) -> None:
    """Where rewards depend on the slot alone, the mean score over items is what the first slot earns, or what all slots do where
    the model knows none (0.08: four standard errors of 1,200 examples, and what a prior holds back)."""
    shown = evidence(6, slates=1200)
    clicks = np.random.default_rng(7).random(len(shown)) < np.where(shown.slots == 0, 0.6, 0.3)
    seen = replace(shown, rewards_after=clicks[:, None].astype(float), weights=np.ones(len(shown)))
    learner = trained(algorithm, algorithm.config(), PROBLEM, seen)
    arrays = algorithm.publish(algorithm.config(), PROBLEM, learner.arrays(), START + DAY, 1).arrays
    expected = np.mean(
        [graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays, seed=s)).mean() for s in range(8)]
    )
    assert expected == pytest.approx(0.6 if "contextual" in algorithm.traits else 0.4, abs=0.08)


# what may be asked


@check()
def unseen_item_accepted(algorithm: Algorithm) -> None:
    """Items nobody has heard of, with an unlisted category or nothing at all, are scored among the others."""
    arrays = published(algorithm)
    unheard = ENCODER.rows([{"genre": "polka"}, {}, {"price": 3.0}], "$.items")
    scores = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays, items=unheard))
    assert scores.shape[0] == 3
    assert np.isfinite(scores).all()


@check()
def extreme_features_finite(algorithm: Algorithm) -> None:
    """Features at the end of float64 and rewards at the end of reason leave every score finite, also when learned from."""
    wild = ENCODER.rows(
        [{"price": 1.7e308, "taste": [1e300, -1e300]}, {"price": -1.7e308, "new": True, "genre": "rock"}, {}], "$.items"
    )
    config, sums = algorithm.config(), Arrays()
    if algorithm.learner:
        normal = evidence(4, slates=10)
        odd = replace(
            normal,
            items=np.tile(wild, (10, 1)),
            context=np.tile(ENCODER.context({"hour": -1e308}), (30, 1)),
            rewards_after=normal.rewards_after * 1e9,
        )
        sums = trained(algorithm, config, PROBLEM, odd).arrays()
    arrays = algorithm.publish(config, PROBLEM, sums, START + DAY, 1).arrays
    assert np.isfinite(graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays, items=wild))).all()


@check()
def one_candidate_is_enough(algorithm: Algorithm) -> None:
    """A single candidate is scored in the shape of any other number of them."""
    arrays = published(algorithm)
    many = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays))
    one = graph_scores(algorithm, PROBLEM, arrays, query(PROBLEM, arrays, items=CATALOGUE.encoded[:1]))
    assert one.shape == (1, many.shape[1])


# graph, snapshot, bundle


@check()
def onnx_equals_reference(algorithm: Algorithm) -> None:
    """The graph gives what plain numpy gives, for one objective and for two with other weights than the policy's."""
    for problem in (PROBLEM, TWO):
        arrays = published(algorithm, problem)
        asked = query(problem, arrays) | {"weights": np.array([0.3, -2.0], np.float32)[: len(problem.objectives)]}
        found = graph_scores(algorithm, problem, arrays, asked)
        wanted = algorithm.reference(algorithm.config(), problem, arrays, asked)
        assert found.dtype == wanted.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


@check()
def publish_is_pure(algorithm: Algorithm) -> None:
    """Same sums, time and seed: same bytes. Another seed: another pool, for those that draw one."""
    first, again, other = (published(algorithm, seed=seed) for seed in (7, 7, 8))
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in again.items()}
    differs = any(a.tobytes() != other[n].tobytes() for n, a in first.items())
    assert differs == ("uses_draws" in algorithm.traits)


@check("learns")
def old_snapshots_stay_still(algorithm: Algorithm) -> None:
    """What was published or loaded from does not move when the learner goes on."""
    config = algorithm.config()
    learner = trained(algorithm, config, PROBLEM, evidence(3))
    sums = {name: value.copy() for name, value in learner.arrays().items()}
    other = algorithm.learner(config, PROBLEM)  # type: ignore[misc] - it has the trait
    other.load(sums)
    made = algorithm.publish(config, PROBLEM, learner.arrays(), START + DAY, 7).arrays
    held = {name: value.copy() for name, value in ({f"made {n}": a for n, a in made.items()} | sums).items()}
    for moving in (learner, other):
        moving.learn(evidence(4))
        now = moving.arrays()
        assert not any(np.shares_memory(a, b) for a in (*made.values(), *sums.values()) for b in now.values())
    for name, value in ({f"made {n}": a for n, a in made.items()} | sums).items():
        assert np.array_equal(value, held[name]), name


@check()
def bundle_passes_its_own_gate(algorithm: Algorithm) -> None:
    """Built, written, read and verified, untrained and trained; and the scores are those of the arrays it was built from."""
    for problem in (PROBLEM, TWO):
        config = algorithm.config()
        for sums in (
            {},
            trained(algorithm, config, problem, evidence(3, objectives=len(problem.objectives))).arrays()
            if algorithm.learner
            else {},
        ):
            result = algorithm.publish(config, problem, sums, START + DAY, 7)
            made = bundle.build(
                algorithm, config, problem, result, surface="home", policy="p", key="k", config_hash="c", number=1, seed=7,
                created_at=START, trained_through={"0": 1}, epoch=1, score=score,
            )  # fmt: skip
            read = bundle.read(made.manifest.bundle, bundle.files(made).__getitem__)
            bundle.verify(read, schema=ENCODER.schema, score=score, algorithm=algorithm.name)
            assert read.manifest == made.manifest
            asked = query(problem, read.arrays)
            assert set(read.manifest.inputs) <= asked.keys()
            assert np.array_equal(
                score(read.graph, read.arrays, asked), graph_scores(algorithm, problem, result.arrays, asked)
            )


# learning


@check("merges")
def pieces_in_any_order_learn_the_same(algorithm: Algorithm) -> None:
    """Three shards fed single slates in random order add up to one learner fed all at once."""
    whole, rng = evidence(3), np.random.default_rng(9)
    for config in configs(algorithm):
        shards = [trained(algorithm, config, PROBLEM) for _ in range(3)]
        for number in rng.permutation(40):
            shards[number % 3].learn(only(whole, number))
        assert algorithm.merge is not None
        together = algorithm.merge([shard.arrays() for shard in shards])
        same(trained(algorithm, config, PROBLEM, whole).arrays(), together)


@check("merges")
def empty_shard_adds_nothing(algorithm: Algorithm) -> None:
    """A shard that has learned nothing changes nothing, and no shards at all publish like one that has learned nothing."""
    assert algorithm.merge is not None
    for config in configs(algorithm):
        full, nothing = trained(algorithm, config, PROBLEM, evidence(3)), trained(algorithm, config, PROBLEM)
        same(full.arrays(), algorithm.merge([nothing.arrays(), full.arrays()]))
        fresh = algorithm.publish(config, PROBLEM, nothing.arrays(), START, 7).arrays
        same(fresh, algorithm.publish(config, PROBLEM, algorithm.merge([]), START, 7).arrays)


@check("merges")
def correction_equals_the_final_reward(algorithm: Algorithm) -> None:
    """Silence first, then a reward, another one, and a slot found unshown: as if known at once. Taken back: as if never seen."""
    final = evidence(3)
    rng = np.random.default_rng(1)
    unshown = rng.random(len(final)) < 0.2
    last = np.where(unshown[:, None], 0, final.rewards_after)
    present = np.where(unshown, 0.0, 1.0)
    for config in configs(algorithm):
        once = trained(algorithm, config, PROBLEM, replace(final, rewards_after=last, present_after=present))
        steps = trained(algorithm, config, PROBLEM)
        held: tuple[F64, F64] = (np.zeros_like(present), np.zeros_like(last))
        for step in (
            (np.ones_like(present), np.zeros_like(last)),
            (np.ones_like(present), final.rewards_after * 3),
            (present, last),
        ):
            move = {
                "present_before": held[0],
                "rewards_before": held[1],
                "present_after": step[0],
                "rewards_after": step[1],
            }
            changed = np.unique(final.slates[(step[0] != held[0]) | (step[1] != held[1]).any(axis=1)])
            steps.learn(only(replace(final, **move), changed))
            held = step
        same(once.arrays(), steps.arrays())

        before = {name: value.copy() for name, value in steps.arrays().items()}
        extra = evidence(8)
        back = replace(
            extra,
            present_before=extra.present_after,
            rewards_before=extra.rewards_after,
            present_after=extra.present_before,
            rewards_after=extra.rewards_before,
        )
        for batch in (extra, back):
            steps.learn(batch)
        assert algorithm.merge is not None
        same(algorithm.merge([before, trained(algorithm, config, PROBLEM, extra, back).arrays()]), steps.arrays())


@check("learns")
def configuration_of_the_draw_keeps_the_sums(algorithm: Algorithm) -> None:
    """Other weights, floor and number of draws are exact: as if learned under them from the start."""
    batch, old = evidence(3, objectives=2), algorithm.config()
    new = msgspec.structs.replace(old, floor=0.2, draws=64)
    heavier = replace(TWO, weights={"click": -2.0, "watch": 0.5})
    kept = algorithm.learner(new, heavier)  # type: ignore[misc] - it has the trait
    kept.load(trained(algorithm, old, TWO, batch).arrays())
    afresh = trained(algorithm, new, heavier, batch)
    same(afresh.arrays(), kept.arrays(), 0)
    same(*(algorithm.publish(new, heavier, one.arrays(), START, 7).arrays for one in (afresh, kept)), 0)


@check("learns")
def state_round_trips(algorithm: Algorithm) -> None:
    """Sums survive bytes without pickle, and the learner that loads them goes on exactly as the one that gave them."""
    config = algorithm.config()
    learner = trained(algorithm, config, PROBLEM, evidence(3))
    stored: Arrays = {}
    for name, value in learner.arrays().items():
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        stored[name] = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    other = algorithm.learner(config, PROBLEM)  # type: ignore[misc] - it has the trait
    other.load(stored)
    for moving in (learner, other):
        moving.learn(evidence(4))
    same(learner.arrays(), other.arrays(), 0)


@check("learns")
def forgetting_is_by_event_time(algorithm: Algorithm) -> None:
    """An example one half-life older counts half, whether it arrives first or last, and all halve as time passes."""
    config = algorithm.config(half_life="1h")  # type: ignore[call-arg] - every learner's own option
    early, late = evidence(3, slates=1, spread=0), evidence(4, slates=1, spread=0)
    early, late = (replace(e, weights=np.ones(SLOTS)) for e in (early, late))
    late = replace(late, times=late.times + 3600)

    def counted(batches: list[Changes], now: float) -> float:
        return algorithm.publish(
            config, PROBLEM, trained(algorithm, config, PROBLEM, *batches).arrays(), now, 1
        ).diagnostics["examples"]

    now = START + 3600
    for order in ([early, late], [late, early]):
        np.testing.assert_allclose(counted(order, now), SLOTS * 1.5, rtol=1e-12)
        np.testing.assert_allclose(counted(order, now + 2 * 3600), SLOTS * 1.5 / 4, rtol=1e-12)


@check("merges")
def a_new_half_life_keeps_what_was_learned(algorithm: Algorithm) -> None:
    """What was learned under another half-life is an addend (promise 7): the same examples' worth, decaying as it did."""
    old, new = (algorithm.config(half_life=long) for long in ("1h", "6h"))  # type: ignore[call-arg] - every learner's own option
    sums, now = trained(algorithm, old, PROBLEM, evidence(3)).arrays(), START + DAY
    assert algorithm.carry is not None
    for later in (0.0, 3600.0):
        nothing = trained(algorithm, new, PROBLEM).arrays()
        kept = algorithm.carry(new, PROBLEM, nothing, [Addend(PROBLEM, sums)], now + later)
        found = algorithm.publish(new, PROBLEM, kept, now + later, 1).diagnostics["examples"]
        wanted = algorithm.publish(old, PROBLEM, sums, now + later, 1).diagnostics["examples"]
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        assert wanted > 0.1


@check("predicts", "merges")
def evidence_from_before_a_reset_counts_less(algorithm: Algorithm) -> None:
    """An addend that is discounted is what the same decisions of so much less weight would have taught."""
    config, now, batch = within_an_epoch(algorithm, half_life="6h"), START + DAY, evidence(3)
    light = trained(algorithm, config, PROBLEM, replace(batch, weights=batch.weights / 8)).arrays()
    nothing = trained(algorithm, config, PROBLEM).arrays()
    assert algorithm.carry is not None
    made = []
    for factor, sums in ((1.0, light), (1 / 8, trained(algorithm, config, PROBLEM, batch).arrays())):
        carried = algorithm.carry(config, PROBLEM, nothing, [Addend(PROBLEM, discounted(sums, factor))], now)
        made.append(algorithm.publish(config, PROBLEM, carried, now, 7).arrays)
    same(*made, 1e-5)


@check("merges", "contextual")
def features_come_and_go_on_a_live_surface(algorithm: Algorithm) -> None:
    """One feature of the items removed, one added, a category's value added: published as if learned under the new version."""
    items = {name: feature for name, feature in SPEC.items.items() if name != "taste"}
    items |= {"genre": Category(values=["polka", *GENRES]), "brand": Category(values=["a", "b"])}
    encoder = Encoder(msgspec.structs.replace(SPEC, items=items))
    config, now, batch = within_an_epoch(algorithm, half_life="6h"), START + DAY, evidence(3)
    new, at = replace(PROBLEM, encoder=encoder), np.argsort(CATALOGUE.hashes)
    rows = at[np.searchsorted(CATALOGUE.hashes[at], batch.item_hashes)]
    afresh = trained(algorithm, config, new, replace(batch, items=Catalogue.of(5, encoder).encoded[rows]))
    old = Addend(PROBLEM, trained(algorithm, config, PROBLEM, batch).arrays())
    assert algorithm.carry is not None
    carried = algorithm.carry(config, new, trained(algorithm, config, new).arrays(), [old], now)
    same(*(algorithm.publish(config, new, sums, now, 7).arrays for sums in (afresh.arrays(), carried)), 1e-5)


@check("epochs")
def what_is_taken_back_after_an_epoch_takes_what_it_brought(algorithm: Algorithm) -> None:
    """Decisions come, are rewarded, an epoch ends, and they are taken back: every sum loses what it had gained by them."""
    learner = trained(algorithm, algorithm.config(), PROBLEM, evidence(3, slates=300))
    late = later(evidence(8, slates=10))
    silent = replace(late, rewards_after=np.zeros_like(late.rewards_after))
    heard = replace(late, present_before=late.present_after, rewards_before=silent.rewards_after)
    back = replace(
        heard,
        rewards_before=late.rewards_after,
        present_after=late.present_before,
        rewards_after=silent.rewards_after,
    )

    def moved(*batches: Changes) -> Arrays:
        """What the sums gain by batches."""
        before = {name: value.copy() for name, value in learner.arrays().items() if value.ndim > 1}
        for batch in batches:
            learner.learn(batch)
        now = learner.arrays()
        return {name: np.asarray(now[name] - value) for name, value in before.items() if now[name].shape == value.shape}

    epoch = float(learner.arrays()["epoch"][0])
    gained = moved(silent, heard)
    learner.learn(later(later(evidence(4, slates=300))))
    assert float(learner.arrays()["epoch"][0]) > epoch > 0
    lost = moved(back)
    added = {
        name for name in gained.keys() & lost.keys() if gained[name].shape == lost[name].shape
    }  # points do not add
    assert {"A", "b", "S"} <= added
    for name in added:
        np.testing.assert_allclose(lost[name], -gained[name], atol=1e-9 * np.abs(gained[name]).max(), err_msg=name)


@check("epochs")
def parts_of_different_epochs_still_add(algorithm: Algorithm) -> None:
    """A shard that has ended epochs and one that has not: together they know as much as both, and nobody's epoch ends the other's."""
    config = algorithm.config(first_epoch=200)  # type: ignore[call-arg] - an option of what has epochs
    far, near = evidence(3, slates=400), later(evidence(4, slates=60))
    parts = [trained(algorithm, config, PROBLEM, batch).arrays() for batch in (far, near)]
    assert parts[0]["epoch"][0] > parts[1]["epoch"][0] == 0
    assert algorithm.merge is not None
    arrays = [
        algorithm.publish(config, PROBLEM, sums, START, 7)
        for sums in (algorithm.merge(parts), trained(algorithm, config, PROBLEM, far, near).arrays(), parts[0])
    ]
    assert arrays[0].diagnostics["examples"] == sum(float(part["n"][0]) for part in parts)
    merged, once, alone = (
        graph_scores(algorithm, PROBLEM, made.arrays, query(PROBLEM, made.arrays)).mean(axis=1) for made in arrays
    )
    assert np.abs(merged - once).max() < 0.3 * np.abs(alone - once).max()


def later(changes: Changes) -> Changes:
    return replace(changes, times=changes.times + DAY)


@check("learns")
def moving_the_reference_time_changes_nothing(algorithm: Algorithm) -> None:
    """Learned step by step over 144 half-lives, or all at once: what is published is the same, also from a short distance."""
    config = algorithm.config(half_life="10m")  # type: ignore[call-arg] - every learner's own option
    batch = evidence(3)
    once, steps = trained(algorithm, config, PROBLEM, batch), trained(algorithm, config, PROBLEM)
    indices = set()
    for number in range(40):
        steps.learn(only(batch, number))
        indices.add(float(steps.arrays()["index"][0]))
    assert len(indices) > 5, "the evidence should have moved the reference time"
    for now in (START + DAY, START + DAY + 60, START + 2 * DAY):
        same(*(algorithm.publish(config, PROBLEM, one.arrays(), now, 7).arrays for one in (once, steps)), 1e-6)


@check("learns")
def beats_uniform(algorithm: Algorithm) -> None:
    """In a world where four items are clicked more, 300 slates earn more than uniform ones drawn with the same random numbers."""
    gain = play(algorithm) - play(uniform.ALGORITHM)
    assert gain.mean() > 4 * gain.std() / np.sqrt(len(gain))


def play(algorithm: Algorithm, slates: int = 300, every: int = 20) -> F64:
    """Clicks of each slate (slates,), published every 20; users and draws use the same numbers for every algorithm."""
    rng = np.random.default_rng(21)
    people = np.stack([context(rng) for _ in range(slates)])
    u, luck = rng.random((slates, SLOTS)), rng.random((slates, ITEMS))
    truth = np.where(CATALOGUE.encoded[:, 1:4].argmax(axis=1) == 0, 0.6, 0.1)
    config = algorithm.config()
    learner = algorithm.learner(config, PROBLEM) if algorithm.learner else None
    graph = algorithm.graph(config, PROBLEM).SerializeToString()
    total, pending = np.zeros(slates), list[tuple[int, Any]]()
    made = Published({})
    for i in range(slates):
        if i % every == 0:
            if learner and pending:
                learner.learn(_learned(people, pending, truth, luck))
                pending.clear()
            made = algorithm.publish(config, PROBLEM, learner.arrays() if learner else {}, START, i)
        asked = query(PROBLEM, made.arrays) | {"context": people[i]}
        drawn = slate.draw(score(graph, made.arrays, asked), SLOTS, u[i], draw_settings(config, made.temperature))
        total[i] = (luck[i, drawn.items] < truth[drawn.items]).sum()
        pending.append((i, drawn))
    return total


def _learned(people: F32, pending: list[tuple[int, Any]], truth: F64, luck: F64) -> Changes:
    numbers, rows = np.array([i for i, _ in pending]), np.concatenate([drawn.items for _, drawn in pending])
    each, n = np.repeat(numbers, SLOTS), len(rows)
    return Changes(
        context=people[each],
        items=CATALOGUE.encoded[rows],
        slots=np.tile(np.arange(SLOTS), len(numbers)),
        slates=np.repeat(np.arange(len(numbers)), SLOTS),
        times=START + each,
        weights=np.ones(n),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros((n, 1)),
        rewards_after=(luck[each, rows] < truth[rows]).astype(float)[:, None],
        item_hashes=CATALOGUE.hashes[rows],
        propensities=np.concatenate([drawn.propensities for _, drawn in pending]),
    )
