"""`/v1/keys`: keys made, listed and revoked by admins. A token is in the answer that makes it, and never again."""

import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from services import granting
from services.access import Access
from services.control.experiments import body_of, who_of
from streaming.ports import State

_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made. `expires_at`: epoch seconds; `rate`: requests a second."""

    name: str
    scopes: list[str]
    rate: float | None = None
    expires_at: float | None = None


def router(state: State, access: Access) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/keys")
    def keys() -> Response:
        return _json({"keys": granting.listed(state, access.tenant)})

    @routes.post("/v1/keys", openapi_extra=_BODY)
    async def create(request: Request) -> Response:
        asked, who = _asked(await body_of(request)), who_of(request)

        def work() -> Response:
            key, token = granting.create(
                state,
                who,
                asked.name,
                asked.scopes,
                tenant=access.tenant,
                rate=asked.rate,
                expires_at=asked.expires_at,
                now=time.time(),
            )
            access.follow(state)
            return _json({"key": key, "token": token}, 201)

        return await run_in_threadpool(work)

    @routes.delete("/v1/keys/{key_id}")
    def revoke(key_id: str, request: Request) -> Response:
        key = granting.revoke(state, who_of(request), key_id, tenant=access.tenant, now=time.time())
        access.follow(state)
        return _json({"key": key})

    return routes


def _asked(body: bytes) -> Asked:
    try:
        return msgspec.json.decode(body, type=Asked)
    except msgspec.ValidationError as error:
        raise Rejected(str(error)) from None
    except msgspec.DecodeError as error:
        raise Rejected(str(error), code="undecodable", status=400) from None


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
