"""Writes the dashboards: `python deploy/grafana/make.py`. A panel is a title, a unit and its queries; the rest is the same for all."""

import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "dashboards"
SURFACE = 'surface=~"$surface"'


class Panel(NamedTuple):
    """queries: (PromQL, legend) pairs."""

    title: str
    unit: str
    queries: list[tuple[str, str]]
    about: str = ""


DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "overview": (
        "Slatewise: overview",
        [
            Panel("Decisions", "reqps", [(f"slatewise:decisions:rate5m{{{SURFACE}}}", "{{surface}}")]),
            Panel(
                "By mode",
                "reqps",
                [(f"sum by (mode, reason) (rate(slatewise_decide_requests_total{{{SURFACE}}}[5m]))", "{{mode}} {{reason}}")],
                "Fallbacks carry their reason.",
            ),
            Panel(
                "Latency",
                "s",
                [
                    (f"slatewise:decide_latency_seconds:p50_5m{{{SURFACE}}}", "p50 {{surface}}"),
                    (f"slatewise:decide_latency_seconds:p99_5m{{{SURFACE}}}", "p99 {{surface}}"),
                ],
                "First byte of the request to the answer.",
            ),
            Panel(
                "Reward a slot",
                "none",
                [(f"slatewise_objective_value{{{SURFACE}}}", "{{surface}} {{objective}} {{policy}} {{arm}}")],
                "Mean over settled and open decisions, by policy and arm: is it learning?",
            ),
            Panel(
                "Off-policy value",
                "none",
                [(f"slatewise_ope_value{{{SURFACE}}}", "{{surface}} {{policy}} {{bound}}")],
                "Anytime-valid bounds of each policy, of uniform and of greedy.",
            ),
            Panel(
                "Freshness (p95)",
                "s",
                [(f"slatewise:freshness_seconds:p95_5m{{{SURFACE}}}", "{{surface}}/{{policy}}")],
                "Feedback accepted to the first bundle that contains it, drawn from.",
            ),
            Panel(
                "Bad decisions",
                "percentunit",
                [("slatewise:bad_decisions:ratio5m", "5m"), ("slatewise:bad_decisions:ratio1h", "1h")],
                "By a fallback, or later than 50 ms; the objective is 0.1%.",
            ),
            Panel("Stages (mean)", "s", [("sum by (stage) (rate(slatewise_decide_stage_seconds_sum[5m])) / sum by (stage) (rate(slatewise_decide_stage_seconds_count[5m]))", "{{stage}}")]),
        ],
    ),
    "learning": (
        "Slatewise: learning",
        [
            Panel("Examples learned", "ops", [(f"slatewise:learned:rate5m{{{SURFACE}}}", "{{surface}}/{{policy}}")]),
            Panel(
                "Publishes",
                "ops",
                [(f"sum by (policy, outcome) (rate(slatewise_publish_total{{{SURFACE}}}[5m]))", "{{policy}} {{outcome}}")],
            ),
            Panel(
                "Swaps",
                "ops",
                [(f"sum by (policy, outcome) (rate(slatewise_swap_total{{{SURFACE}}}[5m]))", "{{policy}} {{outcome}}")],
                "What scoring took in, and what it refused.",
            ),
            Panel("Age of bundles", "s", [(f"slatewise_bundle_age_seconds{{{SURFACE}}}", "{{surface}}/{{policy}}")]),
            Panel(
                "Entropy of the first slot",
                "none",
                [(f"slatewise_selection_entropy_nats{{{SURFACE}}}", "{{surface}}/{{policy}}")],
            ),
            Panel(
                "Exploration share",
                "percentunit",
                [(f"slatewise_exploration_share{{{SURFACE}}}", "{{surface}}/{{policy}}")],
            ),
            Panel(
                "Exploration cap used",
                "percentunit",
                [(f"slatewise_exploration_cap_used_ratio{{{SURFACE}}}", "{{surface}} {{segment}}")],
                "What was expected not to be greedy, over what may be; at 100% the cap always acts, beyond it is lent.",
            ),
            Panel(
                "Exploration left to be lent",
                "none",
                [(f"slatewise_exploration_left_slots{{{SURFACE}}}", "{{surface}} {{segment}}")],
                "Slots' worth that the cap left unused in the last ten minutes; of surfaces that lend.",
            ),
            Panel("Smallest propensity", "none", [(f"slatewise_propensity_min{{{SURFACE}}}", "{{surface}}/{{policy}}")]),
            Panel(
                "Calibration of propensities (z)",
                "none",
                [(f"slatewise_propensity_z{{{SURFACE}}}", "{{surface}}/{{policy}}")],
                "Outside ±5 something is wrong.",
            ),
            Panel(
                "Multipliers of constraints",
                "none",
                [(f"slatewise_constraint_multiplier{{{SURFACE}}}", "{{policy}} {{objective}}")],
            ),
            Panel("Exposure", "percentunit", [(f"slatewise_exposure_share{{{SURFACE}}}", "{{surface}} {{group}}")]),
            Panel(
                "Rules passed over",
                "ops",
                [(f"sum by (surface, rule) (rate(slatewise_rule_relaxations_total{{{SURFACE}}}[5m]))", "{{surface}} {{rule}}")],
            ),
            Panel(
                "Evidence of drift",
                "none",
                [(f"slatewise_residual_drift_ratio{{{SURFACE}}}", "{{surface}}/{{policy}}")],
                "Residuals against their reference; from 1 on, which by chance alone is reached once in 30 days or less.",
            ),
            Panel(
                "Residuals",
                "none",
                [(f"slatewise_residual_mean_value{{{SURFACE}}}", "{{policy}} {{window}}")],
                "Reward of the first slot less what the bundle expected.",
            ),
            Panel(
                "Features that move (PSI)",
                "none",
                [(f"slatewise_feature_drift_nats{{{SURFACE}}}", "{{feature}}")],
                "Above 0.25 a feature is not what it was. Shown items' features also move when the policy does.",
            ),
            Panel(
                "Missing and unseen values",
                "percentunit",
                [
                    (f"slatewise_feature_missing_ratio{{{SURFACE}}}", "{{feature}} missing"),
                    (f"slatewise_feature_unseen_ratio{{{SURFACE}}}", "{{feature}} unseen"),
                ],
            ),
            Panel(
                "Slots looked at",
                "percentunit",
                [(f"slatewise_examined_ratio{{bound=\"estimate\",{SURFACE}}}", "{{surface}} slot {{slot}}")],
                "Of how often the first is; of surfaces with examination: estimated.",
            ),
            Panel("Trainers", "none", [(f"slatewise_train_metric_value{{{SURFACE}}}", "{{policy}} {{name}}")]),
        ],
    ),
    "stream": (
        "Slatewise: stream",
        [
            Panel("Feedback over HTTP", "ops", [(f"slatewise:feedback:rate5m{{{SURFACE}}}", "{{surface}} {{kind}} {{outcome}}")]),
            Panel("Joined", "ops", [(f"slatewise:joined:rate5m{{{SURFACE}}}", "{{surface}} {{outcome}}")]),
            Panel("Behind the log", "s", [("slatewise_join_lag_seconds", "partition {{partition}}")]),
            Panel("Retention left", "percentunit", [("slatewise_log_retention_headroom_ratio", "partition {{partition}}")]),
            Panel("Dead letters", "ops", [("sum by (reason) (rate(slatewise_dead_letters_total[5m]))", "{{reason}}")]),
            Panel("Spool", "bytes", [("slatewise_spool_bytes", "{{instance}}")]),
            Panel("Failed writes", "ops", [("rate(slatewise_log_write_errors_total[5m])", "{{instance}}")]),
            Panel("Stores away", "none", [("slatewise_store_away", "{{store}}")]),
            Panel("Stopped", "none", [("slatewise_shard_stopped", "shard {{partition}}"), ("slatewise_settle_stopped", "settling {{partition}}")]),
            Panel("Settling behind", "s", [("slatewise_settle_lag_seconds", "partition {{partition}}")]),
            Panel("Units in experiments", "none", [("slatewise_experiment_units_count", "{{experiment}} {{arm}}")]),
            Panel("Sample ratio (p)", "none", [("slatewise_experiment_mismatch_p_ratio", "{{experiment}}")], "Below .001: mismatch."),
        ],
    ),
}  # fmt: skip


def panel(at: int, one: Panel) -> dict[str, Any]:
    return {
        "id": at + 1,
        "type": "timeseries",
        "title": one.title,
        "description": one.about,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"h": 8, "w": 8, "x": 8 * (at % 3), "y": 8 * (at // 3)},
        "fieldConfig": {"defaults": {"unit": one.unit, "custom": {"fillOpacity": 8}}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(one.queries)
        ],
    }


def dashboard(name: str) -> dict[str, Any]:
    title, panels = DASHBOARDS[name]
    surfaces = {
        "name": "surface",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "query": "label_values(slatewise_decide_requests_total, surface)",
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
    return {
        "uid": f"slatewise-{name}",
        "title": title,
        "schemaVersion": 39,
        "tags": ["slatewise"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": [surfaces]},
        "panels": [panel(at, one) for at, one in enumerate(panels)],
    }


def written(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(written(each))
