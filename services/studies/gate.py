"""How often does the promotion gate let the wrong candidate through, and the canary find the right one?

    pays   p(x, a) of 4 arms in 2 contexts, mirrored between contexts so that only the arms' means decide
    live   draws the arms with `LIVE`; candidates differ in which arms they prefer, and so in value
    looks  every hour, over 14 days of 40 decisions an hour; promoted once is promoted

Runs of a scenario are sequences of one state (leading axis), updated hour by hour with the gate's own confidence sequence;
the first runs are also fed to `gate.judge` as logs, and must come to the same verdict.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from policies.evaluation import confidence, gate
from policies.evaluation.logged import design, one_slot
from policies.types import F64, I64
from services.studies.study import Cell, Study, proportion

ARMS, CONTEXTS = 4, 2
LIVE: F64 = np.array([0.4, 0.3, 0.2, 0.1])
PREFERS: F64 = np.array([0.1, 0.2, 0.3, 0.4])  # the same in the other order
BOLD: F64 = np.array([0.05, 0.05, 0.1, 0.8])  # weights up to 8
HOURLY, HOURS = 40, 14 * 24
ROW_HOURS = 3 * 24  # a candidate's time in a row of twenty
ROW = 20
RUNS = 1_000
REWARD = 0.2  # live's mean
CHECKED = 3  # runs fed to the gate as logs as well


@dataclass(frozen=True)
class Scenario:
    """means (4,): mean reward of each arm;   drifts: live's own shares and the rewards' level move from hour to hour."""

    name: str
    candidate: F64
    means: F64
    at_least: bool = False  # whether it ought to be promoted
    drifts: bool = False

    @property
    def live(self) -> float:
        return float(LIVE @ self.means)

    @property
    def difference(self) -> float:
        return float((self.candidate - LIVE) @ self.means)

    def pays(self) -> F64:
        """(2, 4): half of an arm's visitors pay half as often, the other half one and a half times; which is mirrored."""
        tilt = np.array([0.5, 1.5, 0.5, 1.5])
        return np.stack([self.means * tilt, self.means * (2 - tilt)])


def tilted(candidate: F64, uplift: float) -> F64:
    """Arms' means such that live earns REWARD and the candidate (1 + uplift) times it: linear along π − live."""
    direction = candidate - LIVE
    direction = direction - LIVE @ direction  # live's mean stays
    return REWARD * (1 + uplift * direction / ((candidate - LIVE) @ direction))


def scenarios() -> list[Scenario]:
    flat = np.full(ARMS, REWARD)
    return [
        Scenario("the very same policy", LIVE, flat),
        Scenario("other choices, exactly equal", PREFERS, flat),
        Scenario("bold choices, exactly equal", BOLD, flat),
        Scenario("other choices, exactly equal, live and rewards drift", PREFERS, flat, drifts=True),
        Scenario("worse by 1%", PREFERS, tilted(PREFERS, -0.01)),
        Scenario("better by 10%", PREFERS, tilted(PREFERS, 0.10), at_least=True),
        Scenario("better by 30%", PREFERS, tilted(PREFERS, 0.30), at_least=True),
    ]


Hour = tuple[I64, F64, F64, F64]  # arms (runs, n), rewards (runs, n), live's shares (4,), candidate's (4,)


def hour(rng: np.random.Generator, scenario: Scenario, at: int, runs: int) -> Hour:
    live, level = LIVE, 1.0
    if scenario.drifts:
        live = 0.5 * LIVE + 0.5 * rng.dirichlet(np.ones(ARMS))
        level = 1.0 + 0.5 * np.sin(at / 24 * 2 * np.pi)
    contexts = rng.integers(CONTEXTS, size=(runs, HOURLY))
    arms = np.searchsorted(live.cumsum()[:-1], rng.random((runs, HOURLY)), side="right")
    rewards = rng.random((runs, HOURLY)) < level * scenario.pays()[contexts, arms]
    return arms, rewards.astype(np.float64), live, scenario.candidate


def promoted(rng: np.random.Generator, scenario: Scenario, runs: int, hours: int, alpha: float) -> tuple[F64, F64]:
    """(runs,) hour of the promotion, inf where none; and whether the hour-by-hour gate agreed for the runs checked."""
    state = confidence.start((runs,), guess=1.0)
    when = np.full(runs, np.inf)
    settings = gate.Gate((0.0, 1.0), trained_through=-1.0, alpha=alpha)
    judged = [gate.begin(1) for _ in range(min(CHECKED, runs))]
    agreed = np.ones(len(judged))
    for at in range(hours):
        arms, rewards, live, candidate = hour(rng, scenario, at, runs)
        state = confidence.update(state, 1.0 + (candidate / live)[arms] * rewards - rewards)
        low = confidence.lower(state, gate.spent(alpha, 1)) - 1.0
        when = np.where((low > 0) & np.isinf(when), at, when)
        for i in range(len(judged)):
            log = one_slot(
                rewards[i], arms[i], np.tile(live, (HOURLY, 1)), np.tile(candidate, (HOURLY, 1)),
                times=np.arange(HOURLY, dtype=np.float64) + 3600.0 * at,
            )  # fmt: skip
            judged[i] = gate.judge(settings, judged[i], log)
            agreed[i] *= abs(gate.verdict(settings, judged[i]).low - low[i]) < 1e-9
    return when, agreed


def in_a_row(rng: np.random.Generator, scenario: Scenario, runs: int) -> F64:
    """(runs,) whether any of twenty candidates, one after the other, each with its own share of α, was promoted."""
    any_promoted = np.zeros(runs, np.bool_)
    for j in range(1, ROW + 1):
        state = confidence.start((runs,), guess=1.0)
        for at in range(ROW_HOURS):
            arms, rewards, live, candidate = hour(rng, scenario, at, runs)
            state = confidence.update(state, 1.0 + (candidate / live)[arms] * rewards - rewards)
            any_promoted |= confidence.lower(state, gate.spent(0.05, j)) > 1.0
    return any_promoted.astype(np.float64)


def canaries(
    rng: np.random.Generator, canary: gate.Canary, uplift: float, size: int, runs: int, looks: int = 100
) -> tuple[F64, F64]:
    """(runs,) whether promoted, and whether found worse, at any of the looks up to `size` decisions."""
    state = gate.open_canary((runs,))
    promotes, worse = np.zeros(runs, np.bool_), np.zeros(runs, np.bool_)
    for n in np.diff(np.linspace(0, size, looks + 1).astype(int)):
        sent = rng.random((runs, n)) < canary.share
        rewards = (rng.random((runs, n)) < REWARD * (1 + uplift * sent)).astype(np.float64)
        state = gate.compare(canary, state, sent, rewards)
        _, low, high = gate.differences(canary, state)
        promotes |= (low > canary.margin) & ~worse
        worse |= (high < canary.margin) & ~promotes
    return promotes.astype(np.float64), worse.astype(np.float64)


def rated(found: F64, met: Callable[[float, float, float], bool] | None) -> tuple[Cell, ...]:
    share, low, high = proportion(int(found.sum()), len(found))
    return share, low, high, None if met is None else met(share, low, high)


def at_most(share: float, low: float, high: float) -> bool:
    return share <= 0.05


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`seeds`: runs of each scenario, default 1,000."""
    runs = seeds or (50 if quick else RUNS)
    hours = 24 if quick else HOURS
    study = Study("The promotion gate and the canary")
    rows, disagreed = [], 0
    for number, scenario in enumerate(scenarios()):
        when, agreed = promoted(np.random.default_rng([1, number]), scenario, runs, hours, 0.05)
        disagreed += int((agreed == 0).sum())
        found = np.isfinite(when)
        ess = hours * HOURLY / float(design(LIVE, scenario.candidate))
        hit = float(np.median(when[found]) + 1) if found.any() else None
        rows.append(
            (
                scenario.name,
                round(scenario.difference / scenario.live, 6),
                hours * HOURLY,
                round(ess),
                *rated(found.astype(float), None if scenario.at_least else at_most),
                hit,
            )
        )
    columns = ("candidate", "true uplift", "decisions", "design ESS", "promoted ever", "from", "to", "≤ 5%")
    study.table(
        f"Gate, off-policy, looked at hourly for {hours} hours, {runs:,} runs",
        (*columns, "median hours to promotion"),
        rows,
    )
    row = in_a_row(np.random.default_rng(2), scenarios()[1], 10 if quick else runs)
    study.table(
        f"Gate, {ROW} exactly equal candidates in a row, each looked at hourly for {ROW_HOURS} hours",
        ("runs", "any promoted", "from", "to", "≤ 5%"),
        [(len(row), *rated(row, at_most))],
    )
    study.table(
        f"Canary, on-policy, looked at 100 times, live earns {REWARD}, {runs:,} runs",
        (
            "share",
            "candidate",
            "decisions",
            "promoted",
            "from",
            "to",
            "target",
            "met",
            "found worse",
            f"decisions for the {ROW}th candidate",
        ),
        canary_rows(runs, quick),
    )
    study.note(f"The hour-by-hour gate came to another bound in {disagreed} of {CHECKED * len(rows)} runs checked.")
    study.note(
        "Off-policy promotion of better candidates has no target: it is shown beside, for the decisions that were logged. "
        "Where it waits, the canary's stated number of decisions is what decides."
    )
    return study


def canary_rows(runs: int, quick: bool) -> list[tuple[Cell, ...]]:
    """The size is stated for 10% by `canary_size`, before anything is drawn; with `quick` a twentieth of it is shown."""
    rows: list[tuple[Cell, ...]] = []
    truths = ((0.1, "better by 10%"), (0.0, "exactly equal"), (-0.01, "worse by 1%"), (-0.1, "worse by 10%"))
    for share in (0.5, 0.1):
        canary = gate.Canary(share, (0.0, 1.0))
        stated, late = (
            gate.canary_size(0.1 * REWARD, REWARD * (1 - REWARD), each)
            for each in (canary, replace(canary, candidate=ROW))
        )
        assert stated is not None
        size = stated // 20 if quick else stated
        for number, (uplift, name) in enumerate(truths):
            rng = np.random.default_rng([3, number, round(10 * share)])
            promotes, worse = canaries(rng, canary, uplift, size, runs)
            found, low, high = proportion(int(promotes.sum()), runs)
            target, met = ("≥ 80%", found >= 0.8) if uplift > 0 else ("≤ 5%", found <= 0.05)
            rows.append((share, name, size, found, low, high, target, met, float(worse.mean()), late))
    return rows
