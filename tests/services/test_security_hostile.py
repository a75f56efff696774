"""Requests and files of someone who means harm: too large, too slow, with names that leave folders, with forged bundles."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scoring_setup import in_memory, installed, publish, serving, surface
from uvicorn.server import ServerState

from policies import bundle as bundling
from policies.errors import Corrupt, Rejected
from services import timely
from services.control import answering
from services.control.app import Control, create_app
from services.scoring import wire
from services.scoring.app import create_app as create_scoring
from services.scoring.listening import Stamped, configured
from services.scoring.live import Follower, Live
from services.scoring.service import Scoring
from services.settings import Settings
from services.telemetry import Telemetry
from services.wiring import open_bundles, open_state
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryBundles, MemoryState
from streaming.configuration import ConfigInvalid, parse, publish_surface
from streaming.signed import SignedBundles
from tests.services.test_scoring_direct import Wire

ADMIN_KEY = "an-admin-key-of-more-than-32-characters"
BUNDLE_KEY = "a-bundle-key-of-more-than-32-characters"
KEYED = {"authorization": f"Bearer {ADMIN_KEY}"}
NAMES = ("../secret", "..", "a/../../secret", "/etc/passwd", "..%2f..%2fsecret", "a\0b", "a\nb", "%2e%2e/secret")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real scoring process with an admin key."""
    with serving(installed(tmp_path_factory.mktemp("s") / "data", [surface()], admin_key=ADMIN_KEY)) as made:
        yield made


def raw(server: Any, sent: bytes, wait: float = 30.0) -> bytes:
    """What a connection gets until it is closed, or said nothing for a while."""
    host, _, port = server.settings.http.partition(":")
    with socket.create_connection((host, int(port)), timeout=wait) as made:
        made.sendall(sent)
        got = b""
        while part := made.recv(65536):
            got += part
            if b"content-length" in got and got.partition(b"\r\n\r\n")[2]:
                break
        return got


def test_bodies_larger_than_allowed_are_refused_by_their_header_and_by_their_size(server: Any) -> None:
    limits = {
        ("POST", "/v1/decisions"): wire.DECISION_BYTES,
        ("POST", "/v1/decisions:batch"): wire.BATCH_BYTES,
        ("POST", "/v1/feedback"): wire.FEEDBACK_BYTES,
        ("PUT", "/v1/items"): wire.ITEMS_BYTES,
        ("POST", "/v1/decisions/x/shown"): wire.FEEDBACK_BYTES,
    }
    key = f"authorization: Bearer {ADMIN_KEY}\r\n"
    for (method, path), limit in limits.items():
        head = f"{method} {path} HTTP/1.1\r\nhost: h\r\n{key}content-length: {limit + 1}\r\n\r\n"
        assert raw(server, head.encode()).startswith(b"HTTP/1.1 413"), path
    head = f"POST /v1/decisions HTTP/1.1\r\nhost: h\r\n{key}transfer-encoding: chunked\r\n\r\n".encode()
    size = wire.DECISION_BYTES + 1
    assert raw(server, head + b"%x\r\n" % size + b"x" * size + b"\r\n").startswith(b"HTTP/1.1 413")


def test_a_large_body_without_a_key_is_not_even_read(server: Any) -> None:
    head = f"POST /v1/feedback HTTP/1.1\r\nhost: h\r\ncontent-length: {wire.FEEDBACK_BYTES}\r\n\r\n"
    assert raw(server, head.encode()).startswith(b"HTTP/1.1 401")


def test_headers_cannot_be_injected_nor_smuggled(server: Any) -> None:
    body = b'{"surface":"home","unit":"u","candidates":["a","b"],"decision_id":"x\\r\\nset-cookie: a=b"}'
    key = f"authorization: Bearer {ADMIN_KEY}\r\n".encode()
    got = raw(
        server, b"POST /v1/decisions HTTP/1.1\r\nhost: h\r\n%bcontent-length: %d\r\n\r\n" % (key, len(body)) + body
    )
    assert b"\r\nset-cookie" not in got
    both = b"POST /v1/decisions HTTP/1.1\r\nhost: h\r\n%bcontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" % key
    assert raw(server, both + b"0\r\n\r\n").startswith(b"HTTP/1.1 400")
    twice = b"POST /v1/decisions HTTP/1.1\r\nhost: h\r\n%bcontent-length: 2\r\ncontent-length: 3\r\n\r\n{} " % key
    assert raw(server, twice).startswith(b"HTTP/1.1 400")
    bad = b"GET /v1/items/x HTTP/1.1\r\nhost: h\r\nauthorization: Bearer a\x00b\r\n\r\n"
    assert raw(server, bad).startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))
    with httpx.Client(base_url=server.url, headers=KEYED) as client:
        answer = client.get("/v1/items/a%0d%0aset-cookie:%20a=b")
        assert answer.status_code == 404
        assert "set-cookie" not in answer.headers


def test_the_real_service_closes_its_door(server: Any) -> None:
    """The protocol answers decisions by itself: the same refusals come from there."""
    ask = {"surface": "home", "unit": "u", "candidates": ["a", "b", "c"]}
    with server.client() as client:
        assert client.post("/v1/decisions", json=ask).status_code == 401
        refused = client.post("/v1/decisions", json=ask, headers={"x-api-key": "no"})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/v1/decisions", json=ask, headers=KEYED).status_code == 200
        assert client.get("/readyz").status_code == 200
    assert ADMIN_KEY not in server.log.read_text()


def test_a_slow_request_loses_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and body, of decisions and of the rest; and a silent connection. A whole request is not hurried."""
    monkeypatch.setattr(timely, "SLOW_SECONDS", 0.05)
    starts = {
        b"": 0,
        b"POST /v1/deci": 0,
        b"POST /v1/decisions HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n{": 1,
        b"POST /v1/feedback HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n{": 1,
        b"POST /v1/decisions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{": 1,
    }

    async def story(scoring: Scoring) -> None:
        app = create_scoring(scoring)
        config, state = configured(app), ServerState()
        config.load()
        for sent, places in starts.items():
            protocol, wired = Stamped(config, state, {}), Wire()
            protocol.connection_made(wired)
            if sent:
                protocol.data_received(sent)
            assert app.admission.admitted == places
            deadline = time.monotonic() + 30
            while not wired.closed and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            assert wired.written.startswith(b"HTTP/1.1 408"), sent
            protocol.connection_lost(None)
            await asyncio.sleep(0.01)
            assert app.admission.admitted == 0, sent
        protocol, wired = Stamped(config, state, {}), Wire()  # behind a request that is still to be answered
        protocol.connection_made(wired)
        protocol.data_received(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\nGET /healthz HT")
        protocol._too_slow()
        assert b"408" not in wired.written
        assert wired.closed
        protocol.connection_lost(None)
        protocol, wired = Stamped(config, state, {}), Wire()
        protocol.connection_made(wired)
        protocol.data_received(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
        await asyncio.sleep(0.2)
        assert wired.written.startswith(b"HTTP/1.1 200")
        assert not wired.closed
        protocol.connection_lost(None)
        app.deciding.close()

    asyncio.run(story(in_memory(tmp_path)))


def test_names_do_not_leave_their_folders(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    store = FileBundles(tmp_path / "bundles")
    for name in NAMES:
        with pytest.raises(ValueError, match="not a bundle"):
            store.get(name)
        with pytest.raises(ValueError, match="not a bundle"):
            store.put(name, b"x")
        with pytest.raises((ConfigInvalid, Rejected)):
            publish_surface(MemoryState(), parse(f"surface: {name!r}\nslots: 1\n", "body")[0])
        text = f"surface: home\nslots: 1\npolicies: {{{name!r}: {{algorithm: epsilon_greedy}}}}\n"
        with pytest.raises((ConfigInvalid, Rejected)):
            publish_surface(MemoryState(), parse(text, "body")[0])
    settings = Settings.load({}, data=tmp_path / "data", admin_key=ADMIN_KEY)
    settings.data.mkdir()
    publish_surface(open_state(settings), surface())
    app = create_app(Control.of(settings))

    async def ask() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=KEYED) as client:
            for name in ("..%2f..%2fsecret", "%2e%2e%2fsecret", "..%5csecret", "a%00b", "....//secret"):
                for route in ("/v1/bundles/", "/v1/surfaces/", "/v1/experiments/", "/v1/keys/"):
                    answer = await client.request("DELETE" if route == "/v1/keys/" else "GET", route + name)
                    assert answer.status_code in (404, 422), (route, name, answer.status_code)
                    assert "s3cret" not in answer.text
            release = {"policy": "home/home-ts", "action": "rollback", "to": "../../secret"}
            answer = await client.post("/v1/releases", json=release)
            assert answer.status_code in (404, 422)
            body = {"surface": "../evil", "slots": 1}
            assert (await client.put("/v1/surfaces/..%2fevil", json=body)).status_code in (404, 422)

    asyncio.run(ask())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "data", "secret"]


def _follower(bundles: Any) -> tuple[Follower, MemoryState]:
    state = MemoryState()
    configs = publish(state, bundles, surface())
    return Follower(bundles, configs, Telemetry()), state


def test_a_forged_bundle_is_not_drawn_from(caplog: pytest.LogCaptureFixture) -> None:
    """Files changed in place fail their hashes; a whole bundle with fitting hashes fails its signature."""
    inner = MemoryBundles()
    ours = SignedBundles(inner, BUNDLE_KEY)
    follower, _ = _follower(ours)
    served = follower.poll(Live()).surfaces["home"].policy
    assert served is not None
    (pointed,) = {bundle for policy, bundle in inner.pointers().items() if policy == "home/home-ts"}
    whole = bundling.read(pointed, ours.get)
    forged = bundling.files(whole)
    manifest = f"manifests/{pointed}.json"

    inner.put(manifest, forged[manifest].replace(b'"number":0', b'"number":7'))
    with pytest.raises(Corrupt, match="signature"):
        bundling.read(pointed, ours.get)
    inner.put(manifest, forged[manifest])
    assert bundling.read(pointed, ours.get).manifest == whole.manifest
    array = next(name for name in forged if name.startswith("arrays/"))
    inner.put(array, forged[array][:-1] + bytes([forged[array][-1] ^ 1]))
    with pytest.raises(Corrupt, match="hash"):
        bundling.read(pointed, ours.get)
    inner.put(array, forged[array])

    theirs = SignedBundles(inner, "another-key-of-more-than-32-characters")
    publish(MemoryState(), theirs, surface(), number=9, epoch=2, examples=50)
    moved = inner.pointers()["home/home-ts"]
    assert moved != pointed
    with pytest.raises(Corrupt, match="signature"):
        bundling.read(moved, ours.get)
    again = follower.poll(Live())
    still = again.surfaces["home"].policy
    assert still is None or still.bundle == pointed
    unsigned = MemoryBundles()
    publish(MemoryState(), unsigned, surface())
    with pytest.raises(Corrupt, match="not signed"):
        bundling.read(unsigned.pointers()["home/home-ts"], SignedBundles(unsigned, BUNDLE_KEY).get)


def test_signatures_go_with_their_manifests() -> None:
    inner = MemoryBundles()
    store = SignedBundles(inner, BUNDLE_KEY)
    publish(MemoryState(), store, surface())
    bundle = inner.pointers()["home/home-ts"]
    assert f"signatures/{bundle}.sig" in inner.names("signatures")
    store.remove(f"manifests/{bundle}.json")
    assert f"signatures/{bundle}.sig" not in inner.names("signatures")


def test_the_setting_signs_what_is_published(tmp_path: Path) -> None:
    settings = installed(tmp_path / "data", [surface()], bundle_key=BUNDLE_KEY)
    name = open_bundles(settings).pointers()["home/home-ts"]
    assert bundling.read(name, open_bundles(settings).get).manifest.bundle == name
    other = Settings.load({}, data=settings.data, bundle_key="another-key-of-more-than-32-characters")
    with pytest.raises(Corrupt, match="signature"):
        bundling.read(name, open_bundles(other).get)


WRITES = (
    ("PUT", "/v1/surfaces/home"),
    ("POST", "/v1/experiments"),
    ("PUT", "/v1/experiments/x"),
    ("POST", "/v1/experiments/x/course"),
    ("POST", "/v1/releases"),
    ("POST", "/v1/releases/home"),
    ("POST", "/v1/keys"),
    ("POST", "/v1/dead-letters/replay"),
    ("PUT", "/v1/units:attributes"),
)


def test_control_refuses_bodies_by_their_header_by_their_size_and_by_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "BODY_SECONDS", 0.05)
    settings = Settings.load({}, data=tmp_path / "data", admin_key=ADMIN_KEY)
    settings.data.mkdir()
    app = create_app(Control.of(settings))
    read = 0

    async def endless(size: int, pause: float) -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(size):
            read += 1
            await asyncio.sleep(pause)
            yield b"x" * 65_536

    async def ask() -> None:
        nonlocal read
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=KEYED) as client:
            described = app.openapi()["paths"]
            taking = {(m.upper(), p) for p, one in described.items() for m, o in one.items() if "requestBody" in o}
            assert len(taking) == len(WRITES)  # every route that takes a body
            for method, path in WRITES:
                said = {"content-length": str(answering.LARGEST_BODY + 1)}
                read = 0
                answer = await client.request(method, path, content=endless(100, 0), headers=said)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large"), path
                assert read <= 1  # the header was enough
                answer = await client.request(method, path, content=endless(100, 0))
                assert answer.status_code == 413, path
                assert read < 25  # 16 pieces are the most that is read, and no more than a few wait
                answer = await client.request(method, path, content=endless(100, 0.02))
                assert (answer.status_code, answer.json()["error"]["code"]) == (408, "slow"), path

    asyncio.run(ask())
