"""When a decision's reward became what it is: what surfaces with `silence: corrected` learn beside rewards.

A function of what was heard of a decision, like its evidence, so that a correction takes back what it brought: what was said
of the delays before is worked out again from what had been heard before, and no row has to keep it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from policies.delays import BUCKETS, EDGES
from policies.rewards import Heard
from policies.types import Delays
from streaming.joined import SHOWN, WHOLE, Join, Terms, in_force

Spread = tuple[tuple[int, int, float], ...]  # (objective, bucket, by how much its reward moved), ascending
_EDGES = EDGES.tolist()


def spread_of(join: Join, terms: Terms, present: bytes) -> Spread:
    """How the reward of a decision came about, over its slots that are `present` by what it has heard."""
    drawn = join.drawn
    if drawn is None or not join.heard or not present:
        return ()
    until, k, heard = drawn.at + terms.horizon, len(drawn.slate), list[Heard]()
    for versions in join.heard.values():
        said = in_force(versions, until)
        if said is not None and said.kind != SHOWN and said.at <= until:
            heard.append(Heard(said.positions[0] if said.positions else WHOLE, said.kind, said.value, said.at))
    if not heard:
        return ()
    there = np.frombuffer(present, np.bool_)
    rule, found, known = terms.compiled.rewards, list[tuple[int, int, float]](), list[Heard]()
    before = rule(k, known)[0]
    for bucket, group in groupby(sorted(heard, key=_at), lambda one: _bucket(one.at - drawn.at, terms.horizon)):
        known += group
        after = rule(k, known)[0]
        moved = np.abs(after - before)[there].sum(axis=0).tolist()
        found += [(objective, bucket, mass) for objective, mass in enumerate(moved) if mass > 0.0]
        before = after
    return tuple(sorted(found))


def _at(heard: Heard) -> float:
    return heard.at


def _bucket(delay: float, horizon: float) -> int:
    """As `policies.delays.bucket_of`."""
    return min(bisect_left(_EDGES, delay / horizon), BUCKETS - 1)


def delays_of(moved: Sequence[tuple[float, Spread, Spread]]) -> Delays:
    """Of decisions by time: what is taken back of each, and what is added."""
    rows = [
        (at, objective, bucket, sign * mass, sign * (not i or spread[i - 1][0] != objective))
        for at, before, after in moved
        if before != after
        for sign, spread in ((-1.0, before), (1.0, after))
        for i, (objective, bucket, mass) in enumerate(spread)
    ]
    times, objectives, buckets, masses, counts = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Delays(
        np.array(times, np.float64),
        np.array(objectives, np.int64),
        np.array(buckets, np.int64),
        np.array(masses, np.float64),
        np.array(counts, np.float64),
    )
