"""Every fault that `slatewise chaos` knows, for a short while each, on real Kafka, Redis and Ray; `make evidence` has a minute of each.

A process of its own, as an operator would start it: what it kills leaves sockets behind that are none of this suite's.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from services.chaos.faults import FAULTS
from services.stack.kafka import missing

SECONDS, RATE = 1.0, 60.0  # of a fault, beyond what it has to wait for; decisions a second


@pytest.mark.slow  # some three minutes
@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_is_learned_twice(tmp_path: Path) -> None:
    lacking = missing()
    if lacking or not shutil.which("redis-server"):
        pytest.skip(lacking or "redis-server is not on PATH: a Debian package of that name")
    words = ["--together", "--seconds", str(SECONDS), "--rate", str(RATE), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "chaos", *words, "--keep", str(tmp_path / "houses")],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-4000:]
    document = json.loads(next((tmp_path / "out").glob("*.json")).read_bytes())
    assert {row["fault"] for row in document["rows"]} == {fault.does for fault in FAULTS.values()}
    for row in document["rows"]:
        assert row["kept"], row
        assert (row["lost"], row["changed"]) == (0, 0), row
        assert row["off"] < 1e-9, row
        assert row["rate"] > 0, row
    assert all(verdict["feedback"] > 0 for verdict in document["verdicts"])
