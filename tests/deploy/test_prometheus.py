"""Alert and recording rules: what they read is exported, each fires where it should, each has a page."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from services.telemetry import METRICS
from tests.dashboards import SUFFIXES, read_by, rules

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"


def unknown(expression: str) -> list[str]:
    """What an expression reads that no service exports."""
    wrong = []
    for name, labels in read_by(expression):
        suffix = next((end for end in SUFFIXES if name.endswith(end) and name.removesuffix(end) in METRICS), "")
        metric = METRICS.get(name.removesuffix(suffix))
        if metric is None:
            wrong.append(name)
        else:
            wrong += [f"{name}{{{label}}}" for label in labels - {*metric.labels, *(["le"] if suffix else [])}]
    return wrong


def test_a_misspelt_metric_or_label_would_be_seen() -> None:
    assert unknown('rate(slatewise_decide_requests_totals[5m]) + slatewise_spool_bytes{surface="a"}') == [
        "decide_requests_totals",
        "spool_bytes{surface}",
    ]


@pytest.mark.parametrize("file", ["recording.rules.yml", "alerts.rules.yml"])
def test_rules_read_what_is_exported(file: str) -> None:
    assert {name: wrong for rule in rules(file) if (wrong := unknown(rule["expr"])) for name in [str(rule)]} == {}


def test_recorded_names_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules("recording.rules.yml")}
    everything = [rule["expr"] for file in ("recording.rules.yml", "alerts.rules.yml") for rule in rules(file)]
    read = {name for expression in everything for name in re.findall(r"slatewise:[\w:]+", expression)}
    assert read <= recorded


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    alerts = {rule["alert"]: rule for rule in rules("alerts.rules.yml")}
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == set(alerts)
    for name, rule in alerts.items():
        page = (RUNBOOKS / f"{name}.md").read_text()
        assert rule["annotations"]["runbook"] == f"docs/runbooks/{name}.md"
        assert "## Look" in page
        assert "## Mend" in page


def test_alerts_fire_where_they_should_and_keep_quiet_beside_it() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    tested = yaml.safe_load((DEPLOY / "alerts.test.yml").read_text())["tests"]
    expected = {f"{rule['alert']} {how}" for rule in rules("alerts.rules.yml") for how in ("fires", "keeps quiet")}
    assert {test["name"] for test in tested} == expected
    done = subprocess.run([promtool, "test", "rules", "alerts.test.yml"], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
