"""THE draw: scores become a slate, slot by slot, with the probability of everything that was drawn.

For slot t, R_t = candidates allowed there, not drawn before and not pinned anywhere:

    base    what share of the probability each candidate of R_t gets from its scores, by head:
              draws      share of the m posterior draws in which it is the best of R_t; the tied split a draw's vote evenly
              one_draw   the same with draw z counted W_{t−1}(z): its posterior after the slots before (Thompson for a slate)
              softmax    ∝ exp(pool-mean score / temperature)   (Plackett-Luce)
              inverse_gap  1 / (∣R_t∣ + gap / temperature), gap = how far its pool-mean score is below the largest; what is
                         left of 1 goes to those without a gap, evenly   (SquareCB with γ = 1 / temperature)
    floor   p = (1−ε) base + ε/∣R_t∣
    cap     G_t = all of R_t with the largest pool-mean score, α_t = min(1, max_share / (1 − p(G_t))),
            p ← α_t p + (1−α_t) 1[· ∈ G_t]/∣G_t∣
    draw    one uniform, inverse of the cumulated p in the order of the candidates

Masks and boosts stand before the first slot. What depends on the slots before (`reranking/within.py`: constraints, which
narrow R_t, and diversity, which is subtracted from the scores) acts at the same places, between two slots, so every p is
the exact conditional of its slot.

So p ≥ max_share·ε/∣R_t∣, and the expected share of a slot that is not greedy is at most max_share. Masks come first, boosts
are added to the scores, nothing happens after the draw. `one_draw` is exact: the product of its conditionals is
mean_z Π_t q_t(z), the chance that one draw z fills the whole slate; W_t(z) = W_{t−1}(z) q_t(z) / p_t of the drawn item, with
q_t(z) the p of draw z alone.

`reference` says it in numpy, `draw` is compiled (`slate_fast.py`) and equals it bit for bit.

Source   methods.md §0; Eide et al. 2021 (arXiv 2104.15046) for slates from posterior draws; Foster & Rakhlin, ICML 2020 (arXiv
         2002.04926) for inverse gaps
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from policies.compiling import plain
from policies.errors import Corrupt
from policies.reranking.within import Prefix, Within
from policies.slate_fast import DRAWS, INVERSE_GAP, ONE_DRAW, RESOLUTION, SOFTMAX, UNIT, fill, softmax_weights
from policies.types import F32, F64, I64, DrawSettings, Mask, Slate

EVERYWHERE, NOWHERE = np.empty((0, 0), np.bool_), np.empty(0, np.int64)  # no masks, no pins
UNBOOSTED = np.empty(0)
NOT_ASKED = np.empty((0, 0))
NO_LIMITS = np.empty((0, 0), np.int64)
ALONE: tuple[Any, ...] = (  # nothing depends on the slots before
    NOWHERE,
    NO_LIMITS,
    NO_LIMITS,
    np.zeros(1),
    NO_LIMITS,
    np.empty((0, 0), np.float32),
    np.empty((0, 0), np.uint8),
)
HEADS = {"draws": DRAWS, "one_draw": ONE_DRAW, "softmax": SOFTMAX, "inverse_gap": INVERSE_GAP}


def uniforms(key: bytes, decision_id: str, purpose: str, count: int) -> F64:
    """`count` uniforms in [0, 1), (count,), each a function of everything named here: one use each.

    BLAKE2b keyed with the server's key (up to 64 bytes) in counter mode, eight numbers of 53 bits a digest. Who chooses
    decision ids but lacks the key cannot choose slates. Raises ValueError for a purpose with NUL in it, or a key too long.
    """
    if "\0" in purpose:
        raise ValueError("a purpose ends at its NUL byte and cannot contain one")
    message = f"{purpose}\0{decision_id}".encode()
    digests = b"".join(
        hashlib.blake2b(message + block.to_bytes(8, "little"), key=key).digest() for block in range((count + 7) // 8)
    )
    bits: F64 = (np.frombuffer(digests, "<u8")[:count] >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53


def draw(
    scores: F32,
    k: int,
    u: F64,
    settings: DrawSettings,
    *,
    boosts: F64 | None = None,
    masks: Mask | None = None,
    pins: Mapping[int, int] | None = None,
    within: Within | None = None,
    full: bool = False,
) -> Slate:
    """Draw a slate of up to k items.

    scores (n, m)  a column a posterior draw; u (k,) one uniform a slot
    boosts (n,)    added to every draw's score; masks (k, n) True = allowed; pins slot → row: there, and nowhere else
    within         constraints and diversity inside the slate, None without any
    full           also give the distributions (k', n)

    A slot without a candidate stays empty; pins after it are still filled. A pin overrules the masks. Raises
    Corrupt("nan_scores") for a score that is not finite and ValueError for arguments that do not fit together.
    """
    scores, mask, pinned = _checked(scores, k, u, settings, boosts, masks, pins, within)
    integers, reals = np.empty((4, k), np.int64), np.empty((3, k))
    distributions = np.zeros((k, len(scores))) if full else NOT_ASKED
    asked = (
        scores,
        UNBOOSTED if boosts is None else plain(boosts),
        mask,
        pinned,
        plain(u),
        HEADS[settings.head],
        float(settings.floor),  # an int would be another type to the compiler
        float(settings.max_share),
        float(settings.temperature),
        integers,
        reals,
        distributions,
    )
    acts = None if within is None else np.zeros((len(within.ops), k), np.uint8)
    inside: tuple[Any, ...] = ALONE if within is None else (*map(plain, within.arrays), acts)
    filled = fill(*asked, *inside)
    if filled < 0:
        _refuse(filled, within, len(scores), k)
    if filled < k:
        integers, reals, distributions = integers[:, :filled], reals[:, :filled], distributions[:filled]
    return Slate(
        integers[0],
        integers[1],
        reals[0],
        integers[2],
        integers[3],
        reals[1],
        reals[2],
        pinned[integers[0]] >= 0 if len(pinned) else np.zeros(filled, np.bool_),
        distributions if full else None,
        acts,
    )


def reference(
    scores: F32,
    k: int,
    u: F64,
    settings: DrawSettings,
    *,
    boosts: F64 | None = None,
    masks: Mask | None = None,
    pins: Mapping[int, int] | None = None,
    within: Within | None = None,
    full: bool = False,
) -> Slate:
    """What `draw` does, to be read and to be compared with. Same arguments, errors and bits."""
    scores, mask, pinned = _checked(scores, k, u, settings, boosts, masks, pins, within)
    n, m = scores.shape
    if not ((u >= 0.0) & (u < 1.0)).all():
        _refuse(-2, within, n, k)
    if boosts is not None:
        if not np.isfinite(boosts).all():
            _refuse(-4, within, n, k)
        scores = scores + boosts.astype(np.float32)[:, None]
    if not np.isfinite(scores).all():
        _refuse(-1, within, n, k)
    if within is not None:
        within.check(n, k)
    pinned = pinned if len(pinned) else np.full(k, -1)
    means = _pool_means(scores)
    free = np.ones(n, bool)
    free[pinned[pinned >= 0]] = False
    posterior = np.full(m, 1.0 / m)  # W, normalised
    slate: list[tuple[int, int, float, int, int, float, float, bool]] = []
    distributions: list[F64] = []
    prefix = None if within is None else Prefix(within, pinned, n)
    bare, bare_means = scores, means

    for t in range(k):
        if prefix is not None:
            less = prefix.penalties(t)
            scores, means = bare - less[:, None], bare_means - less.astype(float)
        p = np.zeros(n)
        if pinned[t] >= 0:
            p[pinned[t]] = 1.0
            slate.append((t, int(pinned[t]), 1.0, 1, int(pinned[t]), 1.0, 0.0, True))
            distributions.append(p)
            continue
        R = np.flatnonzero(free & mask[t] if len(mask) else free)
        if prefix is not None:
            R = prefix.passing(t, R)
        if not len(R):
            continue

        wins = scores[R] == scores[R].max(axis=0)  # (∣R∣, m): candidate is the best, or one of the best, of draw z
        ties = wins.sum(axis=0)
        if settings.head == "draws":
            weights = (wins * np.maximum(1, UNIT // ties)).sum(axis=1).astype(float)
        elif settings.head == "one_draw":
            weights = np.add.accumulate(wins * (posterior / ties), axis=1)[:, -1]
        elif settings.head == "inverse_gap":
            weights = _inverse_gaps(means[R], settings.temperature)
        else:
            weights = np.zeros(n)
            softmax_weights(means, R, settings.temperature, weights)
            weights = weights[R]

        G = means[R] == means[R].max()
        scale, even = (1.0 - settings.floor) / _in_order(weights), settings.floor / len(R)
        explored = min(1.0, _in_order(weights[~G]) * scale + (~G).sum() * even)  # 1 − p(G)
        alpha = 1.0 if explored <= settings.max_share else settings.max_share / explored
        bonus = (1.0 - alpha) / G.sum()
        p[R] = alpha * (weights * scale + even) + bonus * G

        reached = np.concatenate(([0.0], np.add.accumulate(p[R])[:-1]))  # cumulated before each candidate
        at = np.flatnonzero((reached <= u[t]) & (p[R] > 0))[-1]
        q = alpha * ((1.0 - settings.floor) * (wins[at] * (1.0 / ties)) + even) + bonus * G[at]
        posterior = posterior * q / p[R[at]]
        free[R[at]] = False
        if prefix is not None:
            prefix.shown[t] = int(R[at])
        slate.append((t, int(R[at]), float(p[R[at]]), len(R), int(R[G][0]), alpha, alpha * explored, False))
        distributions.append(p)

    slots, items, propensities, remaining, greedy, alphas, strays, pins_used = (
        zip(*slate, strict=True) if slate else ((),) * 8
    )
    return Slate(
        np.array(slots, np.int64),
        np.array(items, np.int64),
        np.array(propensities, float),
        np.array(remaining, np.int64),
        np.array(greedy, np.int64),
        np.array(alphas, float),
        np.array(strays, float),
        np.array(pins_used, bool),
        np.array(distributions).reshape(len(slate), n) if full else None,
        None if prefix is None else prefix.acts_at_the_end(),
    )


def warm() -> None:
    """Compile, or load what an earlier process compiled: everything a request needs, so that none waits for it."""
    scores = np.zeros((2, 8), np.float32)
    draw(scores, 1, np.zeros(1), DrawSettings())  # `fill` has one type, whatever is asked of it


def _refuse(code: int, within: Within | None, n: int, k: int) -> NoReturn:
    """Raise what `fill` found wrong with the numbers themselves."""
    if code == -3 and within is not None:
        within.check(n, k)
    if code == -4:
        raise ValueError(f"boosts must be {n} finite numbers")
    if code == -2:
        raise ValueError("uniforms must be in [0, 1)")
    raise Corrupt("nan_scores", "a score is NaN or infinite")


def _pool_means(scores: F32) -> F64:
    """Mean over the draws, (n, m) → (n,), in float64 and in one order: eight parts, four lanes, the rest."""
    n, m = scores.shape
    q = m // 8
    parts = scores[:, : 8 * q].astype(float).reshape(n, 8, q)
    for _ in range(3):
        parts = parts[:, 0::2] + parts[:, 1::2]  # 8 → 4 → 2 → 1
    folded = parts[:, 0]
    lanes: F64 = np.zeros((n, 4))
    for j in range(0, q - q % 4, 4):
        lanes += folded[:, j : j + 4]
    total: F64 = (lanes[:, 0] + lanes[:, 1]) + (lanes[:, 2] + lanes[:, 3])
    for column in [*folded[:, q - q % 4 :].T, *scores[:, 8 * q :].T.astype(float)]:
        total = total + column
    means: F64 = total / m
    return means


def _inverse_gaps(means: F64, temperature: float) -> F64:
    """Weights of `inverse_gap` in units of 2⁻⁴⁰, (∣R∣,)."""
    gaps = means.max() - means
    with np.errstate(over="ignore"):  # a gap that no float holds leaves no weight
        weights: F64 = np.floor(RESOLUTION / (len(means) + gaps / temperature))
    weights[gaps == 0] = np.floor((RESOLUTION - weights[gaps > 0].sum()) / (gaps == 0).sum())
    return weights


def _in_order(values: F64) -> float:
    """Sum from left to right: `np.sum` adds in an order of its own."""
    return float(np.add.accumulate(values)[-1]) if len(values) else 0.0


def _checked(
    scores: F32,
    k: int,
    u: F64,
    settings: DrawSettings,
    boosts: F64 | None,
    masks: Mask | None,
    pins: Mapping[int, int] | None,
    within: Within | None,
) -> tuple[F32, Mask, I64]:
    """Scores (n, m), masks (k, n) or empty, pins (k,) with −1 or empty: or ValueError."""
    if scores.ndim != 2 or scores.dtype != np.float32 or not scores.shape[1]:
        raise ValueError(f"scores must be float32 (n, m ≥ 1), got {scores.dtype} {scores.shape}")
    n = len(scores)
    if k < 0 or u.shape != (k,) or u.dtype != np.float64:
        raise ValueError(f"u must be {k} float64, one a slot, got {u.dtype} {u.shape}")
    if settings.head not in HEADS:
        raise ValueError(f"unknown head {settings.head!r}, known: {', '.join(HEADS)}")
    if not (0.0 <= settings.floor <= 1.0 and 0.0 < settings.max_share <= 1.0 and 0.0 < settings.temperature < np.inf):
        raise ValueError(f"floor in [0, 1], max_share in (0, 1], temperature > 0 and finite, got {settings}")
    if boosts is not None and boosts.shape != (n,):
        raise ValueError(f"boosts must be {n} finite numbers, got {boosts.shape}")
    if masks is None:
        masks = EVERYWHERE
    elif masks.shape != (k, n) or masks.dtype != np.bool_:
        raise ValueError(f"masks must be bool ({k}, {n}), got {masks.dtype} {masks.shape}")
    pinned = NOWHERE
    if pins:
        pinned = np.empty(k, np.int64)
        pinned.fill(-1)  # half the time of np.full
        for slot, row in pins.items():
            if not (0 <= slot < k and 0 <= row < n):
                raise ValueError(f"pin of row {row} to slot {slot}: there are {n} rows and {k} slots")
            pinned[slot] = row
        if len(pins) > 1 and len(set(pins.values())) < len(pins):
            raise ValueError("one row is pinned to two slots")
    return plain(scores), plain(masks), pinned
