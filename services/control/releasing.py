"""`/v1/releases/{surface}`, `/v1/surfaces/{name}/value` and `/v1/policies/{surface}/{policy}/convergence`.

A release is changed by steps: start, shadow, canary, promote, abort, rollback. A read gives the version that a change
compares with (`If-Match`; without one a step is taken of whatever is there, and still checked against its stage).
"""

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from policies.releases import WATCHED, Release, Released, Terms
from services.control.answering import OBJECT, body_of, decoded, json, seen_of, who_of
from services.control.estimating import Estimating, refusal
from services.control.readouts import Readouts
from services.converging import converging
from services.promoting import Promotions
from services.releases import Releases


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """One step. candidate: with start, and optional elsewhere, where it must be the one that is on its way.

    baseline, stage, terms  with start;   share: with canary;   force, reason: with promote (force needs a reason), abort, rollback
    """

    action: Literal["start", "shadow", "canary", "promote", "abort", "rollback"]
    candidate: str | None = None
    baseline: str | None = None
    stage: Literal["apprentice", "shadow"] = "apprentice"
    terms: Terms = Terms()
    share: float | None = None
    force: bool = False
    reason: str = ""


def router(promotions: Promotions, estimating: Estimating, readouts: Readouts, bundles: Releases) -> APIRouter:
    """The routes, over what they work on."""
    routes = APIRouter()

    @routes.get("/v1/releases/{surface}")
    def status(surface: str) -> Response:
        return _read(surface)

    @routes.post("/v1/releases/{surface}", openapi_extra=OBJECT)
    async def change(surface: str, request: Request) -> Response:
        step, who, seen = decoded(await body_of(request), Step), who_of(request), seen_of(request)

        def work() -> Response:
            _take(surface, step, who, seen)
            return _read(surface)

        return await run_in_threadpool(work)

    @routes.get("/v1/surfaces/{name}/value")
    def value(name: str) -> Response:
        return json(estimating.value(name))

    @routes.get("/v1/policies/{surface}/{policy}/convergence")
    def convergence(surface: str, policy: str) -> Response:
        return json(converging(bundles, promotions.compiled(surface), policy))

    def _take(surface: str, step: Step, who: str, seen: int | None) -> None:
        if step.action == "start":
            if step.candidate is None:
                raise Rejected("A release needs a candidate", at="$.candidate")
            promotions.start(
                surface,
                step.candidate,
                who,
                terms=step.terms,
                stage=step.stage,
                baseline=step.baseline,
                expect=seen,
            )
            return
        released, _ = promotions.get(surface)
        release = released.release
        if step.candidate is not None and (release is None or release.candidate != step.candidate):
            said = release.candidate if release is not None else "none"
            raise Rejected(
                f"The release of {surface} is of {said}", at="$.candidate", code="other_candidate", status=409
            )
        if step.action == "shadow":
            promotions.watch(surface, who, seen)
        elif step.action == "canary":
            promotions.canary(surface, who, step.share, seen)
        elif step.action == "abort":
            promotions.abort(surface, who, step.reason, expect=seen)
        elif step.action == "rollback":
            promotions.rollback(surface, who, step.reason, expect=seen)
        else:
            _promote(surface, release, step, who, seen)

    def _promote(surface: str, release: Release | None, step: Step, who: str, seen: int | None) -> None:
        if step.force and not step.reason:
            raise Rejected("Who forces a promotion says why", at="$.reason")
        verdict = _verdict(release)
        allowed = verdict is not None and verdict["outcome"] == "promote"
        if release is not None and verdict is not None and not allowed and not step.force:
            raise refusal(release, verdict)
        run = release.run if release is not None else None
        promotions.promote(
            surface, who, verdict, run=run, forced=step.force and not allowed, reason=step.reason, expect=seen
        )

    def _verdict(release: Release | None) -> dict[str, Any] | None:
        if release is None:
            return None
        if release.stage in WATCHED:
            return estimating.verdict(release)
        canary = readouts.canary(release) if release.stage == "canary" else None
        found: dict[str, Any] | None = msgspec.to_builtins(canary["verdict"]) if canary is not None else None
        return found

    def _read(surface: str) -> Response:
        released, version = promotions.get(surface)
        return json({**msgspec.to_builtins(released), **_evidence(released)}, etag=str(version))

    def _evidence(released: Released) -> dict[str, Any]:
        release = released.release
        if release is None or release.stage in ("live", "aborted"):
            return {}
        if release.stage in WATCHED:
            return {"gate": estimating.verdict(release)}
        return {"canary": msgspec.to_builtins(readouts.canary(release))}

    return routes
