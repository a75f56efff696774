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
from policies.reranking.within_fast import constrain, diversify, due_slots, missed, nothing_shown, stands
from policies.types import F32, F64, I64, Mask

I32 = NDArray[np.int32]

DRAWS, ONE_DRAW, SOFTMAX, INVERSE_GAP = 0, 1, 2, 3
UNIT = 720720  # a draw's vote: divisible by 1..16, so that ties of up to 16 candidates split it without remainder
RESOLUTION = 2.0**40  # softmax and gap weights are whole multiples of 2⁻⁴⁰: sums of them do not depend on order
MANY = 8  # when more than 1 in 8 draws have to look again, one pass for all of them is cheaper (measured)


@compiled
def pool_means(scores: F32) -> F64:
    """Mean of each row (n, m) → (n,): eight parts folded pairwise, then four lanes, then what is left over."""
    n, m = scores.shape
    q = m // 8
    means, folded = np.empty(n), np.empty(q)
    for c in range(n):
        row = scores[c]
        for j in range(q):
            a = np.float64(row[j]) + np.float64(row[q + j])
            b = np.float64(row[2 * q + j]) + np.float64(row[3 * q + j])
            d = np.float64(row[4 * q + j]) + np.float64(row[5 * q + j])
            e = np.float64(row[6 * q + j]) + np.float64(row[7 * q + j])
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
            total += row[j]
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
def _best_of_all(scores: F32, rows: I64, top: F32, best: I32, ties: I32) -> None:
    """For every draw its largest score among `rows`, one row that has it, and how many have it."""
    m = scores.shape[1]
    this = np.int32(rows[0])
    row = scores[this]
    for i in range(m):
        top[i] = row[i]
        best[i] = this
        ties[i] = 1
    equal = np.int32(0)
    for j in range(1, len(rows)):
        this = np.int32(rows[j])
        row = scores[this]
        for i in range(m):
            s, t = row[i], top[i]
            equal |= np.int32(s == t)
            best[i] = this if s > t else best[i]
            top[i] = s if s > t else t
    if equal:
        ties[:] = 0
        for c in rows:
            row = scores[c]
            for i in range(m):
                ties[i] += np.int32(row[i] == top[i])


@compiled
def _units(ties: int) -> float:
    """What each of `ties` candidates gets of one draw's vote: whole units, so that sums are exact."""
    return float(UNIT) if ties == 1 else float(max(1, UNIT // ties))


@compiled
def _vote(scores: F32, rows: I64, top: F32, best: I32, ties: I32, posterior: F64, exact: bool, weights: F64) -> None:
    """Every draw votes for its best candidates: in units when `exact`, else with its posterior weight."""
    for c in rows:
        weights[c] = 0.0
    for i in range(scores.shape[1]):
        share = _units(ties[i]) if exact else posterior[i] / ties[i]
        if ties[i] == 1:
            weights[best[i]] += share
        else:
            for c in rows:
                if scores[c, i] == top[i]:
                    weights[c] += share


@compiled
def _vote_again(scores: F32, rows: I64, picked: int, top: F32, best: I32, ties: I32, weights: F64) -> bool:
    """Draws whose best candidate was picked take back their units and vote anew; False when these are too many."""
    m = scores.shape[1]
    row = scores[picked]
    count = 0
    for i in range(m):
        count += row[i] == top[i]
    if count * MANY > m:
        return False
    for i in range(m):
        if row[i] != top[i]:
            continue
        if ties[i] > 1:
            for c in rows:
                if scores[c, i] == top[i]:
                    weights[c] -= _units(ties[i])
        score = np.float32(-np.inf)
        for c in rows:
            s = scores[c, i]
            if s >= score:  # seldom: writing to memory keeps this a branch, twice as fast as what arithmetic would be
                ties[i] = 1 if s > score else ties[i] + 1
                best[i] = c
                score = s
        top[i] = score
        if ties[i] == 1:
            weights[best[i]] += UNIT
        else:
            for c in rows:
                if scores[c, i] == score:
                    weights[c] += _units(ties[i])
    return True


@compiled
def _vote_changed(
    scores: F32,
    before: I64,
    rows: I64,
    moved: Mask,
    top: F32,
    best: I32,
    ties: I32,
    weights: F64,
) -> bool:
    """As `_vote_again` from R = `before` to R = `rows` (both ascending), where scores of `moved` rows have fallen; False when
    one pass over everything is cheaper."""
    m = scores.shape[1]
    off = moved.copy()  # rows that a draw cannot have for its best any more without looking
    current, came = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    stays, new, at = 0, 0, 0
    for c in rows:
        while at < len(before) and before[at] < c:
            off[before[at]] = True
            at += 1
        if at < len(before) and before[at] == c:
            current[stays] = c
            stays += 1
            at += 1
        else:
            came[new] = c
            new += 1
    for j in range(at, len(before)):
        off[before[j]] = True
    if stays == 0 or new * MANY > len(rows):
        return False
    any_moved, count = moved.any(), 0
    for i in range(m):
        if ties[i] > 1 and any_moved:
            return False  # who was tied cannot be told from the scores as they are now
        count += off[best[i]] or ties[i] > 1
    if count * MANY > m:
        return False

    for i in range(m):
        if ties[i] == 1 and not off[best[i]]:
            continue
        if ties[i] == 1:
            weights[best[i]] -= UNIT
        else:
            for c in current[:stays]:
                if scores[c, i] == top[i]:
                    weights[c] -= _units(ties[i])
        score = np.float32(-np.inf)
        for c in current[:stays]:
            s = scores[c, i]
            if s >= score:
                ties[i] = 1 if s > score else ties[i] + 1
                best[i] = c
                score = s
        top[i] = score
        if ties[i] == 1:
            weights[best[i]] += UNIT
        else:
            for c in current[:stays]:
                if scores[c, i] == score:
                    weights[c] += _units(ties[i])

    for c in came[:new]:
        weights[c] = 0.0
        row = scores[c]
        for i in range(m):
            if row[i] < top[i]:
                continue
            if ties[i] == 1:
                weights[best[i]] -= UNIT
            else:
                for other in current[:stays]:
                    if scores[other, i] == top[i]:
                        weights[other] -= _units(ties[i])
            if row[i] > top[i]:
                top[i], best[i], ties[i] = row[i], c, 1
                weights[c] += UNIT
            else:
                ties[i] += 1
                weights[c] += _units(ties[i])
                for other in current[:stays]:
                    if scores[other, i] == top[i]:
                        weights[other] += _units(ties[i])
        current[stays] = c
        stays += 1
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
) -> tuple[float, float, float, float]:
    """What turns weights into probabilities, p(c) = α (w·scale + even) + bonus·1[c ∈ G]: scale, even, α, bonus."""
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
    return scale, even, alpha, (1.0 - alpha) / count


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
) -> None:
    integers[0, at], integers[1, at], integers[2, at], integers[3, at] = slot, item, remaining, greedy
    reals[0, at], reals[1, at] = propensity, alpha


@compiled
def fill(
    scores: F32,
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
    """Fill the slots; return how many were filled, or −1 when a score is not finite, −2 when a uniform is not in [0, 1).

    scores (n, m); masks (k, n), or no rows when all is allowed; pins (k,) row or −1, or empty; u (k,)
    ops (L,) … vectors   what depends on the slots before (`Within`; `amounts` are its weights), or empty
    Written, a column a filled slot: integers (4, k) slot item remaining greedy; reals (2, k) propensity α; unless it has no
    rows, a row of distributions (k, n), given as zeros; acts (L, k), given as zeros, what each constraint did in each slot
    """
    n, m = scores.shape
    for x in u:
        if not 0.0 <= x < 1.0:
            return -2
    means = pool_means(scores)
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
    constrained, diverse = len(ops) > 0, len(amounts) > 1 or amounts[0] > 0.0
    if constrained:
        seen, due = nothing_shown(ops, n, limits), due_slots(ops, limits)
    else:
        seen, due = codes, free
    if constrained or diverse:
        spare, moved = (
            np.empty(n, np.int64),
            np.zeros(n, np.bool_),
        )  # the next R_t; rows whose scores fell since the last
    else:
        spare, moved = rows, free
    if diverse:
        plain, plain_means, less, near = scores, means, np.zeros(n), np.zeros(n, np.float32)
        scores, covered = scores.copy(), covers < 0
        diversify(plain, amounts, covers, vectors, -1, near, covered, less, scores, moved)
        means = plain_means - less
    else:
        plain, plain_means, less, near, covered = scores, means, means, top, masks
    filled = 0
    for t in range(len(u)):
        if len(pins) > 0 and pins[t] >= 0:
            _record(integers, reals, filled, t, pins[t], 1, pins[t], 1.0, 1.0)
            if len(distributions) > 0:
                distributions[filled, pins[t]] = 1.0
            filled += 1
            if constrained:
                stands(ops, codes, pins[t], t, seen)
                missed(ops, limits, due, seen, t, acts)
            if diverse:
                diversify(plain, amounts, covers, vectors, pins[t], near, covered, less, scores, moved)
                means = plain_means - less
            continue

        # R_t: the one before without the row picked, unless a mask or what stands within the slate makes it another one
        before = rows[:left]
        if constrained or diverse:
            left = _collect(free, masks, t, spare)
            if constrained:
                left = constrain(ops, codes, limits, pins, due, seen, t, spare, left, acts)
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
        if anew or constrained or diverse or picked == greedy:
            greedy = _first_greedy(means, allowed)

        # base
        if head == SOFTMAX:
            if anew or constrained or diverse or means[greedy] != weighed:
                softmax_weights(means, allowed, temperature, weights)
                weighed = means[greedy]
        elif head == INVERSE_GAP:
            _gap_weights(means, allowed, temperature, weights)
        else:
            if constrained or diverse:
                anew = anew or not _vote_changed(scores, before, allowed, moved, top, best, ties, weights)
            else:
                anew = anew or not _vote_again(scores, allowed, picked, top, best, ties, weights)
            if anew:
                _best_of_all(scores, allowed, top, best, ties)
            if anew or head == ONE_DRAW:
                _vote(scores, allowed, top, best, ties, posterior, head == DRAWS, weights)
        if diverse:
            moved[:] = False

        # floor, cap, draw
        scale, even, alpha, bonus = _law(weights, means, allowed, greedy, floor, max_share)
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
        _record(integers, reals, filled, t, picked, left, greedy, propensity, alpha)
        filled += 1
        free[picked] = False

        if head == ONE_DRAW:
            extra = bonus if means[picked] == means[greedy] else 0.0
            row_picked = scores[picked]
            for i in range(m):
                won = 1.0 / ties[i] if row_picked[i] == top[i] else 0.0
                q = alpha * ((1.0 - floor) * won + even) + extra
                posterior[i] = posterior[i] * q / propensity
        if constrained:
            stands(ops, codes, picked, t, seen)
            missed(ops, limits, due, seen, t, acts)
        if diverse:
            diversify(plain, amounts, covers, vectors, picked, near, covered, less, scores, moved)
            means = plain_means - less
    return filled
