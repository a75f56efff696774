"""What rules ask of the candidates of one request, compiled: each of these was a dozen array calls, which cost more than their work.

`table` (rows + 1, A) has a row an item of the catalogue, the last for items it does not know, and a column an attribute or
condition: the number of the attribute's value, −1 without one; of a condition 0 where it holds, else −1. `lines` says which are
asked for: a ≥ 0 column a of the table, a ≤ −2 line −2 − a of `own` (E, n), which this request brings, and −1 what each function
says. Candidates are `rows` (n,) of the catalogue, −1 = unknown.
"""

import numpy as np
from numpy.typing import NDArray

from policies.compiling import compiled
from policies.types import F64, I64, Mask

U64 = NDArray[np.uint64]
ITSELF = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio: spreads what is no hash itself


@compiled
def screened(table: I64, lines: I64, own: I64, allowed: Mask, rows: I64, before: Mask) -> tuple[Mask, I64, I64]:
    """Who stays (n,) of those in `before` (all, where that is empty) that every line lets through (≥ 0); how many each line took
    out (L,); and which line took out each (n,), −1 none.

    allowed (rows + 1,)  what the catalogue has available: line −1
    """
    n = len(rows)
    stays, counts, by = np.empty(n, np.bool_), np.zeros(len(lines), np.int64), np.full(n, -1, np.int64)
    for c in range(n):
        stays[c] = len(before) == 0 or before[c]
        for line in range(len(lines) if stays[c] else 0):
            at = lines[line]
            if at == -1:
                passes = rows[c] >= 0 and allowed[rows[c]]
            else:
                passes = (table[rows[c], at] if at >= 0 else own[-2 - at, c]) >= 0
            if not passes:
                stays[c] = False
                counts[line] += 1
                by[c] = line
                break
    return stays, counts, by


@compiled
def _slot(keys: U64, counts: I64, key: np.uint64) -> np.int64:
    """Where a key stands in an open hash table, or where it would."""
    at = np.int64((key * ITSELF) >> np.uint64(32)) & (len(keys) - 1)
    while counts[at] > 0 and keys[at] != key:
        at = (at + 1) & (len(keys) - 1)
    return at


@compiled
def gathered(
    table: I64,
    lines: I64,
    always: Mask,
    own: I64,
    rows: I64,
    remembering: I64,
    windows: F64,
    most: I64,
    now: float,
    times: F64,
    items: U64,
    hashed: U64,
    strange: U64,
) -> tuple[I64, NDArray[np.uint8], bool]:
    """(codes (L', n), which lines these are (L,) as 0 and 1, whether a hash that was asked for is not known). Lines that concern no
    candidate are left out, unless they are `always` (L,) kept. Line −1 concerns nobody, but for those of the R rules that ask
    what a unit was shown:

    remembering, windows, most (R,)  the line, 0 where a candidate was shown `most` times in the seconds before `now`, else −1
    times, items (s,)  what was shown before, by the item's hash
    hashed (rows + 1,)  hashes of the catalogue's items;   strange (n,)  of the candidates, or empty
    """
    n, asked, kept = len(rows), len(lines), 0
    codes, some = np.empty((asked, n), np.int64), np.zeros(asked, np.uint8)
    for c in range(n):
        row = rows[c]
        for line in range(asked):
            at = lines[line]
            code = -1 if at == -1 else table[row, at] if at >= 0 else own[-2 - at, c]
            codes[line, c] = code
            some[line] |= code >= 0
    stranger = False
    if len(remembering) > 0 and len(items) > 0:
        for c in range(n):
            stranger |= rows[c] < 0 and len(strange) == 0
        size = 8
        while size < 2 * len(items):
            size *= 2
        keys, counts = np.empty(size, np.uint64), np.empty(size, np.int64)
        for rule in range(len(remembering)):
            counts[:] = 0
            for j in range(len(items)):
                if times[j] > now - windows[rule]:
                    at = _slot(keys, counts, items[j])
                    keys[at] = items[j]
                    counts[at] += 1
            line = remembering[rule]
            for c in range(n):
                known = strange[c] if len(strange) > 0 else hashed[rows[c]]
                if counts[_slot(keys, counts, known)] >= most[rule]:
                    codes[line, c] = 0
                    some[line] = 1
    for line in range(asked):
        if some[line] or always[line]:
            some[line] = 1
            if kept < line:
                codes[kept] = codes[line]
            kept += 1
    return codes[:kept], some, stranger


@compiled
def numbered(codes: I64) -> tuple[I64, I64]:
    """(codes (n,) renamed 0, 1, … in their order, −1 stays; the codes that there are, ascending)."""
    most = -1
    for code in codes:
        most = max(most, code)
    places, found = np.full(most + 2, -1, np.int64), 0  # the last for −1
    for code in codes:
        if code >= 0:
            places[code] = 0
    numbers = np.empty(min(len(codes), most + 1), np.int64)
    for code in range(most + 1):
        if places[code] == 0:
            places[code] = found
            numbers[found] = code
            found += 1
    renamed = np.empty(len(codes), np.int64)
    for c in range(len(codes)):
        renamed[c] = places[codes[c]]
    return renamed, numbers[:found]
