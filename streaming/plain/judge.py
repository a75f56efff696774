"""Verdicts and evidence of plain ids, compiled: the rules of `streaming.join` for one decision and at most one feedback.

A pair is (decision, feedback or −1), numbers of records as `scan` has them. It is `fresh` when its decision is of this batch,
and not when a decision of an earlier batch, of which nothing was heard yet, hears its first feedback. A pair that breaks any
rule, or of which a rule would say more than `joined`, is not judged here but left to the general path.
"""

from typing import Any

import numpy as np

from policies.compiling import compiled, compiled_beside
from policies.types import F32, F64, I64
from streaming.plain.hashes import BLOCK, U64, item_hash, same
from streaming.plain.scan import (
    AT,
    CONTEXT,
    CONTEXT_BYTES,
    DECISION,
    FEEDBACK,
    FILLED,
    FLAT,
    FORM,
    ID,
    ID_END,
    KIND,
    KIND_END,
    NAME,
    NAME_END,
    REVISION,
    SHOWN,
    SHOWN_BYTES,
    SLOT,
    SURFACE,
    SURFACE_END,
    U8,
    UNIT,
    UNIT_END,
    WEIGHT,
)

AHEAD, LONGEST, LARGEST = range(3)  # places in `limits`
CORRECTABLE, HORIZON = range(2)  # … in `durations`
# … `sizes`
(ITEM_BYTES, CONTEXT_SIZE, SLOTS, OBJECTIVES, WAITS, NAMED, NAMED_END, KINDS, KINDS_END, SILENCE) = range(10)
RULES, RULES_END = 2, 3  # … in `kinds`, after the place of its name
MOST = 255  # slots, and letters of a name, that a length of one byte can say
ROW, CONTEXTS, ITEMS, REWARDS, PACKED = range(5)  # … in `places`: how far each list is filled


@compiled_beside
def judge(
    text: U8,
    ints: I64,
    reals: F64,
    vectors: F32,
    items: I64,
    propensities: F64,
    appended: F64,
    clocks: F64,
    decisions: I64,
    feedback: I64,
    fresh: Any,
    terms: I64,
    names: U8,
    durations: F64,
    sizes: I64,
    kinds: I64,
    limits: F64,
    kind_of: I64,
) -> Any:
    """Which pairs are plain. kind_of (pairs,): the number of the feedback's kind, −1 without."""
    plain = np.zeros(len(decisions), np.bool_)
    for p in range(len(decisions)):
        d, f, t = decisions[p], feedback[p], terms[p]
        kind_of[p] = -1
        if d < 0 or t < 0 or ints[d, FORM] != DECISION:
            continue
        drawn, size = ints[d], sizes[t]
        k, at, correctable = drawn[FILLED], reals[d, AT], durations[t, CORRECTABLE]
        until = at + correctable
        if fresh[p]:
            if at > clocks[d] + limits[AHEAD] or until < clocks[d]:
                continue
            if correctable > limits[LONGEST] or size[WAITS] or k > size[SLOTS]:
                continue
            if not 0.0 < reals[d, WEIGHT] <= 1.0 or k > MOST or 8 * k * size[OBJECTIVES] > 65_535:
                continue
            if drawn[CONTEXT_BYTES] != 4 * size[CONTEXT_SIZE] or drawn[SHOWN_BYTES] != k * size[ITEM_BYTES]:
                continue
            if not _equal(text, drawn[SURFACE], drawn[SURFACE_END], names, size[NAMED], size[NAMED_END]):
                continue
            flat = drawn[FLAT]
            least, most = 1.0, 0.0
            longest = 0
            for j in range(flat, flat + k):
                least, most = min(least, propensities[j]), max(most, propensities[j])
                longest = max(longest, items[j, 1] - items[j, 0])
            if not (least > 0.0 and most <= 1.0 + 1e-9) or longest > BLOCK:
                continue
            if not _sound(vectors, drawn[CONTEXT], drawn[CONTEXT_BYTES], limits[LARGEST]):
                continue
            if not _sound(vectors, drawn[SHOWN], drawn[SHOWN_BYTES], limits[LARGEST]):
                continue
        if f < 0:
            plain[p] = fresh[p]
            continue
        said, heard_at = ints[f], reals[f, AT]
        if said[FORM] != FEEDBACK or (fresh[p] and f < d) or said[SLOT] >= k:
            continue
        if heard_at > clocks[f] + limits[AHEAD] or until < clocks[f] or heard_at + correctable < appended[f]:
            continue
        if heard_at > at + durations[t, HORIZON]:
            continue
        length = said[UNIT_END] - said[UNIT]
        if length != drawn[UNIT_END] - drawn[UNIT] or not same(text, said[UNIT], drawn[UNIT], length):
            continue
        if not 0 < said[NAME_END] - said[NAME] <= MOST or said[KIND_END] - said[KIND] > MOST:
            continue
        for q in range(size[KINDS], size[KINDS_END]):
            if _equal(text, said[KIND], said[KIND_END], names, kinds[q, 0], kinds[q, 1]):
                kind_of[p] = q
                plain[p] = True
    return plain


@compiled
def _equal(a: U8, start: int, end: int, b: U8, other: int, other_end: int) -> bool:
    if end - start != other_end - other:
        return False
    for j in range(end - start):  # noqa: SIM110 - compiled: a generator is not
        if a[start + j] != b[other + j]:
            return False
    return True


@compiled
def _sound(vectors: F32, start: int, size: int, largest: float) -> bool:
    bad = 0
    for j in range(start >> 2, start + size >> 2):
        bad += not abs(vectors[j]) <= largest
    return bad == 0


@compiled_beside
def fill(
    text: U8,
    ints: I64,
    reals: F64,
    vectors: F32,
    items: I64,
    propensities: F64,
    decisions: I64,
    feedback: I64,
    fresh: Any,
    terms: I64,
    kind_of: I64,
    offsets: I64,
    durations: F64,
    sizes: I64,
    silence: F64,
    kinds: I64,
    columns: I64,
    low: F64,
    high: F64,
    known: U64,
    out_context: F32,
    out_items: F32,
    out_slots: I64,
    out_slates: I64,
    out_numbers: F64,
    out_before: F64,
    out_after: F64,
    out_hashes: U64,
    packed: U8,
    places: I64,
    clipped: I64,
) -> None:
    """Rows of `Changes` and of the checkpoint for pairs that are plain, those of one surface version side by side.

    out_numbers  (5, rows): times, weights, presence before, presence after, propensities
    places       (pairs + 1, 5): how far each list is filled before each pair; a pair that teaches nothing has no rows
    clipped      (pairs,) rewards clipped
    """
    m, v, real = np.empty(16, np.uint64), np.empty(16, np.uint64), np.empty(1)
    octets = real.view(np.uint8)
    row = context = item = reward = end = slate = 0
    for p in range(len(decisions)):
        d, f, t = decisions[p], feedback[p], terms[p]
        drawn, size = ints[d], sizes[t]
        k, o, c, width = drawn[FILLED], size[OBJECTIVES], size[CONTEXT_SIZE], size[ITEM_BYTES] >> 2
        slate = slate if p and terms[p - 1] == t else 0
        place = places[p]
        place[ROW], place[CONTEXTS], place[ITEMS], place[REWARDS], place[PACKED] = row, context, item, reward, end
        for i in range(k):
            for j in range(o):
                silent = silence[size[SILENCE] + j]
                out_after[reward + i * o + j] = silent
                out_before[reward + i * o + j] = 0.0 if fresh[p] else silent
        moved, clipped[p] = fresh[p], 0
        if f >= 0:
            slot = ints[f, SLOT]
            value = reals[f, WEIGHT] / k if slot < 0 else reals[f, WEIGHT]
            for rule in range(kinds[kind_of[p], RULES], kinds[kind_of[p], RULES_END]):
                inside = value
                if not low[rule] <= value <= high[rule]:
                    clipped[p] += k if slot < 0 else 1
                    inside = low[rule] if value < low[rule] else high[rule]
                for i in range(k) if slot < 0 else range(slot, slot + 1):
                    out_after[reward + i * o + columns[rule]] = inside
            if not moved:
                for j in range(reward, reward + k * o):
                    after, before = out_after[j], out_before[j]
                    moved = moved or after != before or np.signbit(after) != np.signbit(before)
        end = _pack(
            text, ints, reals, d, f, offsets[p], durations[t], out_after, reward, k * o, packed, end, octets, real
        )
        if not moved:
            continue
        for i in range(k):
            for j in range(c):
                out_context[context + i * c + j] = vectors[(drawn[CONTEXT] >> 2) + j]
            flat = drawn[FLAT] + i
            out_slots[row + i], out_slates[row + i] = i, slate
            out_numbers[0, row + i], out_numbers[1, row + i] = reals[d, AT], reals[d, WEIGHT]
            out_numbers[2, row + i], out_numbers[3, row + i] = 0.0 if fresh[p] else 1.0, 1.0
            out_numbers[4, row + i] = propensities[flat]
            out_hashes[row + i] = item_hash(text, items[flat, 0], items[flat, 1], known, m, v)
        for j in range(k * width):
            out_items[item + j] = vectors[(drawn[SHOWN] >> 2) + j]
        row, context, item, reward, slate = row + k, context + k * c, item + k * width, reward + k * o, slate + 1
    place = places[len(decisions)]
    place[ROW], place[CONTEXTS], place[ITEMS], place[REWARDS], place[PACKED] = row, context, item, reward, end


@compiled
def _pack(
    text: U8,
    ints: I64,
    reals: F64,
    d: int,
    f: int,
    offset: int,
    durations: F64,
    rewards: F64,
    first: int,
    count: int,
    out: U8,
    end: int,
    octets: U8,
    real: F64,
) -> int:
    """`streaming.joined.pack` of the join that a pair is; where it ends."""
    out[end] = 0x99  # nine fields
    end = _text(text, ints[d, ID], ints[d, ID_END], out, end + 1)
    end = _whole(offset, out, end)
    end = _float(reals[d, AT], out, end, octets, real)
    end = _float(reals[d, AT] + durations[CORRECTABLE], out, end, octets, real)
    if f < 0:
        out[end] = 0x80
        end += 1
    else:
        out[end] = 0x81
        end = _text(text, ints[f, NAME], ints[f, NAME_END], out, end + 1)
        out[end], out[end + 1] = 0x91, 0x95  # one version of five fields
        end = _float(reals[f, AT], out, end + 2, octets, real)
        end = _whole(ints[f, REVISION], out, end)
        end = _text(text, ints[f, KIND], ints[f, KIND_END], out, end)
        end = _float(reals[f, WEIGHT], out, end, octets, real)
        if ints[f, SLOT] < 0:
            out[end] = 0x90
            end += 1
        else:
            out[end] = 0x91
            end = _whole(ints[f, SLOT], out, end + 1)
    k = ints[d, FILLED]
    out[end], out[end + 1], out[end + 2] = 0x90, 0xC4, k  # nothing early; presence
    end += 3
    for i in range(k):
        out[end + i] = 1
    end += k
    if 8 * count < 256:
        out[end], out[end + 1] = 0xC4, 8 * count
        end += 2
    else:
        out[end], out[end + 1], out[end + 2] = 0xC5, 8 * count >> 8, 8 * count & 255
        end += 3
    for i in range(count):
        real[0] = rewards[first + i]
        for j in range(8):
            out[end + j] = octets[j]
        end += 8
    out[end] = 0xC3  # due
    return end + 1


@compiled
def _text(text: U8, start: int, stop: int, out: U8, end: int) -> int:
    length = stop - start
    if length < 32:
        out[end] = 0xA0 | length
    else:
        out[end], out[end + 1] = 0xD9, length
        end += 1
    for j in range(length):
        out[end + 1 + j] = text[start + j]
    return end + 1 + length


@compiled
def _whole(value: int, out: U8, end: int) -> int:
    if value < 128:
        out[end] = value
        return end + 1
    size = 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4 if value < 1 << 32 else 8
    out[end] = 0xCC if size == 1 else 0xCD if size == 2 else 0xCE if size == 4 else 0xCF
    for j in range(size):
        out[end + 1 + j] = value >> 8 * (size - 1 - j) & 255
    return end + 1 + size


@compiled
def _float(value: float, out: U8, end: int, octets: U8, real: F64) -> int:
    out[end] = 0xCB
    real[0] = value
    for j in range(8):
        out[end + 1 + j] = octets[7 - j]
    return end + 9
