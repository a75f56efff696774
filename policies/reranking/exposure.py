"""Exposure of groups of items: shares in every prefix of a slate, and what is owed over many requests (amortised).

    v_t            how much of a look slot t gets, 1 / log₂(t + 2) unless the surface says otherwise
    delivered_g    Σ_t v_t · p_t(g | prefix), from the distributions that were drawn from; the draws are counted beside
    entitled_g     the group's share of Σ_t v_t among the groups that have a candidate in the request, and at most what its
                   candidates could get in the best slots; what it cannot take goes to the others
    owed_g         leaks over the window, and grows by entitled − delivered; stands still in the direction of a clipped boost
    boost_g        clip(K · owed_g, ±most) · IQR of the request's scores, K = gain / (looks delivered in one sync)

Looks are counted from the log, so a worker sees them a sync late; with K · (looks per sync) = gain < 1 a boost cannot make
up for more than is owed before it is seen to have worked. A boost is one number for a group: nothing of one person enters it.
Every item can be a group of its own (`EACH`); a decision then tells of an even sample of its candidates, which stand for all.

Targets   equal: each group the same; given: as told; merit: ∝ Σ r/p over the slots that showed the group, its reward had all
          candidates been shown evenly. Propensities are positive for every candidate (the floor), and a boost cancels in r/p.
Sources   Singh & Joachims, KDD 2018 (exposure); Morik et al., SIGIR 2020 (a controller of what is owed); Geyik et al.,
          KDD 2019 (⌊share · t⌋ of every prefix)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from msgspec import Struct

from policies.compiling import compiled, plain
from policies.reranking.acting import NOTHING_ACTS, Acting, scaled
from policies.reranking.within import NO_VECTORS, Constraint, Op
from policies.types import F32, F64, I64, Slate

SOURCE = "exposure"  # of boosts, in explanations, records and metrics
EACH = "item"  # by: every item is a group of its own
SAMPLED = 16  # candidates that a decision tells of, where there are more and each is a group


@dataclass(frozen=True, slots=True)
class Law:
    """gain = K · (looks per sync), below 1; most in interquartile ranges; window in seconds."""

    gain: float
    most: float
    window: float


@dataclass(frozen=True, slots=True)
class Owed:
    """Of G groups, in looks. `looks` and `syncs` are leaky sums whose ratio is the looks delivered in one sync that saw any."""

    owed: F64
    looks: float = 0.0
    syncs: float = 0.0

    @property
    def per_sync(self) -> float:
        return self.looks / self.syncs if self.syncs else 0.0

    @property
    def shares(self) -> F64:
        """(G,) what is owed as a share of the looks of the window."""
        return self.owed / self.looks if self.looks else np.zeros_like(self.owed)


def boosts(law: Law, state: Owed) -> F64:
    """(G,) in interquartile ranges of scores."""
    return np.clip(state.owed * (law.gain / max(1.0, state.per_sync)), -law.most, law.most)


def stepped(law: Law, state: Owed, entitled: F64, delivered: F64, seconds: float) -> Owed:
    """After a sync, `seconds` after the last, that saw looks (G,) entitled and delivered since."""
    leak = float(np.exp(-seconds / law.window))
    held, moved = leak * state.owed, entitled - delivered
    stuck = (np.abs(boosts(law, state)) >= law.most) & (np.sign(moved) == np.sign(held))
    owed = np.where(stuck, held, held + moved)
    return Owed(owed, leak * state.looks + float(delivered.sum()), leak * state.syncs + float(delivered.any()))


def regrouped(state: Owed, rows: I64) -> Owed:
    """The same for other groups, rows (G',): places of before, −1 of those that are new, to which nothing is owed."""
    return Owed(np.append(state.owed, 0.0)[rows], state.looks, state.syncs)


@compiled
def entitled(shares: F64, members: I64, looks: F64) -> F64:
    """(G,) looks that groups are entitled to in one request: `members` (G,) candidates of each, `looks` (k,) of its slots.

    A group without a candidate, or with a share of 0, gets none; one with too few gets the best slots' looks for as many.
    """
    groups, k = len(shares), len(looks)
    best, total = np.sort(looks)[::-1], looks.sum()
    found, free = np.zeros(groups), (members > 0) & (shares > 0)
    while True:
        taken, wanting = 0.0, 0.0
        for g in range(groups):
            if free[g]:
                wanting += shares[g]
            else:
                taken += found[g]
        if wanting == 0.0:
            return found
        full = False  # some group was given all it can take: what it leaves goes to the others
        for g in range(groups):
            if free[g]:
                found[g] = shares[g] * (max(0.0, total - taken) / wanting)
        for g in range(groups):
            if free[g]:
                most = 0.0
                for t in range(min(members[g], k)):
                    most += best[t]
                if found[g] > most:
                    found[g], free[g], full = most, False, True
        if not full:
            return found


@compiled
def _accounted(
    codes: I64, shares: F64, looks_of_slots: F64, slots: I64, distributions: F64, items: I64
) -> tuple[F64, F64, F64, I64]:
    """See `Fair.delivered`. Filled `slots` (k',), which show `items` (k',)."""
    groups, looks = len(shares), looks_of_slots[slots]
    delivered, drawn, members = np.zeros(groups), np.zeros(groups), np.zeros(groups, np.int64)
    of = np.empty(len(items), np.int64)
    mass = np.zeros(len(codes))
    for t in range(len(items)):
        for c in range(len(codes)):
            mass[c] += looks[t] * distributions[t, c]
        of[t] = codes[items[t]]
        if of[t] >= 0:
            drawn[of[t]] += looks[t]
    for c in range(len(codes)):
        if codes[c] >= 0:
            delivered[codes[c]] += mass[c]
            members[codes[c]] += 1
    return delivered, entitled(shares, members, looks), drawn, of


@lru_cache(1_024)
def looks_of(positions: tuple[float, ...], k: int) -> F64:
    """(k,) of slots 0..k−1: those given, the last of them for all after it, or 1 / log₂(t + 2)."""
    given = np.array([positions[min(t, len(positions) - 1)] for t in range(k)]) if positions else None
    found = 1.0 / np.log2(np.arange(k) + 2.0) if given is None else given
    found.flags.writeable = False
    return found


class Fair(Struct, frozen=True, eq=False, gc=False):
    """Exposure of one request: n candidates of G groups.

    codes (n,)  group of each candidate, −1 of none;   groups  names (G,)
    boosts (G,) in interquartile ranges;   shares (G,) targets;   positions  see `looks_of`
    each        the groups are the candidates themselves
    """

    codes: I64
    groups: Sequence[str]
    boosts: F64
    shares: F64
    positions: tuple[float, ...] = ()
    each: bool = False

    def acting(self, scores: F32) -> Acting:
        """As it acts on scores (n, m), alone."""
        if not self.boosts.any():
            return NOTHING_ACTS
        _, boosts, _ = scaled(plain(scores), self.codes, self.boosts, NO_VECTORS, 0, 0)
        return Acting(boosts={SOURCE: boosts})

    def delivered(self, slate: Slate) -> tuple[F64, F64, F64, I64]:
        """(delivered, entitled, drawn) (G,) in looks, and the group of each filled slot (k',). The slate has distributions."""
        assert slate.distributions is not None  # they were asked for: see `decide.drawn_from`
        looks = looks_of(self.positions, int(slate.slots[-1]) + 1 if len(slate.slots) else 0)
        return _accounted(self.codes, self.shares, looks, slate.slots, slate.distributions, slate.items)


def prefixes(by: str, least: Mapping[str, float], most: Mapping[str, float]) -> list[tuple[str, Op, str, float]]:
    """(constraint, what it is, group, share) of each share of a prefix; the minima yield last, and of these the first."""
    asked: list[tuple[str, Op, Mapping[str, float]]] = [(">=", "least", least), ("<=", "most", most)]
    return [
        (f"prefix:{by}{sign}{group}", op, group, share) for sign, op, shares in asked for group, share in shares.items()
    ]


def sampled(candidates: int, decision_id: str, shown: I64) -> tuple[I64, F64]:
    """(rows, weights) of what a decision tells of, ascending: a systematic sample of its candidates from a start by the hash of its
    id, each row as likely and for candidates / SAMPLED of them, and those that were shown, for nobody (0) unless they are in it. So
    sums over decisions are unbiased for every item."""
    if candidates <= SAMPLED:
        return np.arange(candidates), np.ones(candidates)
    digest = blake2b(decision_id.encode(), digest_size=8, person=b"exposed").digest()
    start = (int.from_bytes(digest, "little") >> 11) * 2.0**-53
    chosen = np.zeros(candidates, bool)
    chosen[((np.arange(SAMPLED) + start) * (candidates / SAMPLED)).astype(np.int64)] = True
    told = chosen.copy()
    told[shown] = True
    rows = np.flatnonzero(told)
    return rows, chosen[rows] * (candidates / SAMPLED)


def prefix_constraints(
    by: str, least: Mapping[str, float], most: Mapping[str, float], codes: I64, groups: Sequence[str], k: int
) -> tuple[Constraint, ...]:
    """At least ⌊share·t⌋ and at most ⌈share·t⌉ of a group among the first t slots, for every t. A minimum of a group without a
    candidate says nothing."""
    places = {group: place for place, group in enumerate(groups)}
    return tuple(
        Constraint(name, op, np.where(codes == places[group], 0, -1), prefix_limits(share, k, op))
        for name, op, group, share in prefixes(by, least, most)
        if group in places
    )


@lru_cache(4_096)
def prefix_limits(share: float, k: int, op: Op) -> I64:
    """(k,) of a share of a prefix."""
    exact = share * np.arange(1, k + 1)
    # 0.1 · 10 is one
    limits: I64 = (np.ceil(exact - 1e-9) if op == "most" else np.floor(exact + 1e-9)).astype(np.int64)
    limits.flags.writeable = False
    return limits
