"""Forgetting a unit end to end over real stores: the report is held against a search of every store for the unit's hash."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from scoring_setup import publish, surface

from services.control.app import Control, create_app
from services.experiences.settling import Settling
from services.forgetting import STORES, Forgetting
from services.keys import Keys
from services.learning.app import Learning
from services.learning.inline import InlineShards
from services.learning.shards import open_shards
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.scoring.wire import encode
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import (
    open_bundles,
    open_derived,
    open_experiences,
    open_forwarder,
    open_log,
    open_state,
    open_totals,
)
from streaming.configuration import Configs
from streaming.events import Decision, Feedback, decode, unit_hash
from streaming.events import encode as encode_event
from streaming.publish import Publisher
from streaming.totals import Unit

ANN, BOB = "ann@example.org", "bob@example.org"
AT_RETENTION = ("log.sqlite", "state.sqlite", "dead.sqlite", "spool")  # state: that and when it was forgotten


class House:
    """A whole installation in this process, in turns."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.load(
            {},
            data=folder / "data",
            http="127.0.0.1:9",
            partitions=2,
            derive="on",
            experiences=f"file://{folder / 'experiences'}",
            ray="inline",
        )
        self.settings.data.mkdir()
        self.files = folder / "experiences"
        self.state = open_state(self.settings)
        publish(self.state, open_bundles(self.settings), surface(horizon="1s", correctable="60s"))
        keys = Keys.load(self.settings.keys_path)
        self.hashes = {name: unit_hash(name, keys.salt()) for name in (ANN, BOB)}
        self.configs = Configs()
        shards = open_shards(self.settings, self.state, self.configs, 10, range(2))
        self.engine = InlineShards(shards)
        publisher = Publisher(open_bundles(self.settings), self.configs, 10)
        self.learning = Learning(self.state, self.configs, publisher, Telemetry(), 0.1)
        self.learning.partitions = 2
        self.forwarder = open_forwarder(self.settings)
        self.settling = Settling(self.state, open_log(self.settings), open_experiences(self.settings), self.settings)
        self.forgetting = Forgetting(self.settings, self.state, keys.salt())

    def visit(self, scoring: Scoring, unit: str, name: str) -> None:
        ask: dict[str, Any] = {"surface": "home", "unit": unit, "candidates": ["a", "b", "c", "d"]}
        for own in ({}, {"decision_id": name}):
            answer = scoring.decide(encode(ask | own))
            assert unit.encode() not in answer

    def told(self, unit: str) -> None:
        """Feedback on every decision of a unit that the log has."""
        events = open_log(self.settings)
        for partition in range(2):
            for record in events.read(partition, 0, 1000):
                event = decode(record.value)
                if isinstance(event, Decision) and event.unit == self.hashes[unit]:
                    said = Feedback(
                        decision_id=event.decision_id,
                        unit=event.unit,
                        at=time.time(),
                        kind="click",
                        slot=0,
                        feedback_id="f",
                    )
                    events.append([(record.key, encode_event(said))])

    def forward(self) -> None:
        while self.forwarder.step():
            pass

    def learn(self) -> None:
        self.learning.follow()
        while self.learning.turn(self.engine):
            pass
        self.learning.follow()

    def settle(self) -> None:
        later = time.time() + 1_000
        for _ in range(4):  # read, settle, write, and nothing more
            self.settling.turn(later)

    def holding(self, unit: str) -> set[str]:
        """Every store that still has the unit's hash or its raw id, by file: each value of each table, each Parquet row."""
        wanted = (self.hashes[unit].encode(), unit.encode())
        found = set()
        for path in self.settings.data.rglob("*.sqlite"):
            with sqlite3.connect(path) as db:
                tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                for table in tables:
                    for row in db.execute(f'SELECT * FROM "{table}"'):
                        whole = b"\0".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
                        if any(one in whole for one in wanted):
                            found.add(str(path.relative_to(self.settings.data)))
            db.close()
        for path in self.files.rglob("*.parquet"):
            if self.hashes[unit] in pq.read_table(path)["unit"].to_pylist():
                found.add("experiences")
        return {name for name in found if not name.startswith(AT_RETENTION)}

    def close(self) -> None:
        self.engine.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def test_the_report_says_what_a_search_of_the_stores_finds(house: House) -> None:
    scoring = open_scoring(house.settings)
    scoring.start()
    for unit, name in ((ANN, "own-1"), (BOB, "own-2")):
        house.visit(scoring, unit, name)
    scoring.spool.sync()
    house.forward()
    for unit in (ANN, BOB):
        house.told(unit)
    house.learn()
    house.settle()
    totals, _ = open_totals(house.settings)
    for unit in (ANN, BOB):
        totals.commit("ts", 0, 0, 0, 0.0, {house.hashes[unit]: Unit(arm="control")})
    here = {"claims.sqlite", "profiles.sqlite", "experiments/units.sqlite", "experiences"}
    for unit in (ANN, BOB):
        assert here <= house.holding(unit)
        assert any(name.startswith("shards/") for name in house.holding(unit))

    key, job = house.forgetting.ask(ANN, "test")
    assert key == house.hashes[ANN]
    house.forgetting.turn()
    assert {name: job.stores[name].state for name in STORES} == dict.fromkeys(STORES, "pending")
    half = house.forgetting.jobs()[key].stores
    assert (half["claims"].state, half["joins"].state, half["profiles"].state) == ("done", "pending", "pending")
    deadline = time.monotonic() + 60
    while any(house.forgetting.jobs()[key].stores[name].state == "pending" for name in STORES):
        assert time.monotonic() < deadline, house.forgetting.jobs()[key]
        house.learn()
        house.settle()
        house.forgetting.turn()
        time.sleep(0.05)
    stores = house.forgetting.jobs()[key].stores
    assert {name: store.state for name, store in stores.items() if name in STORES} == dict.fromkeys(STORES, "done")
    assert {name: stores[name].removed for name in ("joins", "claims", "experiments", "experiences")} == {
        "joins": 2,
        "claims": 1,
        "experiments": 1,
        "experiences": 2,
    }
    assert all(stores[name].state == "retention" and stores[name].at for name in ("log", "dead_letters", "checkpoints"))
    assert house.holding(ANN) == set()
    assert here <= house.holding(BOB)
    assert ANN.encode() not in b"".join(one.value or b"" for one in house.state.read(0))

    house.told(ANN)  # a second time, dated after: heard of decisions that nobody knows any more
    house.learn()
    _, profiles = open_derived(house.settings, 2)
    assert profiles.read([key]) == [b""]
    scoring.close()


def test_it_is_asked_for_over_http_and_audited(house: House) -> None:
    app = create_app(Control.of(house.settings))

    async def ask() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.delete("/v1/units/ann@example.org", headers={"x-slatewise-who": "dpo"})
            assert answer.status_code == 202
            said = answer.json()
            assert said["unit"] == house.hashes[ANN]
            assert "ann@example.org" not in answer.text
            report = await client.get(answer.headers["location"])
            assert report.json()["status"] == "pending"
            assert set(report.json()["stores"]) == {*STORES, "log", "dead_letters", "checkpoints"}
            assert (await client.get("/v1/forgets/nothing")).status_code == 404
            assert (await client.get("/v1/forgets")).json()["forgets"][0]["job"] == said["job"]
            (change,) = (await client.get(f"/v1/audit?subject=unit/{house.hashes[ANN]}")).json()["changes"]
            assert (change["who"], change["action"]) == ("dpo", "forget")
            assert (await client.delete("/v1/units/" + "x" * 257)).status_code == 422

    asyncio.run(ask())


def test_a_store_that_fails_is_named_and_the_others_go_on(house: House) -> None:
    house.settle()
    house.files.mkdir(exist_ok=True)
    (house.files / "broken.parquet").write_bytes(b"not parquet")
    key, _ = house.forgetting.ask(ANN, "test")
    house.learn()
    deadline = time.monotonic() + 60
    while house.forgetting.jobs()[key].stores["experiences"].state == "pending":
        assert time.monotonic() < deadline
        house.forgetting.turn()
        time.sleep(0.05)
    stores = house.forgetting.jobs()[key].stores
    assert stores["experiences"].state == "failed"
    assert "broken.parquet" in stores["experiences"].detail
    assert stores["joins"].state == "done"
