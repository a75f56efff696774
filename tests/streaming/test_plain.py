"""The plain path is the general path, sooner: same rows, letters, outcomes and changes, whatever the log holds.

And what it is built of says what the kept libraries say: numbers, hashes, records.
"""

import hashlib
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.errors import Corrupt
from policies.types import Arrays
from streaming.adapters.memory import MemoryCheckpoints
from streaming.events import Feedback, encode
from streaming.joined import Drawn, read_event
from streaming.plain import batch, scan
from streaming.plain.batch import Plain
from streaming.plain.hashes import Items, blake, item_hash
from streaming.plain.numbers import LEAST, MOST, nearest
from streaming.ports import Record
from streaming.rows import Rows
from streaming.shard import FRESH_EACH, Shard
from tests.streaming.joining import EPOCH0, UNIT, Ports, decision, feedback, reasons, surface
from tests.streaming.stories import CONFIGS, CORRECTED, LATE, PLAIN, Story, stories

PLACES = {name: getattr(scan, name) for name in ("ID", "UNIT", "SURFACE", "KIND", "NAME")}


class Watched(Shard):
    """Keeps what its learners were taught, its outcomes and its commits."""

    def __init__(self, ports: Ports, read_limit: int, hot_limit: int, general: bool) -> None:
        super().__init__(
            0, ports.log, ports.checkpoints, CONFIGS, ports.letters, epoch=1, read_limit=read_limit, hot_limit=hot_limit
        )
        self.general, self.seen = general, []

    def run(self) -> None:
        while True:
            joiner = self._state()
            if self.general:
                joiner._plain = None
            if not (report := self.step()).records:
                return
            outcomes = {name: count for name, count in report.outcomes.items() if count}
            fresh = sorted(report.fresh) if len(report.fresh) < FRESH_EACH else []  # else it is a sample
            self.seen.append((report.decisions, report.feedback, outcomes, report.dead, report.learned, fresh))


def rows(checkpoints: MemoryCheckpoints) -> dict[str, list[bytes]]:
    """Rows by id: their numbers may differ inside a batch, what they say may not."""
    found: dict[str, list[bytes]] = {}
    for _, data in sorted(checkpoints._joins.items()):
        found.setdefault(msgspec.msgpack.decode(data)[0], []).append(data)
    return found


def both(ports: Ports, read_limit: int, hot_limit: int) -> None:
    """One log, read by both paths: all that comes out is the same."""
    other = Ports(CONFIGS)
    other.log = ports.log
    plain, general = Watched(ports, read_limit, hot_limit, False), Watched(other, read_limit, hot_limit, True)
    plain.run()
    general.run()
    assert plain.seen == general.seen
    assert ports.letters.read() == other.letters.read()
    assert rows(ports.checkpoints) == rows(other.checkpoints)
    ours, theirs = plain.statistics(), general.statistics()
    assert (ours.offset, ours.clock, ours.examples) == (theirs.offset, theirs.clock, theirs.examples)
    for key, sums in theirs.arrays.items():
        exact(sums, ours.arrays[key])
    loaded, expected = ports.checkpoints.load(), other.checkpoints.load()
    assert (loaded.next_row, loaded.evicted) == (expected.next_row, expected.evicted)


def exact(a: Arrays, b: Arrays) -> None:
    """Sums of the same numbers, which may have been added in another order."""
    for name, array in a.items():
        np.testing.assert_allclose(array, b[name], rtol=1e-13, err_msg=name)


def told(story: Story) -> Ports:
    ports = Ports(CONFIGS)
    for at, value in story.deliveries:
        ports.append(value, at=at)
    return ports


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories(messy=False, versions=LATE))
def test_stories_end_alike_on_both_paths(story: Story) -> None:
    both(told(story), story.read_limit, story.hot_limit)


def busy() -> Ports:
    """Mostly what the plain path takes, with all else between: versions, corrections, copies, and what comes early or late."""
    rng, ports, versions = (
        np.random.default_rng(0),
        Ports(CONFIGS),
        [PLAIN, CORRECTED, CONFIGS.add(surface(horizon=50.0))],
    )
    waiting: list[Feedback] = []
    for i in range(200):
        now, slots = EPOCH0 + i, int(rng.integers(1, 4))
        made = decision(versions[int(rng.integers(3))], f"{UNIT}-{i}", now + 100 * (rng.random() < 0.05), k=slots)
        if rng.random() < 0.05:
            ports.append(feedback(made.decision_id, now))
        ports.append(made, at=now)
        kind = ["watch", "like", "seen_price", "shown"][int(rng.choice(4, p=[0.5, 0.3, 0.1, 0.1]))]
        said = feedback(
            made.decision_id,
            now + int(rng.integers(60)),
            kind=kind,
            slot=[None, 0, 1][int(rng.integers(3))] if kind != "shown" else None,
            value=float(rng.integers(-3, 40)) / 8,
            feedback_id=f"f{i}",
            accepted_at=now,
        )
        waiting.append(said)
        if rng.random() < 0.2:
            waiting.append(msgspec.structs.replace(said, value=2.0, kind="watch", feedback_id=f"g{i}"))
        if rng.random() < 0.1:
            ports.append(made)
        while waiting and rng.random() < 0.6:
            ports.append(waiting.pop(int(rng.integers(len(waiting)))))
    ports.append(*waiting, b"broken")
    return ports


@pytest.mark.parametrize(("read_limit", "hot_limit"), [(7, 0), (7, 3), (40, 1000), (2000, 1000)])
def test_a_busy_log_ends_alike_on_both_paths(read_limit: int, hot_limit: int) -> None:
    both(busy(), read_limit, hot_limit)


def test_a_batch_in_another_room_ends_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms that change at every batch, and between its records and the kept decisions they name."""
    monkeypatch.setattr(batch, "ROOMY", 1)
    monkeypatch.setattr(batch, "PATIENCE", 1)
    both(busy(), 40, 1000)


def test_a_backlog_has_its_room_only_while_it_is_read() -> None:
    def records(count: int) -> list[Record]:
        return [Record(i, EPOCH0, b"u", encode(decision(PLAIN, f"d{i}", EPOCH0, k=1))) for i in range(count)]

    plain = Plain(Rows(lambda row: None, lambda offset, limit: [], 0), lambda config: None)
    few = records(20)
    plain.read(few)
    steady = plain._room.letters
    plain.read(records(2_000))
    assert plain._room.letters > 50 * steady
    for _ in range(batch.PATIENCE):
        plain.read(few)
    assert plain._room.letters <= 2 * steady
    kept = plain._room
    for _ in range(2 * batch.PATIENCE):
        plain.read(few)
    assert plain._room is kept


def test_most_of_a_stream_is_taken_by_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    ports, left = Ports(CONFIGS), []
    take = Plain.take

    def counted(self: Plain, *given: Any) -> batch.Taken:
        taken = take(self, *given)
        left.extend(taken.left)
        return taken

    monkeypatch.setattr(Plain, "take", counted)
    for i in range(20):
        ports.append(decision(PLAIN, f"{UNIT}-{i}", EPOCH0), feedback(f"{UNIT}-{i}", EPOCH0, slot=1, feedback_id="f"))
    for i in range(20, 40):
        ports.append(decision(PLAIN, f"{UNIT}-{i}", EPOCH0))
    for i in range(20, 40):
        ports.append(feedback(f"{UNIT}-{i}", EPOCH0, slot=1, feedback_id="f"))
    shard = ports.shard(read_limit=50)
    while shard.step().records:
        pass
    assert left == []
    assert reasons(ports.letters.read()) == {}


# -- planted faults: the comparison has to see them ---------------------------------------------------------------------


def _no_clock(patch: pytest.MonkeyPatch) -> None:
    take = Plain.take
    patch.setattr(
        Plain,
        "take",
        lambda self, sheet, named, clock, longest, limits: take(self, sheet, named, clock, longest, (1e9, 1e9)),
    )


def _nobody_is_named(patch: pytest.MonkeyPatch) -> None:
    take = Plain.take
    patch.setattr(Plain, "take", lambda self, sheet, named, *rest: take(self, sheet, set(), *rest))


def _nothing_is_known(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rows, "known", lambda self, hashes: np.zeros(len(hashes), np.bool_))


def _all_is_silent(patch: pytest.MonkeyPatch) -> None:
    keep = Rows.keep
    patch.setattr(Rows, "keep", lambda self, keys, kept: keep(self, keys, [(*one[:4], True) for one in kept]))


@pytest.mark.parametrize(
    "plant",
    [_no_clock, _nobody_is_named, _nothing_is_known, _all_is_silent],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_a_planted_fault_shows(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, Corrupt, KeyError)):  # noqa: PT012 - either of two batch sizes may show it
        both(busy(), 7, 3)
        both(busy(), 40, 1000)


# -- what it is built of --------------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(LEAST, MOST))
def test_numbers_are_those_of_float(w: int, q: int) -> None:
    real = np.zeros(1)
    nearest(np.uint64(w), q, real.view(np.uint64), real)
    assert real[0] == float(f"{w}e{q}")


@settings(max_examples=1000, deadline=None)
@given(st.integers(1 << 53, (1 << 54) - 1), st.integers(0, 4), st.integers(0, 10))
def test_numbers_half_way_go_to_even(odd: int, power: int, shift: int) -> None:
    w = (
        (odd | 1) * 5**power << min(shift, 64 - ((odd | 1) * 5**power).bit_length())
        if (odd | 1) * 5**power < 1 << 64
        else odd | 1
    )
    q = -power if w != odd | 1 else 0
    real = np.zeros(1)
    nearest(np.uint64(w), q, real.view(np.uint64), real)
    assert real[0] == float(f"{w}e{q}")


@given(st.binary(max_size=128))
def test_hashes_are_those_of_hashlib(name: bytes) -> None:
    text, room = np.frombuffer(b"x" + name + b"\0", np.uint8), np.empty((2, 16), np.uint64)
    expected = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
    assert int(blake(text, 1, 1 + len(name), *room)) == expected
    items = Items()
    for _ in range(2):  # made, then remembered
        assert int(item_hash(text, 1, 1 + len(name), items.places, *room)) == expected


def test_items_that_share_a_place_are_told_apart() -> None:
    items, room = Items(), np.empty((2, 16), np.uint64)
    names = [f"item-{i}".encode() for i in range(100_000)]  # more than places
    text = np.frombuffer(b"".join(names), np.uint8)
    end = 0
    for name in names:
        end += len(name)
        found = int(item_hash(text, end - len(name), end, items.places, *room))
        if end % 97 == 0:
            assert found == int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


UNREAD = [
    None,
    True,
    False,
    1.5,
    -3,
    "s",
    'q"',
    "é",
    [],
    {},
    [[], {}],
    {"a": [1, {"b": None}]},
    [1e300],
    list(range(9)),
]


def _edited(draw: st.DrawFn, value: bytes) -> bytes:
    """A record with a few bytes put in, replaced or cut."""
    pieces = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"9", b"e5", b".", b"-", b"null", b"true"]
    pieces += [
        b" ",
        b"\xff",
        b"\xc3\xa9",
        b"=",
        b"A",
        b'"x":[1,{"y":null}],',
        b'"v":1,',
        b'"v":2,',
        b'"tenant":"default",',
    ]
    pieces += [b'"at":1e30,', b'"slot":0.0,', b'"weight":0.3,', b'"pinned":[1],', b'"defer":true,', b"", b"00000000"]
    for _ in range(draw(st.integers(0, 2))):
        at, piece = draw(st.integers(0, len(value))), draw(st.sampled_from(pieces))
        value = value[:at] + piece + value[at + draw(st.integers(0, 2)) :]
    return value


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A record as this build writes it, or nearly."""
    number = st.floats(-1e20, 1e20) | st.floats(0, 1) | st.integers(0, 2**40).map(float)
    if draw(st.booleans()):
        event: Any = decision(PLAIN, f"{UNIT}-{draw(st.integers(0, 9))}", abs(draw(number)), k=draw(st.integers(0, 3)))
        event = msgspec.structs.replace(event, propensities=[draw(number) for _ in event.slate], weight=draw(number))
        event = msgspec.structs.replace(event, shown=draw(st.binary(max_size=9)), context=draw(st.binary(max_size=4)))
    else:
        event = feedback(f"{UNIT}-1", draw(number), value=draw(number), feedback_id=draw(st.text(max_size=3)))
        event = msgspec.structs.replace(
            event, slot=draw(st.sampled_from([None, 0, 2])), accepted_at=draw(st.none() | number)
        )
    value = encode(event)
    if draw(st.booleans()):
        loose = msgspec.json.decode(value)
        more = {draw(st.sampled_from(["x", "é", "session"])): draw(st.sampled_from(UNREAD))}
        value = msgspec.json.encode(dict(draw(st.permutations([*(more | loose).items()]))))
    return _edited(draw, value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(written(), min_size=1, max_size=4))
def test_what_is_read_in_columns_is_what_msgspec_reads(values: list[bytes]) -> None:
    sheet = Plain(Rows(lambda row: None, lambda offset, limit: [], 0), lambda config: None).read(
        [Record(i, 0.0, b"", value) for i, value in enumerate(values)]
    )
    for i, value in enumerate(values):
        row, reals = sheet.ints[i], sheet.reals[i]
        if row[scan.FORM] == scan.OTHER:
            continue
        event = read_event(value)
        names = ("ID", "UNIT", "KIND", "NAME") if row[scan.FORM] == scan.FEEDBACK else ("ID", "UNIT", "SURFACE")
        text = {name: sheet.whole[row[PLACES[name]] : row[PLACES[name] + 1]].decode() for name in names}
        assert (text["ID"], text["UNIT"], reals[scan.AT], event.tenant) == (
            event.decision_id,
            event.unit,
            event.at,
            "default",
        )
        if isinstance(event, Feedback):
            assert row[scan.FORM] == scan.FEEDBACK
            assert (text["KIND"], text["NAME"], reals[scan.WEIGHT]) == (event.kind, event.feedback_id, event.value)
            assert row[scan.SLOT] == (-1 if event.slot is None else event.slot)
            assert row[scan.REVISION] == event.revision
            assert (event.item, event.slots, event.retracts) == (None, None, None)
            accepted = reals[scan.ACCEPTED]
            assert math.isnan(accepted) if event.accepted_at is None else accepted == event.accepted_at
            continue
        assert isinstance(event, Drawn)
        assert row[scan.FORM] == scan.DECISION
        flat, k = row[scan.FLAT], row[scan.FILLED]
        assert tuple(sheet.whole[a:b].decode() for a, b in sheet.items[flat : flat + k]) == event.slate
        assert tuple(sheet.propensities[flat : flat + k]) == event.propensities
        assert (event.slots, event.pinned, event.defer) == (tuple(range(k)), (), False)
        assert (text["SURFACE"], reals[scan.WEIGHT]) == (event.surface, event.weight)
        assert f"{int(row[scan.CONFIG]) & 0xFFFFFFFFFFFFFFFF:016x}" == event.config
        for start, size, vector in (
            (scan.CONTEXT, scan.CONTEXT_BYTES, event.context),
            (scan.SHOWN, scan.SHOWN_BYTES, event.shown),
        ):
            assert sheet.vectors[row[start] : row[start] + row[size]].tobytes() == vector


def test_as_written_records_are_read_in_columns() -> None:
    values = [encode(decision(PLAIN, f"{UNIT}-1", EPOCH0)), encode(feedback("a", EPOCH0, feedback_id="f", slot=1))]
    values += [encode(feedback("a", EPOCH0 + 0.123456789, feedback_id="f", value=1e-7, accepted_at=1.7e9 + 1 / 3))]
    sheet = Plain(Rows(lambda row: None, lambda offset, limit: [], 0), lambda config: None).read(
        [Record(i, 0.0, b"", value) for i, value in enumerate(values)]
    )
    assert sheet.others() == []
