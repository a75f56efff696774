"""The door before every route of a service that is not a decision: keys, sessions, and what browsers must not do.

guarded  a key with the route's scope, or, where there are sessions, a session, whose writes carry its CSRF token
open     (no key configured, so on loopback only) everybody on this machine, but no web page from elsewhere: neither by
         a form that posts here nor by a name that suddenly resolves to 127.0.0.1
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from policies.errors import Rejected
from services.access import Access, Limited, carries_key

WHO = "slatewise.who"  # in an ASGI scope: who was let in
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
Headers = list[tuple[bytes, bytes]]


class Sessions(Protocol):
    """Who is known without a key."""

    def who(self, scope: Scope) -> str | None:
        """Whose session a request belongs to; None: nobody's. Raises Rejected(403) for a write without its CSRF token."""

    def elsewhere(self, scope: Scope) -> str | None:
        """Where to send who has to log in first; None: they are refused."""


class Guarding:
    """ASGI middleware.

    scope_of  the scope that (method, path) asks for; None: open to all
    harden    headers to set on every response; those that the response has stay
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        scope_of: Callable[[str, str], str | None],
        sessions: Sessions | None = None,
        harden: Callable[[str], Headers] | None = None,
    ) -> None:
        self._app, self._access, self._scope_of = app, access, scope_of
        self._sessions, self._harden = sessions, harden

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._harden is not None:
            send = _hardened(send, self._harden(scope["path"]))
        try:
            who = self._let_in(scope)
        except Rejected as error:
            target = None
            if self._sessions is not None and error.status == 401 and not carries_key(scope["headers"]):
                target = self._sessions.elsewhere(scope)
            if target is None:
                await refuse(send, error)
                return
            headers = [(b"location", target.encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        if who is not None:
            scope[WHO] = who
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> str | None:
        headers: Headers = scope["headers"]
        needed = self._scope_of(scope["method"], scope["path"])
        if not self._access.guarded:
            refuse_pages_from_elsewhere(scope, open_to_all=True)
            return None
        if needed is None:
            refuse_pages_from_elsewhere(scope)
            return None
        if self._sessions is not None and not carries_key(headers):
            refuse_pages_from_elsewhere(scope)
            who = self._sessions.who(scope)
            if who is not None:
                return who
        caller = self._access.check(headers, needed)
        return None if caller is None else f"key:{caller.name}"


def refuse_pages_from_elsewhere(scope: Scope, *, open_to_all: bool = False) -> None:
    """Raises Rejected(403) for what a browser sends on behalf of another site's page.

    open_to_all  nobody needs to prove who they are, so a browser must also have asked for this machine by its own name
    """
    sent = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = sent.get(b"host", ""), sent.get(b"origin")
    if origin is not None and scope["method"] not in SAFE and urlsplit(origin).netloc != host:
        raise Rejected("Asked for by a page of another site", at="$.headers.origin", code="cross_site", status=403)
    if open_to_all and (origin is not None or b"sec-fetch-mode" in sent) and not _names_this_machine(host):
        raise Rejected(
            "Without keys a browser reaches this as localhost only", at="$.headers.host", code="cross_site", status=403
        )


async def refuse(send: Send, error: Rejected) -> None:
    """The error as a whole response with the body of the contract."""
    body = msgspec.json.encode({"error": {"code": error.code, "message": error.message, "at": error.at}})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers_of(error)]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def headers_of(error: Rejected) -> Headers:
    """What a refusal at the door says beside its body."""
    if error.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return [(b"retry-after", b"%d" % error.retry_after)] if isinstance(error, Limited) else []


def _names_this_machine(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _hardened(send: Send, headers: Headers) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            has = {name for name, _ in message.get("headers", [])}
            message["headers"] = [*message.get("headers", []), *(one for one in headers if one[0] not in has)]
        await send(message)

    return wrapped
