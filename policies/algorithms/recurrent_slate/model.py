"""The model of `recurrent_slate` in numpy: priors of items by empirical Bayes, users' states, and first weights.

Names of arrays are those of a trainer's state; `policies.algorithms.recurrent_slate` says what each is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.types import F32, F64, I64, Arrays

ALL, GROUP = 2.0, 4.0  # items' worth of belief: in a variance of 1 for all items, in all items' for those of a group
# point estimates of the state's own
WEIGHTS = {
    "linear": (),
    "gru": ("gru_W", "gru_R", "gru_b", "gru_c", "out", "out_b"),
}


class Groups(NamedTuple):
    """What is known of G groups and, last, of items without one: mean (G + 1, size) of μ_g, its variance and the variance
    s_g² of an item around it, both (G + 1,)."""

    mean: F64
    doubt: F64
    spread: F64


def group_columns(config: RecurrentSlate, problem: Problem) -> I64:
    """Columns (G,) of an encoded item that say which group it is of, without that of unlisted values."""
    if config.group is None:
        return np.zeros(0, np.int64)
    place = problem.encoder.item_columns[config.group]
    return np.arange(place.start, place.stop - 1)


def groups_of(
    mean: F64, variance: F64, group: I64, groups: int, before: Groups | None = None, rounds: int = 1
) -> Groups:
    """Groups by empirical Bayes from items' vectors ~ N(mean, variance), both (N, size), and their group (N,), −1 = none.

    μ_g ~ N(0, τ²) and every number of an item N(μ_g, s_g²): `rounds` of EM from `before`. τ² and s² over all items start with two
    items' worth of 1, a group's s_g² with four items' worth of s².
    """
    size = mean.shape[1]
    if before is None:
        before = Groups(np.zeros((groups + 1, size)), np.ones(groups + 1), np.ones(groups + 1))
    place = np.where(group < 0, groups, group)
    count = np.bincount(place, minlength=groups + 1)
    total = np.stack([np.bincount(place, column, groups + 1) for column in mean.T], axis=1)
    for _ in range(rounds):
        tau = (ALL + (before.mean**2).sum() / size + before.doubt.sum()) / (ALL + groups + 1)
        doubt = 1 / (1 / tau + count / before.spread)
        centre = doubt[:, None] / before.spread[:, None] * total
        square = ((mean - centre[place]) ** 2 + variance).mean(axis=1) + doubt[place]
        every = (ALL + square.sum()) / (ALL + len(mean))
        spread = (GROUP * every + np.bincount(place, square, groups + 1)) / (GROUP + count)
        before = Groups(centre, doubt, spread)
    return before


def initial(config: RecurrentSlate, problem: Problem) -> Arrays:
    """The state of a trainer that has seen nothing, without optimiser and replay."""
    c, size, hidden = problem.encoder.context_size, config.size, config.hidden
    rng = np.random.default_rng([config.seed, 1])
    start = hidden if config.state == "gru" else size
    made: Arrays = {
        "item_hashes": np.zeros(0, np.uint64),
        "item_group": np.zeros(0, np.int64),
        "item_mean": np.zeros((0, size), np.float32),
        "item_log_scale": np.zeros((0, size), np.float32),
        "start": np.zeros(start, np.float32),
        "start_log_scale": np.full(start, -1.0, np.float32),
        "of_context": np.zeros((c, start), np.float32),
        "gamma": np.zeros(1, np.float32),  # its logit
        "gamma_log_scale": np.full(1, -2.0, np.float32),
        "no_click": np.zeros(1, np.float32),
    }
    if config.state == "gru":
        bound = 1 / np.sqrt(hidden)

        def weights(*shape: int) -> F32:
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        made |= {"gru_W": weights(3 * hidden, size), "gru_R": weights(3 * hidden, hidden), "gru_b": weights(3 * hidden)}
        made |= {"gru_c": weights(3 * hidden), "out": weights(hidden, size), "out_b": np.zeros(size, np.float32)}
    return made


def linear_state(gamma: F64, start: F64, clicked: F64) -> F64:
    """h (m, size) after clicks (h, m, size), oldest first, from start (m, size), under gamma (m,)."""
    state = start
    for vectors in clicked:
        state = gamma[:, None] * state + (1 - gamma[:, None]) * vectors
    return state


def gru_state(weights: Mapping[str, NDArray[np.generic]], start: F64, clicked: F64) -> F64:
    """z (m, size) after clicks (h, m, size) from hidden states start (m, hidden). A step without a click goes before the first."""
    state = gru_step(weights, start, np.zeros((len(start), weights["gru_W"].shape[1])))
    for vectors in clicked:
        state = gru_step(weights, state, vectors)
    return gru_read(weights, state)


def gru_step(weights: Mapping[str, NDArray[np.generic]], state: F64, x: F64) -> F64:
    """Hidden states (m, hidden) after inputs x (m, size). Gates in the order reset, update, new."""
    W, R, b, c = (np.asarray(weights[name], np.float64) for name in ("gru_W", "gru_R", "gru_b", "gru_c"))
    r_x, u_x, n_x = np.split(x @ W.T + b, 3, axis=1)
    r_h, u_h, n_h = np.split(state @ R.T + c, 3, axis=1)
    update = sigmoid(u_x + u_h)
    return np.asarray((1 - update) * np.tanh(n_x + sigmoid(r_x + r_h) * n_h) + update * state)


def gru_read(weights: Mapping[str, NDArray[np.generic]], state: F64) -> F64:
    """z (m, size) of hidden states (m, hidden)."""
    return np.asarray(state @ np.asarray(weights["out"], np.float64) + np.asarray(weights["out_b"], np.float64))


def sigmoid(x: F64) -> F64:
    """1/(1 + e^(−x)), which here cannot overflow."""
    return np.asarray((1 + np.tanh(x / 2)) / 2)
