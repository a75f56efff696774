"""`slatewise study fairness`: who sees what, and what groups of items get, before and after, with what it costs (methods.md §4).

Impression variance in `ads_world` and on Coat: true counts are scored, the controller sees only what an aggregator releases.
Exposure of groups in `ads_world` and on Jester through the service's own draw and controller, beside the linear program's
optimum. Creators who leave in `creator_world`. Same people and luck for every way of a seed.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from policies.reranking.exposure import SAMPLED
from policies.reranking.impression_variance import Controller
from policies.types import F64
from policies.worlds.ads_world import AdsWorld
from services.studies import fairness_items as items
from services.studies import fairness_people as people
from services.studies.fairness_people import PRIVACY, SKEW, CoatWorld, Seen, Size
from services.studies.study import Cell, Study, interval, with_interval

SEEDS = 5
WANTED = {2: 0.917, 4: 0.810}  # of items within 10%
AT_MOST = {2: 0.6, 4: 0.4}  # of items within 10% uncorrected, of the world
REACH_LOSS, DISPARITY, OPTIMUM_TIMES = 0.0982, 0.05, 1.25
EVEN = np.full(2, 0.5)
WARM = 0.2  # of a run of exposure, over which nothing is known yet; shown beside


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    study, several = (
        Study("Fairness: impressions, exposure, creators"),
        range(1, (seeds or (1 if quick else SEEDS)) + 1),
    )
    size = Size(8, 1_500, 4_000) if quick else Size()
    learned = {groups: people.trained(groups, size, 2 if quick else 8, 1 if quick else 3)[0] for groups in (2, 4)}
    _impressions(study, several, size, learned)
    _exposure(study, several, 400 if quick else 5_000)
    _each_item(study, several, 400 if quick else 5_000)
    _creators(study, several, *((4, 40) if quick else (30, 200)))
    if data is not None:
        _coat(study, several, data, size, learned[2])
        _jester(study, several, data, 200 if quick else 2_946)
    else:
        study.note("Coat and Jester were not run: no --data.")
    return study


def _impressions(study: Study, seeds: range, size: Size, learned: dict[int, Controller]) -> None:
    rows: list[list[Cell]] = []
    for groups, controller in learned.items():

        def seen(seed: int, controller: Controller | None, fixed: bool = False, groups: int = groups) -> Seen:
            return people.play(
                AdsWorld(seed, groups=groups, skew=SKEW[groups], units=size.units), seed, size, controller, fixed=fixed
            )

        before = [seen(seed, None) for seed in seeds]
        ways = {
            "no correction": before,
            "fixed boost (of the first release)": [seen(seed, controller, True) for seed in seeds],
            "learned controller": [seen(seed, controller) for seed in seeds],
        }
        for name, found in ways.items():
            rows.append([f"{groups} groups", name, *_told(found, before)])
        close, reach = (
            float(np.mean(x))
            for x in (
                [one.close for one in ways["learned controller"]],
                _lost(ways["learned controller"], before, _reach),
            )
        )
        low = float(np.mean([one.close for one in before]))
        study.note(
            f"{groups} groups: {_verdict(close, WANTED[groups], 'of items within 10%', True)}; "
            f"{_verdict(reach, REACH_LOSS, 'of reach lost', False)}; uncorrected {low:.1%} within 10% (the world is to have at most "
            f"{AT_MOST[groups]:.0%}: {'so it has' if low <= AT_MOST[groups] else 'it has more'}). θ = {np.round(controller.theta, 2).tolist()}."
        )
    study.table(
        f"Impression variance in ads_world: items with at least {people.ENOUGH} impressions, true counts",
        ["world", "way", "items within 10%", "mean distance", "reach lost", "utility lost", "items scored", "left out"],
        rows,
    )
    study.note(
        f"The controller sees counts with Laplace noise of scale {PRIVACY.scale:g} (C = {PRIVACY.counts}, ε_release = {PRIVACY.release:g}), "
        f"{people.RELEASES_A_DAY} releases a day, ε_total = {PRIVACY.total:g} a unit and day; it was learned in worlds {people.TRAINED_ON} and "
        "on; the skew of the world was chosen on worlds 101 to 103, none of which is reported. The first release is uncorrected, and counts."
    )


def _told(found: list[Seen], before: list[Seen]) -> list[Cell]:
    return [
        with_interval(np.array([one.close for one in found])),
        with_interval(np.array([one.scored.mean() for one in found])),
        _percent(_lost(found, before, _reach)),
        _percent(_lost(found, before, lambda one: one.utility)),
        min(len(one.scored) for one in found),
        float(np.mean([one.left_out for one in found])),
    ]


def _reach(one: Seen) -> float:
    return float(one.reach.sum())


def _lost(found: list[Seen], before: list[Seen], what: Callable[[Seen], float]) -> F64:
    return np.array([1 - what(one) / what(was) for one, was in zip(found, before, strict=True)])


def _exposure(study: Study, seeds: range, requests: int) -> None:
    rows: list[list[Cell]] = []
    over: dict[str, list[F64]] = {}
    warm = slice(int(WARM * requests), None)
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for seed in seeds:
        pools, codes, world = items.ads(seed, 3, requests)
        free = items.optimum(world.values, world.weights, codes, 3, None)
        exact = free - items.optimum(world.values, world.weights, codes, 3, EVEN)
        names = ["big", "small"]
        before = items.play(pools, codes, names, 3, requests, seed)
        ways = {
            "no correction": before,
            "fixed boost (half an IQR)": items.play(pools, codes, names, 3, requests, seed, fixed=np.array([0.0, 0.5])),
            "amortised": items.play(pools, codes, names, 3, requests, seed, law=items.LAW),
        }
        for name, told in ways.items():
            off, lost = abs(told.share(1, warm) - 0.5), float((before.utility - told.utility)[warm].mean())
            near = free - items.optimum(world.values, world.weights, codes, 3, EVEN, off)
            found.setdefault(name, []).append((off, lost / free, lost / exact, lost / near if near > 1e-9 else np.nan))
            parts = np.array_split(np.arange(requests), 5)
            over.setdefault(name, []).append(
                np.array([abs(told.share(1, slice(p[0], p[-1] + 1)) - 0.5) for p in parts])
            )
    for name, values in found.items():
        off, lost, times, near = np.array(values).T
        rows.append(
            [
                name,
                with_interval(off),
                _percent(lost),
                with_interval(times),
                with_interval(near) if np.isfinite(near).all() else None,
            ]
        )
    study.table(
        "Exposure of two groups of ads, equal target, 3 slots: after the first fifth of the run",
        ["way", "disparity", "utility lost", "… times the optimum's at disparity 0", "… at the same disparity"],
        rows,
    )
    study.table(
        "Disparity over time: |share of looks − ½| in each fifth of the run",
        ["way", *(f"{n}/5" for n in range(1, 6))],
        [[name, *(with_interval(x) for x in np.array(values).T)] for name, values in over.items()],
    )
    off, _, times, _ = np.array(found["amortised"]).mean(axis=0)
    study.note(
        f"Exposure: {_verdict(off, DISPARITY, 'disparity', False)}; {times:.3f} times the utility loss of the linear program's optimum with no disparity (wanted ≤ {OPTIMUM_TIMES}: {'met' if times <= OPTIMUM_TIMES else 'missed'})."
    )


def _each_item(study: Study, seeds: range, requests: int) -> None:
    """`exposure: {by: item}`: every ad a group of its own."""
    rows: list[list[Cell]] = []
    late = slice(int(WARM * requests), None)
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in seeds:
        pools, _, world = items.ads(seed, 3, requests)
        n = world.number
        codes, names, alike = np.arange(n), [str(i) for i in range(n)], np.full(n, 1 / n)
        free = items.optimum(world.values, world.weights, codes, 3, None)
        exact = free - items.optimum(world.values, world.weights, codes, 3, alike)
        before = items.play(pools, codes, names, 3, requests, seed)
        ways = {
            "no correction": before,
            "amortised, all that was delivered": items.play(pools, codes, names, 3, requests, seed, law=items.EACH),
            "amortised, what records tell": items.play(
                pools, codes, names, 3, requests, seed, law=items.EACH, told=True
            ),
        }
        for name, told in ways.items():
            lost = float((before.utility - told.utility)[late].mean())
            shares = told.delivered[late].sum(axis=0) / told.delivered[late].sum()
            least, most = float(shares.min() * n), float(shares.max() * n)
            found.setdefault(name, []).append((items.unevenness(told, late), least, most, lost / free, lost / exact))
    for name, values in found.items():
        uneven, least, most, lost, times = np.array(values).T
        rows.append([name, *map(with_interval, (uneven, least, most)), _percent(lost), with_interval(times)])
    study.table(
        f"Exposure of each of {n} ads, equal target, 3 slots: after the first fifth of the run",
        [
            "way",
            "looks that others should have",
            "least an ad gets, of its share",
            "most",
            "utility lost",
            "… times the optimum's",
        ],
        rows,
    )
    uneven, _, _, _, times = np.array(found["amortised, what records tell"]).mean(axis=0)
    study.note(
        f"Each item: {_verdict(uneven, DISPARITY, 'of looks that others should have', False)}; {times:.3f} times the utility loss of the "
        f"optimum that is exactly even (wanted ≤ {OPTIMUM_TIMES}: {'met' if times <= OPTIMUM_TIMES else 'missed'}). Records tell of an even sample of "
        f"{SAMPLED} of the {n} candidates, as those of the service do. Gain and window were chosen on seeds 101 and 102."
    )


def _creators(study: Study, seeds: range, periods: int, requests: int) -> None:
    rows: list[list[Cell]] = []
    last, late, stayed = max(1, periods // 3), {}, {}
    for name, way in (("no correction", "none"), ("equal exposure", "equal"), ("what each needs", "reserve")):
        played = [items.creators(seed, periods, requests, way) for seed in seeds]
        utility, kept, best = (np.array(x) for x in zip(*played, strict=True))
        late[way], stayed[way] = utility[:, -last:].mean(), kept[:, -1].mean()
        rows.append(
            [
                name,
                with_interval(kept[:, -1]),
                with_interval(utility[:, :last].mean(axis=1)),
                with_interval(utility[:, -last:].mean(axis=1)),
                with_interval(utility.mean(axis=1)),
                with_interval(best.mean(axis=1)),
            ]
        )
    study.table(
        f"creator_world: 24 creators, {periods} periods of {requests} requests",
        [
            "way",
            "creators at the end",
            "utility, first third",
            "utility, last third",
            "utility, all",
            "had nobody left (optimum)",
        ],
        rows,
    )
    for name, way in (("Equal exposure", "equal"), ("What each needs", "reserve")):
        study.note(
            f"Creators: {name.lower()} keeps {stayed[way]:.1f} of 24 (no correction {stayed['none']:.1f}); utility in the last third is "
            f"{late[way] / late['none'] - 1:+.1%} of no correction's."
        )
    study.note(
        "`what each needs`: a creator is owed no more than a tenth above what keeps it. Equal exposure here is for its own sake: it also "
        "shows creators whom few want, so keeping everybody does not pay for itself within these periods unless the line above says so."
    )


def _coat(study: Study, seeds: range, data: Path, size: Size, controller: Controller) -> None:
    rows: list[list[Cell]] = []
    for attribute in ("gender", "age"):
        world = CoatWorld(data, attribute)
        before = [people.play(world, seed, size, None) for seed in seeds]
        after = [people.play(world, seed, size, controller) for seed in seeds]
        for name, found in (("before", before), ("after", after)):
            groups = np.array([one.by_group for one in found])
            rows.append([attribute, name, *_told(found, before)[:4], "; ".join(with_interval(x) for x in groups.T)])
    study.table(
        "Coat: impression variance of 60 coats by gender and age (under 30, 30 to 40, above)",
        ["attribute", "", "items within 10%", "mean distance", "reach lost", "utility lost", "rating a group is shown"],
        rows,
    )


def _jester(study: Study, seeds: range, data: Path, requests: int) -> None:
    rows: list[list[Cell]] = []
    played: dict[str, list[items.Told]] = {"before": [], "after": []}
    for seed in seeds:
        pools, codes = items.jokes(data, seed, requests)
        for name, law in (("before", None), ("after", items.LAW)):
            played[name].append(items.play(pools, codes, ["liked", "other"], 5, requests, seed, law=law))
    warm = slice(int(WARM * requests), None)
    for name, told in played.items():
        share = np.array([one.share(1, warm) for one in told])
        each = np.array([one.by_group[warm].sum(axis=0) / one.delivered[warm].sum(axis=0) for one in told])
        rows.append(
            [
                name,
                with_interval(1 - share),
                with_interval(share),
                *(with_interval(x) for x in each.T),
                with_interval(np.array([one.utility[warm].mean() for one in told])),
            ]
        )
    study.table(
        "Jester: 80 jokes in two groups that are made up (the half that others like more, and the other), equal target, 5 slots",
        ["", "looks of the liked", "looks of the others", "reward a look, liked", "… others", "utility a request"],
        rows,
    )
    study.note(
        "Jester's groups are made up: it knows nobody's. Coat: each of the 290 people stands for 200 alike, else counts of 290 would be less "
        "than the noise; utility is what a model of the ratings they chose to give expects, not a rating they gave."
    )


def _percent(values: F64) -> str:
    mean, low, high = interval(100 * values)
    return f"{mean:.2f} % [{low:.2f}, {high:.2f}]"


def _verdict(value: float, wanted: float, what: str, more: bool) -> str:
    met = value >= wanted if more else value <= wanted
    said = "met" if met else f"missed by {abs(value - wanted):.2%}"
    return f"{value:.2%} {what} (wanted {'≥' if more else '≤'} {wanted:.2%}: {said})"
