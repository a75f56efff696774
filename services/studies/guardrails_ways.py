"""What `guardrails` compares: a behaviour, ways of learning from it, and how a policy is judged. See there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from policies import linear_graph, ridge, slate
from policies.algorithm import Problem, draw_settings
from policies.algorithms import constrained_actor_critic, linear_thompson
from policies.algorithms.constrained_actor_critic import network
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, roles
from policies.sequences import Transitions
from policies.surface import Objective
from policies.training import Trainer
from policies.types import F64, I64, Arrays, Changes
from policies.worlds.session_world import HISTORY, OBJECTIVES, Glance, Policy, SessionWorld, Value, drawn

WEIGHTS = {"watch": 0.05, "like": 0.75, "hate": -1.5}  # of the behaviour: 15 seconds are worth a like, 30 cost a hate
FLOOR = 0.02
FIRST = 3  # rounds that the behaviour makes the data of
EPOCHS = 3  # over the log of the behaviour's own learning, before: what `slatewise train` does
CONFIG = ConstrainedActorCritic(
    floor=FLOOR,
    minibatch=256,
    replay=20_000,
    replay_ratio=4.0,
    learning_rate=4e-3,
    entropy=0.1,
    multiplier_rate=1.0,
)
STRENGTHS = {"like": 0.15, "hate": 0.15}  # λ of two-stage
WINDOW = 2_000  # decisions that the Lagrangian's thresholds are judged on
JUDGED = 9_001  # seed of the people that values are of


@dataclass(frozen=True)
class Size:
    """How much of everything: people and rounds of learning, people and steps of the judging."""

    people: int = 150
    rounds: int = 45
    steps: int = 20
    judged: int = 1_500
    life: int = 30


def problem(world: SessionWorld, weights: dict[str, float] | None = None) -> Problem:
    return Problem(
        world.encoder, dict(OBJECTIVES), weights or {"watch": 0.05, "like": 0.0, "hate": 0.0}, world.slots, HISTORY
    )


# the behaviour


@dataclass(frozen=True)
class Behaviour:
    """A policy that learns no further, and the log of its learning, round by round."""

    policy: Policy
    log: Sequence[Transitions] = ()


def behaviour(world: SessionWorld, seed: int, people: int = 250) -> Behaviour:
    """A linear Thompson policy after four rounds of learning, the first from uniform slates."""
    config, asked = linear_thompson.LinearThompson(floor=FLOOR, draws=64), problem(world, WEIGHTS)
    learner = ridge.RidgeLearner(asked, np.inf)  # nothing forgotten
    policy: Policy = world.uniform
    log: list[Transitions] = []
    for number in range(4):
        lived = world.simulate(policy, people, 15, seed + number)[1]
        log.append(lived)
        learner.learn(changes(lived))
        policy = thompson(config, asked, learner.arrays(), number)
    return Behaviour(policy, log)


def changes(lived: Transitions) -> Changes:
    """Transitions as a learner of slots takes them."""
    n, k, o = lived.rewards.shape
    rows = np.arange(n)[:, None], lived.slate
    return Changes(
        context=np.repeat(lived.context, k, axis=0),
        items=lived.candidates[rows].reshape(n * k, -1),
        slots=np.tile(np.arange(k), n),
        slates=np.repeat(np.arange(n), k),
        times=np.repeat(lived.times, k),
        weights=np.ones(n * k),
        present_before=np.zeros(n * k),
        present_after=np.ones(n * k),
        rewards_before=np.zeros((n * k, o)),
        rewards_after=lived.rewards.reshape(n * k, o),
        item_hashes=lived.items[rows].reshape(-1),
        propensities=lived.propensities.reshape(-1),
    )


def thompson(config: linear_thompson.LinearThompson, asked: Problem, sums: Arrays, seed: int) -> Policy:
    """The published policy for many people at once: its pool's scores and the draw of the service, person by person."""
    made = linear_thompson.publish(config, asked, sums, 0.0, seed)
    settings = draw_settings(config, made.temperature)
    weights = np.array(list(asked.weights.values()))
    theta = {name: np.tensordot(weights, array.astype(float), 1) for name, array in made.arrays.items()}
    group, rank = linear_graph.folded(asked.encoder).place.T
    left, right = asked.encoder.cross

    def policy(seen: Glance, u: F64) -> tuple[I64, F64]:
        people = len(seen.rows)
        rows, propensities = np.empty(u.shape, np.int64), np.empty(u.shape)
        crosses = seen.context[:, None, left] * seen.items[:, :, right]
        scores = (seen.items @ theta["pool"] + crosses @ theta["crosses"][group, rank]).astype(np.float32)
        for i in range(people):
            one = slate.draw(scores[i], u.shape[1], u[i], settings)
            rows[i], propensities[i] = one.items, one.propensities
        return rows, propensities

    return policy


# the agents


def agent(config: ConstrainedActorCritic, asked: Problem, arrays: Arrays, one: int = 0) -> Policy:
    """The policy that the published arrays are, drawn as the service draws it, for many people at once.

    one  which of its policies: 0 is the main one, the others are the auxiliaries in their order
    """
    parts = roles(config, asked)
    made = constrained_actor_critic.publish(config, asked, arrays, 0.0, 0).arrays
    w = network.unserved(made, config, len(parts))
    chosen = network.actor(w, one)

    def policy(seen: Glance, u: F64) -> tuple[I64, F64]:
        context, history, items = (a.astype(float) for a in (seen.context, seen.history, seen.items))
        return drawn(network.logits(chosen, 1, context, history, items)[0], u, config.floor, config.temperature)

    return policy


@dataclass(frozen=True)
class Way:
    """One way of learning: what it optimises, what it is fed, and what it sets after each round.

    rewarded  (transitions, held numbers) → what the trainer gets
    after     (trainer, transitions, thresholds, held numbers) → None; may change the held numbers and the trainer's arrays
    """

    config: ConstrainedActorCritic
    rewarded: Callable[[Transitions, dict[str, F64]], Transitions] | None = None
    after: Callable[[Trainer, Transitions, F64, dict[str, F64]], None] | None = None


def summed(lived: Transitions, weights: F64) -> Transitions:
    """One reward instead of several: their weighted sum."""
    return replace(lived, rewards=(lived.rewards @ weights)[:, :, None])


SIGNS = np.array([1.0, 1.0, -1.0])
ALONE = Objective(kind="sum", range=None)


def ascend(trainer: Trainer, lived: Transitions, thresholds: F64, held: dict[str, F64]) -> None:
    """RCPO: prices of one reward follow the round's mean violation, in units of the threshold."""
    found = lived.rewards.sum(axis=1).mean(axis=0)
    gap = SIGNS * (thresholds - found) / thresholds
    held["prices"] = np.clip(held["prices"] + 0.5 * gap, 0, 10) * np.array([0, 1, 1])


def balance(trainer: Trainer, lived: Transitions, thresholds: F64, held: dict[str, F64]) -> None:
    """Pareto weighting: the weights of the smallest convex combination of the policy gradients (MGDA), as μ_i = w_i/w_1.

    Gradients in the space of scores: advantages of the round, so their Gram matrix is that of the advantages.
    """
    arrays = trainer.arrays()
    w = {name: np.asarray(arrays[name], np.float32) for name in network.WEIGHTS}
    p = len(SIGNS)
    now = network.values(w, p, lived.context.astype(float), lived.history.astype(float)).T
    coming = network.values(w, p, lived.next_context.astype(float), lived.next_history.astype(float)).T
    scale = np.sqrt(np.maximum(arrays["moment.square"] - np.square(arrays["moment.mean"].astype(float)), 1e-12))
    rewards = lived.rewards * SIGNS / scale
    total = rewards.sum(axis=1)
    delta = total + np.array([CONFIG.discount, 0, 0]) * coming * ~lived.terminal[:, None] - now
    k = rewards.shape[1]
    advantage = (rewards - total[:, None] / k + delta[:, None] / k).reshape(-1, p)
    advantage /= advantage.std(axis=0)
    weights = smallest(advantage.T @ advantage / len(advantage))
    multiplier = np.append(0.0, weights[1:] / max(weights[0], 0.05))
    trainer.load({**arrays, "moment.multiplier": multiplier})


def smallest(gram: F64, steps: int = 200) -> F64:
    """Weights on the simplex of the smallest wᵀGw, by Frank-Wolfe."""
    w = np.full(len(gram), 1 / len(gram))
    for t in range(steps):
        direction = np.eye(len(gram))[int(np.argmin(gram @ w))]
        w = w + 2 / (t + 3) * (direction - w)
    return w


def ways(thresholds: F64) -> dict[str, Way]:
    lagrangian = msgspec.structs.replace(CONFIG, mode="lagrangian", window=WINDOW)
    held = {"like": float(thresholds[1]), "hate": float(thresholds[2])}
    alone = msgspec.structs.replace(lagrangian, keep=[])
    weights = np.array(list(WEIGHTS.values()))
    scaled = np.array([1 / 100, 1.0, -1.0])  # a slate's seconds and likes in one size, for prices
    return {
        "unconstrained": Way(alone),
        "single critic, weighted sum": Way(alone, lambda lived, _: summed(lived, weights)),
        "RCPO-style": Way(
            alone, lambda lived, held: summed(lived, scaled * (held["prices"] + np.array([1, 0, 0]))), ascend
        ),
        "Pareto weighting": Way(lagrangian, None, balance),
        "two-stage": Way(msgspec.structs.replace(CONFIG, strengths=STRENGTHS)),
        "Lagrangian": Way(msgspec.structs.replace(lagrangian, thresholds=held)),
    }


@dataclass(frozen=True)
class Learned:
    """Of one way and seed: the final policy's value, values of the rounds (rounds, 3) a slate, the last metrics, and what
    the auxiliary policies would be worth if they were drawn from."""

    value: Value
    rounds: F64
    metrics: dict[str, float]
    alone: dict[str, Value]


def learn(world: SessionWorld, way: Way, first: Behaviour, thresholds: F64, size: Size, seed: int) -> Learned:
    single = way.rewarded is not None
    asked = replace(problem(world), objectives={"sum": ALONE}, weights={"sum": 1.0}) if single else problem(world)
    config = msgspec.structs.replace(way.config, seed=seed)
    trainer = constrained_actor_critic.trainer(config, asked)
    held = {"prices": np.zeros(3)}
    policy, rounds, metrics = first.policy, list[F64](), dict[str, float]()
    for lived in [*first.log] * EPOCHS:
        trainer.train(way.rewarded(lived, held) if way.rewarded else lived)
    for number in range(size.rounds):
        _, lived = world.simulate(policy, size.people, size.steps, seed + 100 + number)
        rounds.append(lived.rewards.sum(axis=1).mean(axis=0))
        metrics = trainer.train(way.rewarded(lived, held) if way.rewarded else lived)
        if way.after:
            way.after(trainer, lived, thresholds, held)
        if number + 1 >= FIRST:
            policy = agent(config, asked, trainer.arrays())
    judge = (size.judged, size.life, JUDGED)
    alone = {
        name: world.simulate(agent(config, asked, trainer.arrays(), one + 1), *judge)[0]
        for one, name in enumerate(roles(config, asked).names[1:] if config.mode == "two_stage" else ())
    }
    return Learned(world.simulate(policy, *judge)[0], np.array(rounds), metrics, alone)
