"""`/v1/keys`: keys made, listed and revoked by admins. A token is in the answer that makes it, and never again."""

import time

from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from services import granting
from services.access import Access
from services.control.answering import OBJECT, body_of, decoded, json, who_of
from streaming.ports import State


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
        return json({"keys": granting.listed(state, access.tenant)})

    @routes.post("/v1/keys", openapi_extra=OBJECT)
    async def create(request: Request) -> Response:
        asked, who = decoded(await body_of(request), Asked), who_of(request)

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
            return json({"key": key, "token": token}, 201)

        return await run_in_threadpool(work)

    @routes.delete("/v1/keys/{key_id}")
    def revoke(key_id: str, request: Request) -> Response:
        key = granting.revoke(state, who_of(request), key_id, tenant=access.tenant, now=time.time())
        access.follow(state)
        return json({"key": key})

    return routes
