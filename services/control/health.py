"""Of one scrape: how far joining, settling and training are behind, and what each policy's draws look like.

Processes of one machine share a scrape. Elsewhere each has its own, and what scoring does not export is None here.
"""

from collections import defaultdict
from typing import Any

from policies.errors import Corrupt, Unavailable
from services.exposition import Exposition
from streaming.ports import Log

# metric → its name here
OF_PARTITION = {
    "join_lag_seconds": "join_lag_seconds",
    "settle_lag_seconds": "settle_lag_seconds",
    "train_lag_rows": "train_lag_rows",
    "shard_stopped": "stopped",
    "settle_stopped": "settle_stopped",
    "rebuilding_records": "rebuilding_records",
    "log_retention_headroom_ratio": "headroom",
}
OF_POLICY = {
    "selection_entropy_nats": "entropy_nats",
    "exploration_share": "exploration_share",
    "propensity_min": "propensity_min",
    "propensity_z": "propensity_z",
    "bundle_age_seconds": "bundle_age_seconds",
}


def stream(scrape: Exposition | None, events: Log) -> dict[str, Any]:
    """Partitions with their ends and lags; outcomes of joining; stores that are away."""
    scrape = scrape or Exposition({})
    partitions = []
    for partition in range(events.partitions):
        line: dict[str, Any] = {"partition": partition}
        try:
            line |= {"first": events.first(partition)}
            line["end"], line["newest"] = events.end(partition)
        except (Unavailable, Corrupt) as error:
            line["error"] = str(error)
        for metric, name in OF_PARTITION.items():
            line[name] = one_of(scrape, metric, partition=str(partition))
        partitions.append(line)
    return {
        "partitions": partitions,
        "join": dict(sorted(scrape.by("join_outcomes_total", "outcome").items())),
        "feedback": dict(sorted(scrape.by("feedback_events_total", "outcome").items())),
        "away": sorted(name for name, value in scrape.by("store_away", "store").items() if value),
        "write_errors": scrape.total("log_write_errors_total"),
    }


def draws(scrape: Exposition | None, surface: str, policy: str) -> dict[str, float | None]:
    """What scoring exports of a policy's draws; None: not drawn from since it started."""
    scrape = scrape or Exposition({})
    return {name: one_of(scrape, metric, surface=surface, policy=policy) for metric, name in OF_POLICY.items()}


def goals(scrape: Exposition | None, surface: str) -> dict[str, Any]:
    """Fairness and constraints of a surface: exposure by group, objectives and multipliers by policy."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for metric, name in (("exposure_share", "share"), ("exposure_deficit_share", "deficit")):
        for group, value in ({} if scrape is None else scrape.by(metric, "group", surface=surface)).items():
            groups[group][name] = value
    constraints = []
    for metric, name in (("objective_value", "value"), ("constraint_multiplier", "multiplier")):
        for labels, value in () if scrape is None else scrape.samples.get(metric, ()):
            if labels.get("surface") == surface:
                kept = {k: v for k, v in labels.items() if k in ("policy", "objective", "arm")}
                constraints.append({**kept, "of": name, "value": value})
    return {"groups": dict(groups), "objectives": constraints}


def one_of(scrape: Exposition, metric: str, **labels: str) -> float | None:
    """The value of the one sample with these labels; None where there is none."""
    found = [value for said, value in scrape.samples.get(metric, ()) if labels.items() <= dict(said).items()]
    return found[-1] if found else None
