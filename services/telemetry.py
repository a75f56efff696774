"""Metrics and structured logs: one vocabulary for every process.

The hot path adds to plain numbers; `flush`, called every 100 ms and before a scrape, moves them into prometheus-client
(a metric of its own costs 2 µs an update, a decision has a dozen). With a folder, several processes share one scrape:
`PROMETHEUS_MULTIPROC_DIR` has to be set before prometheus-client is first imported, which `share` does.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil

PREFIX = "slatewise_"
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client's own name
LATENCY_BUCKETS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip
FRESHNESS_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 30.0, 300.0)


class Metric(NamedTuple):
    kind: str  # counter | gauge | histogram
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


# names of the contract (`api.md`), `decide_rejected_total` and `swap_total` beside them
METRICS = {
    "decide_requests_total": Metric("counter", ("surface", "policy", "mode", "reason"), "Decisions answered"),
    "decide_latency_seconds": Metric(
        "histogram", ("surface",), "First byte of a request to its answer", LATENCY_BUCKETS
    ),
    "decide_stage_seconds": Metric("histogram", ("stage",), "Time of one stage of a decision", LATENCY_BUCKETS),
    "decide_rejected_total": Metric("counter", ("code",), "Requests refused, by the code of the error body"),
    "decide_unchecked_total": Metric(
        "counter", ("surface",), "Decisions answered without their claim: a retry may differ"
    ),
    "history_reads_total": Metric(
        "counter", ("outcome",), "Histories asked for by decisions: read, cached, or away and empty"
    ),
    "counted_reads_total": Metric(
        "counter",
        ("surface", "of", "outcome"),
        "Decisions whose features have counts of their unit or of items: read, cached, or away and missing",
    ),
    "feedback_events_total": Metric("counter", ("surface", "kind", "outcome"), "Feedback received over HTTP"),
    "join_outcomes_total": Metric("counter", ("surface", "outcome"), "What became of records read by the joiner"),
    "join_lag_seconds": Metric("gauge", ("partition",), "Age of the oldest record not yet joined"),
    "shard_stopped": Metric("gauge", ("partition",), "1: a shard met what it cannot go past, and waits for a person"),
    "rebuilding_records": Metric("gauge", ("partition",), "Records to read again before a shard goes on learning"),
    "learn_examples_total": Metric("counter", ("surface", "policy"), "Examples learned from"),
    "delay_half_horizon_share": Metric(
        "gauge", ("surface", "policy", "objective"), "Share of an objective's reward that comes within half its horizon"
    ),
    "delay_decisions_count": Metric(
        "gauge",
        ("surface", "policy", "objective"),
        "Decisions that share rests on; below 200 young decisions are left out",
    ),
    "publish_total": Metric("counter", ("surface", "policy", "outcome"), "Bundles published or refused"),
    "swap_total": Metric("counter", ("surface", "policy", "outcome"), "Bundles swapped in or refused by scoring"),
    "freshness_seconds": Metric(
        "histogram", ("surface", "policy"), "Feedback accepted to first bundle that contains it live", FRESHNESS_BUCKETS
    ),
    "bundle_age_seconds": Metric("gauge", ("surface", "policy"), "Age of the bundle drawn from"),
    "propensity_min": Metric("gauge", ("surface", "policy"), "Smallest propensity drawn since the last flush"),
    "propensity_z": Metric(
        "gauge", ("surface", "policy"), "Standard errors between draws and their propensities, over sampled decisions"
    ),
    "selection_entropy_nats": Metric("gauge", ("surface", "policy"), "Mean of -log p of the first slot's item"),
    "exploration_share": Metric("gauge", ("surface", "policy"), "Share of slots that did not show the greedy item"),
    "exploration_expected_share": Metric(
        "gauge", ("surface", "segment"), "Share of slots that was expected not to show the greedy item, after the cap"
    ),
    "exploration_cap_used_ratio": Metric(
        "gauge", ("surface", "segment"), "Expected share of slots that is not greedy, over the cap: at 1 it always acts"
    ),
    "exploration_lent_share": Metric(
        "gauge", ("surface", "segment"), "Expected share of slots that is not greedy beyond the cap, out of leases"
    ),
    "exploration_left_slots": Metric(
        "gauge",
        ("surface", "segment"),
        "What the cap left unused in the last ten minutes and may still be lent, in slots",
    ),
    "exploration_leases_total": Metric(
        "counter",
        ("surface", "segment", "outcome"),
        "Asked for a lease of what the exploration cap left, once a second",
    ),
    "rule_relaxations_total": Metric("counter", ("surface", "rule"), "Slots for which a rule was passed over"),
    "rule_skips_total": Metric("counter", ("surface", "rule"), "Decisions for which a rule could not be asked"),
    "exposure_share": Metric("gauge", ("surface", "group"), "Share of slots a group of items was shown in"),
    "exposure_deficit_share": Metric(
        "gauge", ("surface", "group"), "Looks a group of items is owed, as a share of the window's"
    ),
    "impression_counts_total": Metric(
        "counter", ("surface", "outcome"), "Decisions that the aggregator counted by an attribute of people, or why not"
    ),
    "impression_releases_total": Metric("counter", ("surface",), "Windows released with noise"),
    "impression_distance_share": Metric(
        "gauge", ("surface",), "Mean distance of who sees an item from who could have, from noisy counts"
    ),
    "exposure_disparity_share": Metric(
        "gauge", ("surface",), "Half of what all groups of items are owed or owe, as a share of the window's looks"
    ),
    "objective_value": Metric("gauge", ("surface", "objective", "policy", "arm"), "Mean reward of a slot"),
    "constraint_multiplier": Metric("gauge", ("surface", "policy", "objective"), "Multiplier of a constraint"),
    "spool_bytes": Metric("gauge", (), "Bytes in this host's spools that the log has not acknowledged"),
    "store_away": Metric("gauge", ("store",), "1: the store does not answer, what was last known of it is served"),
    "log_write_errors_total": Metric("counter", (), "Failed writes to the spool or the log"),
    "log_retention_headroom_ratio": Metric("gauge", ("partition",), "Retention left before unread records are lost"),
    "train_steps_total": Metric("counter", ("surface", "policy"), "Calls of a trainer"),
    "train_transitions_total": Metric("counter", ("surface", "policy"), "Transitions a trainer was given"),
    "train_rows_per_second": Metric("gauge", (), "Settled decisions trained from, in the last busy turn"),
    "train_metric_value": Metric(
        "gauge", ("surface", "policy", "name"), "As the trainer says it: losses, updates skipped …"
    ),
    "train_lag_rows": Metric("gauge", ("partition",), "Settled decisions not yet trained from"),
    "train_uploads_total": Metric("counter", ("outcome",), "Uploads of what trainers have come to: written, failed"),
    "train_stopped": Metric("gauge", ("surface", "policy"), "1: a trainer has failed, its last bundle serves"),
    "train_failed": Metric("gauge", (), "1: nothing is trained any more until the learning service starts again"),
    "sequence_outcomes_total": Metric(
        "counter", ("surface", "outcome"), "How sequences ended, and what is no transition"
    ),
    "settle_lag_seconds": Metric("gauge", ("partition",), "Age of the oldest record not yet settled"),
    "settle_stopped": Metric("gauge", ("partition",), "1: settling stopped at a record it cannot go past"),
    "experience_files_total": Metric("counter", (), "Parquet files of settled decisions written"),
    "retention_removed_total": Metric("counter", ("kind",), "Bundles, files, records and letters past their retention"),
    "retention_errors_total": Metric("counter", (), "Turns of retention that a store refused"),
    "bundles_kept_count": Metric("gauge", (), "Bundles in the store"),
    "bundles_unreadable_count": Metric("gauge", (), "Manifests that cannot be read, and are kept until a person looks"),
    "records_lost_total": Metric(
        "counter", ("partition",), "Records that retention took before they were read, accepted as lost by a person"
    ),
    "dead_letters_total": Metric("counter", ("reason",), "Records set aside"),
    "experiment_units_count": Metric(
        "gauge", ("experiment", "arm"), "Units assigned to an arm of a running experiment"
    ),
    "experiment_mismatch_p_ratio": Metric(
        "gauge", ("experiment",), "p-value of the sample ratio; below .001: mismatch"
    ),
    "experiment_stops_total": Metric(
        "counter", ("experiment", "who"), "Experiments stopped by a guardrail or a schedule"
    ),
    "ope_value": Metric(
        "gauge", ("surface", "policy", "bound"), "Value of a policy: estimate, and anytime-valid bounds"
    ),
    "feature_drift_nats": Metric(
        "gauge", ("surface", "feature"), "Population stability index of a feature: above 0.25 it has moved"
    ),
    "feature_missing_ratio": Metric("gauge", ("surface", "feature"), "Share of values that are missing, lately"),
    "feature_unseen_ratio": Metric("gauge", ("surface", "feature"), "Share of values that are not listed, lately"),
    "examined_ratio": Metric(
        "gauge",
        ("surface", "slot", "bound"),
        "How often a slot is looked at, of how often the first is: estimate, low, high",
    ),
    "residual_mean_value": Metric(
        "gauge", ("surface", "policy", "window"), "Mean of reward less expected reward, first slots: reference, recent"
    ),
    "drift_resets_total": Metric(
        "counter", ("surface", "policy"), "Evidence of a policy made to count less, for drift"
    ),
    "residual_drift_ratio": Metric(
        "gauge", ("surface", "policy"), "Evidence that residuals have moved, over what an alarm takes (logarithms)"
    ),
    "shadow_draws_total": Metric(
        "counter",
        ("surface", "policy", "outcome"),
        "Draws of a release's candidate beside a decision: drawn, or why not",
    ),
    "release_steps_total": Metric("counter", ("surface", "step", "who"), "Steps of releases, by whom"),
    "release_fallback_ratio": Metric("gauge", ("surface", "policy"), "Share of a candidate's decisions that fell back"),
}


def share(folder: Path, *, clear: bool = False) -> None:
    """Let this process, its children and others with the same folder share one scrape. Call before the first `Telemetry`.

    clear  drop what processes that no longer live have left behind: by the one that starts the others
    """
    folder.mkdir(parents=True, exist_ok=True)
    if clear:
        for left in folder.glob("*.db"):
            if not psutil.pid_exists(int(left.stem.rpartition("_")[2])):
                left.unlink(missing_ok=True)
    os.environ[SHARED] = str(folder)


class Telemetry:
    """Numbers of one process. `add`, `set` and `observe` cost a dictionary update; nothing is exported before `flush`."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry  # after `share`, see the module's docstring

        self._registry = CollectorRegistry()
        self._exported: dict[str, Any] = {}
        self._counts: dict[tuple[str, ...], float] = {}
        self._gauges: dict[tuple[str, ...], float] = {}
        self._observed: dict[tuple[str, ...], list[float]] = {}

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        key = (name, *labels)
        self._counts[key] = self._counts.get(key, 0.0) + by

    def set(self, name: str, *labels: str, value: float) -> None:
        self._gauges[(name, *labels)] = value

    def observe(self, name: str, *labels: str, value: float) -> None:
        self.series(name, *labels).append(value)

    def series(self, name: str, *labels: str) -> list[float]:
        """The list of a histogram's values not yet flushed; the hot path keeps it and appends."""
        return self._observed.setdefault((name, *labels), [])

    def flush(self) -> None:
        counts, self._counts = self._counts, {}
        gauges, self._gauges = self._gauges, {}
        for (name, *labels), count in counts.items():
            self._child(name, labels).inc(count)
        for (name, *labels), value in gauges.items():
            self._child(name, labels).set(value)
        for (name, *labels), values in self._observed.items():
            if values:
                taken = values[:]
                del values[: len(taken)]
                _observe_all(self._child(name, labels), METRICS[name].buckets, taken)

    def text(self) -> bytes:
        """Exposition text of this process, or of all that share its folder, with what was counted up to now."""
        self.flush()
        return self.flushed()

    def flushed(self) -> bytes:
        """The same as of the last flush: for threads that count nothing themselves."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if SHARED not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped library
        return generate_latest(registry)

    def _child(self, name: str, labels: Iterable[str]) -> Any:
        metric = self._exported.get(name)
        if metric is None:
            metric = self._exported[name] = _exported(name, self._registry)
        values = tuple(labels)
        return metric.labels(*values) if values else metric


def forget_process(pid: int) -> None:
    """Drop the live gauges of a dead process; its counters stay, so that sums never go back."""
    from prometheus_client.multiprocess import mark_process_dead

    if SHARED in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # untyped library


def _exported(name: str, registry: Any) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    metric = METRICS[name]
    if metric.kind == "counter":
        return Counter(PREFIX + name, metric.help, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(
            PREFIX + name,
            metric.help,
            metric.labels,
            registry=registry,
            multiprocess_mode="livesum" if name == "spool_bytes" else "mostrecent",
        )
    return Histogram(PREFIX + name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)


def _observe_all(child: Any, buckets: tuple[float, ...], values: list[float]) -> None:
    """Many observations in one step: `Histogram.observe` takes 2 µs a value, the hot path brings thousands a second."""
    observed = np.array(values)
    counts = np.bincount(np.searchsorted(buckets, observed), minlength=len(buckets) + 1).tolist()
    for index, count in enumerate(counts):
        if count:
            child._buckets[index].inc(count)
    child._sum.inc(float(observed.sum()))


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, process, logger, event, and what `extra` carried (decision ids, reasons)."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


def configure_logs(process: str, level: str = "info") -> None:
    """Structured logs of this process go to stderr as JSON lines, each with the name of the process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
