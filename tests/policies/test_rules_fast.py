"""What is compiled of the rules, beside the same in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.reranking.acting import scaled, spread
from policies.reranking.rules_fast import gathered, numbered, screened
from policies.reranking.within import unit_columns

CATALOGUE = 9


def asked(seed: int, low: int) -> tuple[np.random.Generator, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(rng, (table, lines, own, rows)): lines of every sort down to `low`, rows with unknown ones."""
    rng = np.random.default_rng(seed)
    n, lines = int(rng.integers(1, 12)), rng.integers(low, 3, int(rng.integers(0, 6)))
    table = rng.integers(-1, 3, (CATALOGUE + 1, 3))
    table[-1] = -1
    return rng, (table, lines, rng.integers(-1, 3, (2, n)), rng.integers(-1, CATALOGUE, n))


def code(table: np.ndarray, own: np.ndarray, line: int, row: int, c: int) -> int:
    return int(table[row, line] if line >= 0 else own[-2 - line, c])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_candidates_stay_that_every_line_lets_through(seed: int) -> None:
    rng, (table, lines, own, rows) = asked(seed, -3)
    allowed = rng.random(CATALOGUE + 1) < 0.6
    allowed[-1] = True  # unknown items are allowed, but no catalogue's
    before = np.empty(0, bool) if rng.random() < 0.5 else rng.random(len(rows)) < 0.7
    stays, counts, by = screened(table, lines, own, allowed, rows, before)
    for c, row in enumerate(rows.tolist()):
        passes = [
            row >= 0 and bool(allowed[row]) if line == -1 else code(table, own, line, row, c) >= 0
            for line in lines.tolist()
        ]
        was = len(before) == 0 or bool(before[c])
        first = passes.index(False) if False in passes and was else -1
        assert (bool(stays[c]), int(by[c])) == (was and all(passes), first)
    assert counts.tolist() == [int((by == line).sum()) for line in range(len(lines))]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_lines_of_codes_and_of_what_was_shown(seed: int) -> None:
    rng, (table, lines, own, rows) = asked(seed, -3)
    hashed = rng.integers(1, 2**63, CATALOGUE + 1).astype(np.uint64)
    strangers = rng.integers(1, 2**63, len(rows)).astype(np.uint64)
    remembering = np.flatnonzero(lines == -1)
    windows, most = rng.integers(1, 9, len(remembering)).astype(float), rng.integers(1, 3, len(remembering))
    pool = np.concatenate((hashed[:4], strangers[:2]))
    shown, times = rng.choice(pool, 12), rng.integers(0, 9, 12).astype(float)
    always = rng.random(len(lines)) < 0.3
    own_hashes = np.where(rows < 0, strangers, hashed[rows])
    common = table, lines, always, own, rows, remembering, windows, most, 9.0, times, shown, hashed
    codes, some, stranger = gathered(*common, np.empty(0, np.uint64))
    assert stranger == (len(remembering) > 0 and bool((rows < 0).any()))
    codes, some, stranger = gathered(*common, own_hashes)
    assert not stranger
    wanted = []
    for place, line in enumerate(lines.tolist()):
        if line == -1:
            rule = remembering.tolist().index(place)
            lately = shown[times > 9.0 - windows[rule]].tolist()
            found = [0 if lately.count(one) >= most[rule] else -1 for one in own_hashes.tolist()]
        else:
            found = [code(table, own, line, row, c) for c, row in enumerate(rows.tolist())]
        kept = always[place] or max(found) >= 0
        assert bool(some[place]) == kept
        if kept:
            wanted.append(found)
    assert codes.tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-1, 30), min_size=0, max_size=12))
def test_codes_are_numbered_in_their_order(codes: list[int]) -> None:
    renamed, numbers = numbered(np.array(codes, np.int64))
    assert numbers.tolist() == sorted({one for one in codes if one >= 0})
    assert renamed.tolist() == [numbers.tolist().index(one) if one >= 0 else -1 for one in codes]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.sampled_from([1, 4, 16]), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_range_of_scores_is_that_of_sorted_ones(n: int, m: int, ties: bool, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(n, m)).astype(np.float32)
    scores = np.round(scores) if ties else scores
    before = scores.copy()
    draws = np.sort(scores[:, :: max(1, m // 4)].T, axis=1)
    wanted = (draws[:, (3 * n) // 4] - draws[:, n // 4]).astype(float).mean()
    assert spread(scores) == pytest.approx(wanted, rel=1e-15)
    assert (scores == before).all()  # they are looked at, not moved


def test_boosts_are_in_ranges_and_vectors_of_length_one() -> None:
    rng = np.random.default_rng(1)
    scores, items = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    items[2] = 0.0
    unit, lifts, columns = scaled(scores, np.array([0, 1, -1, 1, 0]), np.array([2.0, -1.0]), items, 1, 4)
    assert unit == spread(scores)
    assert lifts.tolist() == [2 * unit, -unit, 0.0, -unit, 2 * unit]
    np.testing.assert_array_equal(columns, unit_columns(items, 1, 4))
    lengths = np.sqrt((items[:, 1:4] ** 2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(columns.T, items[:, 1:4] / np.maximum(lengths, 1e-18), rtol=1e-6)
    assert not columns[:, 2].any()
