"""Reads the Prometheus text of a service: totals of counters, values of gauges, quantiles of histograms."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from services.telemetry import METRICS, PREFIX

Labels = Mapping[str, str]
KEPT: Mapping[str, Callable[[Sequence[float]], float]] = {
    "spool_bytes": math.fsum,
    "propensity_min": min,
    "store_away": max,
}


@dataclass(frozen=True, slots=True)
class Exposition:
    """Samples of one scrape; names are given without the prefix."""

    samples: dict[str, list[tuple[Labels, float]]]

    @classmethod
    def parse(cls, text: str) -> "Exposition":
        from prometheus_client.parser import text_string_to_metric_families  # after `telemetry.share`, see there

        found: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name.removeprefix(PREFIX)].append((sample.labels, float(sample.value)))
        return cls(dict(found))

    @classmethod
    def together(cls, parts: Sequence["Exposition"]) -> "Exposition":
        """Of several processes: counters add up, and of a gauge that several tell one value is kept (`KEPT`, else the mean)."""
        if len(parts) == 1:
            return parts[0]
        told: dict[str, dict[tuple[tuple[str, str], ...], list[float]]] = defaultdict(lambda: defaultdict(list))
        for part in parts:
            for name, samples in part.samples.items():
                for labels, value in samples:
                    told[name][tuple(sorted(labels.items()))].append(value)
        return cls(
            {name: [(dict(labels), _kept(name)(values)) for labels, values in of.items()] for name, of in told.items()}
        )

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels; 0 when there are none."""
        return math.fsum(value for _, value in self._matching(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self._matching(name, labels):
            sums[found.get(label, "")] += value
        return dict(sums)

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Upper bound → cumulative count of a histogram."""
        return {float(bound): count for bound, count in self.by(f"{name}_bucket", "le", **labels).items()}

    def _matching(self, name: str, labels: Labels) -> Iterator[tuple[Labels, float]]:
        for found, value in self.samples.get(name, ()):
            if all(found.get(label) == wanted for label, wanted in labels.items()):
                yield found, value


def _kept(name: str) -> Callable[[Sequence[float]], float]:
    gauge = name in METRICS and METRICS[name].kind == "gauge"
    return KEPT.get(name, fmean if gauge else math.fsum)


def quantile(buckets: Mapping[float, float], q: float, since: Mapping[float, float] | None = None) -> float | None:
    """The q-quantile of a histogram, linear inside a bucket as Prometheus' histogram_quantile; of what came after `since`
    when given. None without observations."""
    counts = {bound: count - (since or {}).get(bound, 0.0) for bound, count in sorted(buckets.items())}
    whole = max(counts.values(), default=0.0)
    if whole <= 0:
        return None
    low, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= q * whole:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (q * whole - below) / (count - below) if count > below else bound
        low, below = bound, count
    return low
