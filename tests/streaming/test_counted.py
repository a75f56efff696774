"""Counts that features ask for: exactly what the log says, of units and of items, whatever dies, repeats or is taken back."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from policies.surface import Bool, Count, FeatureSpec, Number, Rate
from streaming import join as joining_module
from streaming.counted import (
    NOTHING,
    Asked,
    Moved,
    asked,
    count_name,
    counted_lately,
    counts_key,
    moves,
    read_counts,
    with_moves,
)
from streaming.derived import Derived, counter_name
from streaming.events import Decision
from streaming.join import Joiner
from streaming.ports import Record
from tests.streaming.joining import (
    EPOCH0,
    HORIZON,
    UNIT,
    Abort,
    Ports,
    TallyConfigs,
    decision,
    drain,
    feedback,
    surface,
)
from tests.streaming.stories import END, VERSIONS, Story, evidence_of, force_of, judged, planted, stories
from tests.streaming.test_derived import Fed, Stores, everything, tell
from tests.streaming.test_recovery import Trouble, troubled

SPEC = FeatureSpec(
    context={"hour": Number(0, 8), "likes": Count("like", 60), "watches": Rate("watch", "2m", (1, 9))},
    items={"price": Number(0, 8), "new": Bool(), "plays": Count("watch", 60), "liked": Rate("like", "2m", (1, 9))},
)
CONFIGS = TallyConfigs()
COUNTED = CONFIGS.add(surface(features=SPEC))
WAITING = CONFIGS.add(surface(features=SPEC, silence="wait"))
VERSIONS |= {version.hash: version for version in (COUNTED, WAITING)}  # what stories are judged by
OF_UNITS = (("like", 60), ("shown", 120), ("watch", 120))
OF_ITEMS = (("like", 120), ("shown", 120), ("watch", 60))


def test_what_a_surface_asks_for() -> None:
    found = asked(COUNTED.surface)
    assert found == Asked(OF_UNITS, OF_ITEMS, frozenset({"like", "shown", "watch"}))
    assert asked(surface()) is None


def said(records: list[Record]) -> list[tuple[Decision, str, int]]:
    """(decision, kind, filled slot or −1) of everything that counts, judged from the whole log at once."""
    made, heard, _ = judged(records)
    found: list[tuple[Decision, str, int]] = []
    for name, (drawn, _) in made.items():
        present, _ = evidence_of(drawn, VERSIONS[drawn.config], heard[name])
        force = [e for e in force_of(drawn, heard[name]) if e.at <= drawn.at + HORIZON and e.value > 0]
        for p in range(len(drawn.slate)):
            if present[p]:
                found += [(drawn, kind, p) for kind in {"shown"} | {e.kind for e in force if e.slot == p}]
        if any(present):
            found += [(drawn, kind, -1) for kind in {e.kind for e in force if e.slot is None and e.kind != "shown"}]
    return found


def check_items(stores: Stores, records: list[Record]) -> None:
    """The two windows of an item that anybody may ask for hold what the log says."""
    expected: Counter[tuple[str, str, int, int]] = Counter()
    newest: dict[tuple[str, str, int], int] = {}
    for drawn, kind, p in said(records):
        for asked_kind, window in OF_ITEMS:
            if asked_kind == kind and p >= 0:
                number = int(drawn.at // window)
                expected[drawn.slate[p], kind, window, number] += 1
    for item, kind, window, number in expected:
        newest[item, kind, window] = max(newest.get((item, kind, window), 0), number)
    found = everything(stores)
    for (item, kind, window), number in newest.items():
        measure = "exposures" if kind == "shown" else f"kind/{kind}"
        for one in (number, number - 1):
            name = f"{counter_name('default', 'home', 'item', item)}/window/{window}/{one}/{measure}"
            assert found.get(name, 0.0) == expected[item, kind, window, one], name


def check_unit(stores: Stores, records: list[Record]) -> None:
    counts = read_counts(stores.profiles.read([counts_key(UNIT)])[0])
    made, _, _ = judged(records)
    latest = max((drawn.at for drawn, _ in made.values()), default=EPOCH0)
    for kind, window in OF_UNITS:
        held = Counter(int(drawn.at // window) for drawn, one, _ in said(records) if one == kind)
        for number in (int(latest // window), int(latest // window) + 1):
            expected = held[number] + 0.75 * held[number - 1]
            now = (number + 0.25) * window
            assert counted_lately(counts, count_name("home", kind, window), window, now) == expected, (kind, window)


def told(story: Story) -> tuple[Stores, list[Record]]:
    ports, stores = tell(story, configs=CONFIGS, last=COUNTED)
    return stores, [record for record in ports.log.read(0, 0, 10_000) if b"-end" not in record.value]


def check(story: Story) -> None:
    stores, records = told(story)
    check_items(stores, records)
    check_unit(stores, records)


TALES = stories(versions=(COUNTED, COUNTED, WAITING))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(TALES)
def test_counts_are_what_the_log_says(story: Story) -> None:
    check(story)


def _every_batch_counts_a_decision_again(patch: pytest.MonkeyPatch) -> None:
    touched = joining_module.Touched
    patch.setattr(joining_module, "Touched", lambda *of: touched(*of)._replace(said_before=NOTHING))


def _what_was_said_before_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    teach = Joiner._teach

    def forgetting(self: Joiner, applied: joining_module.Applied) -> None:
        self._said.clear()
        teach(self, applied)

    patch.setattr(Joiner, "_teach", forgetting)


def _counts_of_units_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    pieces = Derived.pieces
    patch.setattr(
        Derived,
        "pieces",
        lambda self, offset: {key: one for key, one in pieces(self, offset).items() if "profiles" not in key},
    )


@pytest.mark.parametrize(
    "plant",
    [
        _every_batch_counts_a_decision_again,
        _what_was_said_before_is_forgotten,
        _counts_of_units_are_not_committed,
    ],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_each_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    @planted(600)
    @given(TALES)
    def broken(story: Story) -> None:
        check(story)

    plant(monkeypatch)
    with pytest.raises(AssertionError):
        broken()


def test_counts_once_through_deaths_at_every_step() -> None:
    """A click that is sent twice, taken back and given again, and a decision that nobody saw."""
    one, other = decision(COUNTED, f"{UNIT}-1", EPOCH0), decision(COUNTED, f"{UNIT}-2", EPOCH0 + 1)
    like = feedback(one.decision_id, EPOCH0 + 1, slot=1, kind="like", feedback_id="l")
    events = [
        one,
        like,
        like,
        feedback(one.decision_id, EPOCH0 + 2, kind="like", slot=2, feedback_id="m"),
        feedback(one.decision_id, EPOCH0 + 2, kind="", retracts="m", feedback_id="r"),
        other,
        feedback(other.decision_id, EPOCH0 + 2, kind="shown", slots=[], feedback_id="s"),
    ]
    for die_at in range(0, 60, 3):
        ports, stores = Ports(CONFIGS), Stores()
        shard = ports.shard(read_limit=2, feed=stores.feed())
        for event in events:
            ports.append(event, at=EPOCH0 + 3)
        ports.operations, ports.die_at = 0, die_at
        try:
            drain(shard)
        except Abort:
            ports.die_at = None
            shard = ports.shard(read_limit=2, feed=stores.feed())
            drain(shard)
        ports.die_at = None
        shard.step()
        counts = read_counts(stores.profiles.read([counts_key(UNIT)])[0])
        assert {name: count[1] for name, count in counts.items()} == {"home/like/60": 1.0, "home/shown/120": 3.0}, (
            die_at
        )
        kinds = {name: value for name, value in everything(stores).items() if "/kind/" in name}
        number = int(EPOCH0 // 120)
        assert kinds == {f"default/home/item/{one.slate[1]}/window/120/{number}/kind/like": 1.0}, die_at


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(troubled(versions=(COUNTED, WAITING)))
def test_a_lost_disk_costs_no_count_of_items(made: tuple[Story, Trouble]) -> None:
    story, trouble = made
    place = Fed(story.read_limit, story.hot_limit, CONFIGS)
    for (at, value), stepping, event, death in zip(
        story.deliveries, story.steps, trouble.events, trouble.deaths, strict=True
    ):
        place.append(value, at=at)
        if stepping:
            place.step(death)
        if event == "upload":
            place.upload()
        elif event == "lose":
            place.lose()
    place.append(decision(COUNTED, f"{UNIT}-end", END, k=0), at=END)
    drain(place.shard)
    place.shard.step()
    check_items(place.stores, [one for one in place.whole.read(0, 0, 10_000) if b"-end" not in one.value])


def test_counts_of_a_unit_come_back_from_open_joins_and_not_from_half_a_log() -> None:
    """A lost disk reads open decisions again; a time without derivation leaves no half counts behind."""
    place = Fed(read_limit=2, hot_limit=0, configs=CONFIGS)
    like = feedback(f"{UNIT}-1", EPOCH0 + 1, slot=1, kind="like")
    place.append(decision(COUNTED, f"{UNIT}-1", EPOCH0), like, at=EPOCH0 + 3)
    drain(place.shard)
    before = place.stores.profiles.read([counts_key(UNIT)])
    assert before != [b""]
    place.upload()
    place.lose()
    place.stores.flush()
    drain(place.shard)
    place.shard.step()
    assert place.stores.profiles.read([counts_key(UNIT)]) == before
    place.epoch += 1
    place.append(decision(COUNTED, f"{UNIT}-2", EPOCH0 + 4), at=EPOCH0 + 4)
    drain(place.ports.shard(epoch=place.epoch))
    place.start()
    drain(place.shard)
    place.shard.step()
    assert place.stores.profiles.read([counts_key(UNIT)]) == [b""]


def test_windows_that_nobody_asks_for_make_room() -> None:
    ports, stores = Ports(CONFIGS), Stores()
    shard = ports.shard(feed=stores.feed())
    for n in range(8):
        made = decision(COUNTED, f"{UNIT}-{n}", EPOCH0 + 60 * n, slate=["a", "b", "c"])
        ports.append(made, feedback(made.decision_id, made.at, slot=0), at=made.at)
        drain(shard)
    shard.step()
    windows = {name.split("/")[6] for name in everything(stores) if "/window/60/" in name}
    assert windows == {str(int(EPOCH0 // 60) + n) for n in (5, 6, 7)}


def test_a_units_counts_slide_and_do_not_depend_on_order() -> None:
    like = [Moved("like", 0, 1)]
    wanted = (("like", 60),)
    name = count_name("home", "like", 60)
    times = [0.0, 59.0, 61.0, 130.0, 62.0, 1.0]
    data = b""
    for at in times:
        data = with_moves(data, "home", wanted, at, like)
    other = b""
    for at in reversed(times):
        other = with_moves(other, "home", wanted, at, like)
    assert read_counts(data) == read_counts(other) == {name: (2, 1.0, 2.0)}
    lately = [counted_lately(read_counts(data), name, 60, now) for now in (120.0, 150.0, 179.0, 180.0, 210.0, 240.0)]
    assert lately == pytest.approx([3.0, 2.0, 1.0 + 2.0 / 60, 1.0, 0.5, 0.0])
    assert counted_lately(read_counts(data), name, 60, 119.0) == 3.0  # of a clock that is a moment behind
    gone = with_moves(data, "home", wanted, 130.0, [Moved("like", 0, -1)])
    assert counted_lately(read_counts(gone), name, 60, 120.0) == 2.0


def test_moves_are_what_changed() -> None:
    heard = frozenset({("like", 1), ("like", -1)})
    assert moves(2, (b"", b"\1\1"), (NOTHING, heard)) == [
        Moved("shown", 0, 1),
        Moved("shown", 1, 1),
        Moved("like", -1, 1),
        Moved("like", 1, 1),
    ]
    assert moves(2, (b"\1\1", b""), (heard, NOTHING))[:2] == [Moved("shown", 0, -1), Moved("shown", 1, -1)]
    assert moves(2, (b"\1\1", b"\1\1"), (heard, heard)) == []
