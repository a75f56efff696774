"""Metrics, logs, keys and admission: small things that everything leans on."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_setup import in_memory

from policies.errors import Unavailable
from policies.types import Slate
from services.exposition import Exposition
from services.keys import KEY_BYTES, Keys
from services.loopback import free_port
from services.scoring.admission import Patience, Recent
from services.scoring.app import create_app
from services.scoring.tallies import Calibration
from services.telemetry import METRICS, JsonLines, Telemetry

CONTRACT = """
decide_requests_total{surface,policy,mode,reason} decide_latency_seconds{surface} decide_stage_seconds{stage}
feedback_events_total{surface,kind,outcome} join_outcomes_total{surface,outcome} join_lag_seconds{partition}
learn_examples_total{surface,policy} publish_total{surface,policy,outcome} freshness_seconds{surface,policy}
bundle_age_seconds{surface,policy} propensity_min{surface,policy} selection_entropy_nats{surface,policy}
exploration_share{surface,policy} exposure_share{surface,group} objective_value{surface,objective,policy,arm}
constraint_multiplier{surface,policy,objective} spool_bytes log_write_errors_total
log_retention_headroom_ratio{partition} dead_letters_total{reason} ope_value{surface,policy,bound}
"""


def test_metrics_are_named_as_the_contract_names_them() -> None:
    for wanted in CONTRACT.split():
        name, _, labels = wanted.rstrip("}").partition("{")
        assert METRICS[name].labels == tuple(filter(None, labels.split(",")))


def test_observations_are_counted_as_one_by_one() -> None:
    telemetry = Telemetry()
    for value in (0.00005, 0.0004, 0.0004, 7.0):  # on a bound, within, within, above all
        telemetry.observe("decide_latency_seconds", "home", value=value)
    text = telemetry.text().decode()
    bucket = 'slatewise_decide_latency_seconds_bucket{{le="{}",surface="home"}} {}'
    for bound, count in (("5e-05", "1.0"), ("0.0003", "1.0"), ("0.0005", "3.0"), ("1.0", "3.0"), ("+Inf", "4.0")):
        assert bucket.format(bound, count) in text
    assert 'slatewise_decide_latency_seconds_count{surface="home"} 4.0' in text
    assert telemetry.text().decode() == text  # a flush moves, it does not repeat


def test_processes_that_share_a_folder_are_one_scrape(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from services.telemetry import Telemetry, share; share(Path(sys.argv[1]));"
        "t = Telemetry(); t.add('decide_requests_total', 'home', 'p', 'live', ''); t.set('propensity_min', 'home', 'p', value=0.1);"
        "text = t.text().decode(); print(text)"
    )
    texts = [
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    line = 'slatewise_decide_requests_total{mode="live",policy="p",reason="",surface="home"}'
    assert f"{line} 1.0" in texts[0]
    assert f"{line} 2.0" in texts[1]
    assert 'slatewise_propensity_min{policy="p",surface="home"} 0.1' in texts[1]


def test_a_process_without_routes_gives_out_its_metrics(tmp_path: Path) -> None:
    """Learning and settling in containers of their own; a process by itself, for the client looks once for its folder."""
    code = (
        "import sys; from pathlib import Path; import httpx;"
        "from policies.errors import Rejected; from services.scraped import scraped; from services.settings import Settings;"
        "from services.telemetry import Telemetry, share; share(Path(sys.argv[1])); t = Telemetry();"
        "at = Settings.load({}, metrics_http=sys.argv[2]);"
        "t.add('dead_letters_total', 'version'); t.flush(); told = scraped(at); told.__enter__();"
        "print(httpx.get(f'http://{sys.argv[2]}/metrics').text);"
        "again = scraped(at)\ntry: again.__enter__()\nexcept Rejected as error: print(error.at)\ntold.__exit__(None, None, None)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), f"127.0.0.1:{free_port()}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert 'slatewise_dead_letters_total{reason="version"} 1.0' in said
    assert said[-1] == "SLATEWISE_METRICS_HTTP"


def test_several_processes_together_are_told_as_one() -> None:
    def told(*, decisions: int, least: float, lag: float) -> Exposition:
        telemetry = Telemetry()
        telemetry.add("decide_requests_total", "home", "p", "live", "", by=decisions)
        telemetry.observe("decide_latency_seconds", "home", value=0.001)
        telemetry.set("propensity_min", "home", "p", value=least)
        telemetry.set("selection_entropy_nats", "home", "p", value=lag)
        telemetry.set("spool_bytes", value=7.0)
        return Exposition.parse(telemetry.text().decode())

    both = Exposition.together([told(decisions=3, least=0.2, lag=1.0), told(decisions=4, least=0.1, lag=2.0)])
    assert both.total("decide_requests_total", policy="p") == 7.0
    assert both.buckets("decide_latency_seconds")[0.001] == 2.0
    assert [value for _, value in both.samples["propensity_min"]] == [0.1]
    assert [value for _, value in both.samples["selection_entropy_nats"]] == [1.5]
    assert both.total("spool_bytes") == 14.0
    assert dict(both.samples["decide_requests_total"][0][0])["mode"] == "live"


def test_no_process_imports_the_client_before_it_shares() -> None:
    """prometheus-client looks for the folder once, when it is imported: whoever comes before `share` is in nobody's scrape."""
    code = (
        "import sys, services.control.app, services.learning.app, services.scoring.serve, services.experiences.settling;"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_log_line_is_json_with_what_came_along() -> None:
    record = logging.makeLogRecord(
        {"name": "slatewise", "levelname": "INFO", "msg": "swapped", "bundle": "b", "path": Path("p")}
    )
    line = json.loads(JsonLines("scoring").format(record))
    assert (line["event"], line["process"], line["level"], line["bundle"]) == ("swapped", "scoring", "info", "b")
    assert "p" in line["path"]


def test_keys_are_made_once_and_kept(tmp_path: Path) -> None:
    first = Keys.load(tmp_path)
    assert Keys.load(tmp_path) == first
    assert len(first.server) == len(first.salt()) == KEY_BYTES
    assert first.server != first.salt()
    assert {path.name for path in tmp_path.iterdir()} == {"server.key", "salt.default"}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_processes_that_make_keys_at_once_agree(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from services.keys import Keys; print(Keys.load(Path(sys.argv[1])).server.hex())"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert len({process.communicate()[0] for process in running}) == 1


def test_a_damaged_key_stops_the_service(tmp_path: Path) -> None:
    Keys.load(tmp_path)
    os.chmod(tmp_path / "server.key", 0o600)
    (tmp_path / "server.key").write_bytes(b"short")
    with pytest.raises(Unavailable, match="restore it"):
        Keys.load(tmp_path)


def test_the_running_percentile() -> None:
    recent = Recent(size=200)
    recent.seconds.extend(range(1_000))
    recent.refresh()
    assert recent.p99 == 998  # of the last 200


def test_a_full_worker_refuses_before_the_body_is_read_and_feedback_last(tmp_path: Path) -> None:
    async def drive() -> dict[str, int]:
        scoring = in_memory(tmp_path, patience=Patience(requests=2, decision=60, live=60))
        app = create_app(scoring)
        held = asyncio.Event()
        read: list[str] = []

        async def request(path: str, method: str = "POST") -> int:
            statuses: list[int] = []

            async def receive() -> dict[str, Any]:
                read.append(path)
                await held.wait()
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                    names = {name for name, _ in message["headers"]}
                    assert (b"retry-after" in names) == (message["status"] == 429)

            scope = {
                "type": "http",
                "method": method,
                "path": path,
                "headers": [],
                "query_string": b"",
                "root_path": "",
            }
            await app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts are scopes and messages
            return statuses[0]

        waiting = [asyncio.create_task(request("/v1/decisions")) for _ in range(2)]
        await asyncio.sleep(0)
        assert len(read) == 2
        found = {"decision": await request("/v1/decisions"), "health": await request("/healthz", "GET")}
        assert len(read) == 2  # neither body was read
        waiting.append(asyncio.create_task(request("/v1/feedback")))
        await asyncio.sleep(0)
        assert scoring.admission.admitted == 3
        held.set()
        found["waiting"] = max(await asyncio.gather(*waiting))
        assert scoring.admission.admitted == 0
        return found

    assert asyncio.run(drive()) == {"decision": 429, "health": 200, "waiting": 422}


def test_draws_that_do_not_follow_their_propensities_show_as_z() -> None:
    """Twenty thousand slots at p = .5: the truth stays within 4 standard errors, an error of 20% does not."""
    rng = np.random.default_rng(3)

    def z_of(chance: float) -> float:
        calibration = Calibration()
        for _ in range(2_000):
            rows = (rng.random(10) >= chance).astype(np.int64)
            ones = np.ones(10)
            slate = Slate(
                slots=np.arange(10),
                items=rows,
                propensities=0.5 * ones,
                remaining=np.full(10, 2),
                greedy=np.zeros(10, np.int64),
                alphas=ones,
                explored=0.5 * ones,
                pinned=np.zeros(10, bool),
                distributions=np.full((10, 2), 0.5),
            )
            calibration.add(slate)
        found = calibration.z
        assert found is not None
        return found

    assert abs(z_of(0.5)) < 4
    assert z_of(0.6) > 5
    assert Calibration().z is None
