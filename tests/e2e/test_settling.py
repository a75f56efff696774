"""`slatewise up` with a folder for settled decisions: what was decided over HTTP is settled once, whatever is killed."""

from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from e2e.running import up, wait_for

from services.client import Slatewise
from services.experiences.settling import Settling
from services.exposition import Exposition
from services.settings import Settings
from services.wiring import open_experiences, open_log, open_settlements, open_state
from tests.dashboards import lacking, queries

SURFACE = """
surface: home
slots: 2
horizon: 10s  # longer than any pause between a decision and its click here
features: {context: {hour: {type: number, max: 23}}}
objectives: {click: {kind: click}}
policies: {home-ts: {algorithm: linear_thompson, objective: click}}
live: home-ts
"""


def numbered(settings: Settings) -> int:
    """Decisions in the outboxes."""
    return sum(open_settlements(settings, p).numbers()[1] for p in range(open_log(settings).partitions))


@pytest.mark.slow
def test_every_decision_is_settled_once_though_the_process_is_killed(tmp_path: Path) -> None:
    clicked: dict[str, bool] = {}
    experiences = tmp_path / "experiences"
    with (
        up(tmp_path, config=SURFACE, experiences=f"file://{experiences}") as running,
        Slatewise(running.url, timeout=60.0) as slatewise,
    ):

        def visit(name: str) -> None:
            decision = slatewise.decide("home", name, context={"hour": 3}, candidates=["a", "b", "c"])
            clicked[decision.decision_id] = len(clicked) % 2 == 0
            if clicked[decision.decision_id]:
                slatewise.feedback(decision, "click", slot=1)

        for i in range(20):
            visit(f"before-{i}")

        def more() -> bool:
            visit(f"while-{len(clicked)}")  # records move the log's clock; without them it takes a minute more
            return numbered(running.settings) > 0

        wait_for(more, "some are settled while the service runs")
        running.kill("settle")
        for i in range(20):
            visit(f"after-{i}")
        told = Exposition.parse(httpx.get(f"{running.url}/metrics", timeout=60.0).text)
        assert lacking(queries(), told, only=["settle_lag_seconds", "settle_stopped"]) == {}
        settings = running.settings
        assert running.stop() == []
    # the log is over: what waits for its horizon is settled, and the window written, at a time that has come long ago
    settling = Settling(open_state(settings), open_log(settings), open_experiences(settings), settings)
    later = 1e4 + max(open_log(settings).end(p)[1] for p in range(settings.partitions))
    while settling.turn(later):
        pass
    rows = [
        row
        for file in sorted(experiences.glob("**/*.parquet"))
        for row in pq.ParquetFile(file).read().to_pylist(maps_as_pydicts="strict")
    ]
    assert sorted(row["decision_id"] for row in rows) == sorted(clicked)
    assert {row["decision_id"]: row["rewards"]["click"] for row in rows} == {
        name: [0.0, 1.0 if said else 0.0] for name, said in clicked.items()
    }
    assert {(row["tenant"], row["surface"], row["mode"]) for row in rows} == {("default", "home", "live")}
    assert all(abs(row["propensity"] - row["prefix_propensities"][-1]) == 0.0 for row in rows)
