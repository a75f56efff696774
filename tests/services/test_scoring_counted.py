"""Counts as features where slates are drawn: recorded with each decision, whatever they were, and never looked up again."""

import time
from collections.abc import Sequence
from math import log1p
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.errors import Rejected, Unavailable
from policies.surface import Category, Count, FeatureSpec, Frequency, Logging, Number, PolicySpec, Rate, Rule, Surface
from services.learning.app import derived_is_read
from services.learning.shards import open_shards
from services.scoring.countings import STALE_SECONDS, Countings
from services.scoring.histories import FRESH_SECONDS, Histories
from services.scoring.service import Scoring
from services.scoring.wire import Item
from services.settings import Settings
from services.wiring import open_bundles, open_forwarder, open_log, open_state
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.configuration import ConfigInvalid, Configs, compile_surface, load_folder
from streaming.counted import Moved, counts_key, with_moves
from streaming.documents import Mistake
from streaming.events import Decision, decode, floats, unit_hash
from streaming.ports import Mark, State
from streaming.replay import recompute
from tests.redis_setup import namespace
from tests.scoring_setup import decisions, in_memory, installed, publish, serving, surface, until
from tests.training_setup import registered

NOW = 10_000.0
SPEC = FeatureSpec(
    context={
        "device": Category(["ios", "web"]),
        "clicks": Count("click", "1h", 50),
        "eager": Rate("click", 60, (1, 3)),
    },
    items={"price": Number(0, 10), "ctr": Rate("click", "1h", (1, 9), max=0.5), "plays": Count("play", 60, 20)},
    cross=[("device", "ctr")],
)
COUNTED = surface(features=SPEC, logging=Logging(1.0))
ENCODER = compile_surface(COUNTED).encoder
CLICKS, EAGER = (
    ENCODER.context_names.index(n) for n in ("clicks:click,3600s..50.0", "eager:click,60s/shown,1.0:3.0..1.0")
)
CTR, PLAYS = (ENCODER.item_columns[name].start for name in ("ctr", "plays"))
IDS = [f"i{n}" for n in range(6)]


class Stores:
    """What shards tell, and a clock; the stores can go away."""

    def __init__(self) -> None:
        self.counters, self.profiles = MemoryCounters(), MemoryProfiles()
        self.away, self.now, self.asked, self.mark = False, 0.0, list[list[str]](), 0

    def read(self, names: Sequence[str]) -> Any:
        self.asked.append(list(names))
        if self.away:
            raise Unavailable("away")
        return self.counters.read(names) if names[0].startswith("default/") else self.profiles.read(names)

    def write(self, counters: dict[str, float], profiles: dict[str, bytes]) -> None:
        self.mark += 1
        self.counters.write(0, Mark(1, self.mark), counters, None)
        self.profiles.write(0, Mark(1, self.mark), profiles, None)

    def scoring(self, folder: Path, *surfaces: Surface, **more: Any) -> Scoring:
        return in_memory(
            folder,
            *(surfaces or (COUNTED,)),
            histories=Histories(lambda: self, lambda: self.now),  # type: ignore[arg-type,return-value]  # both stores
            countings=Countings(lambda: self, clock=lambda: self.now),  # type: ignore[arg-type,return-value]
            **{"clock": lambda: NOW, **more},
        )


def ask(scoring: Scoring, unit: str = "u", **more: Any) -> Decision:
    """The record of a decision."""
    body = {"surface": "home", "unit": unit, "candidates": IDS, "context": {"device": "ios"}} | more
    answer = msgspec.json.decode(scoring.decide(msgspec.json.encode(body)))
    [found] = [
        one for one in decisions(scoring.spool._folder.parent.parent) if one.decision_id == answer["decision_id"]
    ]
    return found


def counted_of(scoring: Scoring, unit: str, moved: dict[float, int]) -> dict[str, bytes]:
    """Clicks of a unit at times, as a shard tells them."""
    key, data = counts_key(unit_hash(unit, scoring.keys.salt("default"))), b""
    for at, clicks in moved.items():
        wanted = (("click", 60), ("click", 3600), ("shown", 60))
        data = with_moves(data, "home", wanted, at, [Moved("click", 0, 1)] * clicks + [Moved("shown", 0, 1)] * clicks)
    return {key: data}


def items_of(record: Decision) -> np.ndarray:
    return floats(record.matrix or b"", ENCODER.item_size)


def test_counts_are_recorded_as_they_were_drawn_from(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path)
    prefix = "default/home/item/i1/window"
    stores.write(
        {
            f"{prefix}/3600/2/kind/click": 3.0,  # NOW is 2800 s into window 2: of the one before, 2/9 count
            f"{prefix}/3600/1/kind/click": 9.0,
            f"{prefix}/3600/2/exposures": 20.0,
            f"{prefix}/60/166/kind/play": 4.0,
            f"{prefix}/60/164/kind/play": 99.0,
        },
        counted_of(scoring, "u", {NOW - 3600: 9, NOW: 2}),
    )
    ask(scoring)  # makes the items known to the next reading
    stores.now += 1.0
    scoring.refresh()
    record = ask(scoring)
    context, items = floats(record.context), items_of(record)
    assert context[CLICKS] == pytest.approx(log1p(2 + 9 * 2 / 9) / log1p(50))
    assert context[EAGER] == pytest.approx(((1 + 2) / (4 + 2) - 0.25) / 0.75)
    assert items[1, CTR] == pytest.approx(((1 + 5) / (10 + 20) - 0.1) / 0.4)
    assert items[1, PLAYS] == pytest.approx(log1p(4) / log1p(20))
    assert not items[[0, 2, 3, 4, 5]][:, [CTR, PLAYS]].any()
    shown = floats(record.shown, ENCODER.item_size)
    assert np.array_equal(shown, items[record.rows])  # what is learned from is what was drawn from
    nobody = ask(scoring, unit="nobody")
    assert floats(nobody.context)[[CLICKS, EAGER]].tolist() == [0.0, 0.0]
    said = scoring.telemetry.text().decode()
    assert 'slatewise_counted_reads_total{of="unit",outcome="read",surface="home"}' in said
    assert 'of="item",outcome="away"' not in said  # not even before anybody had asked


def test_windows_slide_with_the_clock(tmp_path: Path) -> None:
    stores, clock = Stores(), [7_200.0]  # where an hour begins
    scoring = stores.scoring(tmp_path, clock=lambda: clock[0])
    counts = {"default/home/item/i1/window/3600/2/kind/click": 8.0, "default/home/item/i1/window/60/120/kind/play": 8.0}
    stores.write(counts, counted_of(scoring, "u", {7_200.0: 8}))
    ask(scoring)
    clicks, ctr, plays = [], [], []
    for passed in (0.0, 90.0, 3_600.0, 5_400.0, 7_200.0):
        clock[0] = 7_200.0 + passed
        stores.now += 1.0
        scoring.refresh()
        record = ask(scoring)
        clicks.append(np.expm1(floats(record.context)[CLICKS] * log1p(50)))
        ctr.append((items_of(record)[1, CTR] * 0.4 + 0.1) * 10 - 1)  # clicks over nothing seen, but for the prior
        plays.append(np.expm1(items_of(record)[1, PLAYS] * log1p(20)))
    assert clicks == pytest.approx([8.0, 8.0, 8.0, 4.0, 0.0], abs=1e-3)
    assert ctr == pytest.approx([4.0, 4.0, 4.0, 4.0, 0.0], abs=1e-3)  # as high as `max` lets it be
    assert plays == pytest.approx([8.0, 4.0, 0.0, 0.0, 0.0], abs=1e-3)


def test_a_record_is_replayed_after_the_counts_have_moved(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path, examples=300)
    stores.write({f"default/home/item/{i}/window/3600/2/kind/click": n for n, i in enumerate(IDS)}, {})
    ask(scoring)
    stores.now += 1.0
    scoring.refresh()
    record = ask(scoring)
    assert items_of(record)[:, CTR].any()
    stores.write({}, {})
    stores.now += 1.0
    scoring.refresh()
    assert not items_of(ask(scoring))[:, CTR].any()
    served = scoring.live.surfaces["home"].policy
    assert served is not None
    bundle = bundling.read(served.bundle, scoring._follower._bundles.get)
    slate = recompute(record, bundle)
    assert slate.propensities.tolist() == record.propensities
    assert slate.distributions is not None
    assert record.sample is not None
    assert slate.distributions.tobytes() == record.sample.distributions
    other = msgspec.structs.replace(record, matrix=(items_of(record) * 0).tobytes())
    assert recompute(other, bundle).propensities.tolist() != record.propensities  # they do decide


def everybody_clicked(stores: Stores, scoring: Scoring) -> None:
    """Five clicks of the unit `u` and of every item, read."""
    clicks = {f"default/home/item/{i}/window/3600/2/kind/click": 5.0 for i in IDS}
    stores.write(clicks, counted_of(scoring, "u", {NOW: 5}))
    ask(scoring)
    stores.now += 1.0
    scoring.refresh()


def test_what_a_request_brings_wins(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path)
    everybody_clicked(stores, scoring)
    stores.asked.clear()
    given = {"device": "web", "clicks": 50, "eager": 1.0}
    record = ask(scoring, unit="v", context=given, candidates=[{"id": "i0", "features": {"ctr": 0.1}}, "i1", "i2"])
    assert floats(record.context)[[CLICKS, EAGER]].tolist() == [1.0, 1.0]
    assert not stores.asked  # nobody had to be asked
    mine, counted = items_of(record)[0, CTR], items_of(record)[1, CTR]
    assert mine == 0.0
    assert counted == pytest.approx((6 / 10 - 0.1) / 0.4 if 6 / 10 < 0.5 else 1.0)
    columns = {"ids": ["i0", "i1"], "features": {"ctr": [None, 0.3], "price": [1.0, 2.0]}}
    record = ask(scoring, context={"clicks": None, "eager": None}, candidates=columns)
    assert items_of(record)[:, CTR].tolist() == pytest.approx([1.0, 0.5])
    assert floats(record.context)[CLICKS] == pytest.approx(log1p(5) / log1p(50))  # null says nothing
    with pytest.raises(Rejected) as caught:
        ask(scoring, context={"clicks": -1})
    assert caught.value.at == "$.context.clicks"
    with pytest.raises(Rejected) as caught:
        ask(scoring, candidates=[{"id": "i0", "features": {"ctr": "high"}}])
    assert caught.value.at == "$.candidates[0].features.ctr"


def test_stores_that_are_away_leave_counts_missing_and_say_so(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path)
    everybody_clicked(stores, scoring)
    stores.away = True
    stores.now += FRESH_SECONDS + 1.0
    with pytest.raises(Unavailable):  # whoever repeats it says so in the log
        scoring.refresh()
    record = ask(scoring)
    assert floats(record.context)[CLICKS] == 0.0
    assert items_of(record)[:, CTR].all()  # counts of items are believed for a while
    stores.now += STALE_SECONDS + 1.0
    assert not items_of(ask(scoring))[:, CTR].any()
    said = scoring.telemetry.text().decode()
    for of in ("unit", "item"):
        assert f'slatewise_counted_reads_total{{of="{of}",outcome="away",surface="home"}}' in said
    stores.away = False
    stores.now += 60.0
    scoring.refresh()
    assert items_of(ask(scoring))[:, CTR].all()


def test_a_history_and_counts_come_in_one_read_and_a_history_carries_no_counts(tmp_path: Path) -> None:
    agent = {"agent": PolicySpec("gradients", objective="click"), **COUNTED.policies}
    stores = Stores()
    with registered():
        scoring = stores.scoring(tmp_path, surface(features=SPEC, policies=agent, history=5))
    stores.asked.clear()
    record = ask(scoring, unit="somebody")
    key = unit_hash("somebody", scoring.keys.salt("default"))
    assert [names for names in stores.asked if key in names] == [[key, counts_key(key)]]
    stores.write({"default/home/item/i1/window/3600/2/kind/click": 5.0}, {})
    stores.now += 1.0
    scoring.refresh()
    record = ask(scoring, history=[{"item": "i1", "kind": "click"}])
    assert items_of(record)[1, CTR] == 1.0
    assert not floats(record.history or b"", ENCODER.item_size)[:, [CTR, PLAYS]].any()


def test_surfaces_that_count_nothing_read_nothing_and_log_what_they_logged(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path, surface())
    record = ask(scoring, context={"device": "ios"})
    scoring.refresh()
    assert not stores.asked
    assert record.matrix is None
    assert "counted_reads_total{" not in scoring.telemetry.text().decode()


def test_a_new_version_of_a_surface_keeps_its_counts(tmp_path: Path) -> None:
    stores = Stores()
    scoring = stores.scoring(tmp_path)
    stores.write({f"default/home/item/{i}/window/3600/2/kind/click": 5.0 for i in IDS}, {})
    ask(scoring)
    stores.now += 1.0
    scoring.refresh()
    publish(scoring.state, scoring._follower._bundles, msgspec.structs.replace(COUNTED, rules=[Rule(exclude=["i9"])]))
    scoring.configs.follow(scoring.state)
    before = scoring.live.surfaces["home"].config
    scoring.swap(scoring.poll())
    assert scoring.live.surfaces["home"].config != before
    assert items_of(ask(scoring))[:, CTR].all()


def test_the_catalogue_cannot_bring_what_is_counted(tmp_path: Path) -> None:
    scoring = Stores().scoring(tmp_path)
    scoring.check_items([Item(id="a", features={"price": 3.0})])
    with pytest.raises(Rejected) as caught:
        scoring.check_items([Item(id="a"), Item(id="b", features={"ctr": 0.5})])
    assert caught.value.at == "$[1].features.ctr"


@pytest.mark.parametrize(
    ("side", "written", "path"),
    [
        ("items", Count("stare", 60), "features.items.x.kind"),
        ("items", Rate("shown", 60, (1, 9), per="click"), "features.items.x.kind"),
        ("items", Rate("click", 60, (1, 9), per="stare"), "features.items.x.per"),
        ("items", Rate("click", 60, (1, 9), per="click"), "features.items.x.per"),
        ("items", Rate("click", 60, (0, 9)), "features.items.x.prior"),
        ("items", Rate("click", 60, (1, 9), max=0.05), "features.items.x.max"),
        ("context", Count("click", "a while"), "features.context.x.window"),
        ("context", Count("click", "31d"), "features.context.x.window"),
        ("context", Count("click", 0.5), "features.context.x.window"),
        ("context", Count("click", 60, max=0.5), "features.context.x.max"),
    ],
)
def test_what_cannot_be_counted_is_named_by_its_field(side: str, written: Any, path: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        compile_surface(surface(features=FeatureSpec(**{side: {"x": written}})))
    [mistake] = caught.value.mistakes
    assert isinstance(mistake, Mistake)
    assert mistake.path == path


def test_conditions_cannot_ask_for_what_is_counted() -> None:
    with pytest.raises(ConfigInvalid, match="counted by the service"):
        compile_surface(surface(features=SPEC, rules=[Rule(filter="ctr > 0.1")]))
    assert compile_surface(surface(features=SPEC, rules=[Rule(frequency=Frequency(3, 60, "item"))]))


def test_over_http_a_click_is_in_the_next_decision(tmp_path: Path) -> None:
    """Decided by a real service, counted by shards, told to a real Redis, read back: and recorded."""
    [document] = load_folder(Path("docs/counted_features.yaml"))
    settings = installed(tmp_path, [document], state=namespace(tmp_path), derive="on", partitions=2, ray="inline")
    state, house = open_state(settings), Wired(settings)
    house.configs.follow(state)
    compiled = house.configs.current("stories")
    assert compiled is not None
    encoder = compiled.encoder
    clicks = [name.split(":")[0] for name in encoder.context_names].index("clicks_1h")
    ctr = encoder.item_columns["ctr_1d"].start
    body = {"surface": "stories", "unit": "u", "candidates": ["a", "b", "c"]}
    with serving(settings) as server, server.client() as client:
        answer = client.post("/v1/decisions", json=body).json()
        first = house.record(state, answer["decision_id"])
        assert floats(first.context)[clicks] == 0.0
        assert not floats(first.matrix or b"", encoder.item_size)[:, ctr].any()
        clicked = answer["slate"][0]["id"]
        sent = client.post(
            "/v1/feedback", json={"decision_id": answer["decision_id"], "kind": "click", "slot": 0, "feedback_id": "f"}
        )
        assert sent.status_code == 202

        def counted() -> bool:
            found = house.record(state, client.post("/v1/decisions", json=body).json()["decision_id"])
            items = floats(found.matrix or b"", encoder.item_size)
            row = found.candidates.index(clicked)
            lately = float(floats(found.context)[clicks])
            others = np.delete(items[:, ctr], row)  # shown as often: every question shows all three
            return 0.0 < lately <= log1p(1) / log1p(50) + 1e-6 and bool(items[row, ctr] > others.max())

        until(counted, "the click to be counted of the unit and of the item")
        assert 'counted_reads_total{of="item",outcome="cached",surface="stories"}' in client.get("/metrics").text
        client.post("/v1/feedback", json={"decision_id": answer["decision_id"], "retracts": "f"})

        def taken_back() -> bool:
            found = house.record(state, client.post("/v1/decisions", json=body).json()["decision_id"])
            return floats(found.context)[clicks] == 0.0

        until(taken_back, "the retracted click to be taken back")


class Wired:
    """What learning does of the log, in this process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.configs = settings, Configs()
        self._forwarder, self._log = open_forwarder(settings), open_log(settings)
        state = open_state(settings)
        self._shards = open_shards(settings, state, self.configs, 1, range(2))

    def record(self, state: State, decision_id: str) -> Decision:
        """A decision out of the log, once shards have told everything they know."""
        found: list[Decision] = []

        def there() -> bool:
            while self._forwarder.step():
                pass
            for shard in self._shards:
                shard.step(time.time())
            for partition in range(2):
                events = [decode(record.value) for record in self._log.read(partition, 0, 10_000)]
                found.extend(one for one in events if isinstance(one, Decision) and one.decision_id == decision_id)
            return bool(found)

        until(there, "the decision to reach the log")
        return found[0]


def test_shards_derive_where_features_want_counts() -> None:
    configs = Configs()
    configs.add(surface())
    assert not derived_is_read(configs)
    configs.add(surface(features=FeatureSpec(context={"clicks": Count("click", 60)})))
    assert derived_is_read(configs)


def test_the_example_is_sound(tmp_path: Path) -> None:
    settings = installed(tmp_path, load_folder(Path("docs/counted_features.yaml")))
    assert set(open_bundles(settings).pointers()) >= {"stories/stories-ts"}
