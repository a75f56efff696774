"""OpenTelemetry traces: spans of decisions and feedback with their ids, children of the caller's; nothing at all when off."""

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind
from scoring_setup import in_memory, installed, serving, surface

from policies.errors import Rejected
from services.scoring.app import create_app
from services.scoring.listening import Stamped, configured
from services.scoring.tracing import TracedFront, TracedProtocol
from services.settings import Settings

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ASK = {"surface": "home", "unit": "somebody-secret", "candidates": ["a", "b", "c", "d"]}


class Traced:
    """A service in this process whose spans end in memory."""

    def __init__(self, folder: Path, runner: asyncio.Runner, **provider: Any) -> None:
        self.spans, traces = InMemorySpanExporter(), TracerProvider(**provider)
        traces.add_span_processor(SimpleSpanProcessor(self.spans))
        self.scoring = in_memory(folder)
        self.app = create_app(self.scoring, traces=traces)
        self._runner = runner

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.post(path, json=body, **{"headers": HEADERS, **more})

        return self._runner.run(ask())

    def taken(self) -> list[ReadableSpan]:
        found = self.spans.get_finished_spans()
        self.spans.clear()
        return list(found)


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    with asyncio.Runner() as runner:
        yield Traced(tmp_path, runner)


def ours(span: ReadableSpan) -> dict[str, Any]:
    return {k.removeprefix("slatewise."): v for k, v in (span.attributes or {}).items() if k.startswith("slatewise.")}


def test_a_decision_is_a_span_of_the_callers_trace(traced: Traced) -> None:
    answer = traced.post("/v1/decisions", ASK).json()
    [span] = traced.taken()
    assert (span.name, span.kind) == ("decide", SpanKind.SERVER)
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    wanted = {name: answer[name] for name in ("decision_id", "surface", "policy", "bundle", "mode")}
    assert ours(span) == wanted
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 <= span.end_time - span.start_time < 60e9
    assert "somebody-secret" not in span.to_json()


def test_feedback_names_its_decision_and_an_array_has_a_span_each(traced: Traced) -> None:
    answer = traced.post("/v1/decisions", ASK).json()
    one = {"decision_id": answer["decision_id"], "slot": 0, "kind": "click", "feedback_id": "f-1"}
    traced.taken()
    assert traced.post("/v1/feedback", one).status_code == 202
    [span] = traced.taken()
    assert (span.name, ours(span)) == ("feedback", {**one})
    traced.post("/v1/feedback", [one, {**one, "feedback_id": "f-2"}, {"decision_id": "x"}])
    *heard, span = traced.taken()
    assert [child.name for child in heard] == ["heard"] * 3
    assert [ours(child)["decision_id"] for child in heard] == [answer["decision_id"]] * 2 + ["x"]
    assert span.context is not None
    assert {child.parent and child.parent.span_id for child in heard} == {span.context.span_id}
    traced.post(f"/v1/decisions/{answer['decision_id']}/shown", {"slots": [0]})
    [span] = traced.taken()
    assert (span.name, ours(span)) == ("shown", {"decision_id": answer["decision_id"], "kind": "shown"})
    assert (span.attributes or {})["http.route"] == "/v1/decisions/{decision_id}/shown"


def test_of_a_batch_each_decision_and_each_refusal_has_its_own(traced: Traced) -> None:
    answer = traced.post("/v1/decisions:batch", {"requests": [ASK, {**ASK, "surface": "none"}, ASK]}).json()
    *parts, span = traced.taken()
    assert (span.name, len(parts)) == ("decide_batch", 3)
    ids = [one.get("decision_id") for one in answer["responses"]]
    assert [ours(part).get("decision_id") for part in parts] == ids
    assert [(part.attributes or {}).get("error.type") for part in parts] == [None, "unknown_surface", None]


def test_what_is_refused_says_why_and_health_is_no_span(traced: Traced) -> None:
    assert traced.post("/v1/decisions", {**ASK, "surface": "none"}).status_code == 404
    assert traced.post("/v1/decisions", None, content=b"{").status_code == 400
    found = traced.taken()
    assert [(span.attributes or {})["error.type"] for span in found] == ["unknown_surface", "undecodable"]
    assert all(span.status.is_ok or span.status.is_unset for span in found)  # the caller's mistake is no fault of ours
    traced.post("/healthz", {})
    traced.post("/v1/decisions", ASK, headers={"traceparent": "nonsense"})
    [span] = traced.taken()
    assert span.parent is None  # a trace of its own


def test_what_is_not_sampled_is_answered_and_not_read(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        quiet = Traced(tmp_path, runner, sampler=ParentBased(ALWAYS_OFF))
        assert quiet.post("/v1/decisions", ASK, headers={}).status_code == 200
        assert quiet.taken() == []
        assert quiet.post("/v1/decisions", ASK).status_code == 200  # the caller sampled it
        assert len(quiet.taken()) == 1


def test_the_protocol_leaves_traced_requests_to_the_front_and_others_not(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)
    plain = create_app(scoring)
    assert not isinstance(plain, TracedFront)
    assert configured(plain).http is Stamped
    assert TracedProtocol._usual is not Stamped._usual


def test_without_the_setting_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, services.scoring.serve, services.cli; from services.scoring.app import create_app; "
        "ours = ('opentelemetry.sdk', 'opentelemetry.exporter', 'services.scoring.tracing'); "  # the API alone: redis-py's, if there
        "print([m for m in sys.modules if m.startswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_setting_is_a_url() -> None:
    with pytest.raises(Rejected) as refused:
        Settings.load({"SLATEWISE_OTEL": "collector:4318"})
    assert refused.value.at == "SLATEWISE_OTEL"


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector on a port of its own."""
    taken: list[ExportTraceServiceRequest] = []

    class Collects(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Collects) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", taken
        server.shutdown()


@pytest.mark.slow
def test_a_real_process_sends_its_spans_to_a_collector(tmp_path: Path) -> None:
    with (
        collector() as (url, taken),
        serving(installed(tmp_path / "data", [surface()], otel=url)) as server,
        server.client() as client,
    ):
        answer = client.post("/v1/decisions", json=ASK, headers=HEADERS).json()
        click = {"decision_id": answer["decision_id"], "slot": 0, "kind": "click"}
        assert client.post("/v1/feedback", json=click).status_code == 202
    spans = [
        s for one in taken for resource in one.resource_spans for scope in resource.scope_spans for s in scope.spans
    ]
    assert {span.name for span in spans} == {"decide", "feedback"}  # all of them, sent before the process ended
    for span in spans:
        said = {pair.key: pair.value.string_value for pair in span.attributes}
        assert said["slatewise.decision_id"] == answer["decision_id"]
    assert [span.trace_id.hex() for span in spans if span.name == "decide"] == [TRACE]
