"""OpenTelemetry traces of decisions and feedback, only where `SLATEWISE_OTEL` names a collector; imported by nobody else.

    decide, decide_batch, feedback, shown   a server span a request, child of the caller's `traceparent` (W3C), from its first byte on
    decision, heard                         of a batch or array: a child span for each part of it

Attributes are `slatewise.decision_id`, surface, policy, bundle, mode, reason; kind, slot, item of feedback; and those of HTTP. A raw unit
id is in none of them. Sampling and limits are those of OpenTelemetry's own environment (`OTEL_TRACES_SAMPLER`, …); spans wait in
a bounded queue that a thread of the exporter empties, and are dropped where it is full: no answer waits for a collector.

A traced request goes the ASGI way, which has its headers; without traces the protocol answers decisions by itself as ever.
"""

import time
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any, Protocol

import msgspec
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policies.errors import Rejected
from services.scoring.deciding import DECISIONS, FIRST_BYTE, Deciding
from services.scoring.front import FEEDBACK, Front
from services.scoring.listening import Stamped

SERVICE = "slatewise-scoring"
PREFIX = "slatewise."
TOLD = ("decision_id", "surface", "policy", "bundle", "mode", "reason")
HEARD = ("decision_id", "feedback_id", "kind", "slot", "item", "retracts")
_context = TraceContextTextMapPropagator()


class Traces(Protocol):
    """Where spans come from: a provider of OpenTelemetry's."""

    def get_tracer(self, name: str) -> trace.Tracer: ...


def exporting(url: str, version: str) -> TracerProvider:
    """A provider that sends to an OTLP collector over HTTP, such as http://collector:4318. Raises Rejected without the exporter."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise Rejected(f"Traces need the extra `otel`: {error}", at="SLATEWISE_OTEL") from None
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces")))
    return provider


class TracedProtocol(Stamped):
    """Every request goes to the front, which makes its span."""

    def _usual(self) -> bool:
        return False


class TracedFront(Front):
    """The front, with a span around what decides and what hears."""

    def __init__(self, deciding: Deciding, rest: ASGIApp, traces: Traces) -> None:
        super().__init__(deciding, rest)
        self._tracer = traces.get_tracer(SERVICE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope)
        if route is None:
            await super().__call__(scope, receive, send)
            return
        name, path = route
        now = perf_counter()
        begun: float = scope.get(FIRST_BYTE) or now
        began = time.time_ns() - int((now - begun) * 1e9)
        span = self._tracer.start_span(
            name,
            context=_context.extract(
                {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            ),
            kind=SpanKind.SERVER,
            start_time=began,
            attributes={"http.request.method": scope["method"], "http.route": path},
        )
        if not span.is_recording():  # not sampled: nothing is read for nobody
            await super().__call__(scope, receive, send)
            return
        sent, answered, status = bytearray(), bytearray(), 0

        async def reading() -> Message:
            message = await receive()
            if name in ("feedback", "shown"):  # decisions say in their answers what a span has to know
                sent.extend(message.get("body", b""))
            return message

        async def writing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            answered.extend(message.get("body", b""))
            await send(message)

        try:
            await super().__call__(scope, reading, writing)
        finally:
            ended = began + int((perf_counter() - begun) * 1e9)  # by a clock that does not go back
            self._tell(span, name, scope, bytes(sent), bytes(answered), status, ended)
            span.end(ended)

    def _tell(self, span: Span, name: str, scope: Scope, sent: bytes, answered: bytes, status: int, at: int) -> None:
        span.set_attribute("http.response.status_code", status)
        answer = _decoded(answered)
        error = answer.get("error") if isinstance(answer, dict) else None
        if isinstance(error, dict):
            span.set_attribute("error.type", str(error.get("code")))
        if status >= 500 or not status:
            span.set_status(Status(StatusCode.ERROR))
        if name == "decide":
            _attribute(span, answer, TOLD)
        elif name == "decide_batch":
            parts = answer.get("responses", []) if isinstance(answer, dict) else []
            self._parts(span, "decision", parts, TOLD, at)
        elif name == "shown":
            span.set_attribute(
                PREFIX + "decision_id", scope["path"].removeprefix(f"{DECISIONS}/").removesuffix("/shown")
            )
            span.set_attribute(PREFIX + "kind", "shown")
        else:
            heard = _decoded(sent)
            if isinstance(heard, list):
                self._parts(span, "heard", heard, HEARD, at)
            else:
                _attribute(span, heard, HEARD)

    def _parts(self, span: Span, name: str, parts: Sequence[Any], names: Iterable[str], at: int) -> None:
        """A child span of each part; it has no time of its own, for parts are answered together."""
        parent = trace.set_span_in_context(span)
        for part in parts:
            child = self._tracer.start_span(name, context=parent, start_time=at)
            _attribute(child, part, names)
            if isinstance(part, dict) and isinstance(part.get("error"), dict):
                child.set_attribute("error.type", str(part["error"].get("code")))
            child.end(at)


def route_of(scope: Scope) -> tuple[str, str] | None:
    """(span's name, route) of a request that is traced; health, metrics and items are not."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if path == DECISIONS:
        return "decide", path
    if path == f"{DECISIONS}:batch":
        return "decide_batch", path
    if path == FEEDBACK:
        return "feedback", path
    if path.startswith(f"{DECISIONS}/") and path.endswith("/shown"):
        return "shown", f"{DECISIONS}/{{decision_id}}/shown"
    return None


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):  # refused as such, or half of an answer: the span says no more
        return None


def _attribute(span: Span, said: Any, names: Iterable[str]) -> None:
    if isinstance(said, dict):
        for name in names:
            value = said.get(name)
            if isinstance(value, str | int | float | bool):
                span.set_attribute(PREFIX + name, value)
