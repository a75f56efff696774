"""`/v1/policies`, `/v1/bundles` and `/v1/releases`: what is published, what answers, and the hand that moves a pointer."""

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from services.audit import noted
from services.control.answering import OBJECT, body_of, decoded, json, who_of
from services.control.coefficients import coefficients
from services.control.overview import Overview
from services.promoting import Promotions
from services.releases import Releases, holds
from streaming.configuration import Configs


class Pointer(Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a policy's pointer. Rollback: to a bundle, or to what answered so long ago; resume: follow learning."""

    policy: str  # surface/policy
    action: str  # rollback | resume
    to: str | None = None
    before: str | None = None


def router(releases: Releases, configs: Configs, overview: Overview, promotions: Promotions) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/policies")
    def policies() -> Response:
        configs.follow(releases.state)
        names = configs.surfaces()
        lines = [{"surface": name, **line} for name in names for line in overview.policies(name)]
        return json({"policies": lines})

    @routes.get("/v1/policies/{surface}/{policy}/coefficients")
    def coefficients_of(surface: str, policy: str) -> Response:
        configs.follow(releases.state)
        compiled = configs.current(surface)
        if compiled is None:
            raise Rejected(f"No surface {surface!r}", at="$.surface", code="unknown_surface", status=404)
        return json(coefficients(releases, compiled, policy))

    @routes.get("/v1/bundles")
    def bundles() -> Response:
        held = holds(releases.state)
        pointers = sorted(releases.bundles.pointers().items())
        return json({"bundles": [{"policy": p, "bundle": b, "held": p in held} for p, b in pointers]})

    @routes.get("/v1/bundles/{bundle}")
    def bundle(bundle: str) -> Response:
        return json(msgspec.to_builtins(releases.read(bundle).manifest))

    @routes.get("/v1/releases")
    def released() -> Response:
        surfaces = {name: msgspec.to_builtins(one) for name, one in promotions.all().items()}
        return json({"holds": holds(releases.state), "surfaces": surfaces})

    @routes.post("/v1/releases", openapi_extra=OBJECT)
    async def release(request: Request) -> Response:
        asked = decoded(await body_of(request), Pointer)
        if asked.action not in ("rollback", "resume"):
            raise Rejected(f"Expected rollback or resume, got {asked.action!r}", at="$.action")
        bundle = await run_in_threadpool(_moved, releases, asked, who_of(request))
        return json({"policy": asked.policy, "action": asked.action, "bundle": bundle})

    return routes


def _moved(releases: Releases, asked: Pointer, who: str) -> str | None:
    before = releases.bundles.pointers().get(asked.policy)
    if asked.action == "rollback":
        after: str | None = releases.rollback(asked.policy, to=asked.to, before=asked.before)
    else:
        releases.resume(asked.policy)
        after = releases.bundles.pointers().get(asked.policy)
    noted(releases.state, who, asked.action, f"release/{asked.policy}", before, after)
    return after
