"""Two tenants that meet: by key, id, unit, surface, bundle, record and command. Each is a deployment of its own; where they share a
store by mistake nothing of one reaches the other, and somebody says so."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from policies import bundle as bundling
from policies.errors import Rejected
from policies.surface import Logging, Objective
from services.cli import main
from services.control import app as control
from services.control.app import Control
from services.control.surfaces import document
from services.experiences import settling
from services.exposition import Exposition
from services.learning import app as learning
from services.learning.shards import open_shards
from services.releases import Releases
from services.scoring import feedback as feedbacks
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.settings import Settings
from services.supervisor import prepare
from services.trials import Trials
from services.wiring import open_bundles, open_dead_letters, open_forwarder, open_log, open_state
from streaming.adapters.memory import MemoryState
from streaming.configuration import Configs, publish_surface
from streaming.events import decode
from streaming.publish import Publisher
from streaming.shard import Shard
from streaming.tenancy import DEFAULT, claim
from tests.scoring_setup import surface

ITEMS = [{"id": f"item-{i}", "features": {"price": i, "genre": "jazz"}} for i in range(4)]
SURFACE = surface(
    objectives={"click": Objective("click", range=(0, 1))}, horizon="1s", correctable="1m", logging=Logging(1.0)
)


@dataclass
class House:
    """A tenant's deployment in one process."""

    settings: Settings
    scoring: Scoring
    configs: Configs
    shards: list[Shard]

    @classmethod
    def of(cls, settings: Settings) -> "House":
        state, configs = open_state(settings), Configs(settings.tenant)
        configs.follow(state)
        publisher = Publisher(open_bundles(settings), configs, 1)
        compiled = configs.current("home")
        assert compiled is not None
        for name in ("home-ts", "given_order"):
            assert publisher.publish(compiled.policies[name], [], {0: 0}, time.time()).manifest is not None
        scoring = open_scoring(settings)
        scoring.start()
        return cls(settings, scoring, configs, open_shards(settings, state, configs, 1, range(1)))

    def visit(self, unit: str, **more: Any) -> dict[str, Any]:
        """A decision, clicked on."""
        body = {"surface": "home", "unit": unit, "candidates": ITEMS, "context": {"device": "ios"}, **more}
        answer: dict[str, Any] = msgspec.json.decode(self.scoring.decide(msgspec.json.encode(body)))
        heard = {"decision_id": answer["decision_id"], "kind": "click", "slot": 0, "key": answer["key"]}
        self.scoring.keep([feedbacks.read(msgspec.json.encode(heard), time.time(), self.scoring.terms())])
        return answer

    def forward(self) -> None:
        self.scoring.spool.sync()
        open_forwarder(self.settings).step()

    def learn(self) -> dict[str, int]:
        """Dead letters of what was not read yet, by reason."""
        dead: dict[str, int] = {}
        for shard in self.shards:
            while (report := shard.step()).records:
                for reason, count in report.dead.items():
                    dead[reason] = dead.get(reason, 0) + count
        return dead

    @property
    def examples(self) -> dict[str, int]:
        return {key: count for shard in self.shards for key, count in shard.statistics().examples.items() if count}


def settings_of(folder: Path, tenant: str, **more: Any) -> Settings:
    settings = Settings.load({}, data=folder / tenant, tenant=tenant, partitions=1, keys=folder / "keys", **more)
    settings.data.mkdir(parents=True, exist_ok=True)
    return settings


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[House, House]]:
    """The same surface, so the same versions, of two tenants on one machine."""
    made = []
    for tenant in (DEFAULT, "shop"):
        settings = settings_of(tmp_path, tenant)
        publish_surface(open_state(settings), SURFACE)
        made.append(House.of(settings))
    yield made[0], made[1]
    for one in made:
        one.scoring.close()


def test_records_name_their_tenant_and_hide_a_unit_each_in_its_own_way(both: tuple[House, House]) -> None:
    ours, theirs = both
    answers = [house.visit("ann") for house in both]
    assert answers[0]["key"] != answers[1]["key"]
    for house in both:
        house.forward()
        assert house.learn() == {}
        log = open_log(house.settings)
        events = [decode(record.value) for record in log.read(0, 0, 10)]
        assert {event.tenant for event in events} == {house.settings.tenant}
        assert all(key.startswith(f"{house.settings.tenant}/home/") for key in house.examples)
        assert sum(house.examples.values()) >= 3
    assert ours.examples.keys().isdisjoint(theirs.examples)
    with pytest.raises(Rejected) as refused:  # an id of ours is not one of theirs: its hash is of another salt
        theirs.visit("ann", decision_id=answers[0]["decision_id"])
    assert refused.value.status == 422


@pytest.mark.parametrize("reader", [0, 1])
def test_a_record_in_the_others_log_teaches_nothing_and_is_set_aside(both: tuple[House, House], reader: int) -> None:
    """As of a producer, or a whole deployment, that writes to the wrong topic: version and surface are known there, too."""
    us, them = both[reader], both[1 - reader]
    us.visit("ann")
    us.forward()
    assert us.learn() == {}
    before = us.examples
    them.visit("bob")
    them.forward()
    stray = [(record.key, record.value) for record in open_log(them.settings).read(0, 0, 10)]
    assert len(stray) == 2
    open_log(us.settings).append(stray)
    assert us.learn() == {"other_tenant": 2}
    assert us.examples == before
    assert open_dead_letters(us.settings).count() == {"other_tenant": 2}


def test_claims_of_one_store_are_each_tenants_own(both: tuple[House, House]) -> None:
    ours, theirs = both
    theirs.scoring.claims = ours.scoring.claims
    first, second = (house.visit("ann", decision_id="the-same-id") for house in both)
    assert [first["mode"], second["mode"]] == ["live", "live"]
    assert theirs.visit("ann", decision_id="the-same-id")["mode"] == "cached"


def test_a_bundle_of_the_other_tenant_is_not_drawn_from(both: tuple[House, House]) -> None:
    """In a store that both were given: what was learned as another's is refused by its key, the one before goes on."""
    ours, theirs = both
    before = theirs.visit("ann")["bundle"]
    mine, store = open_bundles(ours.settings), open_bundles(theirs.settings)
    name = mine.pointers()["home/home-ts"]
    for file, data in bundling.files(bundling.read(name, mine.get)).items():
        store.put(file, data)
    store.point("home/home-ts", name, 9)
    theirs.scoring.swap(theirs.scoring.poll())
    assert theirs.visit("ann")["bundle"] == before != name
    told = Exposition.parse(theirs.scoring.telemetry.text().decode())
    assert told.total("swap_total", surface="home", policy="home-ts", outcome="schema") == 1.0


def test_a_deployment_does_not_start_on_the_others_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for process in ("learning.app", "experiences.settling", "control.app"):
        monkeypatch.setattr(f"services.{process}.share", lambda folder: None)
        if process != "control.app":
            monkeypatch.setattr(f"services.{process}.stopping", threading.Event)
    ours = settings_of(tmp_path, DEFAULT)
    prepare(ours)
    written = open_state(ours).version()
    claim(open_state(ours), DEFAULT)
    assert open_state(ours).version() == written  # once is enough
    theirs = settings_of(tmp_path, "shop", state=f"sqlite:///{ours.state_path}", experiences=f"file://{tmp_path}/e")
    for start in (prepare, open_scoring, learning.run, settling.run, control.run, Trials.of, Releases.of):
        with pytest.raises(Rejected) as refused:
            start(theirs)
        assert (refused.value.code, refused.value.at) == ("other_tenant", "SLATEWISE_TENANT")
    assert open_state(ours).version() == written


def test_of_two_that_claim_a_record_at_once_one_has_it() -> None:
    class Slow(MemoryState):
        """Where another claims between the look and the word."""

        def put(self, entries: Any, expect: int | None = None) -> int:
            super().put([("tenant", "owner", b"faster")])
            return super().put(entries, expect)

    with pytest.raises(Rejected, match="faster") as refused:
        claim(Slow(), "shop")
    assert refused.value.code == "other_tenant"
    claim(Slow(), "faster")


def test_commands_know_whose_log_they_read(both: tuple[House, House], tmp_path: Path) -> None:
    """What was learned, settled and published under a tenant's name is found under it; without the name they say so."""
    _, shop = both
    claim(open_state(shop.settings), "shop")
    for i in range(3):
        shop.visit(f"unit-{i}")
    shop.forward()
    assert shop.learn() == {}
    data = str(shop.settings.data)
    (tmp_path / "surfaces").mkdir()
    (tmp_path / "surfaces" / "home.yaml").write_bytes(
        msgspec.json.encode(document(shop.configs.answering()[0].surface))
    )
    commands = [
        ["export", "--format", "dsjson", "--out", "-", "--data", data, "--unsettled"],
        ["evaluate", data, "--policy", "home/home-ts", "--unsettled"],
        ["bundle", "verify", "home/home-ts", "--data", data],
        ["plan", str(tmp_path / "surfaces"), "--data", data],
        ["keys", "list", "--data", data],
    ]
    log = {"SLATEWISE_PARTITIONS": "1"}
    for words in commands:
        done = CliRunner(env=log | {"SLATEWISE_TENANT": "shop"}).invoke(main, words)
        assert done.exit_code == 0, (words, done.output, done.exception)
        if words[0] == "export":
            assert "3 decisions" in done.output
        if words[0] == "plan":
            assert "home-ts: keeps all it learned" in done.output
        nameless = CliRunner(env=log).invoke(main, words)
        assert nameless.exit_code != 0, words
        assert "'shop'" in nameless.output + str(nameless.exception)


def test_experiments_are_read_out_for_the_tenant_that_runs_them(both: tuple[House, House]) -> None:
    """The control service's own settlers and learner keys."""
    _, shop = both
    made = Control.of(shop.settings)
    assert made.readouts._configs.tenant == "shop"
    for i in range(3):
        shop.visit(f"unit-{i}")
    shop.forward()
    for _ in range(3):  # read, then settle what a log that says no more has left
        made.readouts.turn(time.time() + 100.0)
    assert [seat.outbox.numbers() for seat in made.readouts._seats] == [(0, 3)]
