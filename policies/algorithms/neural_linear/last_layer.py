"""The last layer of `neural_linear`: ridge sums over one network's outputs, which carry that network's hash.

They are the sums of `policies.ridge`, of a problem whose items have the network's outputs. Sums of one network mean nothing under
another, so whoever reads them says which network it has, and sums of another are refused.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.neural_linear import network
from policies.algorithms.neural_linear.config import NeuralLinear
from policies.errors import Corrupt
from policies.forgetting import half_life_seconds
from policies.ridge import ADDED, RidgeLearner, columns
from policies.ridge_fitting import learner
from policies.types import F64, I64, Arrays, Changes

PREFIX = "last."
NAMES = (*ADDED, "index")
PART = 512  # decisions whose outputs are worked out at once
Columns = Mapping[str, NDArray[np.generic]]


def begin(config: NeuralLinear, problem: Problem) -> RidgeLearner:
    """Nothing learned."""
    return learner(config, network.above(config, problem))


def learn(
    sums: RidgeLearner, config: NeuralLinear, problem: Problem, weights: Columns, decisions: Columns, slot_weight: float
) -> None:
    """Add decisions, oldest first: context (N, c), items (N, k, d), present (N, k), rewards (N, k, o), times (N,)."""
    for start in range(0, len(decisions["times"]), PART):
        part = {name: value[start : start + PART] for name, value in decisions.items()}
        sums.learn(_changes(config, problem, weights, part, slot_weight))


def _changes(
    config: NeuralLinear, problem: Problem, weights: Columns, decisions: Columns, slot_weight: float
) -> Changes:
    here = decisions["present"]
    slates: I64
    slots: I64
    slates, slots = np.nonzero(here)
    context, items = decisions["context"][slates].astype(np.float32), decisions["items"][here].astype(np.float32)
    rewards: F64 = decisions["rewards"][here].astype(np.float64)
    n, nothing = len(slots), np.zeros(len(slots))
    return Changes(
        context=context,
        items=network.widened(config, items, network.features(problem, weights, context, items)),
        slots=slots,
        slates=slates,
        times=decisions["times"][slates].astype(np.float64),
        weights=np.full(n, slot_weight),
        present_before=nothing,
        present_after=np.ones(n),
        rewards_before=np.zeros_like(rewards),
        rewards_after=rewards,
        item_hashes=np.zeros(n, np.uint64),
        propensities=np.ones(n),
    )


def stored(sums: RidgeLearner, weights: Columns) -> Arrays:
    """As a trainer's state holds them, with the hash of the network they are of."""
    held = sums.arrays()
    return {PREFIX + name: held[name].copy() for name in NAMES} | {PREFIX + "network": network.fingerprint(weights)}


def sums_in(config: NeuralLinear, problem: Problem, state: Columns, weights: Columns) -> Arrays:
    """The sums of a trainer's state, as `policies.ridge_fitting.fit` takes them; {}: none yet.

    Raises Corrupt('network') when they are of another network than these weights, ValueError when of other columns.
    """
    if PREFIX + "network" not in state:
        return {}
    wanted, found = int(network.fingerprint(weights)[0]), int(state[PREFIX + "network"][0])
    if found != wanted:
        raise Corrupt("network", f"sums over the outputs of network {found:016x}, this one is {wanted:016x}")
    names = columns(network.above(config, problem))
    if state[PREFIX + "S"].shape != (len(names), len(names)):
        raise ValueError(f"sums of {len(state[PREFIX + 'S'])} columns, expected {len(names)}")
    held: Arrays = {name: state[PREFIX + name] for name in NAMES}
    return held | {"half_life": np.array([half_life_seconds(config.half_life)]), "columns": np.array(names)}
