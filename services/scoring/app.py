"""HTTP of the scoring service: a thin ASGI front for the decision route, FastAPI for the rest and the documentation.

The front keeps `POST /v1/decisions` out of every middleware and router (half of a request's time went there), admits or
refuses each request before its body is read, and turns every error into the one body of the contract.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policies.errors import Rejected, SlatewiseError, Unavailable
from services.scoring import feedback as feedbacks
from services.scoring import openapi, wire
from services.scoring.admission import RETRY_AFTER_SECONDS, overloaded
from services.scoring.catalogue import KIND
from services.scoring.service import Made, Scoring, status_of
from streaming.events import Feedback

log = logging.getLogger("slatewise.scoring")
FIRST_BYTE = "slatewise.first_byte"  # perf_counter of a request's first byte, stamped by the protocol
REPLY = "slatewise.reply"  # (body) → whether the protocol has written it as a 200
ADMITTED = "slatewise.admitted"  # set by the protocol, which sees requests before their tasks run
POLL_SECONDS, TICK_SECONDS, SYNC_SECONDS = 0.02, 0.1, 0.05
YIELD_SECONDS = 0.001
DECISIONS = "/v1/decisions"
T = TypeVar("T")
FAULT = Rejected("A fault of the service, which has been logged", code="internal", status=500)
JSON = (b"content-type", b"application/json")


class Front:
    """The ASGI application: admission, the decision route, then everything else."""

    def __init__(self, http: "Http", rest: ASGIApp) -> None:
        self._http, self._rest = http, rest
        self.admission = http.scoring.admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path: str = scope["path"]
        admitted = scope.get(ADMITTED)
        if admitted is None:
            admitted = self.admission.enter(path == "/v1/feedback")
        if not admitted:
            if path.startswith("/v1/"):
                await refuse(send, overloaded())
            else:
                await self._rest(scope, receive, send)  # health and metrics are asked for most when there is no place
            return
        try:
            if path == DECISIONS and scope["method"] == "POST":
                await self._decide(scope, receive, send)
            else:
                await self._rest(scope, receive, send)
        finally:
            self.admission.leave()

    async def _decide(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, wire.DECISION_BYTES)
            if body is None:
                return
            answer = await self._http.decide(body, scope.get(FIRST_BYTE) or perf_counter())
        except SlatewiseError as error:
            self._http.count(error)
            await refuse(send, error)
            return
        except Exception:  # a fault of ours: the caller gets the contract's error body, the log the trace
            log.exception("fault", extra={"path": scope["path"]})
            await refuse(send, FAULT)
            return
        reply = scope.get(REPLY)
        if reply is not None and reply(answer):
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [JSON, (b"content-length", b"%d" % len(answer))],
            }
        )
        await send({"type": "http.response.body", "body": answer})


class Http:
    """Routes over one `Scoring`, and the tasks and threads that keep it current."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self._claims = ThreadPoolExecutor(4, "claims")
        self._disk = ThreadPoolExecutor(8, "disk")  # feedback waits here for the flush that many share
        self._follower = ThreadPoolExecutor(1, "follower")
        self._state = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    # -- decisions ---------------------------------------------------------------------------------------------------

    async def decide(self, body: bytes, first_byte: float) -> bytes:
        large = len(body) > wire.LARGE_BODY_BYTES
        if large:
            await asyncio.sleep(0)
        waited = perf_counter() - first_byte
        if waited > self.scoring.patience.decision:
            raise overloaded()
        made = self.scoring.read(body, first_byte)
        if large:
            await asyncio.sleep(0)
        if made.request.decision_id is None:
            return self.scoring.finish(made)
        return (await self._claimed([made]))[0]

    async def _claimed(self, several: list[Made]) -> list[bytes]:
        """Answers of requests with ids of their own, claimed in one visit to the store."""

        def claim() -> list[Any]:
            found: list[Any] = []
            for made in several:
                try:
                    found.append(self.scoring.claim(made))
                except Unavailable as error:
                    found.append(error)
            return found

        answers = []
        for made, found in zip(several, await self._in(self._claims, claim), strict=True):
            try:
                if isinstance(found, Unavailable):
                    log.warning("unclaimed", extra={"decision_id": made.answer.decision_id, "error": str(found)})
                    answers.append(self.scoring.finish_unclaimed(made))
                else:
                    answers.append(self.scoring.finish_claimed(made, found))
            except Rejected as error:
                if len(several) == 1:
                    raise
                answers.append(wire.encode(wire.error_body(error)))
        return answers

    async def decide_batch(self, request: Request) -> Response:
        first_byte = request.scope.get(FIRST_BYTE) or perf_counter()
        if perf_counter() - first_byte > self.scoring.patience.batch:
            raise overloaded()
        body = await self._body(request, wire.BATCH_BYTES)
        asked = wire.read_batch(body, "$").requests
        answers: list[bytes] = [b""] * len(asked)
        claimed: list[tuple[int, Made]] = []
        rest = Turn()
        for place, raw in enumerate(asked):
            try:
                made = self.scoring.make(wire.read_decision(bytes(raw), f"$.requests[{place}]"), perf_counter())
                if made.request.decision_id is None:
                    answers[place] = self.scoring.finish(made)
                else:
                    claimed.append((place, made))
            except Rejected as error:
                self.count(error)
                answers[place] = wire.encode(wire.error_body(_inside(error, f"$.requests[{place}]")))
            await rest()
        if len(claimed) == 1:
            place, made = claimed[0]
            try:
                answers[place] = (await self._claimed([made]))[0]
            except Rejected as error:
                answers[place] = wire.encode(wire.error_body(_inside(error, f"$.requests[{place}]")))
        elif claimed:
            for (place, _), answer in zip(claimed, await self._claimed([made for _, made in claimed]), strict=True):
                answers[place] = answer
        return _json(b'{"responses":[' + b",".join(answers) + b"]}")

    # -- feedback ----------------------------------------------------------------------------------------------------

    async def feedback(self, request: Request) -> Response:
        self.scoring.refuse_when_full()
        body = await self._body(request, wire.FEEDBACK_BYTES)
        if not body.lstrip().startswith(b"["):
            return await self._kept([feedbacks.read(body, self.scoring.clock(), self.scoring.terms())], [])
        sent = wire.read_many_feedback(body, "$")
        if len(sent) > wire.MAX_FEEDBACK:
            raise Rejected(f"Expected array of length <= {wire.MAX_FEEDBACK}", at="$")
        heard, rejected = [], []
        terms, rest = self.scoring.terms(), Turn()
        for place, raw in enumerate(sent):
            try:
                heard.append(feedbacks.read(bytes(raw), self.scoring.clock(), terms, f"$[{place}]"))
            except Rejected as error:
                self.count(error)
                rejected.append(wire.RejectedFeedback(place, wire.error_detail(error)))
            await rest()
        return await self._kept(heard, rejected)

    async def shown(self, request: Request) -> Response:
        self.scoring.refuse_when_full()
        decision_id = request.path_params["decision_id"]
        if not 1 <= len(decision_id) <= 128:
            raise Rejected("Expected str of length 1 to 128", at="$.decision_id")
        body = await self._body(request, wire.FEEDBACK_BYTES)
        asked = wire.read_shown(body, "$") if body else wire.ShownRequest()
        return await self._kept([feedbacks.shown(decision_id, asked, self.scoring.clock(), self.scoring.terms())], [])

    async def _kept(self, heard: list[Feedback], rejected: list[wire.RejectedFeedback]) -> Response:
        await self._in(self._disk, lambda: self.scoring.keep(heard))
        telemetry, surfaces = self.scoring.telemetry, self.scoring.live.surfaces
        only = next(iter(surfaces)) if len(surfaces) == 1 else ""  # feedback names a decision, not its surface
        for one in heard:
            telemetry.add("feedback_events_total", only, one.kind or "retraction", "accepted")
        if rejected:
            telemetry.add("feedback_events_total", only, "", "rejected", by=len(rejected))
        return _json(wire.encode(wire.FeedbackAnswer(len(heard), rejected)), 202)

    # -- catalogue ---------------------------------------------------------------------------------------------------

    async def put_items(self, request: Request) -> Response:
        body = await self._body(request, wire.ITEMS_BYTES)

        def check_and_put() -> int:
            sent = wire.read_items(body, "$")
            if len(sent) > wire.MAX_ITEMS:
                raise Rejected(f"Expected array of length <= {wire.MAX_ITEMS}", at="$")
            items = [wire.read_item(bytes(raw), f"$[{place}]") for place, raw in enumerate(sent)]
            self.scoring.check_items(items)
            if not items:
                return self.scoring.state.version()
            return self.scoring.state.put([(KIND, item.id, wire.encode(item)) for item in items])

        version = await self._in(self._disk, check_and_put)
        await self.follow_state()
        return _json(wire.encode(wire.VersionAnswer(version)))

    async def one_item(self, request: Request) -> Response:
        """One route for both methods, so that a 405 lists them all."""
        item = self._item(request)
        if request.method != "DELETE":
            return _json(wire.encode(item))
        version = await self._in(self._disk, lambda: self.scoring.state.put([(KIND, item.id, None)]))
        await self.follow_state()
        return _json(wire.encode(wire.VersionAnswer(version)))

    def _item(self, request: Request) -> wire.Item:
        key = request.path_params["item_id"]
        if not 1 <= len(key) <= 256:
            raise Rejected("Expected str of length 1 to 256", at="$.id")
        found = self.scoring.catalogue.get(key)
        if found is None:
            raise Rejected("No such item", at="$.id", code="unknown_item", status=404)
        return found

    # -- state of the service ----------------------------------------------------------------------------------------

    async def healthz(self, request: Request) -> Response:
        return _json(b'{"status":"alive"}')

    async def readyz(self, request: Request) -> Response:
        surfaces = {
            name: {"mode": "live", "policy": found.policy.policy, "bundle": found.policy.bundle}
            if found.policy
            else {"mode": "fallback", "reason": "no_bundle", "policy": found.fallback.policy}
            for name, found in self.scoring.live.surfaces.items()
        }
        draining = self.scoring.admission.draining
        status = "draining" if draining else "ready" if surfaces else "no surface is configured"
        body = {"status": status, "surfaces": surfaces, "catalogue": self.scoring.catalogue.version}
        return _json(wire.encode(body), 200 if surfaces and not draining else 503)

    async def metrics(self, request: Request) -> Response:
        self.scoring.tick()
        return Response(self.scoring.telemetry.text(), media_type="text/plain; version=0.0.4")

    # -- what keeps it current ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Warm, then follow. The port opens after this returns."""
        await self._in(self._follower, self.scoring.start)
        for work, every in (
            (self._follow_bundles, POLL_SECONDS),
            (self._sync, SYNC_SECONDS),
            (self._tick, TICK_SECONDS),
        ):
            self._tasks.append(asyncio.create_task(_repeat(work, every)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for threads in (self._claims, self._disk, self._follower):
            threads.shutdown()
        self.scoring.close()

    async def follow_state(self) -> None:
        """Bring catalogue and configuration to the newest version of the state record."""
        scoring = self.scoring
        async with self._state:
            while entries := await self._in(self._follower, lambda: scoring.state.read(scoring.catalogue.version)):
                change = await self._in(self._follower, lambda: scoring.catalogue.prepare(entries))
                scoring.catalogue.apply(change, scoring.clock())
                await self._in(self._follower, lambda: scoring.configs.follow(scoring.state))

    async def _follow_bundles(self) -> None:
        self.scoring.swap(await self._in(self._follower, self.scoring.poll))

    async def _tick(self) -> None:
        self.scoring.tick()
        await self.follow_state()

    async def _sync(self) -> None:
        await self._in(self._disk, self.scoring.spool.sync)

    # -- shared ------------------------------------------------------------------------------------------------------

    async def _body(self, request: Request, limit: int) -> bytes:
        body = await read_body(request.scope, request.receive, limit)
        if body is None:
            raise Rejected("The connection closed before the body was complete", code="undecodable", status=400)
        if len(body) > wire.LARGE_BODY_BYTES:
            await asyncio.sleep(0)
        return body

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def count(self, error: SlatewiseError) -> None:
        code = error.code if isinstance(error, Rejected) else "unavailable"
        self.scoring.telemetry.add("decide_rejected_total", code)


class Turn:
    """Gives the event loop a turn when a millisecond of work has passed since the last."""

    def __init__(self) -> None:
        self._since = perf_counter()

    async def __call__(self) -> None:
        if perf_counter() - self._since > YIELD_SECONDS:
            await asyncio.sleep(0)
            self._since = perf_counter()


def create_app(scoring: Scoring, version: str = "0.1.0") -> Front:
    """The ASGI application of a scoring worker."""
    http = Http(scoring)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await http.start()
        try:
            yield
        finally:
            await http.stop()

    app = FastAPI(title=openapi.TITLE, version=version, lifespan=lifespan, redirect_slashes=False)

    def described() -> dict[str, Any]:
        return openapi.document(version, list(scoring.live.surfaces), scoring.live.kinds)

    app.openapi = described  # type: ignore[method-assign]  # the way FastAPI documents
    front = Front(http, app)

    async def decide(request: Request) -> Response:
        body = await http._body(request, wire.DECISION_BYTES)
        return _json(await http.decide(body, perf_counter()))

    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", DECISIONS, decide),  # for its 405s and its place in the document; the front answers first
        ("POST", "/v1/decisions:batch", http.decide_batch),
        ("POST", "/v1/decisions/{decision_id:path}/shown", http.shown),
        ("POST", "/v1/feedback", http.feedback),
        ("PUT", "/v1/items", http.put_items),
        ("GET DELETE", "/v1/items/{item_id:path}", http.one_item),
        ("GET", "/healthz", http.healthz),
        ("GET", "/readyz", http.readyz),
        ("GET", "/metrics", http.metrics),
    ]
    for methods, path, endpoint in routes:
        app.router.routes.append(Route(path, endpoint, methods=methods.split()))

    @app.exception_handler(SlatewiseError)
    async def ours(request: Request, error: SlatewiseError) -> Response:
        http.count(error)
        return _refusal(error)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return _refusal(FAULT)  # the trace is logged by the server

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        code = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "http")
        body = wire.ErrorBody(wire.ErrorDetail(code, str(error.detail), "$"))
        return Response(wire.encode(body), error.status_code, error.headers, "application/json")

    return front


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """A request's body; None when the caller went away. Raises Rejected(413), by its header before it is read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)
    message: Message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
    return b"".join(parts)


def too_large(limit: int) -> Rejected:
    return Rejected(f"The body is larger than {limit} bytes", code="too_large", status=413)


async def refuse(send: Send, error: SlatewiseError) -> None:
    """The error as a whole response."""
    response = _refusal(error)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def _repeat(work: Callable[[], Awaitable[None]], every: float) -> None:
    """Do something for ever. What it needs may be away for a while: that is logged, and tried again."""
    away = ""
    while True:
        try:
            await work()
            away = ""
        except SlatewiseError as error:
            if str(error) != away:
                away = str(error)
                log.warning("away", extra={"what": getattr(work, "__name__", ""), "error": away})
        await asyncio.sleep(every)


def _refusal(error: SlatewiseError) -> Response:
    status = status_of(error)
    body = error if isinstance(error, Rejected) else Rejected(str(error), code="unavailable")
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
    return Response(wire.encode(wire.error_body(body)), status, headers, "application/json")


def _inside(error: Rejected, at: str) -> Rejected:
    """An error of a part, its path seen from the whole."""
    path = error.at if error.at.startswith(at) else at + error.at.removeprefix("$")
    return Rejected(error.message, at=path, code=error.code, status=error.status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
