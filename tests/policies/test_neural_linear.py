"""`neural_linear`: torch, numpy and ONNX are one network; its last layer is linear_thompson's; sums and network belong together."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies.algorithm import Problem
from policies.algorithms import linear_thompson, neural_linear
from policies.algorithms.neural_linear import last_layer, network
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.algorithms.neural_linear.training import NeuralLinearTrainer
from policies.errors import Corrupt
from policies.features import Encoder, crossed
from policies.ridge import RidgeLearner
from policies.ridge_fitting import fit
from policies.sequences import Transitions
from policies.surface import Category, FeatureSpec
from policies.types import F32, Arrays, Changes
from policies.worlds.near_world import near
from services.replay.ours import Slatewise
from services.replay.streams import Stream
from streaming.scorer import score
from tests.contracts.algorithm_contract import CATALOGUE, CLICK, ENCODER, SLOTS, START, TWO, query
from tests.contracts.training_contract import PASTS, sequences

SMALL = NeuralLinear(hidden=12, features=6, minibatch=20, replay_ratio=9.0, replay=64, draws=16)
NAMES = Encoder(
    FeatureSpec(
        context={"device": Category(["ios", "web"])},
        items={"genre": Category(["jazz", "rock", "folk"]), "new": Category(["yes"])},
        cross=[("device", "genre")],
    )
)
BARE = Encoder(FeatureSpec(context={"device": Category(["ios", "web"])}))  # items without a feature
NOTHING = Encoder(FeatureSpec(items={"genre": Category(["jazz", "rock", "folk"])}))  # a context without one


def trained(config: NeuralLinear = SMALL, problem: Problem = PASTS, *batches: Transitions) -> NeuralLinearTrainer:
    trainer = NeuralLinearTrainer(config, problem)
    for batch in batches or (sequences(3),):
        trainer.train(batch)
    return trainer


def bytes_of(arrays: Arrays) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in arrays.items()}


def changes_of(problem: Problem, batch: Transitions, weight: float) -> Changes:
    """The slots that were seen, as a learner that merges gets them."""
    slates, slots = np.nonzero(batch.present)
    n, rewards = len(slots), batch.rewards[batch.present]
    return Changes(
        context=batch.context[slates],
        items=batch.candidates[slates, batch.slate[slates, slots]],
        slots=slots,
        slates=slates,
        times=batch.times[slates],
        weights=np.full(n, weight),
        present_before=np.zeros(n),
        present_after=np.ones(n),
        rewards_before=np.zeros_like(rewards),
        rewards_after=rewards,
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.ones(n),
    )


# one network


def test_torch_numpy_and_onnx_say_the_same() -> None:
    """The loss in torch is its formula over the network in numpy; outputs and scores of a bundle are the graph's, crosses and all."""
    config = msgspec.structs.replace(SMALL, half_life="1m")
    trainer = trained(config)
    weights = {name: value.detach().numpy().copy() for name, value in trainer._weights.items()}
    weights["second_bias"] += 0.3
    trainer._weights["second_bias"].data += 0.3
    batch = sequences(8)
    slates, slots = np.nonzero(batch.present)
    shown = batch.candidates[slates, batch.slate[slates, slots]]
    psi = network.features(PASTS, weights, batch.context[slates], shown)
    assert 0.2 < (psi > 0).mean() < 1
    pairs = crossed(ENCODER, batch.context[slates], shown)
    left = np.concatenate([np.ones((len(slots), 1)), batch.context[slates], np.eye(SLOTS)[slots], shown], axis=1)
    sums = trainer.arrays()
    scale = np.sqrt(sums["last.Y"][0, 0] / sums["last.n"][0])
    away = np.concatenate([left, psi, pairs], axis=1) @ weights["head"] - batch.rewards[batch.present] / scale
    share = np.exp2((batch.times[slates] - batch.times.max()) / 60)
    size = sum(float((value**2).sum()) for value in weights.values())
    wanted = (share @ away[:, 0] ** 2 / share.sum() + SMALL.decay * size) / 2
    assert trainer._loss(decisions_of(batch)).item() == pytest.approx(wanted, rel=1e-5)

    items, context = CATALOGUE.encoded, np.tile(batch.context[0], (len(CATALOGUE.encoded), 1))
    made = neural_linear.publish(config, PASTS, trainer.arrays(), START, 7).arrays
    asked = query(PASTS, made) | {"context": context[0]}
    served = {name: trainer._served[name] for name in network.WEIGHTS}
    wanted = network.features(PASTS, served, context, items)
    np.testing.assert_allclose(network.outputs(PASTS, made, asked), wanted, atol=1e-5)
    scores = score(neural_linear.graph(config, PASTS).SerializeToString(), made, asked)
    np.testing.assert_allclose(scores, neural_linear.reference(config, PASTS, made, asked), atol=1e-5)
    assert not {"base", "pool", "crosses"} & made.keys(), "the ops page tells these as coefficients of the features"


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("encoder", [BARE, NOTHING, NAMES])
def test_surfaces_without_features_of_one_side_are_scored(encoder: Encoder, wide: bool) -> None:
    problem, config = Problem(encoder, CLICK, {"click": 1.0}, 1), msgspec.structs.replace(SMALL, wide=wide)
    made = neural_linear.publish(config, problem, {}, START, 7).arrays
    rng = np.random.default_rng(1)
    asked: dict[str, Any] = {
        "context": rng.uniform(-1, 1, encoder.context_size).astype(np.float32),
        "items": rng.uniform(-1, 1, (5, encoder.item_size)).astype(np.float32),
    }
    found = score(neural_linear.graph(config, problem).SerializeToString(), made, asked)
    assert found.shape == (5, 16)
    np.testing.assert_allclose(found, neural_linear.reference(config, problem, made, asked), atol=1e-5)


# the last layer is linear_thompson's


def identity(problem: Problem) -> tuple[NeuralLinear, Arrays]:
    """Options and weights of a network whose outputs are the items' own columns and crosses, none of which is ever negative."""
    encoder = problem.encoder
    width, before = encoder.item_size + len(encoder.cross_names), 1 + encoder.context_size
    config = NeuralLinear(hidden=width, features=width, wide=False, replay_ratio=1e-9)
    weights: Arrays = {
        "first": np.concatenate([np.zeros((before, width)), np.eye(width)]).astype(np.float32),
        "second": np.eye(width, dtype=np.float32),
        "second_bias": np.zeros(width, np.float32),
    }
    return config, weights


def of_names(seed: int) -> Transitions:
    """Slates of three of twelve items that say nothing but categories."""
    batch, rng = sequences(seed, 200), np.random.default_rng(seed)
    rows = [{"genre": ["jazz", "rock", "folk"][i % 3], "new": "yes" if i % 2 else "no"} for i in range(12)]
    contexts = np.stack([NAMES.context({"device": str(rng.choice(["ios", "web"]))}) for _ in range(200)])
    return replace(batch, candidates=np.tile(NAMES.rows(rows, "$"), (200, 1, 1)), context=contexts)


def test_on_identity_features_the_posterior_is_linear_thompsons() -> None:
    """Sums, noise, prior, ρ̂ and every draw of the pool, with forgetting: what linear_thompson makes of the same decisions."""
    problem = Problem(NAMES, CLICK, {"click": 1.0}, SLOTS)
    config, weights = identity(problem)
    config = msgspec.structs.replace(config, half_life="2m", draws=32)
    trainer = NeuralLinearTrainer(config, problem)
    held = trainer.arrays()
    held |= weights | {f"served.{name}": value for name, value in weights.items()}
    held["last.network"] = network.fingerprint(weights)
    trainer.load(held)
    batches = [of_names(3), of_names(4)]
    options = linear_thompson.LinearThompson(half_life="2m", draws=32)
    learner = RidgeLearner(problem, 120.0)
    for batch in batches:
        trainer.train(batch)
        learner.learn(changes_of(problem, batch, 1.0))
    ours, theirs = trainer.arrays(), learner.arrays()
    for name in ("S", "B", "Y", "n", "slate_S", "slate_B", "slate_Y", "pairs", "index"):
        np.testing.assert_allclose(ours[f"last.{name}"], theirs[name], rtol=1e-12, atol=1e-12, err_msg=name)
    now = float(batches[0].times.max())
    made = neural_linear.publish(config, problem, ours, now, 7)
    wanted = linear_thompson.publish(options, problem, theirs, now, 7)
    assert made.slot_weight == pytest.approx(wanted.slot_weight, rel=1e-9)
    for name, value in wanted.diagnostics.items():
        assert made.diagnostics[name] == pytest.approx(value, rel=1e-6), name
    asked: dict[str, Any] = {"context": batches[0].context[5], "items": batches[0].candidates[0]}
    scores = neural_linear.reference(config, problem, made.arrays, asked)
    np.testing.assert_allclose(scores, linear_thompson.reference(options, problem, wanted.arrays, asked), atol=1e-5)


def test_a_network_that_sees_nothing_leaves_linear_thompson() -> None:
    """All its weights 0: beside items and crosses as they are its outputs say nothing, and Θ, noise and λ are linear_thompson's."""
    problem, config = replace(PASTS, history=0), msgspec.structs.replace(SMALL, replay_ratio=1e-9, spread=0.0)
    trainer = NeuralLinearTrainer(config, problem)
    held = trainer.arrays()
    silent = {name: np.zeros_like(held[name]) for name in network.WEIGHTS}
    held |= silent | {f"served.{name}": value for name, value in silent.items()}
    held["last.network"] = network.fingerprint(silent)
    trainer.load(held)
    learner, batch = RidgeLearner(problem, np.inf), sequences(3, 200)
    trainer.train(batch)
    learner.learn(changes_of(problem, batch, 1.0))
    made = neural_linear.publish(config, problem, trainer.arrays(), START, 7)
    options = linear_thompson.LinearThompson(draws=16, spread=0.0)
    wanted = linear_thompson.publish(options, problem, learner.arrays(), START, 7)
    for name, value in wanted.diagnostics.items():
        assert made.diagnostics[name] == pytest.approx(value, rel=1e-6), name
    asked = query(problem, made.arrays)
    means = [
        neural_linear.reference(config, problem, made.arrays, asked).mean(axis=1),
        linear_thompson.reference(options, problem, wanted.arrays, asked).mean(axis=1),
    ]
    assert np.ptp(means[1]) > 0.05
    np.testing.assert_allclose(means[0], means[1], atol=1e-5)


# sums and network


def test_sums_are_rebuilt_when_the_network_changes() -> None:
    """After a change they are those of the decisions kept under the new network, at the weight the old sums asked for; others are gone."""
    first, second = (
        replace(one, rewards=one.rewards[:, :1].repeat(SLOTS, axis=1)) for one in (sequences(3), sequences(4))
    )
    trainer = trained(SMALL, PASTS, first)
    before = trainer.arrays()
    assert int(before["counts"][network.COUNTS.index("rebuilt")]) == 1
    trainer.train(second)
    after = trainer.arrays()
    assert before["last.network"] != after["last.network"]
    weights = {name: after[f"served.{name}"] for name in network.WEIGHTS}
    assert after["last.network"] == network.fingerprint(weights)

    both = np.arange(80)[-SMALL.replay :]  # the newest 64 of 80
    kept = [first.rows(both[both < 40]), second]
    learner = last_layer.begin(SMALL, PASTS)
    old_weights = {name: before[f"served.{name}"] for name in network.WEIGHTS}
    old = last_layer.begin(SMALL, PASTS)
    for batch in (first, second):  # the old sums had learned the second batch too when the network was changed
        last_layer.learn(old, SMALL, PASTS, old_weights, decisions_of(batch), float(before["running"][1]))
    weight = fit(SMALL, network.above(SMALL, PASTS), old.arrays(), START).slot_weight
    assert 1 / SLOTS < weight < 0.8, "a slate's slots are rewarded alike"
    assert float(after["running"][1]) == pytest.approx(weight, rel=1e-9)
    for batch in kept:
        last_layer.learn(learner, SMALL, PASTS, weights, decisions_of(batch), weight)
    for name in last_layer.NAMES:
        np.testing.assert_allclose(after[f"last.{name}"], learner.arrays()[name], rtol=1e-9, atol=1e-9, err_msg=name)


def decisions_of(batch: Transitions) -> dict[str, Any]:
    items = batch.candidates[np.arange(len(batch))[:, None], batch.slate]
    return {
        "context": batch.context, "items": items, "present": batch.present, "rewards": batch.rewards, "times": batch.times
    }  # fmt: skip


def test_between_changes_every_decision_enters_the_sums_at_once() -> None:
    trainer = trained(msgspec.structs.replace(SMALL, refresh=0.5), PASTS, sequences(3))
    before = trainer.arrays()
    few = sequences(4, 10)
    trainer.train(few)
    after = trainer.arrays()
    assert before["last.network"] == after["last.network"]
    added = float(few.present.sum()) * float(after["running"][1])
    assert float(after["last.n"][0]) == pytest.approx(float(before["last.n"][0]) + added)
    assert not np.array_equal(before["first"], after["first"]), "the other copy is being trained"


def test_sums_of_another_network_are_refused() -> None:
    """By a publish and by a load: one weight that moved by the smallest step is another network."""
    arrays = trained().arrays()
    arrays["served.second"][0, 0] = np.nextafter(arrays["served.second"][0, 0], np.float32(9))
    with pytest.raises(Corrupt, match="sums over the outputs of network"):
        neural_linear.publish(SMALL, PASTS, arrays, START, 1)
    trainer = trained()
    held = bytes_of(trainer.arrays())
    with pytest.raises(Corrupt, match="network"):
        trainer.load(arrays)
    assert bytes_of(trainer.arrays()) == held, "what is refused changes nothing"


def test_weights_of_other_options_are_refused() -> None:
    with pytest.raises(ValueError, match="first is of other options"):
        NeuralLinearTrainer(NeuralLinear(hidden=11, features=6), PASTS).load(trained().arrays())


# order, resuming, what is not finite


def test_the_recorded_order_in_one_go_or_with_a_stop_anywhere_is_the_same_to_the_bit() -> None:
    """Batches of every size, across rebuilds and a replay that overflows, stored and loaded after each: same arrays, same bundle."""
    order = [sequences(5, count) for count in (5, 40, 10, 25, 30, 5)]
    once, again = trained(SMALL, PASTS, *order), NeuralLinearTrainer(SMALL, PASTS)
    for batch in order:
        fresh = trained(SMALL, PASTS, sequences(9))
        fresh.load(again.arrays())
        fresh.train(batch)
        again = fresh
    assert bytes_of(once.arrays()) == bytes_of(again.arrays())
    assert int(once.arrays()["counts"][network.COUNTS.index("rebuilt")]) >= 4
    one, two = (neural_linear.publish(SMALL, PASTS, each.arrays(), START, 3).arrays for each in (once, again))
    assert bytes_of(one) == bytes_of(two)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    trainer = trained()
    before, skipped = trainer.arrays(), int(trainer._counts["skipped"])
    trainer._replay._columns["context"][:] = np.nan  # type: ignore[index] # what a bad disk could do
    trainer._credit = 5.0 * SMALL.minibatch
    said = trainer.train(sequences(4, 5).rows(slice(0, 0)))
    assert said["skipped"] == skipped + 5
    assert "loss" not in said
    after = trainer.arrays()
    for name in before:
        if not name.startswith(("replay", "counts", "running")):
            assert np.array_equal(before[name], after[name]), name


def test_decisions_with_numbers_that_are_none_are_refused_alone() -> None:
    """One of forty with a reward no float32 holds: the others are learned from, as if it had never come."""
    batch = sequences(4)
    bad = replace(batch, rewards=batch.rewards.copy())
    bad.rewards[7, 1, 0] = 1e39
    trainer, other = trained(), trained()
    said = trainer.train(bad)
    other.train(batch.rows(np.arange(40) != 7))
    assert (said["refused_transitions"], said["skipped"]) == (1, 1)
    one, two = trainer.arrays(), other.arrays()
    assert all(np.array_equal(one[name], two[name]) for name in one if name != "counts")


def test_objectives_keep_their_sums_and_are_weighed_when_asked() -> None:
    """Under one λ, a request that weighs two objectives otherwise gets the scores that a policy of those weights has."""
    config = msgspec.structs.replace(SMALL, prior=1.0)
    problem = replace(PASTS, objectives=TWO.objectives, weights=TWO.weights)
    arrays = trained(config, problem, sequences(3, objectives=2)).arrays()
    made, asked = list[F32](), dict[str, Any]()
    for weights in (TWO.weights, {"click": 0.3, "watch": -2.0}):
        mine = replace(problem, weights=weights)
        bundle = neural_linear.publish(config, mine, arrays, START, 7).arrays
        asked = query(mine, bundle) | {"weights": np.array([0.3, -2.0], np.float32)}
        made.append(neural_linear.reference(config, mine, bundle, asked).mean(axis=1))
    assert np.ptp(made[0]) > 0.1
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)


def test_scoring_never_loads_torch() -> None:
    code = (
        "import sys, policies.registry as r; from tests.contracts.algorithm_contract import PROBLEM, START;"
        "a = r.ALGORITHMS['neural_linear']; c = a.config(); a.graph(c, PROBLEM); a.publish(c, PROBLEM, {}, START, 1);"
        "print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


# what it is for


def test_it_earns_more_than_linear_thompson_where_taste_is_not_linear() -> None:
    """Both learn from the same 1,500 uniform choices among arms people like when they are near; then each chooses for 500 others."""
    made = near(3, 2_000)
    every = np.tile(np.arange(len(made.arms)), (2_000, 1))
    told = np.random.default_rng(4).integers(len(made.arms), size=1_500)
    stream = Stream("near", made.context, made.arms, every, made.rewards, worth=made.expected)
    gap = made.expected[1_500:].max(axis=1).mean() - made.expected[1_500:].mean()

    def closed(name: str, options: dict[str, Any]) -> float:
        player = Slatewise(stream, 5, name=name, every=100, options=options)
        for i, arm in enumerate(told):
            player.choose(made.context[i], every[i][arm : arm + 1])
            player.learn(made.rewards[i, arm])
        rows = np.arange(1_500, 2_000)
        earned = np.mean([made.expected[i, player.choose(made.context[i], every[i])] for i in rows])
        return float((earned - made.expected[1_500:].mean()) / gap)

    linear, neural = closed("linear_thompson", {}), closed("neural_linear", {})
    assert linear > 0.2
    assert neural > linear + 0.1
