"""`slatewise bench`: the frame, the floors, the load, and a tiny run of every part. No assertion is on a time."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from services.bench import floors, load
from services.bench.command import command
from services.bench.report import Report
from services.bench.requests import FORMS, bodies, surface
from streaming.configuration import compile_surface, from_json


def test_a_budget_is_held_against_the_floor_or_against_the_value() -> None:
    report = Report("title", "slatewise bench")
    assert report.add("a", 30.0, "µs", floor=20.0, at_most=2.0, of_floor=True).met is True
    assert report.add("b", 50.0, "µs", floor=20.0, at_most=2.0, of_floor=True).met is False
    assert report.add("c", 6.0, "/s", floor=10.0, at_least=0.7, of_floor=True).met is False
    assert report.add("d", 4.0, "ms", at_most=5.0).met is True
    assert report.add("e", 4.0, "ms").met is None
    report.note("a note")
    text = report.markdown()
    assert "| b | 50 | µs | 20 | 2.50 | ≤ 2 × floor | NO |" in text
    assert "- a note" in text
    document = json.loads(report.json())
    assert [row["ratio"] for row in document["rows"][:2]] == [1.5, 2.5]
    assert {"commit", "date", "machine", "command"} <= set(document)


def test_reports_are_written_under_the_date(tmp_path: Path) -> None:
    report = Report("title", "slatewise bench")
    report.add("a", 1.0, "s")
    markdown, document = report.write(tmp_path, "bench")
    assert markdown.name[4] == "-"
    assert markdown.name.endswith("-bench.md")
    assert json.loads(document.read_bytes())["rows"][0]["name"] == "a"


def test_the_floor_decides_what_it_says() -> None:
    """A slate of ten distinct candidates asked for, propensities whose product it names, one record a decision on disk."""
    asked = floors.body()
    with floors.DecideFloor() as floor:
        answers = [msgspec.json.decode(floor(asked)) for _ in range(50)]
        records = Path(floor.spool).read_bytes().splitlines()
    candidates = set(msgspec.json.decode(asked)["candidates"])
    for answer in answers:
        ids = [slot["id"] for slot in answer["slate"]]
        assert len(set(ids)) == floors.SLOTS
        assert set(ids) <= candidates
        assert answer["propensity"] == pytest.approx(np.prod([slot["propensity"] for slot in answer["slate"]]))
    assert len({answer["decision_id"] for answer in answers}) == 50
    assert len(records) == 50


def test_the_floor_draws_what_it_logs() -> None:
    """First slots over many decisions: Σ(1{A = a} − p(a)) within 4 standard errors, by Σ 1/p = number of candidates."""
    asked = floors.body()
    with floors.DecideFloor() as floor:
        inverse = np.array([1.0 / msgspec.json.decode(floor(asked))["slate"][0]["propensity"] for _ in range(4_000)])
    assert abs(inverse.mean() - floors.CANDIDATES) < 4 * inverse.std() / np.sqrt(len(inverse))


def test_all_forms_ask_for_the_same_candidates() -> None:
    compile_surface(from_json(msgspec.json.encode(surface())))
    by_id, rows, columns = (msgspec.json.decode(bodies(form, 2)[1]) for form in FORMS)
    assert by_id["candidates"] == [c["id"] for c in rows["candidates"]] == columns["candidates"]["ids"]
    assert rows["candidates"][3]["features"]["f07"] == columns["candidates"]["features"]["f07"][3]
    assert len(by_id["candidates"]) == floors.CANDIDATES


@pytest.fixture
def counting() -> Iterator[tuple[str, list[bytes]]]:
    """A server that keeps bodies and refuses those that say so."""
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append(body)
            self.send_response(422 if b"bad" in body else 200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/decisions", heard
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("generator", ["wrk", "asyncio"])
def test_load_sends_every_body_and_counts_refusals(
    counting: tuple[str, list[bytes]], generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, heard = counting
    if generator == "asyncio":
        monkeypatch.setattr("shutil.which", lambda name: None)
    elif not shutil.which("wrk"):
        pytest.skip("wrk is not on PATH: a Debian package of that name")
    found = load.post(url, [b'{"good": 1}', b'{"bad": 1}'], 2, 1.0)
    assert found.generator == generator
    assert found.rate > 0
    assert 0 < found.p50 <= found.p95 <= found.p99
    assert set(heard) == {b'{"good": 1}', b'{"bad": 1}'}
    assert 0 < found.errors < len(heard)


@pytest.mark.parametrize(
    "part", ["decide", "rules", "counted", "catalogue", "learn", "algorithms", "open", "settle", "publish", "peers"]
)
def test_a_tiny_run_of_every_part_in_process(part: str, tmp_path: Path) -> None:
    words = ["--quick", "--part", part, "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(next(tmp_path.glob("*.json")).read_bytes())
    assert document["rows"]
    grown = "memory of open decisions"  # so few of them may fit into pages that a test before this one left free
    assert all(row["value"] > 0 for row in document["rows"] if row["name"] != grown)
    assert document == json.loads(done.stdout)


@pytest.mark.slow  # real services
@pytest.mark.parametrize("part", ["http", "http-full", "freshness"])
def test_a_tiny_run_of_every_part_over_http(part: str, tmp_path: Path) -> None:
    words = ["--quick", "--part", part, "--out", str(tmp_path)]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(next(tmp_path.glob("*.json")).read_bytes())["rows"]}
    assert all(row["value"] > 0 for row in rows.values())
    if part == "http":
        assert rows["1 worker, 8 conn., by id"]["floor"] > 0
        assert all("errors" not in row["note"] for row in rows.values())
