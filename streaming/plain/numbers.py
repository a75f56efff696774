"""Decimal text to the nearest double, compiled: bit for bit what `float` makes of the same digits.

    w · 10^q   exactly rounded: a double operation where both parts are exact (Clinger), else one or two 64 × 64 bit
               products with a table of powers of five

Source   Lemire, "Number parsing at a gigabyte per second", Software: Practice and Experience 51 (2021)
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled

LEAST, MOST = -40, 40  # powers of ten in the table; numbers beyond them are left to the general reader
EXACT = 22  # the largest power of ten that is a double


def _powers() -> NDArray[np.uint64]:
    """(MOST − LEAST + 1, 2): high and low half of 5^q as 128 bits with the top bit set; rounded up below zero, else down."""
    rows = []
    for q in range(LEAST, MOST + 1):
        five = 5 ** abs(q)
        bits = five.bit_length()
        if q >= 0:
            value = five << (128 - bits)
        else:
            value = (1 << (bits + 127 if q >= -27 else 2 * bits + 128)) // five + 1
            value >>= max(value.bit_length() - 128, 0)
        rows.append((value >> 64, value & 0xFFFFFFFFFFFFFFFF))
    return np.array(rows, np.uint64)


FIVES = _powers()
TENS = np.array([10.0**q for q in range(EXACT + 1)])


@compiled
def _product(a: Any, b: Any) -> Any:
    """(high, low) of a 64 × 64 bit product."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0
    other = a0 * b1
    least = a0 * b0
    carry = (least >> half) + (middle & low) + (other & low)
    return a1 * b1 + (middle >> half) + (other >> half) + (carry >> half), (carry << half) | (least & low)


@compiled
def nearest(w: Any, q: int, bits: Any, real: Any) -> bool:
    """Put w · 10^q, w < 2⁶⁴ exact and LEAST ≤ q ≤ MOST, in real[0]; `bits` is the same memory as uint64."""
    if w == np.uint64(0):
        real[0] = 0.0
        return True
    if w <= np.uint64(1 << 53) and -EXACT <= q <= EXACT:
        real[0] = np.float64(w) * TENS[q] if q >= 0 else np.float64(w) / TENS[-q]
        return True
    shift = 0
    for step in (32, 16, 8, 4, 2, 1):
        if w >> np.uint64(64 - step) == np.uint64(0):
            w = w << np.uint64(step)
            shift += step
    high, low = _product(w, FIVES[q - LEAST, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):  # the bits below decide: take the other half of the power in
        more, _ = _product(w, FIVES[q - LEAST, 1])
        low = low + more
        if more > low:
            high = high + np.uint64(1)
    upper = np.int64(high >> np.uint64(63))
    mantissa = high >> np.uint64(upper + 9)
    power = ((152170 + 65536) * q >> 16) + 63 + upper - shift + 1023
    if (
        low <= np.uint64(1)
        and -4 <= q <= 23
        and mantissa & np.uint64(3) == np.uint64(1)
        and mantissa << np.uint64(upper + 9) == high
    ):
        mantissa &= ~np.uint64(1)  # half way: to even
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    if mantissa >= np.uint64(1 << 53):
        mantissa = np.uint64(1 << 52)
        power += 1
    bits[0] = (mantissa & np.uint64((1 << 52) - 1)) | (np.uint64(power) << np.uint64(52))
    return True
