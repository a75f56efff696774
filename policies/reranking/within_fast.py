"""The law of `policies/reranking/within.py`, compiled: what the draw calls between two slots.

`seen` (L, n) is all that constraints remember of the slots before: how often each candidate's kind was shown (`most`), how
many members were (`least`, in column 0), the last slot of each candidate's kind (`spacing`).
"""

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled
from policies.reranking.within import ACTED, HEAVIEST, LEAST, MASK, MOST, PASSED_OVER, SPACING
from policies.types import F32, F64, I64, Mask


@compiled
def fits(n: int, k: int, ops: I64, codes: I64, limits: I64, weights: F64, covers: I64, vectors: F32) -> bool:
    """Whether `Within.check` has nothing to say of these."""
    if codes.shape != (len(ops), n) or limits.shape != (len(ops), k) or len(weights) != 1 + len(covers):
        return False
    if (len(covers) > 0 and covers.shape[1] != n) or (weights[0] != 0.0 and vectors.shape[1] != n):
        return False
    for weight in weights:  # noqa: SIM110 - the compiler knows no generators
        if not 0.0 <= weight <= HEAVIEST:
            return False
    return True


@compiled
def stands(ops: I64, codes: I64, row: int, t: int, seen: I64, peaks: I64) -> None:
    """Item `row` stands in slot t: counts of its kind in slots 0..t (`most`, `least`), the last slot of it (`spacing`); peaks (L,)
    are the largest counts of any kind (`most`)."""
    for line in range(len(ops)):
        mine = codes[line, row]
        if mine < 0:
            continue
        if ops[line] == SPACING:
            for c in range(codes.shape[1]):
                if codes[line, c] == mine:
                    seen[line, c] = t
        elif ops[line] == MOST:
            for c in range(codes.shape[1]):
                seen[line, c] += codes[line, c] == mine
            peaks[line] = max(peaks[line], seen[line, row])
        elif ops[line] == LEAST:
            seen[line, 0] += 1


@compiled
def nothing_shown(ops: I64, n: int, limits: I64) -> I64:
    """Nothing was shown: counts of 0 (`most`, `least`), last slots far before the first (`spacing`)."""
    seen = np.zeros((len(ops), max(n, 1)), np.int64)  # a minimum counts in column 0
    for line in range(len(ops)):
        if ops[line] == SPACING:
            for t in range(limits.shape[1]):
                seen[line, :] = min(seen[line, 0], -limits[line, t])
    return seen


@compiled
def due_slots(ops: I64, limits: I64) -> Mask:
    """Slots where some minimum rises."""
    due = np.zeros(limits.shape[1], np.bool_)
    for line in range(len(ops)):
        if ops[line] == LEAST:
            for t in range(len(due)):
                due[t] |= limits[line, t] > (limits[line, t - 1] if t > 0 else 0)
    return due


@compiled
def pinned_slots(pins: I64) -> I64:
    """Slots that are pinned, ascending."""
    found, count = np.empty(len(pins), np.int64), 0
    for t in range(len(pins)):
        if pins[t] >= 0:
            found[count] = t
            count += 1
    return found[:count]


@compiled
def _need(codes: I64, limits: I64, pins: I64, ahead: I64, seen: I64, line: int, t: int, s: int, left: int) -> int:
    """Members that slots t..s still have to show for a minimum, of the `left` that there are."""
    need: int = limits[line, s] - seen[line, 0]
    for slot in ahead:
        if t < slot <= s and codes[line, pins[slot]] >= 0:
            need -= 1
    return max(0, min(need, left))


@compiled
def _passes_most(codes: I64, limits: I64, pins: I64, ahead: I64, seen: I64, line: int, t: int, c: int) -> bool:
    """Whether one more of c's kind is within the limit here and at every pin of its kind that comes later."""
    shown = seen[line, c] + 1
    if shown > limits[line, t]:
        return False
    for slot in ahead:
        if slot > t and codes[line, pins[slot]] == codes[line, c]:
            shown += 1
            if shown > limits[line, slot]:
                return False
    return True


@compiled
def _passes_spacing(codes: I64, limits: I64, pins: I64, ahead: I64, seen: I64, line: int, t: int, c: int) -> bool:
    """Whether none of c's kind stands too near: seen is the last slot of it, −∞ without any."""
    gap = limits[line, t]
    if t - seen[line, c] < gap:
        return False
    for slot in ahead:  # noqa: SIM110 - the compiler knows no generators
        if t < slot < t + gap and codes[line, pins[slot]] == codes[line, c]:
            return False
    return True


@compiled
def constrain(
    ops: I64,
    codes: I64,
    limits: I64,
    pins: I64,
    ahead: I64,
    due: Mask,
    seen: I64,
    peaks: I64,
    t: int,
    rows: I64,
    left: int,
    acts: NDArray[np.uint8],
) -> int:
    """Take out of rows[:left] what the constraints do not let through at slot t; how many are left, never 0 of some."""
    if left == 0:
        return 0
    keeps = np.empty(left, np.bool_)
    # of each minimum; −1: not counted yet
    members, needs = (
        np.full(len(ops), -1, np.int64),
        np.zeros(len(ops), np.int64),
    )
    first, whole = rows[:left].copy(), left  # the candidates before any constraint, among whom members are counted
    held = np.zeros(len(ops), np.bool_)  # minima that were not passed over
    alone = len(ahead) == 0 or ahead[-1] <= t  # no pin comes later
    for line in range(len(ops)):
        if ops[line] == MOST and alone and peaks[line] < limits[line, t]:
            continue  # no kind has reached its limit
        kept = left
        keeps[:left] = True
        if ops[line] == LEAST:
            held[line] = True
            free, at = 0, t  # slots t + 1 .. s without a pin
            for s in range(t, len(due)):
                if s > t and not due[s]:  # what was missed before t is made up for as soon as it can be
                    continue
                free += s - at
                for slot in ahead:
                    free -= at < slot <= s
                at, total = s, 0
                for other in range(line + 1):
                    if held[other]:
                        total += _need(codes, limits, pins, ahead, seen, other, t, s, whole)
                if total <= free:  # even if there were members enough
                    continue
                total = 0
                for other in range(line + 1):
                    if held[other]:
                        if members[other] < 0:
                            members[other] = 0
                            for c in first:
                                members[other] += codes[other, c] >= 0
                        needs[other] = _need(codes, limits, pins, ahead, seen, other, t, s, members[other])
                        total += needs[other]
                if total <= free:
                    continue
                for j in range(left):
                    met = 0
                    for other in range(line + 1):
                        met += held[other] and needs[other] > 0 and codes[other, rows[j]] >= 0
                    if keeps[j] and total - met > free:
                        keeps[j] = False
                        kept -= 1
            held[line] = kept > 0
        else:
            for j in range(left):
                c = rows[j]
                if codes[line, c] < 0:
                    continue
                if ops[line] == MASK:
                    passes = False
                elif ops[line] == MOST:
                    passes = _passes_most(codes, limits, pins, ahead, seen, line, t, c)
                else:
                    passes = _passes_spacing(codes, limits, pins, ahead, seen, line, t, c)
                if not passes:
                    keeps[j] = False
                    kept -= 1
        if kept == 0:
            if ops[line] != LEAST:  # a minimum is judged by what came of it
                acts[line, t] = PASSED_OVER
        elif kept < left:
            acts[line, t] = ACTED
            at = 0
            for j in range(left):
                if keeps[j]:
                    rows[at] = rows[j]
                    at += 1
            left = at
    return left


@compiled
def missed(ops: I64, limits: I64, due: Mask, seen: I64, t: int, acts: NDArray[np.uint8]) -> None:
    """After slot t: minima that were due there and are not reached."""
    for line in range(len(ops)):
        rises = due[t] and ops[line] == LEAST and limits[line, t] > (limits[line, t - 1] if t > 0 else 0)
        if rises and seen[line, 0] < limits[line, t]:
            acts[line, t] = PASSED_OVER


@compiled
def diversify(
    weights: F64,
    covers: I64,
    vectors: F32,
    row: int,
    near: F32,
    covered: Mask,
    less: F32,
    plain: F64,
    means: F64,
) -> None:
    """Item `row` was shown (−1: nothing yet): new penalties `less` (n,), and `means` (n,) that are those `plain` without them.

    near (n,)  largest cosine to an item shown;   covered (P, n)  candidates whose value was shown, or who have none
    """
    n = len(less)
    if row >= 0 and weights[0] > 0.0:
        cosine = np.zeros(n, np.float32)
        for j in range(vectors.shape[0]):
            mine = vectors[j, row]
            for c in range(n):
                cosine[c] += vectors[j, c] * mine
        for c in range(n):
            near[c] = max(near[c], cosine[c])
    if row >= 0:
        for p in range(len(covers)):
            mine_covers = covers[p, row]
            for c in range(n):
                covered[p, c] |= covers[p, c] == mine_covers
    for c in range(n):
        now = weights[0] * near[c]
        for p in range(len(covers)):
            if covered[p, c]:
                now += weights[p + 1]
        less[c] = np.float32(now)
        means[c] = plain[c] - np.float64(less[c])
