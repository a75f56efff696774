"""`novelty_hierarchy`: torch is the numpy reference, returns are what the docstring says, the manager learns which goal pays."""

from dataclasses import replace

import numpy as np
import pytest

from policies import bundle
from policies.algorithm import Algorithm, Published
from policies.algorithms import novelty_hierarchy
from policies.algorithms.novelty_hierarchy import network
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy, read
from policies.algorithms.novelty_hierarchy.sessions import Columns, Waiting
from policies.errors import Corrupt, Rejected
from policies.novelty import lived_novelty, novelty
from policies.sequences import Transitions
from policies.types import Arrays
from streaming.scorer import score
from tests.contracts.algorithm_contract import CATALOGUE, ENCODER, START
from tests.contracts.training_contract import PASTS, sequences

CONFIG = NoveltyHierarchy(minibatch=64, replay=512, replay_ratio=8.0, return_seconds=1_000.0)


def test_novelty_is_what_its_formula_says() -> None:
    items = np.array([[1.0, 0], [0, 2.0], [-3.0, 0], [1.0, 1.0], [0, 0]])
    history = np.array([[0.0, 0.0], [0.5, 0]])
    np.testing.assert_allclose(novelty(items, history), [0, 1, 1, 1 - np.sqrt(0.5), 1])
    assert (novelty(items, history[:0]) == 1).all()
    np.testing.assert_allclose(lived_novelty(items), [1, 1, 1, 1 - np.sqrt(0.5), 1])


def test_padding_changes_no_feature() -> None:
    rng = np.random.default_rng(1)
    context, history = rng.normal(size=(3, 4)), rng.normal(size=(3, 5, 6))
    padded = np.concatenate([np.zeros((3, 7, 6)), history], axis=1)
    plain = network.features(context, history, 0.3)
    np.testing.assert_allclose(network.features(context, padded, 0.3), plain, atol=1e-12)
    empty = network.features(context, history[:, :0], 0.3)
    assert np.array_equal(empty[:, 4:], np.zeros((3, 15)))


def random_weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = network.shapes(CONFIG, PASTS)
    return {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def test_torch_is_the_reference() -> None:
    import torch

    from policies.algorithms.novelty_hierarchy import losses

    w, batch = random_weights(2), sequences(5)
    phi = network.features(batch.context, batch.history, CONFIG.recent)
    goal = np.eye(8)[np.arange(len(batch)) % 8]
    new = novelty(batch.candidates, batch.history)
    held = {name: torch.from_numpy(value) for name, value in w.items()}
    strengths = torch.tensor(CONFIG.strengths, dtype=torch.float32)
    asked = [torch.tensor(a, dtype=torch.float32) for a in (phi, batch.candidates, new, goal)]
    found = losses.scores(held, *asked, strengths, 1.0).numpy()
    np.testing.assert_allclose(
        found, network.scores(w, phi, batch.candidates, new, goal, CONFIG.strengths), atol=2e-4, rtol=1e-4
    )
    for name in ("manager", "goals"):
        np.testing.assert_allclose(losses.body(held, name, asked[0]).numpy(), network.body(w, name, phi), atol=2e-4)
    value = losses.value(held, asked[0], asked[3]).numpy()
    np.testing.assert_allclose(value, network.body(w, "value", np.concatenate([phi, goal], axis=1))[:, 0], atol=2e-4)


@pytest.mark.parametrize("past", [0, 1, 4])
def test_both_graphs_are_the_reference(past: int) -> None:
    w, rng = random_weights(3), np.random.default_rng(past)
    config = NoveltyHierarchy(static=False, novel=past != 1)
    history = CATALOGUE.encoded[rng.integers(12, size=past)]
    asked = {"context": ENCODER.context({"device": "web"}), "history": history, "items": CATALOGUE.encoded}
    for goal in (np.zeros(8, np.float32), np.eye(8, dtype=np.float32)[6]):
        query = asked | {"goal": goal}
        wanted = novelty_hierarchy.reference(config, PASTS, w, query)
        arrays = {name: w[name] for name in network.SERVED[:3]}
        found = score(novelty_hierarchy.graph(config, PASTS).SerializeToString(), arrays, query)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    made = {name: w[name] for name in network.SERVED[3:]}
    logits = score(novelty_hierarchy.manager(config, PASTS).SerializeToString(), made, asked)
    np.testing.assert_allclose(logits, novelty_hierarchy.manage(config, PASTS, w, asked), atol=1e-4)


def test_a_bundle_whose_manager_is_another_is_refused() -> None:
    ready = Published({name: random_weights(4)[name] for name in network.SERVED})

    def made(algorithm: Algorithm) -> bundle.Bundle:
        return bundle.build(
            algorithm,
            CONFIG,
            PASTS,
            ready,
            surface="home",
            policy="agent",
            key="k",
            config_hash="c",
            number=1,
            seed=1,
            created_at=START,
            trained_through={},
            epoch=1,
            score=score,
        )

    assert made(novelty_hierarchy.ALGORITHM).manager
    off = replace(novelty_hierarchy.ALGORITHM, manage=lambda *a: novelty_hierarchy.manage(*a) + np.float32(0.1))
    with pytest.raises(Corrupt, match="manager and reference differ"):
        made(off)


def test_goals_add_their_strength_times_novelty() -> None:
    w = random_weights(5)
    history = CATALOGUE.encoded[:2]
    asked = {"context": ENCODER.context({}), "history": history, "items": CATALOGUE.encoded}
    none, last = (
        novelty_hierarchy.reference(CONFIG, PASTS, w, asked | {"goal": goal})[:, 0]
        for goal in (np.zeros(8, np.float32), np.eye(8, dtype=np.float32)[7])
    )
    np.testing.assert_allclose(last - none, CONFIG.most * novelty(CATALOGUE.encoded, history), atol=1e-5)


def rows(
    unit: list[int], session: list[int], time: list[float], reward: list[float], goal: list[int], over: list[int]
) -> Columns:
    return {
        "unit": np.array(unit, np.uint64),
        "session": np.array(session, np.uint64),
        "time": np.array(time, float),
        "reward": np.array(reward, float),
        "chosen": np.array(goal),
        "terminal": np.array(over, bool),
    }


def test_a_stretch_waits_for_its_session_and_the_next_one() -> None:
    waiting = Waiting(discount=0.5, weight=2.0, steps=0, return_seconds=100.0, capacity=99)
    first = waiting.take(rows([1, 1, 2], [1, 1, 8], [0, 1, 1], [1, 4, 7], [3, 3, 5], [0, 0, 1]), now=1.0)
    assert not len(first["return"])
    assert not len(waiting.take(rows([1], [2], [50], [8], [0], [0]), now=50.0)["return"])  # the next one is not over
    found = waiting.take(rows([1], [2], [51], [2], [0], [1]), now=51.0)
    assert found["return"].tolist() == [1 + 0.5 * 4 + 2.0 * (8 + 0.5 * 2)]
    assert found["chosen"].tolist() == [3]
    gone = waiting.take(rows([3], [9], [200], [0], [0], [0]), now=200.0)
    assert sorted(zip(gone["unit"].tolist(), gone["return"].tolist(), strict=True)) == [(1, 9.0), (2, 7.0)]
    assert len(waiting) == 1


def test_a_next_session_that_was_left_without_a_word_still_counts() -> None:
    """Its last transition may be one that is no example (no candidates in its record): nothing says terminal, time does."""
    waiting = Waiting(discount=1.0, weight=1.0, steps=0, return_seconds=100.0, capacity=99)
    assert not len(waiting.take(rows([1, 1], [1, 2], [0, 50], [3, 4], [2, 5], [1, 0]), now=50.0)["return"])
    found = waiting.take(rows([2], [7], [200], [0], [0], [0]), now=200.0)
    assert dict(zip(found["chosen"].tolist(), found["return"].tolist(), strict=True)) == {2: 3.0 + 4.0, 5: 4.0}


def test_stretches_begin_where_goals_are_drawn() -> None:
    waiting = Waiting(discount=1.0, weight=0.0, steps=2, return_seconds=10.0, capacity=99)
    found = waiting.take(rows([1] * 5, [1] * 5, [0, 1, 2, 3, 4], [1] * 5, [2, 2, 2, 2, -1], [0, 0, 0, 0, 1]), now=99.0)
    assert found["return"].tolist() == [5.0, 3.0]  # a decision under the neutral goal begins none


def test_what_waits_is_bounded_and_counted_and_travels() -> None:
    waiting = Waiting(0.9, 1.0, 0, 1e9, capacity=3)
    waiting.take(rows([1, 2, 3, 4, 5], [1] * 5, [5, 4, 3, 2, 1], [1] * 5, [0] * 5, [0] * 5), now=5.0)
    assert (len(waiting), waiting.dropped) == (3, 2)
    other = Waiting(0.9, 1.0, 0, 1e9, capacity=3)
    other.load(waiting.arrays())
    assert sorted(other.arrays()["waiting.unit"].tolist()) == [1, 2, 3]
    assert other.dropped == 2


def goal_pays(seed: int, best: int) -> Transitions:
    """Sessions of five decisions that earn something only under one goal, whose units never come back."""
    made = sequences(seed, 400)
    goals = np.repeat(np.random.default_rng(seed).integers(8, size=80), 5)
    rewards = np.where((goals == best)[:, None, None], 1.0, 0.0) * np.ones_like(made.rewards)
    units = made.units + np.uint64(1_000 * seed)
    return replace(
        made,
        goals=goals,
        rewards=rewards,
        units=units,
        goal_propensities=np.full(400, 1 / 8),
        times=made.times + 4_000 * seed,
    )


@pytest.mark.parametrize("best", [1, 6])
def test_the_manager_learns_which_goal_pays(best: int) -> None:
    trainer = novelty_hierarchy.trainer(CONFIG, PASTS)
    for seed in range(1, 5):
        metrics = trainer.train(goal_pays(seed, best))
    assert metrics["skipped"] == 0
    assert metrics["stretches"] == 240  # the last 80 have yet to be given up
    made = novelty_hierarchy.publish(CONFIG, PASTS, trainer.arrays(), START, 1).arrays
    asked = {"context": ENCODER.context({"device": "ios"}), "history": CATALOGUE.encoded[:3]}
    logits = novelty_hierarchy.manage(CONFIG, PASTS, made, asked)
    assert logits.argmax() == best


def test_of_nobody_nobody_comes_back() -> None:
    trainer = novelty_hierarchy.trainer(CONFIG, PASTS)
    metrics = trainer.train(replace(goal_pays(1, 1), units=np.zeros(400, np.uint64)))
    assert (metrics["waiting"], metrics["stretches"]) == (0.0, 0.0)
    assert metrics["replay"] == 400


def test_novelty_is_rewarded_only_where_it_was_accepted() -> None:
    """The same transitions, nothing accepted: shaping makes no difference. Something accepted: it does."""

    def learned(shaping: float, accepted: float) -> float:
        config = NoveltyHierarchy(minibatch=64, replay_ratio=20.0, shaping=shaping)
        trainer = novelty_hierarchy.trainer(config, PASTS)
        batch = sequences(3, 200)
        trainer.train(replace(batch, rewards=batch.rewards * accepted))
        return float(trainer.arrays()["own"][0])

    assert learned(0.0, 0.0) == learned(5.0, 0.0)
    assert learned(5.0, 1.0) > learned(0.0, 1.0) + 0.05


def test_bad_options_name_their_field() -> None:
    for options, at in (({"long_run": ["mood"]}, "$.long_run[0]"), ({"least": 5.0}, "$.most")):
        with pytest.raises(Rejected) as refused:
            read(NoveltyHierarchy(**options), PASTS)  # type: ignore[arg-type]
        assert refused.value.at == at


def test_the_manager_reads_what_it_is_told() -> None:
    told = read(NoveltyHierarchy(long_run=["hour"], session=False), PASTS)
    names = ENCODER.context_names
    assert [name for name, r in zip(names, told, strict=False) if r] == [n for n in names if n.startswith("hour")]
    assert told[len(names) :].tolist() == [1.0] * (ENCODER.item_size + 2) + [0.0] * (ENCODER.item_size + 1)


def test_the_policy_that_learns_is_the_one_that_is_drawn() -> None:
    """At another temperature too: entropy is that of softmax(score / temperature), and ratios to what it would draw are one."""
    import torch

    from policies.algorithms.novelty_hierarchy import losses

    trainer = novelty_hierarchy.trainer(CONFIG, PASTS)
    batch = sequences(5)
    batch = replace(batch, present=np.arange(batch.slate.shape[1]) == np.zeros((len(batch), 1)))  # one slot
    columns, _ = trainer._columns(batch)  # type: ignore[attr-defined]  # what an update reads, without the update
    w = {name: torch.from_numpy(value) for name, value in random_weights(6).items()}
    phi = network.features(batch.context, np.where(batch.lived[:, :, None], batch.history, 0), CONFIG.recent)
    scores = network.scores(random_weights(6), phi, batch.candidates, columns["new"], columns["goal"], CONFIG.strengths)
    p = np.exp(scores / 0.4) / np.exp(scores / 0.4).sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(p, batch.slate, axis=1)
    told = {n: torch.from_numpy(np.asarray(columns[n])) for n in columns if n not in ("unit", "session", "chosen")}
    told |= {"log_propensities": torch.from_numpy(np.log(chosen)), "deviation": torch.ones(len(batch), 1)}
    strengths = torch.tensor(CONFIG.strengths, dtype=torch.float32)
    options = {"novel": 1.0, "discount": 0.8, "clip": 1.001, "entropy": 0.0}
    found = losses.worker(w, told, strengths, **options, temperature=0.4)[1]
    assert float(found["entropy"]) == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), rel=1e-4)
    assert float(found["clipped_share"]) == 0.0
    assert float(losses.worker(w, told, strengths, **options, temperature=1.0)[1]["clipped_share"]) > 0.1


def test_what_is_served_is_the_mean_of_weights() -> None:
    trainer = novelty_hierarchy.trainer(NoveltyHierarchy(minibatch=64, averaging=0.25), PASTS)
    wanted: dict[str, np.ndarray] = {}
    for seed in range(1, 5):
        trainer.train(sequences(seed, 65))  # one update
        arrays = trainer.arrays()
        share = max(0.75, 1 / seed)
        wanted = {n: (1 - share) * wanted.get(n, 0) + share * np.asarray(arrays[n], float) for n in network.SERVED}
    served = novelty_hierarchy.publish(CONFIG, PASTS, arrays, START, 1).arrays
    for name in network.SERVED:
        np.testing.assert_allclose(served[name], wanted[name], atol=1e-6)
    assert np.abs(served["worker_out"] - arrays["worker_out"]).max() > 1e-4


def test_a_checkpoint_of_before_there_were_means_goes_on() -> None:
    arrays = {n: a for n, a in goal_trained().items() if not n.startswith(network.AVERAGE)}
    served = novelty_hierarchy.publish(CONFIG, PASTS, arrays, START, 1).arrays
    assert all(np.array_equal(served[name], arrays[name]) for name in network.SERVED)
    trainer = novelty_hierarchy.trainer(CONFIG, PASTS)
    trainer.load(arrays)
    assert np.array_equal(trainer.arrays()[f"{network.AVERAGE}own"], arrays["own"])


def goal_trained() -> Arrays:
    trainer = novelty_hierarchy.trainer(CONFIG, PASTS)
    trainer.train(goal_pays(1, 1))
    return trainer.arrays()


@pytest.mark.parametrize("goals", [2, 3, 8])
def test_what_one_goal_brought_says_something_of_its_neighbours(goals: int) -> None:
    """Parabolas over the goals' numbers pass whole, what is at right angles to them at a third."""
    from policies.algorithms.novelty_hierarchy import losses

    alike = losses.neighbours(goals).numpy().astype(float)
    basis = np.vander(np.arange(goals, dtype=float), min(3, goals))
    np.testing.assert_allclose(alike @ basis, basis, atol=1e-4 * basis.max())
    rough = np.cos(np.pi * np.arange(goals))
    rough -= basis @ np.linalg.lstsq(basis, rough, rcond=None)[0]
    np.testing.assert_allclose(alike @ rough, losses.ROUGH * rough, atol=1e-5)
