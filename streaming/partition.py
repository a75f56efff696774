"""Which partition a key belongs to: murmur2 as Kafka's Java client has it, so every producer and log agree.

    partition = (murmur2(key) & 0x7fffffff) mod partitions

Source   org.apache.kafka.common.utils.Utils.murmur2 (Austin Appleby's MurmurHash2, seed 0x9747b28c)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = 0x5BD1E995
_U32 = 0xFFFFFFFF
_BATCH = 16  # below this many keys the scalar loop is the faster one


def murmur2(key: bytes) -> int:
    """32-bit MurmurHash2 of a key, unsigned."""
    length = len(key)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _U32
        h = (h * _M & _U32) ^ ((k ^ k >> 24) * _M & _U32)
    if whole < length:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _M & _U32
    h = (h ^ h >> 13) * _M & _U32
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """Partition of one key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def partitions_of(keys: Sequence[bytes], partitions: int) -> list[int]:
    """Partition of each key; many keys of one length (unit hashes are all 16 digits) are hashed together."""
    if partitions == 1:
        return [0] * len(keys)
    if len(keys) < _BATCH or len(set(map(len, keys))) > 1:
        return [partition_of(key, partitions) for key in keys]
    found: list[int] = ((_murmur2_rows(keys) & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).tolist()
    return found


def _murmur2_rows(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """`murmur2` of keys of one length, all at once; uint32 arithmetic wraps as the hash wants it to."""
    length = len(keys[0])
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), length)
    whole = length & ~3
    m = np.uint32(_M)
    h = np.full(len(keys), _SEED ^ length, np.uint32)
    words = np.ascontiguousarray(rows[:, :whole]).view("<u4")
    for column in range(whole // 4):
        k = words[:, column] * m
        h = h * m ^ (k ^ k >> np.uint32(24)) * m
    if whole < length:
        tail = np.zeros(len(keys), np.uint32)
        for column in range(whole, length):
            tail |= rows[:, column].astype(np.uint32) << np.uint32(8 * (column - whole))
        h = (h ^ tail) * m
    h = (h ^ h >> np.uint32(13)) * m
    return h ^ h >> np.uint32(15)
