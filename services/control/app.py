"""The control service: surfaces, policies, bundles, releases, experiments, audit, dead letters, and the page `/ops`.

One process writes the record; every write compares the version it read (`If-Match`). Surfaces that a config folder
brought are edited there, not here (409).
"""

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from msgspec import Struct
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from policies.errors import Corrupt, Rejected, Unavailable
from policies.surface import Surface
from services.access import Access
from services.audit import Audit, Change, entry
from services.configuring import applied, apply_folder
from services.control import experiments, inspecting, keyring, pages, releasing, sessions, units
from services.control.canaries import Canaries, Guard
from services.control.coefficients import coefficients
from services.control.drifting import Drifting
from services.control.estimating import Estimating
from services.control.impressions import Impressions
from services.control.overview import Overview
from services.control.readouts import Beside, Readouts
from services.control.sessions import Sessions
from services.control.together import Together
from services.dead_letters import Replayed, replay
from services.forgetting import Forgetting
from services.guarded_schema import ERROR_BODY, guarded
from services.guarding import Guarding
from services.keys import Keys
from services.promoting import Promotions
from services.releases import Releases, holds
from services.settings import Settings
from services.telemetry import Telemetry, share
from services.timely import Timely
from services.trials import Trials
from services.wiring import open_audience, open_dead_letters, open_estimates, open_totals, open_watched
from streaming.configuration import ConfigInvalid, Configs, parse, publish_surface
from streaming.ports import DeadLetters

log = logging.getLogger("slatewise.control")
MOST_LETTERS, MOST_DECISIONS = 1_000, 200
FOLDER_SECONDS, KEYS_SECONDS = 2.0, 0.5


class Release(Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a policy's pointer. Rollback: to a bundle, or to what answered so long ago; resume: follow learning."""

    policy: str  # surface/policy
    action: str  # rollback | resume
    to: str | None = None
    before: str | None = None


class Again(Struct, frozen=True, forbid_unknown_fields=True):
    """Dead letters to bring to the log again: of one reason or of all, after a number."""

    reason: str | None = None
    after: int = 0


Asked = TypeVar("Asked", Release, Again)


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
        overview = Overview(releases, configs, dead, settings.http)
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

    @app.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get("/v1/overview")
    def overview() -> Response:
        return _json(control.overview.report())

    @app.get("/v1/stream")
    def stream() -> Response:
        return _json(control.overview.stream())

    @app.get("/v1/decisions")
    def decisions(limit: int = 20) -> Response:
        if not 1 <= limit <= MOST_DECISIONS:
            raise Rejected(f"Expected 1 ≤ limit ≤ {MOST_DECISIONS}", at="$.limit")
        return _json({"decisions": control.overview.recent(limit)})

    @app.get("/v1/decisions/{decision_id:path}")
    def decision(decision_id: str) -> Response:
        control.configs.follow(control.releases.state)
        return _json(inspecting.inspect(control.releases.events, control.configs, decision_id))

    @app.get("/v1/surfaces")
    def surfaces() -> Response:
        control.configs.follow(control.releases.state)
        return _json({"surfaces": [_surface_line(control, name) for name in control.configs.surfaces()]})

    @app.get("/v1/surfaces/{name}")
    def surface(name: str) -> Response:
        control.configs.follow(control.releases.state)
        compiled = control.configs.current(name)
        if compiled is None:
            raise Rejected(f"No surface {name!r}", at="$.name", code="unknown_surface", status=404)
        return _json(document(compiled.surface), etag=compiled.hash)

    @app.put("/v1/surfaces/{name}", openapi_extra=_BODY)
    async def put_surface(name: str, request: Request) -> Response:
        body = await _body(request)
        match = request.headers.get("if-match", "").strip('" ')
        who = experiments.who_of(request)
        digest, created = await run_in_threadpool(_put_surface, control, name, body, match, who)
        return _json({"surface": name, "hash": digest}, etag=digest, status=201 if created else 200)

    @app.get("/v1/policies")
    def policies() -> Response:
        control.configs.follow(control.releases.state)
        names = control.configs.surfaces()
        lines = [{"surface": name, **line} for name in names for line in control.overview.policies(name)]
        return _json({"policies": lines})

    @app.get("/v1/policies/{surface}/{policy}/coefficients")
    def coefficients_of(surface: str, policy: str) -> Response:
        control.configs.follow(control.releases.state)
        compiled = control.configs.current(surface)
        if compiled is None:
            raise Rejected(f"No surface {surface!r}", at="$.surface", code="unknown_surface", status=404)
        return _json(coefficients(control.releases, compiled, policy))

    @app.get("/v1/bundles")
    def bundles() -> Response:
        held = holds(control.releases.state)
        pointers = sorted(control.releases.bundles.pointers().items())
        return _json({"bundles": [{"policy": p, "bundle": b, "held": p in held} for p, b in pointers]})

    @app.get("/v1/bundles/{bundle}")
    def bundle(bundle: str) -> Response:
        return _json(msgspec.to_builtins(control.releases.read(bundle).manifest))

    @app.get("/v1/releases")
    def releases() -> Response:
        released = {name: msgspec.to_builtins(one) for name, one in control.promotions.all().items()}
        return _json({"holds": holds(control.releases.state), "surfaces": released})

    @app.post("/v1/releases", openapi_extra=_BODY)
    async def release(request: Request) -> Response:
        asked = _decoded(await _body(request), Release)
        if asked.action not in ("rollback", "resume"):
            raise Rejected(f"Expected rollback or resume, got {asked.action!r}", at="$.action")
        bundle = await run_in_threadpool(_release, control, asked, experiments.who_of(request))
        return _json({"policy": asked.policy, "action": asked.action, "bundle": bundle})

    @app.get("/v1/dead-letters")
    def dead_letters(after: int = 0, limit: int = 100) -> Response:
        if after < 0 or not 1 <= limit <= MOST_LETTERS:
            raise Rejected(f"Expected after ≥ 0 and 1 ≤ limit ≤ {MOST_LETTERS}", at="$.limit")
        letters = [
            {
                "number": number,
                "partition": letter.partition,
                "offset": letter.offset,
                "reason": letter.reason,
                "detail": letter.detail,
                "key": letter.key.decode(errors="replace"),
                "value": letter.value.decode(errors="replace"),
            }
            for number, letter in control.dead.read(after, limit)
        ]
        return _json({"counts": control.dead.count(), "letters": letters})

    @app.post("/v1/dead-letters/replay", openapi_extra=_BODY)
    async def replay_dead_letters(request: Request) -> Response:
        asked = _decoded(await _body(request), Again)
        found = await run_in_threadpool(_replay, control, asked, experiments.who_of(request))
        return _json({"records": found.records, "last": found.last})

    _errors(app)
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


def document(surface: Surface) -> dict[str, Any]:
    """The surface as it is written: an algorithm's options beside `algorithm`, not under `options`."""
    plain: dict[str, Any] = msgspec.to_builtins(surface)
    for policy in plain["policies"].values():
        policy.update(policy.pop("options"))
        for name in ("objective", "objectives"):
            if policy[name] is None:
                del policy[name]
    return plain


def run(settings: Settings) -> None:
    """Serve until SIGTERM."""
    host, port = settings.control_address
    share(settings.metrics_path)
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


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


def _surface_line(control: Control, name: str) -> dict[str, Any]:
    compiled = control.configs.current(name)
    if compiled is None:  # gone between the two looks
        return {"surface": name}
    return {
        "surface": name,
        "hash": compiled.hash,
        "live": control.configs.live(compiled) or compiled.surface.fallback,
        "slots": compiled.surface.slots,
        "policies": list(compiled.surface.policies),
        "managed": "file" if name in _managed(control) else "api",
    }


def _managed(control: Control) -> list[str]:
    last = applied(control.releases.state)
    return last.surfaces if last is not None and last.managed else []


def _put_surface(control: Control, name: str, body: bytes, match: str, who: str) -> tuple[str, bool]:
    if name in _managed(control):
        raise Rejected(f"Surface {name!r} is managed: file; edit the config folder", code="managed", status=409)
    documents = parse(body.decode(errors="replace"), "body")  # JSON is YAML: one reader names every mistake
    if len(documents) != 1 or documents[0].surface != name:
        raise Rejected(f"Expected one document of surface {name!r}", at="$.surface")
    control.configs.follow(control.releases.state)
    current = control.configs.current(name)
    if current is not None and match != current.hash:
        raise Rejected(
            f'Expected If-Match: "{current.hash}", the version you edit; got {match or "none"}',
            at="$.headers.if-match",
            code="stale" if match else "match_required",
            status=412 if match else 428,
        )
    digest = publish_surface(control.releases.state, documents[0])
    control.configs.follow(control.releases.state)
    before = document(current.surface) if current is not None else None
    after = control.configs.get(digest)
    _audit(control, who, "edit" if current else "create", f"surface/{name}", before, after and document(after.surface))
    return digest, current is None


def _release(control: Control, asked: Release, who: str) -> str | None:
    before = control.releases.bundles.pointers().get(asked.policy)
    if asked.action == "rollback":
        after: str | None = control.releases.rollback(asked.policy, to=asked.to, before=asked.before)
    else:
        control.releases.resume(asked.policy)
        after = control.releases.bundles.pointers().get(asked.policy)
    _audit(control, who, asked.action, f"release/{asked.policy}", before, after)
    return after


def _audit(control: Control, who: str, action: str, subject: str, before: Any, after: Any) -> None:
    control.releases.state.put([entry(Change(time.time(), who, action, subject, before, after))])


def _replay(control: Control, asked: Again, who: str) -> Replayed:
    if asked.after < 0:
        raise Rejected(f"Expected after ≥ 0, got {asked.after}", at="$.after")
    found = replay(control.dead, control.releases.events, reason=asked.reason, after=asked.after)
    after = {"records": found.records, "from": asked.after, "to": found.last}
    _audit(control, who, "replay", f"dead-letters/{asked.reason or 'all'}", None, after)
    return found


def _decoded(body: bytes, kind: type[Asked]) -> Asked:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Rejected(str(error)) from None
    except msgspec.DecodeError as error:
        raise Rejected(str(error), code="undecodable", status=400) from None


async def _body(request: Request) -> bytes:
    return await experiments.body_of(request)


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


def _json(content: Any, *, etag: str = "", status: int = 200) -> Response:
    headers = {"etag": f'"{etag}"'} if etag else {}
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _error(code: str, message: str, at: str, status: int) -> Response:
    return _json({"error": {"code": code, "message": message, "at": at}}, status=status)


def _errors(app: FastAPI) -> None:
    """Every error has the body of the contract."""
    answers: dict[type[Exception], Callable[[Any], Response]] = {
        Rejected: lambda e: _error(e.code, e.message, e.at, e.status),
        ConfigInvalid: lambda e: _json(
            {
                "error": {"code": "invalid", "message": str(e), "at": e.mistakes[0].path if e.mistakes else "$"},
                "mistakes": [msgspec.to_builtins(mistake) for mistake in e.mistakes],
            },
            status=422,
        ),
        Unavailable: lambda e: _error("unavailable", str(e), "$", 503),
        Corrupt: lambda e: _error(e.reason, str(e), "$", 422),
        RequestValidationError: lambda e: _error("invalid", str(e.errors()[0]["msg"]), "$", 422),
        HTTPException: lambda e: _error("http", str(e.detail), "$", e.status_code),
    }
    for kind, answer in answers.items():

        def handle(_request: Request, error: Exception, answer: Callable[[Any], Response] = answer) -> Response:
            return answer(error)

        app.add_exception_handler(kind, handle)
