"""Impression variance played: batches of auctions, an aggregator that releases after each, a controller that sees no more."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from policies.reranking.impression_variance import Aggregator, Controller, Privacy, Released, distances, learned
from policies.types import F64, I64
from policies.worlds.ads_world import AdsWorld, Shown, true_counts
from services.replay.datasets import located
from services.replay.jester import factors

PRIVACY = Privacy(counts=6, release=0.5, total=4.0)
RELEASES_A_DAY, ENOUGH, CLOSE = 8, 300, 0.1
SKEW = {2: 0.3, 4: 0.27}  # of the world: chosen so that uncorrected at most 60% and 40% are close, on seeds 101 to 103
TRAINED_ON = 1_000  # first of the seeds of worlds that controllers learn in
COST = 2.0  # of utility, in the controllers' reward


class World(Protocol):
    """People with a sensitive group and a cluster, and auctions over items."""

    groups: I64
    clusters: I64
    number: int
    mix: F64

    def arrive(self, requests: int, rng: np.random.Generator) -> I64: ...

    def auction(self, units: I64, rng: np.random.Generator, boosts: F64 | None = None) -> Shown: ...


@dataclass(frozen=True)
class Size:
    batches: int = 24
    requests: int = 16_000
    units: int = 60_000


@dataclass(frozen=True)
class Seen:
    """True counts of one run: delivered and eligible (n, G), unique units an item (n,), utility a request, requests left out."""

    delivered: F64
    eligible: F64
    reach: F64
    utility: float
    left_out: float
    by_group: F64  # (G,) utility a request of each group

    @property
    def scored(self) -> F64:
        """Distances of items with enough impressions."""
        return np.asarray(distances(self.delivered, self.eligible)[self.delivered.sum(axis=1) >= ENOUGH])

    @property
    def close(self) -> float:
        return float((self.scored <= CLOSE).mean())


def play(world: World, seed: int, size: Size, controller: Controller | None, *, fixed: bool = False) -> Seen:
    """`fixed`: the boosts of the first release stay."""
    rng, groups, noise = np.random.default_rng([seed, 9]), world.mix.shape[1], np.random.default_rng([seed, 10])
    aggregator = Aggregator(world.groups, groups, world.number, len(world.mix), PRIVACY)
    delivered, eligible = np.zeros((2, world.number, groups))
    reached = np.zeros((world.number, len(world.groups)), bool)
    boosts: F64 | None = None
    told: Released | None = None
    values, counts = np.zeros((2, groups))
    for number in range(size.batches):
        if number % RELEASES_A_DAY == 0:
            aggregator.new_day()
        shown = world.auction(world.arrive(size.requests, rng), rng, boosts)
        here, could = true_counts(world, shown)  # type: ignore[arg-type]  # all that it reads, both worlds have
        delivered += here
        eligible += could
        reached[shown.ads, shown.units] = True
        of = world.groups[shown.units]
        values += np.bincount(of, shown.value, groups)
        counts += np.bincount(of, minlength=groups)
        if controller is None or (fixed and boosts is not None):
            continue
        pick = (noise.random(shown.eligible.shape, np.float32) * shown.eligible).argmax(axis=1)
        aggregator.add(shown.units, shown.ads, pick, world.clusters[shown.units])
        new = aggregator.release(noise)
        told = new if told is None else told + new
        boosts = controller.boosts(told, PRIVACY, None if fixed else boosts)
    total = float(counts.sum())
    return Seen(
        delivered,
        eligible,
        reached.sum(axis=1).astype(float),
        float(values.sum()) / total,
        aggregator.left_out / total,
        values / np.maximum(counts, 1),
    )


def trained(groups: int, size: Size, rounds: int, pairs: int) -> tuple[Controller, list[float]]:
    """Learned in worlds of its own."""
    small = Size(max(2, size.batches // 2), max(500, size.requests // 4), max(2_000, size.units // 2))
    without: dict[int, Seen] = {}

    def reward(controller: Controller, number: int) -> float:
        seed = TRAINED_ON + number

        def made() -> AdsWorld:
            return AdsWorld(seed, groups=groups, skew=SKEW[groups], units=small.units)

        if seed not in without:
            without[seed] = play(made(), seed, small, None)
        before, after = without[seed], play(made(), seed, small, controller)
        worst = float(np.nanmean(distances(before.delivered, before.eligible)))
        better = float(np.nanmean(distances(after.delivered, after.eligible)))
        return (worst - better) / worst - COST * (before.utility - after.utility) / before.utility

    return learned(reward, rounds=rounds, pairs=pairs, seed=groups)


class CoatWorld:
    """The 60 coats rated most often, for people of whom each of the 290 stands for `copies`: utility is the rating a model of the
    ratings they chose to give expects; the same for all copies. Clusters are of tastes: k-means of the model's factors."""

    def __init__(
        self, data: Path | None, attribute: str, copies: int = 200, coats: int = 60, clusters: int = 8
    ) -> None:
        from scipy.cluster.vq import kmeans2  # comes with what studies need

        given = np.loadtxt(located(data, "coat/train.ascii"))
        features = np.loadtxt(located(data, "coat/user_item_features/user_features.ascii"))
        self.test = np.loadtxt(located(data, "coat/test.ascii"))
        items = np.sort(np.argsort(-(given > 0).sum(axis=0), kind="stable")[:coats])
        known = np.where(given > 0, given, np.nan)
        mean, tastes = factors(known.T, rank=4)  # of people, by coats
        centred = known.T - mean
        loadings = np.linalg.lstsq(tastes, np.where(np.isnan(centred), 0.0, centred).T, rcond=None)[0]
        self.ratings: F64 = np.clip(mean[:, None] + 4 * tastes @ loadings, 1, 5)[:, items]
        self.test = self.test[:, items]
        ages = features[:, [7, 2]].sum(axis=1) > 0, features[:, 3] > 0
        kinds = {"gender": features[:, 1] > 0, "age": np.where(ages[0], 0, np.where(ages[1], 1, 2))}[attribute]
        self.people = len(given)
        of = kmeans2(tastes, clusters, minit="++", seed=290)[1].astype(np.int64)
        self.groups: I64 = np.tile(kinds.astype(np.int64), copies)
        self.clusters: I64 = np.tile(of, copies)
        self.number = coats
        self.mix: F64 = np.zeros((clusters, int(self.groups.max()) + 1))  # its shape is read, its numbers are nobody's

    def arrive(self, requests: int, rng: np.random.Generator) -> I64:
        return rng.integers(len(self.groups), size=requests)

    def auction(self, units: I64, rng: np.random.Generator, boosts: F64 | None = None) -> Shown:
        """Half of the coats, any, are offered to each; utility counts the rating."""
        offered = rng.random((len(units), self.number), np.float32) < 0.5
        of = units % self.people
        scores = self.ratings[of] + 0.3 * rng.standard_normal(offered.shape, np.float32)
        if boosts is not None:
            scores += boosts.T[self.clusters[units]]
        ads = np.where(offered, scores, -np.inf).argmax(axis=1)
        return Shown(units, ads, offered, self.ratings[of, ads])
