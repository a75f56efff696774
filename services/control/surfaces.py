"""`/v1/surfaces`: surface documents read and written. One that a config folder brought is edited there, not here (409)."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from policies.surface import Surface
from services.audit import noted
from services.configuring import applied
from services.control.answering import OBJECT, body_of, json, who_of
from streaming.configuration import Configs, parse, publish_surface
from streaming.ports import State


def router(state: State, configs: Configs) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/surfaces")
    def surfaces() -> Response:
        configs.follow(state)
        return json({"surfaces": [_line(state, configs, name) for name in configs.surfaces()]})

    @routes.get("/v1/surfaces/{name}")
    def surface(name: str) -> Response:
        configs.follow(state)
        compiled = configs.current(name)
        if compiled is None:
            raise Rejected(f"No surface {name!r}", at="$.name", code="unknown_surface", status=404)
        return json(document(compiled.surface), etag=compiled.hash)

    @routes.put("/v1/surfaces/{name}", openapi_extra=OBJECT)
    async def put_surface(name: str, request: Request) -> Response:
        body = await body_of(request)
        match = request.headers.get("if-match", "").strip('" ')
        who = who_of(request)
        digest, created = await run_in_threadpool(_put, state, configs, name, body, match, who)
        return json({"surface": name, "hash": digest}, etag=digest, status=201 if created else 200)

    return routes


def document(surface: Surface) -> dict[str, Any]:
    """The surface as it is written: an algorithm's options beside `algorithm`, not under `options`."""
    plain: dict[str, Any] = msgspec.to_builtins(surface)
    for policy in plain["policies"].values():
        policy.update(policy.pop("options"))
        for name in ("objective", "objectives"):
            if policy[name] is None:
                del policy[name]
    return plain


def _line(state: State, configs: Configs, name: str) -> dict[str, Any]:
    compiled = configs.current(name)
    if compiled is None:  # gone between the two looks
        return {"surface": name}
    return {
        "surface": name,
        "hash": compiled.hash,
        "live": configs.live(compiled) or compiled.surface.fallback,
        "slots": compiled.surface.slots,
        "policies": list(compiled.surface.policies),
        "managed": "file" if name in _managed(state) else "api",
    }


def _managed(state: State) -> list[str]:
    last = applied(state)
    return last.surfaces if last is not None and last.managed else []


def _put(state: State, configs: Configs, name: str, body: bytes, match: str, who: str) -> tuple[str, bool]:
    if name in _managed(state):
        raise Rejected(f"Surface {name!r} is managed: file; edit the config folder", code="managed", status=409)
    documents = parse(body.decode(errors="replace"), "body")  # JSON is YAML: one reader names every mistake
    if len(documents) != 1 or documents[0].surface != name:
        raise Rejected(f"Expected one document of surface {name!r}", at="$.surface")
    configs.follow(state)
    current = configs.current(name)
    if current is not None and match != current.hash:
        raise Rejected(
            f'Expected If-Match: "{current.hash}", the version you edit; got {match or "none"}',
            at="$.headers.if-match",
            code="stale" if match else "match_required",
            status=412 if match else 428,
        )
    digest = publish_surface(state, documents[0])
    configs.follow(state)
    before = document(current.surface) if current is not None else None
    after = configs.get(digest)
    noted(state, who, "edit" if current else "create", f"surface/{name}", before, after and document(after.surface))
    return digest, current is None
