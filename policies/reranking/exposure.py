"""Exposure of groups of items: shares in every prefix of a slate, and what is owed over many requests (amortised).

    v_t            how much of a look slot t gets, 1 / log₂(t + 2) unless the surface says otherwise
    delivered_g    Σ_t v_t · p_t(g | prefix), from the distributions that were drawn from; the draws are counted beside
    entitled_g     the group's share of Σ_t v_t among the groups that have a candidate in the request, and at most what its
                   candidates could get in the best slots; what it cannot take goes to the others
    owed_g         leaks over the window, and grows by entitled − delivered; stands still in the direction of a clipped boost
    boost_g        clip(K · owed_g, ±most) · IQR of the request's scores, K = gain / (looks delivered in one sync)

Looks are counted from the log, so a worker sees them a sync late; with K · (looks per sync) = gain < 1 a boost cannot make
up for more than is owed before it is seen to have worked. A boost is one number for a group: nothing of one person enters it.

Targets   equal: each group the same; given: as told; merit: ∝ Σ r/p over the slots that showed the group, its reward had all
          candidates been shown evenly. Propensities are positive for every candidate (the floor), and a boost cancels in r/p.
Sources   Singh & Joachims, KDD 2018 (exposure); Morik et al., SIGIR 2020 (a controller of what is owed); Geyik et al.,
          KDD 2019 (⌊share · t⌋ of every prefix)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from policies.reranking.acting import Acting, spread
from policies.reranking.within import Constraint
from policies.types import F32, F64, I64, Slate

SOURCE = "exposure"  # of boosts, in explanations, records and metrics


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


def widened(state: Owed, groups: int) -> Owed:
    """The same for more groups: nothing is owed to those that are new."""
    more = groups - len(state.owed)
    return state if more == 0 else Owed(np.append(state.owed, np.zeros(more)), state.looks, state.syncs)


def entitled(shares: F64, members: I64, looks: F64) -> F64:
    """(G,) looks that groups are entitled to in one request: `members` (G,) candidates of each, `looks` (k,) of its slots.

    A group without a candidate, or with a share of 0, gets none; one with too few gets the best slots' looks for as many.
    """
    total = float(looks.sum())
    best = np.append(0.0, np.add.accumulate(np.sort(looks)[::-1]))
    top = best[np.minimum(members, len(looks))]
    found = np.zeros(len(shares))
    free = (members > 0) & (shares > 0)
    while free.any():
        wanted = shares * free * (max(0.0, total - found[~free].sum()) / shares[free].sum())
        over = free & (wanted > top)
        if not over.any():
            found[free] = wanted[free]
            break
        found[over] = top[over]
        free &= ~over
    return found


@lru_cache(1_024)
def looks_of(positions: tuple[float, ...], k: int) -> F64:
    """(k,) of slots 0..k−1: those given, the last of them for all after it, or 1 / log₂(t + 2)."""
    given = np.array([positions[min(t, len(positions) - 1)] for t in range(k)]) if positions else None
    found = 1.0 / np.log2(np.arange(k) + 2.0) if given is None else given
    found.flags.writeable = False
    return found


@dataclass(frozen=True, slots=True)
class Fair:
    """Exposure of one request: n candidates of G groups.

    codes (n,)  group of each candidate, −1 of none;   groups  names (G,)
    boosts (G,) in interquartile ranges;   shares (G,) targets;   positions  see `looks_of`
    """

    codes: I64
    groups: Sequence[str]
    boosts: F64
    shares: F64
    positions: tuple[float, ...] = ()

    def acting(self, scores: F32) -> Acting:
        """As it acts on scores (n, m)."""
        if not self.boosts.any():
            return Acting()
        each = np.append(self.boosts * spread(scores), 0.0)  # the last for candidates of no group
        return Acting(boosts={SOURCE: each[self.codes]})

    def delivered(self, slate: Slate) -> tuple[F64, F64, F64, I64]:
        """(delivered, entitled, drawn) (G,) in looks, and the group of each filled slot (k',). The slate has distributions."""
        assert slate.distributions is not None  # they were asked for: see `decide.drawn_from`
        groups, count = self.codes, len(self.groups)
        looks = looks_of(self.positions, int(slate.slots[-1]) + 1)[slate.slots] if len(slate.slots) else np.zeros(0)
        inside = groups >= 0
        mass = looks @ slate.distributions
        of = groups[slate.items]
        shown = of >= 0
        return (
            np.bincount(groups[inside], mass[inside], count).astype(np.float64),
            entitled(self.shares, np.bincount(groups[inside], minlength=count), looks),
            np.bincount(of[shown], looks[shown], count).astype(np.float64),
            of,
        )


def prefix_constraints(
    by: str, least: Mapping[str, float], most: Mapping[str, float], codes: I64, groups: Sequence[str], k: int
) -> tuple[Constraint, ...]:
    """At least ⌊share·t⌋ and at most ⌈share·t⌉ of a group among the first t slots, for every t; the minima yield last, and of
    these the first. A minimum of a group without a candidate says nothing."""
    places = {group: place for place, group in enumerate(groups)}
    found = []
    for op, shares in (("least", least), ("most", most)):
        for group, share in shares.items():
            if group in places:
                members = np.where(codes == places[group], 0, -1)
                name = f"prefix:{by}{'>=' if op == 'least' else '<='}{group}"
                found.append(Constraint(name, op, members, _limits(share, k, op == "most")))  # type: ignore[arg-type]  # a Literal
    return tuple(found)


@lru_cache(4_096)
def _limits(share: float, k: int, up: bool) -> I64:
    exact = share * np.arange(1, k + 1)
    limits: I64 = (np.ceil(exact - 1e-9) if up else np.floor(exact + 1e-9)).astype(np.int64)  # 0.1 · 10 is one
    limits.flags.writeable = False
    return limits
