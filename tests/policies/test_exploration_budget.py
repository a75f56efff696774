"""The law of leases: whoever races, dies or forgets, what is lent is never more than what was left."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt
from policies.reranking import exploration_budget as budget
from policies.reranking.exploration_budget import AHEAD_SECONDS, WINDOW_SECONDS, WINDOWS, Book

LEFT, LENT, READ, FORGETS = "left", "lent", "read", "forgets"
STEPS = st.lists(
    st.tuples(
        st.sampled_from([LEFT, LEFT, LENT, LENT, READ, FORGETS]),
        st.floats(0.0, 200.0),  # seconds until then
        st.floats(0.0, 5.0),  # slots left or asked for
        st.booleans(),  # whether what is lent is spent
    ),
    max_size=40,
)


def told(steps: list[tuple[str, float, float, bool]], forgetting: bool = False) -> tuple[float, float]:
    """(largest over prefixes of lent less left, lent) of a story in which the log is read now and then; the book is `forgetting`
    what it was before when it begins anew, as if all windows counted."""
    now, book = 7.0 * WINDOW_SECONDS, budget.opened(0.0)
    unused, over, known = Counter[int](), Counter[int](), (Counter[int](), Counter[int]())
    total, worst, lent = 0.0, 0.0, 0.0
    for what, later, slots, spent in steps:
        now += later
        if what == LEFT:
            unused[budget.window_of(now)] += slots  # type: ignore[assignment]  # slots come in parts
            total -= slots
        elif what == READ:
            known = Counter(unused), Counter(over)
        elif what == FORGETS:
            book = Book(0) if forgetting else budget.opened(now)
        else:
            more = min(slots, budget.left(book, *known, now))
            book = budget.unpack(budget.pack(budget.granted(book, more, now)))
            lent += more
            if spent:
                over[budget.window_of(now)] += more  # type: ignore[assignment]  # slots come in parts
                total += more
        worst = max(worst, total)
    return worst, lent


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS)
def test_in_every_prefix_no_more_is_lent_than_was_left(steps: list[tuple[str, float, float, bool]]) -> None:
    assert told(steps)[0] < 1e-6


def test_a_book_that_counted_what_was_before_it_would_lend_twice() -> None:
    """The planted fault, and that there is something to lend at all."""
    steps = [(LEFT, 0.0, 4.0, True), (READ, 1.0, 0.0, True), (LENT, 1.0, 4.0, True), (FORGETS, 1.0, 0.0, True)]
    steps += [(LENT, 1.0, 4.0, True)]
    assert told(steps) == (0.0, 4.0)
    assert told(steps, forgetting=True) == (4.0, 8.0)


def test_a_book_begins_with_windows_that_nobody_can_have_lent_from() -> None:
    book, second = budget.opened(600.0), 600.0 + AHEAD_SECONDS + WINDOW_SECONDS
    assert budget.left(book, {10: 5.0, 11: 5.0}, {}, second - 0.1) == 0.0
    assert budget.left(book, {10: 5.0, 11: 5.0, 12: 3.0}, {}, second) == 3.0
    assert budget.left(book, {12: 3.0}, {}, second + WINDOWS * WINDOW_SECONDS) == 0.0  # too long ago


def test_what_the_log_shows_to_be_spent_counts_where_the_book_has_forgotten_it() -> None:
    """A store that came back with an older book lends again what it lent, and then less by as much."""
    book = budget.granted(Book(0), 1.0, 0.0)
    assert budget.left(book, {0: 5.0}, {0: 0.5}, 0.0) == 4.0
    assert budget.left(book, {0: 5.0}, {0: 3.0}, 0.0) == 2.0
    assert budget.left(book, {0: 5.0}, {0: 9.0}, 0.0) == 0.0


def test_grants_of_windows_that_count_no_more_are_dropped() -> None:
    book = Book(0)
    for minute in range(30):
        book = budget.granted(book, 1.0, 60.0 * minute)
    assert sorted(book.granted) == list(range(20, 30))
    assert budget.unpack(budget.pack(book)) == book
    with pytest.raises(Corrupt):
        budget.unpack(b"no book")


def test_a_cap_is_raised_by_what_a_slate_may_spend() -> None:
    assert budget.raised(0.1, 0.5, 0.3, 3) == pytest.approx(0.2)
    assert budget.raised(0.1, 0.5, 9.0, 3) == 0.5
    assert budget.raised(0.1, 0.5, 0.0, 3) == 0.1
    assert budget.raised(0.1, 0.5, 9.0, 0) == 0.1  # every slot is pinned
    explored, alphas = [0.2, 0.05, 0.1], [0.25, 1.0, 1.0]  # the first would be 0.8
    assert budget.beyond(explored, 0.1) == pytest.approx(0.1)
    assert budget.wanted(explored, alphas, 0.1, 0.5) == pytest.approx(0.4)
