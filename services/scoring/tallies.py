"""What policies did since the last tick: the numbers behind their gauges, kept by the hot path, told by the tick."""

from math import log as log_of
from operator import ne

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


class Tallies:
    """Of all policies of a worker; belongs to the event loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tallies: dict[tuple[str, str], Tally] = {}

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

    def tell(self) -> None:
        """Gauges of what was drawn since the last call, and how long those policies take now."""
        told, self._tallies = self._tallies, {}
        for (name, policy), tally in told.items():
            tally.served.recent.refresh()
            self._telemetry.set("propensity_min", name, policy, value=tally.least)
            self._telemetry.set("selection_entropy_nats", name, policy, value=tally.nats / tally.decisions)
            self._telemetry.set("exploration_share", name, policy, value=tally.strayed / max(tally.slots, 1))
