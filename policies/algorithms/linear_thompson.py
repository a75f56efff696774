"""Linear Thompson sampling with one shared ridge model a surface.

    r = θᵀφ + e,  φ = [1, context, slot one-hot | items, crosses],  e ~ N(0, σ²),  θ ~ N(0, σ²/λ) right of the bar, N(0, σ²) left
    A = Λ + gS,  Θ = A⁻¹gB,  Ψ = (2β₀ + g(Y − BᵀΘ)) / (2α₀ + gn),  draws Θ + A^(−½) Z Ψ^(½),  g = 2^(index − now/H)

State    S = Σ w φφᵀ (D, D), B = Σ w φrᵀ (D, o), Y = Σ w rrᵀ (o, o), n = Σ w and the same over slate totals: the prior is
         never in them, so shards add, corrections subtract, and weights between objectives change without relearning
Scores   (n, m): m posterior draws times n candidates, in slot 0, so position is not read as quality. O(m n d)
Learn    O(D²) an example, one block of BLAS calls a batch

The context's own columns change no ranking. They take up what a context does to every item, which items shown mostly to
generous contexts would otherwise be credited with.

λ is not set but inferred: a grid of nine powers of four, weighed by their evidence (D/2 log λ − ½ log∣A∣ − (α₀ + n/2) log β_n, up to
constants, uniform over log λ), and every λ gets its share of the draws. So rare clicks widen the prior's hold instead of
making the first lucky item a winner. α₀ = 1, and β₀ = (span/2)² of the objective's range (1 where it has none), the largest
variance a reward in that range can have: rewards that all happen to be zero do not make σ zero.

Source   Agrawal & Goyal, ICML 2013 (sampling); Bishop, Pattern Recognition and Machine Learning, 2006, 3.5 (evidence)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta

from policies import forgetting, graphs
from policies.algorithm import Algorithm, Config, Problem, Published
from policies.errors import Corrupt
from policies.types import F32, F64, I64, Arrays, Changes, Mask

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

GRID = 4.0 ** np.arange(-3, 6)  # λ from effects 8 times the noise (nearly noiseless) to 1/32 of it (rare clicks)
BASE = 1.0  # precision of the columns left of the bar: one observation's worth
ALPHA = 1.0
CALM = 10  # slates without correlation that ρ̂ is shrunk towards
ADDED = ("S", "B", "Y", "n", "slate_S", "slate_B", "slate_Y", "pairs")


class LinearThompson(Config, frozen=True):
    """Options.

    half_life  duration after which an example counts half, by the time of its decision; nothing is forgotten by default
    prior      λ when it is to be fixed instead of inferred
    spread     multiplies the posterior's standard deviation; 1 is Thompson sampling
    """

    half_life: str | float | None = None
    prior: Annotated[float, Meta(gt=0)] | None = None
    spread: Annotated[float, Meta(ge=0)] = 1.0

    def __post_init__(self) -> None:
        forgetting.half_life_seconds(self.half_life)


def columns(problem: Problem) -> list[str]:
    """Names of φ's columns; sums carry them, so that another schema's sums are aligned by name."""
    encoder = problem.encoder
    return [
        "1",
        *(f"context.{name}" for name in encoder.context_names),
        *(f"slot.{t}" for t in range(problem.slots) if problem.slots > 1),  # one slot is the intercept
        *(f"item.{name}" for name in encoder.item_names),
        *(f"cross.{name}" for name in encoder.cross_names),
    ]


def effects(names: Sequence[str]) -> Mask:
    """Which columns can change a ranking (D,): their precision is λ."""
    return np.array([name.startswith(("item.", "cross.")) for name in names])


def phi(problem: Problem, context: F32, items: F32, slots: I64) -> F64:
    """φ (N, D) of N examples."""
    encoder = problem.encoder
    c, d, k = encoder.context_size, encoder.item_size, problem.slots if problem.slots > 1 else 0
    of_context, of_item = encoder.cross
    x = np.empty((len(items), 1 + c + k + d + len(of_item)))
    x[:, 0] = 1
    x[:, 1 : 1 + c] = context
    x[:, 1 + c : 1 + c + k] = slots[:, None] == np.arange(k)
    x[:, 1 + c + k : 1 + c + k + d] = items
    if len(of_item):
        np.multiply(context[:, of_context], items[:, of_item], out=x[:, 1 + c + k + d :])
    return x


class LinearThompsonLearner:
    """The sums. `arrays` gives them as they are: copy what must not move."""

    def __init__(self, config: LinearThompson, problem: Problem) -> None:
        names = columns(problem)
        self.problem, self.half_life = problem, forgetting.half_life_seconds(config.half_life)
        self.sums = empty(names, len(problem.objectives), self.half_life)

    def learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        ages = forgetting.age(changes.times, self.half_life)
        sums = self.sums
        index = forgetting.index_for(float(ages.max()), float(sums["index"][0]))
        if index != sums["index"][0]:
            sums.update(forgetting.shift(sums, ADDED, index - float(sums["index"][0])))
            sums["index"] = np.array([index])
        w = changes.weights * np.exp2(ages - index)
        x = phi(self.problem, changes.context, changes.items, changes.slots)
        before, after = changes.present_before, changes.present_after
        first, last = changes.rewards_before, changes.rewards_after
        entered = w * (after - before)
        sums["S"] += _gram(x, entered)
        sums["B"] += x.T @ (w[:, None] * (last - first))
        sums["Y"] += last.T @ (w[:, None] * last) - first.T @ (w[:, None] * first)
        sums["n"] += entered.sum()
        self._learn_slates(x, np.sqrt(w), changes)

    def _learn_slates(self, x: F64, root: F64, changes: Changes) -> None:
        """Sums over slate totals: what they exceed the sums over slots by is the correlation inside slates."""
        if self.problem.slots == 1:
            return
        starts = np.flatnonzero(np.diff(changes.slates, prepend=changes.slates[0] - 1))
        known = np.add.reduceat(changes.present_before, starts) > 0
        rows = np.repeat(known, np.diff(starts, append=len(x)))
        self._add_slates(x, root * changes.present_after, root[:, None] * changes.rewards_after, starts, 1.0)
        if known.any():  # seldom: corrections of slates learned in an earlier batch
            old = np.flatnonzero(np.diff(changes.slates[rows], prepend=-1))
            self._add_slates(
                x[rows],
                (root * changes.present_before)[rows],
                (root[:, None] * changes.rewards_before)[rows],
                old,
                -1.0,
            )

    def _add_slates(self, x: F64, root: F64, reward: F64, starts: I64, sign: float) -> None:
        size = len(x) // len(starts)
        if len(x) == size * len(starts) and np.array_equal(starts, np.arange(0, len(x), size)):
            total = np.matmul(root.reshape(-1, 1, size), x.reshape(-1, size, x.shape[1]))[:, 0]
        else:
            total = np.add.reduceat(root[:, None] * x, starts)
        rewards, roots = np.add.reduceat(reward, starts), np.add.reduceat(root, starts)
        sums = self.sums
        sums["slate_S"] += sign * (total.T @ total)
        sums["slate_B"] += sign * (total.T @ rewards)
        sums["slate_Y"] += sign * (rewards.T @ rewards)
        sums["pairs"] += sign * float(roots @ roots - root @ root)

    def arrays(self) -> Arrays:
        return dict(self.sums)

    def load(self, arrays: Arrays) -> None:
        """Take over sums; those of another schema are aligned by column name."""
        names = [str(name) for name in arrays["columns"]]
        mine = columns(self.problem)
        self.sums = {
            name: value.copy() for name, value in (arrays if names == mine else align(arrays, names, mine)).items()
        }


def _gram(x: F64, w: F64) -> F64:
    """Σ w φφᵀ. Rows of weight zero (rewards that changed) cost nothing; when no weight is negative, half the work."""
    moved = w != 0
    if not moved.all():
        x, w = x[moved], w[moved]
    if len(w) and w.min() > 0:
        scaled = x * np.sqrt(w)[:, None]
        return scaled.T @ scaled
    return x.T @ (x * w[:, None])


def empty(names: Sequence[str], objectives: int, half_life: float) -> Arrays:
    """Sums of nothing."""
    d, o = len(names), objectives
    return {
        "S": np.zeros((d, d)),
        "B": np.zeros((d, o)),
        "Y": np.zeros((o, o)),
        "n": np.zeros(1),
        "slate_S": np.zeros((d, d)),
        "slate_B": np.zeros((d, o)),
        "slate_Y": np.zeros((o, o)),
        "pairs": np.zeros(1),
        "index": np.zeros(1),
        "half_life": np.array([half_life]),
        "columns": np.array(names),
    }


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different columns or half-lives."""
    if not parts:
        return {}
    if any(
        not np.array_equal(p["columns"], parts[0]["columns"]) or p["half_life"] != parts[0]["half_life"] for p in parts
    ):
        raise ValueError("sums of different columns or half-lives do not add; align them first")
    index = max(float(part["index"][0]) for part in parts)
    level = [forgetting.shift(part, ADDED, index - float(part["index"][0])) for part in parts]
    added = {name: np.sum([part[name] for part in level], axis=0) for name in ADDED}
    return added | {
        "index": np.array([index]),
        "half_life": parts[0]["half_life"].copy(),
        "columns": parts[0]["columns"].copy(),
    }


def align(arrays: Arrays, from_names: Sequence[str], to_names: Sequence[str]) -> Arrays:
    """The sums under another schema: a new column starts with nothing known, a removed one is marginalised out.

    The second needs a prior (precision 1 at the sums' own reference time), so it is no longer additive.
    """
    place = {name: i for i, name in enumerate(from_names)}
    kept = [i for i, name in enumerate(to_names) if name in place]
    old = np.array([place[to_names[i]] for i in kept], np.int64)
    gone = np.array([i for i, name in enumerate(from_names) if name not in set(to_names)], np.int64)
    o = arrays["Y"].shape[0]
    made = empty(to_names, o, float(arrays["half_life"][0]))
    S, B, Y = np.asarray(arrays["S"], float), np.asarray(arrays["B"], float), np.asarray(arrays["Y"], float)
    at = np.ix_(kept, kept)
    made["S"][at], made["B"][kept], made["Y"] = S[np.ix_(old, old)], B[old], Y.copy()
    if len(gone):
        precision = S[np.ix_(gone, gone)] + BASE * np.eye(len(gone))
        solved = np.linalg.solve(precision, np.hstack([S[np.ix_(gone, old)], B[gone]]))
        made["S"][at] -= S[np.ix_(old, gone)] @ solved[:, : len(old)]
        made["B"][kept] -= S[np.ix_(old, gone)] @ solved[:, len(old) :]
        made["Y"] -= B[gone].T @ solved[:, len(old) :]
    made["slate_S"][at], made["slate_B"][kept] = arrays["slate_S"][np.ix_(old, old)], arrays["slate_B"][old]
    for name in ("slate_Y", "n", "pairs", "index"):
        made[name] = arrays[name].copy()
    return made


def chosen(problem: Problem) -> list[int]:
    """Objectives the policy weighs, by their place in the surface's order. Sums are kept of all."""
    return [i for i, name in enumerate(problem.objectives) if name in problem.weights]


def publish(config: LinearThompson, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`base` (1 + c, m) and `pool` (d + x, m), weighted, or (o, …) unweighted when the policy has several objectives.

    A semi-definite S that rounding pushed below zero needs no jitter: its eigenvalues are set to what they must be at least.
    Raises Corrupt('nonfinite').
    """
    names, half_life = columns(problem), forgetting.half_life_seconds(config.half_life)
    sums = sums or empty(names, len(problem.objectives), half_life)
    g = float(np.exp2(float(sums["index"][0]) - now / half_life))
    S, B, Y, n = (g * np.asarray(sums[name], float) for name in ("S", "B", "Y", "n"))
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
    rho = _correlation(mean, weights, own, sums, problem.slots)
    c = problem.encoder.context_size
    base = theta[:, : 1 + c]
    if problem.slots > 1:
        base[:, 0] += theta[:, 1 + c]  # slot 0
    pool = theta[:, effects(names)]
    if len(own) == 1:
        base, pool = weights[0] * base[0], weights[0] * pool[0]
    arrays: Arrays = {"base": np.ascontiguousarray(base, np.float32)}
    if pool.size:
        arrays["pool"] = np.ascontiguousarray(pool, np.float32)
    sigma = float(np.sqrt(np.einsum("l,i,lij,j->", shares, weights, posterior.noise, weights)))
    diagnostics = {"sigma": sigma, "examples": float(n[0]), "rho": rho, "prior": float(np.exp2(shares @ np.log2(grid)))}
    return Published(arrays, 1 / (1 + (problem.slots - 1) * rho), diagnostics)


class Posterior:
    """The posterior for every λ of a grid, for the price of one eigendecomposition of the effects' share of S.

    With b the columns left of the bar and e those right of it: T = S_ee − S_eb(S_bb + I)⁻¹S_be = QEQᵀ, so for any λ the
    effects have precision Q(E + λ)Qᵀ, and the rest is normal given the effects with a covariance that knows no λ.
    """

    def __init__(self, S: F64, B: F64, Y: F64, n: float, effect: Mask, beta: F64, grid: F64) -> None:
        self.effect, self.grid, self.alpha = effect, grid, ALPHA + n / 2
        e, b = np.flatnonzero(effect), np.flatnonzero(~effect)
        values, vectors = np.linalg.eigh(S[np.ix_(b, b)])
        self.base_root = vectors / np.sqrt(np.maximum(values, 0) + BASE)  # (S_bb + I)⁻¹ = root rootᵀ
        half = self.base_root.T @ S[np.ix_(b, e)]
        self.base_pull, self.base_B = self.base_root @ half, self.base_root @ (self.base_root.T @ B[b])
        values, self.Q = np.linalg.eigh(S[np.ix_(e, e)] - half.T @ half)
        self.precision = np.maximum(values, 0) + grid[:, None]  # (l, e)
        self.rotated = self.Q.T @ (B[e] - half.T @ (self.base_root.T @ B[b]))
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
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None]  # Ψ = root rootᵀ
        z = spread * np.einsum("pdi,pji->jdp", rng.standard_normal((pairs, d, o)), roots[drawn])  # (o, D, p)
        z = np.concatenate([z, -z], axis=2)[:, :, :m]
        precision = self.precision[np.concatenate([drawn, drawn])[:m]].T  # (e, m)
        theta = np.empty((o, d, m))
        of_effects = self.Q @ (self.rotated.T[:, :, None] / precision + z[:, self.effect] / np.sqrt(precision))
        theta[:, self.effect] = of_effects
        theta[:, ~self.effect] = (
            self.base_B.T[:, :, None] - self.base_pull @ of_effects + self.base_root @ z[:, ~self.effect]
        )
        return theta


def _correlation(theta: F64, weights: F64, own: Sequence[int], sums: Arrays, slots: int) -> float:
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


def graph(config: LinearThompson, problem: Problem) -> "ModelProto":
    encoder, objectives = problem.encoder, len(chosen(problem))
    c, d, m = encoder.context_size, encoder.item_size, config.draws
    of_context, of_item = encoder.cross
    shapes = {"base": (1 + c, m), "pool": (d + len(of_item), m)}
    changing: Arrays = {
        name: np.zeros(shape if objectives == 1 else (objectives, *shape), np.float32)
        for name, shape in shapes.items()
        if shape[0]
    }
    inputs: dict[str, graphs.Shape] = {"items": ("n", d)}
    constants: Arrays = {}
    nodes: list[NodeProto] = []
    weighted = {name: name for name in changing}
    if objectives > 1:
        inputs["weights"] = (objectives,)
        constants["flat"] = graphs.whole(objectives, -1)
        for name in changing:
            constants[f"{name}_shape"] = graphs.whole(*shapes[name])
            nodes.append(graphs.node("Reshape", [name, "flat"], f"{name}_flat"))
            nodes.append(graphs.node("MatMul", ["weights", f"{name}_flat"], f"{name}_sum"))
            nodes.append(graphs.node("Reshape", [f"{name}_sum", f"{name}_shape"], f"{name}_weighted"))
            weighted[name] = f"{name}_weighted"
    bias = weighted["base"]
    if c:
        inputs["context"] = (c,)
        constants["one"] = np.ones(1, np.float32)
        nodes.append(graphs.node("Concat", ["one", "context"], "situation", axis=0))
        nodes.append(graphs.node("MatMul", ["situation", bias], "bias"))
        bias = "bias"
    effect = "items"
    if len(of_item):
        constants |= {"of_context": of_context, "of_item": of_item}
        nodes.append(graphs.node("Gather", ["context", "of_context"], "left"))
        nodes.append(graphs.node("Gather", ["items", "of_item"], "right", axis=1))
        nodes.append(graphs.node("Mul", ["right", "left"], "crosses"))
        effect = "crosses"
        if d:
            nodes.append(graphs.node("Concat", ["items", "crosses"], "effects", axis=1))
            effect = "effects"
    if "pool" in changing:
        nodes.append(graphs.node("Gemm", [effect, weighted["pool"], bias], "scores"))
    else:
        constants["draws"] = graphs.whole(m)
        nodes.append(graphs.node("Shape", ["items"], "n", start=0, end=1))
        nodes.append(graphs.node("Concat", ["n", "draws"], "shape", axis=0))
        nodes.append(graphs.node("Expand", [bias, "shape"], "scores"))
    return graphs.model("linear_thompson", nodes, inputs, changing, constants=constants)


def reference(config: LinearThompson, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    items = inputs["items"].astype(float)
    context = np.asarray(inputs.get("context", np.zeros(0)), float)
    of_context, of_item = problem.encoder.cross
    base, pool = arrays["base"].astype(float), arrays.get("pool", np.zeros((0, config.draws))).astype(float)
    if len(chosen(problem)) > 1:
        weights = inputs["weights"].astype(float)
        base, pool = np.tensordot(weights, base, 1), np.tensordot(weights, pool, 1)
    effect = np.hstack([items, items[:, of_item] * context[of_context]])
    return (effect @ pool + np.concatenate([[1.0], context]) @ base).astype(np.float32)


ALGORITHM = Algorithm(
    name="linear_thompson",
    summary="Thompson sampling on one shared linear model of features, crosses and slots",
    source="Agrawal & Goyal, ICML 2013",
    config=LinearThompson,
    graph=graph,
    learner=LinearThompsonLearner,
    merge=merge,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "weights"),
    traits=frozenset({"merges", "learns", "contextual", "uses_draws"}),
)
