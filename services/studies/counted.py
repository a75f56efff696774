"""What an item's own click rate is worth as a feature: where quality follows from features, where it does not, and where it fades.

Forty stories, slates of three, a decision a second; a story goes when it has been up for 2,000 s and a new one comes. A shown
story is clicked with chance q:

    known    q of its genre, one of eight; nothing is left for a rate to tell
    unknown  q of its own, the genre says nothing: every new story has to be found out about
    fading   as `unknown`, and q halves every 500 s of its age

Each q ~ Beta(1.5, 8.5). Learners, draws, encoding and the windows that slide are those that serve; bundles and counts are as
old as the last 50 decisions. `best` shows the three largest q there are, `random` any three.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.algorithm import Config, Problem, draw_settings
from policies.algorithms.hierarchical_thompson import HierarchicalThompson
from policies.algorithms.linear_thompson import LinearThompson
from policies.bundle import item_inputs
from policies.counted import value
from policies.features import Encoder
from policies.registry import ALGORITHMS
from policies.slate import draw
from policies.surface import Category, Count, Feature, FeatureSpec, Objective, Rate
from policies.types import F32, F64, I64, Arrays, Changes, item_hashes
from services.studies.study import Cell, Study, with_interval
from streaming.shown import sliding

WORLDS = ("known", "unknown", "fading")
SEEDS, DECISIONS, EVERY = 8, 6_000, 50
STORIES, SLOTS, LIFE, FADES = 40, 3, 2_000, 500
WINDOW = 1_000  # seconds
GENRES = list("abcdefgh")
QUALITY = (1.5, 8.5)
CLICKS = {"click": Objective("click", range=(0, 1))}
GENRE: dict[str, Feature] = {"genre": Category(GENRES)}
RATE = Rate("click", WINDOW, (1, 6), max=0.6)
SEEN = Count("shown", WINDOW, max=500)
PLAIN, RATED = Encoder(FeatureSpec(items=GENRE)), Encoder(FeatureSpec(items={**GENRE, "ctr": RATE}))
BOTH = Encoder(FeatureSpec(items={**GENRE, "ctr": RATE, "seen": SEEN}))
LINEAR, EACH = LinearThompson(draws=64), HierarchicalThompson(draws=64)
WAYS: dict[str, tuple[str, Config, Encoder]] = {
    "linear_thompson": ("linear_thompson", LINEAR, PLAIN),
    "linear_thompson, rate": ("linear_thompson", LINEAR, RATED),
    "linear_thompson, rate and impressions": ("linear_thompson", LINEAR, BOTH),
    "hierarchical_thompson": ("hierarchical_thompson", EACH, PLAIN),
    "hierarchical_thompson, rate": ("hierarchical_thompson", EACH, RATED),
}


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: two seeds of 1,500 decisions."""
    count, decisions = seeds or (2 if quick else SEEDS), 1_500 if quick else DECISIONS
    study = Study("An item's own rate as a feature: clicks a decision where quality is known, unknown and fading")
    rows: list[list[Cell]] = []
    for world in WORLDS:
        found = [earned(world, seed, decisions) for seed in range(2_000, 2_000 + count)]
        base = np.array([one["linear_thompson"] for one in found])
        low, high = (np.array([one[name] for one in found]) for name in ("random", "best"))
        for way in ("random", *WAYS, "best"):
            clicks = np.array([one[way] for one in found])
            gain = with_interval(100 * (clicks / base - 1)) if way in WAYS and way != "linear_thompson" else None
            share = with_interval((clicks - low) / (high - low)) if way in WAYS else None
            rows.append([world, way, with_interval(clicks), share, gain])
    columns = ["world", "policy", "clicks a decision", "of the way from random to best", "more than linear_thompson, %"]
    study.table(f"{decisions:,} decisions from nothing learned", columns, rows)
    study.note(
        f"{count} seeds, a world each, the same for every policy; means with 95% intervals by Student's t; nothing was tuned on them. Chances "
        "of what was shown are summed, not clicks, so their noise is left out."
    )
    study.note(
        f"The rate is of {WINDOW:,} s with prior [1, 6] and max 0.6. Both algorithms by default, with 64 draws; neither forgets. "
        "hierarchical_thompson keeps sums of every story that was ever shown, a rate needs no memory of the policy."
    )
    return study


@dataclass
class World:
    """Stories that come and go. `q` (n,), `genre` (n,), `born` (n,) seconds of all there ever are; `rows` those that are up."""

    q: F64
    genre: I64
    born: I64
    fades: bool

    @classmethod
    def of(cls, name: str, seed: int, decisions: int) -> "World":
        rng, n = np.random.default_rng([seed, 1]), STORIES + decisions * STORIES // LIFE + 1
        born = (np.arange(n) - STORIES) * LIFE // STORIES
        genre = rng.integers(len(GENRES), size=n)
        q = rng.beta(*QUALITY, len(GENRES))[genre] if name == "known" else rng.beta(*QUALITY, n)
        return cls(q, genre, born, name == "fading")

    def rows(self, now: int) -> I64:
        return np.flatnonzero((self.born <= now) & (now < self.born + LIFE))

    def chances(self, rows: I64, now: int) -> F64:
        faded = 0.5 ** ((now - self.born[rows]) / FADES) if self.fades else 1.0
        return np.asarray(self.q[rows] * faded, np.float64)


class Windows:
    """Clicks and impressions of stories by fixed windows: (n, windows) each."""

    def __init__(self, stories: int, decisions: int) -> None:
        self.clicks, self.seen = (np.zeros((stories, decisions // WINDOW + 2)) for _ in range(2))

    def add(self, rows: I64, clicks: F64, now: int) -> None:
        number = now // WINDOW + 1
        np.add.at(self.clicks[:, number], rows, clicks)
        np.add.at(self.seen[:, number], rows, 1.0)

    def of(self, rows: I64, now: int) -> tuple[list[float], list[float]]:
        """(rates, impressions) of stories as a request finds them."""
        at = now // WINDOW + 1
        clicks, seen = (
            [sliding(*pair, WINDOW, now) for pair in zip(of[rows, at].tolist(), of[rows, at - 1].tolist(), strict=True)]
            for of in (self.clicks, self.seen)
        )
        return [value(RATE, pair) for pair in zip(clicks, seen, strict=True)], seen


def earned(name: str, seed: int, decisions: int) -> dict[str, float]:
    """Clicks to be expected of what each way showed, a decision."""
    world = World.of(name, seed, decisions)
    times = range(0, decisions, EVERY)
    up = [world.chances(world.rows(now), now) for now in times]
    found = {
        "random": float(np.mean([SLOTS * chances.mean() for chances in up])),
        "best": float(np.mean([np.sort(chances)[-SLOTS:].sum() for chances in up])),
    }
    return found | {way: lived(world, seed, decisions, *of) for way, of in WAYS.items()}


def lived(world: World, seed: int, decisions: int, algorithm: str, config: Config, encoder: Encoder) -> float:
    made = ALGORITHMS[algorithm]
    assert made.learner is not None  # both learn
    problem, rng = Problem(encoder, CLICKS, {"click": 1.0}, SLOTS), np.random.default_rng([seed, 2])
    learner, windows = made.learner(config, problem), Windows(len(world.q), decisions)
    hashes = item_hashes([f"story-{i}" for i in range(len(world.q))])
    settings, total = draw_settings(config), 0.0
    for number, now in enumerate(range(0, decisions, EVERY)):
        rows = world.rows(now)
        items = encoded(encoder, world.genre[rows], *windows.of(rows, now))
        arrays = made.publish(config, problem, learner.arrays(), float(now), number).arrays
        inputs: Arrays = {"context": np.zeros(0, np.float32), "items": items, "weights": np.ones(1, np.float32)}
        if "item_rows" in made.inputs:
            inputs |= item_inputs(arrays, items, hashes[rows])
        scores = made.reference(config, problem, arrays, inputs)  # type: ignore[arg-type]  # rows are whole numbers
        chances = world.chances(rows, now)
        drawn = np.array([draw(scores, SLOTS, rng.random(SLOTS), settings).items for _ in range(EVERY)])
        clicks = (rng.random(drawn.shape) < chances[drawn]).astype(np.float64)
        total += float(chances[drawn].sum())
        windows.add(rows[drawn].ravel(), clicks.ravel(), now)
        learner.learn(changes_of(items[drawn], clicks, hashes[rows[drawn]].ravel(), now))
    return total / decisions


def encoded(encoder: Encoder, genres: I64, rates: Sequence[float], seen: Sequence[float]) -> F32:
    told = {"genre": [GENRES[genre] for genre in genres.tolist()], "ctr": list(rates), "seen": list(seen)}
    return encoder.columns({name: told[name] for name in encoder.spec.items}, len(genres), "$")


def changes_of(items: F32, clicks: F64, hashes: "np.ndarray[tuple[int], np.dtype[np.uint64]]", now: int) -> Changes:
    """Of items (n, k, d) and clicks (n, k)."""
    n, k = clicks.shape
    return Changes(
        context=np.zeros((n * k, 0), np.float32),
        items=items.reshape(n * k, -1),
        slots=np.tile(np.arange(k), n),
        slates=np.repeat(np.arange(n), k),
        times=np.full(n * k, float(now)),
        weights=np.ones(n * k),
        present_before=np.zeros(n * k),
        present_after=np.ones(n * k),
        rewards_before=np.zeros((n * k, 1)),
        rewards_after=clicks.reshape(-1, 1),
        item_hashes=hashes,
        propensities=np.full(n * k, 0.5),  # nothing here reads them
    )
