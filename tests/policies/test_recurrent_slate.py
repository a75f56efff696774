"""Recurrent slates: likelihood and state by hand and against torch, inference that learns, and a state that can be stored."""

import io
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import CALM, publish, surface
from scoring_setup import decisions as recorded

from policies import bundle
from policies.algorithm import Problem
from policies.algorithms import recurrent_slate
from policies.algorithms.recurrent_slate import model
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.algorithms.recurrent_slate.training import SlateTrainer
from policies.features import Encoder
from policies.sequences import Transitions
from policies.slate import draw
from policies.surface import Category, FeatureSpec, Logging, Number, Objective, PolicySpec
from policies.types import Arrays, DrawSettings, item_hashes
from policies.worlds.slate_world import NONE, SlateWorld
from services.keys import Keys
from services.scoring.service import Scoring
from services.studies.eide import Player, Pool, Scale, Variant, lived
from streaming.adapters.memory import MemoryBundles, MemoryClaims, MemoryState
from streaming.publish import Publisher
from streaming.replay import recompute
from streaming.scorer import score
from streaming.spool import Spool

STATES = ("linear", "gru")
SPEC = FeatureSpec(context={"age": Number(0, 1)}, items={"genre": Category(["folk", "jazz"])})
PROBLEM = Problem(Encoder(SPEC), {"click": Objective("click", range=(0, 1))}, {"click": 1.0}, 2, 4)
IDS = ["a", "b", "c", "d"]


def config(state: str = "linear", **options: Any) -> RecurrentSlate:
    return RecurrentSlate(
        **{"group": "genre", "state": state, "size": 2, "hidden": 3, "steps": 5, "batch": 32, **options}
    )


def decisions(
    slates: list[list[str]], clicked: list[int | None], past: list[list[str]], context: float = 0.0
) -> Transitions:
    """Slates of ids, the position clicked and the ids clicked before, oldest first."""
    n, k, H = len(slates), len(slates[0]), max(map(len, past))
    encoder = PROBLEM.encoder
    genre = {name: {"genre": ["folk", "jazz"][i % 2]} for i, name in enumerate(IDS)}

    def features(names: list[str]) -> Any:
        return encoder.rows([genre.get(name, {}) for name in names], "$")

    padded = [[""] * (H - len(one)) + one for one in past]
    lived = np.array([[bool(name) for name in one] for one in padded]).reshape(n, H)
    history = [features(one) for one in padded] if H else np.zeros((n, 0, encoder.item_size), np.float32)
    hashes = item_hashes([name for one in padded for name in one]).reshape(n, H) if H else np.zeros((n, 0), np.uint64)
    rewards = np.zeros((n, k, 1))
    for i, position in enumerate(clicked):
        if position is not None:
            rewards[i, position, 0] = 1
    one = np.ones(n)
    return Transitions(
        context=np.repeat(encoder.context({"age": context})[None], n, axis=0),
        candidates=np.stack([features(names) for names in slates]),
        items=np.stack([item_hashes(names) for names in slates]),
        allowed=np.ones((n, k), bool),
        slate=np.tile(np.arange(k), (n, 1)),
        propensities=np.ones((n, k)),
        present=np.ones((n, k), bool),
        rewards=rewards,
        history=np.array(history, np.float32) * lived[:, :, None],
        history_items=np.where(lived, hashes, 0),
        lived=lived,
        next_context=np.zeros((n, 1), np.float32),
        next_history=np.zeros((n, 0, encoder.item_size), np.float32),
        next_history_items=np.zeros((n, 0), np.uint64),
        next_lived=np.zeros((n, 0), bool),
        terminal=one > 0,
        elapsed=0 * one,
        units=np.arange(n, dtype=np.uint64),
        sessions=np.zeros(n, np.uint64),
        times=0 * one,
        goals=np.full(n, -1),
        goal_propensities=one,
    )


SEEN = decisions(
    [["a", "b"], ["c", "d"], ["a", "d"], ["b", "c"]], [0, None, 1, 0], [[], ["a"], ["a", "c"], ["b", "d", "a"]]
)


def trained(state: str, **options: Any) -> SlateTrainer:
    trainer = SlateTrainer(config(state, **options), PROBLEM)
    trainer.train(SEEN)
    return trainer


def certain(arrays: Arrays) -> Arrays:
    """The same posterior without its spread: every draw is its mean."""
    return arrays | {
        name: np.full_like(value, -30.0)
        for name, value in arrays.items()
        if "log_scale" in name and "moment" not in name
    }


def asked(arrays: Arrays, ids: list[str], past: list[str], context: float = 0.0) -> dict[str, Any]:
    items = PROBLEM.encoder.rows([{"genre": ["folk", "jazz"][IDS.index(i) % 2]} if i in IDS else {} for i in ids], "$")
    return {
        "context": PROBLEM.encoder.context({"age": context}),
        **bundle.item_inputs(arrays, items, item_hashes(ids)),
        "history_rows": bundle.item_rows(arrays, item_hashes(past)) if past else np.zeros(0, np.int64),
    }


# the model


@pytest.mark.parametrize("state", STATES)
def test_numpy_graph_and_torch_say_the_same(state: str) -> None:
    """Log likelihood of logged slates in torch, against the softmax of the published scores: with every past, and a context."""
    trainer = trained(state)
    held = certain(trainer.arrays())
    held["of_context"] = np.random.default_rng(1).standard_normal(held["of_context"].shape).astype(np.float32)
    trainer.load(held)
    late = decisions([["d", "a"]] * 3, [1, None, 0], [["b", "c", "a"], [], ["d"]], context=0.9)
    trainer._replay = {name: value[:0] for name, value in trainer._replay.items()}
    trainer._keep(late)
    options = config(state, draws=1)
    made = recurrent_slate.publish(options, PROBLEM, held, 0.0, 1).arrays
    graph = recurrent_slate.graph(options, PROBLEM).SerializeToString()
    for row, (clicked, past) in enumerate([(1, ["b", "c", "a"]), (None, []), (0, ["d"])]):
        query = asked(made, ["d", "a"], past, 0.9)
        scores = recurrent_slate.reference(options, PROBLEM, made, query)[:, 0].astype(float)
        np.testing.assert_allclose(score(graph, made, query)[:, 0], scores, atol=1e-5)
        logits = np.append(scores, held["no_click"])
        wanted = logits[2 if clicked is None else clicked] - np.log(np.exp(logits).sum())
        found = trainer._log_likelihood(np.array([row]), np.random.default_rng(0)).item()
        assert found == pytest.approx(wanted, abs=1e-5)


def test_the_linear_state_by_hand() -> None:
    gamma, start = np.array([0.5]), np.array([[4.0, 0.0]])
    clicked = np.array([[[0.0, 8.0]], [[2.0, 0.0]]])
    # ½(4, 0) + ½(0, 8) = (2, 4);  ½(2, 4) + ½(2, 0) = (2, 2)
    np.testing.assert_allclose(model.linear_state(gamma, start, clicked), [[2.0, 2.0]])
    np.testing.assert_allclose(model.linear_state(gamma, start, clicked[:0]), start)


def test_groups_by_hand() -> None:
    """One round of EM from nothing: two certain items of group 0 at 1 and 3, one number each, none of group 1."""
    found = model.groups_of(np.array([[1.0], [3.0]]), np.zeros((2, 1)), np.array([0, 0]), 2)
    # τ² = (2 + 0 + 3·1)/(2 + 3) = 1, s² = 1: μ_0 has precision 1 + 2, mean (1 + 3)/3
    np.testing.assert_allclose(found.mean[:, 0], [4 / 3, 0, 0])
    np.testing.assert_allclose(found.doubt, [1 / 3, 1, 1])
    squares = (1 / 3) ** 2 + 1 / 3 + (5 / 3) ** 2 + 1 / 3
    every = (2 + squares) / 4
    np.testing.assert_allclose(found.spread, [(4 * every + squares) / 6, every, every])


def test_clicks_on_items_nobody_learned_say_nothing() -> None:
    for state in STATES:
        options, arrays = config(state), trained(state).arrays()
        made = recurrent_slate.publish(options, PROBLEM, arrays, 0.0, 1).arrays
        graph = recurrent_slate.graph(options, PROBLEM).SerializeToString()
        one, two = (score(graph, made, asked(made, IDS, past)) for past in (["a", "c"], ["new", "a", "newer", "c"]))
        assert np.array_equal(one, two)
        assert not np.allclose(one, score(graph, made, asked(made, IDS, ["c", "a"])))


def test_a_new_item_is_drawn_from_its_group() -> None:
    """Folk lies at (3, 0) ± 0.1, jazz at (0, 3) ± 0.1; a new folk item too, with draws of its own, and less certain."""
    options = config(draws=2048)
    state = model.initial(options, PROBLEM)
    n = 60
    rng, group = np.random.default_rng(1), np.arange(n) % 2
    state |= {
        "item_hashes": np.sort(item_hashes([f"item-{i}" for i in range(n)])),
        "item_group": group,
        "item_mean": (np.where(group[:, None] == 0, [3.0, 0.0], [0.0, 3.0]) + 0.1 * rng.standard_normal((n, 2))).astype(
            np.float32
        ),
        "item_log_scale": np.full((n, 2), -4.0, np.float32),
    }
    made = recurrent_slate.publish(options, PROBLEM, state, 0.0, 1).arrays
    folk, jazz, none = made["means"][-3:]
    np.testing.assert_allclose(folk, [3, 0], atol=0.2)
    np.testing.assert_allclose(jazz, [0, 3], atol=0.2)
    np.testing.assert_allclose(none, [0, 0], atol=1e-6)
    assert 0.1 < made["scales"][-3, 0] < 0.5 < made["scales"][-1, 0]
    items = PROBLEM.encoder.rows([{"genre": "folk"}, {"genre": "folk"}, {"genre": "jazz"}, {}], "$")
    rows = bundle.item_inputs(made, items, item_hashes(["x", "y", "z", "w"]))
    assert rows["item_rows"].tolist() == [-1] * 4
    query = {**asked(made, ["x"], []), **rows}
    found = recurrent_slate.reference(options, PROBLEM, made, query).astype(float)
    assert abs(np.corrcoef(found[0] - found.mean(axis=0), found[1] - found.mean(axis=0))[0, 1]) < 0.9
    assert found[0].mean() == pytest.approx(found[1].mean(), rel=0.1)


# learning


def world_of(users: int = 300, steps: int = 40) -> tuple[SlateWorld, Player]:
    world = SlateWorld(4, users=users, items=40, groups=4, slots=4)
    return world, Player(world, Variant("in-slate TS", True, "linear"), Scale(users, steps, 2_000), 4)


def test_training_makes_what_happened_likelier_also_what_it_was_not_told() -> None:
    """Random slates of a small world: the mean log likelihood of decisions held back rises, and nearly all of it is kept by
    greedy slates, which earn more than random ones."""
    world, player = world_of()
    rng, held = np.random.default_rng(3), list[Transitions]()
    first, last = list[float](), list[float]()
    for step in range(6):
        slates = world.random_slates(300, rng)
        position = world.click(slates, rng.random(300))
        batch = player._transitions(slates, position)
        held.append(batch.rows(np.arange(300) % 5 == 0))
        told = player.trainer
        if step == 0:
            first.append(likelihood(told, held))
        told.train(batch.rows(np.arange(300) % 5 > 0))
        clicked = np.flatnonzero(position != NONE)
        player.past[clicked, player.count[clicked]] = slates[clicked, position[clicked]]
        player.count[clicked] += 1
    last.append(likelihood(player.trainer, held))
    assert last[0] > first[0] + 0.05
    player.strategy = "greedy"
    greedy, random = player.slates(), world.random_slates(300, rng)
    assert world.chances(greedy).sum(axis=1).mean() > 1.5 * world.chances(random).sum(axis=1).mean()


def likelihood(trainer: Any, batches: list[Transitions]) -> float:
    """Of decisions, with every draw at its mean."""
    judge = SlateTrainer(trainer.config, trainer.problem)
    arrays = trainer.arrays()
    judge.load(certain({name: value for name, value in arrays.items() if not name.startswith("replay.")}))
    for batch in batches:
        judge._keep(batch)
    judge.load(certain(judge.arrays()))
    return float(judge._log_likelihood(np.arange(len(judge._replay["past"])), np.random.default_rng(0)).item())


@pytest.mark.parametrize("state", STATES)
def test_a_stored_state_goes_on_as_the_one_that_was_not(state: str) -> None:
    """Bytes without pickle, a new process's trainer, items and decisions it had not met: the same weights to the last bit."""
    trainer, other = trained(state), SlateTrainer(config(state), PROBLEM)
    stored: Arrays = {}
    for name, value in trainer.arrays().items():
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        stored[name] = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    other.load(stored)
    more = decisions([["e", "a"], ["b", "f"]], [0, 0], [["a"], ["g", "b"]])
    for each in (trainer, other):
        each.train(more)
        each.train(SEEN.rows(slice(0, 1)))
    one, two = trainer.arrays(), other.arrays()
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype, name
        assert value.tobytes() == two[name].tobytes(), name
    assert any(value.tobytes() != stored[name].tobytes() for name, value in one.items() if name in stored)
    assert len(one["item_hashes"]) == 7


def test_arrays_given_do_not_move_when_learning_goes_on() -> None:
    trainer = trained("gru")
    given = trainer.arrays()
    copies = {name: value.copy() for name, value in given.items()}
    trainer.train(SEEN)
    assert all(np.array_equal(given[name], value) for name, value in copies.items())


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    trainer = trained("linear")
    before = trainer.arrays()
    trainer._replay["context"] = np.full_like(trainer._replay["context"], np.nan)
    told = trainer.train(SEEN.rows(slice(0, 0)))
    assert told["skipped"] == 5
    assert "loss" not in told
    after = trainer.arrays()
    for name in ("item_mean", "start", "gamma", "moment1.item_mean", "moment2.gamma"):
        assert np.array_equal(before[name], after[name]), name
    assert after["counts"].tolist() == [10, 5, 4]


def test_weights_of_other_options_are_refused() -> None:
    held = trained("linear").arrays()
    for other in (config(size=3), config("gru")):
        with pytest.raises(ValueError, match="of other options"):
            SlateTrainer(other, PROBLEM).load(held)


def test_only_the_newest_decisions_are_kept_and_slots_not_seen_are_in_no_likelihood() -> None:
    trainer = trained("linear", replay=3)
    assert len(trainer.arrays()["replay.past"]) == 3
    unseen = replace(SEEN, present=np.array([[True, False]] * 4))
    trainer.train(unseen)
    assert (trainer.arrays()["replay.shown"][:, 1] == NONE).all()
    assert not trainer.arrays()["replay.clicked"][:, 1].any()
    long = decisions([["a", "b"]], [0], [["a", "b", "c", "d", "a", "c"]])
    trainer.train(long)
    kept = trainer.arrays()
    order = np.argsort(np.argsort(item_hashes(IDS)))
    assert kept["replay.past"][-1].tolist() == order[[2, 3, 0, 2]].tolist(), "the last four clicks, oldest first"


def test_scoring_never_loads_torch() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, policies.registry; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "False"


def test_the_service_scores_with_the_history_of_a_request_and_recomputes_what_it_drew(tmp_path: Path) -> None:
    """Other clicks, other chances; without any a slate as well; and the record gives the same slate again, bit for bit."""
    policy = PolicySpec("recurrent_slate", objective="click", options={"group": "genre", "size": 2})
    document = surface(policies={"home-r": policy}, live="home-r", logging=Logging(1.0), history=4)
    state, bundles = MemoryState(), MemoryBundles()
    configs = publish(state, bundles, document)
    compiled = configs.current("home")
    assert compiled is not None
    mine = compiled.policies["home-r"]
    learned = model.initial(mine.config, mine.problem)  # type: ignore[arg-type] - its own config
    rng = np.random.default_rng(2)
    learned |= {
        "item_hashes": np.sort(item_hashes([f"c{i}" for i in range(6)])),
        "item_group": np.zeros(6, np.int64),
        "item_mean": rng.standard_normal((6, 2)).astype(np.float32),
        "item_log_scale": np.full((6, 2), -2.0, np.float32),
    }
    assert Publisher(bundles, configs, 1).publish(mine, [learned], {}, time.time()).result == "published"
    spool, keys = Spool(tmp_path / "spool", quota_bytes=1 << 30), Keys.load(tmp_path)
    scoring = Scoring(state=state, claims=MemoryClaims(), bundles=bundles, spool=spool, keys=keys, patience=CALM)
    scoring.start()
    candidates = [{"id": f"c{i}", "features": {"genre": ["jazz", "rock"][i % 2], "price": i}} for i in range(8)]
    for history in ([], ["c0"], ["c3", "c3", "c1"]):
        past = [{"item": item, "kind": "click"} for item in history]
        body = {"surface": "home", "unit": "u", "context": {}, "candidates": candidates, "history": past}
        assert msgspec.json.decode(scoring.decide(msgspec.json.encode(body)))["mode"] == "live"
    scoring.close()
    made, first = recorded(tmp_path), list[Any]()
    assert len(made) == 3
    for decision in made:
        held = bundle.read(decision.bundle, bundles.get)
        slate = recompute(decision, held)
        assert slate.items.tolist() == decision.rows
        assert slate.propensities.tolist() == decision.propensities
        assert slate.distributions is not None
        first.append(slate.distributions[0])
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(first[1], first[2])


# the study draws as the service does


@pytest.mark.parametrize(("strategy", "head"), [("in-slate TS", "draws"), ("slate TS", "one_draw")])
def test_the_studys_slates_are_those_of_the_draw(strategy: Any, head: Any) -> None:
    """One user 20,000 times: shares of the first two slots, against the distributions `policies.slate.draw` states."""
    world, player = world_of(users=60)
    rng = np.random.default_rng(3)
    for _ in range(2):
        slates = world.random_slates(60, rng)
        player.learn(slates, world.click(slates, rng.random(60)))
    player.strategy = strategy
    pool = player.publish()
    n, past = 20_000, np.tile(player.past[player.count.argmax()][: player.count.max()], (20_000, 1))
    drawn = rng.integers(256, size=(n, 4 if strategy == "in-slate TS" else 1))
    found = pool.slates(past, drawn, 4, None, rng)

    inputs: Any = {
        "context": np.zeros(0, np.float32),
        **bundle.item_inputs(pool.arrays, player.encoded, player.hashes),
        "history_rows": bundle.item_rows(pool.arrays, player.hashes[past[0]]),
    }
    scores = recurrent_slate.reference(pool.config, player.problem, pool.arrays, inputs)
    stated = draw(scores, 4, np.full(4, 0.5), DrawSettings(head, floor=0.0), full=True)
    assert stated.distributions is not None
    given = found[found[:, 0] == stated.items[0]]
    for slates, p in ((found[:, 0], stated.distributions[0]), (given[:, 1], stated.distributions[1])):
        share = np.bincount(slates, minlength=40) / len(slates)
        assert len(slates) > 500
        assert (np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / len(slates)) + 1e-3).all()


def test_a_small_run_of_the_study_learns() -> None:
    world, player = world_of(users=200, steps=12)
    found, floor = lived(world, "in-slate TS", player, 4), lived(world_of(users=200)[0], "random", None, 4)
    best = lived(world_of(users=200)[0], "oracle", None, 4)
    assert floor.steps[2:].mean() * 1.3 < found.steps[2:].mean() < best.steps[2:].mean()
    assert floor.cold < best.cold
    assert isinstance(player.publish(), Pool)
