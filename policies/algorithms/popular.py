"""Popular: each item by its own mean reward, whatever the context, with a real probability behind it.

    score = (Σ w r + κ μ) / (Σ w + κ),  μ = (Σ_all w r + κ r₀) / (Σ_all w + κ),  κ = `prior`,  r₀ the reward of silence

State    per item Σ w and Σ w r of each objective, hashes sorted: sums of shards add by hash
Scores   (n, 1) out of a table by `item_rows`; an unseen item (row −1) reads the table's last row, μ
Learn    O(log N) an example
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta

from policies import forgetting, graphs
from policies.algorithm import Algorithm, Config, Problem, Published
from policies.errors import Corrupt
from policies.types import F32, Arrays, Changes

if TYPE_CHECKING:
    from onnx import ModelProto

ADDED = ("n", "B")


class Popular(Config, frozen=True):
    """Options.

    half_life  duration after which an example counts half; nothing is forgotten by default
    prior      examples' worth of average that every item starts with
    """

    half_life: str | float | None = None
    prior: Annotated[float, Meta(gt=0)] = 10.0

    def __post_init__(self) -> None:
        forgetting.half_life_seconds(self.half_life)


class PopularLearner:
    """The sums of each item, in the order of `item_hashes`."""

    def __init__(self, config: Popular, problem: Problem) -> None:
        self.half_life = forgetting.half_life_seconds(config.half_life)
        self.sums = empty(len(problem.objectives), self.half_life)

    def learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        ages, sums = forgetting.age(changes.times, self.half_life), self.sums
        index = forgetting.index_for(float(ages.max()), float(sums["index"][0]))
        sums = forgetting.shift(sums, ADDED, index - float(sums["index"][0])) | {"index": np.array([index])}
        w = changes.weights * np.exp2(ages - index)
        hashes, place = np.unique(changes.item_hashes, return_inverse=True)
        moved = w[:, None] * np.column_stack(
            [changes.present_after - changes.present_before, changes.rewards_after - changes.rewards_before]
        )
        added = np.stack([np.bincount(place, column, len(hashes)) for column in moved.T], axis=1)
        fresh = empty(moved.shape[1] - 1, self.half_life)
        self.sums = merge(
            [sums, fresh | {"item_hashes": hashes, "n": added[:, 0], "B": added[:, 1:], "index": sums["index"]}]
        )

    def arrays(self) -> Arrays:
        return dict(self.sums)

    def load(self, arrays: Arrays) -> None:
        self.sums = {name: value.copy() for name, value in arrays.items()}


def empty(objectives: int, half_life: float) -> Arrays:
    """Sums of nothing."""
    return {
        "item_hashes": np.zeros(0, np.uint64),
        "n": np.zeros(0),
        "B": np.zeros((0, objectives)),
        "index": np.zeros(1),
        "half_life": np.array([half_life]),
    }


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different half-lives."""
    if not parts:
        return {}
    if any(part["half_life"] != parts[0]["half_life"] for part in parts):
        raise ValueError("sums of different half-lives do not add")
    index = max(float(part["index"][0]) for part in parts)
    level = [forgetting.shift(part, ADDED, index - float(part["index"][0])) for part in parts]
    hashes = np.unique(np.concatenate([part["item_hashes"] for part in level]))
    n, B = np.zeros(len(hashes)), np.zeros((len(hashes), parts[0]["B"].shape[1]))
    for part in level:
        rows = np.searchsorted(hashes, part["item_hashes"])
        n[rows] += part["n"]
        B[rows] += part["B"]
    return {
        "item_hashes": hashes,
        "n": n,
        "B": B,
        "index": np.array([index]),
        "half_life": parts[0]["half_life"].copy(),
    }


def publish(config: Popular, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`table` (N + 1,) of scores, the last for the unseen, and `item_hashes` (N,). Raises Corrupt('nonfinite')."""
    half_life = forgetting.half_life_seconds(config.half_life)
    sums = sums or empty(len(problem.objectives), half_life)
    g = float(np.exp2(float(sums["index"][0]) - now / half_life))
    weights = np.array([problem.weights.get(name, 0.0) for name in problem.objectives])
    silence = weights @ np.array([objective.default for objective in problem.objectives.values()])
    n, b = g * np.asarray(sums["n"], float), g * (np.asarray(sums["B"], float) @ weights)
    mean = (b.sum() + config.prior * silence) / (n.sum() + config.prior)
    table = np.append((b + config.prior * mean) / (n + config.prior), mean)
    if not np.isfinite(table).all():
        raise Corrupt("nonfinite", "the sums are not finite")
    arrays: Arrays = {"table": table.astype(np.float32), "item_hashes": sums["item_hashes"].copy()}
    return Published(arrays, diagnostics={"examples": float(n.sum()), "items": float(len(n)), "mean": float(mean)})


def graph(config: Popular, problem: Problem) -> "ModelProto":
    nodes = [
        graphs.node("Gather", ["table", "item_rows"], "column"),  # −1 counts from the end
        graphs.node("Unsqueeze", ["column", "last"], "scores"),
    ]
    changing: Arrays = {"table": np.zeros(1, np.float32)}
    constants: Arrays = {"last": graphs.whole(1)}
    return graphs.model("popular", nodes, {"item_rows": ("n",)}, changing, {"table": ("rows",)}, constants)


def reference(config: Popular, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    table: F32 = arrays["table"].astype(np.float32)
    return table[inputs["item_rows"].astype(np.int64)][:, None]


ALGORITHM = Algorithm(
    name="popular",
    summary="each item by its own mean reward, with a floor of exploration",
    source="",
    config=Popular,
    graph=graph,
    learner=PopularLearner,
    merge=merge,
    publish=publish,
    reference=reference,
    inputs=("item_rows",),
    traits=frozenset({"merges", "learns"}),
)
