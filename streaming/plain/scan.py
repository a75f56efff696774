"""Records as this build writes them, read into columns: one pass over the bytes of a batch, no object a field.

What is read here is a subset of what `streaming.joined.read_event` reads, and says the same: JSON without blanks or escapes,
letters of ASCII, each key once, the defaults left out or as they are. All else is OTHER, and read by msgspec.

Input    `text`: the values one after the other, a zero byte after each, which no JSON has: no read needs a bound
Columns  `ints` (n, INTS) and `reals` (n, REALS) by the constants below; places are of `text`, ends exclusive
Lists    of decisions: `items` (m, 2) places of the slate's ids and `propensities` (m,), from FLAT on; `vectors`: bytes of the
         float32, those of a decision from CONTEXT and from SHOWN on, both divisible by 4
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled, compiled_beside
from policies.types import F64, I64
from streaming.plain.numbers import LEAST, MOST, nearest

U8 = NDArray[np.uint8]

OTHER, DECISION, FEEDBACK = 0, 1, 2
FORM, ID, ID_END, UNIT, UNIT_END, SURFACE, SURFACE_END, CONFIG, KIND, KIND_END, NAME, NAME_END = range(12)
SLOT, REVISION, FILLED, FLAT, CONTEXT, CONTEXT_BYTES, SHOWN, SHOWN_BYTES = range(12, 20)
INTS = 20  # CONFIG is the number its 16 hex digits are, as int64; SLOT −1 without one
AT, WEIGHT, ACCEPTED = range(3)
REALS = 3  # WEIGHT of a decision, `value` of feedback; ACCEPTED NaN without one

LETTER = np.array([32 <= c < 127 and c not in b'"\\' for c in range(256)])
SIX = np.full(256, 64, np.uint8)  # base64: a letter's six bits, 64 for what is none
SIX[np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)] = np.arange(64)
_six, _none = SIX.astype(np.uint32), np.where(SIX == 64, np.uint32(1 << 31), np.uint32(0))
FIRST = _none | _six << 2  # what each of four letters says of three bytes, little-endian; the top bit: not base64
SECOND = _none | _six >> 4 | (_six & 15) << 12
THIRD = _none | _six >> 2 << 8 | (_six & 3) << 22
FOURTH = _none | _six << 16
WHOLE = np.array([10**q for q in range(19)], np.uint64)
DEEPEST = 16  # nesting of what is skipped
QUOTE, COMMA, COLON, OPEN, CLOSE, LIST, END = b'",:{}[]'
MINUS, POINT, ZERO, NINE, EQUAL = b"-.09="

KEYS = (
    *("type", "decision_id", "unit", "at", "surface", "config", "policy", "bundle", "mode", "slate", "slots"),
    *("propensities", "context", "shown", "weight", "v", "tenant", "generation"),
    *("feedback_id", "kind", "value", "slot", "revision", "accepted_at"),
    *("pinned", "defer", "item", "retracts"),
)
(TYPE_, ID_, UNIT_, AT_, SURFACE_, CONFIG_, POLICY_, BUNDLE_, MODE_, SLATE_, SLOTS_) = range(11)
(PROPENSITIES_, CONTEXT_, SHOWN_, WEIGHT_, V_, TENANT_, GENERATION_) = range(11, 18)
(NAME_, KIND_, VALUE_, SLOT_, REVISION_, ACCEPTED_, SPECIAL_) = range(18, 25)  # SPECIAL_ on: not plain
_BOTH = 1 << ID_ | 1 << UNIT_ | 1 << AT_ | 1 << TYPE_
_MAY = 1 << V_ | 1 << TENANT_ | 1 << GENERATION_
DECISION_NEEDS = _BOTH | sum(1 << bit for bit in range(SURFACE_, WEIGHT_))
FEEDBACK_NEEDS = _BOTH | 1 << NAME_ | 1 << KIND_
DECISION_MAY = DECISION_NEEDS | _MAY | 1 << WEIGHT_
FEEDBACK_MAY = FEEDBACK_NEEDS | _MAY | sum(1 << bit for bit in range(VALUE_, SPECIAL_))


def _coded(key: str) -> int:
    """Length and first seven letters in 64 bits."""
    return len(key) << 56 | int.from_bytes(key.encode()[:7], "little")


CODES = np.array([_coded(key) for key in KEYS], np.uint64)
TABLE = 1 << 8
MIX = np.uint64(0xD4713D60C8A70639)  # found by trial: no two keys share a place


def _places() -> NDArray[np.int8]:
    """Key number by the top bits of its mixed code, −1 where there is none; no two share a place (checked)."""
    table = np.full(TABLE, -1, np.int8)
    for number, code in enumerate(CODES.tolist()):
        place = (code * int(MIX) & 0xFFFFFFFFFFFFFFFF) >> 56
        assert table[place] < 0, "two keys share a place: find another MIX"
        table[place] = number
    return table


PLACES = _places()
TAILS = np.zeros((len(KEYS), 16), np.uint8)  # letters after the seventh
for _row, _name in enumerate(KEYS):
    TAILS[_row, : max(len(_name) - 7, 0)] = np.frombuffer(_name.encode()[7:], np.uint8)


@compiled_beside
def scan(
    text: U8, starts: I64, ints: I64, reals: F64, items: I64, propensities: F64, vectors: U8, flat: int, used: int
) -> Any:
    """Fill the columns of records starts[i] … starts[i + 1] − 1 (the zero byte), the lists from `flat` and `vectors` from `used` on.

    How far these are filled then.
    """
    real = np.zeros(1)
    bits = real.view(np.uint64)
    for r in range(len(starts) - 1):
        row, numbers = ints[r], reals[r]
        found, flat_end, used_end = _record(
            text, starts[r], row, numbers, items, propensities, vectors, flat, used, bits, real
        )
        row[FORM] = OTHER
        if found == starts[r + 1] - 1:
            flat, used = flat_end, used_end
            row[FORM] = FEEDBACK if row[FILLED] < 0 else DECISION
    return flat, used + 3 & ~3


@compiled
def _string(text: U8, i: int) -> int:
    """Place of the closing quote of the string whose first letter is at i; −1 when it is not plain."""
    while LETTER[text[i]]:
        i += 1
    return i if text[i] == QUOTE else -1


@compiled
def _digits(text: U8, i: int) -> Any:
    """Place after the digits at i, and their number, exact when they are at most 18 (and wrong when they are more)."""
    w = np.uint64(0)
    while True:
        digit = np.uint8(text[i] - ZERO)
        if digit > 9:
            return i, w
        w = w * np.uint64(10) + np.uint64(digit)
        i += 1


@compiled
def _decimal(text: U8, i: int) -> Any:
    """(place after the number at i or −1, w, q, negative): the number is ±w · 10^q."""
    negative = text[i] == MINUS
    if negative:
        i += 1
    start = i
    i, w = _digits(text, i)
    if i == start or (text[start] == ZERO and i > start + 1) or i > start + 18:
        return -1, w, 0, negative
    power: Any = 0
    if text[i] == POINT:
        point = i + 1
        first = point
        if w == np.uint64(0):
            while text[first] == ZERO:
                first += 1
            start = point  # what is before counts for nothing
        i, low = _digits(text, first)
        if i == point or i - first + (point - start) > 18:
            return -1, w, 0, negative
        w = w * WHOLE[i - first] + low
        power = point - i
    if text[i] | 32 == 101:  # e or E
        i += 1
        down = text[i] == MINUS
        if down or text[i] == 43:  # +
            i += 1
        first = i
        i, exponent = _digits(text, i)
        if i == first or i > first + 3:
            return -1, w, 0, negative
        power += np.int64(exponent) * (-1 if down else 1)
    if not LEAST <= power <= MOST or (negative and w == np.uint64(0)):
        return -1, w, 0, negative
    return i, w, power, negative


@compiled
def _number(text: U8, i: int, bits: Any, real: F64) -> int:
    """Place after the number at i or −1; real[0] is the nearest double."""
    i, w, power, negative = _decimal(text, i)
    if i >= 0:
        nearest(w, power, bits, real)
        if negative:
            real[0] = -real[0]
    return i


@compiled
def _count(text: U8, i: int) -> Any:
    """(place after the whole number at i or −1, the number): at most nine digits, no sign."""
    start = i
    i, w = _digits(text, i)
    if i == start or (text[start] == ZERO and i > start + 1) or i > start + 9:
        return -1, 0
    return i, np.int64(w)


@compiled
def _skip(text: U8, i: int) -> int:
    """Place after any JSON value at i; −1 when it is not plain. `kinds` has a bit a level: 1 in an object."""
    depth, kinds = 0, 0
    while True:
        c = text[i]
        if c == QUOTE:
            i = _string(text, i + 1) + 1
            while i > 0 and kinds & 1 == 0 and depth and text[i] == COMMA and text[i + 1] == QUOTE:  # a list of ids
                i = _string(text, i + 2) + 1
            if i == 0:
                return -1
        elif c in (OPEN, LIST):
            depth, kinds, i = depth + 1, kinds << 1 | (1 if c == OPEN else 0), i + 1
            if depth > DEEPEST:
                return -1
            if text[i] != (CLOSE if c == OPEN else END):
                if c == OPEN:
                    i = _colon(text, i)
                    if i < 0:
                        return -1
                continue
            depth, kinds, i = depth - 1, kinds >> 1, i + 1
        elif c == 116 and text[i + 1] == 114 and text[i + 2] == 117 and text[i + 3] == 101:  # true
            i += 4
        elif (
            c == 102 and text[i + 1] == 97 and text[i + 2] == 108 and text[i + 3] == 115 and text[i + 4] == 101
        ):  # false
            i += 5
        elif c == 110 and text[i + 1] == 117 and text[i + 2] == 108 and text[i + 3] == 108:  # null
            i += 4
        else:
            i, _, _, _ = _decimal(text, i)
            if i < 0:
                return -1
        while True:
            if depth == 0:
                return i
            c, i = text[i], i + 1
            if c == COMMA:
                if kinds & 1:
                    i = _colon(text, i)
                    if i < 0:
                        return -1
                break
            if c != (CLOSE if kinds & 1 else END):
                return -1
            depth, kinds = depth - 1, kinds >> 1


@compiled
def _colon(text: U8, i: int) -> int:
    """Place after `"key":` at i, or −1."""
    if text[i] != QUOTE:
        return -1
    i = _string(text, i + 1)
    return i + 2 if i >= 0 and text[i + 1] == COLON else -1


@compiled
def _key(text: U8, i: int) -> Any:
    """(number of the key whose first letter is at i, −1 for one of no interest; place of its closing quote or −1)."""
    end = _string(text, i)
    if end < 0:
        return -1, -1
    code = np.uint64(min(end - i, 255)) << np.uint64(56)
    for j in range(min(end - i, 7)):
        code |= np.uint64(text[i + j]) << np.uint64(8 * j)
    number = PLACES[np.int64(code * MIX >> np.uint64(56))]
    if number < 0 or CODES[number] != code:
        return -1, end
    for j in range(7, end - i):
        if text[i + j] != TAILS[number, j - 7]:
            return -1, end
    return number, end


@compiled
def _is(text: U8, start: int, end: int, code: Any) -> bool:
    """Whether a string of at most eight letters is the one of a code (its letters, little-endian)."""
    if end - start > 8:
        return False
    found = np.uint64(0)
    for j in range(end - start):
        found |= np.uint64(text[start + j]) << np.uint64(8 * j)
    return bool(found == code)


DECISION_TEXT, FEEDBACK_TEXT, CACHED_TEXT, DEFAULT_TEXT = (
    np.uint64(int.from_bytes(word, "little")) for word in (b"decision", b"feedback", b"cached", b"default")
)


@compiled
def _base64(text: U8, i: int, vectors: U8, used: int) -> Any:
    """(place of the closing quote or −1, end of what was decoded to `vectors` from `used` on)."""
    while True:
        three = FIRST[text[i]] | SECOND[text[i + 1]] | THIRD[text[i + 2]] | FOURTH[text[i + 3]]
        if three >> np.uint32(31):
            break
        vectors[used] = three
        vectors[used + 1] = three >> np.uint32(8)
        vectors[used + 2] = three >> np.uint32(16)
        used, i = used + 3, i + 4
    if text[i] == QUOTE:
        return i, used
    a, b, c = SIX[text[i]], SIX[text[i + 1]], SIX[text[i + 2]]
    if a > 63 or b > 63 or text[i + 3] != EQUAL or text[i + 4] != QUOTE:
        return -1, used
    vectors[used] = a << 2 | b >> 4
    if c < 64:
        vectors[used + 1] = (b & 15) << 4 | c >> 2
        return (i + 4 if c & 3 == 0 else -1), used + 2
    return (i + 4 if text[i + 2] == EQUAL and b & 15 == 0 else -1), used + 1


@compiled
def _hex(text: U8, start: int, end: int) -> Any:
    """(whether it is 16 hex digits of lower case, the number they are)."""
    if end - start != 16:
        return False, np.int64(0)
    value = np.uint64(0)
    for j in range(start, end):
        c = text[j]
        if ZERO <= c <= NINE:
            value = value << np.uint64(4) | np.uint64(c - ZERO)
        elif 97 <= c <= 102:  # a … f
            value = value << np.uint64(4) | np.uint64(c - 87)
        else:
            return False, np.int64(0)
    return True, np.int64(value)


@compiled
def _record(
    text: U8,
    i: int,
    row: I64,
    numbers: F64,
    items: I64,
    propensities: F64,
    vectors: U8,
    flat: int,
    used: int,
    bits: Any,
    real: F64,
) -> Any:
    """(place after the record at i or −1, and how far the lists are filled then). FILLED −1: it is feedback."""
    row[FLAT], row[SLOT], row[REVISION] = flat, -1, 0
    numbers[WEIGHT], numbers[ACCEPTED] = 1.0, np.nan
    seen, form, slots, filled, likely = 0, OTHER, -1, -1, -1
    if text[i] != OPEN:
        return -1, flat, used
    while True:
        if text[i + 1] != QUOTE:
            return -1, flat, used
        key, i = _key(text, i + 2)
        if i < 0 or text[i + 1] != COLON or key >= SPECIAL_:
            return -1, flat, used
        i += 2
        if key < 0:
            i = _skip(text, i)
        else:
            if seen >> key & 1:
                return -1, flat, used
            seen |= 1 << key
            if key in (AT_, WEIGHT_, VALUE_, ACCEPTED_):
                i = _number(text, i, bits, real)
                numbers[AT if key == AT_ else ACCEPTED if key == ACCEPTED_ else WEIGHT] = real[0]
            elif key in (SLOT_, REVISION_, V_, GENERATION_):
                i, value = _count(text, i)
                if i < 0 or text[i] == POINT or text[i] | 32 == 101 or (key == V_ and value != 1):
                    return -1, flat, used
                if key == SLOT_:
                    row[SLOT] = value
                elif key == REVISION_:
                    row[REVISION] = value
            elif key == SLATE_:
                if text[i] != LIST or text[i + 1] != QUOTE:
                    return -1, flat, used
                filled = 0
                while True:
                    start = i + 2
                    i = _string(text, start)
                    if i < 0:
                        return -1, flat, used
                    items[flat + filled, 0], items[flat + filled, 1] = start, i
                    filled, i = filled + 1, i + 1
                    if text[i] != COMMA or text[i + 1] != QUOTE:
                        break
                i = i + 1 if text[i] == END else -1
            elif key == PROPENSITIES_:
                if text[i] != LIST:
                    return -1, flat, used
                likely = 0
                while True:
                    i = _number(text, i + 1, bits, real)
                    if i < 0:
                        return -1, flat, used
                    propensities[flat + likely] = real[0]
                    likely += 1
                    if text[i] != COMMA:
                        break
                i = i + 1 if text[i] == END else -1
            elif key == SLOTS_:
                if text[i] != LIST:
                    return -1, flat, used
                slots = 0
                while True:
                    i, value = _count(text, i + 1)
                    if i < 0 or value != slots:
                        return -1, flat, used
                    slots += 1
                    if text[i] != COMMA:
                        break
                i = i + 1 if text[i] == END else -1
            elif text[i] != QUOTE:
                return -1, flat, used
            elif key in (CONTEXT_, SHOWN_):
                used = (used + 3) & ~3
                i, end = _base64(text, i + 1, vectors, used)
                if key == CONTEXT_:
                    row[CONTEXT], row[CONTEXT_BYTES] = used, end - used
                else:
                    row[SHOWN], row[SHOWN_BYTES] = used, end - used
                used = end
                i += 1 if i >= 0 else 0
            else:
                start = i + 1
                i = _string(text, start)
                if key == ID_:
                    row[ID], row[ID_END] = start, i
                elif key == UNIT_:
                    row[UNIT], row[UNIT_END] = start, i
                elif key == SURFACE_:
                    row[SURFACE], row[SURFACE_END] = start, i
                elif key == KIND_:
                    row[KIND], row[KIND_END] = start, i
                elif key == NAME_:
                    row[NAME], row[NAME_END] = start, i
                elif key == CONFIG_:
                    is_hex, row[CONFIG] = _hex(text, start, i)
                    if not is_hex:
                        return -1, flat, used
                elif key == TYPE_:
                    form = DECISION if _is(text, start, i, DECISION_TEXT) else OTHER
                    form = FEEDBACK if _is(text, start, i, FEEDBACK_TEXT) else form
                elif key == MODE_:
                    if _is(text, start, i, CACHED_TEXT):
                        return -1, flat, used
                elif key == TENANT_ and not _is(text, start, i, DEFAULT_TEXT):
                    return -1, flat, used
                i += 1 if i >= 0 else 0
        if i < 0:
            return -1, flat, used
        if text[i] != COMMA:
            break
    if text[i] != CLOSE:
        return -1, flat, used
    if form == DECISION:
        if seen & DECISION_NEEDS != DECISION_NEEDS or seen & ~DECISION_MAY or slots != filled or likely != filled:
            return -1, flat, used
    elif form != FEEDBACK or seen & FEEDBACK_NEEDS != FEEDBACK_NEEDS or seen & ~FEEDBACK_MAY:
        return -1, flat, used
    row[FILLED] = filled if form == DECISION else -1
    return i + 1, flat + max(filled, 0), used
