"""`/v1/items`: written through to the state record, and seen by this replica before the answer."""

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from policies.errors import Rejected
from services.scoring import wire
from services.scoring.catalogue import KIND
from services.scoring.replies import body_of, json
from services.scoring.service import Scoring
from services.scoring.upkeep import Upkeep


class Items:
    """The catalogue as callers see it."""

    def __init__(self, scoring: Scoring, upkeep: Upkeep) -> None:
        self._scoring, self._upkeep = scoring, upkeep

    async def put(self, request: Request) -> Response:
        body = await body_of(request, wire.ITEMS_BYTES)

        def check_and_put() -> int:
            sent = wire.read_items(body, "$")
            if len(sent) > wire.MAX_ITEMS:
                raise Rejected(f"Expected array of length <= {wire.MAX_ITEMS}", at="$")
            items = [wire.read_item(bytes(raw), f"$[{place}]") for place, raw in enumerate(sent)]
            self._scoring.check_items(items)
            if not items:
                return self._scoring.state.version()
            return self._scoring.state.put([(KIND, item.id, wire.encode(item)) for item in items])

        return await self._written(check_and_put)

    async def one(self, request: Request) -> Response:
        """One route for both methods, so that a 405 lists them all."""
        item = self._item(request)
        if request.method != "DELETE":
            return json(wire.encode(item))
        return await self._written(lambda: self._scoring.state.put([(KIND, item.id, None)]))

    async def _written(self, write: Callable[[], int]) -> Response:
        version = await asyncio.get_running_loop().run_in_executor(self._upkeep.disk, write)
        await self._upkeep.follow_state()
        return json(wire.encode(wire.VersionAnswer(version)))

    def _item(self, request: Request) -> wire.Item:
        key = request.path_params["item_id"]
        if not 1 <= len(key) <= 256:
            raise Rejected("Expected str of length 1 to 256", at="$.id")
        found = self._scoring.catalogue.get(key)
        if found is None:
            raise Rejected("No such item", at="$.id", code="unknown_item", status=404)
        return found
