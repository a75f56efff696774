"""Counters and profiles: exactly what the log says, through crashes, absences and flushes of the stores they are told to."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.errors import Unavailable
from policies.surface import Category, Exposure, Fairness, FeatureSpec, Number
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles, MemoryTable
from streaming.configuration import Compiled
from streaming.derived import Derived, counter_name
from streaming.events import Exposed, encode
from streaming.feed import Feed
from streaming.ledger import Ledger
from streaming.ports import Commit, Mark, Record
from streaming.profiles import read_profile
from streaming.shard import Shard
from streaming.uploads import Uploads
from tests.streaming.joining import EPOCH0, UNIT, Abort, Ports, TallyConfigs, decision, drain, feedback, surface
from tests.streaming.stories import (
    CONFIGS,
    END,
    PLAIN,
    VERSIONS,
    Story,
    evidence_of,
    force_of,
    judged,
    planted,
    stories,
)
from tests.streaming.test_recovery import Place, Trouble, troubled


class Stores:
    """Stores that can be away, and that lose everything."""

    def __init__(self) -> None:
        self.counters, self.profiles = MemoryCounters(), MemoryProfiles()
        self.away = False
        self._ticks = itertools.count()

    def feed(self, epoch: int = 1, **limits: int) -> Feed:
        """Its clock goes on by a second a look, so that every telling is due."""
        counters, profiles = _Away(self, self.counters), _Away(self, self.profiles)
        return Feed(0, epoch, counters, profiles, lambda: float(next(self._ticks)), Derived(**limits))  # type: ignore[arg-type]  # duck

    def flush(self) -> None:
        self.counters.flush()
        self.profiles.flush()


class _Away:
    def __init__(self, stores: Stores, inner: Any) -> None:
        self._stores, self._inner = stores, inner

    def write(self, *arguments: Any) -> bool:
        if self._stores.away:
            raise Unavailable("away")
        return bool(self._inner.write(*arguments))


def everything(stores: Stores) -> dict[str, float]:
    rows = stores.counters._memory._rows.get(0, {})
    return {name: float(row) for name, row in rows.items()}


def counted(records: list[Record]) -> dict[str, float]:
    """What the whole log comes to, judged at once."""
    found: Counter[str] = Counter()
    made, heard, _ = judged(records)
    for name, (drawn, _) in made.items():
        present, rewards = evidence_of(drawn, VERSIONS[drawn.config], heard[name])
        for p, item in enumerate(drawn.slate):
            if present[p]:
                for what in (("all",), ("item", item), ("policy", drawn.policy)):
                    found[counter_name("default", "home", *what, "exposures")] += 1
                    found[counter_name("default", "home", *what, "reward", "like")] += rewards[p, 0]
                    found[counter_name("default", "home", *what, "reward", "watch")] += rewards[p, 1]
    return {name: value for name, value in found.items() if value}


def alike(found: dict[str, float], expected: dict[str, float]) -> None:
    """Sums that cancel may leave a rest of rounding where the oracle has nothing."""
    for name in found.keys() | expected.keys():
        assert found.get(name, 0.0) == pytest.approx(expected.get(name, 0.0), abs=1e-9), name


def acted(records: list[Record]) -> list[tuple[float, str, str, float]]:
    """The unit's interactions, oldest first."""
    made, heard, _ = judged(records)
    return sorted(
        (said.at, drawn.slate[said.slot], said.kind, said.value)
        for name, (drawn, _) in made.items()
        for said in force_of(drawn, heard[name])
        if said.kind != "shown" and said.slot is not None
    )


def tell(
    story: Story, faults: Sequence[str] = (), configs: TallyConfigs = CONFIGS, last: Compiled = PLAIN
) -> tuple[Ports, Stores]:
    """As the story says; before each step the stores may be flushed, go away or come back. Its end is a decision of `last`."""
    ports, stores, deaths = Ports(configs), Stores(), list(story.deaths)
    coming = iter(faults)

    def new() -> Shard:
        return ports.shard(story.read_limit, story.hot_limit, feed=stores.feed())

    def step(shard: Shard) -> Shard:
        fault = next(coming, "")
        if fault == "flush":
            stores.flush()
        stores.away = fault == "away"
        ports.operations, ports.die_at = 0, deaths.pop(0) if deaths else None
        try:
            shard.step()
        except Abort:
            shard = new()
        ports.die_at = None
        return shard

    shard = new()
    for (at, value), stepping in zip(story.deliveries, story.steps, strict=True):
        ports.append(value, at=at)
        if stepping:
            shard = step(shard)
    ports.append(encode(decision(last, f"{UNIT}-end", END, k=0)), at=END)
    while deaths:
        shard = step(shard)
    stores.away = False
    drain(shard)
    shard.step()  # nothing new: a look at the stores, which mends one that was away or flushed last
    return ports, stores


def check(story: Story, faults: list[str]) -> None:
    ports, stores = tell(story, faults)
    records = ports.log.read(0, 0, 10_000)
    expected = counted(records)
    found = everything(stores)
    alike(found, expected)
    assert [act[:4] for act in read_profile(stores.profiles.read([UNIT])[0])] == acted(records)


FAULTS = st.lists(st.sampled_from(["", "", "flush", "away"]), max_size=8)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(stories(), FAULTS)
def test_stores_hold_what_the_log_says(story: Story, faults: list[str]) -> None:
    check(story, faults)


def _pieces_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "pieces", lambda self: {})


def _changes_are_lost_while_a_store_is_away(patch: pytest.MonkeyPatch) -> None:
    tell_ = Feed.tell

    def forgetting(self: Feed, offset: int, *, now: bool = False) -> bool:
        told = tell_(self, offset, now=now)
        self.derived.counters.told()
        return told

    patch.setattr(Feed, "tell", forgetting)


def _flushes_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    write = MemoryTable.write
    patch.setattr(MemoryTable, "write", lambda self, p, mark, rows, since: write(self, p, mark, rows, since) or True)


def _told_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    take = Feed.take

    def early(self: Feed, touched: Any, *, counting: bool = True) -> None:
        take(self, touched, counting=counting)
        self.tell(self._at["counters"].offset + 1 if self._at else 1, now=True)

    patch.setattr(Feed, "take", early)


def _corrections_only_add(patch: pytest.MonkeyPatch) -> None:
    count = Derived._count
    patch.setattr(
        Derived,
        "_count",
        lambda self, terms, group: count(
            self, terms, [one._replace(present_before=b"", rewards_before=b"") for one in group]
        ),
    )


def _retractions_stay_in_profiles(patch: pytest.MonkeyPatch) -> None:
    remember = Derived._remember
    patch.setattr(Derived, "_remember", lambda self, one: remember(self, one) if all(one.join.heard.values()) else None)


PLANTS: dict[Callable[[pytest.MonkeyPatch], None], list[str]] = {  # each with the faults that it shows under
    _pieces_are_not_committed: [],
    _changes_are_lost_while_a_store_is_away: ["", "away"] * 4,
    _flushes_are_not_noticed: ["", "flush"] * 4,
    _told_before_the_commit: [],
    _corrections_only_add: [],
    _retractions_stay_in_profiles: [],
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_each_planted_fault_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    @planted(600)
    @given(stories())
    def broken(story: Story) -> None:
        check(story, PLANTS[plant])

    plant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        broken()


def test_groups_are_counted_by_the_values_of_item_categories() -> None:
    configs = TallyConfigs()
    spec = FeatureSpec(items={"genre": Category(["jazz", "rock"]), "price": Number(0, 8)})
    version = configs.add(surface(features=spec))
    items = version.encoder.rows(
        [{"genre": "jazz", "price": 8}, {"genre": "polka", "price": 0}, {"genre": "jazz"}], "$"
    )
    ports, stores = Ports(configs), Stores()
    made = decision(version, f"{UNIT}-1", EPOCH0, shown=items.tobytes())
    ports.append(made, feedback(made.decision_id, EPOCH0 + 1, slot=2, kind="like", value=2.0), at=EPOCH0 + 2)
    drain(ports.shard(feed=stores.feed()))
    group = {name: value for name, value in everything(stores).items() if "/group/" in name}
    assert group == {
        "default/home/group/genre/jazz/exposures": 2.0,
        "default/home/group/genre/jazz/reward/like": 2.0,
        "default/home/group/genre/jazz/reward/watch": 0.5,  # silence is worth 0.25
        "default/home/group/genre/%21unseen/exposures": 1.0,
        "default/home/group/genre/%21unseen/reward/watch": 0.25,
    }


def test_a_new_owner_tells_everything_and_the_old_one_nothing() -> None:
    ports, stores = Ports(CONFIGS), Stores()
    old = ports.shard(feed=stores.feed(epoch=1), epoch=1)
    ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0), at=EPOCH0)
    drain(old)
    stores.flush()
    drain(ports.shard(feed=stores.feed(epoch=2), epoch=2))
    assert stores.counters._memory._marks == {0: Mark(2, 1)}
    before = everything(stores)
    assert before["default/home/all/exposures"] == 3
    late = stores.feed(epoch=1)
    late.derived.counters.put("default/home/all/exposures", 99.0)
    assert late.tell(7, now=True)
    assert everything(stores) == before


def test_memory_is_bounded_and_the_least_recent_goes() -> None:
    ports, stores = Ports(CONFIGS), Stores()
    shard = ports.shard(feed=stores.feed(history=3, units=4, names=12))
    for n in range(20):
        unit = f"{n:016x}"
        made = decision(PLAIN, f"{unit}-{n}", EPOCH0 + n, unit=unit)
        said = [
            feedback(made.decision_id, EPOCH0 + n + i, unit=unit, slot=0, value=float(i), feedback_id=str(i))
            for i in range(5)
        ]
        ports.append(made, *said, at=EPOCH0 + n + 10)
        drain(shard)
    shard.step()
    feed = shard._feed
    assert feed is not None
    assert (len(feed.derived.counters), len(feed.derived.profiles)) == (12, 4)
    assert feed.derived.counters.forgotten > 0
    found = stores.profiles.read([f"{n:016x}" for n in range(20)])
    assert [bool(profile) for profile in found] == [False] * 16 + [True] * 4
    assert [act.value for act in read_profile(found[19])] == [2.0, 3.0, 4.0]
    assert len(everything(stores)) == 12
    again = Stores()
    drain_again = ports.shard(feed=again.feed(history=3, units=4, names=12), epoch=2)
    drain_again.step()
    assert everything(again) == everything(stores)
    assert again.profiles.read([f"{n:016x}" for n in range(20)]) == found


def test_counters_begin_again_when_the_derivation_was_off_for_a_while() -> None:
    """Half a count would be taken for a whole one."""
    ports, stores = Ports(CONFIGS), Stores()
    for n, feeding in enumerate([True, False, True]):
        ports.append(decision(PLAIN, f"{UNIT}-{n}", EPOCH0 + n), at=EPOCH0 + n)
        drain(ports.shard(feed=stores.feed(epoch=n + 1) if feeding else None, epoch=n + 1))
    assert everything(stores)["default/home/all/exposures"] == 3


def test_a_count_that_began_again_finds_nothing_of_the_old_one() -> None:
    """More names than one piece of a commit holds: those the new count does not reach are emptied too."""
    ports, stores = Ports(CONFIGS), Stores()
    many = Derived()
    for n in range(600):
        many.counters.put(f"old/{n}", 1.0)
    ports.checkpoints.commit(Commit(0, 0, 0.0, 1, statistics=many.pieces(0)))
    for epoch, feeding in ((2, False), (3, True), (4, True)):
        ports.append(decision(PLAIN, f"{UNIT}-{epoch}", EPOCH0), at=EPOCH0)
        drain(ports.shard(feed=stores.feed(epoch=epoch) if feeding else None, epoch=epoch))
    found = everything(stores)
    assert found["default/home/all/exposures"] == 6
    assert not [name for name in found if name.startswith("old/")]


class Fed(Place):
    """A partition whose disk may be lost, with counters told to stores that stay."""

    def __init__(self, read_limit: int, hot_limit: int, configs: TallyConfigs = CONFIGS) -> None:
        self.stores = Stores()
        super().__init__(read_limit, hot_limit, configs)

    def start(self) -> None:
        self.epoch += 1
        self.shard = self.ports.shard(epoch=self.epoch, feed=self.stores.feed(self.epoch), **self._limits)
        self.uploads = self.shard.uploads = Uploads(self.store, 0, self.epoch)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(troubled())
def test_a_lost_disk_costs_no_count(made: tuple[Story, Trouble]) -> None:
    """Counters come back with the uploads, and joins that are read again are not counted twice."""
    story, trouble = made
    place = Fed(story.read_limit, story.hot_limit)
    told = zip(story.deliveries, story.steps, trouble.events, trouble.deaths, strict=True)
    for (at, value), stepping, event, death in told:
        place.append(value, at=at)
        if stepping:
            place.step(death)
        if event == "upload":
            place.upload()
        elif event == "lose":
            place.lose()
    place.append(decision(PLAIN, f"{UNIT}-end", END, k=0), at=END)
    drain(place.shard)
    place.shard.step()
    expected = counted(place.whole.read(0, 0, 10_000))
    found = everything(place.stores)
    alike(found, expected)


def test_profiles_of_a_lost_disk_are_read_again_from_open_joins() -> None:
    place = Fed(read_limit=2, hot_limit=0)
    said = [feedback(f"{UNIT}-1", EPOCH0 + n, slot=n % 3, value=float(n), feedback_id=str(n)) for n in range(5)]
    place.append(decision(PLAIN, f"{UNIT}-1", EPOCH0), *said, at=EPOCH0 + 10)
    drain(place.shard)
    before = place.stores.profiles.read([UNIT])
    place.upload()
    place.lose()
    place.stores.flush()
    drain(place.shard)
    place.shard.step()
    assert len(read_profile(before[0])) == 5
    assert place.stores.profiles.read([UNIT]) == before


def test_learning_does_not_notice() -> None:
    """The same sums with a feed and without, and none of the feed's arrays among them."""
    found = []
    for feed in (None, Stores().feed()):
        ports = Ports(CONFIGS)
        ports.append(decision(PLAIN, f"{UNIT}-1", EPOCH0), feedback(f"{UNIT}-1", EPOCH0 + 1, slot=1), at=EPOCH0 + 2)
        shard = ports.shard(feed=feed)
        drain(shard)
        again = ports.shard(epoch=2)
        found += [shard.statistics(), again.statistics(), again.committed()]
    plain, *others = found
    for other in others:
        assert plain.arrays.keys() == other.arrays.keys()
        for key, sums in plain.arrays.items():
            for name, array in sums.items():
                np.testing.assert_array_equal(array, other.arrays[key][name])


def test_names_of_counters_may_hold_anything() -> None:
    assert counter_name("default", "home", "item", "a/b c%") == "default/home/item/a%2Fb%20c%25"
    assert len({counter_name("a", "b/c"), counter_name("a/b", "c"), counter_name("a", "b", "c")}) == 3


def test_looks_of_groups_count_once_through_deaths_at_every_step() -> None:
    """Two groups, a decision whose slots turn out unseen, a click: the same sums wherever the shard dies."""
    configs = TallyConfigs()
    version = configs.add(surface(fairness=Fairness(Exposure("genre", objective="like"))))
    said = Exposed(("jazz", "rock"), (1.5, 0.5), (1.0, 1.0), (2.0, 0.0), (0, 0, 1))
    events = [
        decision(version, f"{UNIT}-1", EPOCH0, exposed=said),
        feedback(f"{UNIT}-1", EPOCH0 + 1, slot=1, kind="like", value=2.0),
        decision(version, f"{UNIT}-2", EPOCH0, exposed=said),
        feedback(f"{UNIT}-2", EPOCH0 + 2, kind="shown", slots=[], feedback_id="s"),
        decision(version, f"{UNIT}-3", EPOCH0, exposed=said),
        feedback(f"{UNIT}-1", EPOCH0 + 1, slot=1, kind="like", value=2.0),  # sent twice
    ]
    expected = {"jazz/delivered": 3.0, "jazz/entitled": 2.0, "jazz/drawn": 4.0, "jazz/worth": 4.0}  # 2 / ½
    expected |= {"rock/delivered": 1.0, "rock/entitled": 2.0}
    for die_at in range(40):
        ports, stores = Ports(configs), Stores()
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
        found = {name: value for name, value in everything(stores).items() if "/exposure/" in name}
        assert found == {f"default/home/exposure/genre/{name}": value for name, value in expected.items()}, die_at
