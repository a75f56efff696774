"""Decisions answered by the protocol itself: what a connection sees, whatever arrives in whatever pieces."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from scoring_setup import decisions, in_memory
from uvicorn.server import ServerState

from policies.errors import Unavailable
from services.scoring.admission import Patience
from services.scoring.app import create_app
from services.scoring.deciding import CLAIM_THREADS, Deciding
from services.scoring.listening import Listener, Stamped, configured
from services.scoring.service import Scoring
from services.scoring.wire import LARGE_BODY_BYTES, encode
from streaming.adapters.memory import MemoryClaims

ASK = {"surface": "home", "unit": "u", "candidates": ["a", "b", "c", "d"]}


class Wire(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.paused = b"", False, False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def answers(self) -> list[tuple[int, dict[str, str], dict[str, Any]]]:
        """(status, headers, body) of every whole response."""
        found, rest = [], self.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            size = int(headers["content-length"])
            found.append((int(first.split()[1]), headers, json.loads(rest[:size])))
            rest = rest[size:]
        return found


def request(body: Any = ASK, *more: str, path: str = "/v1/decisions", version: str = "1.1") -> bytes:
    data = body if isinstance(body, bytes) else encode(body)
    lines = [f"POST {path} HTTP/{version}", "Host: h", f"Content-Length: {len(data)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + data


def talk(scoring: Scoring, story: Callable[[Callable[[], tuple[Stamped, Wire]]], Awaitable[None]]) -> None:
    """Run a story over connections of one worker, in an event loop of its own."""

    async def told() -> None:
        app = create_app(scoring)
        config = configured(app)
        config.load()
        state = ServerState()

        def connected() -> tuple[Stamped, Wire]:
            protocol, wire = Stamped(config, state, {}), Wire()
            protocol.connection_made(wire)
            return protocol, wire

        await story(connected)
        for connection in list(state.connections):
            connection.connection_lost(None)
        app.deciding.close()

    asyncio.run(told())


async def settled(wire: Wire, count: int = 1) -> list[tuple[int, dict[str, str], dict[str, Any]]]:
    deadline = time.monotonic() + 60
    while len(found := wire.answers()) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.001)
    assert len(found) == count
    return found


def test_requests_in_any_pieces_are_answered_in_order(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        protocol, wire = connected()
        for byte in request({**ASK, "slots": 1}):
            protocol.data_received(bytes([byte]))
        await settled(wire)
        sent = [request({**ASK, "slots": slots}) for slots in (1, 2, 3)] + [
            request(b"nope"),
            request({**ASK, "slots": 4}),
        ]
        protocol.data_received(b"".join(sent))  # pipelined
        found = await settled(wire, 6)
        assert [status for status, _, _ in found] == [200, 200, 200, 200, 400, 200]
        assert [len(body.get("slate", [])) for _, _, body in found] == [1, 1, 2, 3, 0, 4]
        assert all(headers["content-type"] == "application/json" for _, headers, _ in found)
        assert not wire.closed

    talk(scoring, story)
    assert len(decisions(tmp_path)) == 5
    assert scoring.admission.admitted == 0


def test_both_ways_give_the_same_answers(tmp_path: Path) -> None:
    """A request that is unusual in form goes the ASGI way: chunked, large, in another spelling of the path."""
    scoring = in_memory(tmp_path)
    bad: list[Any] = [
        b"",
        b"nope",
        {**ASK, "slots": 0},
        {**ASK, "surface": "nowhere"},
        {**ASK, "candidates": ["a", "a"]},
    ]

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        for body in bad:
            protocol, wire = connected()
            protocol.data_received(request(body))
            other, chunked = connected()
            data = body if isinstance(body, bytes) else encode(body)
            head = b"POST /v1/decisions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            other.data_received(head + (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + b"0\r\n\r\n")
            ((status, _, said),), ((status2, _, said2),) = await settled(wire), await settled(chunked)
            assert (status, said) == (status2, said2)
            assert status >= 400
        large = {**ASK, "candidates": [f"{i:0200d}" for i in range(LARGE_BODY_BYTES // 200 + 1)]}
        protocol, wire = connected()
        protocol.data_received(request(large))
        ((status, _, said),) = await settled(wire)
        assert (status, said["mode"]) == (200, "live")

    talk(scoring, story)
    assert scoring.admission.admitted == 0


def test_connections_close_when_they_are_asked_to_and_when_the_worker_drains(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path)

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        for sent in (request(ASK, "Connection: close"), request(ASK, version="1.0")):
            protocol, wire = connected()
            protocol.data_received(sent)
            ((status, headers, _),) = await settled(wire)
            assert (status, headers["connection"], wire.closed) == (200, "close", True)
        protocol, wire = connected()
        protocol.data_received(request()[:-5])
        scoring.admission.draining = True
        protocol.shutdown()  # as the server does with every connection
        assert not wire.closed
        protocol.data_received(request()[-5:])
        ((status, headers, _),) = await settled(wire)
        assert (status, headers["connection"], wire.closed) == (200, "close", True)

    talk(scoring, story)


def test_a_full_worker_refuses_and_gives_every_place_back(tmp_path: Path) -> None:
    scoring = in_memory(tmp_path, patience=Patience(requests=2, live=60, explain=60, decision=60))

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        waiting = [connected() for _ in range(2)]
        for protocol, _ in waiting:
            protocol.data_received(request()[:-1])
        assert scoring.admission.admitted == 2
        third, wire = connected()
        third.data_received(request())
        ((status, headers, body),) = await settled(wire)
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "1", "overloaded")
        waiting[0][0].connection_lost(None)  # gone before its body came
        assert scoring.admission.admitted == 1
        third.data_received(request())
        assert [status for status, _, _ in await settled(wire, 2)] == [429, 200]
        waiting[1][0].data_received(request()[-1:])
        waiting[1][0].connection_lost(None)  # gone before its answer: nobody would hear it
        third.data_received(request())
        assert [status for status, _, _ in await settled(wire, 3)] == [429, 200, 200]
        assert waiting[1][1].written == b""

    talk(scoring, story)
    assert scoring.admission.admitted == 0
    assert len(decisions(tmp_path)) == 2
    assert 'code="overloaded"} 1.0' in scoring.telemetry.text().decode()


def test_an_own_id_is_claimed_without_holding_the_others_up(tmp_path: Path) -> None:
    class Slow(MemoryClaims):
        def claim(self, *given: Any) -> bytes | None:
            assert answered.wait(60)
            return super().claim(*given)

    answered = threading.Event()
    scoring = in_memory(tmp_path, claims=Slow())

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        (owned, first), (plain, second) = connected(), connected()
        owned.app.deciding._claim_seconds = 60.0  # type: ignore[attr-defined]  # the front
        owned.data_received(request({**ASK, "decision_id": "mine"}))
        plain.data_received(request())
        await settled(second)
        assert first.written == b""
        answered.set()
        ((_, _, one),) = await settled(first)
        owned.data_received(request({**ASK, "decision_id": "mine"}))
        assert (await settled(first, 2))[1][2] == {**one, "mode": "cached"}
        owned.data_received(request({**ASK, "decision_id": "mine", "slots": 1}))
        assert (await settled(first, 3))[2][0] == 409

    talk(scoring, story)
    assert scoring.admission.admitted == 0


def test_a_claims_store_that_hangs_holds_nobody_for_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After as many claims as there are threads, nobody waits at all; when the store is back, claims are claims again."""
    free = threading.Event()

    class Hanging(MemoryClaims):
        visits = 0

        def claim(self, *given: Any) -> bytes | None:
            Hanging.visits += 1
            assert free.wait(60)
            return super().claim(*given)

    scoring = in_memory(tmp_path, claims=Hanging())

    async def story() -> None:
        deciding = Deciding(scoring, claim_seconds=0.05)

        async def ask(name: str) -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(
                await deciding.decide(encode({**ASK, "decision_id": name}), time.perf_counter())
            )
            return answer

        hung = await asyncio.gather(*(ask(f"a{i}") for i in range(CLAIM_THREADS)))
        assert {(answer["mode"], answer["retry_unchecked"]) for answer in hung} == {("live", True)}
        assert [(await ask(f"b{i}"))["retry_unchecked"] for i in range(20)] == [True] * 20
        assert Hanging.visits == CLAIM_THREADS
        whys = [str(getattr(record, "error", "")) for record in caplog.records if record.message == "unclaimed"]
        assert sum("does not answer" in why for why in whys) == 20  # these have not even asked
        free.set()
        deadline = time.monotonic() + 60
        while deciding._hanging and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        deciding._claim_seconds = 60.0
        assert "retry_unchecked" not in await ask("c")
        assert (await ask("c"))["mode"] == "cached"
        deciding.close()

    asyncio.run(story())
    assert len(decisions(tmp_path)) == CLAIM_THREADS + 22


def test_what_is_thrown_at_a_caller_is_the_contracts_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = in_memory(tmp_path)

    def broken(*given: Any) -> Any:
        raise ZeroDivisionError

    def away(*given: Any) -> Any:
        raise Unavailable("away")

    async def story(connected: Callable[[], tuple[Stamped, Wire]]) -> None:
        protocol, wire = connected()
        monkeypatch.setattr(scoring, "read", broken)
        protocol.data_received(request())
        await settled(wire)
        monkeypatch.setattr(scoring, "read", away)
        protocol.data_received(request())
        (fault, _, body), (status, headers, said) = await settled(wire, 2)
        assert (fault, body["error"]["code"]) == (500, "internal")
        assert (status, said["error"]["code"], headers["retry-after"]) == (503, "unavailable", "1")

    talk(scoring, story)
    assert scoring.admission.admitted == 0


@pytest.mark.parametrize(("most", "taken"), [(64, 20), (3, 3)])
def test_connections_that_came_together_are_taken_together(most: int, taken: int) -> None:
    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    made: list[asyncio.BaseTransport] = []

    async def story() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            listener = Listener(bound, Silent, lambda: most)
            callers = [socket.create_connection(bound.getsockname()) for _ in range(20)]
            listener._accept()  # one turn
            together = len(listener._tasks)
            deadline = time.monotonic() + 60
            while len(made) < 20 and time.monotonic() < deadline:
                await asyncio.sleep(0.01)  # the loop calls it for the rest
            listener.close()
            for transport in made:
                transport.close()
            for caller in callers:
                caller.close()
            await asyncio.sleep(0)
            assert (together, len(made)) == (taken, 20)

    asyncio.run(story())
