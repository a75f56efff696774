"""The control service: surfaces, policies, bundles, releases, experiments, audit, dead letters, and the page `/ops`.

One process writes the record; every write compares the version it read (`If-Match`). Surfaces that a config folder
brought are edited there, not here (409).
"""

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected, Unavailable
from services.access import Access
from services.audit import Audit
from services.configuring import apply_folder
from services.control import (
    bundles,
    experiments,
    inspecting,
    keyring,
    letters,
    pages,
    releasing,
    sessions,
    surfaces,
    units,
)
from services.control.answering import errors, json
from services.control.canaries import Canaries, Guard
from services.control.drifting import Drifting
from services.control.estimating import Estimating
from services.control.impressions import Impressions
from services.control.overview import Overview
from services.control.readouts import Beside, Readouts
from services.control.sessions import Sessions
from services.control.together import Together
from services.forgetting import Forgetting
from services.guarded_schema import ERROR_BODY, guarded
from services.guarding import Guarding
from services.keys import Keys
from services.promoting import Promotions
from services.releases import Releases
from services.settings import Settings
from services.telemetry import Telemetry, share
from services.timely import Timely
from services.trials import Trials
from services.wiring import open_audience, open_dead_letters, open_estimates, open_state, open_totals, open_watched
from streaming.configuration import Configs
from streaming.ports import DeadLetters
from streaming.tenancy import claim

log = logging.getLogger("slatewise.control")
MOST_DECISIONS = 200
FOLDER_SECONDS, KEYS_SECONDS = 2.0, 0.5


@dataclass(frozen=True, slots=True)
class Control:
    """What the routes work on."""

    releases: Releases
    configs: Configs
    dead: DeadLetters
    overview: Overview
    trials: Trials
    readouts: Readouts
    audit: Audit
    access: Access
    sessions: Sessions
    promotions: Promotions
    estimating: Estimating
    guard: Guard
    forgetting: Forgetting
    impressions: Impressions
    telemetry: Telemetry
    config_folder: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Control":
        releases, dead, configs = Releases.of(settings), open_dead_letters(settings), Configs(settings.tenant)
        configs.follow(releases.state)
        trials = Trials(releases.state, Configs(settings.tenant))
        access = Access(settings.tenant, settings.admin_key)
        access.follow(releases.state)
        keys = Keys.load(settings.keys_path, (settings.tenant,))
        secret, salt = keys.server, keys.salt(settings.tenant)
        known = Sessions(access, secret, user_header=settings.ops_user_header, proxies=settings.ops_proxies)
        kept = settings.retention_seconds
        promotions, telemetry = Promotions(releases.state, Configs(settings.tenant)), Telemetry()
        partitions = releases.events.partitions
        estimating = Estimating(promotions, lambda: open_estimates(settings), partitions, telemetry=telemetry)
        impressions = Impressions(
            releases.state,
            lambda: open_audience(settings),
            partitions,
            salt,
            settings.tenant,
            telemetry=telemetry,
        )
        drifting = Drifting(releases, lambda: open_watched(settings), Configs(settings.tenant), telemetry=telemetry)
        beside: list[Beside] = [estimating] if settings.estimates == "on" else []
        beside += [drifting] if settings.drift == "on" else []
        beside.append(impressions)
        readouts = Readouts(
            trials,
            releases.events,
            lambda: open_totals(settings),
            retention_seconds=kept,
            telemetry=telemetry,
            beside=Together(*beside),
            canaries=Canaries(promotions, telemetry),
        )
        overview = Overview(releases, configs, dead, settings.metrics_sources)
        return cls(
            releases,
            configs,
            dead,
            overview,
            trials,
            readouts,
            Audit(releases.state),
            access,
            known,
            promotions,
            estimating,
            Guard(promotions, releases.events, overview.refused),
            Forgetting(settings, releases.state, salt),
            impressions,
            telemetry,
            settings.config,
        )


def create_app(control: Control) -> FastAPI:
    """The ASGI app over a control."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        watch = threading.Thread(target=_watch, args=(control, stop), name="config-folder", daemon=True)
        keys = threading.Thread(target=_follow_keys, args=(control, stop), name="keys", daemon=True)
        forgetting = threading.Thread(target=control.forgetting.run, args=(stop,), name="forgetting", daemon=True)
        control.overview.start()
        control.readouts.start()
        control.guard.start()
        watch.start()
        keys.start()
        forgetting.start()
        yield
        stop.set()
        await run_in_threadpool(keys.join)
        await run_in_threadpool(control.guard.stop)
        await run_in_threadpool(forgetting.join)
        await run_in_threadpool(control.readouts.stop)
        await run_in_threadpool(watch.join)
        await run_in_threadpool(control.overview.stop)

    app = FastAPI(title="Slatewise control", version="1", lifespan=lifespan)
    app.add_middleware(
        Guarding,
        access=control.access,
        scope_of=sessions.scope_of,
        sessions=control.sessions,
        harden=sessions.harden,
    )
    app.include_router(experiments.router(control.trials, control.readouts, control.audit))
    app.include_router(releasing.router(control.promotions, control.estimating, control.readouts, control.releases))
    app.include_router(sessions.router(control.sessions))
    app.include_router(keyring.router(control.releases.state, control.access))
    app.include_router(units.router(control.forgetting, control.impressions))
    app.include_router(pages.router())
    app.include_router(surfaces.router(control.releases.state, control.configs))
    app.include_router(bundles.router(control.releases, control.configs, control.overview, control.promotions))
    app.include_router(letters.router(control.dead, control.releases.events, control.releases.state))

    @app.get("/healthz")
    def healthz() -> Response:
        return json({"status": "alive"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(control.telemetry.flushed(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/overview")
    def overview() -> Response:
        return json(control.overview.report())

    @app.get("/v1/stream")
    def stream() -> Response:
        return json(control.overview.stream())

    @app.get("/v1/decisions")
    def decisions(limit: int = 20) -> Response:
        if not 1 <= limit <= MOST_DECISIONS:
            raise Rejected(f"Expected 1 ≤ limit ≤ {MOST_DECISIONS}", at="$.limit")
        return json({"decisions": control.overview.recent(limit)})

    @app.get("/v1/decisions/{decision_id:path}")
    def decision(decision_id: str) -> Response:
        control.configs.follow(control.releases.state)
        return json(inspecting.inspect(control.releases.events, control.configs, decision_id))

    errors(app)
    app.openapi = lambda: described(app, control.access)  # type: ignore[method-assign]  # the way FastAPI documents
    return app


def described(app: FastAPI, access: Access) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the errors that are really answered and what the door asks for."""
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for theirs in ("HTTPValidationError", "ValidationError"):
        schemas.pop(theirs, None)
    schemas["Error"] = ERROR_BODY
    error = {"$ref": "#/components/schemas/Error"}
    for operation in (one for path in made["paths"].values() for one in path.values()):
        operation["responses"]["422"] = {
            "description": "Not a valid request: `at` names the place",
            "content": {"application/json": {"schema": error}},
        }
    return guarded(made, sessions.scope_of, error, closed=access.guarded)


def run(settings: Settings) -> None:
    """Serve until SIGTERM."""
    host, port = settings.control_address
    share(settings.metrics_path)
    claim(open_state(settings), settings.tenant)
    app = create_app(Control.of(settings))
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        proxy_headers=False,
        http=Timely,
    )


def _follow_keys(control: Control, stop: threading.Event) -> None:
    """Keys made or revoked elsewhere are known within a second; while the record is away, those known hold."""
    while not stop.wait(KEYS_SECONDS):
        with suppress(Unavailable):  # said by whoever writes
            control.access.follow(control.releases.state)


def _watch(control: Control, stop: threading.Event) -> None:
    """Apply the config folder when its content changes; a mistake in it is logged and changes nothing."""
    said = ""
    while control.config_folder is not None and not stop.wait(FOLDER_SECONDS):
        try:
            if apply_folder(control.releases.state, control.config_folder):
                log.info("configuration applied", extra={"folder": str(control.config_folder)})
            said = ""
        except (Rejected, Unavailable, OSError) as error:  # ConfigInvalid, or what a running experiment must keep
            if str(error) != said:
                log.error("configuration not applied", extra={"error": str(error)})
            said = str(error)
