"""Candidates that files only name are trained from as the item record has them; what the record of a decision says counts first."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from streaming.adapters.memory import MemoryState
from streaming.events import encode
from streaming.experiences import Experience, whole
from streaming.looking_up import OTHERS, encoded_items, looked_up
from streaming.pretraining import Pretraining
from streaming.sequences import moment_of, teaches
from tests.streaming.test_sequences import START, TIMEOUT, configured, experience
from tests.training_setup import registered


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def record(**features: dict[str, object] | None) -> MemoryState:
    state = MemoryState()
    for name, found in features.items():
        name = name.replace("_", "-")
        value = None if found is None else msgspec.json.encode({"id": name, "features": found, "available": True})
        state.put([("item", name, value)])
    return state


def bare(number: int = 0, at: float = START) -> Experience:
    """A decision of four candidates of which two were shown, and nothing more is said of the others."""
    return experience(number, 1, at, matrix=None)


def encoder() -> object:
    compiled = configured().current("home")
    assert compiled is not None
    return compiled.encoder


def test_the_slate_is_as_logged_and_the_others_as_the_record_has_them() -> None:
    one = bare()
    assert not teaches(moment_of(one, TIMEOUT, 2))
    others = [row for row in range(4) if row not in one.decision.rows]
    state = record(**{f"item_{row}": {"price": row, "new": True, "elsewhere": "x"} for row in range(4)})
    items = encoded_items(state, encoder())  # type: ignore[arg-type]
    told = looked_up(one, items)
    assert told.decision.support_rows == [0, 1, 2, 3]
    support = np.frombuffer(told.decision.support, "<f4").reshape(4, 2)  # type: ignore[arg-type]
    shown = np.frombuffer(one.decision.shown, "<f4").reshape(2, 2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(support[one.decision.rows], shown)
    np.testing.assert_array_equal(support[others], [items[f"item-{row}"] for row in others])
    moment = moment_of(whole_again(told), TIMEOUT, 2)
    assert moment.slate == tuple(one.decision.rows)


def whole_again(one: Experience) -> Experience:
    """As it would be read from a log."""
    return Experience(one.partition, one.number, one.row, whole(encode(one.decision)))


def test_what_the_record_does_not_know_is_left_out() -> None:
    one = bare()
    others = [row for row in range(4) if row not in one.decision.rows]
    gone, there = others
    state = record(**{f"item_{there}": {"price": 3}, f"item_{gone}": {"price": 1}})
    state.put([("item", f"item-{gone}", None)])
    state.put([("surface", f"item-{gone}", b"of another kind")])
    told = looked_up(one, encoded_items(state, encoder()))  # type: ignore[arg-type]
    assert told.decision.support_rows == sorted([*one.decision.rows, there])
    assert looked_up(one, {}) is one
    logged = experience(0, 1, START)
    assert looked_up(logged, encoded_items(state, encoder())) is logged  # type: ignore[arg-type]


def test_of_many_a_sample_is_taken_by_the_decisions_id() -> None:
    names = [f"item-{row}" for row in range(300)]
    one = experience(0, 1, START, matrix=None, candidates=names)
    items = {name: np.array([row, 0], np.float32) for row, name in enumerate(names)}
    first, again = looked_up(one, items), looked_up(one, items)
    assert first.decision == again.decision
    assert len(first.decision.support_rows) == OTHERS + 2
    other = looked_up(experience(1, 1, START, matrix=None, candidates=names), items)
    assert other.decision.support_rows != first.decision.support_rows


def test_training_from_such_files_has_something_to_learn_from() -> None:
    compiled = configured().current("home")
    assert compiled is not None
    found = [bare(number, START + number) for number in range(6)]
    items = {f"item-{row}": np.array([row / 4, 1], np.float32) for row in range(4)}
    blind, seeing = (Pretraining(compiled.policies["agent"], TIMEOUT, known) for known in ({}, items))
    blind.epoch(found)
    seeing.epoch(found)
    assert (blind.transitions, blind.outcomes["no_candidates"]) == (0, 6)
    assert (seeing.transitions, seeing.outcomes["looked_up"]) == (6, 6)
