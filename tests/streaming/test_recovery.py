"""Whatever is lost with a disk comes back from the newest upload and the log: the sums are those of the log as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streaming.shard
from policies.errors import Corrupt, Rejected, Unavailable
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryLog
from streaming.applied import Applied, Extra
from streaming.configuration import Compiled
from streaming.events import encode
from streaming.join import Joiner
from streaming.ports import Commit, DeadLetter
from streaming.recovery import Held, encode_held
from streaming.rows import Rows
from streaming.shard import Shard
from streaming.uploads import Checkpoint, Uploads
from tests.streaming.joining import (
    CORRECTABLE,
    EPOCH0,
    HORIZON,
    UNIT,
    Abort,
    Ports,
    TallyConfigs,
    decision,
    drain,
    feedback,
    reasons,
    total,
)
from tests.streaming.stories import CONFIGS, END, PLAIN, USUAL, WAIT, Story, nothing, oracle, planted, stories

NEVER_TOLD_APART = {"too_late", "no_decision", "bad_time"}  # of decisions that had closed before the disk was lost


class Place:
    """A partition whose local checkpoint may be lost, and a bundle store that stays."""

    def __init__(self, read_limit: int = 2000, hot_limit: int = 1000, configs: TallyConfigs = CONFIGS) -> None:
        self.ports, self.whole = Ports(configs), MemoryLog(1, now=lambda: self.ports.clock)
        self.store, self.epoch = MemoryBundles(), 0
        self._limits = {"read_limit": read_limit, "hot_limit": hot_limit}
        self.lose()

    def lose(self) -> None:
        """The disk is gone; a worker elsewhere begins with an empty one."""
        self.ports.checkpoints = MemoryCheckpoints()
        held = Held(joiner=msgspec.msgpack.encode(Extra(longest=CORRECTABLE)))  # so that spans are short
        self.ports.checkpoints.commit(Commit(partition=0, offset=0, clock=0.0, epoch=0, extra=encode_held(held)))
        self.start()

    def start(self) -> None:
        self.epoch += 1
        self.shard = self.ports.shard(epoch=self.epoch, **self._limits)
        self.uploads = self.shard.uploads = Uploads(self.store, 0, self.epoch)

    def append(self, *events: Any, at: float) -> None:
        self.ports.append(*events, at=at)
        self.whole.append([(UNIT.encode(), e if isinstance(e, bytes) else encode(e)) for e in events])

    def step(self, die_at: int | None = None) -> None:
        self.ports.operations, self.ports.die_at = 0, die_at
        try:
            self.shard.step()
        except Abort:
            self.start()
        self.ports.die_at = None

    def upload(self) -> None:
        made = self.shard.checkpoint(self.uploads.known())
        if made is not None:
            self.uploads.put(made)
            self.ports.log.trim(0, made.rebuild_from)  # no recovery reads what is before


@dataclass(frozen=True)
class Trouble:
    """After each delivery: nothing, an upload, or the loss of the disk; and when the process dies afterwards."""

    events: list[str]
    deaths: list[int | None]


@st.composite
def troubled(draw: st.DrawFn, versions: Sequence[Compiled] = USUAL) -> tuple[Story, Trouble]:
    story = draw(stories(messy=False, versions=versions))
    count = len(story.deliveries)
    events = draw(st.lists(st.sampled_from(["", "upload", "lose"]), min_size=count, max_size=count))
    deaths = draw(st.lists(st.none() | st.integers(0, 12), min_size=count, max_size=count))
    return story, Trouble(events, deaths)


def check(story: Story, trouble: Trouble) -> None:
    place = Place(story.read_limit, story.hot_limit)
    told = zip(story.deliveries, story.steps, trouble.events, trouble.deaths, strict=True)
    for (at, value), stepping, event, death in told:
        place.append(value, at=at)
        if stepping:
            place.step(death)
        if event == "upload":
            place.upload()
        elif event == "lose":
            place.lose()
    place.append(decision(PLAIN, f"{UNIT}-end", END, k=0), at=END)  # the clock moves on
    drain(place.shard)
    sums, dead, examples = oracle(place.whole.read(0, 0, 10_000))
    found = reasons(place.ports.letters.read())
    assert found.keys() == dead.keys()
    for offset, reason in dead.items():
        assert found[offset] == reason or {found[offset], reason} <= NEVER_TOLD_APART
    statistics = place.shard.statistics()
    assert sum(statistics.examples.values()) == examples
    learned = total(statistics.arrays) or nothing(PLAIN)
    for name, array in sums.items():
        assert abs(array - learned[name]).max() <= 1e-9 * max(1.0, abs(array).max()), name


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(troubled())
def test_a_lost_disk_changes_no_sum(both: tuple[Story, Trouble]) -> None:
    check(*both)


def _what_is_read_again_is_taught_again(patch: pytest.MonkeyPatch) -> None:
    read = streaming.shard.read_held
    patch.setattr(streaming.shard, "read_held", lambda loaded: msgspec.structs.replace(read(loaded), learned_to=0))


def _what_is_read_again_is_judged_again(patch: pytest.MonkeyPatch) -> None:
    rebuilt = Shard._rebuilt

    def loud(self: Shard, joiner: Joiner, offset: int) -> Applied:
        self._dead_letters.put([DeadLetter(0, offset - 1, "again", "", b"", b"")])
        return rebuilt(self, joiner, offset)

    patch.setattr(Shard, "_rebuilt", loud)


def _joins_are_not_rebuilt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joiner, "reach", lambda self: (-1, CORRECTABLE))


def _only_the_newest_joins_are_rebuilt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rows, "open_from", lambda self, clock: self.spans[-1] if self.spans else None)


def _joins_close_at_the_horizon(patch: pytest.MonkeyPatch) -> None:
    open_from = Rows.open_from
    patch.setattr(Rows, "open_from", lambda self, clock: open_from(self, clock + CORRECTABLE - HORIZON))


def _feedback_that_waits_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Joiner, "ghosts", lambda self: np.zeros(0, np.uint64))


def _an_upload_is_one_record_ahead(patch: pytest.MonkeyPatch) -> None:
    checkpoint = Shard.checkpoint

    def ahead(self: Shard, known: Any) -> Checkpoint | None:
        made = checkpoint(self, known)
        end = self._log.end(0)[0]
        return made and replace(made, offset=min(made.offset + 1, end))

    patch.setattr(Shard, "checkpoint", ahead)


def _changes_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    learn = Shard._learn

    def silent(self: Shard, applied: Applied) -> dict[str, int]:
        learned = learn(self, applied)
        self._versions.clear()
        return learned

    patch.setattr(Shard, "_learn", silent)


PLANTS = [
    _what_is_read_again_is_taught_again,
    _what_is_read_again_is_judged_again,
    _joins_are_not_rebuilt,
    _only_the_newest_joins_are_rebuilt,
    _joins_close_at_the_horizon,
    _feedback_that_waits_is_lost,
    _an_upload_is_one_record_ahead,
    _changes_are_not_counted,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_each_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    @planted(1500)
    @given(troubled())
    def broken(both: tuple[Story, Trouble]) -> None:
        check(*both)

    plant(monkeypatch)
    with pytest.raises((AssertionError, Corrupt, KeyError)):
        broken()


def told(place: Place) -> Place:
    """Four decisions, one with feedback, one waiting for its horizon, one that feedback waits for; learned and uploaded."""
    for i in range(3):
        place.append(decision(PLAIN, f"{UNIT}-{i}", EPOCH0 + i), at=EPOCH0 + i)
    place.append(decision(WAIT, f"{UNIT}-3", EPOCH0 + 3), feedback(f"{UNIT}-4", EPOCH0 + 3, slot=1), at=EPOCH0 + 3)
    place.append(feedback(f"{UNIT}-1", EPOCH0 + 4, slot=0, value=2.0, feedback_id="f"), at=EPOCH0 + 4)
    drain(place.shard)
    place.upload()
    return place


def test_a_newer_upload_is_used_and_an_older_is_not() -> None:
    place = told(Place())
    place.start()
    place.ports.log.trim(0, 3)  # a rebuild would have to read what is gone
    assert place.shard.offset == 6
    place.append(decision(PLAIN, f"{UNIT}-5", EPOCH0 + 5), at=EPOCH0 + 5)
    assert place.shard.step().decisions == 1  # the local checkpoint was as new, so nothing is rebuilt

    place = told(Place())
    behind = place.ports.checkpoints
    place.lose()
    place.append(decision(PLAIN, f"{UNIT}-5", EPOCH0 + 5), at=EPOCH0 + 5)
    drain(place.shard)
    place.upload()
    place.ports.checkpoints = behind  # the first worker's disk comes back
    place.start()
    assert place.shard.offset == 7
    assert place.shard.step().rebuilding == 0
    assert sum(place.shard.statistics().examples.values()) == 12


def test_progress_of_a_rebuild_is_reported_and_published_sums_are_those_of_the_upload() -> None:
    place = told(Place(read_limit=2))
    whole = place.shard.statistics()
    place.lose()
    reports = []
    while (report := place.shard.step()).records:
        reports.append(report)
        assert place.shard.statistics().offset == place.shard.offset == 6
        assert total(place.shard.statistics().arrays).keys() == total(whole.arrays).keys()
    assert [one.rebuilding for one in reports] == [4, 2, 0]
    assert all(not one.learned and not one.outcomes and not one.dead for one in reports)
    assert place.shard.checkpoint({}) is not None


def test_feedback_on_a_decision_from_before_the_rebuild_does_not_wait_for_it() -> None:
    place = Place()
    place.append(decision(PLAIN, f"{UNIT}-0", EPOCH0), at=EPOCH0)
    drain(place.shard)  # what is read in one batch is read again together
    place.append(decision(PLAIN, f"{UNIT}-1", EPOCH0 + 800), at=EPOCH0 + 800)
    place.append(feedback(f"{UNIT}-0", EPOCH0 + 50, slot=0), feedback(f"{UNIT}-2", EPOCH0 + 850), at=EPOCH0 + 900)
    place.append(b"{}", at=EPOCH0 + CORRECTABLE + 100)  # the first decision has closed, the second has not
    drain(place.shard)
    place.upload()
    newest = place.uploads.newest()
    assert newest is not None
    assert newest.rebuild_from == 1
    place.lose()
    drain(place.shard)
    place.append(b"{}", at=END)
    drain(place.shard)
    assert reasons(place.ports.letters.read()) == {3: "no_decision", 4: "undecodable", 5: "undecodable"}


def test_nothing_is_uploaded_while_joins_are_missing() -> None:
    place = told(Place(read_limit=2))
    place.lose()
    place.shard.step()
    assert place.shard.checkpoint({}) is None


def test_a_rebuild_that_the_log_cannot_serve_stops_the_shard() -> None:
    place = told(Place())
    place.ports.log.trim(0, 2)
    place.lose()
    with pytest.raises(Corrupt, match="offset_out_of_range"):
        place.shard.step()
    assert place.shard.committed().offset == 6  # what was learned can still be published
    assert total(place.shard.committed().arrays)["n"] == 9


def test_without_a_store_a_local_checkpoint_goes_on_and_an_empty_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    place = told(Place())

    def away(self: MemoryBundles) -> dict[str, str]:
        raise Unavailable("bundle store")

    monkeypatch.setattr(MemoryBundles, "pointers", away)
    place.start()
    assert place.shard.offset == 6
    place.lose()
    with pytest.raises(Unavailable):
        place.shard.step()


def test_another_log_is_never_learned_on_top() -> None:
    place = told(Place())
    place.ports.log.identity = "another"
    place.start()
    with pytest.raises(Rejected, match="is of log 'memory', this is 'another'") as caught:
        place.shard.step()
    assert caught.value.code == "another_log"
    place.lose()  # the upload is of the first log as well
    with pytest.raises(Rejected, match="SLATEWISE_BUNDLES"):
        place.shard.step()


def test_a_local_checkpoint_of_another_log_gives_way_to_an_upload_of_this_one() -> None:
    place = told(Place())
    other = told(Place())
    other.ports.log.identity = "another"
    other.lose()
    other.uploads = other.shard.uploads = Uploads(MemoryBundles(), 0, 9)
    drain(other.shard)
    place.ports.checkpoints = other.ports.checkpoints
    place.epoch = 9
    place.start()
    drain(place.shard)
    assert place.shard.offset == 6
    assert sum(place.shard.statistics().examples.values()) == 9


def test_a_paused_owner_that_goes_on_is_fenced() -> None:
    place = told(Place())
    old, old_uploads = place.shard, place.uploads
    stale = old.checkpoint({})
    assert stale is not None
    place.start()
    assert place.shard.offset == 6  # taken over, nothing committed yet
    place.append(decision(PLAIN, f"{UNIT}-5", EPOCH0 + 5), at=EPOCH0 + 5)
    with pytest.raises(Rejected, match="epoch 1 is over"):
        old.step()
    with pytest.raises(Rejected, match="epoch 1 is over"):
        old.statistics()
    drain(place.shard)
    place.upload()
    with pytest.raises(Rejected, match="epoch 1 is over"):
        old_uploads.put(stale)
    newest = place.uploads.newest()
    assert newest is not None
    assert newest.offset == 7
