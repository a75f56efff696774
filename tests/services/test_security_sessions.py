"""Logging in to the ops page, and what other sites' pages cannot do on behalf of who is logged in."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from scoring_setup import surface

from services import granting
from services.control import sessions
from services.control.app import Control, create_app
from services.settings import Settings
from services.wiring import open_state
from streaming.configuration import publish_surface

ADMIN_KEY = "an-admin-key-of-more-than-32-characters"
FORM = {"content-type": "application/x-www-form-urlencoded"}
KEY = {"name": "made", "scopes": ["read"]}


class Browser:
    """One browser on the control service; `address` is where its requests come from."""

    def __init__(
        self, app: FastAPI, runner: asyncio.Runner, address: str = "127.0.0.1", url: str = "http://ops"
    ) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1234))
        self.http, self.runner = httpx.AsyncClient(transport=transport, base_url=url), runner

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.runner.run(self.http.request(method, path, **options))

    def login(self, key: str = ADMIN_KEY) -> httpx.Response:
        return self("POST", sessions.LOGIN, content=f"key={key}", headers=FORM)

    @property
    def csrf(self) -> dict[str, str]:
        return {"x-csrf-token": self("GET", sessions.SESSION).json()["csrf"]}


class Stage:
    def __init__(self, folder: Path, runner: asyncio.Runner, **settings: Any) -> None:
        made = Settings.load({}, data=folder, **settings)
        folder.mkdir(exist_ok=True)
        publish_surface(open_state(made), surface())
        self.control, self.runner = Control.of(made), runner
        self.app = create_app(self.control)

    def browser(self, **more: Any) -> Browser:
        return Browser(self.app, self.runner, **more)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def stage(tmp_path: Path, runner: asyncio.Runner) -> Stage:
    return Stage(tmp_path / "data", runner, admin_key=ADMIN_KEY, ops_user_header="X-Forwarded-User")


def test_an_admin_key_becomes_a_cookie_that_scripts_and_other_sites_never_get(stage: Stage) -> None:
    browser = stage.browser()
    assert browser("GET", "/ops").headers["location"] == sessions.LOGIN
    assert browser("GET", "/ops/any", headers={"accept": "text/html"}).headers["location"] == sessions.LOGIN
    assert browser("GET", "/ops/any.js").status_code == 401
    assert "password" in browser("GET", sessions.LOGIN).text
    wrong = browser.login("not-the-key<script>")
    assert wrong.status_code == 401
    assert "<script>" not in wrong.text
    assert "set-cookie" not in wrong.headers
    answer = browser.login()
    assert (answer.status_code, answer.headers["location"]) == (303, "/ops")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    assert ADMIN_KEY not in cookie
    assert browser("GET", "/ops").status_code == 200
    assert browser("GET", "/v1/surfaces").status_code == 200
    tls = stage.browser()(
        "POST", sessions.LOGIN, content=f"key={ADMIN_KEY}", headers=FORM | {"x-forwarded-proto": "https"}
    )
    assert "; Secure" in tls.headers["set-cookie"]


def test_a_session_writes_with_its_token_only(stage: Stage) -> None:
    browser, other = stage.browser(), stage.browser()
    browser.login()
    other.login()
    for sent in ({}, {"x-csrf-token": ""}, {"x-csrf-token": "x" * 44}, other.csrf):
        refused = browser("POST", "/v1/keys", json=KEY, headers=sent)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf")
    assert browser("POST", "/v1/keys", json=KEY, headers=browser.csrf).status_code == 201
    changes = browser("GET", "/v1/audit").json()["changes"]
    assert changes[0]["who"] == "key:admin"


def test_a_page_of_another_site_writes_nothing(stage: Stage) -> None:
    browser = stage.browser()
    browser.login()
    token = browser.csrf
    refused = browser("POST", "/v1/keys", json=KEY, headers=token | {"origin": "http://evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site")
    assert browser("POST", sessions.LOGIN, content="key=x", headers=FORM | {"origin": "null"}).status_code == 403
    assert browser("POST", "/v1/keys", json=KEY, headers=token | {"origin": "http://ops"}).status_code == 201


def test_a_narrow_key_does_not_log_in(stage: Stage) -> None:
    state = stage.control.releases.state
    _, token = granting.create(state, "t", "reader", ["read"], tenant="default", now=1.0)
    stage.control.access.follow(state)
    answer = stage.browser().login(token)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_forged_an_expired_and_a_revoked_session_are_nobodys(stage: Stage) -> None:
    state, access = stage.control.releases.state, stage.control.access
    key, token = granting.create(state, "t", "ops", ["admin"], tenant="default", now=1.0)
    access.follow(state)
    browser = stage.browser()
    browser.login(token)
    assert browser("GET", "/v1/surfaces").status_code == 200
    value = browser.http.cookies[sessions.COOKIE]
    for forged in (value[:-3] + "AA=", value.partition(".")[0], "a." + value.rpartition(".")[2], "é", ".", ""):
        answer = stage.browser()(
            "GET", "/v1/surfaces", headers={"cookie": f"{sessions.COOKIE}={forged}".encode("latin-1")}
        )
        assert answer.status_code == 401, forged
    known = sessions.Sessions(access, b"another server key of 32 bytes..")
    foreign = known.login(token)
    assert stage.browser()("GET", "/v1/surfaces", headers={"cookie": f"{sessions.COOKIE}={foreign}"}).status_code == 401
    now = stage.control.sessions._clock
    stage.control.sessions._clock = lambda: now() + sessions.LIFE_SECONDS + 1
    assert browser("GET", "/v1/surfaces").status_code == 401
    stage.control.sessions._clock = now
    assert browser("GET", "/v1/surfaces").status_code == 200
    granting.revoke(state, "t", key["id"], tenant="default", now=2.0)
    access.follow(state)
    assert browser("GET", "/v1/surfaces").status_code == 401


def test_logging_out_takes_the_cookie_away(stage: Stage) -> None:
    browser = stage.browser()
    browser.login()
    assert browser("POST", sessions.LOGOUT).status_code == 403  # without its token
    assert browser("POST", sessions.LOGOUT, headers=browser.csrf).status_code == 303
    assert browser("GET", "/ops").status_code == 303


def test_a_proxy_that_is_believed_names_the_user(stage: Stage, tmp_path: Path, runner: asyncio.Runner) -> None:
    named = {"x-forwarded-user": "ann@example.org"}
    proxy = stage.browser(address="127.0.0.1")
    assert proxy("GET", "/ops", headers=named).status_code == 200
    assert proxy("POST", "/v1/keys", json=KEY, headers=named).status_code == 403
    token = proxy("GET", sessions.SESSION, headers=named).json()["csrf"]
    assert proxy("POST", "/v1/keys", json=KEY, headers=named | {"x-csrf-token": token}).status_code == 201
    assert proxy("GET", "/v1/audit", headers=named).json()["changes"][0]["who"] == "user:ann@example.org"
    other = {"x-forwarded-user": "bob@example.org", "x-csrf-token": token}
    assert proxy("POST", "/v1/keys", json=KEY, headers=other).status_code == 403
    twice = [("x-forwarded-user", "ann"), ("x-forwarded-user", "root")]
    assert proxy("GET", "/v1/surfaces", headers=twice).status_code == 401
    assert stage.browser(address="10.1.2.3")("GET", "/v1/surfaces", headers=named).status_code == 401
    away = Stage(
        tmp_path / "b", runner, admin_key=ADMIN_KEY, ops_user_header="X-Forwarded-User", ops_proxies="10.1.0.0/16"
    )
    assert away.browser(address="10.1.2.3")("GET", "/v1/surfaces", headers=named).status_code == 200
    plain = Stage(tmp_path / "c", runner, admin_key=ADMIN_KEY)
    assert plain.browser()("GET", "/v1/surfaces", headers=named).status_code == 401


def test_every_response_carries_the_security_headers(stage: Stage) -> None:
    browser = stage.browser()
    browser.login()
    for method, path in (
        ("GET", "/ops"),
        ("GET", sessions.LOGIN),
        ("GET", "/v1/surfaces"),
        ("GET", "/nowhere"),
        ("PUT", "/ops"),
    ):
        found = browser(method, path).headers
        assert found["x-content-type-options"] == "nosniff"
        assert found["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in found["content-security-policy"]
        assert "unsafe-inline" not in found["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert "script-src 'self';" in browser("GET", "/ops").headers["content-security-policy"]  # none inline


def test_the_policy_allows_the_pages_own_scripts_and_no_others() -> None:
    one, other = sessions.policy_for("<script>a()</script>"), sessions.policy_for("<script>b()</script>")
    assert one != other
    assert one.count("sha256-") == 1


def test_open_to_this_machine_is_not_open_to_web_pages(tmp_path: Path, runner: asyncio.Runner) -> None:
    stage = Stage(tmp_path / "data", runner)
    local = stage.browser(url="http://127.0.0.1:8081")
    assert local("GET", sessions.SESSION).json() == {"who": None, "csrf": None, "ends": None, "open": True}
    assert local("GET", "/ops").status_code == 200
    form = {"policy": "home/home-ts", "action": "resume"}
    evil = local("POST", "/v1/releases", json=form, headers={"origin": "http://evil.example"})
    assert evil.status_code == 403
    rebound = stage.browser(url="http://evil.example")
    assert rebound("GET", "/v1/surfaces", headers={"sec-fetch-mode": "cors"}).status_code == 403
    assert rebound("POST", "/v1/releases", json=form, headers={"origin": "http://evil.example"}).status_code == 403
    assert local("GET", "/v1/surfaces", headers={"sec-fetch-mode": "cors"}).status_code == 200
    assert local("POST", "/v1/releases", json=form, headers={"origin": "http://127.0.0.1:8081"}).status_code != 403
