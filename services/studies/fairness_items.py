"""Exposure of groups of items played: the service's own draw and controller, request by request, beside a linear program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.reranking.exposure import Fair, Law, Owed, boosts, entitled, looks_of, sampled, stepped
from policies.slate import draw
from policies.types import F32, F64, I64, DrawSettings
from policies.worlds.ads_world import AdsWorld
from policies.worlds.creator_world import CreatorWorld
from services.replay import jester

DRAWS, NOISE = 32, 0.15  # of the pool, in standard deviations of a request's values
SETTINGS = DrawSettings(floor=0.02)
SYNC = 20  # requests
LAW = Law(gain=0.3, most=4.0, window=100.0)  # a second is a sync
# 24 groups, each of which gets little: a sync every other request
RARE, RARE_SYNC = Law(gain=0.9, most=4.0, window=1_000.0), 2
EACH = Law(gain=0.9, most=4.0, window=400.0)  # 30 groups of one ad; chosen on seeds 101 and 102


@dataclass(frozen=True)
class Told:
    """Requests of one run: delivered (T, G) and utility (T,), expected under the distributions; utility of each group's looks."""

    delivered: F64
    utility: F64
    by_group: F64  # (T, G)

    def share(self, group: int, part: slice) -> float:
        return float(self.delivered[part, group].sum() / self.delivered[part].sum())


def play(
    pools: Callable[[int], tuple[F32, F64]],
    codes: I64,
    groups: Sequence[str],
    slots: int,
    requests: int,
    seed: int,
    *,
    law: Law | None = None,
    fixed: F64 | None = None,
    told: bool = False,
) -> Told:
    """`pools(t)`: scores (n, m) and true values (n,) of request t. Without a law or fixed boosts nothing is corrected. `told`: the
    controller knows what records tell of each item, an even sample of a decision's candidates, and not all that was delivered."""
    rng, count = np.random.default_rng([seed, 77]), len(groups)
    state, waiting = Owed(np.zeros(count)), np.zeros((2, count))
    delivered, valued, utility = np.zeros((requests, count)), np.zeros((requests, count)), np.zeros(requests)
    given = np.zeros(count) if fixed is None else fixed
    for t in range(requests):
        scores, values = pools(t)
        fair = Fair(codes, groups, given, np.ones(count))
        ready = fair.acting(scores).ready(len(codes), slots)
        slate = draw(scores, slots, rng.random(slots), SETTINGS, full=True, **ready.arguments)
        delivered[t], owed, _, of = fair.delivered(slate)
        assert slate.distributions is not None  # they were asked for
        each = (looks_of((), slots) @ slate.distributions) * values
        valued[t], utility[t] = np.bincount(codes, each, count), each.sum()
        if told:
            rows, weights = sampled(count, f"{seed}-{t}", of)
            waiting[:, rows] += weights * np.array([owed[rows], delivered[t, rows]])
        else:
            waiting += [owed, delivered[t]]
        if law is not None and t % SYNC == SYNC - 1:
            state = stepped(law, state, waiting[0], waiting[1], 1.0)
            given, waiting = boosts(law, state), np.zeros((2, count))
    return Told(delivered, utility, valued)


def unevenness(told: Told, part: slice) -> float:
    """½ Σ |share of the looks − 1/G|: the part of all looks that would have to go to others."""
    shares = told.delivered[part].sum(axis=0) / told.delivered[part].sum()
    return float(np.abs(shares - 1 / len(shares)).sum() / 2)


def ads(seed: int, slots: int, requests: int) -> tuple[Callable[[int], tuple[F32, F64]], I64, AdsWorld]:
    """Auctions of slates in `ads_world`: half of the ads are of small advertisers, who bid a quarter less."""
    world = AdsWorld(seed, units=5_000, ads=30)
    codes = (np.arange(world.number) >= world.number // 2).astype(np.int64)
    world.bids[codes == 1] *= 0.75
    rng, values = np.random.default_rng([seed, 78]), world.values
    noise = rng.standard_normal((*values.shape, DRAWS)) * NOISE * values.std(axis=1)[:, None, None]
    pool = (values[:, :, None] + noise).astype(np.float32)
    of = world.clusters[world.arrive(requests, rng)]
    return lambda t: (pool[of[t]], values[of[t]]), codes, world


def optimum(values: F64, weights: F64, codes: I64, slots: int, shares: F64 | None, slack: float = 0.0) -> float:
    """Largest utility a request when groups get `shares` (G,) ± slack of the looks (None: whatever): a linear program over
    (cluster, item, slot), whose solutions are mixtures of slates (Birkhoff)."""
    from scipy import sparse
    from scipy.optimize import linprog

    (clusters, n), looks = values.shape, looks_of((), slots)
    gain = (weights[:, None, None] * values[:, :, None] * looks).ravel()
    eye = sparse.eye_array
    filled = sparse.kron(eye(clusters), sparse.kron(np.ones((1, n)), eye(slots)))
    once = sparse.kron(eye(clusters * n), np.ones((1, slots)))
    bounds: list[F64] = []
    rows, limits = [once], [np.ones(clusters * n)]
    if shares is not None:
        members = codes == np.arange(len(shares))[:, None]
        exposed = sparse.csr_array(
            (weights[:, None, None] * members[:, None, :, None] * looks).reshape(len(shares), -1)
        )
        rows += [exposed, -exposed]
        total = looks.sum()
        bounds = [(shares + slack) * total, (slack - shares) * total]
    found = linprog(
        -gain,
        A_ub=sparse.vstack(rows),
        b_ub=np.concatenate(limits + bounds),
        A_eq=filled,
        b_eq=np.ones(clusters * slots),
        bounds=(0, 1),
        method="highs",
    )
    if found.status != 0:
        raise ArithmeticError(f"linear program: {found.message}")
    return float(-found.fun)


def jokes(data: Path | None, seed: int, requests: int) -> tuple[Callable[[int], tuple[F32, F64]], I64]:
    """Jester: people who rated every joke come in a random order. Groups are made up: the half of the jokes that others like less."""
    world = jester.world(data)
    rng = np.random.default_rng([seed, 79])
    codes = (world.popularity < np.median(world.popularity)).astype(np.int64)
    expected = world.popularity + world.taste @ world.embedding.T
    order = rng.permutation(len(expected))
    noise = rng.standard_normal((len(codes), DRAWS)) * NOISE

    def pools(t: int) -> tuple[F32, F64]:
        user = order[t % len(order)]
        scores = expected[user][:, None] + noise * expected[user].std()
        return scores.astype(np.float32), world.rewards[user]

    return pools, codes


def creators(seed: int, periods: int, requests: int, correct: str) -> tuple[F64, F64, F64]:
    """(utility a request, creators left, what it would be had nobody left) by period; `correct`: none | equal | reserve.

    `reserve`: only what keeps a creator, its need and a tenth, is owed to each; all beyond is anybody's.
    """
    world, rng = CreatorWorld(seed), np.random.default_rng([seed, 80])
    count, slots = len(world.here), world.slots
    state, given = Owed(np.zeros(count)), np.zeros(count)
    utility, kept, best = np.zeros((3, periods))
    for period in range(periods):
        values, got = world.values, np.zeros(count)
        here = np.flatnonzero(world.here)
        best[period], kept[period] = world.best, len(here)
        noise = rng.standard_normal((len(here), DRAWS)) * NOISE * values.std()
        pools = (values[:, here, None] + noise).astype(np.float32)
        codes, waiting = np.arange(len(here)), np.zeros((2, count))
        for t in range(requests):
            of = int(rng.integers(len(values)))
            fair = Fair(codes, [str(j) for j in here], given[here], np.ones(len(here)))
            ready = fair.acting(pools[of]).ready(len(here), slots)
            slate = draw(pools[of], slots, rng.random(slots), SETTINGS, full=True, **ready.arguments)
            delivered, _, drawn, _ = fair.delivered(slate)
            utility[period] += float(world.looks[: len(slate.items)] @ values[of, here[slate.items]]) / requests
            got[here] += drawn
            due = entitled(np.ones(len(here)), np.ones(len(here), np.int64), world.looks)
            floor = min(1.0, 1.1 * world.need * len(here) / count) if correct == "reserve" else 1.0
            waiting[0, here] += due * floor
            waiting[1, here] += delivered
            if correct != "none" and t % RARE_SYNC == RARE_SYNC - 1:
                state = stepped(RARE, state, waiting[0], waiting[1], 1.0)
                if correct == "reserve":  # nobody pays back what it got beyond its need
                    state = Owed(np.maximum(state.owed, 0.0), state.looks, state.syncs)
                given, waiting = boosts(RARE, state), np.zeros((2, count))
        world.pass_period(got)
    return utility, kept, best
