"""How often slots are looked at: estimated from logged draws beside what is true, and what learners make of it.

Two worlds, each with slots that are looked at as often as in the demo, 1/(1 + 0.15 t), and 1/(1 + t) as often:

    learner  the demo's world (`policies.worlds.taste_world`), logged by `linear_thompson` while it learns
    editor   items of five tiers and a charm, attraction 0.1 (1 + tier) + 0.05 charm, shown by an editor who puts the worst tier
             first: position is confounded with quality. Where slots are looked at 1/(1 + t) as often, one hides the other

Estimates, learners and draws are those that serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from policies import examination
from policies.algorithm import Addend, Problem, draw_settings
from policies.algorithms.linear_thompson import ALGORITHM, LinearThompson
from policies.examination import Examined
from policies.features import Encoder
from policies.slate import draw
from policies.surface import Category, FeatureSpec, Number, Objective
from policies.types import F32, F64, I64, Arrays, Changes, DrawSettings, Slate
from policies.worlds.taste_world import DAYPARTS, DEVICES, GENRES, TasteWorld, Visit
from services.studies.study import Cell, Study, proportion, with_interval

EXAMINATIONS = {"1/(1 + 0.15 t)": 0.15, "1/(1 + t)": 1.0}
WAYS = ("none", "estimated", "given")  # what a learner knows of examination
RANKED = "Greedy slates of linear_thompson, taught by an editor's log"
SEEDS, DECISIONS, EVERY = 12, 3_000, 100
STRICT, LAX = (0.02, 0.2, 3_000), (0.1, 0.3, 12_000)  # editors: floor, temperature on tiers 1 apart, decisions
DRAWS, SLOTS = 64, 5
TIERS, CHARM = 0.1 * np.arange(1, 6), 0.05
ASKED = 20  # candidates of a request that is ranked afterwards; the editor's have an item of each tier

CLICKS = {"click": Objective("click", range=(0, 1))}
TASTE = Encoder(
    FeatureSpec(
        context={"device": Category(list(DEVICES)), "daypart": Category(list(DAYPARTS))},
        items={"genre": Category(list(GENRES)), "price": Number(0, 20)},
        cross=[("daypart", "genre"), ("device", "price")],
    )
)
TIERED = Encoder(FeatureSpec(items={"charm": Number(-1, 1), "tier": Category(list("01234"))}))
VISITS = [Visit("", device, daypart) for daypart in range(len(DAYPARTS)) for device in range(len(DEVICES))]


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: two seeds of a few hundred decisions."""
    count, decisions = seeds or (2 if quick else SEEDS), 400 if quick else DECISIONS
    study = Study("Examination of slots: estimated beside true, and what learners make of it")
    estimates: list[list[Cell]] = []
    ranking: list[list[Cell]] = []
    learning: list[list[Cell]] = []
    for name, steepness in EXAMINATIONS.items():
        truth = 1 / (1 + steepness * np.arange(SLOTS))
        learned = [Taste(1_000 + seed, truth).learned(1_000 + seed, decisions) for seed in range(count)]
        estimates += _estimates(name, f"learner, {decisions:,}", truth, [found for found, _ in learned])
        learning += [[name, *row] for row in _compared([earned for _, earned in learned])]
        for editor, (floor, temperature, most) in (("strict", STRICT), ("lax", LAX)):
            settings, n = DrawSettings("softmax", floor, 1.0, temperature), 400 if quick else most
            edited = [edited_by(1_000 + seed, truth, n, settings) for seed in range(count)]
            estimates += _estimates(name, f"{editor} editor, {n:,}", truth, [found for found, _ in edited])
            ranking += [[name, f"{editor} editor, {n:,}", *row] for row in _compared([earned for _, earned in edited])]
    columns = [
        "examination",
        "log, decisions",
        "slot",
        "true",
        "estimate, mean over seeds",
        "half of 95% interval, mean",
    ]
    study.table("e of each slot, estimated", [*columns, "covered", "95%"], estimates)
    columns = ["learner knows", "clicks a decision", "of the best possible", "more than `none`, %"]
    study.table(RANKED, ["examination", "log, decisions", *columns], ranking)
    study.table(f"linear_thompson learning by itself, {decisions:,} decisions", ["examination", *columns], learning)
    _notes(study, count)
    return study


@dataclass
class Log:
    """Decisions with what they were drawn from: examples for any learner, and the sums of the estimate."""

    changes: list[Changes] = field(default_factory=list)
    sums: F64 = field(default_factory=lambda: examination.start(SLOTS))

    def pairs(self, rng: np.random.Generator, clicks: F64, slate: Slate) -> None:
        """Neighbouring slots of a decision, of a unit that does not come twice."""
        assert slate.distributions is not None  # asked for
        group = int(rng.integers(examination.GROUPS))
        examination.add(self.sums, group, clicks, slate.distributions, slate.items, np.ones(SLOTS))


class Learner:
    """What a surface does: sums under what is known of examination, and under what was known before as addends."""

    def __init__(self, problem: Problem, way: str, examined: F64) -> None:
        self.problem, self.way, self.config = problem, way, LinearThompson(draws=DRAWS)
        self.known: F64 | None = examined if way == "given" else None
        self.addends: list[Addend] = []
        self.begin()

    def begin(self) -> None:
        assert ALGORITHM.learner is not None  # linear_thompson has one
        self.sums = ALGORITHM.learner(self.config, self.problem)

    def learn(self, changes: Changes) -> None:
        known = self.known
        self.sums.learn(changes if known is None else examination.taught(changes, known, np.zeros(1)))

    def look(self, log: Log) -> None:
        """Take over what the log says by now, if that is news."""
        if self.way != "estimated":
            return
        found = examination.estimate(log.sums)
        if found.news(self.known):
            self.addends.append(Addend(self.problem, self.sums.arrays()))
            self.known = found.estimate
            self.begin()

    def published(self, number: int) -> Arrays:
        held = self.sums.arrays()
        if self.addends:
            assert ALGORITHM.carry is not None  # linear_thompson has it
            held = ALGORITHM.carry(self.config, self.problem, held, self.addends, 0.0)
        return ALGORITHM.publish(self.config, self.problem, held, 0.0, number).arrays


class Taste:
    """The demo's world, encoded."""

    def __init__(self, seed: int, examined: F64) -> None:
        self.world = world = TasteWorld(seed)
        world.examined = examined
        pairs = zip(world.genres.tolist(), world.prices.tolist(), strict=True)
        self.items = TASTE.rows([{"genre": GENRES[genre], "price": price} for genre, price in pairs], "$")
        self.contexts = [TASTE.context({n: v for n, v in visit.context.items() if n != "hour"}) for visit in VISITS]
        self.problem = Problem(TASTE, CLICKS, {"click": 1.0}, SLOTS)

    def learned(self, seed: int, decisions: int) -> tuple[Examined, dict[str, float]]:
        """The estimate of the log that `none` made while it learned; clicks a decision by what the learner knows."""
        earned = {"random": float(np.mean([self.world.random_value(visit) for visit in VISITS]))}
        logs = {way: Log() for way in WAYS}
        for way, log in logs.items():
            learner, clicks = Learner(self.problem, way, self.world.examined), []
            rng, settings = np.random.default_rng([seed, 2]), draw_settings(learner.config)
            for number in range(decisions // EVERY):
                arrays = learner.published(number)
                scores = [scored(self.problem, arrays, context, self.items) for context in self.contexts]
                clicks.append(self.shown(rng, log, scores, settings))
                learner.look(log)
                learner.learn(log.changes[-1])
            earned[way] = float(np.mean(clicks))
        earned["best"] = float(np.mean([self.world.best_value(visit) for visit in VISITS]))
        return examination.estimate(logs["none"].sums), earned

    def shown(self, rng: np.random.Generator, log: Log, scores: Sequence[F32], settings: DrawSettings) -> float:
        """`EVERY` decisions into the log; the clicks that were to be expected of each, mean."""
        kinds = rng.integers(len(VISITS), size=EVERY)
        rows, clicks, expected = np.empty((EVERY, SLOTS), np.int64), np.empty((EVERY, SLOTS)), 0.0
        for i, kind in enumerate(kinds.tolist()):
            slate = draw(scores[kind], SLOTS, rng.random(SLOTS), settings, full=True)
            chances = self.world.chances(VISITS[kind], slate.items)
            rows[i], clicks[i] = slate.items, rng.random(SLOTS) < chances
            expected += float(chances.sum())
            log.pairs(rng, clicks[i], slate)
        log.changes.append(changes_of(np.stack([self.contexts[kind] for kind in kinds]), self.items[rows], clicks))
        return expected / EVERY


def edited_by(seed: int, examined: F64, decisions: int, settings: DrawSettings) -> tuple[Examined, dict[str, float]]:
    """The estimate of an editor's log, and clicks of the greedy slates of learners that were taught by it."""
    rng, log = np.random.default_rng([seed, 1]), Log()
    order, none = -np.arange(len(TIERS), dtype=np.float32)[:, None], np.zeros((decisions, 0), np.float32)
    tiers, clicks = np.empty((decisions, SLOTS), np.int64), np.empty((decisions, SLOTS))
    charm = rng.uniform(-1, 1, (decisions, SLOTS))  # of what is shown: the editor does not look at it
    for i in range(decisions):
        slate = draw(order, SLOTS, rng.random(SLOTS), settings, full=True)
        tiers[i] = slate.items
        clicks[i] = rng.random(SLOTS) < examined * attraction(tiers[i], charm[i])
        log.pairs(rng, clicks[i], slate)
    log.changes.append(changes_of(none, encoded(tiers, charm), clicks))
    asked = rng.integers(len(TIERS), size=(2_000, ASKED)), rng.uniform(-1, 1, (2_000, ASKED))
    problem = Problem(TIERED, CLICKS, {"click": 1.0}, SLOTS)

    def worth(scores: F64) -> float:
        best = np.argsort(-scores, axis=1)[:, :SLOTS]
        return float((np.take_along_axis(attraction(*asked), best, axis=1) @ examined).mean())

    earned = {"random": float(attraction(*asked).mean() * examined.sum())}
    for way in WAYS:
        learner = Learner(problem, way, examined)
        learner.look(log)
        learner.learn(log.changes[0])
        items = encoded(*asked).reshape(-1, TIERED.item_size)
        scores = scored(problem, learner.published(0), np.zeros(0, np.float32), items).mean(axis=1)
        earned[way] = worth(scores.reshape(asked[0].shape).astype(np.float64))
    return examination.estimate(log.sums), earned | {"best": worth(attraction(*asked))}


def attraction(tiers: I64, charm: F64) -> F64:
    """(…) of items of these tiers and charms."""
    return np.asarray(TIERS[tiers] + CHARM * charm, np.float64)


def encoded(tiers: I64, charm: F64) -> F32:
    """(n, k, d) as `TIERED` has them, of (n, k)."""
    each = TIERED.rows([{"tier": str(tier)} for tier in range(len(TIERS))], "$")
    items = each[tiers]
    items[..., TIERED.item_columns["charm"].start] = charm
    return items


def scored(problem: Problem, arrays: Arrays, context: F32, items: F32) -> F32:
    """(n, m)."""
    inputs = {"context": context, "items": items, "weights": np.ones(1, np.float32)}
    return ALGORITHM.reference(LinearThompson(draws=DRAWS), problem, arrays, inputs)


def changes_of(contexts: F32, items: F32, clicks: F64) -> Changes:
    """Of contexts (n, c), items (n, k, d) and clicks (n, k)."""
    n, k = clicks.shape
    return Changes(
        context=np.repeat(contexts, k, axis=0),
        items=items.reshape(n * k, -1),
        slots=np.tile(np.arange(k), n),
        slates=np.repeat(np.arange(n), k),
        times=np.zeros(n * k),
        weights=np.ones(n * k),
        present_before=np.zeros(n * k),
        present_after=np.ones(n * k),
        rewards_before=np.zeros((n * k, 1)),
        rewards_after=clicks.reshape(-1, 1),
        item_hashes=np.zeros(n * k, np.uint64),  # nothing here reads them, nor what follows
        propensities=np.full(n * k, 0.5),
    )


def _estimates(world: str, log: str, truth: F64, found: Sequence[Examined]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for slot in range(1, len(truth)):
        known = [one for one in found if np.isfinite(one.estimate[slot])]
        hits = sum(bool(one.low[slot] <= truth[slot] <= one.high[slot]) for one in known)
        _, low, high = proportion(hits, len(found))
        mean = with_interval(np.array([one.estimate[slot] for one in known]))
        half = float(np.mean([(one.high[slot] - one.low[slot]) / 2 for one in known]))
        share = f"{hits} of {len(found)}"
        rows.append([world, log, slot, float(truth[slot]), mean, half, share, f"[{low:.2f}, {high:.2f}]"])
    return rows


def _compared(found: Sequence[dict[str, float]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for way in ("random", *WAYS, "best"):
        clicks, best = np.array([one[way] for one in found]), np.array([one["best"] for one in found])
        base = np.array([one["none"] for one in found])
        gain = with_interval(100 * (clicks / base - 1)) if way in ("estimated", "given") else None
        rows.append([way, with_interval(clicks), with_interval(clicks / best), gain])
    return rows


def _notes(study: Study, count: int) -> None:
    rows = study.tables[0].rows
    covered = sum(int(str(row[6]).split()[0]) for row in rows)
    share, low, high = proportion(covered, count * len(rows))
    study.note(
        f"{count} seeds, a world each; nothing was tuned on them. {covered} of {count * len(rows)} intervals cover what is true: "
        f"{share:.1%} [{low:.1%}, {high:.1%}] (slots of one seed are not independent, the interval takes them to be); wanted 95%."
    )
    for table, what in zip(study.tables[1:], ("after an editor's log", "learning by itself"), strict=True):
        gains = [f"{', '.join(map(str, row[:-3]))}: {row[-1]}%" for row in table.rows if row[-1] is not None]
        study.note(f"clicks more than `none`, {what}: {'; '.join(gains)}")
    study.note(
        "`none` is the default: slots have columns of their own in φ. `given` knows what is true. `estimated` does as a surface "
        "does: nothing, until the 95% interval of every slot is ±20% or less; then it is recorded, and what was learned before is "
        "carried as it was learned."
    )
    worst = min(rows, key=lambda row: int(str(row[6]).split()[0]))
    study.note(
        f"The worst covered is slot {worst[2]} of the {worst[1]} decisions log under {worst[0]}: {worst[6]}. A learner that shows first what "
        "it likes has no confounding to undo; that `given` then earns less than `none` we take to be the wider posterior of slots that "
        "are seldom looked at, explored for longer than these few decisions pay for, which is not shown here."
    )
    study.note(
        f"Editors draw by softmax of minus the tier, the strict one at temperature {STRICT[1]:g} with a floor of {STRICT[0]:g}, the "
        f"lax one at {LAX[1]:g} with {LAX[0]:g}; slates are ranked of {ASKED}. linear_thompson with {DRAWS} draws and its "
        f"defaults, a bundle every {EVERY} decisions."
    )
