"""Slates for users who change with their clicks: vectors of items under group priors, a recurrent state of the user.

    vᵢ ~ N(μ_g, s_g² I),  g the item's group;   z_t a state of the clicks so far;   score(i) = −‖z_t − vᵢ‖²
    P(click i | slate a) = exp(score(i)) / (exp(b) + Σ_{j∈a} exp(score(j))),   b of no click
    linear  h_{t+1} = γh_t + (1 − γ)v_click, z_t = h_t;   gru  h_{t+1} = GRU(h_t, v_click), z_t = W h_t + b
    h_0     a start all users share, moved by the context

Posterior  mean-field normal over items' vectors, the start and γ's logit, by stochastic variational inference; b and the weights
           of the GRU and of the context are point estimates; μ_g, s_g by empirical Bayes in closed form, see `model.groups_of`
Scores     (n, m): m draws, the same of an item whether it is scored or was clicked: mean + scale · z(item, draw), never stored,
           see `policies.item_draws`. An item nobody learned is drawn from its group's prior; clicks on such items say nothing yet
Slates     greedy: draws 1 · Thompson: head one_draw · in-slate Thompson: head draws
Learn      `training.py`, torch: Adam on reparametrised gradients over the newest decisions. A click is a slot whose weighted
           reward is above 0; slots not seen are in no likelihood. The state follows the unit's history as the surface keeps it
           (`history`, `history_kinds`): have it keep clicks. O(N size) a step for N items, whatever the batch
Source     Eide, Leslie & Frigessi 2021 (arXiv 2104.15046); Kingma & Welling, ICLR 2014; Cho et al. 2014 (GRU)
"""

import numpy as np

from policies import item_draws
from policies.algorithm import Algorithm, Problem, Published
from policies.algorithms.recurrent_slate import model
from policies.algorithms.recurrent_slate.config import RecurrentSlate
from policies.algorithms.recurrent_slate.graph import graph
from policies.errors import Corrupt
from policies.training import Trainer
from policies.types import F32, F64, I64, Arrays

ROUNDS = 20  # of EM at a publish: s_g² and τ² then stand to a thousandth


def trainer(config: RecurrentSlate, problem: Problem) -> Trainer:
    """Imports torch."""
    from policies.algorithms.recurrent_slate.training import SlateTrainer

    return SlateTrainer(config, problem)


def publish(config: RecurrentSlate, problem: Problem, sums: Arrays, now: float, seed: int) -> Published:
    """`means`, `scales` (N + G + 1, size) of items, groups and of no group, `keys` (N,), `starts` (m, ·), `gammas` (m,) or the GRU's weights.
    And `item_hashes` (N,), `group_columns` (G,), `turn` (4,). Raises Corrupt('nonfinite')."""
    state = sums or model.initial(config, problem)
    held = {name: np.asarray(value, float) for name, value in state.items() if value.dtype.kind == "f"}
    if not all(np.isfinite(value).all() for value in held.values()):
        raise Corrupt("nonfinite", "the weights are not finite")
    columns = model.group_columns(config, problem)
    scale = np.exp(held["item_log_scale"])
    group: I64 = state["item_group"].astype(np.int64)
    known = model.groups_of(held["item_mean"], scale**2, group, len(columns), rounds=ROUNDS)
    of_group = np.broadcast_to(np.sqrt(known.spread + known.doubt)[:, None], known.mean.shape)
    rng, spread, m = np.random.default_rng([seed, 3]), config.spread, config.draws
    hashes = state["item_hashes"].astype(np.uint64)
    parts = {
        "means": np.concatenate([held["item_mean"], known.mean]),
        "scales": spread * np.concatenate([scale, of_group]),
        "starts": held["start"] + spread * np.exp(held["start_log_scale"]) * opposite(rng, m, len(held["start"])),
        "of_context": held["of_context"],
    }
    if config.state == "linear":
        logits = held["gamma"] + spread * np.exp(held["gamma_log_scale"]) * opposite(rng, m, 1)[:, 0]
        parts["gammas"] = model.sigmoid(logits)
    else:
        order = [1, 0, 2]  # ONNX has update before reset
        blocks = {name: np.stack(np.split(held[name], 3))[order] for name in ("gru_W", "gru_R", "gru_b", "gru_c")}
        parts["gru_W"] = blocks["gru_W"].reshape(1, -1, config.size)
        parts["gru_R"] = blocks["gru_R"].reshape(1, -1, config.hidden)
        parts["gru_B"] = np.concatenate([blocks["gru_b"], blocks["gru_c"]]).reshape(1, -1)
        parts |= {name: held[name] for name in ("out", "out_b")}
    arrays: Arrays = {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}
    arrays |= {"keys": item_draws.keys_of(hashes), "turn": item_draws.turn(seed)}
    arrays |= {"item_hashes": hashes.copy(), "group_columns": columns}
    diagnostics = {"items": float(len(hashes)), "gamma": float(model.sigmoid(held["gamma"])[0])}
    return Published(arrays, diagnostics=diagnostics)


def opposite(rng: np.random.Generator, m: int, size: int) -> F64:
    """(m, size) standard normals in opposite pairs."""
    half = rng.standard_normal((-(-m // 2), size))
    return np.concatenate([half, -half])[:m]


def reference(config: RecurrentSlate, problem: Problem, arrays: Arrays, inputs: dict[str, F32]) -> F32:
    held = {name: np.asarray(value, float) for name, value in arrays.items() if value.dtype.kind == "f"}
    turn, m, size = np.asarray(arrays["turn"], np.int64), config.draws, config.size

    def vectors(rows: I64, keys: I64) -> F64:
        noise = item_draws.normals(keys, turn, m, size).reshape(-1, m, size)
        return np.asarray(held["means"][rows][:, None] + held["scales"][rows][:, None] * noise)

    past = inputs["history_rows"].astype(np.int64)
    past = past[past >= 0]
    clicked = vectors(past, np.asarray(arrays["keys"], np.int64)[past])
    start = held["starts"] + np.asarray(inputs.get("context", np.zeros(0)), float) @ held["of_context"]
    if config.state == "linear":
        state = model.linear_state(held["gammas"], start, clicked)
    else:
        state = model.gru_state(unordered(arrays), start, clicked)
    rows, groups = inputs["item_rows"].astype(np.int64), inputs["group_rows"].astype(np.int64)
    prior = np.where(groups < 0, -1, groups - len(arrays["group_columns"]) - 1)
    candidates = vectors(np.where(rows < 0, prior, rows), inputs["item_keys"].astype(np.int64))
    return np.asarray(-((candidates - state) ** 2).sum(axis=2), np.float32)


def unordered(arrays: Arrays) -> Arrays:
    """The GRU's weights of a bundle, gates in the order of `model.gru_state`."""
    W, R, B = (
        np.stack(np.split(np.asarray(arrays[name])[0], parts))
        for name, parts in (("gru_W", 3), ("gru_R", 3), ("gru_B", 6))
    )
    made: Arrays = {"gru_W": np.concatenate(W[[1, 0, 2]]), "gru_R": np.concatenate(R[[1, 0, 2]])}
    made |= {"gru_b": np.concatenate(B[[1, 0, 2]]), "gru_c": np.concatenate(B[[4, 3, 5]])}
    return made | {"out": arrays["out"], "out_b": arrays["out_b"]}


ALGORITHM = Algorithm(
    name="recurrent_slate",
    summary="vectors of items under group priors and a state that follows the unit's clicks, by variational inference",
    source="Eide et al. 2021, arXiv 2104.15046",
    config=RecurrentSlate,
    graph=graph,
    trainer=trainer,
    publish=publish,
    reference=reference,
    shaping=("group", "state", "size", "hidden"),
    inputs=("context", "item_rows", "group_rows", "item_keys", "history_rows"),
    traits=frozenset({"trains", "contextual", "uses_draws"}),
)
