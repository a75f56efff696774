"""Conditions over named values: what they mean, and that nothing else is read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import Rejected
from policies.reranking.expressions import Condition, holds

ITEM = {"price": 3, "genre": "jazz", "tags": ["new", "live"], "hot": True, "none": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 10 and genre in ['jazz','rock']", True),
        ("price < 3 or genre == 'jazz'", True),
        ("0 < price <= 3", True),
        ("0 < price < 3", False),
        ("price != 3", False),
        ("price >= 3.0", True),
        ("price > -1", True),
        ("'live' in tags", True),
        ("tags == 'old'", False),
        ("'live' not in tags", False),
        ("genre not in ('rock', 'pop')", True),
        ("hot", True),
        ("not hot", False),
        ("hot == true and not false", True),
        ("hot == 1", False),
        ("price == true", False),
        ("price < 'x'", False),
        ("missing == 1", False),
        ("missing != 1", False),
        ("not (missing == 1)", True),
        ("none == 1", False),
        ("missing", False),
        ("genre", False),
    ],
)
def test_what_a_condition_means(text: str, expected: bool) -> None:
    assert holds(Condition(text), ITEM) is expected


@pytest.mark.parametrize(
    "text",
    [
        "", "price <", "f(x)", "a.b == 1", "a[0] == 1", "price < 1 + 2", "'x'", "a is none", "a == None", "x if y else z",
        "lambda: 1", "[x for x in y]", "a := 1", "a == -'x'", "a == -true", "a == [[1]]", "a == b'x'", "a == f'x'",
        "a == '\\x41'", "a; b", "not " * 30 + "a", "-" * 900 + "1 == a", "a" * 2_000, "await a", "a == 1j", "{1} == a",
    ],
)  # fmt: skip
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(Rejected) as caught:
        Condition(text, "$.filter")
    assert caught.value.at == "$.filter"


WORDS = ["price", "genre", "tags", "hot", "missing", "<", "==", "in", "not", "and", "or", "(", ")", "[", "]", "1", "'a'", ",", "true", "-"]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.dictionaries(st.sampled_from(WORDS[:5]), st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text("ab"), st.lists(st.one_of(st.text("ab"), st.floats())))))  # fmt: skip
def test_any_text_is_read_or_refused_and_what_is_read_answers(words: list[str], item: dict[str, Any]) -> None:
    try:
        condition = Condition(" ".join(words))
    except Rejected:
        return
    assert holds(condition, item) in (True, False)
    assert condition == Condition(condition.text)


def test_names_and_constants_are_known_to_checks() -> None:
    condition = Condition("price < 3 and (genre in ['a', 'b'] or not price == x)")
    assert condition.names == ("price", "genre", "x")
    assert [(one.name, one.values, one.ordered) for one in condition.comparisons] == [
        ("price", (3,), True),
        ("genre", ("a", "b"), False),
    ]
