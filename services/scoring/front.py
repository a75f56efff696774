"""The ASGI application: a thin front for the decision route, FastAPI behind it for everything else.

The front keeps `POST /v1/decisions` out of every middleware and router (half of a request's time went there) and admits
or refuses each request before its body is read.
"""

from collections.abc import Iterable
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

from policies.errors import Rejected
from services.scoring import wire
from services.scoring.admission import overloaded
from services.scoring.deciding import DECISIONS, FIRST_BYTE, Deciding
from services.scoring.direct import Queue
from services.scoring.replies import JSON, read_body, refuse

ADMITTED = "slatewise.admitted"  # set by the protocol, which sees requests before their tasks run
FEEDBACK = "/v1/feedback"
DECIDE = "decide"  # the scope of a decision


class Front:
    """Admission, the decision route, then the rest."""

    def __init__(self, deciding: Deciding, rest: ASGIApp) -> None:
        self.deciding, self._rest = deciding, rest
        self.admission = deciding.scoring.admission
        self.queue = Queue(deciding)
        self._access = deciding.scoring.access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path: str = scope["path"]
        admitted = scope.get(ADMITTED)
        if admitted is None:
            admitted = self.admission.enter(path == FEEDBACK)
        if not admitted:
            if path.startswith("/v1/"):
                await refuse(send, overloaded())
            else:
                await self._rest(scope, receive, send)  # health and metrics are asked for most when there is no place
            return
        try:
            if path == DECISIONS and scope["method"] == "POST":
                await self._decide(scope, receive, send)
            else:
                await self._rest(scope, receive, send)
        finally:
            self.admission.leave()

    def refused(self, headers: Iterable[tuple[bytes, bytes]]) -> Rejected | None:
        """Why a decision is refused whatever its body says; None: it is not."""
        try:
            self._access.check(headers, DECIDE)
        except Rejected as error:
            return error
        return None

    async def _decide(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Requests that the protocol could not answer by itself: large, in chunks, behind others on one connection."""
        try:
            self._access.check(scope["headers"], DECIDE)
            body = await read_body(scope, receive, wire.DECISION_BYTES)
            if body is None:
                return
            answer = await self.deciding.decide(body, scope.get(FIRST_BYTE) or perf_counter())
        except Exception as error:  # noqa: BLE001 - a fault of ours: the caller gets the contract's error body, the log the trace
            await refuse(send, self.deciding.failed(error))
            return
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
