"""Forgetting a unit in the joins: its rows are blank wherever they lie, its records are dropped, sums and others stay."""

import pytest

from streaming.derived import Derived
from streaming.events import Decision, Feedback, encode
from streaming.forgets import forgotten, without
from streaming.joined import unpack
from streaming.ports import Record
from streaming.settle import Settler
from tests.streaming.joining import (
    CORRECTABLE,
    EPOCH0,
    HORIZON,
    UNIT,
    Ports,
    TallyConfigs,
    decision,
    drain,
    feedback,
    same,
    surface,
    total,
)

OTHER = "00000000000000bb"


def put(ports: Ports, event: Decision | Feedback, at: float) -> None:
    """A record under its own unit's key, as every producer writes it."""
    ports.clock = max(ports.clock, at)
    ports.log.append([(event.unit.encode(), encode(event))])


def house() -> tuple[Ports, TallyConfigs]:
    configs = TallyConfigs()
    plain, wait = configs.add(surface()), configs.add(surface(silence="wait"))
    ports = Ports(configs)
    for unit in (UNIT, OTHER):
        for i in range(3):
            put(ports, decision(plain, f"{unit}-{i}", EPOCH0 + i, unit=unit), at=EPOCH0 + i)
        put(ports, decision(plain, f"own-{unit}", EPOCH0 + 3, unit=unit), at=EPOCH0 + 3)
        put(ports, decision(wait, f"{unit}-w", EPOCH0 + 4, unit=unit), at=EPOCH0 + 4)
        put(ports, feedback(f"{unit}-0", EPOCH0 + 5, unit=unit, slot=0, feedback_id="a"), at=EPOCH0 + 5)
        put(ports, feedback(f"own-{unit}", EPOCH0 + 5, unit=unit, slot=1, feedback_id="b"), at=EPOCH0 + 5)
        put(ports, feedback(f"{unit}-later", EPOCH0 + 5, unit=unit, slot=0), at=EPOCH0 + 5)
    return ports, configs


def forget(configs: TallyConfigs, unit: str = UNIT, at: float = EPOCH0 + 10) -> None:
    configs.forgotten[unit] = at
    configs.forgets += 1


def rows(ports: Ports) -> list[str]:
    """Ids of all rows that the checkpoint still knows anything of."""
    loaded = ports.checkpoints.load()
    found = [ports.checkpoints.join(row) for row in range(loaded.evicted, loaded.next_row)]
    return sorted(unpack(0, data).key for data in found if data is not None and unpack(0, data).key)


@pytest.mark.parametrize("hot_limit", [1, 1000], ids=["cold", "hot"])
def test_rows_of_a_unit_are_blank_and_the_rest_goes_on(hot_limit: int) -> None:
    ports, configs = house()
    shard = ports.shard(hot_limit=hot_limit)
    drain(shard)
    sums = total(shard.statistics().arrays)
    assert sum(UNIT in key for key in rows(ports)) == 6
    forget(configs)
    report = shard.step()
    assert report.forgot == {UNIT: (EPOCH0 + 10, 6)}
    assert not any(UNIT in key for key in rows(ports))
    assert sum(OTHER in key for key in rows(ports)) == 6
    same(total(shard.statistics().arrays), sums)  # sums of statistics stay
    assert shard.step().forgot == {}

    for unit in (UNIT, OTHER):  # said before it was forgotten, and heard after
        put(ports, feedback(f"{unit}-0", EPOCH0 + 9, unit=unit, slot=2, feedback_id="c"), at=EPOCH0 + 20)
        put(ports, decision(configs.add(surface()), f"{unit}-later", EPOCH0 + 8, unit=unit), at=EPOCH0 + 21)
    report = shard.step()
    assert report.outcomes["", "forgotten"] == 2
    assert not any(UNIT in key for key in rows(ports))
    assert f"{OTHER}-later" in rows(ports)


@pytest.mark.parametrize("hot_limit", [1, 1000], ids=["cold", "hot"])
def test_time_passes_over_blank_rows(hot_limit: int) -> None:
    """Horizons, waiting feedback and evictions find them where they were."""
    ports, configs = house()
    shard = ports.shard(hot_limit=hot_limit)
    drain(shard)
    forget(configs)
    shard.step()
    for at in (HORIZON + 10, CORRECTABLE + 50, 2 * CORRECTABLE + 100, 3 * CORRECTABLE):
        put(ports, decision(configs.add(surface()), f"{OTHER}-{at}", EPOCH0 + at, unit=OTHER), at=EPOCH0 + at)
        shard.step()
    again = ports.shard(epoch=2)
    again.step()
    same(total(again.statistics().arrays), total(shard.statistics().arrays))
    assert not any(UNIT in key for key in rows(ports))


def test_a_restart_forgets_again_what_it_reads_again() -> None:
    ports, configs = house()
    forget(configs)
    shard = ports.shard()
    report = shard.step()
    assert report.outcomes["", "forgotten"] == 8
    drain(shard)
    assert not any(UNIT in key for key in rows(ports))
    fresh = ports.shard(epoch=2)
    assert fresh.step().forgot == {UNIT: (EPOCH0 + 10, 0)}


def test_what_comes_after_is_of_a_new_acquaintance() -> None:
    ports, configs = house()
    shard = ports.shard()
    drain(shard)
    forget(configs)
    shard.step()
    put(ports, decision(configs.add(surface()), f"{UNIT}-new", EPOCH0 + 11, unit=UNIT), at=EPOCH0 + 11)
    report = shard.step()
    assert report.decisions == 1
    assert f"{UNIT}-new" in rows(ports)
    assert ("", "forgotten") not in report.outcomes


def test_a_settler_gives_nothing_out_of_a_forgotten_unit() -> None:
    from streaming.adapters.memory import MemoryCheckpoints

    def settled(forgets: bool) -> int:
        ports, configs = house()
        outbox = MemoryCheckpoints()
        settler = Settler(0, ports.log, outbox, configs, epoch=1)
        settler.step()
        if forgets:
            forget(configs)
        put(ports, decision(configs.add(surface()), f"{OTHER}-z", EPOCH0 + 500, unit=OTHER), at=EPOCH0 + 500)
        while settler.step().records:
            pass
        return outbox.numbers()[1]

    assert settled(False) == 10
    assert settled(True) == 5


def test_only_records_of_the_unit_and_of_the_time_before_are_dropped() -> None:
    configs = TallyConfigs()
    compiled = configs.add(surface())

    def record(offset: int, one: Decision | bytes, unit: str = UNIT) -> Record:
        return Record(offset, EPOCH0 + offset, unit.encode(), one if isinstance(one, bytes) else encode(one))

    records = [
        record(0, decision(compiled, "a", EPOCH0, unit=UNIT)),
        record(1, decision(compiled, "b", EPOCH0 + 50, unit=UNIT)),
        record(2, decision(compiled, "c", EPOCH0, unit=OTHER), OTHER),
        record(3, b"broken"),
    ]
    assert [one.offset for one in without(records, {UNIT: EPOCH0 + 10})] == [1, 2]
    assert forgotten({UNIT: 5.0}, UNIT, 4.0)
    assert not forgotten({UNIT: 5.0}, UNIT, 5.0)
    assert not forgotten({UNIT: 5.0}, OTHER, 4.0)


def test_profiles_go_and_counters_stay() -> None:
    derived = Derived()
    for unit in (UNIT, OTHER):
        derived.profiles.put(unit, b"x")
        derived.profiles.put(f"{unit}/shown", b"y")
        derived.profiles.put(f"{unit}/counts", b"z")
    derived.counters.put("default/home/all/exposures", 3.0)
    derived.forget([UNIT])
    assert all(OTHER in name for name in derived.profiles.values())
    assert derived.counters.get("default/home/all/exposures") == 3.0
