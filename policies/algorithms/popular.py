"""Popular: each item by its own mean reward, whatever the context, with a real probability behind it.

    score = (Σ w r + κ μ) / (Σ w + κ),  μ = (Σ_all w r + κ r₀) / (Σ_all w + κ),  κ = `prior`,  r₀ the reward of silence

State    per item Σ w and Σ w r of each objective, hashes sorted: sums of shards add by hash
Scores   (n, 1) out of a table by `item_rows`; an unseen item (row −1) reads the table's last row, μ
Learn    O(log N) an example
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from policies import forgetting, graphs, item_sums
from policies.algorithm import Addend, Algorithm, Config, Problem, Published
from policies.carrying import index_at, places, relevant, scaled
from policies.errors import Corrupt
from policies.item_sums import Hashes
from policies.types import F32, F64, I64, Arrays, Changes

if TYPE_CHECKING:
    from onnx import ModelProto

ADDED = ("n", "B")
Sums = dict[str, F64]  # ADDED, and `index`, `half_life` of `policies.forgetting`


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
    """The sums of each item, in the order of its sorted hashes."""

    def __init__(self, config: Popular, problem: Problem) -> None:
        self.half_life = forgetting.half_life_seconds(config.half_life)
        self.hashes, self.sums = np.zeros(0, np.uint64), empty(len(problem.objectives), self.half_life)

    def learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        ages = forgetting.age(changes.times, self.half_life)
        index = forgetting.index_for(float(ages.max()), float(self.sums["index"][0]))
        self.sums = forgetting.move(self.sums, ADDED, index)
        w, rows = changes.weights * np.exp2(ages - index), self._rows(changes.item_hashes)
        entered = w * (changes.present_after - changes.present_before)
        np.add.at(self.sums["n"], rows, entered)
        for o, change in enumerate((changes.rewards_after - changes.rewards_before).T):
            np.add.at(
                self.sums["B"][:, o], rows, w * change
            )  # a column at a time: all at once takes fifteen times as long

    def _rows(self, hashes: Hashes) -> I64:
        """Where each hash has its sums; those of new ones begin."""
        rows: I64 = np.searchsorted(self.hashes, hashes)
        new = self.hashes.take(rows, mode="clip") != hashes if len(self.hashes) else np.ones(len(hashes), bool)
        if new.any():
            held = {name: self.sums[name] for name in ADDED}
            table, self.hashes = item_sums.widened(held, self.hashes, hashes[new])
            self.sums = self.sums | table
            rows = np.searchsorted(self.hashes, hashes)
        return rows

    def arrays(self) -> Arrays:
        return {**self.sums, "item_hashes": self.hashes}

    def load(self, arrays: Arrays) -> None:
        self.hashes = arrays["item_hashes"].astype(np.uint64)
        self.sums = {name: value.copy() for name, value in sums_of(arrays).items()}


def sums_of(arrays: Mapping[str, NDArray[np.generic]]) -> Sums:
    """The numbers among named arrays, as float64."""
    return {name: np.asarray(arrays[name], np.float64) for name in (*ADDED, "index", "half_life")}


def empty(objectives: int, half_life: float) -> Sums:
    """Sums of nothing."""
    return {
        "n": np.zeros(0),
        "B": np.zeros((0, objectives)),
        "index": np.zeros(1),
        "half_life": np.array([half_life]),
    }


def spread_out(sums: Sums, hashes: Hashes, every: Hashes) -> Sums:
    """The sums in the rows of a larger sorted set of hashes."""
    return sums | item_sums.spread_out({name: sums[name] for name in ADDED}, hashes, every)


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different half-lives."""
    if not parts:
        return {}
    if any(part["half_life"] != parts[0]["half_life"] for part in parts):
        raise ValueError("sums of different half-lives do not add")
    each = [(sums_of(part), part["item_hashes"].astype(np.uint64)) for part in parts]
    index = max(float(sums["index"][0]) for sums, _ in each)
    level = [(forgetting.move(sums, ADDED, index), hashes) for sums, hashes in each]
    added, every = item_sums.added([({name: sums[name] for name in ADDED}, hashes) for sums, hashes in level])
    return {**added, "index": np.array([index]), "half_life": parts[0]["half_life"].copy(), "item_hashes": every}


def carry(config: Popular, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    """Own sums plus those of other versions, see `policies.carrying`. What an item is expected to earn where nobody knows
    is what `publish` would say."""
    half_life, every = forgetting.half_life_seconds(config.half_life), relevant(problem, addends)
    sources = [own, *(addend.arrays for addend in every)]
    kept = [list[int | None](range(len(problem.objectives))), *(places(addend.problem, problem) for addend in every)]
    hashes = [source["item_hashes"].astype(np.uint64) for source in sources]
    known = np.unique(np.concatenate(hashes))
    index = index_at(half_life, float(sums_of(own)["index"][0]), now)
    g = float(np.exp2(index - now / half_life))
    parts = []
    for source, mine, of in zip(sources, hashes, kept, strict=True):
        sums = scaled(spread_out(sums_of(source), mine, known), ADDED, half_life, index, now)
        sums["B"] = np.stack([np.zeros(len(known)) if at is None else sums["B"][:, at] for at in of], axis=1)
        parts.append(sums)
    for o, objective in enumerate(problem.objectives.values()):
        knowing = [sums for sums, of in zip(parts, kept, strict=True) if of[o] is not None]
        n, b = g * np.sum([sums["n"] for sums in knowing], axis=0), g * np.sum([s["B"][:, o] for s in knowing], axis=0)
        mean = (b.sum() + config.prior * objective.default) / (n.sum() + config.prior)
        for sums, of in zip(parts, kept, strict=True):
            if of[o] is None:
                sums["B"][:, o] = sums["n"] * (b + config.prior * mean) / (n + config.prior)
    added: Arrays = {name: np.sum([sums[name] for sums in parts], axis=0) for name in ADDED}
    return added | {name: parts[0][name] for name in ("index", "half_life")} | {"item_hashes": known}


def publish(config: Popular, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`table` (N + 1,) of scores, the last for the unseen, and `item_hashes` (N,). Raises Corrupt('nonfinite')."""
    half_life = forgetting.half_life_seconds(config.half_life)
    held = sums_of(sums) if sums else empty(len(problem.objectives), half_life)
    g = float(np.exp2(float(held["index"][0]) - now / half_life))
    weights = np.array([problem.weights.get(name, 0.0) for name in problem.objectives])
    silence = weights @ np.array([objective.default for objective in problem.objectives.values()])
    n, b = g * held["n"], g * (held["B"] @ weights)
    mean = (b.sum() + config.prior * silence) / (n.sum() + config.prior)
    table = np.append((b + config.prior * mean) / (n + config.prior), mean)
    if not np.isfinite(table).all():
        raise Corrupt("nonfinite", "the sums are not finite")
    arrays: Arrays = {
        "table": table.astype(np.float32),
        "item_hashes": sums["item_hashes"].copy() if sums else np.zeros(0, np.uint64),
    }
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
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("item_rows",),
    traits=frozenset({"merges", "learns", "corrects", "predicts"}),
)
