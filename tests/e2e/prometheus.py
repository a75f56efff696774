"""A real Prometheus beside the running services: their scrape, our rules, and its answers to queries."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from e2e.running import SECONDS, wait_for

from services.loopback import free_port
from tests.dashboards import DEPLOY

RULES = [str(DEPLOY / "prometheus" / name) for name in ("recording.rules.yml", "alerts.rules.yml")]


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    http: httpx.Client

    def query(self, expression: str) -> list[dict[str, str]]:
        """Labels of every series that an expression evaluates to now. Fails with Prometheus' own words."""
        answer = self.http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer['error']}"
        return [one["metric"] for one in answer["data"]["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with `health` and `lastError`."""
        groups = self.http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextmanager
def scraping(folder: Path, *targets: str) -> Iterator[Prometheus]:
    """Scrapes and evaluates every second. Skips where Prometheus is not installed."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("needs prometheus (Debian: apt-get install prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": RULES,
        "scrape_configs": [{"job_name": "slatewise", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    at = f"127.0.0.1:{free_port()}"
    words = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address={at}",
    ]
    with (folder / "prometheus.log").open("wb") as said:
        process = subprocess.Popen([binary, *words], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        with httpx.Client(base_url=f"http://{at}", timeout=30.0) as http:

            def ready() -> bool:
                assert process.poll() is None, (folder / "prometheus.log").read_text()
                try:
                    return http.get("/-/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_for(ready, "Prometheus is ready")
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(SECONDS)
