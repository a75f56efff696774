"""Exposure of groups as callers, the log and the counters see it."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, in_memory, surface

from policies import bundle as bundling
from policies.errors import Rejected
from policies.reranking import exposure as exposing
from policies.surface import Exposure, Fairness, Logging, Prefix, Surface
from services.keys import KEY_BYTES
from services.scoring import balances
from services.scoring.kinds import MAX_COLUMNS
from services.scoring.ruling import Ruler
from services.scoring.service import Scoring
from services.scoring.wire import DecisionAnswer, Item, encode
from streaming.adapters.memory_tables import MemoryCounters
from streaming.applied import Touched
from streaming.configuration import ConfigInvalid, compile_surface, parse
from streaming.derived import Derived
from streaming.events import Decision
from streaming.events import encode as encoded
from streaming.joined import Join, Terms, read_drawn
from streaming.ports import Mark, Versioned
from streaming.replay import recompute
from tests.services.test_scoring_rules import Told

IDS = [f"i{j}" for j in range(12)]
EXPOSURE = Exposure("creator_group", target={"big": 0.5, "small": 0.5}, window="10m", gain=0.5, positions=[1.0])


def fair(folder: Path, told: Told | None, made: Surface) -> Scoring:
    wired = {} if told is None else {"exposures": told.exposures()}
    scoring = in_memory(folder, made, **wired)
    version = scoring.catalogue.version
    items = [
        Item(id=name, features={"price": j}, attributes={"creator_group": "small" if j % 4 == 0 else "big"})
        for j, name in enumerate(IDS)
    ]
    entries = [Versioned(version + i, "item", item.id, encode(item)) for i, item in enumerate(items, 1)]
    scoring.catalogue.apply(scoring.catalogue.prepare(entries), 0.0)
    return scoring


def ask(scoring: Scoring, i: int, **more: object) -> DecisionAnswer:
    request = {"surface": "home", "unit": f"u{i}", "context": {"device": "ios"}, "candidates": IDS, **more}
    return msgspec.json.decode(scoring.decide(msgspec.json.encode(request)), type=DecisionAnswer)


def written(exposure: Exposure = EXPOSURE, **more: object) -> Surface:
    return surface(slots=4, fairness=Fairness(exposure), logging=Logging(1.0), **more)


NAMES = [
    f"default/home/exposure/creator_group/{group}/{measure}"
    for group in ("big", "small")
    for measure in ("delivered", "entitled", "drawn", "worth")
]


class Shard:
    """What a shard derives of decisions that are seen as they are drawn."""

    def __init__(self, made: Surface) -> None:
        self.terms, self.derived = Terms.of(compile_surface(made)), Derived()

    def touch(self, record: Decision, before: float | None, now: float | None) -> None:
        """Rewards of every slot before and now; None: nothing was seen."""
        drawn, shape = read_drawn(encoded(record)), (len(record.slate), self.terms.objectives)
        was, is_now = (b"" if r is None else np.full(shape, r).tobytes() for r in (before, now))
        ones = b"\1" * shape[0]
        present_before, present = b"" if before is None else ones, b"" if now is None else ones
        join = Join(1, record.decision_id, drawn, 0)
        self.derived.take([Touched(self.terms, join, present_before, was, present, is_now)])

    @property
    def counters(self) -> dict[str, float]:
        return {name: self.derived.counters.get(name) or 0.0 for name in NAMES}


def test_what_is_owed_is_made_up_for(tmp_path: Path) -> None:
    """The loop: decide, derive from the log, read, boost. A quarter of the items are owed half of the looks."""
    told, made = Told(), written()
    scoring, shard, shares, lifts, seen = fair(tmp_path, told, made), Shard(made), [], [], 0
    for _ in range(30):
        for i in range(19):
            ask(scoring, i)
        boosts = {one.id: one.boosts.get("exposure", 0.0) for one in ask(scoring, 19, explain=True).explain or []}
        assert len({boosts[item] for item in IDS[1:4]}) == 1  # no item has one of its own
        lifts.append(boosts["i0"] - boosts["i1"])
        new = decisions(tmp_path)[seen:]
        seen += len(new)
        for record in new:
            shard.touch(record, None, 0.0)
        assert all(record.exposed for record in new)
        small = sum(dict(zip(e.groups, e.delivered, strict=True))["small"] for r in new if (e := r.exposed))
        shares.append(small / sum(sum(e.delivered) for r in new if (e := r.exposed)))
        told.now += 1.0
        told.write({}, shard.counters)
        scoring.refresh()
    assert shares[0] < 0.4  # uncorrected
    assert abs(float(np.mean(shares[-9:])) - 0.5) < 0.05  # close scores: it swings, over three syncs
    assert lifts[0] == 0.0
    assert float(np.mean(lifts[-9:])) > 0.0
    deficits = {group: share for _, group, share in scoring.before.exposures.balances.deficits()}  # type: ignore[union-attr]
    assert abs(deficits["small"]) < 0.1
    assert deficits["small"] == pytest.approx(-deficits["big"])
    record = decisions(tmp_path)[-1]
    assert (record.acted, record.skipped) == (["exposure"], {})
    slate = recompute(record, bundling.read(record.bundle, scoring._follower._bundles.get))
    assert slate.propensities.tolist() == record.propensities


def test_every_item_gets_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop with `by: item`: a decision tells of an even sample of its candidates, and the sums are those of all."""
    monkeypatch.setattr(exposing, "SAMPLED", 6)
    for name in ("server.key", "salt.default"):  # fixed: the same draws in every run
        (tmp_path / name).write_bytes(bytes(KEY_BYTES))
    told, made = Told(), written(Exposure("item", window="1h", gain=0.9, positions=[1.0]))
    scoring, shard, seen, got = fair(tmp_path, told, made), Shard(made), 0, []
    names = [
        f"default/home/exposure/item/{item}/{what}"
        for item in IDS
        for what in ("delivered", "entitled", "drawn", "worth")
    ]
    for sync in range(70):
        for i in range(8):
            ask(scoring, i, decision_id=f"own-{sync}-{i}")
        new = decisions(tmp_path)[seen:]
        seen += len(new)
        delivered = np.zeros(len(IDS))
        for record in new:
            assert record.sample is not None
            assert record.exposed is not None
            assert set(record.slate) <= set(record.exposed.groups)
            assert len(record.exposed.groups) <= 6 + len(record.slate)
            assert [record.exposed.groups[place] for place in record.exposed.of] == record.slate
            assert sum(record.exposed.drawn) == len(record.slate)
            delivered += np.frombuffer(record.sample.distributions).reshape(-1, len(IDS)).sum(axis=0)
            shard.touch(record, None, 0.0)
        got.append(delivered / delivered.sum())
        told.now += 1.0
        told.write({}, {name: shard.derived.counters.get(name) or 0.0 for name in names})
        scoring.refresh()
    first, last = (abs(each - 1 / len(IDS)).sum() / 2 for each in (got[0], np.mean(got[-35:], axis=0)))
    assert first > 0.3  # uncorrected
    assert last < 0.3 * first
    assert scoring.before.exposures is not None
    assert list(scoring.before.exposures.balances.deficits()) == []  # too many to name
    [(surface_name, share)] = scoring.before.exposures.balances.disparities()
    assert surface_name == "home"
    assert 0 < share < 0.5
    assert scoring.telemetry.text().decode().count("slatewise_exposure_disparity_share{") == 1


def test_groups_are_bounded_and_one_nobody_asks_for_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balances, "MOST_ITEMS", 3)
    monkeypatch.setattr(balances, "GRACE_SYNCS", 2)
    counters, of = MemoryCounters(1), balances.Balances("default", 10.0)
    values = {f"default/home/exposure/item/{item}/entitled": 10.0 * i for i, item in enumerate("abcde")}
    counters.write(0, Mark(1, 1), values, None)
    clock = 0.0
    balance = of.asked("home", Exposure("item"), lambda: clock)

    def synced(*groups: str) -> set[str]:
        balance(groups)
        of.refresh(counters, clock)
        return set(of._kept["home"].known.places)

    assert synced("a", "b", "c") == {"a", "b", "c"}
    assert synced("d") == {"a", "b", "c"}  # no room yet
    assert synced("d", "a") == {"a", "b", "c"}
    assert synced("d", "a") == {"a", "d"}  # the others were last asked for three syncs ago
    assert synced("e") == {"a", "d", "e"}
    assert set(of._kept["home"].asked) <= {"a", "d", "e"}
    counters.write(0, Mark(1, 2), values | {"default/home/exposure/item/d/entitled": 70.0}, None)
    synced("a", "d")
    found = balance(["d", "a", "never met"])
    assert found is not None
    assert found[0][0] > 0  # what was delivered and owed before it was met is owed to nobody
    assert found[0][1:].tolist() == [0.0, 0.0]


def test_boosts_are_nobodys_own(tmp_path: Path) -> None:
    """Two people with the same candidates get the same boosts, whoever they are and whatever they did."""
    told = Told()
    scoring = fair(tmp_path, told, written())
    ask(scoring, 1)
    told.now += 1.0
    told.write({}, dict.fromkeys(NAMES, 0.0))
    scoring.refresh()
    told.now += 1.0
    told.write({}, {**dict.fromkeys(NAMES, 1.0), NAMES[0]: 90.0, NAMES[5]: 50.0})
    scoring.refresh()
    told_boosts = {
        tuple(sorted((one.id, one.boosts.get("exposure", 0.0)) for one in ask(scoring, i, explain=True).explain or []))
        for i in range(8)
    }
    assert len(told_boosts) == 1
    assert any(boost for _, boost in next(iter(told_boosts)))


def test_counters_count_once_and_follow_corrections(tmp_path: Path) -> None:
    made = written()
    scoring, shard = fair(tmp_path, None, made), Shard(made)
    ask(scoring, 1, pins={"0": "i4"})
    [record] = decisions(tmp_path)
    said = record.exposed
    assert said is not None
    shard.touch(record, None, 0.0)
    once = shard.counters
    for j, group in enumerate(said.groups):
        for measure, amount in (("delivered", said.delivered), ("entitled", said.entitled), ("drawn", said.drawn)):
            assert once[f"default/home/exposure/creator_group/{group}/{measure}"] == amount[j]
    assert sum(said.delivered) == pytest.approx(4) == pytest.approx(sum(said.entitled))
    shard.touch(record, 0.0, 1.0)  # a click on every slot
    clicked = shard.counters
    worth = {name: clicked[name] for name in NAMES if name.endswith("worth")}
    by_hand = dict.fromkeys(said.groups, 0.0)
    for slot, p, of in zip(record.slots, record.propensities, said.of, strict=True):
        by_hand[said.groups[of]] += 1 / p if slot not in record.pinned else 0.0
    assert worth == pytest.approx({f"default/home/exposure/creator_group/{g}/worth": w for g, w in by_hand.items()})
    assert {n: v for n, v in clicked.items() if n not in worth} == {n: v for n, v in once.items() if n not in worth}
    shard.touch(record, 1.0, None)  # it turned out that nothing was seen
    assert all(value == pytest.approx(0.0, abs=1e-9) for value in shard.counters.values())


def test_merit_is_what_everybody_would_have_got_from_even_traffic(tmp_path: Path) -> None:
    told = Told()
    scoring = fair(tmp_path, told, written(Exposure("creator_group", "merit", positions=[1.0])))
    ask(scoring, 1)
    told.now += 1.0
    told.write({}, {**dict.fromkeys(NAMES, 0.0), NAMES[3]: 30.0, NAMES[7]: 10.0})
    scoring.refresh()
    ask(scoring, 1)
    said = decisions(tmp_path)[-1].exposed
    assert said is not None
    assert dict(zip(said.groups, said.entitled, strict=True)) == pytest.approx({"big": 3.0, "small": 1.0})


def test_a_store_that_is_away_is_said_and_nothing_is_boosted(tmp_path: Path) -> None:
    told = Told()
    scoring = fair(tmp_path, told, written())
    ask(scoring, 1)
    assert list(decisions(tmp_path)[-1].skipped) == ["exposure"]  # nothing was read yet
    told.now += 1.0
    told.write({}, dict.fromkeys(NAMES, 0.0))
    scoring.refresh()
    told.now += 1.0
    told.write({}, {**dict.fromkeys(NAMES, 0.0), NAMES[0]: 40.0, NAMES[5]: 40.0})
    scoring.refresh()
    ask(scoring, 1)
    assert decisions(tmp_path)[-1].acted == ["exposure"]
    told.away, told.now = True, told.now + 20.0
    scoring.refresh()
    ask(scoring, 1)
    record = decisions(tmp_path)[-1]
    assert (record.acted, list(record.skipped)) == ([], ["exposure"])
    assert record.exposed is not None  # what is delivered meanwhile is counted all the same
    told.away = False
    told.now += 1.0
    told.write(
        {}, dict.fromkeys(NAMES, 0.0)
    )  # a store that lost everything: counters begin anew, nobody is owed the past
    scoring.refresh()
    deficits = {group: share for _, group, share in scoring.before.exposures.balances.deficits()}  # type: ignore[union-attr]
    assert deficits == pytest.approx({"big": -1.0, "small": 1.0})


def test_more_shares_than_columns_are_kept_for(tmp_path: Path) -> None:
    """Two surfaces of a thousand groups each: what one asks for makes room, the other asks again, and both hold."""
    many = {f"g{j}": 0.0004 for j in range(MAX_COLUMNS)}
    shares = [Fairness(prefix=Prefix(by, {"small": 0.5, **many})) for by in ("creator_group", "price")]
    scoring = fair(tmp_path, None, surface(slots=4, fairness=shares[0]))
    rulers = [Ruler(surface(slots=4, fairness=one)) for one in shares]
    for _ in range(2):
        for ruler in rulers:
            assert len(ruler._constraining._lookup.places(scoring.catalogue.kinds)) == MAX_COLUMNS + 3
    for i in range(5):
        assert sum(int(slot.id[1:]) % 4 == 0 for slot in ask(scoring, i).slate) >= 2


def test_prefixes_hold_in_what_is_served(tmp_path: Path) -> None:
    made = surface(
        slots=4, fairness=Fairness(prefix=Prefix("creator_group", {"small": 0.5}, {"big": 0.5})), logging=Logging(1.0)
    )
    scoring = fair(tmp_path, None, made)
    for i in range(30):
        places = [int(slot.id[1:]) % 4 == 0 for slot in ask(scoring, i).slate]
        assert sum(places[:2]) >= 1
        assert sum(places) >= 2  # three may be drawn, seldom: small ones have no upper share
    ask(scoring, 1, candidates=["i1", "i2", "i3", "i4", "i5"])
    assert set(decisions(tmp_path)[-1].relaxed) == {"prefix:creator_group>=small", "prefix:creator_group<=big"}


@pytest.mark.parametrize(
    ("written", "path", "message"),
    [
        ("exposure: {by: g, gain: 1.0}", "fairness.exposure.gain", "gain, K times the looks of a sync, is 1"),
        ("exposure: {by: g, gain: 0}", "fairness.exposure.gain", "gain, K times"),
        ("exposure: {by: g, most: 11}", "fairness.exposure.most", "most is 11"),
        ("exposure: {by: g, window: soon}", "fairness.exposure.window", "expected a duration"),
        ("exposure: {by: g, window: 90d}", "fairness.exposure.window", "a window of 90d"),
        ("exposure: {by: g, target: {a: 2}}", "fairness.exposure.target.a", "a share of 2"),
        ("exposure: {by: g, target: {a: 0}}", "fairness.exposure.target", "no group has a share"),
        ("exposure: {by: genre, target: {jaz: 1}}", "fairness.exposure.target.jaz", "genre has no value 'jaz'; did you mean 'jazz'?"),
        ("exposure: {by: look}", "fairness.exposure.by", "look is a vector"),
        ("exposure: {by: item}", "fairness.exposure.by", "item is a feature"),
        ("exposure: {by: g, target: merit}", "fairness.exposure.target", "merit of a surface without objectives"),
        ("exposure: {by: g, objective: click}", "fairness.exposure.objective", "no objective 'click'"),
        ("exposure: {by: g, positions: [0.5, 1]}", "fairness.exposure.positions", "looks [0.5, 1"),
        ("prefix: {by: g}", "fairness.prefix", "neither min nor max"),
        ("prefix: {by: g, min: {a: 0.6, b: 0.6}}", "fairness.prefix.min", "shares add up to 1.2"),
        ("prefix: {by: g, min: {a: 0.6}, max: {a: 0.5}}", "fairness.prefix.max.a", "max of 'a' is below its min"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(written: str, path: str, message: str) -> None:
    items = "{genre: {type: category, values: [jazz, rock]}, look: {type: vector, size: 2}, item: {type: bool}}"
    with pytest.raises(ConfigInvalid) as error:
        parse(f"surface: home\nfeatures:\n  items: {items}\nfairness:\n  {written}\n", "home.yaml")
    assert [(one.path, one.line) for one in error.value.mistakes] == [(path, 5)]
    assert error.value.mistakes[0].message.startswith(message)


def test_what_is_right_is_kept() -> None:
    text = "surface: home\nfairness:\n  exposure: {by: g, target: {a: 0.3, b: 0.7}, window: 1h, gain: 0.2}\n  prefix: {by: g, min: {a: 0.2}}\n"
    [made] = parse(text, "home.yaml")
    assert made.fairness == Fairness(
        Exposure("g", {"a": 0.3, "b": 0.7}, window="1h", gain=0.2), Prefix("g", {"a": 0.2})
    )


def test_groups_of_a_request_are_those_of_the_catalogue_and_its_own(tmp_path: Path) -> None:
    """Values that came with a request win, and are told apart from those of the catalogue and from each other."""
    made = surface(slots=4, fairness=Fairness(Exposure("price")), logging=Logging(1.0))
    scoring = fair(tmp_path, None, made)
    mine = [
        {"id": "i0", "features": {"price": 2}},
        "i1",
        {"id": "new", "features": {"price": 77}},
        {"id": "x", "features": {"price": 0.5}},
    ]
    ask(scoring, 1, candidates=[*mine, "unknown"])
    said = decisions(tmp_path)[-1].exposed
    assert said is not None
    assert sorted(said.groups) == ["0.5", "1", "2", "77"]
    record = decisions(tmp_path)[-1]
    of = {item: "" if place < 0 else said.groups[place] for item, place in zip(record.slate, said.of, strict=True)}
    expected = {"i0": "2", "i1": "1", "new": "77", "x": "0.5", "unknown": ""}
    assert of == {item: expected[item] for item in record.slate}


def test_what_is_no_feature_is_in_no_record_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An attribute of a person that a surface does not name, sent along: not in a file, not in a log, not in an answer."""
    caplog.set_level("DEBUG")
    scoring = fair(tmp_path, Told(), written())
    request = {
        "surface": "home",
        "unit": "jo",
        "context": {"device": "ios", "religion": "SECRET-77"},
        "candidates": IDS,
    }
    try:
        answer = scoring.decide(msgspec.json.encode({**request, "explain": True}))
    except Rejected as error:  # refused, and not repeated
        answer = str(error).encode()
    ask(scoring, 1)
    scoring.spool.sync()
    written_down = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"exposed" in written_down  # what is grepped does hold the records
    for place in (answer, written_down, caplog.text.encode()):
        assert b"SECRET-77" not in place
