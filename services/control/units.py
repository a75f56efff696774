"""`DELETE /v1/units/{id}`: forget a person; `/v1/forgets`: how far that is; `PUT /v1/units:attributes`: what people are, for the
aggregator alone. Raw ids are hashed at once and kept nowhere."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from services.control.answering import body_of, json, who_of
from services.control.impressions import Impressions
from services.forgetting import Forgetting, told

LONGEST = 256
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "array"}}}}}


def router(forgetting: Forgetting, impressions: Impressions) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.delete("/v1/units/{unit:path}")
    def forget(unit: str, request: Request) -> Response:
        if not 1 <= len(unit) <= LONGEST:
            raise Rejected(f"Expected str of length 1 to {LONGEST}", at="$.id")
        key, job = forgetting.ask(unit, who_of(request))
        return json(told(key, job), 202, headers={"location": f"/v1/forgets/{job.job}"})

    @routes.get("/v1/forgets")
    def forgets() -> Response:
        newest = sorted(forgetting.jobs().items(), key=lambda one: -one[1].at)
        return json({"forgets": [told(unit, job) for unit, job in newest]})

    @routes.get("/v1/forgets/{job}")
    def report(job: str) -> Response:
        for unit, found in forgetting.jobs().items():
            if found.job == job:
                return json(told(unit, found))
        raise Rejected(
            f"No job {job[:64]!r}; a later one of the same unit takes its place", code="unknown_job", status=404
        )

    @routes.put("/v1/units:attributes", openapi_extra=_BODY)
    async def attributes(request: Request) -> Response:
        body = await body_of(request)
        return json(await run_in_threadpool(impressions.people, body, who_of(request)))

    @routes.get("/v1/impressions/{surface}")
    def released(surface: str) -> Response:
        return json(impressions.report(surface))

    return routes
