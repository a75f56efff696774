"""What dashboards and rules ask Prometheus, and whether the services' own exposition can answer it."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from services.exposition import Exposition
from services.telemetry import PREFIX

DEPLOY = Path(__file__).parents[1] / "deploy"
RECORDED = re.compile(r"slatewise:[\w:]+")
SUFFIXES = ("_bucket", "_count", "_sum")


def rules(file: str) -> list[dict[str, Any]]:
    return [
        rule
        for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]
        for rule in group["rules"]
    ]


def panels() -> dict[str, list[tuple[str, str]]]:
    """`overview: Latency` → (query, legend), all surfaces chosen as Grafana's "All" does."""
    found = {}
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found[f"{path.stem}: {panel['title']}"] = [
                (target["expr"].replace("$surface", ".*"), target["legendFormat"]) for target in panel["targets"]
            ]
    return found


def queries() -> dict[str, str]:
    """Every expression of panels and rules, by where it stands."""
    found = {f"{where} #{i}": one for where, all_ in panels().items() for i, (one, _) in enumerate(all_)}
    for file in ("recording.rules.yml", "alerts.rules.yml"):
        found |= {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules(file)}
    return found


def read_by(expression: str) -> list[tuple[str, set[str]]]:
    """(metric, labels it is narrowed by) of an expression, without the prefix."""
    found = re.findall(rf"\b{PREFIX}(\w+)(?:\{{([^}}]*)\}})?", expression)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))) for name, braces in found]


def grouped_by(expression: str) -> set[str]:
    """Labels of `by (…)` and `on (…)`."""
    named = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in named for label in labels.split(",")}


def carried(expression: str, told: Exposition) -> set[str]:
    """Labels that what an expression evaluates to can have; Prometheus leaves out those that are empty."""
    found = grouped_by(expression)
    if not found:
        found = {"instance", "job"}.union(
            *(said.keys() for name, _ in read_by(expression) for said, _ in told.samples.get(name, ()))
        )
        recorded = {rule["record"]: rule["expr"] for rule in rules("recording.rules.yml")}
        found |= {label for name in RECORDED.findall(expression) for label in grouped_by(recorded[name])}
    return found


def lacking(expressions: Mapping[str, str], told: Exposition, *, only: Iterable[str] = ()) -> dict[str, list[str]]:
    """Where → what an expression reads that was not told: metrics, labels they are narrowed by, labels they are grouped by.

    only  metrics to look for, of expressions that read them; none named: all
    """
    wanted, recorded = frozenset(only), {rule["record"]: rule["expr"] for rule in rules("recording.rules.yml")}
    wrong: dict[str, list[str]] = {}
    for where, expression in expressions.items():
        reads = read_by(expression)
        known: set[str] = set()
        for name, labels in reads:
            if wanted and name not in wanted:
                continue
            told_labels = [said for said, _ in told.samples.get(name, ())]
            if not told_labels:
                wrong.setdefault(where, []).append(name)
            for said in told_labels:
                known |= said.keys()
            for label in sorted(labels - set().union(*told_labels)) if told_labels else ():
                wrong.setdefault(where, []).append(f"{name}{{{label}}}")
        for name in RECORDED.findall(expression):
            if name not in recorded:
                wrong.setdefault(where, []).append(name)
            known |= grouped_by(recorded.get(name, ""))
        if not wanted and where not in wrong:
            wrong |= {where: missing} if (missing := sorted(grouped_by(expression) - known)) else {}
    return wrong
