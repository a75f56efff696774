"""Whatever is delivered twice, late, early, out of order or half-processed counts once in effect, or is set aside by name.

The oracle judges the log as a whole from the rules' words. Then each rule is taken away, and the same property must fail:
a property that no fault can break proves nothing.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings

import streaming.join
import streaming.joined
import streaming.rows
from policies.corrected import CorrectedLearner
from policies.errors import Corrupt
from policies.types import Arrays, Changes
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.applied import Applied
from streaming.events import Feedback, encode
from streaming.index import Index
from streaming.join import Joiner
from streaming.joined import Drawn, Join, Terms, Version
from streaming.ports import Commit, DeadLetter, Record
from streaming.rows import Rows
from streaming.shard import Shard
from tests.streaming.joining import UNIT, Abort, Ports, decision, drain, reasons, total
from tests.streaming.stories import CONFIGS, END, LATE, PLAIN, USUAL, Story, nothing, oracle, planted, stories, young


def tell(story: Story) -> Ports:
    """Feed a log as the story says; the process dies as the story says; at the end the log goes on past every deadline."""
    ports = Ports(CONFIGS)
    deaths = list(story.deaths)
    shard = ports.shard(story.read_limit, story.hot_limit)

    def step(shard: Shard) -> Shard:
        ports.operations, ports.die_at = 0, deaths.pop(0) if deaths else None
        try:
            shard.step()
        except Abort:
            shard = ports.shard(story.read_limit, story.hot_limit)
        ports.die_at = None
        return shard

    for (at, value), stepping in zip(story.deliveries, story.steps, strict=True):
        ports.append(value, at=at)
        if stepping:
            shard = step(shard)
    ports.append(encode(decision(PLAIN, f"{UNIT}-end", END, k=0)), at=END)  # the clock moves on
    while deaths:
        shard = step(shard)
    while True:
        try:
            drain(shard)
            return ports
        except Abort:  # of a fault planted in a port
            shard = ports.shard(story.read_limit, story.hot_limit)


def check(story: Story) -> None:
    ports = tell(story)
    sums, dead, examples = oracle(ports.log.read(0, 0, 10_000))
    assert reasons(ports.letters.read()) == dead
    statistics = ports.shard().statistics()
    assert sum(statistics.examples.values()) == examples
    learned = total(statistics.arrays) or nothing(PLAIN)
    for name, array in sums.items():
        assert abs(array - learned[name]).max() <= 1e-9 * max(1.0, abs(array).max()), name
    for key, arrays in statistics.arrays.items():
        if "pending_clock" in arrays:
            check_young(arrays, young(ports.log.read(0, 0, 10_000)), key)


def check_young(arrays: Arrays, wanted: dict[int, Arrays], key: str) -> None:
    """Delays, and the sums of every part of the last horizon, by part."""
    np.testing.assert_allclose(arrays["delay_mass"], wanted[-1]["mass"], atol=1e-9, err_msg=key)
    np.testing.assert_allclose(arrays["delay_count"], wanted[-1]["count"], atol=1e-9, err_msg=key)
    newest = int(arrays["pending_clock"][0])
    found = {part: place for place, part in enumerate(arrays["pending_parts"].tolist())}
    width = arrays["B"].shape[0]
    for part in range(newest - 32, newest + 1):
        sums = wanted.get(part, {"n": np.zeros(1), "B": np.zeros(2), "mass": np.zeros((2, 64)), "count": np.zeros(2)})
        at = found.get(part)
        if at is None:
            assert not any(array.any() for array in sums.values()), f"{key} part {part} is missing"
            continue
        np.testing.assert_allclose(arrays["pending.n"][at], sums["n"][0], atol=1e-9)
        np.testing.assert_allclose(arrays["pending.B"][at * width], sums["B"], atol=1e-9)
        np.testing.assert_allclose(arrays["pending.delay_mass"][2 * at : 2 * at + 2], sums["mass"], atol=1e-9)
        np.testing.assert_allclose(arrays["pending.delay_count"][2 * at : 2 * at + 2], sums["count"], atol=1e-9)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(versions=LATE))
def test_any_delivery_gives_the_sums_of_the_log_as_a_whole(story: Story) -> None:
    check(story)


def _second_decision_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Join, "answers", lambda self, clock: self.offset < 0 and bool(self.early))


def _conflict_is_taken_for_a_duplicate(patch: pytest.MonkeyPatch) -> None:
    draw, same = Joiner._draw, msgspec.structs.replace

    def blind(self: Joiner, record: Record, key: str, drawn: Drawn, applied: Applied) -> None:
        join = self._rows.hot.get(key)
        known = join.drawn if join is not None else None
        draw(self, record, key, same(known) if known is not None else drawn, applied)

    patch.setattr(Joiner, "_draw", blind)


def _every_feedback_is_new(patch: pytest.MonkeyPatch) -> None:
    remember, number = streaming.join.remember, itertools.count()

    def forgetful(record: Any, join: Join, drawn: Drawn, terms: Terms, said: Feedback) -> tuple[str, str, str]:
        return remember(record, join, drawn, terms, msgspec.structs.replace(said, feedback_id=f"new-{next(number)}"))

    patch.setattr(streaming.join, "remember", forgetful)


def _last_arrival_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(streaming.joined, "in_force", lambda versions, until: versions[-1] if versions else None)


def _late_correction_undoes(patch: pytest.MonkeyPatch) -> None:
    in_force = streaming.joined.in_force
    patch.setattr(streaming.joined, "in_force", lambda versions, until: in_force(versions, float("inf")))


def _retraction_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def forgetful(join: Join, name: str) -> tuple[str, str, str]:
        join.heard.pop(name, None)
        return "retracted", "", ""

    patch.setattr(streaming.join, "take_back", forgetful)


def _horizon_is_ignored(patch: pytest.MonkeyPatch) -> None:
    _change_terms(patch, horizon=1e9)


def _early_feedback_is_dropped(patch: pytest.MonkeyPatch) -> None:
    draw = Joiner._draw

    def forgetful(self: Joiner, record: Record, key: str, drawn: Drawn, applied: Applied) -> None:
        ghost = self._rows.hot.get(key)
        if ghost is not None and ghost.early:
            ghost.early = ()
            self._ghosts.pop(key)
        draw(self, record, key, drawn, applied)

    patch.setattr(Joiner, "_draw", forgetful)


def _late_is_accepted(patch: pytest.MonkeyPatch) -> None:
    _change_terms(patch, correctable=1e6)


def _future_is_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(streaming.join, "AHEAD_SECONDS", 1e9)


def _batch_is_judged_by_its_last_record(patch: pytest.MonkeyPatch) -> None:
    apply = Joiner.apply

    def hasty(self: Joiner, records: Sequence[Record]) -> Applied:
        return apply(self, [record._replace(appended=records[-1].appended) for record in records])

    patch.setattr(Joiner, "apply", hasty)


def _shown_replaces_shown(patch: pytest.MonkeyPatch) -> None:
    presence = streaming.joined.presence

    def narrow(drawn: Drawn, terms: Terms, force: list[Version]) -> bytearray:
        last = [version for version in force if version.kind == "shown"][-1:]
        return presence(drawn, terms, [version for version in force if version.kind != "shown"] + last)

    patch.setattr(streaming.joined, "presence", narrow)


def _feedback_does_not_imply_shown(patch: pytest.MonkeyPatch) -> None:
    presence = streaming.joined.presence

    def narrow(drawn: Drawn, terms: Terms, force: list[Version]) -> bytearray:
        return presence(drawn, terms, [version for version in force if version.kind == "shown"])

    patch.setattr(streaming.joined, "presence", narrow)


def _pins_are_learned_from(patch: pytest.MonkeyPatch) -> None:
    _change_terms(patch, learn_pins=True)


def _wait_never_ends(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joiner, "_waits", lambda self, join, terms: None)


def _delays_are_not_taken_back(patch: pytest.MonkeyPatch) -> None:
    delays_of = streaming.join.delays_of
    patch.setattr(streaming.join, "delays_of", lambda moved: delays_of([(at, (), after) for at, _, after in moved]))


def _delays_of_a_correction_are_those_of_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joiner, "_spread", lambda self, join, terms, present, into: False)


def _young_decisions_are_not_corrected(patch: pytest.MonkeyPatch) -> None:
    learn = CorrectedLearner.learn

    def first_only(self: CorrectedLearner, changes: Changes) -> None:
        known = dict(self._young)
        learn(self, changes)
        if not changes.present_before.any():
            return
        self._young |= {part: sums for part, sums in known.items() if part in self._young}

    patch.setattr(CorrectedLearner, "learn", first_only)


def _what_was_taught_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    pack = streaming.rows.pack
    patch.setattr(streaming.rows, "pack", lambda join: pack(msgspec.structs.replace(join, present=b"", rewards=b"")))


def _changed_rows_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    pieces = Rows.pieces

    def only_new(self: Rows) -> tuple[list[tuple[int, bytes]], tuple[int, bytes] | None]:
        joins, ids = pieces(self)
        return [(row, data) for row, data in joins if row >= self._committed_row], ids

    patch.setattr(Rows, "pieces", only_new)


def _ids_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Index, "load", lambda self, blocks: None)


def _offset_is_committed_apart(patch: pytest.MonkeyPatch) -> None:
    """First the sums, then the rows and the offset: two transactions where there has to be one."""
    commit = MemoryCheckpoints.commit

    def torn(self: MemoryCheckpoints, made: Commit) -> None:
        before = self.load()
        sums = replace(made, offset=before.offset, joins=(), ids=None, evicted=0, extra=before.extra)
        commit(self, sums)
        if next(coin):
            raise Abort
        commit(self, made)

    coin = itertools.cycle([False, True])
    patch.setattr(MemoryCheckpoints, "commit", torn)


def _letters_come_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    put, commit = MemoryDeadLetters.put, Shard._commit
    held: list[tuple[MemoryDeadLetters, Sequence[DeadLetter]]] = []

    def later(self: Shard, joiner: Joiner, offset: int, learned: dict[str, int]) -> None:
        commit(self, joiner, offset, learned)
        while held:
            put(*held.pop())

    def hold(self: MemoryDeadLetters, letters: Sequence[DeadLetter]) -> None:
        held[:] = [(self, letters)]

    patch.setattr(MemoryDeadLetters, "put", hold)
    patch.setattr(Shard, "_commit", later)


def _change_terms(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    of = Terms.of
    patch.setattr(Terms, "of", lambda compiled: replace(of(compiled), **changes))


OF_DELAYS = [
    _delays_are_not_taken_back,
    _delays_of_a_correction_are_those_of_the_first,
    _young_decisions_are_not_corrected,
]
PLANTS = [
    *OF_DELAYS,
    _second_decision_counts,
    _conflict_is_taken_for_a_duplicate,
    _every_feedback_is_new,
    _last_arrival_wins,
    _late_correction_undoes,
    _retraction_is_forgotten,
    _horizon_is_ignored,
    _early_feedback_is_dropped,
    _late_is_accepted,
    _future_is_accepted,
    _batch_is_judged_by_its_last_record,
    _shown_replaces_shown,
    _feedback_does_not_imply_shown,
    _pins_are_learned_from,
    _wait_never_ends,
    _what_was_taught_is_not_kept,
    _changed_rows_are_not_committed,
    _ids_are_not_committed,
    _offset_is_committed_apart,
    _letters_come_after_the_commit,
]


# seeds that tell a rare story soon, for half a minute less each
EARLY = {
    _shown_replaces_shown: 51,
    _delays_are_not_taken_back: 3,
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_each_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    @planted(1500, again=plant not in EARLY)
    @given(stories(versions=LATE if plant in OF_DELAYS else USUAL))
    def broken(story: Story) -> None:
        check(story)

    plant(monkeypatch)
    with pytest.raises((AssertionError, Corrupt, KeyError)):
        (seed(EARLY[plant])(broken) if plant in EARLY else broken)()
