"""Decisions answered without a task, ASGI messages or a second write; what is unusual goes the ASGI way.

    usual    POST /v1/decisions, a body of known and modest size, alone on its connection, a caller who reads

Whole requests wait in one queue, oldest first, and are answered for `SLICE_SECONDS` at a time: between slices the event
loop reads and accepts, so the age of a request counts from when it came, and feedback and health wait for no queue.
"""

import asyncio
from collections import deque
from http import HTTPStatus
from time import perf_counter
from typing import Protocol

from policies.errors import Rejected, SlatewiseError
from services.scoring.admission import overloaded
from services.scoring.decide import Made
from services.scoring.deciding import Deciding
from services.scoring.replies import error_bytes, more_of, status_of

SLICE_SECONDS = 0.001
HEAD = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n"
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Connection(Protocol):
    """Where an answer goes."""

    def send(self, answer: bytes, *, keep: bool) -> None:
        """Write a whole response, then wait for the next request or close."""


class Whole:
    """One request on its connection, from its headers to its answer. It stands where uvicorn keeps its own cycle, so
    the attributes that uvicorn reads and sets have its names."""

    __slots__ = (
        "admitted",
        "body",
        "connection",
        "disconnected",
        "first_byte",
        "keep_alive",
        "more_body",
        "queued",
        "refused",
        "response_complete",
    )

    def __init__(
        self,
        connection: Connection,
        first_byte: float,
        keep_alive: bool,
        admitted: bool,
        refused: Rejected | None = None,
    ) -> None:
        self.connection, self.first_byte, self.keep_alive = connection, first_byte, keep_alive
        self.admitted, self.queued, self.body = admitted, False, b""
        self.refused = refused
        self.more_body, self.response_complete, self.disconnected = True, False, False

    @property
    def message_event(self) -> "Whole":
        return self

    def set(self) -> None:
        """Nobody waits for parts: the queue takes the request when it is whole."""


class Queue:
    """Whole requests of a worker, answered in the order they came."""

    def __init__(self, deciding: Deciding) -> None:
        self._deciding, self._admission = deciding, deciding.scoring.admission
        self._waiting: deque[Whole] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._working = False

    def put(self, whole: Whole) -> None:
        """A request that has come to its end."""
        if not whole.admitted:
            self._reply(whole, self._deciding.failed(whole.refused or overloaded()))
            return
        whole.queued = True
        self._waiting.append(whole)
        if not self._working:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work)

    def forget(self, whole: Whole) -> None:
        """The caller is gone; a place that was taken for what never came is given back."""
        if whole.admitted and not whole.queued and not whole.response_complete:
            whole.queued = True
            self._admission.leave()

    def _work(self) -> None:
        until = perf_counter() + SLICE_SECONDS
        while self._waiting:
            self._answer(self._waiting.popleft())
            if perf_counter() > until:
                break
        self._working = bool(self._waiting)
        if self._working:
            asyncio.get_running_loop().call_soon(self._work)

    def _answer(self, whole: Whole) -> None:
        if whole.disconnected:  # nobody is there to hear it
            self._admission.leave()
            return
        try:
            begun = self._deciding.begin(whole.body, whole.first_byte)
        except Exception as error:  # noqa: BLE001 - a fault of ours: the caller gets the contract's error body, the log the trace
            self._end(whole, self._deciding.failed(error))
            return
        if isinstance(begun, bytes):
            self._end(whole, begun)
            return
        task = asyncio.get_running_loop().create_task(self._claimed(whole, begun))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _claimed(self, whole: Whole, made: Made) -> None:
        try:
            answer: bytes | SlatewiseError = await self._deciding.end(made)
        except Exception as error:  # noqa: BLE001 - as above
            answer = self._deciding.failed(error)
        self._end(whole, answer)

    def _end(self, whole: Whole, answer: bytes | SlatewiseError) -> None:
        self._admission.leave()
        self._reply(whole, answer)

    def _reply(self, whole: Whole, answer: bytes | SlatewiseError) -> None:
        keep = whole.keep_alive and not self._admission.draining
        more = b"" if keep else b"connection: close\r\n"
        status = 200
        if not isinstance(answer, bytes):
            error, status = answer, status_of(answer)
            answer = error_bytes(error)
            more += b"".join(f"{name}: {value}\r\n".encode() for name, value in more_of(error, status).items())
        whole.response_complete = True
        if not whole.disconnected:
            whole.connection.send(HEAD % (status, REASONS[status], len(answer), more) + answer, keep=keep)
