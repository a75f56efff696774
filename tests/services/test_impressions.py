"""Impression variance as it serves: decide, settle, count by an attribute, release with noise, boost; and what nobody learns."""

import asyncio
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, in_memory, surface, until

from policies import bundle as bundling
from policies.errors import Rejected, Unavailable
from policies.reranking.impression_variance import distances
from policies.surface import Category, Fairness, FeatureSpec, ImpressionVariance, Logging, Number, PolicySpec, Surface
from services.audit import Audit
from services.control.app import Control, create_app
from services.control.impressions import Impressions
from services.control.readouts import Readouts
from services.control.together import Together
from services.keys import KEY_BYTES
from services.scoring.service import Scoring
from services.scoring.wire import DecisionAnswer
from services.settings import Settings
from services.trials import Trials
from services.wiring import open_state
from streaming.adapters.memory import MemoryCheckpoints, MemoryLog
from streaming.adapters.sqlite_audience import SqliteAudience
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import ConfigInvalid, Configs, advice, parse, publish_surface
from streaming.contributions import _eligible
from streaming.events import Decision, Shortlisted, unit_hash
from streaming.events import encode as encoded
from streaming.impressions import KIND, decode
from streaming.replay import recompute

START, WINDOW, HORIZON, PARTITIONS = 86_400.0 * 20_000, 600.0, 5.0, 2
IDS = [f"i{j}" for j in range(4)]
FITTING = {
    device: [
        {"id": item, "features": {"price": 0.9 if (j < 2) == (device == "ios") else 0.1}} for j, item in enumerate(IDS)
    ]
    for device in ("ios", "web", None)
}
ASKED = ImpressionVariance(
    "religion",
    ["north", "south"],
    "device",
    window=WINDOW,
    counts=6,
    release=6.0,
    total=1e3,
    controller=(0.5, 0.2, 0.0),
)


def made(asked: ImpressionVariance = ASKED, **more: Any) -> Surface:
    """A policy that has learned to show what is dear."""
    return surface(
        slots=1,
        horizon=HORIZON,
        correctable=86_400.0,
        features=FeatureSpec(
            context={"device": Category(["ios", "web"]), "hour": Number(0, 23)}, items={"price": Number(0, 1)}
        ),
        policies={"home-ts": PolicySpec("softmax", objective="click", options={"temperature": 0.3})},
        fairness=Fairness(impression_variance=asked),
        logging=Logging(1.0),
        **more,
    )


class House:
    """Scoring, a log and the control service's part over stores that outlive it, at times that are said."""

    def __init__(self, folder: Path, asked: ImpressionVariance = ASKED, seed: int = 3) -> None:
        self.folder, self.now, self.seed, self.asked, self.first = folder, START, seed, 0, 0
        for name in ("server.key", "salt.default"):  # fixed: the same draws in every run
            (folder / name).write_bytes(bytes(KEY_BYTES))
        self.scoring: Scoring = in_memory(folder, made(asked), examples=200, clock=lambda: self.now)
        self.state, self.forwarded = self.scoring.state, 0
        self.log = MemoryLog(PARTITIONS, lambda: self.now)
        self.outboxes = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.people = [(f"unit-{i}", "north" if i % 3 else "south") for i in range(160)]
        self.start()
        self.turn()

    def start(self, name: str = "people.sqlite") -> None:
        """The control service's part, begun (again)."""
        self.store = SqliteAudience(self.folder / "audience" / name)
        salt, rng = self.scoring._salt, np.random.default_rng(self.seed)
        self.impressions = Impressions(
            self.state, lambda: self.store, PARTITIONS, salt, clock=lambda: self.now, noise=lambda: rng
        )
        totals = SqliteTotals(self.folder / "units.sqlite")
        trials = Trials(self.state, Configs(), clock=lambda: self.now)
        opened = (totals, self.outboxes.__getitem__)
        self.readouts = Readouts(
            trials, self.log, lambda: opened, retention_seconds=1e6, beside=Together(self.impressions)
        )

    def tell(self, people: Sequence[tuple[str, str | None]]) -> None:
        body = [{"unit": unit, "attributes": {"religion": value}} for unit, value in people]
        self.impressions.people(msgspec.json.encode(body), "ann")

    def ask(self, unit: str, device: str | None, **more: Any) -> DecisionAnswer:
        context = {} if device is None else {"device": device}
        self.asked += 1
        request = {"surface": "home", "unit": unit, "decision_id": f"own-{self.asked}", "context": context, **more}
        request.setdefault("candidates", FITTING[device])
        return msgspec.json.decode(self.scoring.decide(msgspec.json.encode(request)), type=DecisionAnswer)

    def forward(self) -> None:
        new = decisions(self.folder)[self.forwarded :]
        self.forwarded += len(new)
        if new:
            self.log.append([(one.unit.encode(), encoded(one)) for one in new])

    def turn(self, seconds: float = 0.0) -> None:
        """Time passes; all that is due settles, is counted and released, and reaches scoring."""
        self.forward()
        self.now += seconds
        for _ in range(4):  # read, settle, and nothing more
            self.readouts.turn(self.now)
        self.scoring.configs.follow(self.state)
        self.scoring.swap(self.scoring.poll())

    def visit(self, rounds: int = 2) -> None:
        """Everybody comes, seven of eight northerners on ios, where the first half of the items is dear."""
        for i, (unit, value) in enumerate(self.people * rounds):
            ios = (value == "north") == (i % 8 > 0)
            self.ask(unit, "ios" if ios else "web")

    def seen(self, since: int) -> np.ndarray[Any, Any]:
        """(n, 2) true impressions by value of the attribute, of decisions from one on, as their distributions expect them."""
        groups = {unit_hash(unit, self.scoring._salt): value for unit, value in self.people}
        counts = np.zeros((len(IDS), 2))
        for one in decisions(self.folder)[since:]:
            assert one.sample is not None
            counts[:, ("north", "south").index(groups[one.unit])] += np.frombuffer(one.sample.distributions)
        return counts

    @property
    def boosts(self) -> dict[str, float]:
        said = self.ask("unit-0", "ios", explain=True).explain or []
        return {one.id: one.boosts.get("impression_variance", 0.0) for one in said}


def distance(counts: np.ndarray[Any, Any]) -> float:
    """Mean over items; everybody could see everything."""
    return float(distances(counts, np.tile(counts.sum(axis=0), (len(counts), 1))).mean())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Five windows, each released, with somebody of every kind in them."""
    house = House(tmp_path_factory.mktemp("told"))
    house.tell(house.people)
    house.visit()
    house.first = len(decisions(house.folder))
    for _ in range(5):
        house.turn(WINDOW + 100.0)
        house.visit()
    return house


def test_who_sees_an_item_comes_nearer_to_who_could(told: House) -> None:
    uncorrected = distance(told.seen(0) - told.seen(told.first))
    assert uncorrected > 0.2
    assert distance(told.seen(0)) < 0.5 * uncorrected  # of all that was shown, the first window included
    records = decisions(told.folder)
    assert {tuple(one.skipped) for one in records[: told.first]} == {("impression_variance",)}
    assert (records[-1].acted, records[-1].skipped) == (["impression_variance"], {})


def test_decisions_under_boosts_replay(told: House) -> None:
    for record in decisions(told.folder)[-40:]:
        slate = recompute(record, bundling.read(record.bundle, told.scoring._follower._bundles.get))
        assert slate.propensities.tolist() == record.propensities
        assert slate.distributions is not None
        assert record.sample is not None
        assert record.sample.boosts is not None
        assert slate.distributions.tobytes() == record.sample.distributions


def test_two_people_who_differ_get_the_same(told: House) -> None:
    """Boosts and distributions are those of the summary, whoever asks; people of another summary get others."""
    north, south = (next(unit for unit, value in told.people if value == wanted) for wanted in ("north", "south"))
    said: dict[str | None, set[tuple[float, ...]]] = {}
    for unit in (north, south, "nobody knows me"):
        for device in ("ios", "web", None):
            answer = told.ask(unit, device, explain=True)
            assert answer.explain is not None
            boosts = [one.boosts.get("impression_variance", 0.0) for one in answer.explain]
            said.setdefault(device, set()).add((*boosts, *(one.probabilities[0] for one in answer.explain)))
    assert {device: len(found) for device, found in said.items()} == {"ios": 1, "web": 1, None: 1}
    assert said["ios"] != said["web"]
    assert {boost for found in said[None] for boost in found[: len(IDS)]} == {
        0.0
    }  # too few people to know anything of them


def test_the_attribute_is_in_no_record_no_answer_and_no_log(told: House, caplog: pytest.LogCaptureFixture) -> None:
    """What a person is stands in the aggregator's file alone."""
    caplog.set_level("DEBUG")
    answer = told.ask(told.people[0][0], "ios", explain=True)
    with pytest.raises(Rejected) as error:
        told.tell([("unit-1", "SECRET-77")])
    told.turn()
    told.scoring.spool.sync()
    own = told.folder / "audience"
    elsewhere = [path for path in told.folder.rglob("*") if path.is_file() and own not in path.parents]
    written = {path.name: path.read_bytes() for path in elsewhere}
    written["log"] = b"".join(r.value for p in range(PARTITIONS) for r in told.log.read(p, 0, 100_000))
    written["outbox"] = b"".join(row for box in told.outboxes for _, row in box.pull(0, 100_000))
    written["record"] = b"".join(one.value or b"" for one in told.state.read() if one.kind != "surface-version")
    written["answers"] = msgspec.json.encode([answer, told.impressions.report("home")["items"]])
    written["said"] = (caplog.text + str(error.value) + told.impressions._telemetry.text().decode()).encode()
    assert b"impression_variance" in written["log"]  # what is searched does hold the decisions
    for name, data in written.items():
        for word in (b"north", b"south", b"SECRET-77"):
            assert word not in data.replace(b"Expected one of: north, south", b""), name  # those of the configuration
    assert b"north" in b"".join(path.read_bytes() for path in own.iterdir())
    assert {oct(path.stat().st_mode)[-2:] for path in own.iterdir()} == {"00"}  # nobody else's


def test_the_audit_says_that_and_not_what(told: House) -> None:
    [change] = [one for one in Audit(told.state).changes("units") if one.who == "ann"][-1:]
    assert (change.action, change.before, change.after) == (
        "attributes",
        None,
        {"units": len(told.people), "attributes": ["religion"]},
    )


def test_an_aggregator_that_falls_silent_is_not_believed_for_ever(told: House) -> None:
    kept = told.now
    try:
        told.now += 5 * WINDOW + HORIZON
        told.ask("unit-1", "ios")
        record = decisions(told.folder)[-1]
        assert (record.acted, list(record.skipped)) == ([], ["impression_variance"])
    finally:
        told.now = kept


def counted(house: House) -> list[Any]:
    """Everything that is counted and not yet released."""
    with sqlite3.connect(house.store._file.path) as db:
        return sorted(db.execute("SELECT * FROM counts")) + sorted(db.execute("SELECT unit, day FROM ledgers"))


def small(folder: Path, asked: ImpressionVariance = ASKED) -> House:
    """Twelve people who have come once."""
    folder.mkdir(exist_ok=True)
    house = House(folder, asked)
    house.people = house.people[:12]
    house.tell(house.people)
    house.visit(1)
    return house


def test_a_request_counts_once_through_any_death(tmp_path: Path) -> None:
    whole = small(tmp_path / "a")
    whole.turn(80.0)
    assert sum(row[-1] for row in counted(whole)[: -len(whole.people)]) == 3 * len(whole.people)
    house = small(tmp_path / "b")
    commit = SqliteAudience.commit
    house.forward()
    house.now += 80.0  # all is due
    for durable in (False, True):

        def dies(self: SqliteAudience, *args: Any, durable: bool = durable) -> None:
            if durable:
                commit(self, *args)
            raise Unavailable("killed")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqliteAudience, "commit", dies)
            with pytest.raises(Unavailable):
                house.turn()
        house.start()
    house.turn()
    assert counted(house) == counted(whole)
    house.start()
    house.turn()
    assert counted(house) == counted(whole)


def test_what_is_released_is_told_again_and_never_drawn_again(tmp_path: Path) -> None:
    house = small(tmp_path / "a")
    house.turn(80.0)
    with pytest.MonkeyPatch.context() as patch:

        def dies(*_: Any) -> None:
            raise Unavailable("killed before it was told")

        patch.setattr(Impressions, "_write", dies)
        with pytest.raises(Unavailable):
            house.turn(WINDOW)
    drawn = house.store.opened("home")
    assert drawn is not None
    assert drawn.told
    assert house.state.get(KIND, "home") is None
    house.seed += 1  # other noise, should anybody draw
    house.start()
    house.turn()
    held = house.state.get(KIND, "home")
    assert held is not None
    assert held.value == drawn.told
    assert counted(house)[:-12] == []


def test_a_unit_stops_at_its_counts_and_at_its_budget(tmp_path: Path) -> None:
    """Six counts are two requests a window; ε of 1.0 a day are two releases of 0.5."""
    house = small(tmp_path / "a", msgspec.structs.replace(ASKED, release=0.5, total=1.0))
    outcomes = []
    for _ in range(3):
        house.visit(3)
        house.turn(WINDOW + 100.0)
        outcomes.append(dict(house.impressions._telemetry._counts))
        house.impressions._telemetry._counts.clear()
    key = ("impression_counts_total", "home")
    assert outcomes[0][*key, "counted"] == 24
    assert outcomes[0][*key, "over_counts"] == 12 * 4 - 24  # one more round came before
    assert outcomes[1][*key, "counted"] == 24
    assert (*key, "counted") not in outcomes[2]
    assert outcomes[2][*key, "over_budget"] == 36
    house.now = START + 86_400.0 + 1.0
    house.visit(1)
    house.turn(100.0)
    assert house.impressions._telemetry._counts[*key, "counted"] == 12


def test_who_is_not_known_is_not_counted(tmp_path: Path) -> None:
    house = small(tmp_path / "a")
    house.tell([(unit, None) for unit, _ in house.people[:5]])  # taken away
    house.ask("stranger", "ios")
    house.turn(80.0)
    key = ("impression_counts_total", "home")
    said = house.impressions._telemetry._counts
    assert (said[*key, "counted"], said[*key, "unknown"]) == (7, 6)


def test_a_lost_store_goes_on_from_the_record_when_nobody_has_spent_anything(tmp_path: Path) -> None:
    house = small(tmp_path / "a")
    house.turn(WINDOW + 100.0)
    before = house.state.get(KIND, "home")
    assert before is not None
    house.start("another.sqlite")
    house.tell(house.people)
    house.visit(1)
    house.turn(100.0)
    key = ("impression_counts_total", "home")
    assert house.impressions._telemetry._counts == {(*key, "before"): 24}  # those of before too: they are read again
    house.now = (math.floor(START / 86_400.0) + 1) * 86_400.0 + 1.0
    house.visit(1)
    house.turn(WINDOW + 100.0)
    assert house.impressions._telemetry._counts[*key, "counted"] == 12
    held = house.state.get(KIND, "home")
    assert held is not None
    old, new = decode(before.value or b""), decode(held.value or b"")
    assert new.releases == old.releases + 1
    grown = new.sums(2).delivered.sum() - old.sums(2).delivered.sum()
    assert abs(grown - 12) < 4 * np.sqrt(2 * 2 * len(IDS))  # noise of scale 1 on eight counts


def test_another_question_begins_anew(tmp_path: Path) -> None:
    house = small(tmp_path / "a")
    house.turn(WINDOW + 100.0)
    house.ask("unit-1", "ios")
    assert decisions(house.folder)[-1].skipped == {}
    publish_surface(house.state, made(msgspec.structs.replace(ASKED, values=["north", "south", "west"])))
    house.turn()
    house.ask("unit-1", "ios")
    assert list(decisions(house.folder)[-1].skipped) == ["impression_variance"]  # of three groups nothing is known yet
    house.visit(1)
    house.turn(WINDOW + 100.0)
    report = house.impressions.report("home")
    assert (report["releases"], report["values"]) == (1, ["north", "south", "west"])


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b"[", "$"),
        (b"{}", "$"),
        (b'[{"unit": "a"}]', "$[0]"),
        (b'[{"unit": "a", "attributes": {"religion": 77}}]', "$[0].attributes[...]"),
        (b'[{"unit": "", "attributes": {}}]', "$[0].unit"),
        (b'[{"unit": "a", "attributes": {"SECRET-77": "x"}}]', "$[0].attributes"),
        (b'[{"unit": "a", "attributes": {"religion": "SECRET-77"}}]', "$[0].attributes.religion"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(told: House, body: bytes, at: str) -> None:
    with pytest.raises(Rejected) as error:
        told.impressions.people(body, "ann")
    assert error.value.at == at
    assert "77" not in str(error.value)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[tuple[Settings, Any]]:
    """The control service over real stores, and what asks it."""
    settings = Settings.load({}, data=tmp_path / "data", http="127.0.0.1:9", partitions=1)
    publish_surface(open_state(settings), made())
    app = create_app(Control.of(settings))
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())

        async def send(method: str, path: str, options: dict[str, Any]) -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
                return await client.request(method, path, **options)

        yield settings, lambda method, path, **options: runner.run(send(method, path, options))
        runner.run(lifespan.__aexit__(None, None, None))


def test_attributes_over_http_and_a_person_who_is_forgotten(control: tuple[Settings, Any]) -> None:
    settings, http = control
    people = [{"unit": unit, "attributes": {"religion": "north"}} for unit in ("ann", "bob")]
    answer = http("PUT", "/v1/units:attributes", json=people)
    assert (answer.status_code, answer.json()) == (200, {"units": 2})
    wrong = http("PUT", "/v1/units:attributes", json=[{"unit": "ann", "attributes": {"religion": "SECRET-77"}}])
    assert wrong.status_code == 422
    assert wrong.json()["error"]["at"] == "$[0].attributes.religion"
    assert "77" not in wrong.text
    assert http("GET", "/v1/impressions/home").json()["releases"] == 0
    assert http("GET", "/v1/impressions/none").status_code == 404
    path = settings.data / "audience" / "people.sqlite"

    def known() -> int:
        with sqlite3.connect(path) as db:
            return int(db.execute("SELECT count(*) FROM attributes").fetchone()[0])

    assert known() == 2
    assert http("DELETE", "/v1/units/ann").status_code == 202
    until(lambda: known() == 1, "the attribute to be gone")


def test_of_a_shortlist_every_item_that_was_eligible_counts_alike() -> None:
    """Ten of a hundred kept, and thirty drawn of the other ninety: what is kept stands for itself, what is drawn for all others."""
    ids = [f"c{i}" for i in range(40)]
    short = Shortlisted(100, 10, 30, [])
    eligible = Counter(_eligible(candidates(ids, short), (i + 0.5) / 4_000) for i in range(4_000))
    assert {eligible[item] for item in ids[:10]} == {40}
    assert {eligible[item] for item in ids[10:]} == {120}
    assert _eligible(candidates([], None), 0.5) == ""
    assert Counter(_eligible(candidates(ids, None), (i + 0.5) / 40) for i in range(40)) == dict.fromkeys(ids, 1)


def candidates(ids: list[str], short: Shortlisted | None) -> Decision:
    return Decision(
        decision_id="d", unit="u", at=0.0, surface="home", config="", policy="", bundle="", mode="live", slate=[], slots=[],
        rows=[], propensities=[], remaining=[], greedy=[], context=b"", shown=b"", candidates=ids, shortlist=short,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "path", "message"),
    [
        ("{attribute: g, values: [a], summary: device}", "values", "1 values"),
        ("{attribute: g, values: [a, a], summary: device}", "values", "2 values"),
        ("{attribute: g, values: [a, b], summary: divice}", "summary", "no context feature 'divice'; did you mean 'device'?"),
        ("{attribute: g, values: [a, b], summary: hour}", "summary", "hour does not part people into a few"),
        ("{attribute: device, values: [a, b], summary: device}", "summary", "the summary is the attribute"),
        ("{attribute: '', values: [a, b], summary: device}", "attribute", "no name"),
        ("{attribute: g, values: [a, b], summary: device, window: 7h}", "window", "a window of 7h"),
        ("{attribute: g, values: [a, b], summary: device, window: soon}", "window", "expected a duration"),
        ("{attribute: g, values: [a, b], summary: device, counts: 2}", "counts", "Expected at least 3"),
        ("{attribute: g, values: [a, b], summary: device, release: 5}", "release", "Expected 0 < release ≤ total"),
        ("{attribute: g, values: [a, b], summary: device, most: 11}", "most", "most is 11"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(written: str, path: str, message: str) -> None:
    context = "{device: {type: category, values: [ios, web]}, hour: {type: number, max: 23}}"
    with pytest.raises(ConfigInvalid) as error:
        parse(
            f"surface: home\nfeatures:\n  context: {context}\nfairness:\n  impression_variance: {written}\n", "h.yaml"
        )
    assert [one.path for one in error.value.mistakes] == [f"fairness.impression_variance.{path}"]
    assert error.value.mistakes[0].message.startswith(message)


def test_advice_says_what_leaks_and_what_is_left_out() -> None:
    said = [line for line in advice(made()) if line.startswith("fairness.impression_variance")]
    assert said == []
    leaks = msgspec.structs.replace(ASKED, attribute="hour", release=0.5, total=4.0)
    said = [line for line in advice(made(leaks)) if line.startswith("fairness.impression_variance")]
    assert [line.split(": ")[1] for line in said] == [
        "hour is also a feature of the context",
        "releases of a day come to ε 72, a unit stops at 4",
    ]


def test_what_is_right_is_kept_and_says_nothing_of_others() -> None:
    context = "{device: {type: category, values: [ios, web]}}"
    text = f"surface: home\nfeatures:\n  context: {context}\nfairness:\n  impression_variance: {{attribute: g, values: [a, b], summary: device}}\n"
    [found] = parse(text, "home.yaml")
    assert found.fairness == Fairness(impression_variance=ImpressionVariance("g", ["a", "b"], "device"))
    assert msgspec.json.encode(Fairness()) == b"{}"  # hashes of surfaces without it stay what they were
