"""Bootstrapped Thompson sampling: ridge models of resampled evidence instead of draws from one model's posterior.

    S_k = Σ w v_k φφᵀ,  B_k = Σ w v_k φrᵀ,  v_k ~ Poisson(1) for each decision and replicate k
    θ_j = (Λ + gS_k)⁻¹ (gB_k + Λ θ₀_j),  θ₀_j ~ N(0, Ψ Λ⁻¹),  j = 1..m, k = j mod K

State    S, B, Y, n of `policies.ridge`, and beside them S_k, B_k of K replicates: shards add, corrections subtract
Scores   (n, m): m replicates times n candidates, in slot 0. O(m n d)
Learn    O(K D²) an example

v_k is a function of the decision's time and context and of k, by a hash: a correction, a second shard or a replay of the log
resamples a decision as its first reading did. Its slots share one v_k, for they are not independent of each other. Resampling
alone knows only noise that was seen: where nothing was clicked all replicates agree. So every column pulls towards a draw
of its own from the prior, which evidence outweighs (Osband et al. 2018). Ψ and λ are those of the model of all evidence.

Source   Eckles & Kaptein 2014 (arXiv 1410.4009); Osband, Aslanides, Cassirer, NeurIPS 2018 (arXiv 1806.03335)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from policies import forgetting, linear_graph, ridge_carrying
from policies.algorithm import Addend, Algorithm, Problem, Published
from policies.linear_graph import chosen
from policies.ridge import ADDED, RidgeLearner, blocks, gram, merged, phi
from policies.ridge_fitting import RidgeOptions, fit
from policies.ridge_posterior import BASE
from policies.types import F32, F64, Arrays, Changes

if TYPE_CHECKING:
    from onnx import ModelProto

RESAMPLED = ("replicate_S", "replicate_B")
CHANCES: F64 = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 18)]))  # Poisson(1) up to 17: the rest is below 2⁻⁵³
# SplitMix64's
GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Bootstrap(RidgeOptions, frozen=True):
    """Options, besides those of every ridge model.

    replicates   K: how many resampled models are kept, each as large as linear_thompson's
    """

    replicates: Annotated[int, Meta(ge=2, le=256)] = 16


class BootstrapLearner:
    """The sums of one problem: all evidence, and resampled. `arrays` gives them as they are."""

    def __init__(self, config: Bootstrap, problem: Problem) -> None:
        self.problem = problem
        self.ridge = RidgeLearner(problem, forgetting.half_life_seconds(config.half_life))
        D, o = len(self.ridge.columns), len(problem.objectives)
        self.sums = {
            "replicate_S": np.zeros((config.replicates, D, D)),
            "replicate_B": np.zeros((config.replicates, D, o)),
            "index": np.zeros(1),
        }

    def learn(self, changes: Changes) -> None:
        self.ridge.learn(changes)
        index = float(self.ridge.sums["index"][0])
        self.sums = forgetting.move(self.sums, RESAMPLED, index)
        S, B = self.sums["replicate_S"], self.sums["replicate_B"]
        for block in blocks(changes):
            x = phi(self.problem, block.context, block.items, block.slots)
            w = block.weights * np.exp2(forgetting.age(block.times, self.ridge.half_life) - index)
            entered, moved = (
                w * (block.present_after - block.present_before),
                block.rewards_after - block.rewards_before,
            )
            room, changed = np.empty_like(x), np.flatnonzero(moved.any(axis=1))
            for k, v in enumerate(resampled(block, len(S)).T):
                S[k] += gram(x, entered * v, room)
                B[k] += x[changed].T @ ((w * v)[changed, None] * moved[changed])

    def arrays(self) -> Arrays:
        return self.ridge.arrays() | {name: self.sums[name] for name in RESAMPLED}

    def load(self, arrays: Arrays) -> None:
        """Take over sums. Raises ValueError when they are of other columns or replicates: those are addends of a publish."""
        if arrays["replicate_S"].shape[0] != len(self.sums["replicate_S"]):
            raise ValueError(f"sums of {len(arrays['replicate_S'])} replicates, not {len(self.sums['replicate_S'])}")
        self.ridge.load(arrays)
        self.sums = {name: np.array(arrays[name], np.float64) for name in (*RESAMPLED, "index")}


def resampled(changes: Changes, replicates: int) -> F64:
    """Poisson(1) counts (N, K), each a function of the row's decision time and context, and of its replicate."""
    bits = np.ascontiguousarray(changes.context).view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2⁶⁴ is meant
        each = _mixed(np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * GOLDEN) | np.uint64(1)
        key = _mixed(np.ascontiguousarray(changes.times).view(np.uint64) ^ (bits * each).sum(axis=1, dtype=np.uint64))
        hashed = _mixed(key[:, None] + np.arange(1, replicates + 1, dtype=np.uint64) * GOLDEN)
    uniform = (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(CHANCES, uniform, side="right").astype(np.float64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer: every bit of x changes half of the result's."""
    x = (x ^ (x >> np.uint64(30))) * FIRST
    x = (x ^ (x >> np.uint64(27))) * SECOND
    return x ^ (x >> np.uint64(31))


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different columns, half-lives or replicates."""
    if len({part["replicate_S"].shape[0] for part in parts}) > 1:
        raise ValueError("sums of different replicates do not add")
    return merged(parts, (*ADDED, *RESAMPLED))


def carry(config: Bootstrap, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    """Every replicate is carried like the ridge model it is; one of another number of replicates by those it has, in turn."""
    made = ridge_carrying.carry(problem, own, addends, now)
    each = [
        ridge_carrying.carry(
            problem, _replicate(own, k), [Addend(a.problem, _replicate(a.arrays, k)) for a in addends], now
        )
        for k in range(config.replicates)
    ]
    return made | {
        "replicate_S": np.stack([one["S"] for one in each]),
        "replicate_B": np.stack([one["B"] for one in each]),
    }


def _replicate(arrays: Arrays, k: int) -> Arrays:
    """Replicate k as ridge sums."""
    place = k % len(arrays["replicate_S"])
    return arrays | {"S": arrays["replicate_S"][place], "B": arrays["replicate_B"][place]}


def publish(config: Bootstrap, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """Columns θ_j in the arrays of `policies.linear_graph`. Raises Corrupt('nonfinite')."""
    model = fit(config, problem, sums, now)
    own, m, K = chosen(problem), config.draws, config.replicates
    prior = float(np.exp2(model.shares @ np.log2(model.posterior.grid)))
    precision = np.where(model.posterior.effect, prior, BASE)
    noise = np.einsum("l,lij->ij", model.shares, model.posterior.noise)
    values, vectors = np.linalg.eigh(noise)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    z = np.random.default_rng(seed).standard_normal((m, len(precision), len(own)))
    pulled = np.sqrt(precision)[:, None] * (z @ root)  # Λ θ₀ (m, D, o)
    theta = np.empty((len(own), len(precision), m))
    for k in range(min(K, m)):
        columns_of = np.arange(k, m, K)
        A, b = np.diag(precision), pulled[columns_of]
        if sums:
            A = A + model.g * np.asarray(sums["replicate_S"][k], float)
            b = b + model.g * np.asarray(sums["replicate_B"][k], float)[:, own]
        solved = np.linalg.solve(A, b.transpose(1, 0, 2).reshape(len(A), -1))
        theta[:, :, columns_of] = solved.reshape(len(A), len(columns_of), -1).transpose(2, 0, 1)
    return model.published(theta)


def graph(config: Bootstrap, problem: Problem) -> "ModelProto":
    return linear_graph.graph("bootstrap", problem, config.draws)


def reference(config: Bootstrap, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    return linear_graph.reference(problem, arrays, inputs).astype(np.float32)


ALGORITHM = Algorithm(
    name="bootstrap",
    summary="Thompson sampling on ridge models of resampled evidence",
    source="Eckles & Kaptein 2014",
    config=Bootstrap,
    graph=graph,
    learner=BootstrapLearner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    shaping=("replicates",),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "uses_draws", "predicts"}),
)
