"""`slatewise demo`, bounded: it ends by itself, with numbers, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from services.loopback import free_port


@pytest.mark.slow
def test_the_demo_ends_with_numbers(tmp_path: Path) -> None:
    flags = ["--seconds", "6", "--rate", "40", "--ray", "inline", "--data", str(tmp_path)]
    flags += ["--http", f"127.0.0.1:{free_port()}", "--control-http", f"127.0.0.1:{free_port()}"]
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli", "demo", *flags],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "COLUMNS": "120"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for fact in (
        "first decision",
        "decisions",
        "feedback",
        "reward vs random",
        "latency p50 / p99",
        "bundles published",
    ):
        assert re.search(rf"{re.escape(fact)}\W+.*\d", ended.stdout), ended.stdout
    left = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
    assert left == []
