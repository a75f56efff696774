"""What is settled is a function of the log: the oracle reads the whole log at once, whatever was batched, killed or read again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import streaming.experiences
from policies.errors import Corrupt, Rejected
from streaming.adapters.memory import MemoryCheckpoints
from streaming.events import Decision, Feedback, decode, encode
from streaming.experiences import Experiences
from streaming.join import Joiner
from streaming.joined import Join, Terms
from streaming.ports import Record
from streaming.settle import Settler, first_offset
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, UNIT, Abort, Ports, _Dying, decision, feedback
from tests.streaming.stories import CONFIGS, END, PLAIN, VERSIONS, Story, _verdict, evidence_of, stories

Seen = tuple[str, float, int, list[bool], list[bool], list[list[float]]]


def settler(ports: Ports, read_limit: int = 2000, hot_limit: int = 1000, limit: int = 2000, epoch: int = 1) -> Settler:
    log, checkpoints = _Dying(ports, ports.log), _Dying(ports, ports.checkpoints)
    return Settler(
        0,
        log,  # type: ignore[arg-type]
        checkpoints,  # type: ignore[arg-type]
        ports.configs,
        epoch=epoch,
        read_limit=read_limit,
        limit=limit,
        hot_limit=hot_limit,
    )


def drain(one: Settler, now: float | None = None) -> None:
    while True:
        report = one.step(now)
        if not report.records and not report.settled:
            return


def pulled(ports: Ports) -> Experiences:
    return Experiences(0, ports.checkpoints, ports.log)


def seen(ports: Ports) -> list[Seen]:
    """Everything in the outbox, in the order of its numbers."""
    experiences = pulled(ports)
    found = experiences.pull(0, 10_000)
    assert [one.number for one in found] == list(range(len(found)))
    return [
        (
            one.decision.decision_id,
            one.row.due,
            one.row.offset,
            [bool(b) for b in one.row.viewed],
            [bool(b) for b in one.row.present],
            one.rewards.tolist(),
        )
        for one in found
    ]


def oracle(records: list[Record]) -> list[Seen]:
    """The settled decisions of a log, in order of their due times, judged from the rules' words."""
    made: dict[str, tuple[Decision, Record]] = {}
    said: list[tuple[Feedback, Record]] = []
    for record in records:
        try:
            event = decode(record.value)
        except Corrupt:
            continue
        if isinstance(event, Feedback):
            said.append((event, record))
        elif event.at >= record.appended - CORRECTABLE and event.at <= record.appended + 60:
            made.setdefault(event.decision_id, (event, record))
    found: list[Seen] = []
    for name, (drawn, came) in made.items():
        due = min(max(drawn.at, came.appended) + HORIZON, drawn.at + CORRECTABLE)
        if due >= records[-1].appended:
            continue
        heard = [
            (event, record)
            for event, record in said
            if event.decision_id == name and record.appended <= due and _verdict(event, record, made) is None
        ]
        version = VERSIONS[drawn.config]
        present, rewards = evidence_of(drawn, version, heard)
        viewed, _ = evidence_of(msgspec.structs.replace(drawn, pinned=[]), version, heard)
        rewards[[not on for on in viewed]] = 0.0
        found.append((name, due, came.offset, viewed, present, rewards.tolist()))
    return sorted(found, key=lambda one: (one[1], one[2]))


def tell(story: Story) -> Ports:
    """The log is fed, the settler steps and dies as the story says; then the log is over."""
    ports = Ports(CONFIGS)
    deaths = list(story.deaths)

    def fresh() -> Settler:
        return settler(ports, story.read_limit, story.hot_limit, limit=max(story.read_limit, 1))

    one = fresh()
    for (at, value), stepping in zip(story.deliveries, story.steps, strict=True):
        ports.append(value, at=at)
        if stepping:
            ports.operations, ports.die_at = 0, deaths.pop(0) if deaths else None
            try:
                one.step()
            except Abort:
                one = fresh()
            ports.die_at = None
    ports.append(encode(decision(PLAIN, f"{UNIT}-end", END, k=0)), at=END)
    while deaths:
        ports.operations, ports.die_at = 0, deaths.pop(0)
        try:
            one.step()
        except Abort:
            one = fresh()
        ports.die_at = None
    try:
        drain(one)
    except Abort:  # of a planted fault
        drain(fresh())
    return ports


def check(story: Story) -> None:
    ports = tell(story)
    got, wanted = seen(ports), oracle(ports.log.read(0, 0, 10_000))
    assert [one[1] for one in got] == [one[1] for one in wanted]  # in order of due times
    got.sort(key=lambda one: (one[1], one[2]))  # those due at the same moment are in order of first arrival of their id
    assert [one[:5] for one in got] == [one[:5] for one in wanted]
    for mine, right in zip(got, wanted, strict=True):
        np.testing.assert_allclose(np.array(mine[5]), np.array(right[5]), rtol=1e-12, err_msg=mine[0])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories())
def test_what_is_settled_is_a_function_of_the_log(story: Story) -> None:
    check(story)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories())
def test_every_way_through_a_log_gives_the_same_numbers_and_rows(story: Story) -> None:
    once = Ports(CONFIGS)
    for at, value in story.deliveries:
        once.append(value, at=at)
    once.append(encode(decision(PLAIN, f"{UNIT}-end", END, k=0)), at=END)
    drain(settler(once))
    broken = tell(story)
    assert broken.checkpoints.pull(0, 10_000) == once.checkpoints.pull(0, 10_000)


def _settled_late(patch: pytest.MonkeyPatch) -> None:
    """Feedback that comes up to half a minute after the horizon is let in."""
    fall_due = Joiner._fall_due
    patch.setattr(
        Joiner, "_fall_due", lambda self, applied, clock, *limit: fall_due(self, applied, clock - 30.0, *limit)
    )
    patch.setattr(Joiner, "next_due", property(lambda self: self._waiting.next + 30.0))


def _late_decisions_get_no_time(patch: pytest.MonkeyPatch) -> None:
    waits = Joiner._waits

    def hasty(self: Joiner, join: Join, terms: Terms) -> None:
        assert join.drawn is not None
        join.at = join.drawn.at
        waits(self, join, terms)

    patch.setattr(Joiner, "_waits", hasty)


def _the_outbox_follows_the_commit(patch: pytest.MonkeyPatch) -> None:
    """Killed between the two, once a story."""
    commit = MemoryCheckpoints.commit

    def torn(self: MemoryCheckpoints, made: Any) -> None:
        commit(self, replace(made, outbox=None))
        if made.outbox is not None:
            if not self._outbox:
                raise Abort
            self._outbox.update(enumerate(made.outbox[1], made.outbox[0]))

    patch.setattr(MemoryCheckpoints, "commit", torn)


def _pins_have_no_reward(patch: pytest.MonkeyPatch) -> None:
    presence = streaming.experiences.presence
    kept: list[Any] = []

    def mixed(drawn: Any, terms: Terms, force: Sequence[Any]) -> bytearray:
        kept.append(drawn)
        whole = presence(drawn, terms, list(force))
        return bytearray(len(whole)) if len(kept) % 2 and any(whole) and len(whole) > 2 else whole

    patch.setattr(streaming.experiences, "presence", mixed)


@pytest.mark.parametrize(
    "plant",
    [_settled_late, _late_decisions_get_no_time, _the_outbox_follows_the_commit, _pins_have_no_reward],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    find = settings(max_examples=500, deadline=None, phases=[Phase.generate], database=None, derandomize=True)
    with pytest.raises((AssertionError, Corrupt)):
        find(given(stories(messy=False))(check))()


def story_of(*events: tuple[float, Decision | Feedback]) -> Ports:
    ports = Ports(CONFIGS)
    for at, event in events:
        ports.append(event, at=at)
    return ports


def test_a_quiet_partition_settles_by_the_time_passed_in_as_a_record_would_have_settled_it() -> None:
    told = [
        (EPOCH0, decision(PLAIN, "a", EPOCH0)),
        (EPOCH0 + 50, decision(PLAIN, "b", EPOCH0 + 50)),
        (EPOCH0 + 60, feedback("a", EPOCH0 + 60, slot=1, feedback_id="f")),
    ]
    quiet, loud = story_of(*told), story_of(*told)
    one = settler(quiet)
    drain(one, EPOCH0 + HORIZON + 60)  # a minute is left for clocks that differ
    assert seen(quiet) == []
    drain(one, EPOCH0 + HORIZON + 61)
    assert [row[0] for row in seen(quiet)] == ["a"]
    drain(one, EPOCH0 + 10_000)
    loud.append(decision(PLAIN, "z", EPOCH0 + 9_000, k=0), at=EPOCH0 + 9_000)
    drain(settler(loud))
    assert quiet.checkpoints.pull(0, 10) == loud.checkpoints.pull(0, 10)
    assert len(loud.checkpoints.pull(0, 10)) == 2


def test_what_comes_after_is_counted_and_changes_nothing_given_out() -> None:
    ports = story_of((EPOCH0, decision(PLAIN, "a", EPOCH0)), (EPOCH0 + 101, feedback("x", EPOCH0 + 101)))
    one = settler(ports)
    drain(one)
    before = ports.checkpoints.pull(0, 10)
    assert len(before) == 1
    ports.append(feedback("a", EPOCH0 + 10, slot=0), at=EPOCH0 + 102)
    assert one.step().after_training == {"home": 1}
    ports.append(feedback("a", EPOCH0 + HORIZON + 5, slot=0), at=EPOCH0 + 106)  # after the horizon: changes no reward
    assert one.step().after_training == {}
    assert ports.checkpoints.pull(0, 10) == before


def test_a_gap_is_settled_in_pieces_and_loses_nobody() -> None:
    """Many decisions fall due at once: they are committed a few at a time, though every row is long past its own end."""
    ports = story_of(*((EPOCH0 + i / 100, decision(PLAIN, f"d{i:02}", EPOCH0 + i / 100)) for i in range(50)))
    one = settler(ports, hot_limit=0, limit=20)
    drain(one)
    late = EPOCH0 + 10 * CORRECTABLE
    assert [sum(one.step(late).settled.values()) for _ in range(4)] == [20, 20, 10, 0]
    again = story_of(*((EPOCH0 + i / 100, decision(PLAIN, f"d{i:02}", EPOCH0 + i / 100)) for i in range(50)))
    again.append(decision(PLAIN, "z", late, k=0), at=late)
    drain(settler(again, limit=7))
    assert again.checkpoints.pull(0, 100) == ports.checkpoints.pull(0, 100)


def test_of_two_owners_the_older_is_fenced() -> None:
    ports = story_of((EPOCH0, decision(PLAIN, "a", EPOCH0)))
    old = settler(ports, epoch=1)
    drain(old)
    drain(settler(ports, epoch=2))
    ports.append(decision(PLAIN, "b", EPOCH0 + 1), at=EPOCH0 + 1)
    with pytest.raises(Rejected) as refused:
        old.step()
    assert refused.value.code == "fenced"


def test_what_was_settled_of_another_log_is_not_gone_on_with() -> None:
    ports = story_of((EPOCH0, decision(PLAIN, "a", EPOCH0)))
    drain(settler(ports))
    ports.log.identity = "another"
    with pytest.raises(Rejected, match="another"):
        settler(ports).step()


@pytest.mark.parametrize("gone", [0, 1, 2, 7, 19, 20])
def test_a_log_without_its_beginning_is_settled_from_what_is_there(gone: int) -> None:
    ports = story_of(*((EPOCH0 + i, decision(PLAIN, f"d{i}", EPOCH0 + i)) for i in range(20)))
    ports.log.trim(0, gone)
    assert first_offset(ports.log, 0) == gone
    drain(settler(ports), EPOCH0 + 1_000)
    first, after = pulled(ports).numbers()
    assert after - first == 20 - gone
    assert first == (20 if 0 < gone < 20 else 0)  # above every number that can have been given before
    if after > first:
        assert [one.row.offset for one in pulled(ports).pull(first, 100)] == list(range(gone, 20))


def test_numbers_that_are_gone_or_not_given_yet_are_refused() -> None:
    ports = story_of(*((EPOCH0 + i, decision(PLAIN, f"d{i}", EPOCH0 + i)) for i in range(5)))
    drain(settler(ports), EPOCH0 + 1_000)
    ports.checkpoints.trim(3)
    experiences = pulled(ports)
    assert experiences.numbers() == (3, 5)
    assert [one.number for one in experiences.pull(3, 10)] == [3, 4]
    assert experiences.pull(5, 10) == []
    for number in (2, 6):
        with pytest.raises(Corrupt, match="number_out_of_range"):
            experiences.pull(number, 10)
    ports.checkpoints.trim(100)
    assert experiences.numbers() == (4, 5)  # the newest stays, so that the next number is known


def test_a_producer_may_say_no_more_than_joining_needs() -> None:
    ports = Ports(CONFIGS)
    said = msgspec.json.decode(encode(decision(PLAIN, "a", EPOCH0)))
    for name in ("rows", "remaining", "greedy"):
        del said[name]
    ports.append(msgspec.json.encode(said), at=EPOCH0)
    drain(settler(ports), EPOCH0 + 1_000)
    [one] = pulled(ports).pull(0, 10)
    assert (one.decision.decision_id, one.decision.rows) == ("a", [])
    assert len(one.decision.slate) == 3
    assert one.decision.candidates == one.decision.slate
