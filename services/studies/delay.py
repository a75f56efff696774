"""What late feedback costs where items come and go: `silence: eager | wait | corrected` beside feedback that comes at once.

People of `slate_world` with tastes that stay, items that are replaced all the time, and clicks that come late. Everything between
the draw and the next bundle is the service's own: decisions and feedback are records of a log, a shard joins them and teaches the
learner, a publish makes the arrays that the next slates are drawn from (log and checkpoint in memory, and the stream's clock is
the world's).

    instant      the same clicks, each dated and told at once: what the delay takes away from all others
    horizon      clicks that come later count for nobody, not for `instant` either
    regret       of a slate's chance of a click against the best slate's for that person, exact (`policies.worlds.slate_world`)
    extra        an arm's regret less `instant`'s of the same seed

The settings of the world were looked for on seeds from `TUNED_ON`, so that `eager` loses enough to be worth correcting; no
option of an algorithm was: they are defaults.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from policies.algorithm import draw_settings
from policies.bundle import item_inputs
from policies.slate import draw, uniforms
from policies.types import F64, I64, item_hashes
from policies.worlds.slate_world import NONE, SlateWorld
from policies.worlds.switches import Switches, arrivals
from services.studies.study import Cell, Study, with_interval
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters, MemoryLog
from streaming.configuration import Configs, from_json
from streaming.events import Decision, Feedback, encode
from streaming.publish import merged
from streaming.scorer import Scorer
from streaming.shard import Shard

Way = Literal["instant", "corrected", "eager", "wait"]
WAYS: tuple[Way, ...] = ("instant", "corrected", "eager", "wait")
SEEDS, TUNED_ON = 10, 1_001
START = 1_700_000_000.0  # the world's second 0 on the stream's clock
LATE = 0.3  # of the clicks that count come in the horizon's second half
KEY = b"delay"


@dataclass(frozen=True)
class Setting:
    """Seconds are the world's. `life`: mean of an item's, in horizons;   warm: horizons at the beginning that are not judged."""

    algorithm: str = "hierarchical_thompson"
    items: int = 20
    groups: int = 5
    slots: int = 2
    users: int = 500
    visits: int = 50  # a second
    horizon: float = 64.0
    life: float = 2.0
    every: int = 2  # seconds between publishes
    horizons: int = 10
    warm: int = 4

    @property
    def switches(self) -> Switches:
        """P(later than h/2 ∣ not later than h) = e/(1 + e) = LATE with e = exp(−h/2m)."""
        mean = self.horizon / 2 / np.log((1 - LATE) / LATE)
        return Switches(delay=float(mean), turnover=1 / (self.life * self.horizon))


@dataclass
class Lived:
    """Of one run, by second: regret, and the chance of a click;   what `corrected` knew at the end."""

    regret: F64
    chance: F64
    diagnostics: dict[str, float] = field(default_factory=dict)

    def judged(self, setting: Setting) -> F64:
        return self.regret[int(setting.warm * setting.horizon) :]


class Service:
    """Log, shard, publish and draw on a clock of the world's own."""

    def __init__(self, setting: Setting, way: Way) -> None:
        self.clock, self._configs = START, Configs()
        groups = [f"group-{g}" for g in range(setting.groups)]
        document = {
            "surface": "home",
            "slots": setting.slots,
            "horizon": setting.horizon,
            "silence": "eager" if way == "instant" else way,
            "features": {"items": {"group": {"type": "category", "values": groups}}},
            "objectives": {"click": {"kind": "click", "range": [0, 1]}},
            "policies": {"learns": {"algorithm": setting.algorithm, "objective": "click"}},
            "live": "learns",
        }
        self.compiled = self._configs.add(from_json(msgspec.json.encode(document)))
        self._policy = self.compiled.policies["learns"]
        self._log = MemoryLog(1, now=lambda: self.clock)
        self._shard = Shard(0, self._log, MemoryCheckpoints(), self._configs, MemoryDeadLetters(), epoch=1)
        graph = self._policy.algorithm.graph(self._policy.config, self._policy.problem)
        self._scorer, self._made, self._number = Scorer(graph.SerializeToString()), 0, 0
        self.publish()

    def tell(self, events: Sequence[Decision | Feedback]) -> None:
        self._log.append([(event.unit.encode(), encode(event)) for event in events])

    def publish(self) -> None:
        """Everything that is in the log, in the next bundle."""
        while self._shard.step().records:
            pass
        self._number += 1
        policy, found = self._policy, self._shard.statistics().arrays.get(self._policy.key)
        sums = merged(policy, [found] if found else [])
        made = policy.algorithm.publish(policy.config, policy.problem, sums, self.clock, self._number)
        self.diagnostics, self._weight, self._arrays = made.diagnostics, made.slot_weight, made.arrays
        self._settings, self._bound = draw_settings(policy.config, made.temperature), self._scorer.bind(made.arrays)

    def decide(self, world: SlateWorld, people: I64, times: F64) -> list[Decision]:
        """A slate for each of some people; nothing is known of them, so all are drawn from the same scores."""
        compiled, k = self.compiled, world.slots
        items = compiled.encoder.rows([{"group": f"group-{g}"} for g in world.group.tolist()], "$.items")
        asked = {"items": items, **item_inputs(self._arrays, items, item_hashes(world.ids))}
        scores = self._bound.scores(asked)  # type: ignore[arg-type]  # rows and keys are int64
        made = []
        for person, at in zip(people.tolist(), times.tolist(), strict=True):
            self._made += 1
            unit = f"{person:016x}"
            name = f"{unit}-{self._made:012x}"
            slate = draw(scores, k, uniforms(KEY, name, "slate", k), self._settings)
            rows = slate.items.tolist()
            made.append(
                Decision(
                    decision_id=name,
                    unit=unit,
                    at=at,
                    surface="home",
                    config=compiled.hash,
                    policy="learns",
                    bundle=str(self._number),
                    mode="live",
                    slate=[world.ids[row] for row in rows],
                    slots=slate.slots.tolist(),
                    rows=rows,
                    propensities=slate.propensities.tolist(),
                    remaining=slate.remaining.tolist(),
                    greedy=slate.greedy.tolist(),
                    context=b"",
                    shown=np.ascontiguousarray(items[rows], "<f4").tobytes(),
                    weight=self._weight,
                )
            )
        return made


def lived(seed: int, way: Way, setting: Setting) -> Lived:
    """One world, one way of taking silence. People, their luck and the items that come are the same for every way."""
    world, service = _world(seed, setting), Service(setting, way)
    rng, seconds = np.random.default_rng([seed, 41]), int(setting.horizons * setting.horizon)
    late = np.random.default_rng([seed, 42])
    regret, chance, waiting = np.zeros(seconds), np.zeros(seconds), list[tuple[float, Feedback]]()
    for second in range(seconds):
        service.clock = START + second
        due = [said for at, said in waiting if at <= service.clock]
        waiting = [(at, said) for at, said in waiting if at > service.clock]
        service.tell(due)
        if second % setting.every == 0:
            service.publish()
        people, luck = rng.integers(setting.users, size=setting.visits), rng.random(setting.visits)
        times = service.clock + (np.arange(setting.visits) + 0.5) / setting.visits
        decisions = service.decide(world, people, times)
        slates = np.array([decision.rows for decision in decisions])
        regret[second], chance[second] = (
            world.regret(slates, people).mean(),
            world.chances(slates, people).sum(axis=1).mean(),
        )
        places = world.click(slates, luck, people)
        service.clock = float(times[-1])
        service.tell(decisions)
        rows, at = arrivals(setting.switches, times, late)  # of all, so that the delays are the same for every way
        for i, came in zip(rows.tolist(), at.tolist(), strict=True):
            if places[i] != NONE and came - times[i] <= setting.horizon:
                dated = float(times[i]) if way == "instant" else came
                waiting.append((dated, _click(decisions[i], int(places[i]), dated)))
        if way == "instant":
            service.tell([said for _, said in waiting])
            waiting = []
        world.pass_time()
    return Lived(regret, chance, service.diagnostics)


def _world(seed: int, setting: Setting) -> SlateWorld:
    return SlateWorld(
        seed,
        users=setting.users,
        items=setting.items,
        groups=setting.groups,
        slots=setting.slots,
        gamma=1.0,  # tastes stay: what is learned is the items
        switches=setting.switches,
    )


def _click(decision: Decision, slot: int, at: float) -> Feedback:
    return Feedback(
        decision_id=decision.decision_id, unit=decision.unit, at=at, kind="click", slot=slot, feedback_id="click"
    )


def floors(seed: int, setting: Setting) -> dict[str, F64]:
    """Mean regret (1,) of random slates, and of the one slate that is best for all people together, in the same world."""
    world, rng = _world(seed, setting), np.random.default_rng([seed, 41])
    chosen = np.random.default_rng([seed, 43])
    found: dict[str, list[float]] = {"random": [], "best for all": []}
    for second in range(int(setting.horizons * setting.horizon)):
        people = rng.integers(setting.users, size=setting.visits)
        rng.random(setting.visits)  # their luck
        if second >= setting.warm * setting.horizon:
            slates = world.random_slates(setting.visits, chosen)
            found["random"].append(float(world.regret(slates, people).mean()))
            best = np.tile(best_for_all(world), (setting.visits, 1))
            found["best for all"].append(float(world.regret(best, people).mean()))
        world.pass_time()
    return {name: np.array([np.mean(each)]) for name, each in found.items()}


def best_for_all(world: SlateWorld) -> I64:
    """(k,) the slate of the largest mean chance of a click, found slot by slot."""
    rows: list[int] = []
    users = len(world.state)
    odds = np.exp(-world.multiplier * np.linalg.norm(world.state[:, None] - world.vectors, axis=2))  # (users, n)
    none, known = np.exp(world.multiplier * world.no_click), np.zeros(users)
    for _ in range(world.slots):
        gain = ((known[:, None] + odds) / (none + known[:, None] + odds)).mean(axis=0)
        gain[rows] = -1.0
        rows.append(int(gain.argmax()))
        known = known + odds[:, rows[-1]]
    return np.array(rows)


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: two seeds of three short horizons."""
    setting = replace(Setting(), horizon=16.0, horizons=3, warm=1) if quick else Setting()
    count = seeds or (2 if quick else SEEDS)
    runs = {way: [lived(seed, way, setting) for seed in range(count)] for way in WAYS}
    known = [floors(seed, setting) for seed in range(count)]
    study = Study("Late feedback where items come and go: eager, wait, corrected")
    regret = {way: np.array([one.judged(setting).mean() for one in each]) for way, each in runs.items()}
    extra = {way: regret[way] - regret["instant"] for way in WAYS}
    share = 100 * float(extra["eager"].mean() / regret["instant"].mean())
    ratio, low, high = fieller(extra["corrected"], extra["eager"])
    rows: list[list[Cell]] = [
        [f"floor: {name}", with_interval(np.concatenate([k[name] for k in known])), None, None] for name in known[0]
    ]
    for way in WAYS:
        relative = 100 * extra[way] / regret["instant"].mean()
        part = None if way == "instant" else with_interval(100 * extra[way] / extra["eager"].mean())
        rows.append([way, with_interval(regret[way]), None if way == "instant" else with_interval(relative), part])
    rows.append(["oracle: the best slate of every person", 0.0, None, None])
    columns = ["silence", "regret a slate", "extra, % of instant's regret", "extra, % of eager's"]
    study.table("Regret after the warm-up", columns, rows)
    study.table(
        "Claim",
        ["what", "found", "wanted", "holds"],
        [
            ["eager's extra regret, % of instant's", round(share, 1), "≥ 10", share >= 10],
            [
                "corrected's extra, % of eager's",
                f"{100 * ratio:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                "≤ 25",
                ratio <= 0.25,
            ],
        ],
    )
    whole = [[way, with_interval(np.array([one.regret.mean() for one in each]))] for way, each in runs.items()]
    study.table("Regret from the first second, warm-up and all", ["silence", "regret a slate"], whole)
    said = [one.diagnostics for one in runs["corrected"]]
    study.table(
        "What `corrected` knew of delays at the end",
        ["share of clicks within half the horizon", "true", "clicks it rests on"],
        [
            [
                with_interval(np.array([one["early.click"] for one in said])),
                1 - LATE,
                float(np.mean([one["early_decisions.click"] for one in said])),
            ]
        ],
    )
    for line in [*_notes(setting, count), *missed(share, ratio, low, high)]:
        study.note(line)
    return study


def missed(share: float, ratio: float, low: float, high: float) -> list[str]:
    """A line for each part of the claim that is not met. share: eager's extra, % of instant's;  ratio: corrected's of eager's."""
    lines = (
        [] if share >= 10 else [f"missed: eager loses {share:.1f}% of instant's regret, so there is little to correct"]
    )
    if not ratio <= 0.25:
        lines.append(
            f"missed: corrected keeps {100 * ratio:.1f}% of eager's extra, {100 * (ratio - 0.25):.1f} points above the target, which the "
            f"interval from {100 * low:.1f} to {100 * high:.1f} % {'does not exclude' if low <= 0.25 else 'excludes'}. A correction takes away "
            "what eager has wrong of young decisions; what has not been said yet it cannot know, and `instant` does"
        )
    return lines


def fieller(top: F64, bottom: F64) -> tuple[float, float, float]:
    """mean(top) / mean(bottom) of pairs, and its 95% interval by Fieller's theorem; infinite where `bottom` may be 0."""
    from scipy import stats  # comes with the packages that studies want anyway

    n, a, b = len(top), float(top.mean()), float(bottom.mean())
    if n < 2:
        return a / b, float("nan"), float("nan")
    t2 = float(stats.t.ppf(0.975, n - 1)) ** 2 / n
    (aa, ab), (_, bb) = (np.cov(top, bottom) * t2).tolist()
    slope = b * b - bb
    root = (a * b - ab) ** 2 - slope * (a * a - aa)
    if slope <= 0 or root < 0:
        return a / b, float("-inf"), float("inf")
    return a / b, (a * b - ab - root**0.5) / slope, (a * b - ab + root**0.5) / slope


def _notes(setting: Setting, count: int) -> list[str]:
    late = setting.switches
    return [
        f"{count} seeds; {setting.algorithm} at its defaults; slates of {setting.slots} out of {setting.items} items in {setting.groups} "
        f"groups, each replaced after {setting.life:g} horizons in the mean; {setting.visits} slates a second, a bundle every "
        f"{setting.every} s; horizon {setting.horizon:g} s; {setting.horizons} horizons, of which the first {setting.warm} are not judged",
        f"delays are exponential with a mean of {late.delay:.1f} s: {LATE:.0%} of the clicks that count come in the second half of the "
        "horizon; what comes after it counts for nobody, not for `instant` either",
        "all ways meet the same people, luck, items and delays; intervals are Student's t over seeds, that of the share of eager's extra "
        "Fieller's for a ratio of means",
        "nobody knows who comes, so no way gets near the best slate of every person; `best for all` knows every taste and shows all the same",
        f"the world's settings were looked for on seeds {TUNED_ON} and {TUNED_ON + 1}; none of the seeds here was looked at before",
    ]
