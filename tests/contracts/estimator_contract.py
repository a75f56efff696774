"""What every off-policy estimator promises, in worlds small enough that every outcome can be written down.

A world lists its outcomes (context, slate, rewards) with probabilities that are whole multiples of one unit: the *population
log* holds each outcome as often as it is probable, so an estimator that is right in that world gives the target's value to
rounding, and no seed is involved.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

import numpy as np

from policies.evaluation.estimate import Estimator
from policies.evaluation.logged import Logged, design
from policies.evaluation.marginals import Marginals, pairs, slate_weight, slot_weights
from policies.evaluation.models import BLOCKS
from policies.types import F64

Check = Callable[[Estimator], None]
CHECKS: dict[str, Check] = {}
ITEMS, SLOTS, CONTEXTS = 3, 2, 2
Q = Fraction(1, 4)
Policy = Callable[[int, tuple[int, ...]], list[Fraction]]  # context, items of the slots before → distribution
Reward = Callable[[int, tuple[int, ...], int], Fraction]  # context, slate, slot → chance that the slot pays 1


def check(function: Check) -> Check:
    CHECKS[function.__name__] = function
    return function


@dataclass(frozen=True)
class World:
    """Two contexts, two slots, three items each."""

    behaviour: Policy
    target: Policy
    reward: Reward

    def slates(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        return itertools.product(range(CONTEXTS), itertools.product(range(ITEMS), repeat=SLOTS))

    def chance(self, policy: Policy, context: int, slate: tuple[int, ...]) -> Fraction:
        chance = Fraction(1)
        for slot, item in enumerate(slate):
            chance *= policy(context, slate[:slot])[item]
        return chance

    @property
    def value(self) -> float:
        """The target's exact expected reward of a slate."""
        return float(
            sum(
                self.chance(self.target, x, slate) * sum(self.reward(x, slate, t) for t in range(SLOTS))
                for x, slate in self.slates()
            )
            / CONTEXTS
        )

    def outcomes(self) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...], Fraction]]:
        for x, slate in self.slates():
            for rewards in itertools.product((0, 1), repeat=SLOTS):
                chance = self.chance(self.behaviour, x, slate) / CONTEXTS
                for slot, r in enumerate(rewards):
                    pays = self.reward(x, slate, slot)
                    chance *= pays if r else 1 - pays
                if chance:
                    yield x, slate, rewards, chance

    @cache  # noqa: B019  # a few worlds, as long as the tests run
    def population(self, blocks: int = 1) -> Logged:
        """The population log, once a time block: whole populations before every block."""
        found = list(self.outcomes())
        unit = np.lcm.reduce([chance.denominator for *_, chance in found])
        return self.log([each for each in found for _ in range(int(each[3] * unit))] * blocks)

    def log(self, outcomes: list[tuple[int, tuple[int, ...], tuple[int, ...], Fraction]]) -> Logged:
        """Features are one-hot of (context, slot, item); the model is wrong on purpose: it knows no context."""
        n = len(outcomes)
        behaviour, target, second = np.ones((n, SLOTS)), np.ones((n, SLOTS)), np.ones((n, SLOTS))
        rewards, predicted, expected = np.zeros((n, SLOTS)), np.zeros((n, SLOTS)), np.zeros((n, SLOTS))
        features, mean_features = (np.zeros((n, SLOTS, CONTEXTS * SLOTS * ITEMS)) for _ in range(2))
        model = np.array([0.1, 0.5, 0.3])
        for i, (x, slate, paid, _) in enumerate(outcomes):
            rewards[i] = paid
            for t, item in enumerate(slate):
                b, p = (np.array(policy(x, slate[:t]), float) for policy in (self.behaviour, self.target))
                behaviour[i, t], target[i, t], second[i, t] = b[item], p[item], design(b, p)
                predicted[i, t], expected[i, t] = model[item], p @ model
                at = (x * SLOTS + t) * ITEMS
                features[i, t, at + item] = 1.0
                mean_features[i, t, at : at + ITEMS] = p
        return Logged(
            rewards,
            behaviour,
            target,
            np.ones((n, SLOTS), bool),
            np.arange(n),
            np.arange(n, dtype=float),
            second,
            predicted,
            expected,
            features,
            mean_features,
        )


def apart(context: int, before: tuple[int, ...]) -> list[Fraction]:
    """Slots drawn independently of each other."""
    return [2 * Q, Q, Q] if (context + len(before)) % 2 else [Q, Q, 2 * Q]


def apart_too(context: int, before: tuple[int, ...]) -> list[Fraction]:
    return [Q, 0 * Q, 3 * Q] if context else [Q, 2 * Q, Q]


def own(context: int, slate: tuple[int, ...], slot: int) -> Fraction:
    """A slot pays by its own item alone."""
    return [Q, 2 * Q, 3 * Q][(slate[slot] + context + slot) % 3]


def without_repeats(context: int, before: tuple[int, ...]) -> list[Fraction]:
    """The second slot depends on the first: its item again is rare, as a floor would have it."""
    if not before:
        return [2 * Q, Q, Q] if context else [Q, Q, 2 * Q]
    chances = [Fraction(3, 8)] * ITEMS
    chances[before[0]] = Q
    return chances


def without_repeats_too(context: int, before: tuple[int, ...]) -> list[Fraction]:
    if not before:
        return [Q, Q, 2 * Q]
    chances = [0 * Q, Q, 3 * Q]
    return chances[::-1] if before[0] == 2 or context else chances


def cascade(context: int, slate: tuple[int, ...], slot: int) -> Fraction:
    """A slot pays by its item and the one before it."""
    return Fraction(1, 2) * own(context, slate, slot) if slate[:slot] == (slate[slot],) else own(context, slate, slot)


def whole(context: int, slate: tuple[int, ...], slot: int) -> Fraction:
    """A slot pays by all items of the slate, also those after it."""
    return own(context, slate, slot) * (Fraction(1, 2) if slate[0] == slate[1] else 1)


APART = World(apart, apart_too, own)
WORLDS = {  # by weighting: where an estimator of that kind is right
    "slot": APART,
    "none": APART,
    "prefix": World(without_repeats, without_repeats_too, cascade),
    "slate": World(without_repeats, without_repeats_too, whole),
    "marginal": World(without_repeats, without_repeats_too, own),
}
EXACT = {"cap": 1e9, "tail": 1.0}  # options at which an estimator does what it would do without


def exact(estimator: Estimator) -> dict[str, float]:
    return {name: value for name, value in EXACT.items() if name in estimator.options}


@cache
def weights(world: World, context: int, slate: tuple[int, ...]) -> tuple[F64, float]:
    """Slot and slate weights from exact marginals: every slate replayed as often as it is probable."""
    slates = np.array(list(itertools.product(range(ITEMS), repeat=SLOTS)))
    gammas = []
    for policy in (world.behaviour, world.target):
        chances = [float(world.chance(policy, context, tuple(each))) for each in slates.tolist()]
        gammas.append(pairs(slates, ITEMS, np.array(chances)))
    behaviour, target = (gamma.diagonal().reshape(SLOTS, ITEMS) for gamma in gammas)
    shown = np.array(slate)
    return slot_weights(shown, behaviour, target), slate_weight(shown, gammas[0], target)


def with_marginals(world: World, log: Logged) -> Logged:
    slot, slate, zero = np.ones(log.rewards.shape), np.ones(len(log)), np.zeros(len(log))
    for i, at in enumerate(log.features.argmax(axis=2)):  # type: ignore[union-attr]  # every population log has them
        slot[i], slate[i] = weights(world, int(at[0]) // (SLOTS * ITEMS), tuple((at % ITEMS).tolist()))
    return replace(log, marginals=Marginals(slot, slate, np.zeros(slot.shape), zero, np.ones(slot.shape), zero))


def right_model(world: World, log: Logged) -> Logged:
    """The same log with the true mean rewards as its model (rewards by own item only)."""
    at = log.features.argmax(axis=2)  # type: ignore[union-attr]  # every population log has them
    truth = np.zeros(CONTEXTS * SLOTS * ITEMS)
    for x, t, item in itertools.product(range(CONTEXTS), range(SLOTS), range(ITEMS)):
        slate = (item,) * SLOTS
        truth[(x * SLOTS + t) * ITEMS + item] = float(world.reward(x, slate, t))
    assert log.expected_features is not None
    return replace(log, predicted=truth[at], expected=log.expected_features @ truth)


def log_of(estimator: Estimator, world: World) -> Logged:
    """The population log of a world with what an estimator needs: the right model where its assumption asks for one."""
    log = world.population(blocks=BLOCKS if "features" in estimator.needs else 1)
    if "marginals" in estimator.needs:
        log = with_marginals(world, log)
    asks = "model is right" in estimator.assumption
    return right_model(world, log) if asks else log


def known(estimator: Estimator) -> tuple[World, Logged]:
    """The world an estimator is right in, and its log."""
    world = WORLDS[estimator.weighting]
    return world, log_of(estimator, world)


@check
def gives_the_known_answer(estimator: Estimator) -> None:
    """In the population log of a world that meets its assumption, the target's value to rounding."""
    world, log = known(estimator)
    assert abs(estimator(log, **exact(estimator)).value - world.value) < 1e-9


@check
def agrees_with_the_log_where_nothing_changes(estimator: Estimator) -> None:
    """The target is the behaviour: the mean reward of the log itself, whatever the model (dm: with the right one)."""
    world, _ = known(estimator)
    same = log_of(estimator, replace(world, target=world.behaviour))
    assert abs(estimator(same, **exact(estimator)).value - same.totals.mean()) < 1e-9


@check
def contributions_average_to_the_value(estimator: Estimator) -> None:
    _, log = known(estimator)
    found = estimator(log)
    assert found.contributions.shape == (len(log),)
    assert abs(found.contributions.mean() - found.value) < 1e-9


@check
def does_not_read_rows_in_a_row_of_their_own(estimator: Estimator) -> None:
    """Without a model to fit, the order of decisions does not matter."""
    if "features" in estimator.needs:
        return
    _, log = known(estimator)
    order = np.random.default_rng(0).permutation(len(log))
    shuffled = replace(log.rows(order), times=log.times)
    assert abs(estimator(shuffled).value - estimator(log).value) < 1e-9


def refusals(log: Logged) -> Iterator[tuple[str, Logged, str]]:
    """(what is wrong, the log, the field the error must name)."""

    def with_one(values: F64, value: float) -> F64:
        return np.concatenate([[np.full(values.shape[1], value)], values[1:]])

    for value in (0.0, -0.1, 1.5, np.nan, np.inf):
        yield f"propensity_{value}", replace(log, behaviour=with_one(log.behaviour, value)), "$.behaviour"
    for value in (-0.1, 1.5, np.nan):
        yield f"target_{value}", replace(log, target=with_one(log.target, value)), "$.target"
    yield "reward_nan", replace(log, rewards=with_one(log.rewards, np.nan)), "$.rewards"
    yield "reward_inf", replace(log, rewards=with_one(log.rewards, np.inf)), "$.rewards"
    yield "empty", log.rows(slice(0, 0)), "$.rewards"
    yield "shape", replace(log, target=log.target[:, :1]), "$.target"
    yield "units", replace(log, units=log.units[1:]), "$.units"
    yield "order", replace(log, times=log.times[::-1].copy()), "$.times"
    yield "ghost", replace(log, present=np.zeros(log.rewards.shape, bool)), "$."
