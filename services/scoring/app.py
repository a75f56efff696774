"""Routes of the scoring service: FastAPI for the documentation and the errors, our own front before it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from policies.errors import SlatewiseError
from services.access import ADMIN
from services.guarded_schema import guarded
from services.guarding import SAFE, Guarding
from services.scoring import openapi, wire
from services.scoring.deciding import DECISIONS, Deciding
from services.scoring.front import DECIDE, FEEDBACK, Front
from services.scoring.intake import Intake
from services.scoring.items import Items
from services.scoring.replies import FAULT, JSON, body_of, json, refusal
from services.scoring.service import Scoring
from services.scoring.upkeep import Upkeep

if TYPE_CHECKING:
    from services.scoring.tracing import Traces

VERSION = "0.1.0"
OPEN = frozenset({"/healthz", "/readyz", "/metrics"})  # what nobody needs a key for


def create_app(scoring: Scoring, version: str = VERSION, traces: "Traces | None" = None) -> Front:
    """The ASGI application of a scoring worker. `traces`: where spans go, see `tracing`; None: nowhere, and nothing is loaded."""
    upkeep, deciding = Upkeep(scoring), Deciding(scoring)
    intake, items = Intake(deciding, upkeep.disk), Items(scoring, upkeep)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await upkeep.start()
        try:
            yield
        finally:
            deciding.close()
            await upkeep.stop()

    app = FastAPI(title=openapi.TITLE, version=version, lifespan=lifespan, redirect_slashes=False)

    def described() -> dict[str, Any]:
        made = openapi.document(version, list(scoring.live.surfaces), scoring.live.kinds)
        return guarded(made, scope_of, openapi.ERROR, closed=scoring.access.guarded)

    app.openapi = described  # type: ignore[method-assign]  # the way FastAPI documents

    async def decide(request: Request) -> Response:
        return json(await deciding.decide(await body_of(request, wire.DECISION_BYTES), perf_counter()))

    async def healthz(request: Request) -> Response:
        return json(b'{"status":"alive"}')

    async def readyz(request: Request) -> Response:
        ready, body = scoring.standing()
        return json(wire.encode(body), 200 if ready else 503)

    async def metrics(request: Request) -> Response:
        scoring.tell_ages()
        scoring.tick()
        return Response(scoring.telemetry.text(), media_type="text/plain; version=0.0.4")

    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("POST", DECISIONS, decide),  # for its 405s and its place in the document; the front answers first
        ("POST", "/v1/decisions:batch", deciding.batch),
        ("POST", "/v1/decisions/{decision_id:path}/shown", intake.shown),
        ("POST", FEEDBACK, intake.feedback),
        ("PUT", "/v1/items", items.put),
        ("GET DELETE", "/v1/items/{item_id:path}", items.one),
        ("GET", "/healthz", healthz),
        ("GET", "/readyz", readyz),
        ("GET", "/metrics", metrics),
    ]
    for methods, path, endpoint in routes:
        app.router.routes.append(Route(path, endpoint, methods=methods.split()))

    @app.exception_handler(SlatewiseError)
    async def ours(request: Request, error: SlatewiseError) -> Response:
        deciding.count(error)
        return refusal(error)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return refusal(FAULT)  # the trace is logged by the server

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        code = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "http")
        body = wire.ErrorBody(wire.ErrorDetail(code, str(error.detail), "$"))
        return Response(wire.encode(body), error.status_code, error.headers, JSON)

    guarded_app = Guarding(app, scoring.access, scope_of)
    if traces is None:
        return Front(deciding, guarded_app)
    from services.scoring.tracing import TracedFront

    return TracedFront(deciding, guarded_app, traces)


def scope_of(method: str, path: str) -> str | None:
    """What a route of the scoring service asks for; whatever else writes administers."""
    if path in OPEN:
        return None
    if path == FEEDBACK or (path.startswith(f"{DECISIONS}/") and path.endswith("/shown")):
        return "feedback"
    if path.startswith(DECISIONS):
        return DECIDE
    return "read" if method in SAFE else ADMIN
