"""What policies did since the last tick: the numbers behind their gauges, kept by the hot path, told by the tick."""

from collections import defaultdict
from math import log as log_of
from math import sqrt
from operator import ne

import numpy as np

from policies.reranking.exploration_budget import beyond
from policies.types import Slate
from services.scoring.decide import Drawn, Served
from services.scoring.wire import DecisionAnswer
from services.telemetry import Telemetry


class Tally:
    """Of one policy of one surface."""

    __slots__ = ("decisions", "least", "nats", "served", "slots", "strayed")

    def __init__(self, served: Served) -> None:
        self.served = served
        self.decisions = self.slots = self.strayed = 0
        self.nats, self.least = 0.0, 1.0

    def add(self, drawn: Drawn) -> None:
        slate = drawn.slate
        chances = slate.propensities.tolist()
        self.served = drawn.served
        self.decisions += 1
        self.slots += len(chances)
        self.strayed += sum(map(ne, slate.items.tolist(), slate.greedy.tolist()))
        if chances:
            self.nats -= log_of(chances[0])
            self.least = min(self.least, *chances)


class Explored:
    """Of one segment of one surface: slots that were drawn, what share of them was expected not to be greedy, what was allowed
    without a lease, and what was explored out of one. `lends`: it has leases."""

    __slots__ = ("allowed", "expected", "lends", "lent", "slots")

    def __init__(self) -> None:
        self.slots, self.expected, self.allowed, self.lent, self.lends = 0, 0.0, 0.0, 0.0, False

    def add(self, drawn: Drawn) -> None:
        shares = drawn.slate.explored.tolist()
        free = len(shares) - sum(drawn.slate.pinned.tolist())
        self.slots += free
        self.expected += sum(shares)
        if drawn.cap is None:
            self.allowed += free * drawn.settings.max_share
        else:
            self.allowed += free * drawn.cap
            self.lent += beyond(shares, drawn.cap)
            self.lends = True


class Calibration:
    """Does the greedy item come as often as its propensities say? z = Σ (1{drawn} − p) / √Σ p (1 − p) over sampled slots.

    Halved when `MEMORY` is reached, so that what begins to go wrong is not averaged away by a good past.
    """

    MEMORY = 10_000.0  # of variance: some tens of thousands of slots
    ENOUGH = 25.0  # from here z is normal enough for a bound

    __slots__ = ("surplus", "variance")

    def __init__(self) -> None:
        self.surplus = self.variance = 0.0

    def add(self, slate: Slate) -> None:
        if slate.distributions is None:
            return
        free = ~slate.pinned
        chances = slate.distributions[np.arange(len(slate.items)), slate.greedy][free]
        self.surplus += float((slate.items == slate.greedy)[free].sum() - chances.sum())
        self.variance += float((chances * (1.0 - chances)).sum())
        if self.variance > self.MEMORY:
            self.surplus, self.variance = self.surplus / 2, self.variance / 4  # of half the weight, a quarter

    @property
    def z(self) -> float | None:
        """None until there is enough to tell."""
        return self.surplus / sqrt(self.variance) if self.variance >= self.ENOUGH else None


class Tallies:
    """Of all policies of a worker; belongs to the event loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._explored: dict[tuple[str, str], Explored] = {}
        self._calibrations: defaultdict[tuple[str, str], Calibration] = defaultdict(Calibration)

    def count(self, answer: DecisionAnswer, drawn: Drawn, seconds: float) -> None:
        """An answer given, `seconds` after its first byte."""
        telemetry, name = self._telemetry, answer.surface
        telemetry.add("decide_requests_total", name, answer.policy, answer.mode, answer.reason or "")
        telemetry.series("decide_latency_seconds", name).append(seconds)
        for rule, slots in drawn.relaxed.items():
            telemetry.add("rule_relaxations_total", name, rule, by=len(slots))
        for rule in drawn.acting.skipped:
            telemetry.add("rule_skips_total", name, rule)
        key = (name, answer.policy)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(drawn.served)
        tally.add(drawn)
        if drawn.interleaved is None:  # two policies have a greedy item each
            explored = self._explored.get((name, drawn.segment))
            if explored is None:
                explored = self._explored[name, drawn.segment] = Explored()
            explored.add(drawn)
        if drawn.sampled:
            self._calibrations[key].add(drawn.slate)

    def tell(self) -> None:
        """Gauges of what was drawn since the last call, and how long those policies take now."""
        explored, self._explored = self._explored, {}
        for (name, segment), of in explored.items():
            if of.slots:
                self._telemetry.set("exploration_expected_share", name, segment, value=of.expected / of.slots)
                self._telemetry.set("exploration_cap_used_ratio", name, segment, value=of.expected / of.allowed)
                if of.lends:
                    self._telemetry.set("exploration_lent_share", name, segment, value=of.lent / of.slots)
        told, self._tallies = self._tallies, {}
        for (name, policy), tally in told.items():
            tally.served.recent.refresh()
            self._telemetry.set("propensity_min", name, policy, value=tally.least)
            self._telemetry.set("selection_entropy_nats", name, policy, value=tally.nats / tally.decisions)
            self._telemetry.set("exploration_share", name, policy, value=tally.strayed / max(tally.slots, 1))
            z = self._calibrations[name, policy].z if (name, policy) in self._calibrations else None
            if z is not None:
                self._telemetry.set("propensity_z", name, policy, value=z)
