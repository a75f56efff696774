"""Profiles as columns say what they were made of, and what older builds wrote is read too."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.profiles import Act, last_items, read_acts, read_profile, write_profile

ACTS = st.lists(
    st.tuples(
        st.floats(0, 1e9),
        st.text(min_size=1, max_size=4),
        st.sampled_from(["click", "play", "hide"]),
        st.floats(-1e9, 1e9),
        st.integers(0, 2**64 - 1),
    ),
    max_size=12,
)


@given(ACTS)
def test_what_was_written_is_read(acts: list[Act]) -> None:
    assert read_acts(write_profile(acts)) == acts
    assert [tuple(act) for act in read_profile(write_profile(acts))] == acts


@given(ACTS, st.sampled_from([[], ["click"], ["click", "play", "hide"], ["never"]]), st.integers(1, 13))
def test_items_are_those_of_the_interactions(acts: list[Act], kinds: list[str], most: int) -> None:
    seen: list[tuple[int, str]] = []
    for _, item, kind, _, decision in acts:
        if (not kinds or kind in kinds) and (decision, item) not in seen:
            seen.append((decision, item))
    assert last_items(write_profile(acts), kinds, most) == [item for _, item in seen][-most:]


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_profiles_of_an_older_build_are_read(count: int) -> None:
    acts = [(float(i), f"item-{i}", "click", 1.0, i) for i in range(count)]
    old = msgspec.msgpack.encode(acts) if acts else b""
    assert read_acts(old) == acts
    assert last_items(old, [], 3) == [f"item-{i}" for i in range(count)][-3:]
