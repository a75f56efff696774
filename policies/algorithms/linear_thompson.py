"""Linear Thompson sampling with one shared ridge model a surface.

    r = θᵀφ + e,  φ = [1, context, slot one-hot | items, crosses],  e ~ N(0, σ²),  θ ~ N(0, σ²/λ) right of the bar, N(0, σ²) left
    A = Λ + gS,  Θ = A⁻¹gB,  Ψ = (2β₀ + g(Y − BᵀΘ)) / (2α₀ + gn),  draws Θ + A^(−½) Z Ψ^(½),  g = 2^(index − now/H)

State    S, B, Y, n of `policies.ridge`, without the prior: shards add, corrections subtract
Scores   (n, m): m posterior draws times n candidates, in slot 0, so position is not read as quality. O(m n d)
Learn    O(D²) an example

λ is not set but inferred: a grid of nine powers of four, weighed by their evidence (D/2 log λ − ½ log∣A∣ − (α₀ + n/2) log β_n, up to
constants, uniform over log λ), and every λ gets its share of the draws. So rare clicks widen the prior's hold instead of
making the first lucky item a winner. α₀ = 1, and β₀ = (span/2)² of the objective's range (1 where it has none), the largest
variance a reward in that range can have: rewards that all happen to be zero do not make σ zero.

Source   Agrawal & Goyal, ICML 2013 (sampling); Bishop, Pattern Recognition and Machine Learning, 2006, 3.5 (evidence)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from msgspec import Meta

from policies import forgetting, graphs, ridge_carrying
from policies.algorithm import Addend, Algorithm, Config, Problem, Published
from policies.errors import Corrupt
from policies.features import Encoder, crossed
from policies.ridge import RidgeLearner, Sums, columns, effects, empty, merge, sums_of
from policies.types import F32, F64, I64, Arrays, Mask

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

GRID: F64 = np.exp2(
    np.arange(-6.0, 11.0, 2.0)
)  # λ from effects 8 times the noise (nearly noiseless) to 1/32 of it (rare clicks)
BASE = 1.0  # precision of the columns left of the bar: one observation's worth
ALPHA = 1.0
CALM = 10  # slates without correlation that ρ̂ is shrunk towards


class LinearThompson(Config, frozen=True):
    """Options.

    half_life  duration after which an example counts half, by the time of its decision; nothing is forgotten by default
    prior      λ when it is to be fixed instead of inferred
    spread     multiplies the posterior's standard deviation; 1 is Thompson sampling by the book. 0.7 halves the variance, the
               reshaping with α = 0.5 of Chapelle & Li, NeurIPS 2011: less regret at every finite horizon they tried
    """

    half_life: str | float | None = None
    prior: Annotated[float, Meta(gt=0)] | None = None
    spread: Annotated[float, Meta(ge=0)] = 0.7

    def __post_init__(self) -> None:
        forgetting.half_life_seconds(self.half_life)


def learner(config: LinearThompson, problem: Problem) -> RidgeLearner:
    return RidgeLearner(problem, forgetting.half_life_seconds(config.half_life))


def carry(config: LinearThompson, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    return ridge_carrying.carry(problem, own, addends, now)


def chosen(problem: Problem) -> list[int]:
    """Objectives the policy weighs, by their place in the surface's order. Sums are kept of all."""
    return [i for i, name in enumerate(problem.objectives) if name in problem.weights]


def publish(config: LinearThompson, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`base` (1 + c, m), `pool` (d, m), `crosses` (u, J, m): of the weighted reward when the policy has one objective, else
    (o, …) of each one's. All three describe slot 0.

    A semi-definite S that rounding pushed below zero needs no jitter: its eigenvalues are set to what they must be at least.
    Raises Corrupt('nonfinite').
    """
    names, half_life = columns(problem), forgetting.half_life_seconds(config.half_life)
    held = sums_of(sums) if sums else empty(len(names), len(problem.objectives), half_life)
    g = float(np.exp2(float(held["index"][0]) - now / half_life))
    S, B, Y, n = (g * held[name] for name in ("S", "B", "Y", "n"))
    if not all(np.isfinite(s).all() for s in (S, B, Y, n)):
        raise Corrupt("nonfinite", "the sums are not finite")
    own, weights = chosen(problem), np.array(list(problem.weights.values()))
    spans = [1.0 if o.range is None else o.range[1] - o.range[0] for o in problem.objectives.values()]
    beta = np.diag([(spans[i] / 2) ** 2 for i in own])
    grid = GRID if config.prior is None else np.array([config.prior])
    posterior = Posterior(S, B[:, own], Y[np.ix_(own, own)], float(n[0]), effects(names), beta, grid)
    shares = posterior.shares(weights)
    theta = posterior.draw(shares, config.draws, config.spread, np.random.default_rng(seed))  # (o, D, m)

    mean = np.tensordot(weights, theta, 1).mean(axis=1)
    rho = _correlation(mean, weights, own, held, problem.slots)
    c, d, crosses = problem.encoder.context_size, problem.encoder.item_size, folded(problem.encoder)
    effect = theta[:, effects(names)]
    parts = {
        "base": theta[:, : 1 + c],
        "pool": effect[:, :d],
        "crosses": np.zeros((len(own), *crosses.context.shape, config.draws)),
    }
    parts["crosses"][:, *crosses.place.T] = effect[:, d:]
    if problem.slots > 1:
        parts["base"][:, 0] += theta[:, 1 + c]  # slot 0
    if len(own) == 1:
        parts = {name: weights[0] * part[0] for name, part in parts.items()}
    arrays: Arrays = {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items() if part.size}
    sigma = float(np.sqrt(np.einsum("l,i,lij,j->", shares, weights, posterior.noise, weights)))
    diagnostics = {"sigma": sigma, "examples": float(n[0]), "rho": rho, "prior": float(np.exp2(shares @ np.log2(grid)))}
    return Published(arrays, 1 / (1 + (problem.slots - 1) * rho), diagnostics)


class Posterior:
    """The posterior for every λ of a grid, for the price of one eigendecomposition of the effects' share of S.

    With b the columns left of the bar and e those right of it: T = S_ee − S_eb(S_bb + I)⁻¹S_be = QEQᵀ, so for any λ the
    effects have precision Q(E + λ)Qᵀ, and the rest is normal given the effects with a covariance that knows no λ. All square
    roots are the symmetric ones: eigenvectors jump at a rounding, these do not, so equal evidence gives equal draws.
    """

    def __init__(self, S: F64, B: F64, Y: F64, n: float, effect: Mask, beta: F64, grid: F64) -> None:
        self.effect, self.grid, self.alpha = effect, grid, ALPHA + n / 2
        e, b = np.flatnonzero(effect), np.flatnonzero(~effect)
        values, vectors = np.linalg.eigh(S[np.ix_(b, b)])
        self.base_root = (vectors / np.sqrt(np.maximum(values, 0) + BASE)) @ vectors.T  # (S_bb + I)⁻¹ = root root
        half = self.base_root @ S[np.ix_(b, e)]
        self.base_pull, self.base_B = self.base_root @ half, self.base_root @ (self.base_root @ B[b])
        values, self.Q = np.linalg.eigh(S[np.ix_(e, e)] - half.T @ half)
        self.precision = np.maximum(values, 0) + grid[:, None]  # (l, e)
        self.rotated = self.Q.T @ (B[e] - half.T @ (self.base_root @ B[b]))
        left = Y - B[b].T @ self.base_B
        explained = np.einsum("ei,le,ej->lij", self.rotated, 1 / self.precision, self.rotated)
        values, vectors = np.linalg.eigh(left - explained)
        residual = np.einsum("lij,lj,lkj->lik", vectors, np.maximum(values, 0), vectors)
        self.scatter = 2 * beta + residual
        self.noise = self.scatter / (2 * self.alpha)  # Ψ (l, o, o)

    def shares(self, weights: F64) -> F64:
        """Posterior probability of each λ (l,), by the evidence of the weighted reward."""
        scatter = np.maximum(np.einsum("i,lij,j->l", weights, self.scatter, weights), np.finfo(float).tiny)
        evidence = (np.log(self.grid[:, None]) - np.log(self.precision)).sum(axis=1) / 2 - self.alpha * np.log(scatter)
        likelihood = np.exp(evidence - evidence.max())
        return np.asarray(likelihood / likelihood.sum())

    def draw(self, shares: F64, m: int, spread: float, rng: np.random.Generator) -> F64:
        """θ (o, D, m). Draws come in opposite pairs of one λ, so that their mean is the posterior's; λ by quantiles of its share."""
        pairs, o, d = -(-m // 2), self.noise.shape[1], len(self.effect)
        drawn = np.searchsorted(np.cumsum(shares), (np.arange(pairs) + 0.5) / pairs * shares.sum())
        drawn = np.minimum(drawn, len(shares) - 1)
        values, vectors = np.linalg.eigh(self.noise)
        roots = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ vectors.transpose(0, 2, 1)  # Ψ = root root
        z = spread * np.einsum("pdi,pji->jdp", rng.standard_normal((pairs, d, o)), roots[drawn])  # (o, D, p)
        z = np.concatenate([z, -z], axis=2)[:, :, :m]
        precision = self.precision[np.concatenate([drawn, drawn])[:m]].T  # (e, m)
        theta = np.empty((o, d, m))
        turned = self.Q.T @ z[:, self.effect]
        of_effects = self.Q @ (self.rotated.T[:, :, None] / precision + turned / np.sqrt(precision))
        theta[:, self.effect] = of_effects
        theta[:, ~self.effect] = (
            self.base_B.T[:, :, None] - self.base_pull @ of_effects + self.base_root @ z[:, ~self.effect]
        )
        return theta


def _correlation(theta: F64, weights: F64, own: Sequence[int], sums: Sums, slots: int) -> float:
    """ρ̂: mean product of two residuals of one slate over their variance, shrunk towards 0 and kept in [0, 1]."""

    def squares(S: str, B: str, Y: str) -> float:
        """Σ w (r − θᵀφ)², over slots or over slate totals."""
        y, b = weights @ sums[Y][np.ix_(own, own)] @ weights, sums[B][:, own] @ weights
        return float(y - 2 * theta @ b + theta @ sums[S] @ theta)

    n, each = float(sums["n"][0]), squares("S", "B", "Y")
    if slots == 1 or n <= 0 or each <= 0:
        return 0.0
    calm = CALM * slots * (slots - 1) * n / (n + 1)  # nothing learned counts for nothing
    together = squares("slate_S", "slate_B", "slate_Y") - each
    return float(np.clip(together * n / (each * (float(sums["pairs"][0]) + calm)), 0, 1))


class Crosses(NamedTuple):
    """The crosses by the item column they multiply: u such columns, each with up to J of the context's.

    So a request sums J context values times weights for each of u columns and multiplies items once, instead of forming
    n × x products: 320 crosses of 100 candidates under 256 draws took 70 µs instead of 450.

    columns (u,)   item columns that have crosses
    context (u, J) context columns of each, c (a zero) where it has fewer
    place (x, 2)   where cross column j is in (u, J)
    """

    columns: I64
    context: I64
    place: I64


def folded(encoder: Encoder) -> Crosses:
    of_context, of_item = encoder.cross
    item_columns, group = np.unique(of_item, return_inverse=True)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=len(item_columns))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    context = np.full((len(item_columns), int(sizes.max(initial=0))), encoder.context_size)
    context[group, rank] = of_context
    return Crosses(item_columns, context, np.column_stack([group, rank]))


def graph(config: LinearThompson, problem: Problem) -> "ModelProto":
    encoder, objectives = problem.encoder, len(chosen(problem))
    c, d, m = encoder.context_size, encoder.item_size, config.draws
    crosses = folded(encoder)
    shapes = {"base": (1 + c, m), "pool": (d, m), "crosses": (*crosses.context.shape, m)}
    shapes = {name: shape for name, shape in shapes.items() if shape[0]}
    changing: Arrays = {
        name: np.zeros(shape if objectives == 1 else (objectives, *shape), np.float32) for name, shape in shapes.items()
    }
    inputs: dict[str, graphs.Shape] = {"items": ("n", d)}
    constants: Arrays = {}
    nodes: list[NodeProto] = []

    def add(kind: str, sources: list[str], output: str, **attributes: object) -> str:
        nodes.append(graphs.node(kind, sources, output, **attributes))
        return output

    held = {name: name for name in changing}
    if objectives > 1:
        inputs["weights"] = (objectives,)
        constants["flat"] = graphs.whole(objectives, -1)
        for name, shape in shapes.items():
            constants[f"{name}_shape"] = graphs.whole(*shape)
            row = add("MatMul", ["weights", add("Reshape", [name, "flat"], f"{name}_flat")], f"{name}_row")
            held[name] = add("Reshape", [row, f"{name}_shape"], f"{name}_weighted")
    bias = held["base"]
    if c:
        inputs["context"] = (c,)
        constants["one"] = np.ones(1, np.float32)
        bias = add("MatMul", [add("Concat", ["one", "context"], "situation", axis=0), bias], "bias")
    if not d:
        constants["draws"] = graphs.whole(m)
        whole = add("Concat", [add("Shape", ["items"], "n", start=0, end=1), "draws"], "shape", axis=0)
        add("Expand", [bias, whole], "scores")
        return graphs.model("linear_thompson", nodes, inputs, changing, constants=constants)
    effect = held["pool"]
    if len(crosses.columns):
        constants |= {
            "zero": np.zeros(1, np.float32),
            "of_context": crosses.context[:, None, :],
            "of_item": crosses.columns[:, None],
            "rows": graphs.whole(-1, m),
        }
        values = add("Gather", [add("Concat", ["context", "zero"], "padded", axis=0), "of_context"], "values")
        change = add("Reshape", [add("MatMul", [values, held["crosses"]], "summed"), "rows"], "change")
        effect = add("ScatterND", [effect, "of_item", change], "effect", reduction="add")
    add("Gemm", ["items", effect, bias], "scores")
    return graphs.model("linear_thompson", nodes, inputs, changing, constants=constants)


def reference(config: LinearThompson, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    """Word for word the model: weighted θ, times φ with every cross written out."""
    context = np.asarray(inputs.get("context", np.zeros(0)), float)
    theta = {name: np.asarray(arrays[name], float) for name in arrays}
    if len(chosen(problem)) > 1:
        theta = {name: np.tensordot(inputs["weights"].astype(float), array, 1) for name, array in theta.items()}
    scores = np.broadcast_to(np.concatenate([[1.0], context]) @ theta["base"], (len(inputs["items"]), config.draws))
    if "pool" in theta:
        scores = scores + inputs["items"].astype(float) @ theta["pool"]
    if "crosses" in theta:
        group, rank = folded(problem.encoder).place.T
        scores = (
            scores + crossed(problem.encoder, context, inputs["items"].astype(float)) @ theta["crosses"][group, rank]
        )
    return scores.astype(np.float32)


ALGORITHM = Algorithm(
    name="linear_thompson",
    summary="Thompson sampling on one shared linear model of features, crosses and slots",
    source="Agrawal & Goyal, ICML 2013",
    config=LinearThompson,
    graph=graph,
    learner=learner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "contextual", "uses_draws"}),
)
