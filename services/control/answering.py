"""What all routes of control share: bodies read and decoded, who asks, the version a change was made of, answers and errors."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from policies.errors import Corrupt, Rejected, Unavailable
from services import guarding
from services.audit import NOBODY
from streaming.configuration import ConfigInvalid

WHO = "x-slatewise-who"
LARGEST_BODY, BODY_SECONDS = 1 << 20, 10.0
OBJECT: dict[str, Any] = {  # `openapi_extra` of a route that reads its own body
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
T = TypeVar("T")


def json(content: Any, status: int = 200, *, etag: str = "", headers: Mapping[str, str] | None = None) -> Response:
    said = {**(headers or {}), **({"etag": f'"{etag}"'} if etag else {})}
    return Response(msgspec.json.encode(content), status, said, media_type="application/json")


def decoded(body: bytes, kind: type[T]) -> T:
    """Raises Rejected: 400 of what is no JSON, 422 of another shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Rejected(str(error)) from None
    except msgspec.DecodeError as error:
        raise Rejected(str(error), code="undecodable", status=400) from None


def who_of(request: Request) -> str:
    """Who asks: as the door knows them; a key also says on whose behalf, and without keys they say so themselves."""
    known: str | None = request.scope.get(guarding.WHO)
    said = "".join(c for c in request.headers.get(WHO, "").strip()[:128] if c.isprintable())
    if known is None:
        return said or NOBODY
    return f"{said} ({known})" if said and known.startswith("key:") else known


def seen_of(request: Request) -> int | None:
    """The version a change was made of. Raises Rejected."""
    match = request.headers.get("if-match", "").strip('" ')
    if not match:
        return None
    if not match.isdigit():
        raise Rejected(
            f"Expected the ETag of a read, got {match[:40]!r}", at="$.headers.if-match", status=412, code="stale"
        )
    return int(match)


async def body_of(request: Request) -> bytes:
    """Raises Rejected(408 | 413): by its header before it is read, where that says so."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > LARGEST_BODY:
        raise Rejected(f"Expected at most {LARGEST_BODY} bytes", code="too_large", status=413)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > LARGEST_BODY:
                    raise Rejected(f"Expected at most {LARGEST_BODY} bytes", code="too_large", status=413)
                chunks.append(chunk)
    except TimeoutError:
        raise Rejected(f"The body took more than {BODY_SECONDS:g} s", code="slow", status=408) from None
    return b"".join(chunks)


def _error(code: str, message: str, at: str, status: int) -> Response:
    return json({"error": {"code": code, "message": message, "at": at}}, status)


def errors(app: FastAPI) -> None:
    """Every error has the body of the contract."""
    answers: dict[type[Exception], Callable[[Any], Response]] = {
        Rejected: lambda e: _error(e.code, e.message, e.at, e.status),
        ConfigInvalid: lambda e: json(
            {
                "error": {"code": "invalid", "message": str(e), "at": e.mistakes[0].path if e.mistakes else "$"},
                "mistakes": [msgspec.to_builtins(mistake) for mistake in e.mistakes],
            },
            422,
        ),
        Unavailable: lambda e: _error("unavailable", str(e), "$", 503),
        Corrupt: lambda e: _error(e.reason, str(e), "$", 422),
        RequestValidationError: lambda e: _error("invalid", str(e.errors()[0]["msg"]), "$", 422),
        HTTPException: lambda e: _error("http", str(e.detail), "$", e.status_code),
    }
    for kind, answer in answers.items():

        def handle(_request: Request, error: Exception, answer: Callable[[Any], Response] = answer) -> Response:
            return answer(error)

        app.add_exception_handler(kind, handle)
