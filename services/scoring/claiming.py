"""One answer for each caller's decision id: what a claim holds, and when two requests are the same (`semantics.md` 6)."""

from collections.abc import Callable
from hashlib import blake2b

import msgspec
from msgspec import Struct

from services.scoring.wire import DecisionRequest


class Claimed(Struct, array_like=True):
    """Enough for any replica to give the same answer and to log it."""

    request: bytes
    unit: str
    record: bytes
    answer: bytes


pack: Callable[[Claimed], bytes] = msgspec.msgpack.Encoder().encode
unpack: Callable[[bytes], Claimed] = msgspec.msgpack.Decoder(Claimed).decode


def request_hash(request: DecisionRequest) -> bytes:
    """Of the decoded request, but for what does not change the answer."""
    same = msgspec.structs.replace(request, deadline_ms=None, explain=False)
    plain = msgspec.to_builtins(same, str_keys=True)  # slots of pins are numbers, which cannot be sorted as keys
    return blake2b(msgspec.json.encode(plain, order="sorted"), digest_size=16).digest()
