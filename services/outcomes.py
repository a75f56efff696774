"""What decisions come to, as metrics of the last minute: rewards by policy, exposure by group.

Out of the counters that shards derive (`streaming.derived`), so only where `SLATEWISE_DERIVE=on`. A minute's change of
rewards over its change of slots seen: feedback counts when it comes, for decisions of a while ago, so after a sudden change
of traffic the value lags by as long as people take. Corrections count in the minute they come.

    objective_value  mean reward of a slot, unscaled
    exposure_share   slots that showed items of a category's value, of all slots seen; a group is `feature=value`
"""

from collections import deque
from collections.abc import Iterator

from policies.surface import Category, Surface
from services.telemetry import Telemetry
from streaming.configuration import Configs
from streaming.derived import EXPOSURES, counter_name
from streaming.ports import Counters

EVERY_SECONDS = 10.0
MOST_VALUES = 50  # of a category whose values become labels of a metric
WINDOW = 6  # readings between the two that are compared: a minute


class Outcomes:
    """Reads counters every `EVERY_SECONDS` of a clock that is handed in, and sets the gauges of one process."""

    def __init__(self, counters: Counters, configs: Configs, telemetry: Telemetry, tenant: str = "default") -> None:
        self._counters, self._configs, self._telemetry, self._tenant = counters, configs, telemetry, tenant
        self._readings: deque[dict[str, float]] = deque(maxlen=WINDOW + 1)
        self._next = 0.0

    def turn(self, now: float) -> None:
        """Read and set when it is time. Raises Unavailable."""
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        surfaces = [found.surface for name in self._configs.surfaces() if (found := self._configs.current(name))]
        names = sorted({name for surface in surfaces for name in self._names(surface)})
        self._readings.append(dict(zip(names, self._counters.read(names), strict=True)))
        for surface in surfaces:
            self._set(surface)

    def _names(self, surface: Surface) -> Iterator[str]:
        yield self._name(surface, "all", EXPOSURES)
        for feature, value, _ in groups(surface):
            yield self._name(surface, "group", feature, value, EXPOSURES)
        for policy in surface.policies:
            yield self._name(surface, "policy", policy, EXPOSURES)
            for objective in surface.objectives:
                yield self._name(surface, "policy", policy, "reward", objective)

    def _name(self, surface: Surface, *parts: str) -> str:
        return counter_name(self._tenant, surface.surface, *parts)

    def _set(self, surface: Surface) -> None:
        seen = self._moved(self._name(surface, "all", EXPOSURES))
        for feature, value, label in groups(surface) if seen > 0 else ():
            share = self._moved(self._name(surface, "group", feature, value, EXPOSURES)) / seen
            self._telemetry.set("exposure_share", surface.surface, label, value=share)
        for policy in surface.policies:
            shown = self._moved(self._name(surface, "policy", policy, EXPOSURES))
            for objective in surface.objectives if shown > 0 else ():
                reward = self._moved(self._name(surface, "policy", policy, "reward", objective))
                # arms come with experiments
                self._telemetry.set("objective_value", surface.surface, objective, policy, "", value=reward / shown)

    def _moved(self, name: str) -> float:
        """Change since the oldest reading that knows the name; 0 before there are two."""
        known = [reading[name] for reading in self._readings if name in reading]
        return known[-1] - known[0] if len(known) > 1 else 0.0


def groups(surface: Surface) -> Iterator[tuple[str, str, str]]:
    """(feature, value, label) of the item categories with few enough values to be labels, `unseen` among them."""
    for feature, spec in surface.features.items.items():
        if isinstance(spec, Category) and len(spec.values) <= MOST_VALUES:
            yield from ((feature, value, f"{feature}={value}") for value in spec.values)
            yield feature, "!unseen", f"{feature}!unseen"
