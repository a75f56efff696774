"""A settler that begins where another was, on an empty disk: the numbers and rows are those of one that was never moved."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from streaming.adapters.memory import MemoryCheckpoints
from streaming.applied import Extra
from streaming.events import encode
from streaming.join import Joiner
from streaming.places import Kept, beginning, encode_kept
from streaming.ports import Commit
from streaming.settle import Settler
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, UNIT, Ports, decision
from tests.streaming.stories import CONFIGS, END, PLAIN, Story, stories
from tests.streaming.test_settle import drain, settler

IDLE = HORIZON + 61.0  # seconds without a record that settle everything


def begun() -> Ports:
    """Longest `correctable` so far: the stories', so that spans are short and places move on."""
    ports = Ports(CONFIGS)
    extra = msgspec.msgpack.encode(Extra(longest=CORRECTABLE))
    ports.checkpoints.commit(
        Commit(partition=0, offset=0, clock=0.0, epoch=0, extra=encode_kept(Kept(extra, "memory")))
    )
    return ports


def moved(ports: Ports, one: Settler, trim: bool) -> bool:
    """What the settler's disk held is lost, but for its place and what was settled; whether it had a place."""
    place = one.place()
    if place is None:
        return False
    first, end = ports.checkpoints.numbers()
    assert end == (place.next_number if end else 0)
    rows = [value for _, value in ports.checkpoints.pull(first, 10_000)]
    ports.checkpoints = MemoryCheckpoints()
    ports.checkpoints.commit(beginning(place, ports.log.identity, (first, rows), 1))
    if trim:
        ports.log.trim(0, place.rebuild_from)  # nothing before is read
    return True


def check(story: Story, moves: list[str], trim: bool) -> int:
    """Moves that were made."""
    once, ports = Ports(CONFIGS), begun()
    one, done = settler(ports, story.read_limit, limit=max(story.read_limit, 1)), 0
    for (at, value), stepping, move in zip(story.deliveries, story.steps, moves, strict=True):
        once.append(value, at=at)
        ports.append(value, at=at)
        if stepping:
            one.step()
        if move:
            drain(one) if move == "drained" else None
            if moved(ports, one, trim):
                done += 1
                one = settler(ports, story.read_limit, limit=max(story.read_limit, 1))
    last = encode(decision(PLAIN, f"{UNIT}-end", END, k=0))
    for each in (once, ports):
        each.append(last, at=END)
    drain(settler(once))
    drain(one)
    assert not one.rebuilding
    assert ports.checkpoints.pull(0, 10_000) == once.checkpoints.pull(0, 10_000)
    return done


@st.composite
def moving(draw: st.DrawFn) -> tuple[Story, list[str], bool]:
    story = draw(stories(messy=False))
    count = len(story.deliveries)
    moves = draw(st.lists(st.sampled_from(["", "", "now", "drained"]), min_size=count, max_size=count))
    return story, moves, draw(st.booleans())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moving())
def test_a_settler_that_was_moved_gives_the_same_numbers_and_rows(told: tuple[Story, list[str], bool]) -> None:
    check(*told)


def _what_was_heard_is_not_read_again(patch: pytest.MonkeyPatch) -> None:
    reach = Joiner.reach
    patch.setattr(Joiner, "reach", lambda self: (-1, reach(self)[1]))


@pytest.mark.parametrize("plant", [_what_was_heard_is_not_read_again], ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    find = settings(max_examples=100, deadline=None, phases=[Phase.generate], database=None, derandomize=True)
    with pytest.raises(AssertionError):
        find(given(moving())(test_a_settler_that_was_moved_gives_the_same_numbers_and_rows.hypothesis.inner_test))()


def test_what_an_idle_hour_has_settled_is_not_settled_again() -> None:
    ports, once = begun(), Ports(CONFIGS)
    names = [f"d{i}" for i in range(6)]
    for each in (ports, once):
        for i, name in enumerate(names):
            each.append(decision(PLAIN, name, EPOCH0 + i // 3), at=EPOCH0 + i // 3)  # three fall due together
    one = settler(ports)
    drain(one, EPOCH0 + IDLE)  # the first three, by the time passed in
    assert ports.checkpoints.numbers() == (0, 3)
    assert moved(ports, one, trim=False)
    one = settler(ports, read_limit=2)
    assert one.step().settled == {}
    assert one.rebuilding
    one = settler(ports, read_limit=2)  # killed meanwhile
    drain(one, EPOCH0 + 10 * IDLE)
    drain(settler(once), EPOCH0 + 10 * IDLE)
    assert ports.checkpoints.pull(0, 10) == once.checkpoints.pull(0, 10)
    assert ports.checkpoints.numbers() == (0, 6)


def test_in_the_middle_of_what_is_due_there_is_no_place() -> None:
    ports = begun()
    for i in range(5):
        ports.append(decision(PLAIN, f"d{i}", EPOCH0), at=EPOCH0)
    one = settler(ports, limit=2)
    one.step()
    assert one.place() is not None
    one.step(EPOCH0 + IDLE)
    assert one.place() is None  # two of five that are due at the same moment have their numbers
    drain(one, EPOCH0 + IDLE)
    assert one.place() is not None
