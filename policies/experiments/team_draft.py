"""Team draft of two policies that draw, with the exact probability of every slate: interleaving that can be served.

    round    two free slots; a coin says which policy picks first, the other one picks second
    pick     one draw from the policy's own distribution of the slot, p_A or p_B, given all items before, whoever picked them
    first    p(a) = ½ p_A(a) + ½ p_B(a)
    second   p(b | a) = w p_B(b | a) + (1 − w) p_A(b | a),   w = p_A(a) / (p_A(a) + p_B(a)): how likely it was A that took a

Coins of different rounds are independent, so p is the chance of an item given the items before, with nothing else to know: the
product over a slate is the chance of the slate, and what any policy is worth can be estimated from these as from other slates.
A slot for which only one policy has a candidate is that policy's; pins belong to nobody.
Source   Radlinski, Kurup and Joachims, CIKM 2008, with draws in place of rankings
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.evaluation.conditionals import Along
from policies.experiments.interleaving import FIRST, SECOND
from policies.reranking.acting import Ready
from policies.types import F32, F64, DrawSettings, Slate

NOBODY = -1  # whose a pinned slot is
PURPOSE = "coins"  # of the uniforms that say who picks first


@dataclass(frozen=True, slots=True)
class Side:
    """A policy of the two: its scores (n, m), what they are drawn under, and what acts on them."""

    scores: F32
    settings: DrawSettings
    ready: Ready = field(default_factory=Ready)


@dataclass(frozen=True, slots=True)
class Drafted:
    """A slate with full distributions, who picked each slot (FIRST, SECOND, NOBODY), and (2, k') the chance that either gave it."""

    slate: Slate
    teams: list[int]
    own: F64


def drafted(
    sides: tuple[Side, Side], k: int, u: F64, coins: F64 | Sequence[int], pins: Mapping[int, int] | None = None
) -> Drafted:
    """A slate of up to k items. `u` (k,) uniforms in [0, 1), one a slot.

    coins  (⌈k/2⌉,) uniforms, one a round, below ½ the first begins; or, of a slate that is drawn again, its `teams`
    Both policies must give every allowed item a chance (a floor above 0), so that each can follow what the other picks.
    Raises Corrupt('nan_scores').
    """
    pinned = dict(pins or {})
    along = [Along(s.scores, k, s.settings, pins=pinned, **s.ready.arguments) for s in sides]
    again = coins if isinstance(coins, Sequence) else None
    rows: list[tuple[int, int, float, int, int, bool]] = []
    teams: list[int] = []
    own: list[tuple[float, float]] = []
    whole: list[F64] = []
    picked = 0  # free slots filled so far
    first_was_a = 0.5
    for slot in range(k):
        parts = [one.at(slot) for one in along]
        there = [part is not None for part in parts]
        if not any(there):
            continue
        p_a, p_b = (np.zeros(len(sides[0].scores)) if part is None else part for part in parts)
        if slot in pinned:
            mixed, team = p_a, NOBODY
        else:
            opens = picked % 2 == 0  # of a round
            if opens:
                first_was_a = 0.5
                begins = _first(coins, picked // 2) if again is None else again[len(teams)]
            share = first_was_a if opens else 1.0 - first_was_a  # of A picking here, given the items so far
            share = share if all(there) else float(there[FIRST])
            mixed = share * p_a + (1.0 - share) * p_b
            turn = begins if opens else 1 - begins
            team = turn if there[turn] else 1 - turn
            if again is not None:
                team = again[len(teams)]
            picked += 1
        row = pinned[slot] if team == NOBODY else _drawn((p_a, p_b)[team], float(u[slot]))
        if team != NOBODY and opens and all(there):
            first_was_a = float(p_a[row] / (p_a[row] + p_b[row]))
        rows.append(
            (slot, row, float(mixed[row]), max(a.remaining for a in along), int(mixed.argmax()), team == NOBODY)
        )
        teams.append(team)
        own.append((float(p_a[row]), float(p_b[row])))
        whole.append(mixed)
        for one, here in zip(along, there, strict=True):
            if here:
                one.took(slot, row)
    slots, items, p, remaining, greedy, is_pin = zip(*rows, strict=True) if rows else ((),) * 6
    last = along[FIRST].last
    slate = Slate(
        np.array(slots, np.int64),
        np.array(items, np.int64),
        np.array(p, np.float64),
        np.array(remaining, np.int64),
        np.array(greedy, np.int64),
        np.ones(len(rows)),
        np.array([1.0 - float(p.max()) for p in whole]),
        np.array(is_pin, np.bool_),
        np.array(whole).reshape(len(rows), len(sides[0].scores)),
        None if last is None else last.acts,
    )
    return Drafted(slate, teams, np.array(own).reshape(-1, 2).T)


def _first(coins: F64 | Sequence[int], number: int) -> int:
    return FIRST if coins[number] < 0.5 else SECOND


def _drawn(p: F64, u: float) -> int:
    """The item that a uniform lands on, as the draw takes it."""
    reached = np.concatenate(([0.0], np.add.accumulate(p)[:-1]))
    return int(np.flatnonzero((reached <= u) & (p > 0))[-1])
