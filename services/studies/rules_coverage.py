"""`slatewise study rules-coverage`: do off-policy intervals hold on logs that were drawn with every rule on? (issue: rules)

Logs come from `rules_world` through the service's own query and draw, with filter, seen items, caps, quota, spacing, diversity,
prefix and exposure fairness, exploration cap and pins on together; exposure boosts move with what the log delivered. Targets
are other configurations of the same surface.

Estimand   one-step value at the logged counters: (1/N) Σ_t E_x v(x, boosts_t), what the other configuration would have earned
           at each decision, had everything before happened as logged. Counted out exactly for each log. What the other
           configuration would have made of the counters is not in the log
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.evaluation.anytime import martingale
from policies.evaluation.diagnostics import design_ess
from policies.evaluation.estimators import ESTIMATORS
from policies.evaluation.intervals import Interval, delta
from policies.evaluation.logged import Logged, checked
from policies.evaluation.logged import design as second_moment
from policies.evaluation.models import with_model
from policies.reranking.exposure import Owed, boosts
from policies.types import F64
from services.studies.ope_coverage import Tally
from services.studies.rules_world import GROUPS, SLOTS, Chances, Configuration, RulesWorld
from services.studies.study import Cell, Study, proportion

RUNS, SEED = 500, 7
DECISIONS, EARLY, SYNCS = 1_800, 150, 6  # of a log; of its beginning, for small samples; readings of counters in it
WANTED = 500.0  # design effective sample size from which asymptotic intervals are to hold
ASYMPTOTIC = ("slate_ips", "rips", "cascade_dr")
LOOSER = "looser"  # a target that the log does not support, to be refused


@dataclass(frozen=True)
class Target:
    configuration: Configuration
    differs: str


def targets(world: RulesWorld) -> tuple[Configuration, list[Target]]:
    """(what is logged, what is asked about)."""
    model = world.model(SEED, 0.5, 1.0)
    made = world.configuration
    exploring = {"exploration": {"max_share": 0.6}}
    rules: list[dict[str, Any]] = [
        {"available": True},
        {"filter": "price < 7"},
        {"seen": {"window": "1d"}},
        {"cap": 1, "by": "creator"},
        {"quota": {"min": 1, "by": "genre", "value": "jazz"}},
        {"spacing": 3, "by": "creator"},
    ]
    tighter = {"rules": rules}
    more = {"diversity": {"mmr": 1.2, "over": "look", "coverage": 0.8, "by": "genre"}}
    owing = {
        "fairness": {
            "exposure": {"by": "owner", "gain": 0.6, "most": 2.0, "window": "10m"},
            "prefix": {"by": "genre", "min": {"rock": 0.3}},
        }
    }
    other = world.model(SEED, 0.75, 0.8)
    return made("logged", {}, model), [
        Target(made("diversity", more, model), "diversity weights four times as large"),
        Target(made("tighter", {**tighter, **exploring}, model), "cap 2 → 1, spacing 2 → 3, exploration cap .8 → .6"),
        Target(made("model", {"diversity": {}}, other), "another model, and no diversity"),
        Target(made("gain", owing, model), "exposure gain .3 → .6, at the logged counters"),
        Target(
            made("all", {**tighter, **exploring, **more, **owing}, other), "all of these but `diversity: {}` together"
        ),
    ]


@dataclass(frozen=True)
class Log:
    """One log with every target's view of it; values (targets, N): of each decision's moment, so that a part of it has one too."""

    logged: list[Logged]
    values: F64


def played(world: RulesWorld, behaviour: Configuration, several: list[Target], n: int, rng: np.random.Generator) -> Log:
    """N decisions, the counters read every N / SYNCS."""
    each, order = n // SYNCS, np.arange(SLOTS)
    cells = rng.integers(len(world.cells), size=n)
    slates, full = np.empty((n, SLOTS), np.int64), np.empty((n, SLOTS, len(world.genres)))
    rewards, laws_at = np.zeros((n, SLOTS)), np.empty((len(several), *full.shape))
    values = np.zeros((len(several), n))
    state = Owed(np.zeros(len(GROUPS)))
    for start in range(0, n, each):
        acts = behaviour.acts(boosts(behaviour.law, state))
        part = np.arange(start, start + each)
        for i in part.tolist():
            slate = behaviour.draw(cells[i], acts[cells[i]], rng.random(SLOTS))
            slates[i], full[i] = slate.items, slate.distributions
        for j, one in enumerate(several):
            laws = one.configuration.chances(boosts(one.configuration.law, state))
            values[j, part] = world.value(laws)
            for cell, law in enumerate(laws):
                mine = part[cells[part] == cell]
                laws_at[j, mine] = law.at(slates[mine])
        for cell in range(len(world.cells)):
            mine = part[cells[part] == cell]
            rewards[mine] = world.clicks(cell, slates[mine], rng)
        state = behaviour.owed(state, cells[part], full[part])
    features = _features(world)[cells]
    rows = np.arange(n)
    drawn = (rows[:, None], order, slates)
    common: dict[str, Any] = {
        "rewards": rewards,
        "behaviour": full[drawn],
        "present": np.ones((n, SLOTS), bool),
        "units": rows,
        "times": rows.astype(np.float64),
        "features": features[drawn],
    }
    logged = [
        Logged(
            **common,
            target=law[drawn],
            design=second_moment(full, law),
            expected_features=np.einsum("ikn,iknd->ikd", law, features),
        )
        for law in np.clip(laws_at, 0.0, 1.0)
    ]
    return Log([checked(one) for one in logged], values)


def _features(world: RulesWorld) -> F64:
    """(cells, K, n, d): item, slot and context apart, so which item pays in which context is not told."""
    cells, n = world.pays.shape
    found = np.zeros((cells, SLOTS, n, n + SLOTS + cells))
    found[..., :n] = np.eye(n)
    found[..., n : n + SLOTS] = np.eye(SLOTS)[:, None]
    found[..., n + SLOTS :] = np.eye(cells)[:, None, None]
    return found


def intervals(logged: Logged) -> dict[str, Interval]:
    modelled = with_model(logged)
    found = {f"{name}, delta": delta(ESTIMATORS[name](modelled)) for name in ASYMPTOTIC}
    found["empirical Bernstein"] = martingale(logged, (0.0, 1.0), "prefix", method="empirical_bernstein")
    found["betting"] = martingale(logged, (0.0, 1.0), "prefix", method="betting")
    return found


def outside(behaviour: list[Chances], target: list[Chances]) -> float:
    """Share of the target's slates that the log's policy never draws, mean over the cells."""
    return float(np.mean([t.reached[-1][b.reached[-1] == 0].sum() for b, t in zip(behaviour, target, strict=True)]))


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`seeds`: runs, default 500."""
    runs = seeds or (10 if quick else RUNS)
    world = RulesWorld(SEED)
    behaviour, several = targets(world)
    tallies: dict[tuple[int, int, str], Tally] = defaultdict(Tally)
    design: dict[tuple[int, int], list[float]] = defaultdict(list)
    value: dict[int, list[float]] = defaultdict(list)
    earned: list[float] = []
    for number in range(runs):
        log = played(world, behaviour, several, DECISIONS, np.random.default_rng([SEED, 1_000 + number]))
        earned.append(float(log.logged[0].totals.mean()))
        for j, logged in enumerate(log.logged):
            value[j].append(float(log.values[j].mean()))
            for n in (EARLY, DECISIONS):
                part = logged.rows(slice(n))
                design[j, n].append(design_ess(part, "slate"))
                for name, found in intervals(part).items():
                    tallies[j, n, name].add(found, float(log.values[j, :n].mean()))
    study = Study("Coverage of off-policy intervals with every rule on")
    asymptotic: list[list[Cell]] = []
    finite: list[list[Cell]] = []
    for j, one in enumerate(several):
        for n in (EARLY, DECISIONS):
            ess = float(np.median(design[j, n]))
            for name in tallies_of(tallies, j, n):
                tally = tallies[j, n, name]
                share, low, high = proportion(tally.covered, tally.runs)
                line: list[Cell] = [one.configuration.name, n, ess, name, float(np.mean(value[j])), share, low, high]
                line.append(tally.width / tally.runs)
                if "delta" in name:
                    asymptotic.append([*line, 0.93 <= share <= 0.97 if ess >= WANTED else None])
                else:
                    finite.append([*line, high >= 0.95])
    columns = ["target", "decisions", "design ESS", "interval", "value", "coverage", "from", "to", "mean width"]
    study.table(f"Asymptotic 95% intervals, {runs} logs", [*columns, "93-97%"], asymptotic)
    study.table(f"Intervals that hold at every size, {runs} logs", [*columns, "≥ 95%"], finite)
    _notes(study, world, behaviour, several, earned, asymptotic, finite)
    return study


def tallies_of(tallies: dict[tuple[int, int, str], Tally], target: int, n: int) -> list[str]:
    return [name for j, size, name in tallies if (j, size) == (target, n)]


def _notes(
    study: Study,
    world: RulesWorld,
    behaviour: Configuration,
    several: list[Target],
    earned: list[float],
    asymptotic: list[list[Cell]],
    finite: list[list[Cell]],
) -> None:
    nothing = np.zeros(len(GROUPS))
    logged = behaviour.chances(nothing)
    looser = world.configuration(LOOSER, {"rules": [{"filter": "price < 7"}]}, behaviour.model)
    held = [bool(row[-1]) for row in asymptotic if row[-1] is not None]
    study.note(
        f"Asymptotic intervals at a design ESS of {WANTED:g} and more: {sum(held)} of {len(held)} within 93-97%."
    )
    for row in asymptotic:
        if row[-1] is False:
            study.note(f"Missed: {row[0]}, {row[3]}: {row[5]:.1%}.")
    worst = min(float(row[5] or 0) for row in finite)
    study.note(f"Finite-sample intervals: the least coverage of any is {worst:.1%}.")
    study.note(
        f"Logged: everything on, {np.mean(earned):.4f} clicks a decision over all logs (exact without boosts: {world.value(logged):.4f}). "
        + " ".join(f"{one.configuration.name}: {one.differs}." for one in several)
    )
    study.note(
        "The value is the one-step value at the logged counters, counted out for each log: boosts of exposure are those that the "
        "logged counters call for, under the target's own law. What a target would have made of the counters, and of what people "
        "have seen, is not in the log."
    )
    study.note(
        "Design ESS: of whole slates, median over logs. The smaller size is the beginning of the same logs. Betting takes the value to be the "
        "same all along, which boosts that move make only nearly so; empirical Bernstein does not."
    )
    support = [outside(logged, one.configuration.chances(nothing)) for one in several]
    away = outside(logged, looser.chances(nothing))
    study.note(
        f"Support: of the slates that targets draw, the log's configuration never draws {max(support):.1%} at most. Of a target without seen "
        f"items, cap, quota and spacing it would be {away:.1%}: what those earn is not in the log, so it is no target here, and `slatewise "
        "evaluate` refuses such."
    )
    study.note("World, configurations, sizes and seeds were fixed before the first whole run.")
