"""`constrained_actor_critic`: torch, numpy and the draw agree; losses are their formulas; μ moves when it should only.

What every algorithm that trains promises is in `tests/contracts`.
"""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import slate
from policies.algorithm import Problem
from policies.algorithms import constrained_actor_critic
from policies.algorithms.constrained_actor_critic import ConstrainedActorCritic, network
from policies.algorithms.constrained_actor_critic.config import roles
from policies.errors import Rejected
from policies.sequences import Transitions
from policies.types import F32, F64, I64, DrawSettings
from policies.worlds.session_world import OBJECTIVES, Glance, SessionWorld, drawn

WORLD = SessionWorld(3)
PROBLEM = Problem(WORLD.encoder, dict(OBJECTIVES), {"watch": 0.05, "like": 0.0, "hate": 0.0}, WORLD.slots, history=20)
CONFIG = ConstrainedActorCritic(attention=2, minibatch=32, replay=256)
PARTS = roles(CONFIG, PROBLEM)


def some_weights(config: ConstrainedActorCritic = CONFIG, seed: int = 0) -> dict[str, F32]:
    rng = np.random.default_rng(seed)
    made = network.initial(config, PROBLEM, len(PARTS))
    return {name: (value + 0.3 * rng.normal(size=value.shape)).astype(np.float32) for name, value in made.items()}


def lived(people: int = 20, steps: int = 5, seed: int = 1) -> Transitions:
    return WORLD.simulate(WORLD.uniform, people, steps, seed)[1]


def test_who_plays_which_part() -> None:
    """The objective of largest weight is raised, all others kept; lower is better turns the sign."""
    assert PARTS.names == ("watch", "like", "hate")
    assert PARTS.signs.tolist() == [1, 1, -1]
    chosen = roles(ConstrainedActorCritic(main="like", keep=["hate"], discounts={"hate": 0.1}), PROBLEM)
    assert (chosen.names, chosen.places) == (("like", "hate"), (1, 2))
    assert chosen.discounts.tolist() == [0.9, 0.1]
    assert PARTS.discounts.tolist() == [0.9, 0, 0]


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"keep": ["like", "joy"]}, "$.keep[1]"),
        ({"main": "joy"}, "$.main"),
        ({"thresholds": {"joy": 1.0}}, "$.thresholds.joy"),
        ({"keep": ["like"], "discounts": {"hate": 0.5}}, "$.discounts.hate"),
        ({"mode": "lagrangian", "thresholds": {"watch": 1.0}}, "$.thresholds.watch"),
    ],
)
def test_an_unknown_objective_is_named(options: dict[str, Any], at: str) -> None:
    with pytest.raises(Rejected) as caught:
        roles(ConstrainedActorCritic(**options), PROBLEM)
    assert caught.value.at == at


def test_request_weights_are_held_within_bounds() -> None:
    asked = np.array([0.05, 0.5, -5.0])  # hate's scale is 1 and lower is better: −5 asks for 5 times its policy
    assert network.mixture(CONFIG, PARTS, asked).tolist() == [1.0, 0.5, 2.0]


def test_torch_equals_numpy() -> None:
    """Logits and values of both, with histories of every length; padding in front changes neither."""
    from policies.algorithms.constrained_actor_critic.learner import Network

    torch = pytest.importorskip("torch")
    from gymnasium import spaces

    w = some_weights()
    shapes = network.shapes(CONFIG, PROBLEM, len(PARTS))
    module = Network(
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Discrete(2),
        model_config={"shapes": shapes, "policies": len(PARTS)},
    )
    with torch.no_grad():
        for name, value in w.items():
            getattr(module, name).copy_(torch.from_numpy(value))
    batch = lived()
    assert (batch.lived.sum(axis=1) == 0).any()
    context, items, history = (getattr(batch, name) for name in ("context", "candidates", "history"))
    padded = np.concatenate([np.zeros_like(history[:, :7]), history], axis=1)
    live = (padded != 0).any(axis=2).astype(np.float32)
    with torch.no_grad():
        state = module.states(slice(0, 2 * len(PARTS)), *map(torch.from_numpy, (context, padded, live)))
        z = module.logits(state[: len(PARTS)], torch.from_numpy(items)).numpy()
        v = module.values(state[len(PARTS) :]).numpy()
    wanted: F64 = network.logits(w, len(PARTS), *(a.astype(float) for a in (context, history, items)))
    np.testing.assert_allclose(z, np.moveaxis(wanted, 0, 1), atol=1e-5 * np.abs(wanted).max())
    values = network.values(w, len(PARTS), context.astype(float), history.astype(float))
    np.testing.assert_allclose(v, values.T, atol=1e-5 * max(1.0, float(np.abs(values).max())))


def test_the_losses_know_the_draws_own_conditionals() -> None:
    """log π of a slot is what `slate.draw` says under head softmax without floor, masks, pins and gaps included."""
    torch = pytest.importorskip("torch")
    from policies.algorithms.constrained_actor_critic.losses import conditionals

    rng = np.random.default_rng(5)
    scores = (4 * rng.normal(size=(7, 1))).astype(np.float32)
    allowed = np.ones(7, bool)
    allowed[2] = False
    masks = np.tile(allowed, (4, 1))
    one = slate.draw(scores, 4, rng.random(4), DrawSettings("softmax", 0.0), masks=masks, pins={1: 2})
    rows = np.append(one.items, -1)[None]  # a fifth slot that was never there
    found = conditionals(
        torch.from_numpy(scores.T)[None], torch.from_numpy(allowed)[None], torch.from_numpy(rows), torch.zeros(1)
    )[0, :4, 0].exp()
    np.testing.assert_allclose(found.numpy()[[0, 2, 3]], one.propensities[[0, 2, 3]], rtol=1e-5)
    every = slate.draw(scores[:3], 3, rng.random(3), DrawSettings("softmax", 0.0))
    found = conditionals(
        torch.from_numpy(scores[:3].T)[None],
        torch.ones(1, 3, dtype=bool),
        torch.from_numpy(every.items)[None],
        torch.zeros(1),
    )
    np.testing.assert_allclose(found[0, :, 0].exp().numpy(), every.propensities, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_stage_two_finds_its_closed_form(temperature: float) -> None:
    """One state, one slot, rewards of a table: gradient steps on the loss reach π* ∝ π_like · exp(A/L) (Cai et al., eq. 8), both
    as they are drawn."""
    torch = pytest.importorskip("torch")
    from policies.algorithms.constrained_actor_critic.losses import Outputs, Terms, losses

    n = 4
    aux = torch.tensor([0.4, -0.3, 0.1, 0.0])
    reward = torch.tensor([0.0, 1.0, 0.3, -0.5])  # one slot: the advantage is δ = reward − V, V = 0 and shift-free
    terms = Terms("two_stage", [0.0, 0.0], [1.0], clip=1e6, entropy=0.0, temperature=temperature)
    batch = {
        "present": torch.ones(n, 1),
        "log_propensities": torch.full((n, 1), -float(np.log(n))),  # all actions once, logged uniformly
        "scale": torch.ones(n, 2), "deviation": torch.ones(n, 2), "bound": torch.zeros(n, 2), "multiplier": torch.zeros(n, 2),
        "rewards": torch.stack([reward, torch.zeros(n)], dim=1)[:, None],
        "allowed": torch.ones(n, n, dtype=torch.bool),
        "slate": torch.arange(n)[:, None],
        "log_left_out": torch.zeros(n),
    }  # fmt: skip
    main = torch.zeros(n, requires_grad=True)
    optimiser = torch.optim.Adam([main], lr=0.1)
    for _ in range(150):
        z = torch.stack([main.expand(n, n), aux.expand(n, n)], dim=1)
        loss, _ = losses(terms, Outputs(z, torch.zeros(n, 2), torch.zeros(n, 2)), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wanted = torch.softmax(aux / temperature + reward, dim=0)
    np.testing.assert_allclose(torch.softmax(main.detach() / temperature, dim=0).numpy(), wanted.numpy(), atol=2e-3)


def held_to(threshold: float, mode: str = "lagrangian") -> ConstrainedActorCritic:
    return with_options(CONFIG, mode=mode, thresholds={"hate": threshold}, minibatch=10**6, multiplier_max=2.0)


def with_options(config: ConstrainedActorCritic, **changes: Any) -> ConstrainedActorCritic:

    return msgspec.structs.replace(config, **changes)


def test_arms_further_apart_than_the_bound_do_not_silence_the_auxiliaries() -> None:
    """A log of two policies whom nobody is near to within the bound: π_like still learns what is liked, above what was logged."""

    def keen(seen: Glance, u: F64) -> tuple[I64, F64]:
        return drawn(0.5 * seen.expected[:, :, 0], u)

    config = msgspec.structs.replace(
        CONFIG, attention=1, minibatch=128, replay=6_000, replay_ratio=4.0, learning_rate=1e-2
    )
    trainer = constrained_actor_critic.trainer(config, PROBLEM)
    logs = [WORLD.simulate(policy, 150, 10, 3)[1] for policy in (WORLD.uniform, keen)]
    for _ in range(3):
        for log in logs:
            said = trainer.train(log)
    assert said["kl_like"] > config.bound, "or the case is not the one meant"
    w = network.actor({name: trainer.arrays()[name].astype(np.float32) for name in network.WEIGHTS}, 1)
    seen = WORLD.people(800, 9).glance(np.arange(800), np.random.default_rng(2))
    z = network.logits(w, 1, seen.context.astype(float), seen.history.astype(float), seen.items.astype(float))[0]
    share = np.exp(z - z.max(axis=1, keepdims=True))
    liked = ((share / share.sum(axis=1, keepdims=True)) * seen.expected[:, :, 1]).sum(axis=1).mean()
    keenly = drawn(0.5 * seen.expected[:, :, 0], np.random.default_rng(1).random((800, 1)))[0]
    logged = [seen.expected[:, :, 1].mean(), np.take_along_axis(seen.expected[:, :, 1], keenly, axis=1).mean()]
    assert liked > 1.1 * max(logged)


def test_multipliers_move_only_when_the_interval_excludes_the_threshold() -> None:
    """A threshold at the mean leaves μ alone, one that is violated raises it to its bound and is said to be infeasible."""
    batch = lived(60, 5)
    mean = float(batch.rewards[:, :, 2].sum(axis=1).mean())
    calm = constrained_actor_critic.trainer(held_to(mean * 1.01), PROBLEM)
    said = calm.train(batch)
    assert said["multiplier_hate"] == 0
    assert said["value_hate"] == pytest.approx(mean, rel=1e-3)
    strict = constrained_actor_critic.trainer(held_to(mean / 20), PROBLEM)
    first = strict.train(batch)["multiplier_hate"]
    assert first > 0
    for _ in range(60):
        said = strict.train(batch)
    assert said["multiplier_hate"] == 2.0
    assert said["infeasible_hate"] == 1.0
    loose = constrained_actor_critic.trainer(held_to(mean * 20), PROBLEM)
    loose.load(strict.arrays())
    assert loose.train(batch)["multiplier_hate"] < 2.0


def test_weights_of_slates_are_ratios_of_the_draw() -> None:
    """π_1/β of a whole slate under the network's own policy is one, when that policy made the log."""
    from policies.algorithms.constrained_actor_critic.training import slate_weights

    rng = np.random.default_rng(2)
    z = rng.normal(size=(30, 6))
    drawn = [
        slate.draw(z[i].astype(np.float32)[:, None], 3, rng.random(3), DrawSettings("softmax", 0.0)) for i in range(30)
    ]
    held = {
        "allowed": np.ones((30, 6), bool),
        "slate": np.stack([one.items for one in drawn]),
        "log_propensities": np.log([one.propensities for one in drawn]),
        "present": np.ones((30, 3)),
        "log_left_out": np.zeros(30),
    }
    np.testing.assert_allclose(slate_weights(z, held), 1, rtol=1e-5)
    np.testing.assert_allclose(slate_weights(z, {**held, "log_propensities": held["log_propensities"] - 9.0}), 20)


def test_more_than_the_replay_holds() -> None:
    """The ring keeps the newest, in order, and goes on the same after its arrays were loaded."""
    from policies.replay import Replay

    ring = Replay(5, frozenset({"h"}))
    ring.add({"x": np.arange(3.0), "h": np.ones((3, 2, 1))})
    ring.add({"x": np.arange(3.0, 11.0), "h": np.full((8, 3, 1), 2.0)})
    assert ring.newest(9)["x"].tolist() == [6, 7, 8, 9, 10]
    ring.add({"x": np.array([11.0]), "h": np.full((1, 1, 1), 3.0)})
    assert ring.newest(1)["h"][0, :, 0].tolist() == [0, 0, 3.0]  # padded in front
    other = Replay(5, frozenset({"h"}))
    other.load(ring.arrays())
    for each in (ring, other):
        each.add({"x": np.array([12.0, 13.0]), "h": np.zeros((2, 3, 1))})
    assert np.array_equal(ring.rows(np.arange(5))["x"], other.rows(np.arange(5))["x"])
    assert other.newest(5)["x"].tolist() == [9, 10, 11, 12, 13]


def test_one_bad_transition_is_refused_and_the_rest_is_learned_from() -> None:
    trainer = constrained_actor_critic.trainer(CONFIG, PROBLEM)
    batch = lived()
    rewards = batch.rewards.copy()
    rewards[3, 0, 0] = np.inf
    said = trainer.train(replace(batch, rewards=rewards))
    assert (said["refused_transitions"], said["skipped"]) == (1, 1)
    assert said["replay"] == len(batch) - 1
    assert said["updates"] >= 1


def test_a_loss_that_overflows_takes_no_step() -> None:
    """Weights so large that the gradient is not finite stay as they are, moments too, and every such update is counted."""
    trainer = constrained_actor_critic.trainer(CONFIG, PROBLEM)
    trainer.train(lived())
    arrays = trainer.arrays()
    trainer.load({**arrays, **{n: np.sign(arrays[n]) * np.float32(1e30) for n in network.WEIGHTS}})
    before = trainer.arrays()
    said = trainer.train(lived(seed=2))
    assert said["skipped"] == said["updates"] - arrays["counts"][0] > 0
    after = trainer.arrays()
    for name in (*network.WEIGHTS, *(f"mean.{n}" for n in network.WEIGHTS), "moment.deviation", "moment.kappa"):
        assert np.array_equal(after[name], before[name]), name


def test_candidates_beyond_the_kept_are_stood_for() -> None:
    """Eight of sixteen undrawn candidates are kept: the drawn are all there, renumbered, and the sampled softmax has the mean
    of the whole one (4 standard errors over 2,000 samples)."""
    from policies.algorithms.constrained_actor_critic.training import ActorCriticTrainer

    trainer = constrained_actor_critic.trainer(with_options(CONFIG, undrawn=8), PROBLEM)
    assert isinstance(trainer, ActorCriticTrainer)
    one = lived(3, 2).rows(np.zeros(2_000, np.int64))
    slate_rows = one.slate.copy()
    slate_rows[:, 2] = -1
    columns = {"slate": slate_rows, "allowed": one.allowed, "candidates": one.candidates}
    cut = trainer._sampled(columns)
    assert cut["candidates"].shape == (2_000, 12, WORLD.encoder.item_size)
    every = np.arange(2_000)[:, None]
    for slot in (0, 1, 3):
        row = slate_rows[0, slot]
        np.testing.assert_array_equal(
            cut["candidates"][every[:, 0], cut["slate"][:, slot]], np.tile(one.candidates[0, row], (2_000, 1))
        )
    assert (cut["slate"][:, 2] == -1).all()
    weight = one.candidates.astype(float).sum(axis=2) ** 2  # any positive function of an item
    sampled = cut["candidates"].astype(float).sum(axis=2) ** 2
    is_drawn = np.zeros(cut["allowed"].shape, bool)
    is_drawn[every, cut["slate"][:, [0, 1, 3]]] = True
    whole = weight[0].sum() - weight[0, slate_rows[0, [0, 1, 3]]].sum()
    totals = (sampled * (~is_drawn)).sum(axis=1) * np.exp(cut["log_left_out"])
    assert totals.std() > 0
    assert abs(totals.mean() - whole) <= 4 * totals.std() / np.sqrt(2_000)


def test_rows_that_say_nothing_are_no_rows() -> None:
    """Of five rows the newest three, padded in front where there are fewer; what is not alive is zeros whatever it held, and a
    number that is not finite counts only where it is alive."""
    from policies.algorithms.constrained_actor_critic import rows_fast

    history = np.arange(1, 31, dtype=np.float32).reshape(2, 5, 3)
    history[0, 3] = 0.0  # alive, and says nothing
    history[1, 4] = np.nan
    alive = np.ones((2, 5), bool)
    alive[0, 2] = False
    kept, live, sound = rows_fast.lives(history, alive, 3)
    np.testing.assert_array_equal(kept[0], [[0, 0, 0], [0, 0, 0], [13, 14, 15]])
    np.testing.assert_array_equal(live, [[0, 0, 1], [1, 1, 1]])
    assert sound.tolist() == [True, False]
    alive[1, 4] = False
    padded, live, sound = rows_fast.lives(history, alive, 7)
    assert sound.all()
    assert not padded[:, :2].any()
    assert not padded[1, 6].any()
    np.testing.assert_array_equal(live[1], [0, 0, 1, 1, 1, 1, 0])
    whole = history[:, :2]
    assert rows_fast.lives(whole, alive[:, :2], 2)[0] is whole  # as it should be already: not copied
    for bad in (np.nan, np.inf, -np.inf):
        assert rows_fast.finite(np.array([[0.0, -0.0], [1e38, bad]], np.float32)).tolist() == [True, False]


def test_what_only_a_long_history_says_is_learned_from_what_stands_for_it() -> None:
    """Units love one of four kinds, which only what is older than their newest eight interactions tells; of 120 eight stand for
    those. The policy goes half of the way from random to best; read without the eight nothing is learned."""
    from policies.algorithms.constrained_actor_critic.training import ActorCriticTrainer
    from policies.features import Encoder
    from policies.hashed import thinned
    from policies.surface import FeatureSpec, Objective, Vector

    encoder = Encoder(FeatureSpec(items={"taste": Vector(8)}))
    problem = Problem(encoder, {"click": Objective("click")}, {"click": 1.0}, 2, history=16)
    rng, n = np.random.default_rng(3), 3_000
    kinds = 2.0 * np.eye(8)[:4]

    def seen(of: Any) -> F32:
        return (kinds[of] + 0.2 * rng.normal(size=(*of.shape, 8))).astype(np.float32)

    loved = rng.integers(4, size=n)
    older = np.where(rng.random((n, 112)) < 0.7, loved[:, None], rng.integers(4, size=(n, 112)))
    whole = seen(np.concatenate([older, rng.integers(4, size=(n, 8))], axis=1))
    history: F32 = np.stack([lives[thinned(lives, 8, 8)] for lives in whole])
    shown = rng.integers(4, size=(n, 6))
    slate_rows = np.argsort(rng.random((n, 6)), axis=1)[:, :2]
    clicked = (shown == loved[:, None])[np.arange(n)[:, None], slate_rows]
    nothing = np.zeros((n, 16), bool)
    batch = Transitions(
        context=np.zeros((n, 0), np.float32),
        candidates=seen(shown),
        items=np.ones((n, 6), np.uint64),
        allowed=np.ones((n, 6), bool),
        slate=slate_rows,
        propensities=np.tile([1 / 6, 1 / 5], (n, 1)),
        present=np.ones((n, 2), bool),
        rewards=clicked[:, :, None].astype(float),
        history=history,
        history_items=np.ones((n, 16), np.uint64),
        lived=~nothing,
        next_context=np.zeros((n, 0), np.float32),
        next_history=np.zeros_like(history),
        next_history_items=np.zeros((n, 16), np.uint64),
        next_lived=nothing,
        terminal=np.ones(n, bool),
        elapsed=np.zeros(n),
        units=np.arange(1, n + 1).astype(np.uint64),
        sessions=np.ones(n, np.uint64),
        times=np.arange(n, dtype=float),
        goals=np.full(n, -1),
        goal_propensities=np.ones(n),
    )
    blind = replace(batch, lived=np.arange(16) >= np.full((n, 1), 8))
    config = ConstrainedActorCritic(minibatch=128, replay=4_096, replay_ratio=4.0, learning_rate=5e-3)
    won = []
    for given in (batch, blind):
        trainer = constrained_actor_critic.trainer(config, problem)
        assert isinstance(trainer, ActorCriticTrainer)
        trainer.train(given.rows(slice(0, 2_500)))
        w = trainer._group.weights()
        test = given.rows(slice(2_500, n))
        past = np.where(test.lived[:, :, None], test.history, 0.0)
        z = network.logits(w, 1, test.context.astype(float), past, test.candidates.astype(float))[0]
        share = np.exp(z - z.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        won.append(float((share * (shown[2_500:] == loved[2_500:, None])).sum(axis=1).mean()))
    random, best = 0.25, float((shown[2_500:] == loved[2_500:, None]).any(axis=1).mean())
    assert won[0] > random + 0.45 * (best - random)
    assert won[1] < random + 0.15 * (best - random)
