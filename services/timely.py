"""Connections that must get on with it: a request whose head or body dawdles loses its connection, and its place with it.

A caller that sends a byte now and then would else hold one of the few places of a worker for ever. One timer a connection
runs while a request is incomplete; a request that comes in one piece, as almost all do, never starts it.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLOW_SECONDS = 10.0  # from a request's first byte to its last; a new connection may be silent for as long
BODY = b'{"error":{"code":"slow","message":"The request took more than %d s to arrive","at":"$"}}' % SLOW_SECONDS
ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
    % (len(BODY), BODY)
)


class Timely(HttpToolsProtocol):
    """uvicorn's protocol with a clock on what is incomplete."""

    _patience: asyncio.TimerHandle | None = None
    _incomplete = True  # nothing has come yet

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(SLOW_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._incomplete:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None:
            self._patience = self.loop.call_later(SLOW_SECONDS, self._too_slow)

    def on_message_begin(self) -> None:
        self._incomplete = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._incomplete = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if not self._owed:
            self.transport.write(ANSWER)
        self.transport.close()

    @property
    def _owed(self) -> bool:
        """Whether an earlier request has not got all of its answer: ours would be taken for it, or end up inside it."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        return bool(self.pipeline or not cycle.more_body or getattr(cycle, "response_started", False))
