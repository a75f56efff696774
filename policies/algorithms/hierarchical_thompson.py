"""Thompson sampling on features and an effect of every item, whose prior is learned from the items of its group.

    r = θᵀφ + uᵢ + e,   uᵢ ~ N(0, s_g²),  g the item's group,   e ~ N(0, σ²),   θ as in `policies.ridge_posterior`
    vᵢ = μ_g + uᵢ,  μ_g the intercept and the group's own column of θ: vᵢ ~ N(μ_g, s_g²)

State    S, B, Y, n of `policies.ridge` and, of each item, Pᵢ = Σ w φ, Bᵢ = Σ w r, nᵢ = Σ w: shards add, corrections subtract
Publish  κ_g = σ²/s_g² by empirical Bayes, then exact: with u integrated out θ is ridge regression on S − Σ PᵢPᵢᵀ/(nᵢ + κ), alike B, Y,
         and uᵢ given θ is N((Bᵢ − Pᵢᵀθ)/(nᵢ + κ), σ²/(nᵢ + κ)). An item nobody saw has nᵢ = 0: its group's prior. O(N D²)
Scores   (n, m): (φ − Pᵢ/(nᵢ + κ))ᵀθ_z + Bᵢ/(nᵢ + κ) + σ/√(nᵢ + κ) · z(item, draw): θ's error and u's cancel where much is known.
         The normals are never stored, see `policies.item_draws`. O(m n D)
Memory   (D + o + 1) doubles an item that was ever shown

κ_g is found by EM on the weighted reward: s_g² ← (ν s² + Σ E uᵢ²)/(ν + N_g) over the N_g items of a group, with ν = 4 items' worth of
s², the same over all items, which in turn starts with 2 items' worth of σ²/4; so a group of two items is not certain of
itself, and with no data at all an item is worth four observations. Items without the group's feature, or with an unlisted
value, have s².

Source   Eide, Leslie & Frigessi 2021 (arXiv 2104.15046) for items under a group prior; Robinson, Statistical Science 1991
         (best linear unbiased prediction); Dempster, Laird & Rubin, JRSS B 1977 (EM)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from policies import forgetting, graphs, item_draws, item_sums, ridge, ridge_carrying
from policies.algorithm import Addend, Algorithm, Problem, Published
from policies.carrying import index_at, places, relevant, scaled
from policies.errors import Corrupt
from policies.item_sums import Hashes, Table
from policies.linear_graph import chosen, weights_of
from policies.ridge import RidgeLearner, columns, effects, phi
from policies.ridge_fitting import RidgeOptions, spans
from policies.ridge_posterior import ALPHA, BASE, Posterior, correlation
from policies.types import F32, F64, I64, Arrays, Changes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ITEM = ("item_n", "item_P", "item_B")
START = 4.0  # κ before anything is known: an item's effect is half the noise
ALL, GROUP = 2.0, 4.0  # items' worth of belief: in START for all items, in all items for those of a group
# θ is solved again ROUNDS times, and κ moves STEPS times for each: more moved s_g by less than a thousandth
ROUNDS, STEPS = 4, 20


class HierarchicalThompson(RidgeOptions, frozen=True):
    """Options.

    group   the item feature, a category, whose values are the groups; None: all items are of one group
    spread  multiplies the posterior's standard deviation, see `linear_thompson`
    """

    group: str | None = None
    spread: Annotated[float, Meta(ge=0)] = 0.7


class HierarchicalLearner:
    """Ridge sums, and the sums of each item at the same index."""

    def __init__(self, config: HierarchicalThompson, problem: Problem) -> None:
        self.ridge = RidgeLearner(problem, forgetting.half_life_seconds(config.half_life))
        self.hashes = np.zeros(0, np.uint64)
        self.table = empty_table(len(self.ridge.columns), len(problem.objectives))

    def learn(self, changes: Changes) -> None:
        if not len(changes):
            return
        before = self.ridge.sums["index"]
        self.ridge.learn(changes)
        index = float(self.ridge.sums["index"][0])
        self.table = _moved(self.table, before, index)
        hashes, order, starts = item_sums.by_item(changes.item_hashes)
        self.table, self.hashes = item_sums.widened(self.table, self.hashes, hashes)
        w = changes.weights * np.exp2(forgetting.age(changes.times, self.ridge.half_life) - index)
        x = phi(self.ridge.problem, changes.context, changes.items, changes.slots)
        entered = w * (changes.present_after - changes.present_before)
        moves = {
            "item_n": entered,
            "item_P": entered[:, None] * x,
            "item_B": w[:, None] * (changes.rewards_after - changes.rewards_before),
        }
        rows = np.searchsorted(self.hashes, hashes)
        for name, move in moves.items():
            self.table[name][rows] += np.add.reduceat(move[order], starts)

    def arrays(self) -> Arrays:
        return {**self.ridge.arrays(), **self.table, "item_hashes": self.hashes}

    def load(self, arrays: Arrays) -> None:
        """Take over sums. Raises ValueError when they are of other columns."""
        self.ridge.load(arrays)
        self.hashes = arrays["item_hashes"].astype(np.uint64)
        self.table = {name: value.copy() for name, value in table_of(arrays).items()}


def empty_table(D: int, o: int) -> Table:
    return {"item_n": np.zeros(0), "item_P": np.zeros((0, D)), "item_B": np.zeros((0, o))}


def table_of(arrays: Mapping[str, NDArray[np.generic]]) -> Table:
    return {name: np.asarray(arrays[name], np.float64) for name in ITEM}


def _moved(table: Table, index: F64, later: float) -> Table:
    """The table at a later index."""
    moved = forgetting.move({**table, "index": index}, ITEM, later)
    return {name: moved[name] for name in ITEM}


def merge(parts: Sequence[Arrays]) -> Arrays:
    """One set of sums of several shards'. Raises ValueError when they are of different columns or half-lives."""
    if not parts:
        return {}
    made = ridge.merge(parts)
    index = float(np.asarray(made["index"], float)[0])
    level = [
        (_moved(table_of(part), np.asarray(part["index"], float), index), part["item_hashes"].astype(np.uint64))
        for part in parts
    ]
    table, hashes = item_sums.added(level)
    return {**made, **table, "item_hashes": hashes}


def carry(config: HierarchicalThompson, problem: Problem, own: Arrays, addends: Sequence[Addend], now: float) -> Arrays:
    """Own sums plus those of other versions, see `policies.carrying` and `policies.ridge_carrying`. An objective an addend does
    not know is filled in for its items with what the shared model expects of them."""
    made = ridge_carrying.carry(problem, own, addends, now)
    half_life = float(np.asarray(own["half_life"], float)[0])
    index = index_at(half_life, float(np.asarray(own["index"], float)[0]), now)
    theta = _expected(problem, made, float(np.exp2(index - now / half_life)))
    level = [(table_of(own), own, list[int | None](range(len(problem.objectives))))]
    for addend in relevant(problem, addends):
        old = table_of(addend.arrays)
        M = ridge_carrying.translation(addend.problem.encoder, addend.problem.slots, problem.encoder, problem.slots)
        turned = np.ascontiguousarray(M.times(np.ascontiguousarray(old["item_P"].T)).T)
        level.append((old | {"item_P": turned}, addend.arrays, places(addend.problem, problem)))
    parts = []
    for table, source, kept in level:
        B = [table["item_P"] @ theta[o] if at is None else table["item_B"][:, at] for o, at in enumerate(kept)]
        of_time = {name: np.asarray(source[name], np.float64) for name in ("index", "half_life")}
        sums = {**table, "item_B": np.stack(B, axis=1), **of_time}
        at_now = scaled(sums, ITEM, half_life, index, now)
        parts.append(({name: at_now[name] for name in ITEM}, source["item_hashes"].astype(np.uint64)))
    added, hashes = item_sums.added(parts)
    return {**made, **added, "item_hashes": hashes}


def _expected(problem: Problem, sums: Arrays, g: float) -> F64:
    """θ (o, D) by plain ridge regression from every objective's default."""
    S, B = g * np.asarray(sums["S"], float), g * np.asarray(sums["B"], float)
    start = np.zeros_like(B)
    start[0] = [objective.default for objective in problem.objectives.values()]
    found: F64 = (start + np.linalg.solve(S + np.eye(len(S)), B - S @ start)).T
    return found


@dataclass(frozen=True, slots=True)
class Model:
    """Sums as they count now: S (D, D), B (D, o), Y (o, o), n; of N items table and group (N,), −1 = none; effects (D,)."""

    S: F64
    B: F64
    Y: F64
    n: float
    table: Table
    group: I64
    groups: int

    def without_items(self, kappa: F64) -> tuple[F64, F64, F64]:
        """S, B, Y with the items' effects integrated out, kappa (N,) the prior's precision of each in observations."""
        P, B = self.table["item_P"], self.table["item_B"]
        share = P / (self.table["item_n"] + kappa)[:, None]
        return (
            self.S - share.T @ P,
            self.B - share.T @ B,
            self.Y - (B / (self.table["item_n"] + kappa)[:, None]).T @ B,
        )


def kappas(model: Model, weights: F64, effect: NDArray[np.bool_], prior: float, beta: float) -> F64:
    """κ of each group and, last, of those without one (G + 1,), by empirical Bayes on the reward weighted by `weights` (o,).

    effect (D,) columns of φ with prior precision `prior`, the others have BASE;  beta  half of what 2α₀ observations' worth of σ² is
    """
    n, P, b = model.table["item_n"], model.table["item_P"], model.table["item_B"] @ weights
    found = np.full(model.groups + 1, START)
    known = n > np.finfo(float).tiny
    if not known.any():
        return found
    group, seen = model.group[known], n[known]
    mean = P[known] / seen[:, None]
    counts = np.bincount(group + 1, minlength=model.groups + 1)[1:]  # of those without a group there is no prior but s²
    Lambda = np.diag(np.where(effect, prior, BASE))
    for _ in range(ROUNDS):
        S, B, Y = model.without_items(found[model.group])
        inverse = np.linalg.inv(S + Lambda)
        theta = inverse @ (B @ weights)
        left = max(float(weights @ Y @ weights - theta @ (B @ weights)), 0.0)
        sigma2 = (2 * beta + left) / (2 * ALPHA + model.n)
        residual = b[known] / seen - mean @ theta
        unsure = np.maximum(np.einsum("nd,nd->n", mean @ inverse, mean), 0.0)  # of θᵀφ̄, in σ²
        for _ in range(STEPS):
            pull = seen / (seen + found[group])
            square = (pull * residual) ** 2 / sigma2 + 1 / (seen + found[group]) + pull**2 * unsure  # E uᵢ² in σ²
            all_items = (ALL / START + square.sum()) / (ALL + len(square))
            each = np.bincount(group + 1, square, model.groups + 1)[1:]
            found = 1 / np.append((GROUP * all_items + each) / (GROUP + counts), all_items)
    return found


def publish(config: HierarchicalThompson, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`theta` (D, m), `pull` (N + 1, D), `mean` (N + 1,), `item_scale` (N + 1,), `group_scale` (G + 1,): of the weighted reward when
    the surface has one objective, else `theta` (o, D, m), `mean` (o, N + 1) and `noise` (o, o). The last row of items is for
    the unseen. And `item_hashes` (N,), `group_columns` (G,), `turn` (4,). Raises Corrupt('nonfinite')."""
    names, half_life = columns(problem), forgetting.half_life_seconds(config.half_life)
    o = len(problem.objectives)
    held = ridge.sums_of(sums) if sums else ridge.empty(len(names), o, half_life)
    table = table_of(sums) if sums else empty_table(len(names), o)
    hashes: Hashes = sums["item_hashes"].astype(np.uint64) if sums else np.zeros(0, np.uint64)
    g = float(np.exp2(float(held["index"][0]) - now / half_life))
    if not all(np.isfinite(g * s).all() for s in (*(held[name] for name in ridge.ADDED), *table.values())):
        raise Corrupt("nonfinite", "the sums are not finite")
    own, weights, effect = chosen(problem), weights_of(problem), effects(names)
    table = {
        "item_n": np.maximum(g * table["item_n"], 0.0),  # what was taken back leaves a rounding
        "item_P": g * table["item_P"],
        "item_B": g * table["item_B"][:, own],
    }
    value_columns = group_columns(config, problem)
    group = groups_of(problem, value_columns, table["item_P"])
    S, B, Y, n = g * held["S"], g * held["B"][:, own], g * held["Y"][np.ix_(own, own)], g * float(held["n"][0])
    model = Model(S, B, Y, n, table, group, len(value_columns))
    beta = np.diag([(span / 2) ** 2 for span in spans(problem)])
    prior = 1.0 if config.prior is None else config.prior
    kappa = kappas(model, weights, effect, prior, float(weights @ beta @ weights))
    each = kappa[group]
    posterior = Posterior(*model.without_items(each), n, effect, beta, config.grid)
    shares = posterior.shares(weights)
    theta = posterior.draws(shares, config.draws, config.spread, np.random.default_rng(seed))
    noise = np.tensordot(shares, posterior.noise, 1)
    sigma = float(np.sqrt(weights @ noise @ weights))

    amount = table["item_n"] + each
    mean = np.append((table["item_B"] / amount[:, None]).T, np.zeros((len(own), 1)), axis=1)
    scale = config.spread * np.append(1 / np.sqrt(amount), 0.0)
    groups = config.spread / np.sqrt(kappa)
    parts = {
        "theta": theta,
        "pull": np.append(table["item_P"] / amount[:, None], np.zeros((1, len(names))), axis=0),
        "mean": mean,
        "item_scale": scale,
        "group_scale": groups,
        "noise": noise,
    }
    if len(own) == 1:
        parts |= {"theta": weights[0] * theta[0], "mean": weights[0] * mean[0]}
        parts |= {"item_scale": sigma * scale, "group_scale": sigma * groups}
        del parts["noise"]
    arrays: Arrays = {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}
    arrays |= {"item_hashes": hashes.copy(), "group_columns": value_columns, "turn": item_draws.turn(seed)}
    rho = correlation(weights @ posterior.mean(shares), weights, own, held, problem.slots)
    diagnostics = {
        "sigma": sigma,
        "examples": n,
        "rho": rho,
        "items": float(len(hashes)),
        "item_sigma": sigma / float(np.sqrt(kappa[-1])),
        "prior": float(np.exp2(shares @ np.log2(config.grid))),
    }
    return Published(arrays, 1 / (1 + (problem.slots - 1) * rho), diagnostics)


def group_columns(config: HierarchicalThompson, problem: Problem) -> I64:
    """Columns (G,) of an encoded item that say which group it is of, without that of unlisted values."""
    if config.group is None:
        return np.zeros(0, np.int64)
    place = problem.encoder.item_columns[config.group]
    return np.arange(place.start, place.stop - 1)


def groups_of(problem: Problem, value_columns: I64, P: F64) -> I64:
    """(N,) the group that an item was mostly of when it was shown; −1 where it never had one."""
    if not len(value_columns) or not len(P):
        return np.full(len(P), -1)
    first = columns(problem).index(f"item.{problem.encoder.item_names[0]}")
    shown = P[:, first + value_columns]
    return np.where(shown.max(axis=1) > 0, shown.argmax(axis=1), -1)


def graph(config: HierarchicalThompson, problem: Problem) -> "ModelProto":
    encoder, o, m = problem.encoder, len(chosen(problem)), config.draws
    c, d, D = encoder.context_size, encoder.item_size, len(columns(problem))
    slots = problem.slots if problem.slots > 1 else 0
    changing: Arrays = {
        "theta": np.zeros((D, m) if o == 1 else (o, D, m), np.float32),
        "pull": np.zeros((1, D), np.float32),
        "mean": np.zeros(1 if o == 1 else (o, 1), np.float32),
        "item_scale": np.zeros(1, np.float32),
        "group_scale": np.zeros(1, np.float32),
        "turn": np.zeros(item_draws.BYTES, np.int64),
    }
    shapes: dict[str, graphs.Shape] = {
        "pull": ("rows", D),
        "mean": ("rows",) if o == 1 else (o, "rows"),
        "item_scale": ("rows",),
        "group_scale": ("groups",),
    }
    inputs: dict[str, graphs.Shape] = dict.fromkeys(("item_rows", "group_rows", "item_keys"), ("n",))
    inputs |= {"items": ("n", d)} if d else {}
    constants: Arrays = {
        **item_draws.constants(m),
        "slot": np.eye(1, slots, dtype=np.float32)[0],
        "one": np.ones(1, np.float32),
        "none": graphs.whole(0),
        "situations": graphs.whole(1 + c + slots),
        "last": graphs.whole(1),
        "nothing": np.zeros(1, np.float32),
    }
    nodes: list[NodeProto] = []

    def add(kind: str, sources: list[str], output: str, **attributes: object) -> str:
        nodes.append(graphs.node(kind, sources, output, **attributes))
        return output

    theta, mean_of_rows, sigma = "theta", add("Gather", ["mean", "item_rows"], "means", axis=int(o > 1)), ""
    if o > 1:
        inputs["weights"] = (o,)
        changing["noise"] = np.zeros((o, o), np.float32)
        constants |= {"flat": graphs.whole(o, -1), "matrix": graphs.whole(D, m)}
        flat = add("MatMul", ["weights", add("Reshape", ["theta", "flat"], "theta_flat")], "theta_row")
        theta = add("Reshape", [flat, "matrix"], "theta_weighted")
        mean_of_rows = add("MatMul", ["weights", mean_of_rows], "means_weighted")
        variance = add("MatMul", [add("MatMul", ["weights", "noise"], "noise_row"), "weights"], "variance")
        sigma = add("Sqrt", [variance], "sigma")
    context = ["one"]
    if c:
        inputs["context"] = (c,)
        context.append("context")
    if slots:
        context.append("slot")
    situation = add("Concat", context, "situation", axis=0)
    n = add("Shape", ["item_rows"], "n")
    whole = add("Concat", [n, "situations"], "whole", axis=0)
    columns_ = [add("Expand", [situation, whole], "every_situation")]
    if d:
        columns_.append("items")
    of_context, of_item = encoder.cross
    if len(of_context):
        constants |= {"of_context": of_context, "of_item": of_item}
        left = add("Gather", ["context", "of_context"], "left")
        columns_.append(add("Mul", [add("Gather", ["items", "of_item"], "right", axis=1), left], "crosses"))
    x = add("Concat", columns_, "phi", axis=1)
    x = add("Sub", [x, add("Gather", ["pull", "item_rows"], "pulled")], "rest")
    column = add("Unsqueeze", [mean_of_rows, "last"], "means_column")
    centre = add("Gemm", [x, theta, column], "centre")
    unseen = add("Less", ["item_rows", "none"], "unseen")
    of_group = add("Where", [unseen, add("Gather", ["group_scale", "group_rows"], "of_groups"), "nothing"], "of_unseen")
    scale = add("Add", [add("Gather", ["item_scale", "item_rows"], "of_items"), of_group], "scale")
    if sigma:
        scale = add("Mul", [scale, sigma], "scale_weighted")
    nodes.extend(item_draws.nodes("item_keys", "z"))
    add("Add", [centre, add("Mul", [add("Unsqueeze", [scale, "last"], "scales"), "z"], "noises")], "scores")
    return graphs.model("hierarchical_thompson", nodes, inputs, changing, shapes, constants)


def reference(config: HierarchicalThompson, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    """Word for word the model, with φ as learning forms it."""
    held = {name: np.asarray(arrays[name], float) for name in arrays if name not in ("item_hashes", "turn")}
    rows = inputs["item_rows"].astype(np.int64)
    theta, mean, sigma = held["theta"], held["mean"], 1.0
    if "noise" in held:
        weights = inputs["weights"].astype(float)
        theta, mean = np.tensordot(weights, theta, 1), weights @ mean
        sigma = float(np.sqrt(weights @ held["noise"] @ weights))
    n, c, d = len(rows), problem.encoder.context_size, problem.encoder.item_size
    context = np.broadcast_to(inputs.get("context", np.zeros(c, np.float32)), (n, c))
    items = inputs.get("items", np.zeros((n, d), np.float32))
    x = phi(problem, context, items, np.zeros(n, np.int64)) - held["pull"][rows]
    scale = held["item_scale"][rows] + (rows < 0) * held["group_scale"][inputs["group_rows"].astype(np.int64)]
    z = item_draws.normals(inputs["item_keys"].astype(np.int64), np.asarray(arrays["turn"], np.int64), config.draws)
    scores: F64 = x @ theta + mean[rows][:, None] + (sigma * scale)[:, None] * z
    return scores.astype(np.float32)


ALGORITHM = Algorithm(
    name="hierarchical_thompson",
    summary="Thompson sampling on features plus an effect of every item, shrunk to its group's",
    source="Eide et al. 2021, arXiv 2104.15046",
    config=HierarchicalThompson,
    graph=graph,
    learner=HierarchicalLearner,
    merge=merge,
    carry=carry,
    publish=publish,
    reference=reference,
    inputs=("context", "items", "item_rows", "group_rows", "item_keys", "weights"),
    traits=frozenset({"merges", "learns", "corrects", "contextual", "uses_draws", "predicts"}),
)
