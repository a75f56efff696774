"""Due times come out as a sorted list of them would, whatever order they came in."""

import math

from hypothesis import given
from hypothesis import strategies as st

from streaming.dues import Dues

ROWS = st.lists(st.tuples(st.integers(0, 20), st.sampled_from([1.0, 5.0, 60.0]), st.integers(0, 3)), max_size=60)


@given(ROWS)
def test_the_earliest_comes_first_and_nothing_is_lost(story: list[tuple[int, float, int]]) -> None:
    dues, model = Dues(), list[tuple[float, int]]()
    for row, (at, horizon, pops) in enumerate(story):
        dues.add(at + horizon, row, horizon)
        model.append((at + horizon, row))
        for _ in range(min(pops, len(model))):
            model.sort()
            assert dues.next == model[0][0]
            assert dues.pop() == model.pop(0)
        assert len(dues) == len(model)
        assert dues.oldest_row(1_000) == min([1_000, *(row for _, row in model)])
    model.sort()
    assert [dues.pop() for _ in range(len(dues))] == model
    assert dues.next == math.inf


def test_rows_in_order_cost_no_heap_and_what_is_gone_no_memory() -> None:
    dues = Dues()
    for row in range(20_000):
        dues.add(float(row), row, 10.0)
        dues.add(row + 0.5, row, 20.0)
    assert not dues._others
    assert [dues.pop() for _ in range(39_000)][-1] == (19_499.5, 19_499)
    assert sum(len(queue.rows) for queue in dues._queues.values()) < 15_000
    assert len(dues) == 1_000
