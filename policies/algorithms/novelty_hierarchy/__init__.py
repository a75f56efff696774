"""Hierarchical novelty-seeking agent: a manager says how new a session's items should be, a worker chooses them.

    manager  goal ~ softmax(goal_logits(long-run preference, session state)), once a session and every `goal_steps` decisions
             reward: unshaped discounted return of the session + that of the unit's next session
    worker   score = relevance(state, item) + strength(goal) · novelty, novelty = 1 − max cosine to the history
             reward: of the slot + shaping · novelty where the item was accepted

State    weights, Adam's moments, replays, sessions that wait: named arrays
Scores   (n, 1), drawn by head `softmax`; goal logits (g,) by a second graph over the same arrays
Learn    off-policy actor-critic in torch, `losses.py`

Where the manager is away, the neutral goal leaves the worker its own weight of novelty.

Source   Li, Wang, Chi & Chen 2023 (arXiv 2306.01476)
"""

import numpy as np

from policies.algorithm import Algorithm, Problem, Published
from policies.algorithms.novelty_hierarchy import network
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy, read
from policies.algorithms.novelty_hierarchy.graph import graph, manager
from policies.errors import Corrupt
from policies.novelty import novelty
from policies.training import Trainer
from policies.types import F32, Arrays


def trainer(config: NoveltyHierarchy, problem: Problem) -> Trainer:
    """Imports torch."""
    from policies.algorithms.novelty_hierarchy.training import HierarchyTrainer

    return HierarchyTrainer(config, problem)


def publish(config: NoveltyHierarchy, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """Both actors' weights; of nothing learned, those of `network.initial`. Raises Corrupt('nonfinite')."""
    state = sums or network.initial(config, problem)
    arrays: Arrays = {name: np.array(network.served(state, name), np.float32) for name in network.SERVED}
    if not all(np.isfinite(value.astype(float)).all() for value in arrays.values()):
        raise Corrupt("nonfinite", "the weights are not finite")
    diagnostics = {"own_novelty": float(np.asarray(arrays["own"], float)[0])}
    if sums:
        counts = (int(number) for number in sums["counts"])
        diagnostics |= {name: float(n) for name, n in zip(("updates", "skipped"), counts, strict=False)}
    return Published(arrays, diagnostics=diagnostics)


def reference(config: NoveltyHierarchy, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    own = np.asarray(arrays["own"], float) * config.novel
    phi = network.features(inputs["context"][None], inputs["history"][None], config.recent)
    items, goal = inputs["items"][None], inputs["goal"][None].astype(float)
    new = novelty(items, inputs["history"][None])
    found = network.scores({**arrays, "own": own}, phi, items, new, goal, config.strengths)
    return np.asarray(found[0, :, None], np.float32)


def manage(config: NoveltyHierarchy, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    phi = network.features(inputs["context"][None], inputs["history"][None], config.recent)
    return np.asarray(network.body(arrays, "manager", phi * read(config, problem))[0], np.float32)


ALGORITHM = Algorithm(
    name="novelty_hierarchy",
    summary="a manager says how new a session's items should be, a worker chooses them: actor-critics over sessions",
    source="Li et al. 2023, arXiv 2306.01476",
    config=NoveltyHierarchy,
    graph=graph,
    manager=manager,
    manage=manage,
    trainer=trainer,
    publish=publish,
    reference=reference,
    shaping=("goals", "hidden", "least", "most", "long_run", "static", "session", "recent"),
    inputs=("context", "items", "history", "goal"),
    traits=frozenset({"trains", "contextual"}),
)
