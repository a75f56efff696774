"""The law of `policies/slate.py`, compiled: the same numbers bit for bit, in the time one request has for them.

Fast     candidate-major passes, so that the compiler works on eight draws at once; every draw remembers its best candidate,
         and after a pick only the draws that wanted the picked one look again (in one pass for all when they are many)
Equal    every sum runs in the order the reference states, or is of integers; no fast-math, no fused multiply-add;
         both versions call the same `softmax_weights`, hence the same `exp`

Under constraints and diversity R_t may also get rows back, and scores may fall: then the draws look again whose best row has
gone or moved, and rows that came are shown to every draw.

A draw's `top` (m,) is its largest score among the rows that are left, `ties` (m,) how many have it, `best` (m,) one of them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled
from policies.reranking.within_fast import (
    constrain,
    diversify,
    due_slots,
    fits,
    missed,
    nothing_shown,
    pinned_slots,
    stands,
)
from policies.types import F32, F64, I64, Mask

I32 = NDArray[np.int32]

DRAWS, ONE_DRAW, SOFTMAX, INVERSE_GAP = 0, 1, 2, 3
UNIT = 720720  # a draw's vote: divisible by 1..16, so that ties of up to 16 candidates split it without remainder
RESOLUTION = 2.0**40  # softmax and gap weights are whole multiples of 2⁻⁴⁰: sums of them do not depend on order
MANY = 8  # when more than 1 in 8 draws have to look again, one pass for all of them is cheaper (measured)


@compiled
def pool_means(scores: F32, lifts: F32) -> F64:
    """Mean of each row (n, m) with its lift (n,) → (n,): eight parts folded pairwise, then four lanes, then what is left over."""
    n, m = scores.shape
    q = m // 8
    means, folded = np.empty(n), np.empty(q)
    for c in range(n):
        row, lift = scores[c], lifts[c]
        for j in range(q):
            a = np.float64(row[j] + lift) + np.float64(row[q + j] + lift)
            b = np.float64(row[2 * q + j] + lift) + np.float64(row[3 * q + j] + lift)
            d = np.float64(row[4 * q + j] + lift) + np.float64(row[5 * q + j] + lift)
            e = np.float64(row[6 * q + j] + lift) + np.float64(row[7 * q + j] + lift)
            folded[j] = (a + b) + (d + e)
        a = b = d = e = np.float64(0.0)
        for j in range(0, q - q % 4, 4):
            a += folded[j]
            b += folded[j + 1]
            d += folded[j + 2]
            e += folded[j + 3]
        total = (a + b) + (d + e)
        for j in range(q - q % 4, q):
            total += folded[j]
        for j in range(8 * q, m):
            total += row[j] + lift
        means[c] = total / m
    return means


@compiled
def softmax_weights(means: F64, rows: I64, temperature: float, weights: F64) -> None:
    """Write weights[rows] ∝ exp(mean / temperature): whole numbers, the largest is RESOLUTION."""
    top = -np.inf
    for c in rows:
        top = max(top, means[c])
    for c in rows:
        weights[c] = math.floor(math.exp((means[c] - top) / temperature) * RESOLUTION)


@compiled
def _gap_weights(means: F64, rows: I64, temperature: float, weights: F64) -> None:
    """Write weights[rows] = 1 / (∣R∣ + gap / temperature), and to those without a gap what is left of 1: whole numbers."""
    top, count, others = -np.inf, 0, 0.0
    for c in rows:
        top = max(top, means[c])
    for c in rows:
        if means[c] == top:
            count += 1
        else:
            weights[c] = math.floor(RESOLUTION / (len(rows) + (top - means[c]) / temperature))
            others += weights[c]
    for c in rows:
        if means[c] == top:
            weights[c] = math.floor((RESOLUTION - others) / count)


@compiled
def _best_of_all(scores: F32, lifts: F32, less: F32, rows: I64, top: F32, best: I32, ties: I32) -> None:
    """For every draw its largest score among `rows`, one row that has it, and how many have it."""
    m = scores.shape[1]
    this = np.int32(rows[0])
    row, lift, minus = scores[this], lifts[this], less[this]
    for i in range(m):
        top[i] = row[i] + lift - minus
        best[i] = this
        ties[i] = 1
    equal = np.int32(0)
    for j in range(1, len(rows)):
        this = np.int32(rows[j])
        row, lift, minus = scores[this], lifts[this], less[this]
        for i in range(m):
            s, t = row[i] + lift - minus, top[i]
            equal |= np.int32(s == t)
            best[i] = this if s > t else best[i]
            top[i] = s if s > t else t
    if equal:
        ties[:] = 0
        for c in rows:
            row, lift, minus = scores[c], lifts[c], less[c]
            for i in range(m):
                ties[i] += np.int32(row[i] + lift - minus == top[i])


@compiled
def _units(ties: int) -> float:
    """What each of `ties` candidates gets of one draw's vote: whole units, so that sums are exact."""
    return float(UNIT) if ties == 1 else float(max(1, UNIT // ties))


@compiled
def _vote(
    scores: F32,
    lifts: F32,
    less: F32,
    rows: I64,
    top: F32,
    best: I32,
    ties: I32,
    posterior: F64,
    exact: bool,
    weights: F64,
) -> None:
    """Every draw votes for its best candidates: in units when `exact`, else with its posterior weight."""
    for c in rows:
        weights[c] = 0.0
    for i in range(scores.shape[1]):
        share = _units(ties[i]) if exact else posterior[i] / ties[i]
        if ties[i] == 1:
            weights[best[i]] += share
        else:
            for c in rows:
                if scores[c, i] + lifts[c] - less[c] == top[i]:
                    weights[c] += share


@compiled
def _compare(before: I64, rows: I64, was: F32, less: F32, stays: I64, gone: I64, came: I64) -> tuple[int, int, int]:
    """What became of R = `before` now that it is `rows` (both ascending) and the penalties `was` (n,) are `less`: rows in both,
    rows that left or whose scores fell, rows that are new; how many of each."""
    s, g, c, at = 0, 0, 0, 0
    for row in rows:
        while at < len(before) and before[at] < row:
            gone[g] = before[at]
            g += 1
            at += 1
        if at < len(before) and before[at] == row:
            stays[s] = row
            s += 1
            at += 1
            if less[row] != was[row]:
                gone[g] = row
                g += 1
        else:
            came[c] = row
            c += 1
    for j in range(at, len(before)):
        gone[g] = before[j]
        g += 1
    return s, g, c


@compiled
def _vote_again(
    scores: F32,
    lifts: F32,
    was: F32,
    less: F32,
    before: I64,
    stays: I64,
    gone: I64,
    came: I64,
    top: F32,
    best: I32,
    ties: I32,
    weights: F64,
) -> bool:
    """Draws that had one of `gone` for their best take back their units and vote anew among `stays`, then every draw looks at
    the rows that `came`; False when these are too many. See `_compare`; stays has room for what came."""
    m, left = scores.shape[1], len(stays) - len(came)
    if left == 0 or len(came) * MANY > len(stays) or 2 * len(gone) > len(stays):
        return False
    lost = np.zeros(m, np.bool_)
    for c in gone:
        row, lift, minus = scores[c], lifts[c], was[c]
        for i in range(m):
            lost[i] |= row[i] + lift - minus == top[i]
    count = 0
    for i in range(m):
        count += lost[i]
    if count * MANY > m:
        return False
    for i in range(m):
        if not lost[i]:
            continue
        if ties[i] == 1:
            weights[best[i]] -= UNIT
        else:
            for c in before:
                if scores[c, i] + lifts[c] - was[c] == top[i]:
                    weights[c] -= _units(ties[i])
        score = np.float32(-np.inf)
        for c in stays[:left]:
            s = scores[c, i] + lifts[c] - less[c]
            if s >= score:  # seldom: writing to memory keeps this a branch, twice as fast as what arithmetic would be
                ties[i] = 1 if s > score else ties[i] + 1
                best[i] = c
                score = s
        top[i] = score
        if ties[i] == 1:
            weights[best[i]] += UNIT
        else:
            for c in stays[:left]:
                if scores[c, i] + lifts[c] - less[c] == score:
                    weights[c] += _units(ties[i])

    for c in came:
        weights[c] = 0.0
        row, lift, minus = scores[c], lifts[c], less[c]
        for i in range(m):
            s = row[i] + lift - minus
            if s < top[i]:
                continue
            if ties[i] == 1:
                weights[best[i]] -= UNIT
            else:
                for other in stays[:left]:
                    if scores[other, i] + lifts[other] - less[other] == top[i]:
                        weights[other] -= _units(ties[i])
            if s > top[i]:
                top[i], best[i], ties[i] = s, c, 1
                weights[c] += UNIT
            else:
                ties[i] += 1
                weights[c] += _units(ties[i])
                for other in stays[:left]:
                    if scores[other, i] + lifts[other] - less[other] == top[i]:
                        weights[other] += _units(ties[i])
        stays[left] = c
        left += 1
    return True


@compiled
def _first_greedy(means: F64, rows: I64) -> int:
    """The first row of G_t."""
    greedy: int = rows[0]
    for c in rows[1:]:
        if means[c] > means[greedy]:
            greedy = c
    return greedy


@compiled
def _law(
    weights: F64, means: F64, rows: I64, greedy: int, floor: float, max_share: float
) -> tuple[float, float, float, float, float]:
    """What turns weights into probabilities, p(c) = α (w·scale + even) + bonus·1[c ∈ G]: scale, even, α, bonus, 1 − p(G)."""
    r = len(rows)
    total, others, count = 0.0, 0.0, 0
    for c in rows:
        total += weights[c]
        if means[c] == means[greedy]:
            count += 1
        else:
            others += weights[c]
    scale, even = (1.0 - floor) / total, floor / r
    explored = min(1.0, others * scale + (r - count) * even)
    alpha = 1.0 if explored <= max_share else max_share / explored
    return scale, even, alpha, (1.0 - alpha) / count, alpha * explored


@compiled
def _collect(free: Mask, masks: Mask, t: int, rows: I64) -> int:
    """Write R_t into `rows`, ascending; how many they are."""
    left = 0
    for c in range(len(free)):
        if free[c] and (len(masks) == 0 or masks[t, c]):
            rows[left] = c
            left += 1
    return left


@compiled
def _remove(rows: I64, left: int, row: int) -> int:
    """Take `row` out of the ascending rows[:left]; how many are left."""
    left -= 1
    at = 0
    while at < left and rows[at] != row:
        at += 1
    for j in range(at, left):
        rows[j] = rows[j + 1]
    return left


@compiled
def _record(
    integers: I64,
    reals: F64,
    at: int,
    slot: int,
    item: int,
    remaining: int,
    greedy: int,
    propensity: float,
    alpha: float,
    explored: float,
) -> None:
    integers[0, at], integers[1, at], integers[2, at], integers[3, at] = slot, item, remaining, greedy
    reals[0, at], reals[1, at], reals[2, at] = propensity, alpha, explored


@compiled
def fill(
    scores: F32,
    boosts: F64,
    masks: Mask,
    pins: I64,
    u: F64,
    head: int,
    floor: float,
    max_share: float,
    temperature: float,
    integers: I64,
    reals: F64,
    distributions: F64,
    ops: I64,
    codes: I64,
    limits: I64,
    amounts: F64,
    covers: I64,
    vectors: F32,
    acts: NDArray[np.uint8],
) -> int:
    """Fill the slots; return how many were filled, or −1 when a score is not finite, −2 when a uniform is not in [0, 1), −3 when
    what depends on the slots before does not fit, −4 when a boost is not finite.

    scores (n, m); boosts (n,), or empty; masks (k, n), or no rows when all is allowed; pins (k,) row or −1, or empty; u (k,)
    ops (L,) … vectors   what depends on the slots before (`Within`; `amounts` are its weights), or empty
    Written, a column a filled slot: integers (4, k) slot item remaining greedy; reals (3, k) propensity α explored; unless it has no
    rows, a row of distributions (k, n), given as zeros; acts (L, k), given as zeros, what each constraint did in each slot
    """
    n, m = scores.shape
    for x in u:
        if not 0.0 <= x < 1.0:
            return -2
    something = len(ops) > 0 or len(amounts) > 1 or amounts[0] != 0.0
    if something and not fits(n, len(u), ops, codes, limits, amounts, covers, vectors):
        return -3
    lifts = np.zeros(n, np.float32)
    for c in range(len(boosts)):
        lifts[c] = np.float32(boosts[c])
        if not math.isfinite(boosts[c]):
            return -4
    means = pool_means(scores, lifts)
    for mean in means:
        if not math.isfinite(mean):
            return -1

    free = np.ones(n, np.bool_)  # neither drawn nor pinned
    for row in pins:
        if row >= 0:
            free[row] = False
    rows, left = np.empty(n, np.int64), 0  # R_t is rows[:left], ascending
    weights, weighed = np.zeros(n), 0.0  # base before it is normalised; the mean that softmax weights are relative to
    top, best, ties = np.empty(m, np.float32), np.empty(m, np.int32), np.empty(m, np.int32)
    posterior = np.full(m, 1.0 / m)  # W_t(z), normalised
    collected, picked, greedy = -1, -1, -1  # slot whose mask made `rows`; row drawn since; first of G_t
    less, was = np.zeros(n, np.float32), np.zeros(n, np.float32)  # penalties now, and when the draws last voted
    one, none = np.empty(1, np.int64), rows[:0]
    constrained, diverse = len(ops) > 0, len(amounts) > 1 or amounts[0] > 0.0
    inside = constrained or diverse
    if constrained:
        seen, due, ahead = nothing_shown(ops, n, limits), due_slots(ops, limits), pinned_slots(pins)
        peaks = np.zeros(len(ops), np.int64)
    else:
        seen, due, ahead, peaks = codes, free, rows, rows
    if inside:
        spare, stays, gone, came = (
            np.empty(n, np.int64),
            np.empty(n, np.int64),
            np.empty(n, np.int64),
            np.empty(n, np.int64),
        )
    else:
        spare, stays, gone, came = rows, rows, rows, rows
    if diverse:
        plain_means, near, covered = means.copy(), np.zeros(n, np.float32), covers < 0
        diversify(amounts, covers, vectors, -1, near, covered, less, plain_means, means)
    else:
        plain_means, near, covered = means, less, masks
    filled = 0
    for t in range(len(u)):
        if len(pins) > 0 and pins[t] >= 0:
            _record(integers, reals, filled, t, pins[t], 1, pins[t], 1.0, 1.0, 0.0)
            if len(distributions) > 0:
                distributions[filled, pins[t]] = 1.0
            filled += 1
            if constrained:
                stands(ops, codes, pins[t], t, seen, peaks)
                missed(ops, limits, due, seen, t, acts)
            if diverse:
                diversify(amounts, covers, vectors, pins[t], near, covered, less, plain_means, means)
            continue

        # R_t: the one before without the row picked, unless a mask or what stands within the slate makes it another one
        before = rows[:left]
        if inside:
            left = _collect(free, masks, t, spare)
            if constrained:
                left = constrain(ops, codes, limits, pins, ahead, due, seen, peaks, t, spare, left, acts)
            rows, spare = spare, rows
            anew = collected < 0
        else:
            anew = collected < 0 or (len(masks) > 0 and (masks[t] != masks[collected]).any())
            if anew:
                left = _collect(free, masks, t, rows)
            elif picked >= 0:
                left = _remove(rows, left, picked)
        collected = t
        if left == 0:
            picked = -1
            if constrained:
                missed(ops, limits, due, seen, t, acts)
            continue
        allowed = rows[:left]
        if anew or inside or picked == greedy:
            greedy = _first_greedy(means, allowed)

        # base
        if head == SOFTMAX:
            if anew or inside or means[greedy] != weighed:
                softmax_weights(means, allowed, temperature, weights)
                weighed = means[greedy]
        elif head == INVERSE_GAP:
            _gap_weights(means, allowed, temperature, weights)
        else:
            if not anew and inside:
                s, g, c = _compare(before, allowed, was, less, stays, gone, came)
                anew = not _vote_again(
                    scores, lifts, was, less, before, stays[: s + c], gone[:g], came[:c], top, best, ties, weights
                )
            elif not anew and picked >= 0:
                one[0] = picked
                anew = not _vote_again(scores, lifts, was, less, allowed, allowed, one, none, top, best, ties, weights)
            if anew:
                _best_of_all(scores, lifts, less, allowed, top, best, ties)
            if anew or head == ONE_DRAW:
                _vote(scores, lifts, less, allowed, top, best, ties, posterior, head == DRAWS, weights)
            if diverse:
                was[:] = less

        # floor, cap, draw
        scale, even, alpha, bonus, explored = _law(weights, means, allowed, greedy, floor, max_share)
        reached, picked, propensity = 0.0, -1, 0.0
        for c in allowed:
            p = alpha * (weights[c] * scale + even) + (bonus if means[c] == means[greedy] else 0.0)
            if len(distributions) > 0:
                distributions[filled, c] = p
            if p > 0.0 and reached <= u[t]:
                picked, propensity = c, p
            reached += p
            if reached > u[t] and len(distributions) == 0:
                break
        _record(integers, reals, filled, t, picked, left, greedy, propensity, alpha, explored)
        filled += 1
        free[picked] = False

        if head == ONE_DRAW:
            extra = bonus if means[picked] == means[greedy] else 0.0
            row_picked, lift, minus = scores[picked], lifts[picked], less[picked]
            for i in range(m):
                won = 1.0 / ties[i] if row_picked[i] + lift - minus == top[i] else 0.0
                q = alpha * ((1.0 - floor) * won + even) + extra
                posterior[i] = posterior[i] * q / propensity
        if constrained:
            stands(ops, codes, picked, t, seen, peaks)
            missed(ops, limits, due, seen, t, acts)
        if diverse:
            diversify(amounts, covers, vectors, picked, near, covered, less, plain_means, means)
    return filled
