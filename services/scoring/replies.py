"""What every route of the scoring service shares: bodies read within limits, errors as the one body of the contract."""

import asyncio
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from policies.errors import Rejected, SlatewiseError
from services.access import Limited
from services.scoring import wire
from services.scoring.admission import RETRY_AFTER_SECONDS

YIELD_SECONDS = 0.001
FAULT = Rejected("A fault of the service, which has been logged", code="internal", status=500)
JSON = "application/json"


class Turn:
    """Gives the event loop a turn when a millisecond of work has passed since the last."""

    def __init__(self) -> None:
        self._since = perf_counter()

    async def __call__(self) -> None:
        if perf_counter() - self._since > YIELD_SECONDS:
            await asyncio.sleep(0)
            self._since = perf_counter()


async def body_of(request: Request, limit: int) -> bytes:
    """A request's body. Raises Rejected."""
    body = await read_body(request.scope, request.receive, limit)
    if body is None:
        raise Rejected("The connection closed before the body was complete", code="undecodable", status=400)
    if len(body) > wire.LARGE_BODY_BYTES:
        await asyncio.sleep(0)
    return body


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """A request's body; None when the caller went away. Raises Rejected(413), by its header before it is read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)
    message: Message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise too_large(limit)
    return b"".join(parts)


def too_large(limit: int) -> Rejected:
    return Rejected(f"The body is larger than {limit} bytes", code="too_large", status=413)


def json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type=JSON)


def refusal(error: SlatewiseError) -> Response:
    """An error as a response."""
    status = status_of(error)
    return Response(error_bytes(error), status, more_of(error, status), JSON)


def more_of(error: SlatewiseError, status: int) -> dict[str, str]:
    """Headers of an error beside those of every response."""
    if status in (429, 503):
        return {"retry-after": str(error.retry_after if isinstance(error, Limited) else RETRY_AFTER_SECONDS)}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


async def refuse(send: Send, error: SlatewiseError) -> None:
    """The error as a whole response, where no framework stands between."""
    response = refusal(error)
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def error_bytes(error: SlatewiseError) -> bytes:
    said = error if isinstance(error, Rejected) else Rejected(str(error), code="unavailable")
    return wire.encode(wire.error_body(said))


def status_of(error: SlatewiseError) -> int:
    """The HTTP status of an error, by who must act."""
    return error.status if isinstance(error, Rejected) else 503


def inside(error: Rejected, at: str) -> Rejected:
    """An error of a part, its path seen from the whole."""
    path = error.at if error.at.startswith(at) else at + error.at.removeprefix("$")
    return Rejected(error.message, at=path, code=error.code, status=error.status)
