"""A consumer's sockets read a megabyte at a time.

kafka-python's thread reads 4 kB at a time and has to wait for the interpreter after each, up to five milliseconds while a batch is
being joined, so a fetched answer of 4 MB was not there when the batch before it was done. This leans on three of its inner
names; where one is missing, or the connection is encrypted, the library reads as it does.
"""

from functools import partial
from typing import Any

import kafka.errors
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaTCPTransport

POSSIBLE = hasattr(KafkaConnectionManager, "_build_transport") and hasattr(KafkaTCPTransport, "_sock_recv")
RECEIVE_BYTES = 1 << 20


def widen(consumer: Any) -> bool:
    """Let every connection that the consumer makes from now on read this way; False where that cannot be."""
    manager = getattr(consumer, "_manager", None)
    if not POSSIBLE or manager is None:
        return False
    build = manager._build_transport

    async def built(*words: Any, **named: Any) -> Any:
        transport = await build(*words, **named)
        if type(transport) is KafkaTCPTransport:
            transport._sock_recv = partial(_received, transport)
        return transport

    manager._build_transport = built
    return True


def _received(transport: Any) -> tuple[bytes, Exception | None]:
    """(bytes, why the connection is over); no bytes and no reason: nothing there after all."""
    try:
        data = transport._sock.recv(RECEIVE_BYTES)
    except (BlockingIOError, InterruptedError):
        return b"", None
    except OSError as error:
        return b"", kafka.errors.KafkaConnectionError(error)
    return data, None if data else kafka.errors.KafkaConnectionError("socket disconnected")
