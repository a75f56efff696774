"""The same looks as `gate`, through what the service runs: releases of the state record, the fold of settled decisions, its verdict.

    release   started, promoted and aborted by `services.promoting`, so that numbers of tests and α are the service's own
    decisions records with their shadows, folded by `services.control.estimating` hour by hour, state and commits as in the service
    verdict   what `GET /v1/releases/{surface}` answers after each hour; `promote` ends the run

Worlds, candidates and hours are those of `gate`. Its settled decisions are given to the fold directly; the first runs go through
the log, the settler and the outbox too, and must come to the same verdicts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from policies.evaluation.logged import design
from policies.releases import Terms
from policies.surface import Objective, PolicySpec, Surface
from policies.types import F64
from services.control.estimating import Estimating
from services.control.readouts import Readouts, Seat
from services.promoting import Promotions
from services.studies.gate import ARMS, HOURLY, HOURS, LIVE, ROW, Hour, Scenario, hour, scenarios
from services.studies.study import Cell, Study
from services.trials import Trials
from streaming.adapters.memory import MemoryCheckpoints, MemoryLog, MemoryState
from streaming.adapters.sqlite_totals import SqliteTotals
from streaming.configuration import Configs, publish_surface
from streaming.events import Decision, Feedback, Shadow, encode
from streaming.experiences import Experience, Row

START, HORIZON = 1_000_000.0, 10.0
UNITS = 499
RUNS, POWER_RUNS = 75, 20  # what six minutes of CPU allow; none of 75 is surely below 5%
CANDIDATE_HOURS = 24  # of each of twenty in a row
CHECKED, CHECKED_HOURS = 2, 48  # runs, and hours of each, through log and settler as well
SURFACE = Surface(
    "home",
    slots=1,
    horizon=HORIZON,
    correctable=30 * 86_400.0,
    objectives={"click": Objective("click", range=(0, 1))},
    policies={"old": PolicySpec("linear_thompson"), "new": PolicySpec("linear_thompson")},
    live="old",
)
TERMS = Terms(objective="click", rate=1.0)


@dataclass
class Kept:
    """Estimates in memory."""

    states: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def load(self, partition: int) -> tuple[int, bytes]:
        return self.states.get(partition, (0, b""))

    def commit(self, partition: int, since: int, number: int, state: bytes) -> None:
        assert self.load(partition)[0] == since  # one writer here
        self.states[partition] = number, state


@dataclass
class Given:
    """Settled decisions as an outbox would number them, in place of it and of its records."""

    settled: list[Experience] = field(default_factory=list)

    def numbers(self) -> tuple[int, int]:
        return 0, len(self.settled)

    def rows(self, number: int, limit: int) -> list[tuple[int, Row]]:
        return [(one.number, one.row) for one in self.settled[number : number + limit]]

    def of(self, rows: Sequence[tuple[int, Row]]) -> list[Experience]:
        return [self.settled[number] for number, _ in rows]


class Service:
    """Stores, releases and the fold of one surface; `now` is the clock of all of them."""

    def __init__(self) -> None:
        self.now, self.state = START, MemoryState()
        publish_surface(self.state, SURFACE)
        self.promotions = Promotions(self.state, Configs(), clock=lambda: self.now)
        self.compiled = self.promotions.compiled("home")
        self.estimating = Estimating(self.promotions, Kept, 1)
        encoder = self.compiled.encoder
        self._vectors = np.zeros(encoder.context_size, "<f4").tobytes(), np.zeros(encoder.item_size, "<f4").tobytes()

    def decision(self, number: int, at: float, arm: int, live: F64, beside: Shadow) -> Decision:
        """As scoring writes it, with the candidate drawn beside."""
        return Decision(
            decision_id=f"d{number}",
            unit=UNIT[number % UNITS],
            at=at,
            surface="home",
            config=self.compiled.hash,
            policy="old",
            bundle="",
            mode="live",
            slate=[f"item-{arm}"],
            slots=[0],
            rows=[arm],
            propensities=[float(live[arm])],
            remaining=[ARMS],
            greedy=[int(live.argmax())],
            context=self._vectors[0],
            shown=self._vectors[1],
            shadows=[beside],
        )

    def verdict(self) -> dict[str, Any]:
        release = self.promotions.get("home")[0].release
        assert release is not None
        return self.estimating.verdict(release)

    def start(self) -> None:
        self.promotions.start("home", "new", "study", terms=TERMS)

    def end(self, verdict: dict[str, Any]) -> bool:
        """Whether the release was promoted; else it is aborted, for the next candidate."""
        if verdict["outcome"] == "promote":
            self.promotions.promote("home", "study", verdict)
            return True
        self.promotions.abort("home", "study", "its time is over")
        return False


UNIT = [hashlib.blake2b(str(i).encode(), digest_size=8).hexdigest() for i in range(UNITS)]


def moments(at: int, played: Hour) -> Iterator[tuple[float, int, bool, Shadow]]:
    """(time, arm, click, what the candidate says of it) of an hour's decisions of one run."""
    arms, rewards, live, candidate = played
    spread, overlap = float(design(live, candidate)), float(np.minimum(live, candidate).sum())
    beside = [Shadow("new", "b", [float(share)], [spread], overlap) for share in candidate]
    for i, (arm, reward) in enumerate(zip(arms[0].tolist(), rewards[0].tolist(), strict=True)):
        yield START + 3600.0 * at + 1.0 + i * 3599.0 / HOURLY, arm, reward > 0, beside[arm]


class Folded(Service):
    """Settled decisions straight into the fold."""

    def __init__(self) -> None:
        super().__init__()
        self.given = Given()
        settler = SimpleNamespace(partition=0)
        self._seat = Seat(cast(Any, settler), cast(Any, self.given), cast(Any, self.given))

    def play(self, at: int, played: Hour) -> None:
        for time, arm, click, beside in moments(at, played):
            number = len(self.given.settled)
            row = Row(
                due=time + HORIZON,
                offset=number,
                objectives=("click",),
                schema=self.compiled.encoder.schema,
                viewed=b"\1",
                present=b"\1",
                rewards=CLICKED if click else SILENT,
                told=(),
            )
            one = self.decision(number, time, arm, played[2], beside)
            self.given.settled.append(Experience(0, number, row, one))
        self.now = START + 3600.0 * (at + 1)
        self.estimating.fold(self._seat)


CLICKED, SILENT = np.ones(1).tobytes(), np.zeros(1).tobytes()


class Settled(Service):
    """The same through log, settler, outbox and the readouts' turns."""

    def __init__(self) -> None:
        super().__init__()
        self._log, outbox, totals = MemoryLog(1, lambda: self.now), MemoryCheckpoints(), SqliteTotals(":memory:")
        trials = Trials(self.state, Configs(), clock=lambda: self.now)
        self._readouts = Readouts(
            trials, self._log, lambda: (totals, lambda _: outbox), retention_seconds=1e9, beside=self.estimating
        )
        self._number = 0

    def play(self, at: int, played: Hour) -> None:
        for time, arm, click, beside in moments(at, played):
            one = self.decision(self._number, time, arm, played[2], beside)
            self._number += 1
            self.now = time
            self._append(one.unit, encode(one))
            if click:
                heard = Feedback(
                    decision_id=one.decision_id, unit=one.unit, at=time, feedback_id="c", kind="click", slot=0
                )
                self._append(one.unit, encode(heard))
        self.now = START + 3600.0 * (at + 1)
        while self._readouts.turn(self.now):
            pass

    def _append(self, unit: str, record: bytes) -> None:
        self._log.append([(unit.encode(), record)])


def promoted(rng: np.random.Generator, scenario: Scenario, hours: int) -> int | None:
    """The hour after which the service promotes the candidate; None: never."""
    service = Folded()
    service.start()
    for at in range(hours):
        service.play(at, hour(rng, scenario, at, 1))
        if service.verdict()["outcome"] == "promote":
            assert service.end(service.verdict())
            return at + 1
    return None


def any_in_a_row(rng: np.random.Generator, scenario: Scenario, candidates: int, hours: int) -> bool:
    """Whether any of so many candidates, one after the other against one live policy, is promoted."""
    service = Folded()
    for number in range(candidates):
        service.start()
        for at in range(number * hours, (number + 1) * hours):
            service.play(at, hour(rng, scenario, at, 1))
            if service.verdict()["outcome"] == "promote":
                return service.end(service.verdict())
        service.end(service.verdict())
    return False


def differing(scenario: Scenario, seed: int, hours: int) -> int:
    """Hours after which the verdict of the whole way is another than that of the fold alone."""
    wrong = 0
    ways: tuple[Folded | Settled, ...] = (Folded(), Settled())
    for way in ways:
        way.start()
    rng = np.random.default_rng([5, seed])
    for at in range(hours):
        played = hour(rng, scenario, at, 1)
        for way in ways:
            way.play(at, played)
        one, other = (way.verdict() for way in ways)
        same = one["outcome"] == other["outcome"] and abs(one["low"] - other["low"]) < 1e-9  # rounding
        wrong += not (same and one["decisions"] == other["decisions"] == (at + 1) * HOURLY)
    return wrong


def exact(hits: int, runs: int) -> tuple[float, float, float]:
    """(share, low, high): Clopper and Pearson's 95% interval."""
    from scipy import stats  # comes with the packages that studies want anyway

    found = stats.binomtest(hits, runs).proportion_ci(0.95, method="exact")
    return hits / runs, float(found.low), float(found.high)


def line(name: str, found: Sequence[Any], counted: Callable[[Any], bool], at_most: bool) -> tuple[Cell, ...]:
    share, low, high = exact(sum(map(counted, found)), len(found))
    return name, len(found), share, low, high, share <= 0.05 if at_most else None


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`seeds`: runs of each scenario that must not be promoted, default 75."""
    runs = seeds or (3 if quick else RUNS)
    hours, row_hours = (24, 4) if quick else (HOURS, CANDIDATE_HOURS)
    study = Study("The promotion gate through the service's own fold")
    by_name = {scenario.name: scenario for scenario in scenarios()}
    equal = by_name["other choices, exactly equal"]
    plan = [
        (equal, runs),
        (by_name["worse by 1%"], runs),
        (by_name["better by 10%"], min(runs, POWER_RUNS)),
        (by_name["better by 30%"], min(runs, POWER_RUNS)),
    ]
    rows: list[tuple[Cell, ...]] = []
    for number, (scenario, count) in enumerate(plan):
        found = [promoted(np.random.default_rng([1, number, i]), scenario, hours) for i in range(count)]
        hit = [at for at in found if at is not None]
        uplift = round(scenario.difference / scenario.live, 6)
        said = line(scenario.name, found, lambda at: at is not None, not scenario.at_least)
        rows.append((*said[:2], uplift, *said[2:], float(np.median(hit)) if hit else None))
    columns = ("runs", "promoted ever", "from", "to", "≤ 5%")
    ess = hours * HOURLY / float(design(LIVE, equal.candidate))
    study.table(
        f"One candidate, looked at hourly for {hours} hours of {HOURLY} decisions (design ESS {ess:.0f} at the end)",
        ("candidate", "runs", "true uplift", *columns[1:], "median hours to promotion"),
        rows,
    )
    twenty = [any_in_a_row(np.random.default_rng([2, i]), equal, ROW, row_hours) for i in range(runs)]
    study.table(
        f"{ROW} exactly equal candidates in a row against one live policy, each looked at hourly for {row_hours} hours",
        ("candidates", "runs", "any promoted", "from", "to", "≤ 5%"),
        [line(equal.name, twenty, bool, True)],
    )
    checked = 12 if quick else CHECKED_HOURS
    wrong = sum(differing(equal, seed, checked) for seed in range(CHECKED))
    study.note(
        f"Through log, settler and outbox the verdict was another than through the fold alone after {wrong} of "
        f"{CHECKED * checked} hours checked."
    )
    study.note(
        "Intervals are Clopper and Pearson's, 95%. A candidate's α is that of its number: the service counts its tests."
    )
    study.note(
        "Seeds, worlds and hours were fixed before the first whole run; the worlds are those of the study `gate`."
    )
    return study
