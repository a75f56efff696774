"""The network in plain numpy: what graph and torch must equal.

P policies and as many critics see the same state, each through eyes of its own (P actors first, then P critics: Q = 2P):

    live_j = 1 where row j of the history says anything; age_j = 0 for the newest row
    a_q = softmax_j(history_j · (query_q [1, context]) / √d − slope_q age_j), dead rows out of it
    state_q = relu([1, context, mean history, log(1 + count)] shared_q + [Σ_j a_qj history_j] seen_q)      (U,)
    actors   z_p(item) = [item, relu([1, item] tower)] · ([1, state_p] actor_p)                            (n,)
    critics  V_p = [1, state] critic_p, in units of its objective's running scale

    scores = log π_main + Σ_i clip(w_i, ±bound) log π_i,  log π_p = log softmax z_p over the candidates

A history row of zeros is an item of which nothing is known: it counts as none, so that padding changes nothing.
Letters: B states, H interactions, G attention heads, d item features, c context features, U hidden units, e embedding.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from policies.algorithm import Problem
from policies.algorithms.constrained_actor_critic.config import ConstrainedActorCritic, Roles
from policies.types import F32, F64, Arrays

DEAD = -1e9  # logit of a history row that says nothing: exp of it is 0 beside any other
ACTS = ("query", "slope", "shared", "seen", "tower", "actor")  # what policies are made of
WEIGHTS = (*ACTS, "critic")


def shapes(config: ConstrainedActorCritic, problem: Problem, policies: int) -> dict[str, tuple[int, ...]]:
    """Shape of each of `WEIGHTS`; the first row of the last but one axis is the intercept."""
    c, d = problem.encoder.context_size, problem.encoder.item_size
    g, u, e, q = config.attention, config.hidden, config.embedding, 2 * policies
    return {
        "query": (q, g, 1 + c, d),
        "slope": (q, g),
        "shared": (q, 1 + c + d + 1, u),
        "seen": (q, g * d, u),
        "tower": (1 + d, e),
        "actor": (policies, 1 + u, d + e),
        "critic": (policies, 1 + u, 1),
    }


def initial(config: ConstrainedActorCritic, problem: Problem, policies: int) -> dict[str, F32]:
    """Weights of nothing learned: every policy is uniform (zero last layers), every slope sees about ten items back."""
    rng = np.random.default_rng([config.seed, 17])
    made: dict[str, F32] = {}
    for name, shape in shapes(config, problem, policies).items():
        if name in ("actor", "critic"):
            value = np.zeros(shape)
        elif name == "slope":
            value = np.broadcast_to(0.1 * np.exp2(np.arange(config.attention)), shape).copy()
        else:
            value = rng.normal(size=shape) / np.sqrt(max(1, shape[-2]))
        made[name] = value.astype(np.float32)
    return made


def states(w: Mapping[str, NDArray[np.floating]], rows: slice, context: F64, history: F64) -> F64:
    """(Q', B, 1 + U) of contexts (B, c) and histories (B, H, d), with a leading 1, for the rows of Q asked for."""
    query, slope, shared, seen = (np.asarray(w[name][rows], np.float64) for name in WEIGHTS[:4])
    b, h, d = history.shape
    one = np.ones((b, 1))
    live = (history != 0).any(axis=2)  # (B, H)
    padded = np.concatenate([one, context], axis=1)
    asks = np.einsum("bc,qgcd->bqgd", padded, query) / np.sqrt(d) if d else np.zeros((b, *query.shape[:2], 0))
    logits = np.einsum("bhd,bqgd->bqgh", history, asks) - slope[:, :, None] * np.arange(h - 1, -1, -1)
    logits = np.where(live[:, None, None], logits, DEAD)
    top = logits.max(axis=3, keepdims=True, initial=DEAD)
    weights = np.exp(logits - top) * live[:, None, None]
    weights = weights / np.maximum(weights.sum(axis=3, keepdims=True), 1e-30)  # nothing seen: nothing attended to
    pooled = np.einsum("bqgh,bhd->qbgd", weights, history).reshape(query.shape[0], b, -1)
    count = live.sum(axis=1, keepdims=True)
    mean = history.sum(axis=1) / np.maximum(count, 1)
    common = np.concatenate([padded, mean, np.log1p(count)], axis=1)
    hidden = np.maximum(np.einsum("bf,qfu->qbu", common, shared) + pooled @ seen, 0)
    return np.concatenate([np.ones((*hidden.shape[:2], 1)), hidden], axis=2)


def logits(w: Mapping[str, NDArray[np.floating]], policies: int, context: F64, history: F64, items: F64) -> F64:
    """z (P, B, n) of candidates (B, n, d)."""
    tower, actor = np.asarray(w["tower"], np.float64), np.asarray(w["actor"], np.float64)
    wants = states(w, slice(policies), context, history) @ actor  # (P, B, d + e)
    known = np.concatenate([items, np.maximum(items @ tower[1:] + tower[0], 0)], axis=2)
    return np.asarray(np.einsum("bne,pbe->pbn", known, wants), np.float64)


def values(w: Mapping[str, NDArray[np.floating]], policies: int, context: F64, history: F64) -> F64:
    """V (P, B) in scaled units."""
    state = states(w, slice(policies, 2 * policies), context, history)
    return np.asarray((state @ np.asarray(w["critic"], np.float64))[:, :, 0], np.float64)


def mixture(config: ConstrainedActorCritic, parts: Roles, weights: F64 | None) -> F64:
    """Coefficients (P,) of the policies' logarithms: 1, and what the request asks for within its bounds."""
    mixed = np.ones(len(parts))
    if weights is None:
        mixed[1:] = 0
    else:
        asked = weights[list(parts.places[1:])] / parts.scales[1:]
        mixed[1:] = np.clip(asked, -config.weight_bound, config.weight_bound)
    return mixed


def scores(w: Mapping[str, NDArray[np.floating]], mixed: F64, context: F64, history: F64, items: F64) -> F64:
    """(B, n) scores of candidates (B, n, d) under coefficients (P,)."""
    z = logits(w, len(mixed), context, history, items)
    top = z.max(axis=2, keepdims=True)
    log = z - top - np.log(np.exp(z - top).sum(axis=2, keepdims=True))
    return np.asarray(np.einsum("p,pbn->bn", mixed, log), np.float64)


def actor(w: Mapping[str, NDArray[np.floating]], p: int) -> dict[str, NDArray[np.floating]]:
    """The weights of one policy alone."""
    one = slice(p, p + 1)
    return {name: w[name] if name == "tower" else w[name][one] for name in ACTS}


def served(weights: Mapping[str, NDArray[np.generic]], policies: int) -> Arrays:
    """Of all weights those a graph reads: the actors', laid out as its nodes want them."""
    w = {name: np.asarray(weights[name], np.float32) for name in ACTS}
    query = w["query"][:policies]
    p, g, c1, d = query.shape
    actor = w["actor"]
    return {
        "query": np.ascontiguousarray(query.transpose(2, 0, 1, 3).reshape(c1, p * g * d)),
        "slope": np.ascontiguousarray(w["slope"][:policies].reshape(1, p * g)),
        "shared": np.ascontiguousarray(w["shared"][:policies].transpose(1, 0, 2).reshape(-1, p * actor.shape[1] - p)),
        "seen": np.ascontiguousarray(w["seen"][:policies]),
        "tower": w["tower"].copy(),
        "actor": actor.copy(),
    }


def unserved(
    arrays: Mapping[str, NDArray[np.generic]], config: ConstrainedActorCritic, policies: int
) -> dict[str, F32]:
    """The actors' weights back out of a bundle's arrays."""
    a = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    c1, g, u = len(a["query"]), config.attention, config.hidden
    return {
        "query": a["query"].reshape(c1, policies, g, -1).transpose(1, 2, 0, 3),
        "slope": a["slope"].reshape(policies, g),
        "shared": a["shared"].reshape(-1, policies, u).transpose(1, 0, 2),
        "seen": a["seen"],
        "tower": a["tower"],
        "actor": a["actor"],
    }
