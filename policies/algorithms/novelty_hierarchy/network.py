"""The network in plain numpy: what graphs and torch must equal.

    live_j = 1 where row j of the history says anything; age_j = 0 for the newest row; a_j ∝ live_j (1 − recent)^age_j
    φ        [context, mean history, mean lived novelty, log(1 + count), Σ a_j history_j, Σ a_j lived novelty_j]       (f,)
    body(x; in, out) = [1, x, relu([1, x] in)] out
    worker   score(item) = item · body(φ; worker) + (own + Σ_g goal_g strength_g) novelty(item)                        (n,)
    manager  goal_logits = body(φ ∘ read; manager)                                                                     (g,)
    critics  V = body([φ, goal]; value),  Q = body(φ ∘ read; goals) · neighbours, see `losses`                         (1,), (g,)

`read` (f,) says what of the state the manager is told. Letters: f features of a state, d of an item, h interactions, g goals.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy
from policies.novelty import lived_novelty
from policies.types import F32, F64

SERVED = ("worker_in", "worker_out", "own", "manager_in", "manager_out")
AVERAGE = "average."  # before the name of a served weight: its running mean over updates, which is what is served
BODIES = ("worker", "manager", "value", "goals")
Weights = Mapping[str, NDArray[Any]]


def width(problem: Problem) -> int:
    return problem.encoder.context_size + 2 * problem.encoder.item_size + 3


def shapes(config: NoveltyHierarchy, problem: Problem) -> dict[str, tuple[int, ...]]:
    """Shape of every weight; the first row of each matrix is the intercept."""
    f, g, u = width(problem), config.goals, config.hidden
    sizes = {"worker": (f, problem.encoder.item_size), "manager": (f, g), "value": (f + g, 1), "goals": (f, g)}
    made: dict[str, tuple[int, ...]] = {"own": (1,)}
    for name, (x, out) in sizes.items():
        made |= {f"{name}_in": (1 + x, u), f"{name}_out": (1 + x + u, out)}
    return made


def initial(config: NoveltyHierarchy, problem: Problem) -> dict[str, F32]:
    """Weights of nothing learned: every item and every goal is as likely, and novelty counts for what the goal says."""
    rng = np.random.default_rng([config.seed, 23])
    made: dict[str, F32] = {}
    for name, shape in shapes(config, problem).items():
        value = rng.normal(size=shape) / np.sqrt(shape[0]) if name.endswith("_in") else np.zeros(shape)
        made[name] = value.astype(np.float32)
    return made


def served(arrays: Weights, name: str) -> NDArray[Any]:
    """A weight as it is served. Arrays of before there were means have none: their last weight is their best."""
    return np.asarray(arrays.get(AVERAGE + name, arrays[name]))


def features(context: NDArray[Any], history: NDArray[Any], recent: float) -> F64:
    """φ (B, f) of contexts (B, c) and histories (B, h, d)."""
    b, h, _ = history.shape
    rows = history.astype(np.float64)
    live = (rows != 0).any(axis=2).astype(np.float64)
    faded = live * (1 - recent) ** np.arange(h - 1, -1, -1.0)
    count = live.sum(axis=1, keepdims=True)
    share = faded / np.maximum(faded.sum(axis=1, keepdims=True), 1e-9)  # nothing lived through: all zero
    new = lived_novelty(rows)
    even = live / np.maximum(count, 1)
    parts = [
        context.astype(np.float64),
        np.einsum("bh,bhd->bd", even, rows),
        (even * new).sum(axis=1, keepdims=True),
        np.log1p(count),
        np.einsum("bh,bhd->bd", share, rows),
        (share * new).sum(axis=1, keepdims=True),
    ]
    return np.concatenate(parts, axis=1).reshape(b, -1)


def body(w: Weights, name: str, x: F64) -> F64:
    """(B, out) of rows (B, x)."""
    one = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    hidden = np.maximum(one @ w[f"{name}_in"].astype(np.float64), 0)
    return np.asarray(np.concatenate([one, hidden], axis=1) @ w[f"{name}_out"].astype(np.float64))


def scores(w: Weights, phi: F64, items: NDArray[Any], new: F64, goal: F64, strengths: F64) -> F64:
    """(B, n) of candidates (B, n, d) as new as `new` (B, n) under goals (B, g), one-hot or all 0."""
    wants = body(w, "worker", phi)
    strength = float(w["own"][0]) + goal @ strengths
    return np.asarray(np.einsum("bnd,bd->bn", items.astype(np.float64), wants) + strength[:, None] * new)
