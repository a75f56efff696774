"""Who is let in where: every route without, with a wrong and with a too narrow key; other tenants, rates, expiry, rotation."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from scoring_setup import in_memory, surface
from starlette.types import ASGIApp

from policies.errors import Rejected
from services import granting
from services.access import KIND, SCOPES, Access, Limited, digest_of, keys_in, make, token_of
from services.cli import main
from services.client import Slatewise
from services.control import sessions
from services.control.app import Control
from services.control.app import create_app as create_control
from services.scoring import app as scoring_app
from services.settings import Settings
from services.wiring import open_state
from streaming.adapters.memory import MemoryState
from streaming.configuration import publish_surface

ADMIN_KEY = "an-admin-key-of-more-than-32-characters"
OPEN = {"/healthz", "/readyz", "/metrics", sessions.LOGIN}
ASK = {"surface": "home", "unit": "u", "candidates": ["a", "b", "c", "d"]}


def headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers too; a parameter is `x`."""
    found = list(app.routes)
    while found:
        route = found.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found += inner.routes
            continue
        path = "".join("x" if part.startswith("{") else part for part in _parts(route.path))  # type: ignore[attr-defined]
        for method in route.methods or ():  # type: ignore[attr-defined]
            yield method, path


def _parts(path: str) -> Iterator[str]:
    while path:
        before, brace, rest = path.partition("{")
        if before:
            yield before
        if not brace:
            return
        name, _, path = rest.partition("}")
        yield "{" + name


class Asked:
    """An app in this process, and keys of every scope in the record behind it."""

    def __init__(self, app: ASGIApp, inner: FastAPI, access: Access, state: Any, runner: asyncio.Runner) -> None:
        self.app, self.inner, self.access, self.state, self.runner = app, inner, access, state, runner

    def key(self, *scopes: str, **more: Any) -> str:
        more = {"tenant": "default", "now": time.time(), **more}
        _, token = granting.create(self.state, "test", "-".join(scopes), list(scopes), **more)
        self.access.follow(self.state)
        return token

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **options)

        return self.runner.run(ask())


def scoring(folder: Path, runner: asyncio.Runner, **more: Any) -> Asked:
    made = in_memory(folder, access=Access("default", ADMIN_KEY, **more))
    front = scoring_app.create_app(made)
    return Asked(front, front._rest._app, made.access, made.state, runner)  # type: ignore[attr-defined]


def control(folder: Path, runner: asyncio.Runner, **more: Any) -> Asked:
    settings = Settings.load({}, data=folder, admin_key=ADMIN_KEY, **more)
    folder.mkdir(exist_ok=True)
    publish_surface(open_state(settings), surface())
    made = Control.of(settings)
    app = create_control(made)
    return Asked(app, app, made.access, made.releases.state, runner)


@pytest.fixture(params=[scoring, control], ids=["scoring", "control"])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Asked]:
    with asyncio.Runner() as runner:
        build: Callable[..., Asked] = request.param
        yield build(tmp_path / "data", runner)


def narrowest(asked: Asked, method: str, path: str) -> str:
    scope_of = sessions.scope_of if isinstance(asked.app, FastAPI) else scoring_app.scope_of
    needed = scope_of(method, path)
    assert needed is not None
    return needed


def test_every_route_refuses_no_key_a_wrong_one_and_a_narrow_one(asked: Asked) -> None:
    tokens = {scope: asked.key(scope) for scope in SCOPES}
    seen = sorted(set(routes(asked.inner)))
    assert len(seen) > 8
    for method, path in seen:
        bare = asked(method, path)
        if path in OPEN:
            assert path == sessions.LOGIN or bare.status_code == 200, (method, path)
            continue
        if path == "/ops" and method == "GET":
            assert (bare.status_code, bare.headers["location"]) == (303, sessions.LOGIN)
        else:
            assert bare.status_code == 401, (method, path)
            assert bare.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or bare.json()["error"]["code"] == "unauthenticated"
        wrong = tokens["read"][:-4] + "AAAA"
        assert asked(method, path, headers=headers(wrong)).status_code == 401, (method, path)
        needed = narrowest(asked, method, path)
        for scope in SCOPES:
            status = asked(method, path, headers=headers(tokens[scope])).status_code
            if scope in (needed, "admin"):
                assert status not in (401, 403), (method, path, scope)
            else:
                assert status == 403, (method, path, scope)


def test_what_is_no_route_yet_asks_for_more_than_reading(asked: Asked) -> None:
    token = asked.key("decide", "feedback", "read")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert asked(method, "/v1/new").status_code == 401
        assert asked(method, "/v1/new", headers=headers(token)).status_code == 403
        assert asked(method, "/healthz/../v1/new").status_code == 401


def test_scopes_of_what_is_asked_for_most(tmp_path: Path) -> None:
    """Written out, so that no rule can widen a scope unseen."""
    assert scoring_app.scope_of("POST", "/v1/decisions") == "decide"
    assert scoring_app.scope_of("POST", "/v1/decisions:batch") == "decide"
    assert scoring_app.scope_of("POST", "/v1/decisions/a/b/shown") == "feedback"
    assert scoring_app.scope_of("POST", "/v1/feedback") == "feedback"
    assert scoring_app.scope_of("PUT", "/v1/items") == "admin"
    assert scoring_app.scope_of("DELETE", "/v1/items/x") == "admin"
    assert scoring_app.scope_of("GET", "/v1/items/x") == "read"
    assert sessions.scope_of("GET", "/v1/keys") == "admin"
    assert sessions.scope_of("POST", "/v1/releases") == "admin"
    assert sessions.scope_of("DELETE", "/v1/units/x") == "admin"
    assert sessions.scope_of("GET", "/v1/overview") == "read"


def test_a_key_of_another_tenant_crosses_nowhere(asked: Asked) -> None:
    token = asked.key("admin", tenant="other")
    for method, path in set(routes(asked.inner)):
        if path not in OPEN:
            answer = asked(method, path, headers=headers(token))
            assert answer.status_code == 403, (method, path)
            assert method == "HEAD" or answer.json()["error"]["code"] == "other_tenant"


def test_the_other_tenants_keys_are_neither_seen_nor_revoked(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        asked = control(tmp_path / "data", runner)
        asked.key("admin", tenant="other")
        listed = asked("GET", "/v1/keys", headers=headers(ADMIN_KEY)).json()["keys"]
        assert listed == []
        (theirs,) = keys_in(asked.state, "other")
        assert asked("DELETE", f"/v1/keys/{theirs.id}", headers=headers(ADMIN_KEY)).status_code == 404


def test_keys_are_made_rotated_and_revoked_over_http_and_audited(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        asked = control(tmp_path / "data", runner)
        made = [
            asked("POST", "/v1/keys", json={"name": "shop", "scopes": ["read"]}, headers=headers(ADMIN_KEY)).json()
            for _ in range(2)
        ]
        first, second = (one["token"] for one in made)
        assert first != second
        assert asked("GET", "/v1/surfaces", headers=headers(first)).status_code == 200
        assert asked("GET", "/v1/surfaces", headers={"x-api-key": second}).status_code == 200
        key_id = made[0]["key"]["id"]
        assert asked("DELETE", f"/v1/keys/{key_id}", headers=headers(ADMIN_KEY)).json()["key"]["revoked_at"] > 0
        assert asked("GET", "/v1/surfaces", headers=headers(first)).status_code == 401
        assert asked("GET", "/v1/surfaces", headers=headers(second)).status_code == 200
        changes = asked("GET", f"/v1/audit?subject=key/{key_id}", headers=headers(ADMIN_KEY)).text
        assert [change["action"] for change in json.loads(changes)["changes"]] == ["revoke", "create"]
        assert json.loads(changes)["changes"][0]["who"] == "key:admin"
        everything = b"".join(entry.value or b"" for entry in asked.state.read(0))
        for token in (first, second, ADMIN_KEY):
            assert token.encode() not in everything
        assert digest_of(second.encode()).hex() not in changes


def test_a_caller_cannot_write_another_name_into_the_audit(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        asked = control(tmp_path / "data", runner)
        token = asked.key("admin")
        said = {**headers(token), "x-slatewise-who": "ann"}
        made = asked("POST", "/v1/keys", json={"name": "n", "scopes": ["read"]}, headers=said).json()
        changes = asked("GET", f"/v1/audit?subject=key/{made['key']['id']}", headers=headers(token)).json()["changes"]
        assert changes[0]["who"] == "ann (key:admin)"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "a\nb", "scopes": ["read"]}, "$.name"),
    ({"name": "../x", "scopes": ["read"]}, "$.name"),
    ({"name": "a", "scopes": []}, "$.scopes"),
    ({"name": "a", "scopes": ["root"]}, "$.scopes"),
    ({"name": "a", "scopes": ["read"], "rate": 0}, "$.rate"),
    ({"name": "a", "scopes": ["read"], "expires_at": 1}, "$.expires_at"),
    ({"name": "a", "scopes": ["read"], "tenant": "other"}, "$"),
]


def test_a_key_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        asked = control(tmp_path / "data", runner)
        for body, at in REFUSED:
            answer = asked("POST", "/v1/keys", json=body, headers=headers(ADMIN_KEY))
            assert (answer.status_code, answer.json()["error"]["at"]) == (422, at), body
        assert keys_in(asked.state, "default") == []


def test_a_rate_lets_a_seconds_worth_through_and_says_when_to_come_back(tmp_path: Path) -> None:
    now = [100.0]
    with asyncio.Runner() as runner:
        asked = scoring(tmp_path / "data", runner, timer=lambda: now[0])
        token, other = asked.key("decide", rate=3.0), asked.key("decide")
        statuses = [asked("POST", "/v1/decisions", json=ASK, headers=headers(token)).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        refused = asked("POST", "/v1/decisions", json=ASK, headers=headers(token))
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("rate_limited", "1")
        assert asked("POST", "/v1/decisions", json=ASK, headers=headers(other)).status_code == 200
        now[0] += 0.4
        assert asked("POST", "/v1/decisions", json=ASK, headers=headers(token)).status_code == 200


def test_a_slow_rate_says_how_many_seconds(tmp_path: Path) -> None:
    now = [0.0]
    access, state = Access(timer=lambda: now[0]), MemoryState()
    _, token = granting.create(state, "t", "slow", ["read"], tenant="default", rate=0.1, now=1.0)
    access.follow(state)
    sent = [(b"authorization", f"Bearer {token}".encode())]
    access.check(sent, "read")
    with pytest.raises(Limited) as refused:
        access.check(sent, "read")
    assert refused.value.retry_after == 10


def test_a_key_ends_when_it_expires() -> None:
    now = [1000.0]
    access, state = Access(clock=lambda: now[0]), MemoryState()
    _, token = granting.create(state, "t", "brief", ["admin"], tenant="default", expires_at=1010.0, now=1000.0)
    access.follow(state)
    assert access.caller(token.encode()).name == "brief"
    now[0] = 1010.0
    with pytest.raises(Rejected, match="Not a key that is valid here"):
        access.caller(token.encode())


def test_without_any_key_all_is_open_and_with_one_never_again() -> None:
    access, state = Access(), MemoryState()
    assert access.check([], "admin") is None
    key, _ = granting.create(state, "t", "one", ["read"], tenant="default", now=1.0)
    access.follow(state)
    with pytest.raises(Rejected):
        access.check([], "read")
    granting.revoke(state, "t", key["id"], tenant="default", now=2.0)
    access.follow(state)
    with pytest.raises(Rejected):
        access.check([], "read")


def test_a_record_that_cannot_be_read_closes_the_door(caplog: pytest.LogCaptureFixture) -> None:
    access, state = Access(), MemoryState()
    state.put([(KIND, "abc", b"{}")])
    access.follow(state)
    with pytest.raises(Rejected):
        access.check([], "read")
    assert "key_unreadable" in caplog.text


def test_two_headers_with_different_keys_are_refused() -> None:
    with pytest.raises(Rejected):
        token_of([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")])
    assert token_of([(b"authorization", b"bEaReR a"), (b"x-api-key", b"a")]) == b"a"
    assert token_of([(b"authorization", b"Basic dTpw")]) is None


def test_decisions_are_checked_in_less_than_5_us() -> None:
    """The best of many, so that a busy machine does not decide it; a hash of 32 bytes and a comparison."""
    access, state = Access("default", ADMIN_KEY), MemoryState()
    _, token = granting.create(state, "t", "fast", ["decide"], tenant="default", rate=1e9, now=1.0)
    access.follow(state)
    sent = [(b"host", b"h"), (b"content-length", b"12"), (b"authorization", f"Bearer {token}".encode())]
    best = min(_timed(lambda: access.check(sent, "decide")) for _ in range(2_000))
    assert best < 5e-6


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_the_command_line_makes_lists_and_revokes(tmp_path: Path) -> None:
    run = CliRunner()
    data = ["--data", str(tmp_path / "data")]
    made = run.invoke(
        main, ["keys", "create", "shop", "--scope", "decide", "--scope", "feedback", "--expires", "90d", *data]
    )
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    state = open_state(Settings.load({}, data=tmp_path / "data"))
    (key,) = keys_in(state, "default")
    assert key.hash == digest_of(token.encode()).hex()
    assert key.scopes == ["decide", "feedback"]
    assert key.expires_at is not None
    assert 89 < (key.expires_at - time.time()) / 86_400 < 91
    listed = run.invoke(main, ["keys", "list", *data]).stdout
    assert "valid" in listed
    assert key.id in listed
    assert token not in listed
    assert run.invoke(main, ["keys", "revoke", key.id, *data]).exit_code == 0
    assert "revoked" in run.invoke(main, ["keys", "list", *data]).stdout
    wrong = run.invoke(main, ["keys", "revoke", "nobody", *data])
    assert wrong.exit_code == 1
    assert "No key" in wrong.output


def test_listeners_open_beyond_this_machine_only_with_an_admin_key() -> None:
    for name in ("http", "control_http"):
        with pytest.raises(Rejected, match="loopback"):
            Settings.load({}, **{name: "0.0.0.0:8080"})
        assert Settings.load({"SLATEWISE_ADMIN_KEY": ADMIN_KEY}, **{name: "0.0.0.0:8080"})
    for secret in ("ADMIN_KEY", "BUNDLE_KEY"):
        with pytest.raises(Rejected) as refused:
            Settings.load({f"SLATEWISE_{secret}": "short-and-secret"})
        assert "short-and-secret" not in str(refused.value)
    with pytest.raises(Rejected):
        Settings.load({"SLATEWISE_TENANT": "../x"})


def test_no_secret_is_in_a_log_or_a_repr(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with asyncio.Runner() as runner:
        for build in (scoring, control):
            asked = build(tmp_path / build.__name__, runner)
            token = asked.key("decide", "feedback", "read")
            for sent in (token, ADMIN_KEY, token[:-2] + "xx"):
                for method, path in (("POST", "/v1/decisions"), ("GET", "/v1/surfaces"), ("POST", "/v1/releases")):
                    answer = asked(method, path, json=ASK, headers=headers(sent))
                    assert sent not in answer.text
            asked("POST", sessions.LOGIN, content=f"key={ADMIN_KEY}")
            for secret in (token, ADMIN_KEY, token[:-2] + "xx"):
                assert secret not in caplog.text
                assert secret not in repr(asked.access.caller(ADMIN_KEY.encode()))
    settings = Settings.load({}, admin_key=ADMIN_KEY, bundle_key="b" * 40, api_key="my-own-key")
    assert not any(secret in repr(settings) for secret in (ADMIN_KEY, "b" * 40, "my-own-key"))


def test_the_client_brings_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return httpx.Response(401, json={"error": {"code": "unauthenticated", "message": "no", "at": "$"}})

    transport = httpx.MockTransport(answer)
    monkeypatch.setenv("SLATEWISE_API_KEY", "from-outside")
    for key in ("given", None, ""):
        with Slatewise(transport=transport, key=key) as client, pytest.raises(Rejected) as refused:
            client.decide("home", "u")
        assert refused.value.status == 401
    assert sent == ["Bearer given", "Bearer from-outside", None]


def test_a_key_is_32_random_bytes() -> None:
    key, token = make("n", ["admin"], now=0.0)
    assert len(token.rpartition("_")[2] if token.count("_") == 2 else token.split("_", 2)[2]) == 43
    assert key.hash == digest_of(token.encode()).hex()


def test_the_document_says_of_every_route_what_its_door_does(asked: Asked) -> None:
    """Security and refusals as they are written down are those that happen; what is open says nothing of keys."""
    tokens = {scope: asked.key(scope) for scope in SCOPES}
    told = asked.inner.openapi()
    assert told["components"]["securitySchemes"].keys() == {"bearer", "api_key"}
    described = {(method.upper(), path) for path, one in told["paths"].items() for method in one}
    assert {path for _, path in described if "metrics" in path or "healthz" in path}
    for method, path in sorted(described):
        operation = told["paths"][path][method.lower()]
        at = "".join("x" if part.startswith("{") else part for part in _parts(path))
        refused = asked(method, at)
        if "security" not in operation:
            assert refused.status_code not in (401, 403), (method, path)
            assert not {"401", "403"} & operation["responses"].keys()
            continue
        assert refused.status_code == 401, (method, path)
        assert {"401", "403"} <= operation["responses"].keys(), (method, path)
        assert ("requestBody" in operation) == ("413" in operation["responses"]), (method, path)
        [bearer, api_key] = operation["security"]  # one of them is needed
        (scope,) = bearer["bearer"]
        assert api_key == {"api_key": [scope]}
        for name, token in tokens.items():
            got = asked(method, at, headers={"x-api-key": token}).status_code
            assert (got == 403) == (name not in (scope, "admin")), (method, path, name, got)


def test_an_open_service_says_that_a_key_is_optional(tmp_path: Path) -> None:
    told = scoring_app.create_app(in_memory(tmp_path))._rest._app.openapi()  # type: ignore[attr-defined]
    assert told["paths"]["/v1/decisions"]["post"]["security"][0] == {}
