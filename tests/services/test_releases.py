"""Releases judged by what has settled: each decision folded once, the gate, the canary, and what ends a release by itself."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from policies.errors import Rejected, Unavailable
from policies.experiments.assignment import choose, split_of
from policies.experiments.document import Guardrail
from policies.releases import Terms
from policies.surface import Objective, PolicySpec, Surface
from services.audit import Audit
from services.control.canaries import Canaries, Guard
from services.control.estimating import Estimating, refusal
from services.control.readouts import Readouts
from services.exposition import Exposition
from services.promoting import Promotions
from services.telemetry import Telemetry
from services.trials import Trials
from streaming import estimates as folding
from streaming.adapters.memory import MemoryCheckpoints, MemoryLog, MemoryState
from streaming.adapters.sqlite_estimates import SqliteEstimates
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision, Feedback, Shadow, Shortlisted, encode

START, WINDOW, HORIZON, PARTITIONS = 1_000_100.0, 50.0, 10.0, 2
SURFACE = Surface(
    "home",
    slots=1,
    horizon=HORIZON,
    correctable=1000.0,
    objectives={"click": Objective("click", range=(0, 1)), "hate": Objective("hate", better="lower", range=(0, 1))},
    policies={"old": PolicySpec("linear_thompson"), "new": PolicySpec("linear_thompson")},
    live="old",
)
TERMS = Terms(objective="click", rate=1.0, share=0.5, window=WINDOW, planned=400)


class House:
    """Stores that outlive what is folded over them, and a log whose times are said. Two items, shown by a fair coin."""

    def __init__(self, folder: Path) -> None:
        self.now, self.number = START, 0
        self.state, self.log = MemoryState(), MemoryLog(PARTITIONS, lambda: self.now)
        publish_surface(self.state, SURFACE)
        self.promotions = Promotions(self.state, Configs(), clock=lambda: self.now)
        self.trials = Trials(self.state, Configs(), clock=lambda: self.now)
        self.totals, self.estimates = (
            SqliteTotals(folder / "units.sqlite"),
            SqliteEstimates(folder / "estimates.sqlite"),
        )
        self.outboxes = [MemoryCheckpoints() for _ in range(PARTITIONS)]
        self.compiled = self.promotions.compiled("home")
        self.open(self.estimates)

    def open(self, estimates: Any) -> None:
        """Anew, as after a restart."""
        self.telemetry = Telemetry()
        self.estimating = Estimating(self.promotions, lambda: estimates, PARTITIONS, telemetry=self.telemetry)
        opened = (self.totals, self.outboxes.__getitem__)
        self.readouts = Readouts(
            self.trials,
            self.log,
            lambda: opened,
            retention_seconds=86_400.0,
            telemetry=self.telemetry,
            beside=self.estimating,
            canaries=Canaries(self.promotions, self.telemetry),
        )

    def decide(self, unit: str, at: float, row: int = 0, own: float | None = None, **more: Any) -> str:
        """`own`: the candidate's probability of item 0."""
        self.number += 1
        pi = None if own is None else (own, 1 - own)
        beside = [] if pi is None else [Shadow("new", "b", [pi[row]], [(pi[0] ** 2 + pi[1] ** 2) / 0.5], 0.5 + min(pi))]
        said: dict[str, Any] = {"policy": "old", "mode": "live", **more}
        one = Decision(
            decision_id=f"d{self.number}",
            unit=unit,
            at=at,
            surface="home",
            config=self.compiled.hash,
            bundle="",
            slate=["ab"[row]],
            slots=[0],
            rows=[row],
            propensities=[0.5],
            remaining=[2],
            greedy=[0],
            context=np.zeros(self.compiled.encoder.context_size, "<f4").tobytes(),
            shown=np.zeros((1, self.compiled.encoder.item_size), "<f4").tobytes(),
            shadows=beside,
            **said,
        )
        self.now = at + 0.01
        self.log.append([(unit.encode(), encode(one))])
        return one.decision_id

    def hear(self, unit: str, decision: str, at: float, kind: str = "click") -> None:
        self.number += 1
        self.now = at + 0.01
        one = Feedback(decision_id=decision, unit=unit, at=at, feedback_id=f"f{self.number}", kind=kind, slot=0)
        self.log.append([(unit.encode(), encode(one))])

    def settle(self, to: float) -> None:
        """Past the horizon of everything before `to`."""
        for name in range(16):
            self.decide(unit(f"clock-{name}"), to, mode="fallback", policy="given_order")
        self.drain()

    def drain(self) -> None:
        while self.readouts.turn(self.now):
            pass

    @property
    def stage(self) -> str:
        release = self.promotions.get("home")[0].release
        assert release is not None
        return release.stage

    def verdict(self) -> dict[str, Any]:
        release = self.promotions.get("home")[0].release
        assert release is not None
        return self.estimating.verdict(release)


def unit(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def story(house: House, seed: int, n: int, clicks: tuple[float, float], own: float) -> Iterator[Callable[[], None]]:
    """n decisions by a fair coin over two items that are clicked so often; the candidate would show item 0 with `own`."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        row, dice, who = int(rng.integers(2)), rng.random(), unit(f"unit-{rng.integers(50)}")

        def step(i: int = i, row: int = row, dice: float = dice, who: str = who) -> None:
            at = START + 1 + i / 100
            decision = house.decide(who, at, row, own)
            if dice < clicks[row]:
                house.hear(who, decision, at + 0.001)

        yield step


@pytest.mark.parametrize(
    ("clicks", "own", "outcome"),
    [
        ((0.8, 0.2), 0.9, "promote"),  # .74 against .5
        ((0.8, 0.2), 0.1, "wait"),  # worse: the gate has only a lower side
        ((0.5, 0.5), 0.9, "wait"),  # equal
    ],
)
def test_the_gate_lets_in_what_is_better(house: House, clicks: tuple[float, float], own: float, outcome: str) -> None:
    house.promotions.start("home", "new", "ann", terms=TERMS)
    for step in story(house, 3, 600, clicks, own):
        step()
    house.settle(START + 100)
    found = house.verdict()
    truth = own * clicks[0] + (1 - own) * clicks[1] - sum(clicks) / 2
    assert (found["outcome"], found["decisions"]) == (outcome, 600)
    assert found["design_ess"] == pytest.approx(600 / ((own**2 + (1 - own) ** 2) / 0.5))
    assert found["estimate"] == pytest.approx(truth, abs=0.13)  # four standard errors of (w − 1) r
    assert found["low"] < truth
    assert found["agreement"] == pytest.approx(0.6)
    assert found["estimates"].startswith("the average over the logged period")
    if outcome == "promote":
        house.promotions.promote("home", "ann", found)
        assert house.stage == "live"
        return
    with pytest.raises(Rejected, match="is not promoted"):
        house.promotions.promote("home", "ann", found)
    assert house.stage == "apprentice"
    house.promotions.promote("home", "ann", found, forced=True, reason="a fire")
    [last, *_] = Audit(house.state).changes("release/home")
    assert (last.who, last.action, last.after["release"]["forced"]) == ("ann", "promote", True)
    assert last.after["release"]["verdict"]["outcome"] == outcome


def test_too_little_is_insufficient_and_offers_a_canary(house: House) -> None:
    house.promotions.start("home", "new", "ann", terms=TERMS)
    for step in story(house, 1, 100, (0.9, 0.0), 0.95):
        step()
    house.settle(START + 100)
    found = house.verdict()
    assert (found["outcome"], found["offers"]) == ("insufficient", "canary")
    release = house.promotions.get("home")[0].release
    assert release is not None
    assert "a canary would" in str(refusal(release, found))


def test_what_came_before_the_release_does_not_judge_it(house: House) -> None:
    for step in story(house, 1, 50, (0.9, 0.0), 0.95):
        step()
    house.now = START + 2
    house.promotions.start("home", "new", "ann", terms=TERMS)
    house.settle(START + 100)
    assert house.verdict()["decisions"] == 0


class Dying:
    """Estimates that now and then fail before, or after, they have committed."""

    def __init__(self, inner: SqliteEstimates, rng: np.random.Generator) -> None:
        self._inner, self._rng = inner, rng

    def load(self, partition: int) -> tuple[int, bytes]:
        return self._inner.load(partition)

    def commit(self, *said: Any) -> None:
        dice = self._rng.random()
        if dice < 0.2:
            raise Unavailable("before")
        self._inner.commit(*said)
        if dice > 0.8:
            raise Unavailable("after")


def states(house: House) -> list[bytes]:
    return [house.estimates.load(partition)[1] for partition in range(PARTITIONS)]


def died(folder: Path, seed: int) -> list[bytes]:
    folder.mkdir()
    house, rng = House(folder), np.random.default_rng(seed)
    dying, deaths = Dying(house.estimates, rng), 0
    house.open(dying)
    house.promotions.start("home", "new", "ann", terms=TERMS)
    for step in story(house, 7, 150, (0.6, 0.3), 0.7):
        step()
        if rng.random() < 0.2:
            try:
                house.readouts.turn(house.now)
            except Unavailable:
                deaths += 1
                if rng.random() < 0.5:
                    house.open(dying)
    for _ in range(60):
        try:
            house.settle(START + 100)
            break
        except Unavailable:
            deaths += 1
    house.open(house.estimates)
    house.settle(START + 100)
    assert deaths > 0
    return states(house)


def numbers(states: list[bytes]) -> list[float]:
    """Every number of the states, in their order: pieces of a batch may round otherwise."""
    found: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for _, inner in sorted(value.items(), key=str):
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, int | float):
            found.append(float(value))

    for state in states:
        walk(msgspec.msgpack.decode(state, strict=False) if state else {})
    return found


def test_values_are_the_same_through_any_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "straight").mkdir()
    straight = House(tmp_path / "straight")
    straight.promotions.start("home", "new", "ann", terms=TERMS)
    for step in story(straight, 7, 150, (0.6, 0.3), 0.7):
        step()
    straight.settle(START + 100)
    straight.settle(START + 100)
    expected = numbers(states(straight))
    assert len(expected) > 100
    for seed in range(2):
        assert numbers(died(tmp_path / str(seed), seed)) == pytest.approx(expected, rel=1e-9)

    def twice(self: SqliteEstimates, partition: int, since: int, number: int, state: bytes) -> None:
        with (
            self._file.write() as db
        ):  # the fault: whoever has folded meanwhile is overwritten, and what failed is kept
            db.execute("INSERT OR REPLACE INTO folded VALUES (?, ?, ?)", (partition, max(0, number - 1), state))

    monkeypatch.setattr(SqliteEstimates, "commit", twice)
    (tmp_path / "fault").mkdir()
    fault = House(tmp_path / "fault")
    fault.promotions.start("home", "new", "ann", terms=TERMS)
    for step in story(fault, 7, 150, (0.6, 0.3), 0.7):
        step()
        fault.open(fault.estimates)
        fault.readouts.turn(fault.now)
    fault.readouts.turn(START + 100)
    fault.open(fault.estimates)
    fault.readouts.turn(START + 101)
    assert fault.estimating.value("home")["decisions"] != straight.estimating.value("home")["decisions"]


def test_value_says_what_is_learned_and_what_exploration_costs(house: House) -> None:
    """By hand: items are clicked .8 and .2; the coin earns .5, uniform too, greedy (item 0) .8."""
    for step in story(house, 5, 800, (0.8, 0.2), 0.9):
        step()
    house.settle(START + 100)
    found = house.estimating.value("home")
    click = {policy: one["click"] for policy, one in found["policies"].items()}
    assert {name: one["decisions"] for name, one in click.items()} == dict.fromkeys(
        ("old", "served", "uniform", "greedy", "new"), 800.0
    )
    truth = {"old": 0.5, "served": 0.5, "uniform": 0.5, "greedy": 0.8, "new": 0.74}
    for policy, value in truth.items():
        assert click[policy]["estimate"] == pytest.approx(value, abs=0.13)
        assert click[policy]["low"] < value < click[policy]["high"]
        assert click[policy]["low"] > 0.25
    assert click["uniform"] == click["served"]  # a fair coin is uniform: every weight is 1
    assert found["exploration_cost"] == pytest.approx(0.3, abs=0.13)
    assert found["learned"] == 0.0
    assert [one["decisions"] for one in click["old"]["hours"]] == [800.0]
    told = Exposition.parse(house.telemetry.text().decode())
    assert told.by("ope_value", "bound", surface="home", policy="greedy")["estimate"] == click["greedy"]["estimate"]


def test_a_decision_that_lacks_what_is_needed_is_counted(house: House) -> None:
    house.decide(unit("ann"), START + 1)
    partition = next(p for p in range(PARTITIONS) if house.log.end(p)[0])
    stored = msgspec.json.decode(house.log.read(partition, 0, 1)[0].value)
    for i, remaining in enumerate(([], [0])):
        stored |= {"decision_id": f"foreign-{i}", "remaining": remaining}
        house.log.append([(unit("ann").encode(), msgspec.json.encode(stored))])
    house.settle(START + 100)
    found = house.estimating.value("home")
    assert (found["decisions"], found["unusable"]) == (1, 2)


def test_another_range_is_another_scale(house: House) -> None:
    """What was summed in tenths is not read as wholes; the old range finds its sums again."""
    for step in story(house, 5, 40, (1.0, 1.0), 0.9):
        step()
    house.settle(START + 100)
    wide = msgspec.structs.replace(SURFACE, objectives={"click": Objective("click", range=(0, 10))})
    publish_surface(house.state, wide)
    assert house.estimating.value("home")["policies"] == {}
    publish_surface(house.state, SURFACE)
    assert house.estimating.value("home")["policies"]["served"]["click"]["estimate"] == 1.0


def test_uniform_is_not_guessed_from_a_shortlist(house: House) -> None:
    house.decide(unit("ann"), START + 1)
    house.decide(unit("ann"), START + 2, shortlist=Shortlisted(5_000, 1, 1, [1.0]))
    house.settle(START + 100)
    found = {policy: one["click"]["decisions"] for policy, one in house.estimating.value("home")["policies"].items()}
    assert found == {"old": 2.0, "served": 2.0, "uniform": 1.0, "greedy": 2.0}


def canary_story(house: House, n: int, clicks: dict[str, float], hates: dict[str, float], seed: int = 2) -> None:
    """n units of the canary that runs, one decision each, in the arm that scoring would give them."""
    canary = house.promotions.configs.canary("home")
    assert canary is not None
    split, rng = split_of(canary), np.random.default_rng(seed)
    for i in range(n):
        name, at = unit(f"canary-{i}"), house_time(i)
        choice = choose([split], name, None, {}, at)
        assert choice is not None
        said = {"name": choice.experiment, "arm": choice.arm, "allocation": "0"}
        policy = "new" if choice.arm == "candidate" else "old"
        decision = house.decide(name, at, experiment=said, policy=policy)
        for kind, rates in (("click", clicks), ("hate", hates)):
            if rng.random() < rates[choice.arm]:
                house.hear(name, decision, at + 0.001, kind)


def house_time(i: int) -> float:
    return START + 2 + i / 100


@pytest.mark.parametrize(
    ("clicks", "who", "stage"),
    [
        ({"candidate": 0.9, "live": 0.3}, "canary", "live"),
        ({"candidate": 0.3, "live": 0.9}, "canary", "aborted"),
        ({"candidate": 0.5, "live": 0.5}, None, "canary"),
    ],
)
def test_a_canary_ends_as_its_units_say(house: House, clicks: dict[str, float], who: str | None, stage: str) -> None:
    house.promotions.start("home", "new", "ann", terms=TERMS)
    house.promotions.canary("home", "ann")
    canary_story(house, 500, clicks, {"candidate": 0.0, "live": 0.0})
    house.settle(START + 100)
    house.settle(START + 200)
    assert house.stage == stage
    if who is None:
        release = house.promotions.get("home")[0].release
        assert release is not None
        report = house.readouts.canary(release)
        assert report is not None
        assert (report["complete"], report["verdict"].decisions, report["verdict"].outcome) == (500, 500, "wait")
        return
    [last, *_] = Audit(house.state).changes("release/home")
    assert last.who == who
    verdict = last.after["release"]["verdict"]
    assert (verdict["decisions"], verdict["outcome"]) == (500, "promote" if stage == "live" else "worse")
    assert verdict["estimates"].startswith("the average over the canary's units")


def test_a_guardrail_ends_a_canary_by_itself(house: House) -> None:
    terms = msgspec.structs.replace(TERMS, guardrails={"hate": Guardrail(-0.1)})
    house.promotions.start("home", "new", "ann", terms=terms)
    house.promotions.canary("home", "ann")
    same = {"candidate": 0.5, "live": 0.5}
    canary_story(house, 400, same, {"candidate": 0.6, "live": 0.05})
    house.settle(START + 100)
    house.settle(START + 200)
    [last, *_] = Audit(house.state).changes("release/home")
    assert (last.who, last.action, house.stage) == ("guardrail", "abort", "aborted")
    assert last.after["release"]["reason"].startswith("guardrail hate: candidate has -0.")
    assert house.promotions.configs.live(house.promotions.compiled("home")) == "old"
    told = Exposition.parse(house.telemetry.text().decode())
    assert told.total("release_steps_total", surface="home", step="abort", who="guardrail") == 1.0


@pytest.mark.parametrize(("stage", "after"), [("canary", "aborted"), ("live", "aborted")])
@pytest.mark.parametrize("trouble", ["fallback", "refused", "busy"])
def test_bundle_trouble_ends_it(house: House, stage: str, after: str, trouble: str) -> None:
    refused = [0.0]
    guard = Guard(house.promotions, house.log, lambda surface, policy: refused[0], clock=lambda: house.now)
    house.promotions.start("home", "new", "ann", terms=TERMS)
    house.promotions.canary("home", "ann")
    if stage == "live":
        house.promotions.promote("home", "ann", None, forced=True, reason="a test")
    guard.turn()
    canary = house.promotions.configs.canary("home")
    said = {} if canary is None else {"experiment": {"name": canary.document.experiment, "arm": "candidate"}}
    reason = "overload" if trouble == "busy" else "error"
    for i in range(60):
        fell = (
            {"mode": "fallback", "reason": reason, "policy": "given_order"}
            if i % 5 == 0 and trouble != "refused"
            else {}
        )
        house.decide(unit(f"u{i}"), house.now + 0.01, **{"policy": "new", **fell, **said})
    guard.turn()
    if trouble == "refused":
        assert house.stage == stage
        refused[0] = 2.0
        guard.turn()
    if trouble == "busy":  # a service in a hurry is no fault of the candidate
        assert house.stage == stage
        return
    assert house.stage == after
    released, _ = house.promotions.get("home")
    assert house.promotions.configs.live(house.promotions.compiled("home")) == "old"
    [last, *_] = Audit(house.state).changes("release/home")
    assert (last.who, last.action) == ("bundle", "abort" if stage == "canary" else "rollback")
    assert released.release is not None
    assert ("12 of its last 60" if trouble == "fallback" else "refused 2") in released.release.reason


def test_steps_compare_and_name_what_is_wrong(house: House) -> None:
    _, version = house.promotions.get("home")
    assert version == 0
    house.promotions.start("home", "new", "ann", expect=0)
    with pytest.raises(Rejected, match="If-Match") as stale:
        house.promotions.canary("home", "ann", expect=0)
    assert stale.value.status == 412
    for objectives in ({"click": Objective("click")}, {"hate": Objective("hate", range=(0, 1))}):
        with pytest.raises(Rejected, match="is judged by 'click'"):
            publish_surface(house.state, msgspec.structs.replace(SURFACE, objectives=objectives))
    house.promotions.abort("home", "ann")
    publish_surface(house.state, msgspec.structs.replace(SURFACE, objectives={"click": Objective("click")}))
    with pytest.raises(Rejected, match="needs a `range`"):
        house.promotions.start("home", "new", "ann")
    for candidate, baseline, at in (("nobody", None, "$.candidate"), ("new", "nobody", "$.baseline")):
        with pytest.raises(Rejected) as unknown:
            house.promotions.start("home", candidate, "ann", baseline=baseline)
        assert unknown.value.at == at


def test_an_apprentice_learns_beside_its_baseline(house: House) -> None:
    """The policy the document calls live may be the apprentice: its baseline is served until it is promoted."""
    house.promotions.start("home", "old", "ann", baseline="given_order", terms=TERMS)
    live = house.promotions.configs.live
    assert live(house.promotions.compiled("home")) == "given_order"
    house.promotions.abort("home", "ann")
    assert live(house.promotions.compiled("home")) == "given_order"
    house.promotions.rollback("home", "ann")
    assert live(house.promotions.compiled("home")) == "old"


def test_folding_needs_what_the_decision_says() -> None:
    assert folding.read(b"") == {}
    with pytest.raises(ValueError, match="nothing to pool"):
        folding.pooled_value([], 1.0, 0.0)
