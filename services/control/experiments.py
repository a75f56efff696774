"""`/v1/experiments` and `/v1/audit`: experiments created, read, given other shares, started, stopped, reported.

Every change names the version it was made of by `If-Match` (the ETag of a read); start, stop and shares may go without, for
a hand in a hurry. `X-Slatewise-Who` says who it was, for the audit.
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from policies.experiments.document import Trial
from policies.experiments.power import detectable, units_needed
from services.audit import Audit
from services.control.answering import OBJECT, body_of, decoded, json, seen_of, who_of
from services.control.readouts import Readouts
from services.trials import Trials, told

WHO = "x-slatewise-who"
LARGESTOBJECT, BODY_SECONDS = 1 << 20, 10.0
MOST_CHANGES = 1_000


class Course(Struct, frozen=True, forbid_unknown_fields=True):
    """A step of an experiment's course: other shares of some arms, or start, or stop."""

    shares: dict[str, float] | None = None
    action: str | None = None  # start | stop
    reason: str = ""


def router(trials: Trials, readouts: Readouts, audit: Audit) -> APIRouter:
    """The routes, over what they work on."""
    routes = APIRouter()

    @routes.get("/v1/experiments")
    def experiments() -> Response:
        return json({"experiments": [_line(trial) for trial in trials.all()]})

    @routes.post("/v1/experiments", openapi_extra=OBJECT)
    async def create(request: Request) -> Response:
        body, who = await body_of(request), who_of(request)
        trial = await run_in_threadpool(trials.create, body, who)
        return await run_in_threadpool(_read, trial.document.experiment, 201)

    @routes.get("/v1/experiments/{name}")
    def experiment(name: str) -> Response:
        return _read(name)

    @routes.put("/v1/experiments/{name}", openapi_extra=OBJECT)
    async def edit(name: str, request: Request) -> Response:
        body, who, seen = await body_of(request), who_of(request), seen_of(request)

        def work() -> Response:
            trial, version = trials.get(name)
            if seen is None:
                raise Rejected(
                    f'Expected If-Match: "{version}", the version you edit',
                    at="$.headers.if-match",
                    code="match_required",
                    status=428,
                )
            trials.edit(name, trials.read(body), who, seen)
            return _read(trial.document.experiment)

        return await run_in_threadpool(work)

    @routes.post("/v1/experiments/{name}/course", openapi_extra=OBJECT)
    async def change(name: str, request: Request) -> Response:
        step, who, seen = _course(await body_of(request)), who_of(request), seen_of(request)

        def work() -> Response:
            if step.shares is not None:
                trials.allocate(name, step.shares, who, seen)
            elif step.action == "start":
                trials.start(name, who, seen)
            else:
                trials.stop(name, who, step.reason, seen)
            return _read(name)

        return await run_in_threadpool(work)

    @routes.get("/v1/experiments/{name}/report")
    def report(name: str) -> Response:
        return json(readouts.report(name))

    @routes.get("/v1/power")
    def power(
        sd: float,
        effect: float | None = None,
        units: float | None = None,
        alpha: float = 0.05,
        power: float = 0.8,
        split: float = 0.5,
        correlation: float = 0.0,
    ) -> Response:
        if (effect is None) == (units is None):
            raise Rejected("Expected either an effect or a number of units", at="$.effect")
        answer: dict[str, float] = {}
        for method in ("sequential", "fixed"):
            if effect is not None:
                answer[method] = units_needed(
                    effect, sd, alpha=alpha, power=power, method=method, split=split, correlation=correlation
                )
            elif units is not None and units > 0:
                answer[method] = detectable(
                    units, sd, alpha=alpha, power=power, method=method, split=split, correlation=correlation
                )
            else:
                raise Rejected(f"Expected a number of units above 0, got {units}", at="$.units")
        return json({"units" if effect is not None else "effect": answer})

    @routes.get("/v1/audit")
    def changes(subject: str | None = None, limit: int = 100) -> Response:
        if not 1 <= limit <= MOST_CHANGES:
            raise Rejected(f"Expected 1 ≤ limit ≤ {MOST_CHANGES}", at="$.limit")
        return json({"changes": [msgspec.to_builtins(one) for one in audit.changes(subject, limit)]})

    def _read(name: str, status: int = 200) -> Response:
        trial, version = trials.get(name)
        return json(told(trial), etag=str(version), status=status)

    return routes


def _course(body: bytes) -> Course:
    step = decoded(body, Course)
    if (step.shares is None) == (step.action is None):
        raise Rejected("Expected either shares or an action")
    if step.action not in (None, "start", "stop"):
        raise Rejected(f"Expected start or stop, got {step.action!r}", at="$.action")
    return step


def _line(trial: Trial) -> dict[str, Any]:
    plain = told(trial)
    document = trial.document
    kept = {name: plain[name] for name in ("status", "shares", "start", "stop", "reason", "managed")}
    return {"experiment": document.experiment, "surface": document.surface, "layer": document.layer, **kept}
