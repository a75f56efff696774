"""Units' totals are a function of the log, exactly once through any death; guardrails stop by themselves; all by the record."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from policies.errors import Rejected, Unavailable
from policies.surface import Exposure, Fairness, Frequency, Objective, PolicySpec, Rule, Surface
from services.audit import Audit
from services.control.readouts import Readouts
from services.exposition import Exposition
from services.telemetry import Telemetry
from services.trials import Trials
from streaming import totals as folding
from streaming.adapters.memory import MemoryCheckpoints, MemoryLog, MemoryState
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision, Feedback, encode
from streaming.totals import Kept, Unit

T, START = 1_000_000.0, 1_000_100.0
WINDOW, HORIZON, PARTITIONS = 50.0, 10.0, 2
ARMS = ("control", "treatment")
SURFACE = Surface(
    "home",
    slots=2,
    horizon=HORIZON,
    correctable=1000.0,
    objectives={"click": Objective("click", range=(0, 1)), "hate": Objective("hate", better="lower")},
    policies={"ts": PolicySpec("linear_thompson", objective="click")},
    live="given_order",
)
DOCUMENT = {
    "experiment": "ts",
    "surface": "home",
    "arms": {"control": {"policy": "given_order", "share": 0.5}, "treatment": {"policy": "uniform", "share": 0.5}},
    "metrics": {"primary": "click", "guardrails": {"hate": {"min_effect": -0.1}}},
    "analysis": {"window": WINDOW, "planned": 400},
}


class House:
    """Stores that outlive the readouts over them, and a log whose times are said."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.now = T
        self.state, self.log = MemoryState(), MemoryLog(PARTITIONS, lambda: self.now)
        publish_surface(self.state, SURFACE)
        self.trials = Trials(self.state, Configs(), clock=lambda: self.now)
        self.totals = SqliteTotals(folder / "units.sqlite")
        self.outboxes = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.now = START
        self.trials.create(msgspec.json.encode({**DOCUMENT, **changes}), "ann")
        self.trials.start("ts", "ann")
        configs = Configs()
        configs.follow(self.state)
        compiled = configs.current("home")
        assert compiled is not None
        self.compiled, self.number = compiled, 0
        self.readouts = self.opened()

    def opened(self) -> Readouts:
        self.telemetry = Telemetry()
        opened = (self.totals, self.outboxes.__getitem__)
        return Readouts(self.trials, self.log, lambda: opened, retention_seconds=86_400.0, telemetry=self.telemetry)

    def tell(self, event: Decision | Feedback, appended: float) -> None:
        self.now = appended
        self.log.append([(event.unit.encode(), encode(event))])

    def decide(self, unit: str, at: float, arm: str | None = None, lag: float = 0.1, **more: Any) -> str:
        self.number += 1
        said = {"name": "ts", "arm": arm, "allocation": "0", **more.pop("said", {})} if arm else None
        one = Decision(
            decision_id=f"d{self.number}",
            unit=unit,
            at=at,
            surface="home",
            config=self.compiled.hash,
            policy="given_order",
            bundle="",
            mode="live",
            slate=["a", "b"],
            slots=[0, 1],
            rows=[0, 1],
            propensities=[1.0, 1.0],
            remaining=[2, 1],
            greedy=[0, 1],
            context=np.zeros(self.compiled.encoder.context_size, "<f4").tobytes(),
            shown=np.zeros((2, self.compiled.encoder.item_size), "<f4").tobytes(),
            experiment=said,
            **more,
        )
        self.tell(one, at + lag)
        return one.decision_id

    def hear(self, unit: str, decision: str, at: float, kind: str = "click", **more: Any) -> None:
        self.number += 1
        said = {"slot": 0, **more} if kind != "shown" else more
        self.tell(
            Feedback(decision_id=decision, unit=unit, at=at, feedback_id=f"f{self.number}", kind=kind, **said), at + 0.1
        )

    def move(self, to: float) -> None:
        """The log's clock, in every partition."""
        for name in range(16):
            self.decide(unit(f"clock-{name}"), to)

    def drain(self, readouts: Readouts | None = None) -> None:
        while (readouts or self.readouts).turn(self.now):
            pass

    def kept(self) -> list[Kept]:
        return sorted(self.totals.units("ts"), key=lambda one: msgspec.msgpack.encode(one.unit))


def unit(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_total_of_a_unit_by_hand(house: House) -> None:
    ann, bob, eve, kim = map(unit, ("ann", "bob", "eve", "kim"))
    early = house.decide(ann, START - 60)  # before the window before the start
    house.hear(ann, early, START - 59)
    before = house.decide(ann, START - 20)
    house.hear(ann, before, START - 19)
    deferred = house.decide(bob, START + 1, "treatment", defer=True)
    house.decide(eve, START + 1, "treatment", said={"override": "yes"})
    house.decide(kim, START + 1, "control", defer=True)  # never shown
    first = house.decide(ann, START + 2, "control")
    house.hear(ann, first, START + 3)
    house.hear(ann, first, START + 3, slot=1)
    house.hear(ann, first, START + 4, "hate", value=2.0)
    house.hear(bob, deferred, START + 5, "shown", slots=[0])
    moved = house.decide(ann, START + 20, "treatment")  # was moved: everyone counts where they began
    house.hear(ann, moved, START + 21)
    outside = house.decide(ann, START + 50)  # no experiment wanted it: the unit's total all the same
    house.hear(ann, outside, START + 50.5)
    late = house.decide(ann, START + 52.1, "control")  # the window is over
    house.hear(ann, late, START + 52.2)
    house.move(START + 61.5)
    house.drain()
    found = {one.unit.arm: one for one in house.kept() if one.unit.first < START + 10}
    assert {arm: one.complete for arm, one in found.items()} == {
        "control": False,
        "treatment": True,
    }  # ann's closes at + 62
    house.move(START + 80)
    house.drain()
    found = {one.unit.arm: one for one in house.kept() if one.unit.first < START + 10}
    assert found["control"] == Kept(
        Unit(
            "control",
            0,
            START + 2,
            START + 52,
            START + 62,
            {"decisions": 3.0, "click": 4.0, "hate": 2.0},
            {"decisions": 1.0, "click": 1.0, "hate": 0.0},
        ),
        complete=True,
    )
    assert found["treatment"].unit.totals == {"decisions": 1.0, "click": 0.0, "hate": 0.0}
    assert found["treatment"].unit.first == START + 1  # of the decision; it counts because it was shown
    assert len(house.kept()) == 2
    assert (house.totals.forget(ann), house.totals.forget(ann)) == (1, 0)
    assert len(house.kept()) == 1


def story(house: House, seed: int) -> list[Callable[[], object]]:
    """Two hundred decisions of thirty units in the order of their times, with feedback."""
    rng = np.random.default_rng(seed)
    steps: list[Callable[[], object]] = []
    for at in np.sort(rng.uniform(START - 60, START + 150, 200)).tolist():
        name = unit(f"unit-{rng.integers(30)}")
        arm = ARMS[int(name, 16) % 2] if at >= START and rng.random() < 0.9 else None
        clicked = rng.random() < 0.5

        def step(name: str = name, at: float = at, arm: str | None = arm, clicked: bool = bool(clicked)) -> None:
            decision = house.decide(name, at, arm)
            if clicked:
                house.hear(name, decision, at + 0.2)

        steps.append(step)
    return steps


class Dying:
    """Totals that now and then fail before, or after, they have committed."""

    def __init__(self, totals: SqliteTotals, rng: np.random.Generator) -> None:
        self._totals, self._rng = totals, rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._totals, name)

    def commit(self, *said: Any) -> None:
        dice = self._rng.random()
        if dice < 0.1:
            raise Unavailable("before")
        self._totals.commit(*said)
        if dice > 0.9:
            raise Unavailable("after")


def died(folder: Path, seed: int) -> list[Kept]:
    house, rng = House(folder), np.random.default_rng(seed)
    dying: Any = Dying(house.totals, rng)

    def again() -> Readouts:
        return Readouts(
            house.trials, house.log, lambda: (dying, house.outboxes.__getitem__), retention_seconds=86_400.0
        )

    readouts = again()
    for step in story(house, 7):
        step()
        if rng.random() < 0.2:
            try:
                readouts.turn(house.now)
            except Unavailable:
                if rng.random() < 0.5:
                    readouts = again()
    house.move(START + 400)
    house.drain()
    return house.kept()


def test_units_are_the_same_through_any_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = House(tmp_path / "straight")
    for step in story(straight, 7):
        step()
    straight.move(START + 400)
    straight.drain()
    expected = straight.kept()
    assert 20 <= sum(one.complete for one in expected) <= 46
    for seed in range(3):
        assert died(tmp_path / str(seed), seed) == expected

    def forgetful(self: SqliteTotals, experiment: str, partition: int) -> tuple[int, float]:
        return max(0, SqliteTotals.reached(self, experiment, partition)[0] - 1), 0.0  # type: ignore[attr-defined]  # below

    monkeypatch.setattr(SqliteTotals, "reached", SqliteTotals.cursor, raising=False)
    monkeypatch.setattr(SqliteTotals, "cursor", forgetful)
    with pytest.raises(Rejected, match="not at"):  # the fault: a decision folded twice is refused, not added
        died(tmp_path / "fault", 0)


def test_harm_stops_itself_and_says_why(house: House) -> None:
    for i in range(300):
        name = unit(f"unit-{i}")
        decision = house.decide(name, START + 1 + i / 1000, ARMS[i % 2])
        if i % 4 == 1:  # half of the treatment's
            house.hear(name, decision, START + 2, "hate")
    house.move(START + 70)
    house.drain()
    trial, _ = house.trials.get("ts")
    assert trial.status == "stopped"
    [stop, *_] = Audit(house.state).changes("experiment/ts")
    assert (stop.who, stop.action, stop.after["status"]) == ("guardrail", "stop", "stopped")
    report = house.readouts.report("ts")
    assert report["reason"].startswith("guardrail hate: treatment has -0.5")
    assert [one["verdict"] for one in report["guardrails"]] == ["breached"]
    assert report["assigned"] == {"control": 150, "treatment": 150}


def test_metrics_tell_units_ratio_and_stops(house: House) -> None:
    for i in range(3_000):  # a third of the treatment is lost on the way
        if i % 6 != 1:
            house.decide(unit(f"unit-{i}"), START + 1 + i / 1000, ARMS[i % 2])
    house.move(START + 70)
    house.drain()
    told = Exposition.parse(house.telemetry.text().decode())
    assert told.by("experiment_units_count", "arm") == {"control": 1_500.0, "treatment": 1_000.0}
    assert told.total("experiment_mismatch_p_ratio") < 0.001
    assert house.readouts.report("ts")["sample_ratio"]["mismatch"]


@pytest.mark.parametrize(
    ("arms", "changes", "said"),
    [
        (("given_order", "uniform"), {}, []),
        (("given_order", "ts"), {}, []),
        (("ts", "ts"), {}, ["learner"]),
        (("given_order", "ts"), {"learners": "shared"}, ["learner"]),
    ],
)
def test_what_arms_share_is_said(
    tmp_path: Path, arms: tuple[str, str], changes: dict[str, Any], said: list[str]
) -> None:
    both = {name: {"policy": policy, "share": 0.5} for name, policy in zip(ARMS, arms, strict=True)}
    house = House(tmp_path, arms=both, **changes)
    assert house.readouts.report("ts")["interference"] == said
    for shared in ({"rules": [Rule(frequency=Frequency(9, "5m", "item"))]}, {"fairness": Fairness(Exposure("genre"))}):
        publish_surface(house.state, msgspec.structs.replace(SURFACE, **shared))  # type: ignore[arg-type]  # either
        assert house.readouts.report("ts")["interference"] == [*said, "exposure"]


def test_no_harm_stops_nothing(house: House) -> None:
    for i in range(300):
        name = unit(f"unit-{i}")
        decision = house.decide(name, START + 1 + i / 1000, ARMS[i % 2])
        if i % 4 < 2:
            house.hear(name, decision, START + 2, "hate")
    house.move(START + 70)
    house.drain()
    assert house.trials.get("ts")[0].status == "running"
    assert [one["verdict"] for one in house.readouts.report("ts")["guardrails"]] == ["open"]


def test_the_schedule_ends_it_and_open_windows_are_waited_for(tmp_path: Path) -> None:
    house = House(tmp_path, stop="1970-01-12T13:48:30Z")  # START + 10
    house.decide(unit("ann"), START + 9, "control")
    house.now = START + 11
    house.readouts.turn(house.now)
    assert house.trials.get("ts")[0].status == "stopped"
    house.decide(unit("ann"), START + 30)
    house.move(START + 100)
    house.drain()
    house.move(START + 200)
    house.drain()
    [ann] = house.kept()
    assert (ann.complete, ann.unit.totals["decisions"]) == (True, 2.0)
    assert not house.readouts.turn(house.now)
    assert house.log.end(0)[0] > 0


@pytest.mark.parametrize("again", [False, True])
def test_an_experiment_after_a_gap_begins_with_what_the_log_has(house: House, again: bool) -> None:
    """Nobody reads the log between experiments, so its retention may pass what was settled; but never one's own units."""
    house.decide(unit("ann"), START + 1, "control")
    house.move(START + 100)
    house.drain()
    if not again:
        house.trials.stop("ts", "ann")
        house.move(START + 200)  # its windows close
        house.drain()
    house.move(START + 1000)
    for partition in range(PARTITIONS):
        house.log.trim(partition, house.log.end(partition)[0])
    if again:
        house.drain()
        assert len(house.readouts.report("ts")["missing"]) == PARTITIONS
        return
    house.trials.create(msgspec.json.encode({**DOCUMENT, "experiment": "next"}), "ann")
    house.trials.start("next", "ann")
    for i in range(40):
        name = unit(f"unit-{i}")
        house.decide(name, house.trials.get("next")[0].start + 1, ARMS[i % 2], said={"name": "next"})
    house.move(START + 1200)
    house.drain()
    report = house.readouts.report("next")
    assert (report["missing"], report["complete"]) == ([], {"control": 20, "treatment": 20})


def test_without_experiments_nothing_is_opened(house: House) -> None:
    house.trials.stop("ts", "ann")
    house.state.put([("experiment", "ts", None)])

    def refuse() -> Any:
        raise AssertionError("opened")

    assert not Readouts(house.trials, house.log, refuse, retention_seconds=1.0).turn(house.now)


def test_sessions_are_told_apart(tmp_path: Path) -> None:
    house = House(tmp_path, unit="session")
    ann = unit("ann")
    house.decide(ann, START + 1, "control", session="one")
    house.decide(ann, START + 2, "treatment", session="two")
    house.decide(ann, START + 3, session="one")
    house.decide(ann, START + 4)
    house.move(START + 100)
    house.drain()
    assert sorted((one.unit.arm, one.unit.totals["decisions"]) for one in house.kept()) == [
        ("control", 2.0),
        ("treatment", 1.0),
    ]


def test_folding_is_what_counts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a unit that takes the arm of its last decision would be counted where it was moved to."""

    def moved(experiment: str, one: Any) -> bool:
        return one.decision.experiment is not None

    house.decide(unit("ann"), START + 1)
    house.decide(unit("ann"), START + 2, "control", said={"name": "another"})
    house.move(START + 100)
    house.drain()
    assert house.kept() == []
    monkeypatch.setattr(folding, "_assigned", moved)
    other = House(Path(house.totals._file.path).parent / "other")
    other.decide(unit("ann"), START + 2, "control", said={"name": "another"})
    other.move(START + 100)
    other.drain()
    assert len(other.kept()) == 1
