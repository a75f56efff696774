"""What is left of exploration caps, counted from the log: each decision once, through crashes, repeats and flushes."""

from collections import Counter

import pytest
from msgspec.structs import replace

from policies.reranking.exploration_budget import WINDOW_SECONDS, WINDOWS
from policies.surface import Exploration, Segment
from streaming import strayed
from streaming.applied import Touched
from streaming.configuration import Compiled
from streaming.derived import counter_name
from streaming.events import Decision, Strayed
from streaming.shard import Shard
from tests.streaming.joining import EPOCH0, UNIT, Abort, Ports, TallyConfigs, decision, drain, feedback, surface
from tests.streaming.test_derived import Stores, alike, everything

CAP, WEB, UP_TO = 0.1, 0.04, 0.5
NIGHT = "hour > 4"
CONFIGS = TallyConfigs()
EXPLORATION = Exploration(CAP, [Segment("hour < 2", WEB), Segment(NIGHT, WEB, UP_TO)], lend_up_to=UP_TO)
EAGER, WAIT = (CONFIGS.add(surface(exploration=EXPLORATION, silence=silence)) for silence in ("eager", "wait"))
SHARES = (0.25, 0.0, 0.0625)  # in slots of which the first is beyond any cap


def made(version: Compiled, n: int, at: float, segment: str = "", **more: object) -> Decision:
    return decision(version, f"{UNIT}-{n}", at, strayed=Strayed(segment, SHARES), **more)


def left(cap: float, shares: tuple[float, ...] = SHARES) -> tuple[float, float]:
    return sum(max(0.0, cap - share) for share in shares), sum(max(0.0, share - cap) for share in shares)


def counted(stores: Stores) -> dict[str, float]:
    return {name: value for name, value in everything(stores).items() if "/exploration/" in name}


def expected(*sums: tuple[str, float, tuple[float, float]]) -> dict[str, float]:
    """By name, of (segment, time, (unused, over)) summed."""
    found: Counter[str] = Counter()
    for segment, at, by in sums:
        for measure, value in zip(strayed.MEASURES, by, strict=True):
            found[counter_name("default", "home", "exploration", segment, str(int(at // WINDOW_SECONDS)), measure)] += (
                value  # type: ignore[assignment]  # slots come in parts
            )
    return dict(found)


def test_windows_hold_what_decisions_left_and_used_beyond() -> None:
    """Of both segments that lend, whatever silence means, without pins and whatever comes twice."""
    ports, stores = Ports(CONFIGS), Stores()
    later = EPOCH0 + 70.0
    twice = made(EAGER, 1, EPOCH0)
    pinned = made(WAIT, 2, later, pinned=[0])
    night = made(EAGER, 3, later, NIGHT)
    plain = [made(EAGER, 4, later, "hour < 2"), replace(made(EAGER, 5, later), strayed=None)]
    odd = replace(made(EAGER, 6, later), strayed=Strayed("", (0.5,)))
    heard = feedback(twice.decision_id, EPOCH0 + 1, slot=0)
    ports.append(twice, pinned, night, *plain, odd, heard, twice, at=later)
    shard = ports.shard(read_limit=1, feed=stores.feed())
    drain(shard)
    shard.step()
    alike(
        counted(stores),
        expected(("", EPOCH0, left(CAP)), ("", later, left(CAP, SHARES[1:])), (NIGHT, later, left(WEB))),
    )


def test_deferred_decisions_count_while_they_were_seen() -> None:
    ports, stores = Ports(CONFIGS), Stores()
    shown, unseen = (made(EAGER, n, EPOCH0, defer=True) for n in (1, 2))
    told = feedback(shown.decision_id, EPOCH0 + 1, kind="shown", feedback_id="f")
    ports.append(shown, unseen, at=EPOCH0)
    shard = ports.shard(feed=stores.feed())
    drain(shard)
    assert counted(stores) == {}
    ports.append(told, at=EPOCH0 + 2)
    drain(shard)
    alike(counted(stores), expected(("", EPOCH0, left(CAP))))
    ports.append(feedback(shown.decision_id, EPOCH0 + 3, kind="", retracts="f"), at=EPOCH0 + 4)
    drain(shard)
    alike(counted(stores), {})


def through(faults: list[int | str]) -> tuple[Stores, dict[str, float]]:
    """Twelve decisions in two windows, read by shards that die at operations, or whose stores are flushed, as told."""
    ports, stores, sums = Ports(CONFIGS), Stores(), list[tuple[str, float, tuple[float, float]]]()

    def new() -> Shard:
        return ports.shard(read_limit=2, feed=stores.feed())

    shard = new()
    for n in range(12):
        at = EPOCH0 + 8.0 * n
        ports.append(made(EAGER if n % 2 else WAIT, n, at), at=at)
        sums.append(("", at, left(CAP)))
    for fault in faults:
        if fault == "flush":
            stores.flush()
        ports.operations, ports.die_at = 0, fault if isinstance(fault, int) else None
        try:
            shard.step()
        except Abort:
            shard = new()
    ports.die_at = None
    drain(shard)
    shard.step()
    return stores, expected(*sums)


def test_each_decision_counts_once_wherever_the_shard_dies() -> None:
    for die_at in range(12):
        stores, whole = through([die_at, die_at + 1, "flush", die_at])
        alike(counted(stores), whole)


def test_a_count_by_presence_or_by_touch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted faults: what `wait` teaches late is left late, and a decision that hears something counts again."""
    moved = strayed.moved

    def by_presence(one: Touched) -> object:
        return moved(one._replace(came=any(one.present) > any(one.present_before)))

    def by_touch(one: Touched) -> object:
        return moved(one._replace(came=True))

    for plant in (by_presence, by_touch):
        monkeypatch.setattr(strayed, "moved", plant)
        with pytest.raises(AssertionError):
            test_windows_hold_what_decisions_left_and_used_beyond()


def test_windows_that_nobody_lends_from_are_taken_away() -> None:
    ports, stores = Ports(CONFIGS), Stores()
    shard = ports.shard(feed=stores.feed())
    for n in range(3 * WINDOWS):
        at = EPOCH0 + n * WINDOW_SECONDS
        ports.append(made(EAGER, n, at), at=at)
        drain(shard)
    assert len(counted(stores)) == 2 * 2 * WINDOWS
