"""Drift over settled decisions of a log: told as metrics, each decision once, whatever dies in between."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import learned

from policies.bundle import read as read_bundle
from policies.errors import Unavailable
from policies.surface import Category, FeatureSpec, Number, Objective, PolicySpec, Surface
from services.audit import Audit
from services.control.drifting import Drifting, Predicting
from services.control.readouts import Readouts
from services.control.together import Together
from services.exposition import Exposition
from services.releases import Releases
from services.telemetry import Telemetry
from services.trials import Trials
from streaming import adjusting
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints, MemoryLog, MemoryState
from streaming.adapters.sqlite_estimates import SqliteEstimates
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.adjusting import Adjustments
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision, Feedback, Sample, encode, floats
from streaming.publish import Publisher, by_lineage, older_sums
from streaming.replay import first_expected, scores_of
from streaming.watching import Watch, _free, read
from tests.services.test_scoring_algorithms import served

START, HORIZON, PARTITIONS = 1_000_100.0, 10.0, 2
SURFACE = Surface(
    "home",
    slots=2,
    horizon=HORIZON,
    correctable=1000.0,
    features=FeatureSpec(context={"device": Category(["ios", "web"])}, items={"price": Number(0, 10)}),
    objectives={"click": Objective("click", range=(0, 1)), "later": Objective("buy")},
    policies={"ts": PolicySpec("linear_thompson", objective="click")},
    live="ts",
)
WATCH = Watch(block_seconds=5.0, bundle_seconds=1.0, each=1_000, warm=100.0, reference=400, alarm_blocks=100.0)


class House:
    """A log whose times are said, a bundle that expects dear items to be clicked, and what folds the two."""

    def __init__(self, folder: Path, surface: Surface = SURFACE) -> None:
        self.now, self.number = START, 0
        self.state, self.log, self.bundles = MemoryState(), MemoryLog(PARTITIONS, lambda: self.now), MemoryBundles()
        publish_surface(self.state, surface)
        configs = Configs()
        configs.follow(self.state)
        compiled = configs.current("home")
        assert compiled is not None
        self.compiled, policy = compiled, compiled.policies["ts"]
        publisher = Publisher(self.bundles, configs, 1)
        made = publisher.publish(policy, [learned(policy, 2000)], {}, START - 1).manifest
        assert made is not None
        self.bundle = read_bundle(made.bundle, self.bundles.get)
        self.stored = SqliteEstimates(folder / "drift.sqlite")
        self.totals = SqliteTotals(folder / "units.sqlite")
        self.outboxes = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.open(self.stored)

    def open(self, stored: Any) -> None:
        """Anew, as after a restart."""
        self.telemetry = Telemetry()
        releases = Releases(self.state, self.bundles, self.log)
        self.drifting = Drifting(releases, lambda: stored, Configs(), telemetry=self.telemetry, watch=WATCH)
        opened = (self.totals, self.outboxes.__getitem__)
        trials = Trials(self.state, Configs(), clock=lambda: self.now)
        self.readouts = Readouts(
            trials,
            self.log,
            lambda: opened,
            retention_seconds=86_400.0,
            telemetry=self.telemetry,
            beside=Together(self.drifting),
        )

    def decide(self, rng: np.random.Generator, at: float, clicked: float, device: str = "ios") -> None:
        """A decision, and a click on its first item as often as the bundle expects, times `clicked`."""
        self.number += 1
        unit, encoder = hashlib.blake2b(b"%d" % rng.integers(500), digest_size=8).hexdigest(), self.compiled.encoder
        one = self.drawn(
            unit,
            at,
            slate=["a", "b"],
            slots=[0, 1],
            rows=[0, 1],
            propensities=[0.5, 1.0],
            remaining=[2, 1],
            greedy=[0, 1],
            context=encoder.context({"device": device}).tobytes(),
            shown=encoder.rows([{"price": float(rng.uniform(0, 10))} for _ in range(2)], "$").tobytes(),
        )
        self.now = at + 0.001
        self.log.append([(unit.encode(), encode(one))])
        if rng.random() < clicked * first_expected(one, self.bundle):
            said = Feedback(decision_id=one.decision_id, unit=unit, at=at, feedback_id="f", kind="click", slot=0)
            self.log.append([(unit.encode(), encode(said))])

    def drawn(self, unit: str, at: float, **more: Any) -> Decision:
        """A decision of the live policy."""
        return Decision(
            decision_id=f"d{self.number}",
            unit=unit,
            at=at,
            surface="home",
            config=self.compiled.hash,
            policy="ts",
            mode="live",
            bundle=self.bundle.manifest.bundle,
            **more,
        )

    def look(self, rng: np.random.Generator, at: float, examined: float) -> None:
        """A sampled decision over six items by Plackett-Luce, the second slot looked at so often."""
        self.number += 1
        unit, encoder = hashlib.blake2b(b"%d" % rng.integers(500), digest_size=8).hexdigest(), self.compiled.encoder
        first = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
        row = int(rng.choice(6, p=first))
        second = np.where(np.arange(6) == row, 0.0, first) / (1 - first[row])
        rows = [row, int(rng.choice(6, p=second))]
        one = self.drawn(
            unit,
            at,
            slate=["abcdef"[i] for i in rows],
            slots=[0, 1],
            rows=rows,
            propensities=[float(first[rows[0]]), float(second[rows[1]])],
            remaining=[6, 5],
            greedy=[0, 0],
            candidates=list("abcdef"),
            context=encoder.context({}).tobytes(),
            shown=encoder.rows([{"price": 1.0 + i} for i in rows], "$").tobytes(),
            sample=Sample(1.0, np.stack([first, second]).tobytes(), b""),
        )
        self.now = at + 0.001
        self.log.append([(unit.encode(), encode(one))])
        for slot, chance in enumerate((1.0, examined)):
            if rng.random() < chance * (0.3 + 0.1 * rows[slot]):
                said = Feedback(
                    decision_id=one.decision_id, unit=unit, at=at, feedback_id=f"f{slot}", kind="click", slot=slot
                )
                self.log.append([(unit.encode(), encode(said))])

    def live(self, seed: int, n: int, clicked: float = 1.0, device: str = "ios", since: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        for i in range(n):
            self.decide(rng, START + since + i / 10, clicked, device)

    def settle(self) -> None:
        """Past the horizon of everything there is."""
        self.now += 2 * HORIZON
        for name in range(16):
            unit = hashlib.blake2b(b"clock-%d" % name, digest_size=8).hexdigest()
            late = Feedback(decision_id=f"none-{name}", unit=unit, at=self.now, feedback_id="f", kind="click")
            self.log.append([(unit.encode(), encode(late))])
        while self.readouts.turn(self.now):
            pass

    def current(self) -> str:
        compiled = self.drifting._configs.current("home")
        assert compiled is not None
        return compiled.hash

    def told(self) -> Exposition:
        self.drifting._next_telling = 0.0  # as if its time had come
        self.drifting._next_telling = 0.0  # as if its time had come
        self.drifting.tell()
        return Exposition.parse(self.telemetry.text().decode())

    def states(self) -> list[bytes]:
        return [self.stored.load(partition)[1] for partition in range(PARTITIONS)]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_residuals_that_stay_and_residuals_that_move(house: House) -> None:
    house.live(1, 1200)
    house.settle()
    before = house.told()
    assert before.total("residual_drift_ratio", surface="home", policy="ts") < 0.8
    reference = before.total("residual_mean_value", surface="home", policy="ts", window="reference")
    assert abs(reference) < 4 * 0.5 / np.sqrt(400)  # four standard errors of the reference
    house.live(2, 600, clicked=0.2, since=150.0)
    house.settle()
    after = house.told()
    assert after.total("residual_drift_ratio", surface="home", policy="ts") >= 1.0
    assert after.total("residual_mean_value", surface="home", policy="ts", window="recent") < reference - 0.2
    assert after.total("residual_mean_value", surface="home", policy="ts", window="reference") == reference


def test_features_of_contexts_and_items(house: House) -> None:
    house.live(1, 700)
    house.settle()
    before = house.told()
    assert before.by("feature_drift_nats", "feature") == {
        "context.device": pytest.approx(0.0, abs=1e-6),
        "item.price": pytest.approx(0.0, abs=0.05),
    }
    house.live(2, 700, device="fridge", since=100.0)
    house.settle()
    after = house.told()
    assert after.total("feature_unseen_ratio", feature="context.device") == pytest.approx(0.5, abs=0.01)
    assert after.total("feature_missing_ratio", feature="context.device") == 0.0
    counts = [read(state)["home"].sides["context"] for state in house.states()]
    assert sum(np.frombuffer(one.recent).sum() for one in counts) == pytest.approx(1400, rel=0.01)


class Dying:
    """A store whose commits fail at times, before or after they are durable."""

    def __init__(self, inner: SqliteEstimates, rng: np.random.Generator) -> None:
        self._inner, self._rng, self.deaths = inner, rng, 0

    def load(self, partition: int) -> tuple[int, bytes]:
        return self._inner.load(partition)

    def commit(self, *said: Any) -> None:
        dice = self._rng.random()
        if dice < 0.3:
            self.deaths += 1
            raise Unavailable("before")
        self._inner.commit(*said)
        if dice > 0.7:
            self.deaths += 1
            raise Unavailable("after")


def test_each_decision_counts_once_whatever_dies(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    calm, hit, rng = House(tmp_path / "one"), House(tmp_path / "other"), np.random.default_rng(3)
    dying = Dying(hit.stored, rng)
    for part in range(6):
        for house in (calm, hit):
            house.live(part, 150, since=20.0 * part)
        for _ in range(4):
            hit.open(dying)
            try:
                hit.readouts.turn(hit.now)
            except Unavailable:
                continue
    calm.settle()
    hit.open(hit.stored)
    hit.settle()
    assert dying.deaths > 3
    for one, other in zip(calm.states(), hit.states(), strict=True):
        expected, found = read(one)["home"], read(other)["home"]
        assert found.residuals["ts"].reference == pytest.approx(expected.residuals["ts"].reference)
        assert found.residuals["ts"].blocks.keys() == expected.residuals["ts"].blocks.keys()
        for side in expected.sides:
            both = [np.frombuffer(of.sides[side].recent) for of in (expected, found)]
            np.testing.assert_allclose(both[1], both[0], rtol=1e-6, atol=1e-9)


def test_a_bundle_that_is_gone_is_counted_and_asked_for_once(house: House) -> None:
    house.bundles = MemoryBundles()
    house.open(house.stored)
    house.live(1, 300)
    house.settle()
    assert sum(read(state)["home"].unscored for state in house.states()) == 300
    assert house.told().total("residual_drift_ratio") == 0.0


def test_bundles_that_nobody_asks_for_are_let_go() -> None:
    asked: list[str] = []

    def read_one(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(manifest=name)

    now = 0.0
    predicting = Predicting(SimpleNamespace(read=read_one), lambda: now)  # type: ignore[arg-type]  # as much as it reads
    for second in range(500):  # one partition goes on to the next every second, another stays
        now = float(second)
        predicting.manifest(f"b{second}")
        predicting.manifest("stays")
        assert len(predicting.held) <= 40  # what half a minute asked for
    assert asked.count("stays") == 1


def test_examination_is_estimated_recorded_and_taught_from_then_on(tmp_path: Path) -> None:
    house = House(tmp_path, msgspec.structs.replace(SURFACE, examination="estimated"))
    before, rng = house.compiled, np.random.default_rng(1)
    for i in range(100):
        house.look(rng, START + i / 100, 0.5)
    house.settle()
    assert np.isfinite(house.told().total("examined_ratio", slot="1", bound="estimate"))
    assert house.current() == before.hash  # not sure yet
    for _ in range(1900):
        house.look(rng, house.now + 0.01, 0.5)
    house.settle()
    told = house.told()
    low, high = (told.total("examined_ratio", slot="1", bound=bound) for bound in ("low", "high"))
    assert low < 0.5 < high
    assert high / low < 1.5
    after = house.drifting._configs.current("home")
    assert after is not None
    assert after.surface.slot_examination == pytest.approx([1.0, 0.5], abs=0.1)
    assert after.policies["ts"].key != before.policies["ts"].key
    [change] = Audit(house.state).changes("surface/home")
    assert (change.who, change.before, change.after) == ("drift", before.hash, after.hash)
    house.told()
    assert house.current() == after.hash  # it is no news any more


def test_what_was_recorded_before_a_crash_acts_after_it(tmp_path: Path) -> None:
    house = House(tmp_path, msgspec.structs.replace(SURFACE, examination="estimated"))
    adjusting.record(house.state, "home", Adjustments(START, examined=[1.0, 0.25]), 0)
    house.open(house.stored)
    house.told()
    compiled = house.drifting._configs.current("home")
    assert compiled is not None
    assert compiled.surface.slot_examination == [1.0, 0.25]


def test_drift_resets_once_and_what_is_drawn_from_follows(tmp_path: Path) -> None:
    """An alarm is recorded, acts through a new version, and is told once; the residuals of the new key begin when new evidence
    outweighs the old."""
    spec = PolicySpec("linear_thompson", objective="click", on_drift=0.25)
    house = House(tmp_path, msgspec.structs.replace(SURFACE, policies={"ts": spec}))
    before, key = house.compiled.hash, house.compiled.policies["ts"].key
    house.live(1, 1200)
    house.settle()
    house.told()
    assert house.current() == before
    house.live(2, 600, clicked=0.2, since=150.0)
    house.settle()
    assert house.told().total("drift_resets_total", surface="home", policy="ts") == 1.0
    after = house.drifting._configs.current("home")
    assert after is not None
    assert (after.surface.resets_of("ts"), after.policies["ts"].resets) == ((0.25,), (0.25,))
    assert adjusting.adjustments_on(house.state, "home").resets == {"ts": [0.25]}
    house.open(house.stored)  # again, after a restart: the residuals that raised the alarm are of a key that is gone
    house.live(3, 300, clicked=0.2, since=300.0)
    house.settle()
    assert house.told().total("drift_resets_total") == 0.0
    configs = Configs()
    configs.follow(house.state)
    policy = after.policies["ts"]
    old = learned(house.compiled.policies["ts"], 2000)
    addends = older_sums(configs, policy, by_lineage([{key: old}]))
    made = Publisher(house.bundles, configs, 2).publish(policy, [], {}, house.now, older=addends).manifest
    assert made is not None
    assert made.diagnostics["examples"] == pytest.approx(500.0)
    house.bundle = read_bundle(made.bundle, house.bundles.get)
    house.compiled = after
    house.live(4, 400, since=400.0)
    house.settle()
    residuals = [read(state)["home"].residuals["ts"] for state in house.states()]
    assert sum(one.waits for one in residuals) == pytest.approx(2 * 500.0 - 2 * 400)
    assert sum(one.reference[0] for one in residuals) == 0.0
    house.live(5, 300, since=450.0)
    house.settle()
    assert sum(read(state)["home"].residuals["ts"].reference[0] for state in house.states()) > 100


def test_what_scoring_logs_is_what_is_counted(tmp_path: Path) -> None:
    """Of real decisions: distributions hold the logged propensities, and the bundle's own expectation is found again."""
    for decision, bundle in served(tmp_path, "linear_thompson"):
        assert _free(decision)
        assert decision.sample is not None
        k = len(decision.slate)
        distributions = np.frombuffer(decision.sample.distributions).reshape(k, -1)
        np.testing.assert_allclose(distributions[np.arange(k), decision.rows], decision.propensities)
        scores = scores_of(decision, bundle, floats(decision.matrix or b"").reshape(len(decision.candidates), -1))
        if decision.weights is None:
            assert first_expected(decision, bundle) == pytest.approx(float(scores[decision.rows[0]].mean()), abs=1e-6)
