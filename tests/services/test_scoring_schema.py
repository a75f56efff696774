"""The OpenAPI document is what the service does: schemathesis finds no fault of ours and no breach of the contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scoring_setup import decisions, feedback, installed, serving, surface

pytestmark = pytest.mark.slow
EXAMPLES = 20  # an operation and phase; bounded, because this is a test and not a hunt
CONFIG = """
[checks.positive_data_acceptance]
# 422 is in the contract for what a schema cannot say: a pin names a candidate, a feature belongs to a surface
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]
"""


def test_schemathesis_finds_no_breach(tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    with serving(installed(tmp_path / "data", [surface()])) as server, server.client() as client:
        items = [{"id": f"i{i}", "features": {"price": i}, "attributes": {"x": i}} for i in range(5)]
        client.put("/v1/items", json=items).raise_for_status()
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("st")),
                f"--config-file={config}",
                "run",
                f"{server.url}/openapi.json",
                "--checks=all",
                "--phases=examples,coverage,fuzzing,stateful",
                f"--max-examples={EXAMPLES}",
                "--generation-deterministic",
                "--seed=1",
                "--workers=1",
                "--no-color",
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
        )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    # the runs reached what they were to reach: decisions were made, and links led from them to feedback
    made = {decision.decision_id for decision in decisions(tmp_path / "data")}
    heard = feedback(tmp_path / "data")
    assert made
    assert {one.kind for one in heard if one.decision_id in made} >= {"shown"}
