"""Experiments judged in worlds where the truth is known: false alarms under constant looking, power, sample ratio, CUPED,
assignment and its movement.

The A/A world: units return. Each has a click rate of its own, Beta(.5, 4.5), and some 40 visits in the window of a week from
its first exposure, which make its total. Units arrive all the time, and the readout is looked at every hour. All of it runs
through `policies.experiments`, the code that serves.
"""

from pathlib import Path
from statistics import NormalDist

import numpy as np
from scipy import stats

from policies.experiments.assignment import BUCKETS, NOBODY, allocated, bucket, empty
from policies.experiments.effects import Effect, adjusted, effect
from policies.experiments.fixed import fixed
from policies.experiments.mismatch import ALPHA as SRM_ALPHA
from policies.experiments.mismatch import log_factor
from policies.experiments.power import detectable, units_needed
from policies.experiments.sequential import LEAST, sequential
from policies.types import F64, I64
from services.studies.study import Cell, Study

ALPHA, POWER = 0.05, 0.8
RUNS, QUICK = 1_000, 40
DAYS, WINDOW_HOURS = 28, 7 * 24
UNITS = 4_000  # that arrive over the run of one world
VISITS = 40  # of a unit in its window, on average, and in the week before
UPLIFT = 0.2  # of the worlds that show CUPED
LOOKS, LARGE_UNITS = 100, 20_000  # on the way to the planned units; above it a quarter of the worlds


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`seeds`: worlds of each kind."""
    study = Study("Experiments: false alarms, power, sample ratio, CUPED, assignment")
    runs = seeds or (QUICK if quick else RUNS)
    _alarms(study, runs)
    _power(study, runs)
    _ratio(study, max(runs // 2, 10))
    _cuped(study, runs)
    _assignment(study)
    _movement(study)
    study.note(
        f"A/A worlds: {UNITS:,} units arrive evenly until a week before the end of {DAYS} days, click rate of each Beta(.5, 4.5),"
        f" visits of each 1 + Poisson({VISITS - 1}) in the week from its first; a unit's observation is its clicks in that week,"
        f" entering when it is over; looked at every hour; {LEAST} units an arm before anything is said. Nothing is tuned on"
        " these worlds."
    )
    study.note(
        "Intervals of shares are Clopper-Pearson, 95%. z and visits are floors: what people do who know no better."
    )
    return study


# -- false alarms ----------------------------------------------------------------------------------------------------


def _units(rng: np.random.Generator, arms: F64, uplift: float = 0.0) -> tuple[F64, F64, F64]:
    """(clicks in the window, visits in it, clicks of a week before) of a unit for each arm in `arms`."""
    rate = rng.beta(0.5, 4.5, len(arms))
    visits = 1 + rng.poisson(VISITS - 1, len(arms))
    before = rng.binomial(rng.poisson(VISITS, len(arms)), rate)
    clicks = rng.binomial(visits, np.minimum(rate * (1 + uplift * arms), 1.0))
    return clicks.astype(float), visits.astype(float), before.astype(float)


def _coins(rng: np.random.Generator, units: int) -> F64:
    return rng.integers(0, 2, units).astype(float)


def _looks(at: I64, arms: F64, values: F64) -> list[Effect | None]:
    """The effect of the first so many units, for each number in `at`: what `effect` says, by cumulative sums."""
    sums = []
    for arm in (0.0, 1.0):
        on = arms == arm
        rows = np.cumsum([on, np.where(on, values, 0.0), np.where(on, values**2, 0.0)], axis=1)
        sums.append(np.concatenate([np.zeros((3, 1)), rows], axis=1)[:, at].T.tolist())
    found: list[Effect | None] = []
    for (n, s, q), (m, t, r) in zip(*sums, strict=True):
        if min(n, m) < LEAST:
            found.append(None)
            continue
        first, second = (q - s * s / n) / (n - 1), (r - t * t / m) / (m - 1)
        variance, sd = first / n + second / m, float(np.sqrt((first + second) / 2))
        one = Effect(t / m - s / n, variance, int(n + m), s / n, t / m, sd, int(min(n, m)))
        found.append(one if variance > 0 else None)
    return found


def _alarms(study: Study, runs: int) -> None:
    rng = np.random.default_rng(20_260)
    counts = {"sequential": 0, "z every hour": 0, "z every hour, visits as observations": 0, "z once at the end": 0}
    covered, widths = 0, []
    hours = np.arange(WINDOW_HOURS + 1, 24 * DAYS + 1)
    for _ in range(runs):
        enters = np.sort(rng.uniform(0, 24 * DAYS - WINDOW_HOURS, UNITS)) + WINDOW_HOURS
        arms, at = _coins(rng, UNITS), np.searchsorted(enters, hours)
        clicks, visits, _ = _units(rng, arms)
        looks = _looks(at, arms, clicks)
        judged = [sequential(look, UNITS, ALPHA) for look in looks]
        textbook = [fixed(look, ALPHA) for look in looks]
        counts["sequential"] += any(interval.p < ALPHA for interval in judged)
        covered += all(interval.low <= 0.0 <= interval.high for interval in judged)
        counts["z every hour"] += any(interval.p < ALPHA for interval in textbook)
        counts["z every hour, visits as observations"] += _visits_alarm(at, arms, clicks, visits)
        counts["z once at the end"] += textbook[-1].p < ALPHA
        widths.append((judged[-1].high - judged[-1].low) / (textbook[-1].high - textbook[-1].low))
    rows: list[list[Cell]] = []
    for name, count in counts.items():
        low, high = _share(count, runs)
        promised = name == "sequential"
        rows.append([name, runs, count / runs, f"[{low:.3f}, {high:.3f}]", count / runs <= ALPHA if promised else None])
    study.table("False alarms of A/A worlds, looked at every hour", ["method", "worlds", "share", "95%", "≤ 5%"], rows)
    low, high = _share(covered, runs)
    study.note(
        f"The sequential interval covered no effect at every hour of the run in {covered / runs:.1%} [{low:.1%}, {high:.1%}] of the"
        f" worlds; at the end it is {np.mean(widths):.2f} times as wide as the textbook's, which is right only once."
    )


def _visits_alarm(at: I64, arms: F64, clicks: F64, visits: F64) -> bool:
    """Two proportions of visits, at every look, as if each visit were another person's."""
    n, s, m, t = (
        np.concatenate([[0.0], np.cumsum(np.where(arms == arm, values, 0.0))])[at]
        for arm, values in ((0.0, visits), (0.0, clicks), (1.0, visits), (1.0, clicks))
    )
    known = (np.minimum(n, m) >= LEAST) & (s + t > 0)
    n, s, m, t = (values[known] for values in (n, s, m, t))
    pooled = (s + t) / (n + m)
    z = (t / m - s / n) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return bool((np.abs(z) > NormalDist().inv_cdf(1 - ALPHA / 2)).any())


def _share(count: int, runs: int) -> tuple[float, float]:
    found = stats.binomtest(count, runs).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


# -- power -----------------------------------------------------------------------------------------------------------


def _power(study: Study, runs: int) -> None:
    """Simulated power at the number of units that the calculator names, and how early the sequential method stops."""
    rng = np.random.default_rng(20_261)
    sample, _, _ = _units(rng, np.zeros(200_000))
    mean = float(sample.mean())
    sds = {uplift: _pooled(rng, uplift) for uplift in (0.0, 0.1, 0.2, 0.4)}
    rows: list[list[Cell]] = []
    for uplift in (0.1, 0.2, 0.4):
        for method in ("fixed", "sequential"):
            needed = units_needed(uplift * mean, sds[uplift], alpha=ALPHA, power=POWER, method=method)
            tried = runs if needed < LARGE_UNITS else max(runs // 4, 10)
            looks = (
                np.unique(np.linspace(2 * LEAST, needed, LOOKS).astype(np.int64))
                if method == "sequential"
                else np.array([needed])
            )
            stopped = []
            for _ in range(tried):
                arms = _coins(rng, needed)
                seen = _looks(looks, arms, _units(rng, arms, uplift)[0])
                judged = [
                    sequential(one, needed, ALPHA) if method == "sequential" else fixed(one, ALPHA) for one in seen
                ]
                stopped.append(next((int(n) for n, one in zip(looks, judged, strict=True) if one.p < ALPHA), None))
            found = sum(at is not None for at in stopped)
            low, high = _share(found, tried)
            units = float(np.mean([needed if at is None else at for at in stopped]))
            row: list[Cell] = [
                f"{uplift:.0%}",
                method,
                needed,
                tried,
                found / tried,
                f"[{low:.3f}, {high:.3f}]",
                round(units),
                high >= POWER,
            ]
            rows.append(row)
    columns = [
        "uplift of clicks",
        "method",
        "units by the calculator",
        "worlds",
        "power, simulated",
        "95%",
        "units when stopped, mean",
        "≥ wanted",
    ]
    study.table(f"Power (α {ALPHA}, wanted {POWER})", columns, rows)
    reach = [
        [
            n,
            *(
                detectable(n, sds[0.0], alpha=ALPHA, power=POWER, method=method) / mean
                for method in ("fixed", "sequential")
            ),
        ]
        for n in (1_000, 10_000, 100_000, 1_000_000)
    ]
    study.table("Smallest relative effect that units show", ["units", "fixed", "sequential"], reach)
    study.note(
        f"The calculator names the units at which the power is reached *at* that look; the sequential method looks {LOOKS} times"
        " on the way and stops at the first find, so it has more power and mostly needs fewer. It is told the standard deviation"
        " within arms under the uplift that is meant."
    )


def _pooled(rng: np.random.Generator, uplift: float) -> float:
    """Standard deviation of a unit's clicks within arms: an uplift of everyone's rate spreads the treatment wider."""
    sides = [float(_units(rng, np.full(200_000, arm), uplift)[0].var()) for arm in (0.0, 1.0)]
    return float(np.sqrt(np.mean(sides)))


# -- sample ratio ----------------------------------------------------------------------------------------------------


def _ratio(study: Study, runs: int) -> None:
    """Looked at every 1,000 units up to 100,000."""
    rng = np.random.default_rng(20_262)
    rows: list[list[Cell]] = []
    for share in (0.5, 0.505, 0.51, 0.52):
        found, at = 0, []
        for _ in range(runs):
            first = np.cumsum(rng.binomial(1_000, share, 100))
            for look, count in enumerate(first.tolist(), 1):
                if log_factor([count, 1_000 * look - count], [0.5, 0.5]) > -np.log(SRM_ALPHA):
                    found += 1
                    at.append(1_000 * look)
                    break
        low, high = _share(found, runs)
        wanted = high > SRM_ALPHA >= low if share == 0.5 else found >= 0.95 * runs if share == 0.51 else None
        when = float(np.median(at)) if at else None
        said = f"{share:.1%} : {1 - share:.1%}"
        rows.append([said, runs, found / runs, f"[{low:.3f}, {high:.3f}]", when, wanted])
    study.note(
        "Sample ratio: the promise is α = .001 for 50 : 50, and 51 : 49 found by 100,000 units in at least 95% of the worlds."
    )
    columns = ["assigned", "worlds", "found by 100,000 units", "95%", "units when found, median", "promise kept"]
    study.table(
        f"Sample-ratio mismatch where 50 : 50 was said (α {SRM_ALPHA}, looked at every 1,000 units)", columns, rows
    )


# -- CUPED -----------------------------------------------------------------------------------------------------------


def _cuped(study: Study, runs: int) -> None:
    rng = np.random.default_rng(20_263)
    clipped = stats.beta(0.5, 4.5).expect(lambda rate: np.minimum(rate * (1 + UPLIFT), 1.0) - rate)
    true = float(clipped) * VISITS
    lefts, values, plain, covered = [], [], [], 0
    for _ in range(runs):
        arms = _coins(rng, UNITS)
        clicks, _, before = _units(rng, arms, UPLIFT)
        sides = [arms == 0, arms == 1]
        after, left = adjusted([clicks[on] for on in sides], [before[on] for on in sides])
        found, raw = effect(*after), effect(*(clicks[on] for on in sides))
        assert found is not None
        assert raw is not None
        lefts.append(left)
        values.append(found.value)
        plain.append(raw.value)
        interval = fixed(found, ALPHA)
        covered += interval.low <= true <= interval.high
    low, high = _share(covered, runs)
    rows: list[list[Cell]] = [
        ["as they are", 1.0, float(np.mean(plain)), float(np.std(plain)), None],
        [
            "CUPED",
            float(np.mean(lefts)),
            float(np.mean(values)),
            float(np.std(values)),
            f"{covered / runs:.3f} [{low:.3f}, {high:.3f}]",
        ],
    ]
    columns = ["values", "variance left", "effect, mean", "effect, sd over worlds", "95% intervals that cover"]
    study.table(
        f"CUPED with the clicks of a week before ({UPLIFT:.0%} uplift: {true:.4f} a unit is true)", columns, rows
    )
    saved = 1 - float(np.mean(lefts))
    study.note(f"CUPED takes {saved:.1%} of the variance away here, so as many fewer units show the same effect.")


# -- assignment ------------------------------------------------------------------------------------------------------


def _assignment(study: Study) -> None:
    units = [f"{value:016x}" for value in np.random.default_rng(20_264).integers(0, 2**63, 200_000).tolist()]
    layers = {name: np.array([bucket(unit, name) for unit in units]) for name in ("ranking", "fairness", "page")}
    sequence = np.array([bucket(f"{i:016x}", "ranking") for i in range(len(units))])  # ids that count up
    rows: list[list[Cell]] = []
    for name, found in [*layers.items(), ("ranking, ids that count up", sequence)]:
        chi, p = stats.chisquare(np.bincount(found // (BUCKETS // 100), minlength=100))
        rows.append([f"uniform over 100 parts: {name}", float(chi), 99, float(p), bool(p > 0.001)])
    for first, second in (("ranking", "fairness"), ("ranking", "page"), ("fairness", "page")):
        table = np.zeros((20, 20))
        np.add.at(table, (layers[first] // 500, layers[second] // 500), 1)
        chi, p, degrees, _ = stats.chi2_contingency(table)
        rows.append([f"independent, 20 × 20: {first}, {second}", float(chi), int(degrees), float(p), bool(p > 0.001)])
    tables = [allocated(name, [0.5, 0.5], empty(), np.zeros(BUCKETS, bool)) for name in ("one", "two")]
    chi, p, degrees, _ = stats.chi2_contingency(
        [[int(((tables[0] == a) & (tables[1] == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    )
    rows.append(
        [
            "independent: arms of two experiments one after the other",
            float(chi),
            int(degrees),
            float(p),
            bool(p > 0.001),
        ]
    )
    study.table("Assignment of 200,000 units (χ²)", ["of", "χ²", "degrees", "p", "p > .001"], rows)


def _movement(study: Study) -> None:
    free = np.zeros(BUCKETS, bool)
    rows: list[list[Cell]] = []
    for before, after in (
        ([0.5, 0.5], [0.5, 0.2]),
        ([0.1, 0.1], [0.1, 0.3]),
        ([0.5, 0.5], [0.4, 0.6]),
        ([0.25, 0.25, 0.25], [0.25, 0.5, 0.25]),
        ([0.3, 0.3, 0.3], [0.2, 0.2, 0.5]),
    ):
        first = allocated("ts", before, empty(), free)
        second = allocated("ts", after, first, free)
        moved = int((first != second).sum())
        gains = sum(max(b - a, 0.0) for a, b in zip([*before, 1 - sum(before)], [*after, 1 - sum(after)], strict=True))
        again = allocated("ts", before, second, free)
        naive = _naive(before, after)
        least = round(gains * BUCKETS)
        kept = all(
            ((first == i) & (second == i)).sum() == round(BUCKETS * min(a, b))
            for i, (a, b) in enumerate(zip(before, after, strict=True))
        )
        assert (again != NOBODY).sum() == round(BUCKETS * sum(before))
        rows.append(
            [f"{before} → {after}", moved / BUCKETS, least / BUCKETS, naive / BUCKETS, bool(moved == least and kept)]
        )
    columns = ["shares", "units moved", "least possible", "moved by cutting a hash in order", "least"]
    study.table("Units moved when shares change (of the layer)", columns, rows)


def _naive(before: list[float], after: list[float]) -> int:
    """The floor: arms as ranges of the hash, in order, as most people do it."""
    places = (np.arange(BUCKETS) + 0.5) / BUCKETS

    def arms(shares: list[float]) -> F64:
        return np.searchsorted(np.cumsum(shares), places).astype(float)

    return int((arms(before) != arms(after)).sum())
