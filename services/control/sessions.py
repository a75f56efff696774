"""Logging in to `/ops`: an admin key becomes a signed cookie, or a proxy that knows people names them.

    POST /ops/login    form field `key`, an admin key → 303 to /ops and the cookie: HttpOnly, SameSite=Strict, 12 hours
    POST /ops/logout   takes the cookie away
    GET  /ops/session  {"who", "csrf", "ends", "open"}: what a page needs before it may write

A page sends `csrf` back as the header `X-CSRF-Token` with every request that is not a GET; without it a session may only read.
Where no key is configured (`open`), nobody logs in and no token is asked for. A cookie names the key that opened it and ends
with that key; its signature is keyed by the server key, so any replica knows it and none keeps it.

Behind a proxy that authenticates people (oauth2-proxy and its like) `SLATEWISE_OPS_USER_HEADER` names the header that carries
the user. It is believed from loopback, and from the networks of `SLATEWISE_OPS_PROXIES`: everybody else could write it themselves.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qs

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.types import Scope

from policies.errors import Rejected
from services.access import ADMIN, Access
from services.control.answering import body_of, json
from services.guarding import SAFE, Headers

COOKIE, CSRF = "slatewise_ops", b"x-csrf-token"
LIFE_SECONDS = 12 * 3600.0
LOGIN, LOGOUT, SESSION = "/ops/login", "/ops/logout", "/ops/session"
OPEN = frozenset({"/healthz", "/readyz", "/metrics", LOGIN})  # what nobody needs a key for
LOGGED_OUT = f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"


class Session(Struct, frozen=True, array_like=True):
    """What a cookie says. `key`: the id of the key that opened it."""

    who: str
    key: str
    ends: float
    nonce: str


class Sessions:
    """secret  32 bytes, the same on every replica;   user_header, proxies  as the settings have them, empty: no proxy"""

    def __init__(
        self,
        access: Access,
        secret: bytes,
        *,
        user_header: str = "",
        proxies: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.access, self._clock = access, clock
        self._signing = hashlib.blake2b(secret, digest_size=32, person=b"ops-session").digest()
        self._user_header = user_header.lower().encode()
        self._proxies = [ip_network(one.strip()) for one in f"127.0.0.0/8,::1/128,{proxies}".split(",") if one.strip()]

    def login(self, key: str) -> str:
        """The cookie's value. Raises Rejected: 401 for what is no key, 403 for one that may not administer."""
        caller = self.access.caller(key.strip().encode())
        if ADMIN not in caller.scopes:
            raise Rejected(f"The key {caller.name} may not administer", at="$.key", code="forbidden", status=403)
        made = Session(f"key:{caller.name}", caller.id, self._clock() + LIFE_SECONDS, secrets.token_hex(8))
        payload = _text(msgspec.json.encode(made))
        return f"{payload}.{self._sign(payload)}"

    def session(self, scope: Scope) -> tuple[Session, str] | None:
        """Whose session a request belongs to, and its CSRF token."""
        return self._by_cookie(scope) or self._by_proxy(scope)

    def who(self, scope: Scope) -> str | None:
        found = self.session(scope)
        if found is None:
            return None
        session, token = found
        if scope["method"] not in SAFE:
            sent = next((value for name, value in scope["headers"] if name == CSRF), b"")
            if not hmac.compare_digest(sent, token.encode()):
                raise Rejected(
                    "A session writes with the token of GET /ops/session", at="$.headers.x-csrf-token", code="csrf",
                    status=403,
                )  # fmt: skip
        return session.who

    def elsewhere(self, scope: Scope) -> str | None:
        path, wants = scope["path"], dict(scope["headers"]).get(b"accept", b"")
        page = path.rstrip("/") == "/ops" or (path.startswith("/ops/") and b"text/html" in wants)
        return LOGIN if page and scope["method"] in SAFE else None

    def _by_cookie(self, scope: Scope) -> tuple[Session, str] | None:
        payload, _, signature = _cookie(scope["headers"]).rpartition(".")
        if not payload or not hmac.compare_digest(signature.encode(), self._sign(payload).encode()):
            return None
        session = msgspec.json.decode(base64.urlsafe_b64decode(payload), type=Session)  # ours, by its signature
        if session.ends <= self._clock() or self.access.admits(session.key) is None:
            return None
        return session, self._sign(f"csrf {payload}")

    def _by_proxy(self, scope: Scope) -> tuple[Session, str] | None:
        if not self._user_header or not self._believed(scope):
            return None
        named = [value for name, value in scope["headers"] if name == self._user_header]
        if len(named) != 1 or not named[0].strip():
            return None
        who = "user:" + "".join(c for c in named[0].decode("utf-8", "replace").strip()[:128] if c.isprintable())
        return Session(who, "", self._clock() + LIFE_SECONDS, ""), self._sign(f"csrf {who}")

    def _believed(self, scope: Scope) -> bool:
        peer = scope.get("client")
        try:
            address = ip_address(peer[0]) if peer else None
        except ValueError:  # a socket without an address
            return False
        return address is not None and any(address in network for network in self._proxies)

    def _sign(self, text: str) -> str:
        return _text(hashlib.blake2b(text.encode(), digest_size=32, key=self._signing).digest())


def router(sessions: Sessions) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    page = (files("services") / "control" / "login.html").read_text()

    @routes.get(LOGIN, include_in_schema=False)
    def form() -> Response:
        return _html(page.replace("<!--said-->", ""))

    @routes.post(LOGIN, include_in_schema=False)
    async def login(request: Request) -> Response:
        fields = parse_qs((await body_of(request)).decode("utf-8", "replace"), max_num_fields=4)
        try:
            value = sessions.login(fields.get("key", [""])[0])
        except Rejected as error:
            said = "This key may not administer." if error.status == 403 else "Not a key that is valid here."
            return _html(page.replace("<!--said-->", f'<p role="alert">{said}</p>'), error.status)
        secure = "; Secure" if _by_tls(request) else ""
        cookie = f"{COOKIE}={value}; Path=/; Max-Age={LIFE_SECONDS:.0f}; HttpOnly; SameSite=Strict{secure}"
        return Response(status_code=303, headers={"location": "/ops", "set-cookie": cookie})

    @routes.post(LOGOUT, include_in_schema=False)
    def logout() -> Response:
        return Response(status_code=303, headers={"location": LOGIN, "set-cookie": LOGGED_OUT})

    @routes.get(SESSION, include_in_schema=False)
    def session(request: Request) -> Response:
        found = sessions.session(request.scope) if sessions.access.guarded else None
        said: dict[str, Any] = {"who": None, "csrf": None, "ends": None, "open": not sessions.access.guarded}
        if found is not None:
            said |= {"who": found[0].who, "csrf": found[1], "ends": found[0].ends}
        return json(said)

    return routes


def scope_of(method: str, path: str) -> str | None:
    """What a route of the control service asks for: reading reads, all else administers; who holds keys administers."""
    if path in OPEN:
        return None
    return "read" if method in SAFE and not path.startswith("/v1/keys") else ADMIN


def harden(path: str) -> Headers:
    """Security headers of a response of the control service."""
    headers = [
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cache-control", b"no-store"),
    ]
    if not path.startswith(("/docs", "/redoc")):  # FastAPI's page brings its scripts from elsewhere
        headers.append((b"content-security-policy", DATA_POLICY))
    else:
        headers.append((b"content-security-policy", b"frame-ancestors 'none'"))
    return headers


DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"  # of what is no page


def policy_for(page: str) -> str:
    """The content security policy of a page of ours: its own inline scripts by their hashes, everything else from here.

    Styles may be inline, because charts size themselves by them.
    """
    hashes = []
    rest = page
    while "<script>" in rest:
        script, _, rest = rest.partition("<script>")[2].partition("</script>")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        hashes.append(f" 'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src 'self'{''.join(hashes)}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def _html(page: str, status: int = 200) -> Response:
    headers = {"content-security-policy": policy_for(page)}
    return Response(page, status, headers, media_type="text/html; charset=utf-8")


def _by_tls(request: Request) -> bool:
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "").startswith("https")


def _cookie(headers: Headers) -> str:
    for name, value in headers:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None:
                return found.value
    return ""


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
