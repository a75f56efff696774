"""Grafana's dashboards: as `make.py` writes them, and every query reads what the services export."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.dashboards import rules
from tests.deploy.test_prometheus import unknown

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
spec = importlib.util.spec_from_file_location("make_dashboards", GRAFANA / "make.py")
assert spec is not None
assert spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("name", sorted(make.DASHBOARDS))
def test_the_file_is_what_make_writes(name: str) -> None:
    assert (GRAFANA / "dashboards" / f"{name}.json").read_text() == make.written(name)


@pytest.mark.parametrize("path", sorted((GRAFANA / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_queries_read_what_is_exported(path: Path) -> None:
    queries = [target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]]
    assert len(queries) >= 8
    assert {query: wrong for query in queries if (wrong := unknown(query))} == {}
    recorded = {rule["record"] for rule in rules("recording.rules.yml")}
    assert {name for query in queries for name in re.findall(r"slatewise:[\w:]+", query)} <= recorded
