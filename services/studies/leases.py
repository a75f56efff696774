"""What it is worth to lend what an exploration cap leaves unused, where new items come all at once.

    world    items that are clicked with chances of their own, one chance a slot; after a calm while new ones come at once, one of them a
             hit. Regret of a slate: the chances of the best items there are, less those of the items shown
    ways     plain: the cap in every slot; lent: the same cap, and what it leaves is lent up to a share; no cap: what the policy wants
    found    seconds from the arrival until the hit is in half of the slates of a block

Draws, learner, publish, the law of leases and the workers' side of it (`services.scoring.leases`) are the service's own, on a clock
of the world's; counters are those that shards would have written a second later. The world's settings were looked for on seeds from
`TUNED_ON`; no option of the algorithm was.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.algorithm import Learner, draw_settings
from policies.bundle import item_inputs
from policies.reranking import exploration_budget as budget
from policies.slate import draw, uniforms
from policies.types import F32, F64, I64, Changes, DrawSettings, Slate, item_hashes
from services.scoring.leases import Lease, Lending
from services.studies.study import Cell, Study, with_interval
from services.telemetry import Telemetry
from streaming.adapters.memory import MemoryLeases
from streaming.configuration import CompiledPolicy, Configs, from_json
from streaming.derived import counter_name
from streaming.ports import Mark
from streaming.publish import merged
from streaming.strayed import MEASURES, window_name

SEEDS, TUNED_ON = 20, 1_001
START = 1_700_000_000.0  # the world's second 0
KEY = b"leases"
WAYS = ("plain", "lent", "no cap")


@dataclass(frozen=True)
class Setting:
    """Seconds are the world's. `known`: slots of each first item before it begins; `block`: of seconds, for `found`."""

    items: int = 10
    new: int = 20
    hit: float = 0.5
    slots: int = 3
    visits: int = 6  # a second
    workers: int = 4
    known: int = 3_000
    calm: int = 600
    after: int = 420
    every: int = 5  # seconds between publishes
    block: int = 10
    cap: float = 0.05
    up_to: float = 0.5


class Counted:
    """Counters of one surface, as shards keep them; what is counted in a second is told in the next."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()

    def add(self, at: float, unused: float, over: float) -> None:
        for measure, by in zip(MEASURES, (unused, over), strict=True):
            name = counter_name("default", "home", *window_name("", budget.window_of(at)), measure)
            self._coming[name] += by  # type: ignore[assignment]  # slots come in parts

    def tell(self) -> None:
        self._told = Counter(self._coming)

    def read(self, names: Sequence[str]) -> list[float]:
        return [float(self._told[name]) for name in names]

    def write(self, partition: int, mark: Mark, values: Mapping[str, float], since: Mark | None) -> bool:
        raise AssertionError("scoring writes no counters")


@dataclass(frozen=True)
class Lived:
    """Of one run: regret a slate by second (t,), expected share a slot that is not greedy by second (t,), the largest over all prefixes
    of what was explored beyond cap × slots, and seconds until the hit was found, infinite when it was not."""

    regret: F64
    explored: F64
    beyond: float
    found: float


class House:
    """One policy, its workers and their leases."""

    def __init__(self, setting: Setting, way: str) -> None:
        self.setting, self.lends, self.now = setting, way == "lent", START
        exploration = {"max_share": 1.0 if way == "no cap" else setting.cap}
        document = {
            "surface": "home",
            "slots": setting.slots,
            "features": {"items": {"kind": {"type": "category", "values": ["one"]}}},
            "objectives": {"click": {"kind": "click", "range": [0, 1]}},
            "policies": {"learns": {"algorithm": "hierarchical_thompson", "objective": "click", "floor": 0.01}},
            "live": "learns",
            "exploration": exploration | ({"lend_up_to": setting.up_to} if self.lends else {}),
        }
        self.compiled = Configs().add(from_json(msgspec.json.encode(document)))
        self.surface, self.policy = self.compiled.surface, self.compiled.policies["learns"]
        self.counters, self._telemetry, self._made = Counted(), Telemetry(), 0
        stores = self.counters, MemoryLeases()
        self.workers = [Lending(lambda: stores, clock=lambda: self.now) for _ in range(setting.workers)]
        self.learner = _learner(self.policy)

    def publish(self, ids: Sequence[str]) -> tuple[F32, DrawSettings]:
        """Scores (n, m) of all items, for nobody is known, and what slates are drawn under."""
        policy, self._made = self.policy, self._made + 1
        sums = merged(policy, [self.learner.arrays()])
        made = policy.algorithm.publish(policy.config, policy.problem, sums, self.now, self._made)
        items = self.compiled.encoder.rows([{"kind": "one"}] * len(ids), "$.items")
        inputs: dict[str, Any] = {"items": items, "context": np.zeros(0, np.float32), "weights": np.ones(1, np.float32)}
        asked = {**inputs, **item_inputs(made.arrays, items, item_hashes(ids))}
        scores = policy.algorithm.reference(policy.config, policy.problem, made.arrays, asked)
        return scores, draw_settings(policy.config, made.temperature, self.surface.exploration.max_share)

    def drawn(self, scores: F32, settings: DrawSettings, number: int) -> Slate:
        k, cap = self.setting.slots, settings.max_share
        u = uniforms(KEY, str(number), "slate", k)
        if not self.lends:
            return draw(scores, k, u, settings)
        lease: Lease = self.workers[number % len(self.workers)].on(self.surface)[""]
        slate = draw(scores, k, u, lease.on(settings, k))
        lease.took(slate, cap)
        shares = slate.explored.tolist()
        unused = sum(max(0.0, cap - share) for share in shares)
        self.counters.add(self.now, unused, budget.beyond(shares, cap))
        return slate

    def second(self) -> None:
        """The shards have told of the last one, and workers renew their leases."""
        self.now += 1.0
        if self.lends:
            for worker in self.workers:
                worker.renew([self.surface], self.now, self._telemetry)
            self.counters.tell()

    def learn(self, ids: Sequence[str], rows: I64, clicks: F64) -> None:
        """Rows (s,) of items that were shown, and what became of them (s,)."""
        n = len(rows)
        self.learner.learn(
            Changes(
                context=np.zeros((n, 0), np.float32),
                items=self.compiled.encoder.rows([{"kind": "one"}] * n, "$.items"),
                slots=np.zeros(n, np.int64),
                slates=np.arange(n),
                times=np.full(n, self.now),
                weights=np.ones(n),
                present_before=np.zeros(n),
                present_after=np.ones(n),
                rewards_before=np.zeros((n, 1)),
                rewards_after=clicks[:, None],
                item_hashes=item_hashes([ids[row] for row in rows.tolist()]),
                propensities=np.ones(n),  # nothing here reads them
            )
        )


def _learner(policy: CompiledPolicy) -> Learner:
    assert policy.algorithm.learner is not None  # hierarchical_thompson has one
    return policy.algorithm.learner(policy.config, policy.problem)


def chances_of(seed: int, setting: Setting) -> F64:
    """Of a click, of first items, so far apart that the best are known, and of new ones; the last is the hit."""
    new = np.random.default_rng([seed, 1]).beta(1.0, 9.0, setting.new - 1)
    return np.concatenate((np.linspace(0.3, 0.03, setting.items), new, [setting.hit]))


def best(chances: F64, slots: int) -> float:
    return float(np.sort(chances)[-slots:].sum())


def lived(seed: int, way: str, setting: Setting) -> Lived:
    """One world, one way. Chances, and the luck of every slot, are the same for every way."""
    house, chances, luck = House(setting, way), chances_of(seed, setting), np.random.default_rng([seed, 2])
    ids = [f"item-{i}" for i in range(len(chances))]
    first = np.repeat(np.arange(setting.items), setting.known)
    house.learn(ids, first, (luck.random(len(first)) < chances[first]).astype(float))
    seconds, k = setting.calm + setting.after, setting.slots
    regret, explored, shown = np.zeros(seconds), np.zeros(seconds), np.zeros(seconds)
    for second in range(seconds):
        n = setting.items if second < setting.calm else len(ids)
        if second % setting.every == 0:
            scores, settings = house.publish(ids[:n])
        slates = [house.drawn(scores, settings, second * setting.visits + i) for i in range(setting.visits)]
        rows = np.concatenate([slate.items for slate in slates])
        house.learn(ids, rows, (luck.random(len(rows)) < chances[rows]).astype(float))
        regret[second] = best(chances[:n], k) - chances[rows].sum() / setting.visits
        explored[second] = np.concatenate([slate.explored for slate in slates]).mean()
        shown[second] = (rows == len(ids) - 1).sum() / setting.visits
        house.second()
    blocks = shown[setting.calm :].reshape(-1, setting.block).mean(axis=1)
    found = np.flatnonzero(blocks >= 0.5)
    beyond = np.cumsum(explored - setting.cap).max() * setting.visits * k
    return Lived(regret, explored, float(beyond), float(setting.block * (found[0] + 1)) if len(found) else np.inf)


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: two seeds of a minute."""
    setting = replace(Setting(), calm=200, after=40) if quick else Setting()
    count = seeds or (2 if quick else SEEDS)
    study = Study("What an exploration cap leaves unused, lent when new items come")
    lives = {way: [lived(seed, way, setting) for seed in range(count)] for way in WAYS}
    calm, plain = setting.calm, _after(lives["plain"], setting)
    random = np.array([_random(seed, setting) for seed in range(count)])
    rows: list[list[Cell]] = [["floor: random slates", with_interval(random), None, None, None, None, None]]
    for way, several in lives.items():
        after = _after(several, setting)
        found = np.array([one.found for one in several])
        less = None if way == "plain" else with_interval(100 * (1 - after / plain))
        before = with_interval(np.array([one.explored[:calm].mean() for one in several]))
        during = with_interval(np.array([one.explored[calm:].mean() for one in several]))
        holds = None if way == "no cap" else all(one.beyond < 1e-6 for one in several)
        rows.append([way, with_interval(after), less, _median(found), before, during, holds])
    rows.append(["oracle: the best items", 0.0, None, 0.0, None, None, None])
    columns = ["way", "regret a slate", "less than plain, %", "median seconds until found", "explored before", "after"]
    study.table(f"The {setting.after} seconds after new items came", [*columns, "≤ cap × slots in every prefix"], rows)
    pairs = [(a.found, b.found) for a, b in zip(lives["plain"], lives["lent"], strict=True)]
    faster = sum(b < a for a, b in pairs)
    study.note(
        f"{count} worlds; {setting.items} items whose chances (0.03 to 0.3) are known, {setting.new} new ones at once (Beta(1, 9)), one of them "
        f"clicked with {setting.hit:g}; {setting.visits} slates of {setting.slots} a second by {setting.workers} workers, a bundle every {setting.every} s; "
        f"max_share {setting.cap:g}, lend_up_to {setting.up_to:g}. Found sooner with leases in {faster} of {count} worlds, later in "
        f"{sum(b > a for a, b in pairs)}."
    )
    study.note(
        f"Settings of the world were looked for on seeds from {TUNED_ON}; nothing was tuned on these. `explored`: expected share of slots "
        "that is not greedy; `no cap` is what the policy wants, at no promise."
    )
    return study


def _after(several: Sequence[Lived], setting: Setting) -> F64:
    return np.array([one.regret[setting.calm :].mean() for one in several])


def _random(seed: int, setting: Setting) -> float:
    chances = chances_of(seed, setting)
    return best(chances, setting.slots) - setting.slots * float(chances.mean())


def _median(found: F64) -> str:
    """With the quartiles; infinite ones are those that never were."""
    low, middle, high = np.quantile(found, (0.25, 0.5, 0.75), method="nearest")
    return f"{middle:g} [{low:g}, {high:g}]"
