"""A policy with a trainer, end to end in one process: decided over the service, clicked, settled, trained, published, swapped."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from policies import bundle as bundling
from policies.errors import Rejected, Unavailable
from policies.surface import Bool, FeatureSpec, Hashed, Logging, Number, Objective, PolicySpec, Surface
from services.cli import main
from services.exposition import Exposition
from services.learning.app import Learning, derived_is_read
from services.learning.beside import Beside, tell
from services.learning.inline import InlineShards
from services.learning.shards import open_shards
from services.learning.training import Course, Turn
from services.retaining import Retaining
from services.scoring import feedback as feedbacks
from services.scoring.histories import Histories
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles, open_forwarder, open_log, open_state
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision
from streaming.experiences import Experience
from streaming.parquet import table_of
from streaming.parquet_reading import experiences_of
from streaming.partition import partition_of
from streaming.publish import Publisher
from streaming.replay import recompute
from tests.dashboards import lacking, queries
from tests.scoring_setup import decisions, in_memory, until
from tests.training_setup import registered

HORIZON = 0.2  # seconds of real time that a settled decision waits for
SURFACE = Surface(
    "home",
    slots=2,
    horizon=HORIZON,
    session_timeout=30.0,
    history=3,
    features=FeatureSpec(context={"hour": Number(0, 23)}, items={"price": Number(0, 8), "new": Bool()}),
    objectives={"click": Objective("click", range=(0, 1))},
    policies={"agent": PolicySpec("gradients", objective="click", options={"floor": 0.1})},
    live="agent",
    fallback="uniform",
    logging=Logging(1.0),
)
ITEMS = [{"id": f"item-{i}", "features": {"price": i % 4 * 2, "new": i % 2 == 0}} for i in range(6)]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


class House:
    """Everything of one machine, in this process and without threads; a restart is another `Course`."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings.load({}, data=folder, derive="on", partitions=2)
        state = open_state(self.settings)
        publish_surface(state, SURFACE)
        self.configs, self.telemetry, self.owner = Configs(), Telemetry(), 0
        publisher = Publisher(open_bundles(self.settings), self.configs, 1)
        self.learning = Learning(state, self.configs, publisher, self.telemetry, 0.0)
        self.learning.follow()
        self.learning.begin([])
        self.shards = InlineShards(open_shards(self.settings, state, self.configs, 1, range(2)))
        self.course = self.start()
        self.turn(time.time())  # what the policy is before it has learned
        self.scoring: Scoring = open_scoring(self.settings)
        self.scoring.start()
        self.forwarder = open_forwarder(self.settings)

    def start(self) -> Course:
        """As a new process does, with nothing but what is durable."""
        self.owner += 1
        self.course = Course(self.settings, open_state(self.settings), self.owner)
        return self.course

    def turn(self, now: float) -> list[Turn]:
        turns = [self.course.turn(now)]
        while turns[-1].busy:
            turns.append(self.course.turn(now))
        for turn in turns:
            self.learning.taught(turn.taught)
        return turns

    def visit(self, unit: str) -> str:
        """A decision, and a click on every new item that it shows; the decision's id."""
        body = {"surface": "home", "unit": unit, "candidates": ITEMS, "context": {"hour": 3}}
        answer = msgspec.json.decode(self.scoring.decide(msgspec.json.encode(body)))
        new = {item["id"]: item["features"]["new"] for item in ITEMS}  # type: ignore[index]
        clicks = [
            {"decision_id": answer["decision_id"], "kind": "click", "slot": slot["slot"]}
            for slot in answer["slate"]
            if new[slot["id"]]
        ]
        terms = self.scoring.terms()
        self.scoring.keep([feedbacks.read(msgspec.json.encode(one), time.time(), terms) for one in clicks])
        return str(answer["decision_id"])

    def record(self, decision_id: str) -> Decision:
        [found] = [one for one in decisions(self.settings.data) if one.decision_id == decision_id]
        return found

    def forward(self) -> None:
        """The log has all of the spool, and the profiles all of the log."""
        while self.forwarder.step():
            pass
        while self.learning.turn(self.shards):
            pass
        time.sleep(0.15)  # the feed tells at most every 0.1 s
        self.learning.turn(self.shards)

    def teach(self) -> None:
        """Six people come four times; what they did settles, is trained from and published."""
        for _ in range(4):
            for unit in range(6):
                self.visit(f"u-{unit}")
            self.forward()
        time.sleep(HORIZON)
        self.turn(time.time() + 1e4)
        self.course._next_publish = 0.0
        self.turn(time.time() + 2e4)

    def visit_log(self) -> None:
        """A record straight into every partition of the log: its clock moves on."""
        log = open_log(self.settings)
        for partition in range(2):
            key = next(b"%d" % i for i in range(100) if partition_of(b"%d" % i, 2) == partition)
            log.append([(key, b"{}")])

    def settled(self) -> list[Experience]:
        return [one for box in self.course._outboxes for one in box.pull(*box.numbers())]

    def pointed(self) -> str:
        return open_bundles(self.settings).pointers()["home/agent"]


def test_people_act_the_agent_learns_and_serves_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    house = House(tmp_path)
    first = house.pointed()
    assert house.scoring.live.surfaces["home"].policy is not None
    assert house.learning.trains
    one = house.record(house.visit("u-0"))
    assert one.mode == "live"
    assert one.history_items == []
    for _ in range(4):
        for unit in range(6):
            house.visit(f"u-{unit}")
        house.forward()
    again = house.record(house.visit("u-1"))
    assert 0 < len(again.history_items) <= 3  # what was clicked, out of the profile
    assert np.frombuffer(again.history, "<f4").size == 2 * len(again.history_items)  # type: ignore[arg-type]
    house.forward()
    time.sleep(HORIZON)
    turns = house.turn(time.time() + 1e4)  # nothing more comes: what waits settles, and sessions end
    key = next(iter(turns[-1].taught)).key if turns[-1].taught else next(t.taught[0].key for t in turns if t.taught)
    given = sum(report.transitions.get(key, 0) for turn in turns for report in turn.trained)
    assert given == 26  # every decision, once
    for turn in turns:
        for report in turn.trained:
            for metrics in report.metrics.values():
                metrics["multiplier_click"] = 0.5  # as trainers with constraints say theirs
        tell(turn, house.telemetry)
    told = Exposition.parse(house.telemetry.text().decode())
    of_trainers = ["train_stopped", "train_metric_value", "constraint_multiplier"]
    assert lacking(queries(), told, only=of_trainers) == {}
    assert told.by("constraint_multiplier", "objective", surface="home", policy="agent") == {"click": 0.5}
    later = time.time() + 2e4
    house.course._next_publish = 0.0  # not in a while
    house.turn(later)
    assert house.pointed() != first
    manifest = bundling.read_manifest(house.pointed(), open_bundles(house.settings).get)
    assert manifest.diagnostics["seen"] == 52
    assert manifest.trained_through == {str(p): house.course._training.through[p] for p in range(2)}  # type: ignore[union-attr]

    # swapped in, and better at what was clicked
    house.scoring.swap(house.scoring.poll())
    served = house.scoring.live.surfaces["home"].policy
    assert served is not None
    assert served.bundle == house.pointed()
    after = house.record(house.visit("u-2"))
    assert after.bundle == house.pointed()
    distribution = np.frombuffer(after.sample.distributions).reshape(-1, len(ITEMS))[0]  # type: ignore[union-attr]
    assert distribution[::2].sum() > 0.6  # new items, half of all

    # the record says what was drawn from: bit for bit
    bundle = bundling.read(house.pointed(), open_bundles(house.settings).get)
    slate = recompute(after, bundle)
    assert slate.propensities.tolist() == after.propensities
    assert slate.distributions is not None
    assert slate.distributions.tobytes() == after.sample.distributions  # type: ignore[union-attr]

    # killed without a word, it is what it was: weights, momentum, replay
    held = {name: np.array(array) for name, array in house.course._training.arrays(key).items()}  # type: ignore[union-attr]
    house.start()
    [turn] = house.turn(later)
    assert turn.again > 0
    found = house.course._training.arrays(key)  # type: ignore[union-attr]
    assert {name: array.tobytes() for name, array in held.items()} == {n: a.tobytes() for n, a in found.items()}
    house.course.close()
    house.start()
    [turn] = house.turn(later)
    assert turn.again == 0
    found = house.course._training.arrays(key)  # type: ignore[union-attr]
    assert {name: array.tobytes() for name, array in held.items()} == {n: a.tobytes() for n, a in found.items()}
    house.scoring.close()
    assert derived_is_read(house.configs)


def test_a_policy_learns_from_files_before_it_decides_and_goes_on_from_there(tmp_path: Path) -> None:
    house = House(tmp_path / "there")
    for unit in range(8):
        house.visit(f"u-{unit % 4}")
    house.forward()
    time.sleep(HORIZON)
    house.turn(time.time() + 1e4)
    house.scoring.close()
    settled = house.settled()
    assert len(settled) == 8
    log = tmp_path / "log.parquet"
    pq.write_table(table_of(settled), log)
    for read, one in zip(experiences_of(pq.read_table(log)), settled, strict=True):
        assert (read.decision.history, read.decision.history_items) == (
            one.decision.history,
            one.decision.history_items,
        )
        assert read.decision.matrix == one.decision.matrix
        assert (read.row.rewards, read.row.present, read.row.schema) == (
            one.row.rewards,
            one.row.present,
            one.row.schema,
        )
        assert read.row.due == pytest.approx(one.row.due, abs=1e-6)

    def train(data: Path, *more: str, policy: str = "agent") -> str:
        command = ["train", str(log), "--policy", policy, "--data", str(data), *more]
        result = CliRunner(env={"SLATEWISE_PARTITIONS": "2"}).invoke(main, command)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.output

    fresh = House(tmp_path / "here")
    fresh.course.close()
    fresh.scoring.close()
    said = train(tmp_path / "here", "--epochs", "2")
    assert "epoch 2: 8 transitions" in said
    assert "the policy has a bundle" in said
    fresh.owner += 10  # a service that starts now; the command shut out the one before
    fresh.start()
    [turn] = fresh.turn(time.time())
    [taught] = turn.taught
    assert taught.published.diagnostics["seen"] == 2 * 2 * 8  # slots, epochs, decisions
    assert fresh.pointed() == fresh.learning._publisher.last(fresh.course._training.policies[taught.key]).bundle  # type: ignore[union-attr]
    assert "is trained from this log already" in train(tmp_path / "here")

    data = tmp_path / "nowhere"
    publish_surface(open_state(Settings.load({}, data=data)), SURFACE)
    assert "bundle" in train(data)
    assert set(open_bundles(Settings.load({}, data=data)).pointers()) == {"home/agent"}
    assert "Expected one of: home/agent" in train(data, policy="nobody")


@pytest.mark.parametrize(
    ("history", "status", "at"),
    [
        ([{"item": "item-0", "kind": "click"}] * 4, "at most 3", "$.history"),
        ([{"item": "item-0", "kind": "stare"}], "Unknown kind", "$.history[0].kind"),
        ([{"item": "item-0", "kind": "click"}, {"item": "gone", "kind": "click"}], "Unknown item", "$.history[1].item"),
        ([{"item": 3, "kind": "click"}], "Expected str", "$.history[0].item"),
        ({"items": ["item-0"] * 4, "kinds": "click"}, "at most 3", "$.history"),
        ({"items": ["item-0"], "kinds": "stare"}, "Unknown kind", "$.history.kinds"),
        ({"items": ["item-0"] * 2, "kinds": ["click", "stare"]}, "Unknown kind", "$.history.kinds[1]"),
        ({"items": ["item-0"] * 2, "kinds": ["click"]}, "Expected 2 kinds", "$.history.kinds"),
        ({"items": ["item-0", "gone"], "kinds": "click"}, "Unknown item", "$.history.items[1]"),
        ({"items": ["item-0"]}, "missing required field", "$.history.kinds"),
    ],
)
def test_a_history_that_cannot_be_is_refused_by_path(tmp_path: Path, history: object, status: str, at: str) -> None:
    scoring = in_memory_with_items(tmp_path)
    with pytest.raises(Rejected, match=status) as caught:
        scoring.decide(asked(history))
    assert caught.value.at == at


def test_a_history_of_the_request_is_what_is_drawn_from(tmp_path: Path) -> None:
    scoring = in_memory_with_items(tmp_path)
    scoring.decide(asked([{"item": "item-1", "kind": "click"}, {"item": "new-one", "kind": "click"}]))
    [record] = decisions(tmp_path)
    assert record.history_items == ["item-1", "new-one"]
    assert record.history == np.array([[-1.0, -0.5], [1.0, 1.0]], "<f4").tobytes()  # the catalogue's, and the request's


def test_a_history_as_columns_is_the_same_history(tmp_path: Path) -> None:
    scoring = in_memory_with_items(tmp_path)
    scoring.decide(asked([{"item": "item-1", "kind": "click"}, {"item": "new-one", "kind": "click"}]))
    scoring.decide(asked({"items": ["item-1", "new-one"], "kinds": "click"}))
    scoring.decide(asked({"items": ["item-1", "new-one"], "kinds": ["click", "click"]}))
    first, *others = decisions(tmp_path)
    assert first.history_items == ["item-1", "new-one"]
    for other in others:
        assert (other.history, other.history_items) == (first.history, first.history_items)


def test_a_long_history_is_read_and_recorded_in_few_rows(tmp_path: Path) -> None:
    """Of twenty interactions the newest two and three that stand for the others; drawn from them, bit for bit."""
    hashed = msgspec.structs.replace(SURFACE, history=20, history_hashed=Hashed(newest=2, rows=3))
    scoring = in_memory_with_items(tmp_path, hashed)
    lived = ["item-1"] * 6 + ["item-0"] * 12 + ["new-one", "item-1"]
    scoring.decide(asked({"items": lived, "kinds": "click"}))
    scoring.decide(asked({"items": lived[:5], "kinds": "click"}))
    long, short = decisions(tmp_path)
    assert long.history_items == ["item-1", "item-0", "item-0", "new-one", "item-1"]
    rows = np.frombuffer(long.history, "<f4").reshape(5, 2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(rows[:, 0] == rows[1, 0], [False, True, True, False, False])
    assert rows[0].tobytes() == rows[4].tobytes()
    assert short.history_items == lived[:5]
    bundles = scoring._follower._bundles  # in memory, and its own
    slate = recompute(long, bundling.read(bundles.pointers()["home/agent"], bundles.get))
    assert slate.propensities.tolist() == long.propensities


def test_a_store_that_is_away_is_an_empty_history_and_said_so(tmp_path: Path) -> None:
    class Away:
        asked = 0

        def read(self, units: object) -> list[bytes]:
            self.asked += 1
            raise Unavailable("profiles: gone")

    store = Away()
    scoring = in_memory_with_items(tmp_path, histories=Histories(lambda: store))  # type: ignore[arg-type,return-value]
    for _ in range(5):
        scoring.decide(asked(None))
    assert store.asked == 2  # then the breaker is open
    assert [one.history_items for one in decisions(tmp_path)] == [[]] * 5
    said = scoring.telemetry.text().decode()
    assert 'slatewise_history_reads_total{outcome="away"}' in said
    assert 'outcome="read"' not in said


def in_memory_with_items(folder: Path, surface: Surface = SURFACE, **more: object) -> Scoring:
    scoring = in_memory(folder, surface, **more)
    item = {"id": "item-1", "features": {"price": 2, "new": False}}
    scoring.state.put(
        [("item", "item-1", msgspec.json.encode(item)), ("item", "item-0", msgspec.json.encode({"id": "item-0"}))]
    )
    scoring.catalogue.apply(scoring.catalogue.prepare(scoring.state.read()), time.time())
    return scoring


def asked(history: object) -> bytes:
    body = {
        "surface": "home",
        "unit": "u",
        "candidates": ["item-0", {"id": "new-one", "features": {"price": 8, "new": True}}],
    }
    return msgspec.json.encode(body | ({} if history is None else {"history": history}))


def test_a_thread_trains_beside_and_says_what_became_of_it(tmp_path: Path) -> None:
    house = House(tmp_path)
    for unit in range(4):
        house.visit(f"u-{unit}")
    house.forward()
    house.scoring.close()
    time.sleep(HORIZON)
    house.visit_log()  # a record that moves the log's clock past the horizon of those before
    beside = Beside(house.start)
    beside.start()
    taught = []

    def trained() -> bool:
        taught.extend(beside.report(house.telemetry))
        training = house.course._training
        return bool(taught) and training is not None and sum(training.through.values()) > 0

    until(trained, "rows to be trained from")
    older = house.course
    newer = Beside(house.start)  # another service takes over
    newer.start()
    until(lambda: house.course is not older and bool(newer.report(house.telemetry)), "the newer one to hand out")
    house.visit_log()
    until(lambda: bool(beside.failed), "the older one to be shut out")
    assert "epoch" in beside.failed
    newer.stop()
    assert not newer.failed
    assert {one.key.split("/")[2] for one in taught} == {"agent"}
    said = house.telemetry.text().decode()
    assert 'slatewise_train_lag_rows{partition="0"}' in said


def test_what_cannot_start_takes_nothing_with_it() -> None:
    def broken() -> Course:
        raise ImportError("no torch here")

    beside, telemetry = Beside(broken), Telemetry()
    beside.start()
    until(lambda: bool(beside.failed), "the thread to end")
    assert beside.report(telemetry) == []
    assert "no torch here" in beside.failed
    assert "slatewise_train_failed 1.0" in telemetry.text().decode()
    beside.stop()


def test_records_that_trainers_need_are_kept(tmp_path: Path) -> None:
    house = House(tmp_path)
    for unit in range(3):
        house.visit(f"u-{unit}")
    house.forward()
    house.scoring.close()
    state = open_state(house.settings)
    retaining = Retaining(house.settings, state, house.configs, 1)
    assert retaining._settling_from(0, 0.0) == 0.0  # trainers have not said how far they are
    house.turn(time.time())
    house.course._next_trim = 0.0  # said once a minute
    [turn] = house.turn(time.time())
    retaining.training = turn.needed
    read = [p for p in range(2) if open_log(house.settings).end(p)[0]]
    assert all(0.0 < retaining._settling_from(p, 0.0) <= time.time() for p in read)
