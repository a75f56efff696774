"""What people were shown, derived where rules ask for it: as the log says, through corrections and restarts."""

import pytest

from policies.surface import Frequency, Rule, Seen
from streaming.adapters.memory_tables import MemoryProfiles
from streaming.index import id_hash
from streaming.ports import Mark
from streaming.shown import KEPT, read_shown, shown_key, sliding, with_decision
from tests.streaming.joining import EPOCH0, UNIT, Ports, TallyConfigs, decision, drain, feedback, surface
from tests.streaming.test_derived import Stores, everything

RULES = [Rule(seen=Seen("1h")), Rule(frequency=Frequency(2, 60, "item"))]


def shown(stores: Stores) -> list[tuple[float, int]]:
    return read_shown(stores.profiles.read([shown_key(UNIT)])[0])


def test_slots_count_when_they_are_seen_and_not_before() -> None:
    configs = TallyConfigs()
    version = configs.add(surface(rules=RULES))
    ports, stores = Ports(configs), Stores()
    shard = ports.shard(feed=stores.feed())
    whole = decision(version, f"{UNIT}-1", EPOCH0)
    late = decision(version, f"{UNIT}-2", EPOCH0 + 1, defer=True)
    ports.append(whole, late, at=EPOCH0 + 2)
    drain(shard)
    assert shown(stores) == [(EPOCH0, id_hash(item)) for item in whole.slate]
    ports.append(feedback(late.decision_id, EPOCH0 + 3, kind="shown", slots=[1]), at=EPOCH0 + 3)
    drain(shard)
    assert shown(stores) == [*[(EPOCH0, id_hash(item)) for item in whole.slate], (EPOCH0 + 1, id_hash(late.slate[1]))]
    windows = {name: value for name, value in everything(stores).items() if "/window/" in name}
    number = int(EPOCH0 // 60)
    expected = {f"default/home/item/{item}/window/60/{number}/exposures": 1.0 for item in whole.slate}
    again = f"default/home/item/{late.slate[1]}/window/60/{number}/exposures"
    expected[again] = expected.get(again, 0.0) + 1.0
    assert windows == expected
    fresh = Stores()
    drain(ports.shard(feed=fresh.feed(), epoch=2))
    fresh_shard = ports.shard(feed=fresh.feed(epoch=3), epoch=3)
    fresh_shard.step()
    assert (shown(fresh), everything(fresh)) == (shown(stores), everything(stores))


def test_nothing_is_derived_where_no_rule_asks() -> None:
    configs = TallyConfigs()
    version = configs.add(surface(rules=[Rule(cap=1, by="creator")]))
    ports, stores = Ports(configs), Stores()
    ports.append(decision(version, f"{UNIT}-1", EPOCH0), at=EPOCH0)
    drain(ports.shard(feed=stores.feed()))
    assert shown(stores) == []
    assert not [name for name in everything(stores) if "/window/" in name]


def test_a_unit_is_remembered_by_its_last_slots() -> None:
    data = b""
    for n in range(60):
        data = with_decision(data, n, float(n), [n, n + 1, n + 2, n + 3])
    assert len(read_shown(data)) == KEPT
    assert read_shown(data)[-1] == (59.0, 62)
    assert with_decision(data, 59, 59.0, [59, 60, 61, 62]) == data  # a repeat changes nothing
    assert read_shown(with_decision(data, 59, 59.0, []))[-1] == (58.0, 61)  # nobody saw it after all
    assert read_shown(with_decision(data, 61, 0.0, [5]))[-1] == (59.0, 62)  # late: not among the last
    assert read_shown(b"") == []


def test_what_else_is_kept_of_a_unit_lies_where_its_profile_does() -> None:
    profiles = MemoryProfiles(4)
    for partition in range(4):
        profiles.write(partition, Mark(1, 1), {f"{UNIT}{suffix}": b"x" for suffix in ("", "/shown")}, None)
    assert profiles.read([UNIT, shown_key(UNIT)]) == [b"x", b"x"]
    only = MemoryProfiles(4)
    place = next(p for p in range(4) if _found(p))
    only.write(place, Mark(1, 1), {shown_key(UNIT): b"y"}, None)
    assert only.read([shown_key(UNIT)]) == [b"y"]


def _found(partition: int) -> bool:
    profiles = MemoryProfiles(4)
    profiles.write(partition, Mark(1, 1), {UNIT: b"x"}, None)
    return profiles.read([UNIT]) == [b"x"]


def test_a_window_slides_over_two_fixed_ones() -> None:
    assert sliding(4.0, 8.0, 60, 120.0) == 12.0
    assert sliding(4.0, 8.0, 60, 150.0) == 8.0
    assert sliding(4.0, 8.0, 60, 179.0) == pytest.approx(4.0 + 8.0 / 60)
