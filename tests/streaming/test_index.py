"""Ids to rows: every row of a hash is found, whichever run it is in, and none that was given back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streaming.index import Index, id_hash


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 20), st.integers(0, 100))
def test_finds_every_row_of_a_hash(hashes: list[int], recent: int, evicted: int) -> None:
    index = Index(recent=recent)
    for row, hashed in enumerate(hashes):
        index.add(hashed, row)
    index.evicted = evicted
    expected = [[row for row, h in enumerate(hashes) if h == asked and row >= evicted] for asked in range(31)]
    assert index.find(list(range(31))) == expected


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.integers(0, 1000))
def test_loads_what_a_commit_holds(hashes: list[int], first: int) -> None:
    index = Index(recent=4)
    index.load([(first, np.array(hashes, "<u8").tobytes()), (first + len(hashes), b"")])
    found = index.find(hashes)
    assert all(first + i in rows for i, rows in enumerate(found))
    assert len(index) == len(hashes)


def test_rows_given_back_leave_memory_when_runs_merge() -> None:
    index = Index(recent=10)
    for row in range(1000):
        index.add(id_hash(str(row)), row)
        index.evicted = max(0, row - 50)
    assert len(index) < 200


def test_asking_for_nothing_finds_nothing() -> None:
    assert Index().find([]) == []
    assert Index().find([1]) == [[]]
