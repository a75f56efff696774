"""Every settled decision is in one transition, once, the same however the log is cut, killed or read again."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt
from policies.sequences import Transitions
from policies.surface import Bool, FeatureSpec, Number, Objective, PolicySpec, Surface
from policies.types import item_hashes
from streaming.adapters.memory import MemoryCheckpoints
from streaming.configuration import Configs
from streaming.events import Decision, Goal
from streaming.experiences import Experience, Row
from streaming.sequences import Lane, Lived, Sequencer, moment_of, teaches, transitions
from streaming.trainer import Training
from tests.training_setup import ALGORITHM, Failing, registered

TIMEOUT, HORIZON, START = 100.0, 10.0, 1_000_000.0
SURFACE = Surface(
    "home",
    slots=2,
    horizon=HORIZON,
    correctable=1000.0,
    session_timeout=TIMEOUT,
    features=FeatureSpec(context={"hour": Number(0, 8)}, items={"price": Number(0, 8), "new": Bool()}),
    objectives={"click": Objective("click", range=(0, 1)), "watch": Objective("watch", range=(0, 60))},
    policies={"agent": PolicySpec("gradients", objective="click")},
    live="agent",
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


BOTH = msgspec.structs.replace(SURFACE, policies={"agent": PolicySpec("gradients"), "frail": PolicySpec("failing")})


@cache
def configured(both: bool = False) -> Configs:
    configs = Configs()
    configs.add(BOTH if both else SURFACE)
    return configs


def experience(
    number: int, unit: int, at: float, due: float | None = None, session: str | None = None, **changes: Any
) -> Experience:
    """A settled decision of four candidates and two slots; what it holds follows from its number."""
    rng = np.random.default_rng(number)
    compiled = configured().current("home")
    assert compiled is not None
    rows = rng.permutation(4)[:2]
    matrix = rng.uniform(-1, 1, (4, 2)).astype("<f4")
    past = int(rng.integers(0, 4))
    decision = Decision(
        **{
            "decision_id": f"{unit:016x}-{number}",
            "unit": f"{unit:016x}",
            "at": at,
            "surface": "home",
            "config": compiled.hash,
            "policy": "agent",
            "bundle": "b",
            "mode": "live",
            "slate": [f"item-{row}" for row in rows],
            "slots": [0, 1],
            "rows": rows.tolist(),
            "propensities": [0.25 + number % 4 / 8, 0.5],
            "remaining": [4, 3],
            "greedy": [0, 0],
            "context": np.array([number % 8 / 8], "<f4").tobytes(),
            "shown": matrix[rows].tobytes(),
            "candidates": [f"item-{i}" for i in range(4)],
            "matrix": matrix.tobytes(),
            "history": rng.uniform(-1, 1, (past, 2)).astype("<f4").tobytes(),
            "history_items": [f"past-{i}" for i in range(past)],
            "session": session,
        }
        | changes
    )
    k = len(decision.slate)
    rewards = rng.integers(0, 2, (k, 2)).astype(float)
    due = at + HORIZON if due is None else due
    row = Row(due, number, ("click", "watch"), compiled.encoder.schema, b"\1" * k, b"\1" * k, rewards.tobytes(), ())
    return Experience(0, number, row, decision)


class Settled:
    """An outbox of experiences, as `Experiences` gives them, growing."""

    def __init__(self, partition: int, found: Sequence[Experience]) -> None:
        self.partition, self.found, self.known = partition, found, 0

    def numbers(self) -> tuple[int, int]:
        return 0, self.known

    def rows(self, number: int, limit: int) -> list[tuple[int, Row]]:
        return [(one.number, one.row) for one in self.found[: self.known][number : number + limit]]

    def of(self, rows: Sequence[tuple[int, Row]]) -> list[Experience]:
        return [self.found[number] for number, _ in rows]


def moments(found: Sequence[Experience]) -> list[Any]:
    return [moment_of(one, TIMEOUT, 2) for one in found]


def taken(found: Sequence[Experience], end: float | None = None) -> list[Lived]:
    one = Sequencer()
    lived = [lived for e, m in zip(found, moments(found), strict=True) for lived in one.take(m, e.row.due)]
    return lived + (one.advance(end) if end is not None else [])


def test_a_decision_is_complete_when_the_next_one_of_its_unit_settles() -> None:
    first, second = experience(0, 1, START), experience(1, 1, START + 30)
    assert taken([first]) == []
    [lived] = taken([first, second])
    batch = transitions([lived], 1, 2, 2)
    assert not batch.terminal[0]
    assert batch.elapsed[0] == 30.0
    np.testing.assert_array_equal(batch.next_context[0], np.frombuffer(second.decision.context, "<f4"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(batch.candidates[0].ravel(), np.frombuffer(first.decision.matrix, "<f4"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(batch.items[0], item_hashes(first.decision.candidates))
    assert batch.slate[0].tolist() == first.decision.rows
    assert batch.propensities[0].tolist() == first.decision.propensities
    np.testing.assert_array_equal(batch.rewards[0], first.rewards)
    h = len(second.decision.history_items)
    np.testing.assert_array_equal(
        batch.next_history_items[0, batch.next_lived[0]], item_hashes(second.decision.history_items)
    )
    assert batch.next_lived[0].sum() == h
    assert (batch.units[0], batch.sessions[0], batch.times[0]) == (1, 0, START)


def test_a_session_ends_by_another_one_and_by_time() -> None:
    other = [experience(0, 1, START, session="a"), experience(1, 1, START + 5, session="b")]
    assert [one.then for one in taken(other)] == [None]
    late = [experience(0, 1, START), experience(1, 1, START + TIMEOUT + 1)]
    assert [one.then for one in taken(late)] == [None]
    alone = [experience(0, 1, START), experience(1, 2, START + TIMEOUT - 1), experience(2, 3, START + TIMEOUT)]
    until = START + HORIZON + TIMEOUT
    assert taken(alone, end=until) == []
    assert [one.then for one in taken(alone, end=until + 0.25)] == [None]


def test_what_settles_after_a_later_decision_goes_before_it() -> None:
    late = experience(2, 1, START + 10, due=START + 70)
    found = [experience(0, 1, START), experience(1, 1, START + 40), late]
    one = Sequencer()
    lived = [lived for e, m in zip(found, moments(found), strict=True) for lived in one.take(m, e.row.due)]
    assert [(a.now.at - START, a.then.at - START if a.then else None) for a in lived] == [(0.0, 40.0), (10.0, 40.0)]
    assert one.counts["late"] == 1


def test_the_earliest_end_is_forced_when_too_many_wait() -> None:
    one = Sequencer(most_open=2)
    found = [experience(i, i, START + i) for i in range(3)]
    lived = [lived for e, m in zip(found, moments(found), strict=True) for lived in one.take(m, e.row.due)]
    assert [(a.now.unit, a.then) for a in lived] == [(0, None)]
    assert one.counts == {"forced": 1}


def test_a_sample_of_the_candidates_stands_for_them_and_a_slate_alone_does_not() -> None:
    whole = experience(0, 1, START)
    rows = sorted({*whole.decision.rows, 3})
    matrix = np.frombuffer(whole.decision.matrix, "<f4").reshape(4, 2)  # type: ignore[arg-type]
    some = experience(0, 1, START, matrix=None, support=matrix[rows].tobytes(), support_rows=rows)
    moment = moment_of(some, TIMEOUT, 2)
    assert [rows[place] for place in moment.slate] == whole.decision.rows
    assert np.frombuffer(moment.candidates, "<f4").tolist() == matrix[rows].ravel().tolist()
    assert not teaches(moment_of(experience(0, 1, START, matrix=None), TIMEOUT, 2))
    every = experience(
        0, 1, START, matrix=None, candidates=["item-0", "item-1"], slate=["item-1", "item-0"], rows=[1, 0]
    )
    shown = np.frombuffer(every.decision.shown, "<f4").reshape(2, 2)  # type: ignore[arg-type]
    assert np.frombuffer(moment_of(every, TIMEOUT, 2).candidates, "<f4").tolist() == shown[::-1].ravel().tolist()


def test_pins_can_not_be_drawn_and_goals_come_along() -> None:
    goal = Goal(3, 0.25, "b", "d")
    moment = moment_of(experience(0, 1, START, pinned=[1], goal=goal), TIMEOUT, 2)
    assert [bool(on) for on in moment.allowed].count(False) == 1
    assert not moment.allowed[moment.slate[1]]
    batch = transitions([Lived(moment, None)], 1, 2, 2)
    assert (batch.goals[0], batch.goal_propensities[0]) == (3, 0.25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"matrix": b"\0" * 12},
        {"history_items": ["x"] * 7},
        {"matrix": None, "support": b"\0" * 8, "support_rows": [0]},
        {"matrix": None, "support": b"\0" * 32, "support_rows": [0, 1, 2, 9]},
    ],
)
def test_vectors_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Corrupt, match="bad_vector"):
        moment_of(experience(0, 1, START, **wrong), TIMEOUT, 2)


# -- however it is cut, killed or read again ---------------------------------------------------------------------------


@st.composite
def lives(draw: st.DrawFn) -> list[Experience]:
    """Settled decisions of a few units in the order of their due times, some late, some in other sessions."""
    made = []
    for _ in range(draw(st.integers(0, 24))):
        at = START + draw(st.integers(0, 60)) * 10.0
        lag = draw(st.sampled_from([0.0, 0.0, 0.0, 55.0, 250.0]))
        made.append((at + lag + HORIZON, at, draw(st.integers(1, 3)), draw(st.sampled_from([None, None, "s", "t"]))))
    made.sort(key=lambda one: one[0])
    return [experience(i, unit, at, due, session) for i, (due, at, unit, session) in enumerate(made)]


def told(found: Sequence[Experience], cuts: Sequence[tuple[int, bool]]) -> list[Lived]:
    """Taken in batches as a service does: after each the time that is reached, here and there through a checkpoint."""
    one, lived, at = Sequencer(), [], 0
    for size, restart in [*cuts, (len(found), False)]:
        part = found[at : at + size]
        at += len(part)
        for e, m in zip(part, moments(part), strict=True):
            lived += one.take(m, e.row.due)
        lived += one.advance(found[at].row.due if at < len(found) else np.inf)
        if restart:
            again = Sequencer()
            again.load({name: np.array(array) for name, array in one.arrays().items()})
            one = again
    return lived


@settings(max_examples=60, deadline=None)
@given(lives(), st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=8))
def test_each_decision_is_in_one_transition_however_the_log_is_cut(
    found: list[Experience], cuts: list[tuple[int, bool]]
) -> None:
    whole = told(found, [])
    assert told(found, cuts) == whole
    assert sorted(one.now.context + one.now.rewards for one in whole) == sorted(
        m.context + m.rewards for m in moments(found)
    )
    for now, then in whole:
        if then is not None:
            assert (now.unit, now.session) == (then.unit, then.session)
            assert 0 <= then.at - now.at <= TIMEOUT


class Abort(Exception):
    """The process dies here."""


class Dying(MemoryCheckpoints):
    """A store whose process dies before or after the n-th commit."""

    def __init__(self) -> None:
        super().__init__()
        self.die_in: int | None = None

    def commit(self, commit: Any) -> None:
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in == 0:
                raise Abort
        super().commit(commit)
        if self.die_in is not None and self.die_in == -1:
            raise Abort


def training(store: MemoryCheckpoints, sources: Sequence[Settled], epoch: int, both: bool = False) -> Training:
    return Training(store, sources, configured(both), epoch=epoch, limit=6)


def frontiers(sources: Sequence[Settled]) -> dict[int, float]:
    return {one.partition: one.found[one.known].row.due if one.known < len(one.found) else np.inf for one in sources}


def flat(training: Training) -> dict[str, bytes]:
    [key] = training.policies
    return {name: array.tobytes() for name, array in training.arrays(key).items()}


def partitions(found: Sequence[Experience]) -> list[Settled]:
    """Two partitions: of units 1 and 2, and of 3."""
    parts: list[list[Experience]] = [[], []]
    for one in found:
        place = 0 if int(one.decision.unit, 16) < 3 else 1
        number = len(parts[place])
        parts[place].append(Experience(place, number, msgspec.structs.replace(one.row, offset=number), one.decision))
    return [Settled(place, part) for place, part in enumerate(parts)]


def replayed(store: MemoryCheckpoints, sources: Sequence[Settled]) -> dict[str, bytes]:
    """From nothing, by the recorded order alone."""
    again = MemoryCheckpoints()
    for number, row in store.pull(0, 10_000):
        again.commit(_order(number, row))
    one = training(again, sources, epoch=1)
    assert one.recover() == len(store.pull(0, 10_000))
    return flat(one)


def _order(number: int, row: bytes) -> Any:
    from streaming.ports import Commit

    return Commit(partition=0, offset=number, clock=0.0, epoch=1, outbox=(number, [row]))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
@given(
    lives(),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["", "", "checkpoint", "kill", "die"])),
        max_size=10,
    ),
)
def test_what_was_trained_follows_from_the_recorded_order(
    found: list[Experience], story: list[tuple[int, int, str]]
) -> None:
    """Killed anywhere, the weights, the optimiser and the replay are those that the order gives from nothing."""
    sources, store, epoch = partitions(found), Dying(), 1
    one = training(store, sources, epoch)
    for first, second, event in [*story, (1000, 1000, ""), (0, 0, "")]:
        for source, more in zip(sources, (first, second), strict=True):
            source.known = min(source.known + more, len(source.found))
        store.die_in = {"die": 1}.get(event)
        try:
            while one.step(frontiers(sources)) is not None:
                pass
            if event == "checkpoint":
                one.checkpoint()
        except Abort:
            event = "kill"
        store.die_in = None
        if event == "kill":
            epoch += 1
            one = training(store, sources, epoch)
    while one.step(frontiers(sources)) is not None:
        pass
    if not found:
        return
    assert flat(one) == replayed(store, sources)
    [key] = one.policies
    assert one.arrays(key)["seen"][0] == 2 * len(found)  # two slots of every decision, once
    epoch += 1
    again = training(store, sources, epoch)
    again.recover()
    assert flat(again) == flat(one)


def test_an_older_owner_is_shut_out() -> None:
    sources, store = partitions([experience(i, 1, START + i) for i in range(4)]), MemoryCheckpoints()
    old = training(store, sources, epoch=1)
    sources[0].known = 1
    old.step(frontiers(sources))
    new = training(store, sources, epoch=2)
    new.recover()
    sources[0].known = 2
    with pytest.raises(Exception, match="epoch"):
        old.step(frontiers(sources))
    assert new.step(frontiers(sources)) is not None


def test_a_trainer_that_raises_stops_and_the_others_go_on() -> None:
    with registered(replace(ALGORITHM, name="failing", trainer=Failing)):
        made = configured(both=True).current("home")
        assert made is not None
        found = [experience(i, 1, START + i, config=made.hash) for i in range(8)]
        sources, store = partitions(found), MemoryCheckpoints()
        one = training(store, sources, 1, both=True)
        reports = []
        for known in range(1, 9):
            sources[0].known = known
            reports.append(one.step(frontiers(sources)))
            one.checkpoint()
        assert reports[-1] is not None
        agent, frail = sorted(one.policies)
        assert list(reports[-1].stopped) == [frail]
        assert "singular" in reports[-1].stopped[frail]
        assert one.arrays(agent)["steps"][0] > 2
        again = training(store, sources, 2, both=True)
        again.recover()
        assert again.arrays(frail)["steps"][0] == 2  # what it was before the call that failed


def test_rows_of_another_version_are_counted() -> None:
    strange = experience(0, 1, START)
    strange = Experience(0, 0, msgspec.structs.replace(strange.row, schema="0" * 16), strange.decision)
    sources = [Settled(0, [strange]), Settled(1, [])]
    sources[0].known = 1
    report = training(MemoryCheckpoints(), sources, 1).step(frontiers(sources))
    assert report is not None
    assert report.outcomes == {("home", "other_version"): 1}


def test_rows_and_padding_of_transitions_are_where_they_say() -> None:
    found = [experience(i, i, START + i) for i in range(6)]
    batch = transitions(taken(found, end=np.inf), 1, 2, 2)
    assert len(batch) == 6
    part = batch.rows(np.array([4, 2]))
    assert part.units.tolist() == [4, 2]
    for field in fields(Transitions):
        assert len(getattr(part, field.name)) == 2
    for i, one in enumerate(found):
        past = len(one.decision.history_items)
        assert batch.lived[i].sum() == past
        assert not batch.history[i, : batch.history.shape[1] - past].any()
    assert Lane("home", "s", ("click",)).surface == "home"


def test_a_unit_that_is_forgotten_leaves_no_open_end_and_a_restart_comes_to_the_same() -> None:
    """What is forgotten is in the order: whoever applies it again forgets at the same place (`semantics.md` 24)."""
    configs, since = Configs(), START + 45.0
    configs.add(SURFACE)
    units = {1: "0" * 15 + "1", 2: "0" * 15 + "2"}
    found = [
        experience(0, 1, START),
        experience(1, 2, START + 1),
        experience(2, 1, START + 40, due=START + 60),  # settles after the unit was forgotten, and is of before
        experience(3, 2, START + 50),
        experience(4, 1, START + 70),  # of after: the person came back
        experience(5, 1, START + 80),
    ]
    source, store = Settled(0, found), MemoryCheckpoints()

    def opened(epoch: int) -> Training:
        return Training(store, [source], configs, epoch=epoch, limit=6)

    def open_ends(one: Training) -> set[tuple[int, float]]:
        return {(m.unit, m.at) for sequencer in one._sequences.values() for _, m in sequencer._open.values()}

    first = opened(1)
    source.known = 2
    first.step({})
    first.checkpoint()
    assert open_ends(first) == {(1, START), (2, START + 1)}
    configs.forgotten[units[1]] = since
    configs.forgets += 1
    report = first.step({})  # though nothing has settled
    assert report is not None
    assert (report.rows, report.outcomes) == (0, {("home", "forgotten"): 1})
    assert open_ends(first) == {(2, START + 1)}
    assert first.step({}) is None  # once
    source.known = 4
    report = first.step({})
    assert report is not None
    assert report.outcomes == {("home", "forgotten"): 1}
    source.known = 6
    report = first.step({})
    assert report is not None
    assert open_ends(first) == {(1, START + 80), (2, START + 50)}
    [key] = report.transitions
    assert report.transitions[key] == 1  # START + 70, with what came after it

    again = opened(2)  # as after kill -9: from the checkpoint before the unit was forgotten
    assert again.recover() == 3
    assert open_ends(again) == open_ends(first)
    assert flat(again) == flat(first)
    again.checkpoint()
    third = opened(3)
    assert third.step({}) is None  # the checkpoint knows who was forgotten
    assert open_ends(third) == open_ends(first)

    other = Settled(0, [one for one in found if one.decision.unit == units[2] or one.decision.at >= since])
    other.found = [Experience(0, i, one.row, one.decision) for i, one in enumerate(other.found)]
    other.known = len(other.found)
    never = Training(MemoryCheckpoints(), [other], configs, epoch=1, limit=6)
    never.step({})
    assert open_ends(never) == open_ends(first)  # as if it had never been there
