"""What every algorithm that trains promises (trait `trains`), beside what all algorithms do: `algorithm_contract`."""

import io
from dataclasses import replace

import numpy as np
import pytest

from policies.algorithm import Algorithm, Config
from policies.sequences import Transitions
from policies.training import Trainer
from policies.types import F32, Arrays
from streaming.scorer import score
from tests.contracts.algorithm_contract import (
    CATALOGUE,
    ENCODER,
    ITEMS,
    PROBLEM,
    SLOTS,
    START,
    check,
    context,
    query,
    same,
)


def sequences(seed: int, count: int = 40, *, objectives: int = 1, broken: bool = False) -> Transitions:
    """Random slates of the catalogue with random rewards, every fifth the end of its sequence; `broken`: a reward of each is NaN."""
    rng, d, h = np.random.default_rng(seed), ENCODER.item_size, 4
    slates = np.stack([rng.choice(ITEMS, SLOTS, replace=False) for _ in range(count)])
    rewards = (rng.random((count, SLOTS, objectives)) < 0.4) * rng.uniform(0.5, 1, (count, SLOTS, objectives))
    if broken:
        rewards[:, 0, 0] = np.nan
    past = rng.integers(ITEMS, size=(2, count, h))
    lived = np.arange(h) >= rng.integers(h + 1, size=(2, count, 1))
    terminal = np.arange(count) % 5 == 4
    lived[1, terminal] = False
    after = np.stack([context(rng) for _ in range(count)])
    return Transitions(
        context=np.stack([context(rng) for _ in range(count)]),
        candidates=np.tile(CATALOGUE.encoded, (count, 1, 1)),
        items=np.tile(CATALOGUE.hashes, (count, 1)),
        allowed=np.ones((count, ITEMS), bool),
        slate=slates,
        propensities=1 / np.tile(np.arange(ITEMS, ITEMS - SLOTS, -1.0), (count, 1)),
        present=rng.random((count, SLOTS)) < 0.9,
        rewards=rewards,
        history=np.where(lived[0, :, :, None], CATALOGUE.encoded[past[0]], np.zeros(d, np.float32)),
        history_items=np.where(lived[0], CATALOGUE.hashes[past[0]], 0).astype(np.uint64),
        lived=lived[0],
        next_context=np.where(terminal[:, None], np.float32(0), after),
        next_history=np.where(lived[1, :, :, None], CATALOGUE.encoded[past[1]], np.zeros(d, np.float32)),
        next_history_items=np.where(lived[1], CATALOGUE.hashes[past[1]], 0).astype(np.uint64),
        next_lived=lived[1],
        terminal=terminal,
        elapsed=np.where(terminal, 0.0, 60.0),
        units=np.repeat(np.arange(1, count // 5 + 1), 5).astype(np.uint64),
        sessions=np.repeat(np.arange(1, count // 5 + 1), 5).astype(np.uint64),
        times=START + np.arange(count),
        goals=np.full(count, -1),
        goal_propensities=np.ones(count),
    )


PASTS = replace(PROBLEM, history=4)


def training(algorithm: Algorithm, *batches: Transitions) -> Trainer:
    """A trainer that updates on few transitions, and what it has made of some."""
    assert algorithm.trainer is not None
    trainer = algorithm.trainer(small(algorithm), PASTS)
    for batch in batches:
        trainer.train(batch)
    return trainer


def small(algorithm: Algorithm) -> Config:
    """The default configuration, with minibatches that forty transitions fill where they must be filled."""
    options = {"minibatch": 20, "replay": 64, "draws": 1 if algorithm.config().draws == 1 else 32}
    return algorithm.config(
        **{name: value for name, value in options.items() if name in algorithm.config.__struct_fields__}
    )


def frozen(arrays: Arrays) -> Arrays:
    return {name: value.copy() for name, value in arrays.items()}


def scored(algorithm: Algorithm, arrays: Arrays) -> F32:
    """Scores of the catalogue under what is published of a trainer's arrays."""
    config = small(algorithm)
    made = algorithm.publish(config, PASTS, arrays, START, 7).arrays
    asked = query(PASTS, made)
    found = score(algorithm.graph(config, PASTS).SerializeToString(), made, asked)
    wanted = algorithm.reference(config, PASTS, made, asked)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))
    return found


@check("trains")
def training_changes_what_is_served(algorithm: Algorithm) -> None:
    """Learned from, the scores are others than untrained ones, finite, and the graph's equal the reference's."""
    before, after = scored(algorithm, {}), scored(algorithm, training(algorithm, sequences(3)).arrays())
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-4


@check("trains")
def same_order_trains_the_same(algorithm: Algorithm) -> None:
    """The same transitions in the same order give the same arrays to the bit; another order does not."""
    one, two = (training(algorithm, sequences(3), sequences(4)).arrays() for _ in range(2))
    same(one, two, 0)
    turned = training(algorithm, sequences(4), sequences(3)).arrays()
    assert any(not np.array_equal(value, turned[name]) for name, value in one.items())


@check("trains")
def threads_change_nothing(algorithm: Algorithm) -> None:
    """Arrays are the same to the bit on a machine with one processor and with four."""
    import torch

    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            trainer = algorithm.trainer(algorithm.config(), PASTS)  # type: ignore[misc]  # those that train have one
            trainer.train(sequences(3, 800))
            made.append(trainer.arrays())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    same(*made, 0)


@check("trains")
def training_resumes_where_it_was(algorithm: Algorithm) -> None:
    """Arrays survive bytes without pickle, and a trainer that loads them, whatever it did before, goes on to the same weights."""
    trainer = training(algorithm, sequences(3))
    stored: Arrays = {}
    for name, value in trainer.arrays().items():
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        stored[name] = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    held = frozen(stored)
    other = training(algorithm, sequences(9))
    other.load(stored)
    for moving in (trainer, other):
        moving.train(sequences(4))
    same(trainer.arrays(), other.arrays(), 0)
    same(stored, held, 0)


@check("trains")
def trained_snapshots_stay_still(algorithm: Algorithm) -> None:
    """Arrays taken from a trainer do not move when it goes on."""
    trainer = training(algorithm, sequences(3))
    taken = trainer.arrays()
    held = frozen(taken)
    trainer.train(sequences(4))
    same(taken, held, 0)


@check("trains")
def nonfinite_changes_nothing_and_is_counted(algorithm: Algorithm) -> None:
    """Rewards that are NaN reach no weight: what makes no finite loss of them changes nothing that is served, and says `skipped`."""
    trainer = training(algorithm, sequences(3))
    served = scored(algorithm, trainer.arrays())
    skipped = trainer.train(sequences(4, broken=True))["skipped"]
    after = scored(algorithm, trainer.arrays())
    assert np.isfinite(after).all()
    assert not skipped or np.array_equal(after, served)
    training_goes_on = trainer.train(sequences(6))
    assert all(np.isfinite(value) for value in training_goes_on.values())
    assert not np.array_equal(scored(algorithm, trainer.arrays()), after)


@check("trains")
def extreme_transitions_leave_everything_finite(algorithm: Algorithm) -> None:
    """Rewards at the end of reason and propensities near nothing are learned from, or refused, without harm."""
    odd = sequences(5)
    trainer = training(
        algorithm,
        replace(odd, rewards=odd.rewards * 1e9, propensities=np.full_like(odd.propensities, 1e-12)),
        sequences(3),
    )
    assert all(np.isfinite(v).all() for v in trainer.arrays().values() if v.dtype.kind == "f")
    assert np.isfinite(scored(algorithm, trainer.arrays())).all()


@check("trains", "predicts")
def trained_scores_are_expected_rewards(algorithm: Algorithm) -> None:
    """As `scores_are_expected_rewards`: where rewards depend on the slot alone, the mean score is what the first slot earns."""
    shown, rng = sequences(6, 1_200), np.random.default_rng(7)
    clicks = rng.random((1_200, SLOTS)) < np.where(np.arange(SLOTS) == 0, 0.6, 0.3)
    assert algorithm.trainer is not None
    config = algorithm.config()
    trainer = algorithm.trainer(config, PASTS)
    trainer.train(replace(shown, rewards=clicks[:, :, None].astype(float)))
    made = algorithm.publish(config, PASTS, trainer.arrays(), START, 7).arrays
    graph = algorithm.graph(config, PASTS).SerializeToString()
    expected = np.mean([score(graph, made, query(PASTS, made, seed=seed)).mean() for seed in range(8)])
    assert expected == pytest.approx(0.6, abs=0.08)
