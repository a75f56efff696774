"""The production adapters on Redis: claims, leases, pointers, counters, profiles. Redis holds only what can be rebuilt.

    claims    lost with Redis: a retry is then drawn afresh, and says so (`semantics.md` 6)
    leases    lost with Redis: what was lent before is lent no more (`policies.reranking.exploration_budget`)
    pointers  the bundle store has them; Redis tells of them sooner (`redis_bundles`)
    counters, profiles   the shards have them, and write them again after a flush (`redis_tables`)

Needs Redis 7: a claim is one `SET … NX GET`. It holds a record and its answer, some 7 kB for an hour, 8 GB at 300 decisions
a second with ids of their own. With `maxmemory` and `maxmemory-policy volatile-ttl` the oldest claims go first and nothing
else does; with `noeviction` a full Redis is one that is away.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from policies.errors import Rejected
from streaming.adapters.redis_bundles import RedisBundles
from streaming.adapters.redis_connection import RedisConnection, connect
from streaming.adapters.redis_tables import RedisCounters, RedisProfiles

__all__ = ["RedisBundles", "RedisClaims", "RedisConnection", "RedisCounters", "RedisLeases", "RedisProfiles", "connect"]

LOOKED_AT = 500  # claims of one trip, some 4 MB


class RedisClaims:
    """One trip a visit. A claim's hour is counted by Redis, so `now` is not used."""

    def __init__(self, client: RedisConnection, *, life_seconds: float = 3600.0) -> None:
        if life_seconds < 0.001:
            raise Rejected(f"Expected at least a millisecond, got {life_seconds} s", at="$.life_seconds")
        self._client, self._life_ms = client, round(life_seconds * 1000)

    def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        held: bytes | None = self._client.ask(lambda client: self._set(client, tenant, decision_id, value))
        return held

    def claim_all(self, tenant: str, claims: Sequence[tuple[str, bytes]], now: float) -> list[bytes | None]:
        def each(client: Any) -> list[bytes | None]:
            with client.pipeline(transaction=False) as pipeline:
                for decision_id, value in claims:
                    self._set(pipeline, tenant, decision_id, value)
                found: list[bytes | None] = pipeline.execute()
                return found

        return self._client.ask(each) if claims else []

    def forget(self, tenant: str, unit: str) -> int:
        """Claims that come meanwhile are of the time after."""
        pattern = _escaped(self._client.name("claim", f"{len(tenant)}", tenant, "")) + "*"
        names: list[bytes] = self._client.ask(lambda client: list(client.scan_iter(match=pattern, count=LOOKED_AT)))
        total = 0
        for start in range(0, len(names), LOOKED_AT):
            some = names[start : start + LOOKED_AT]
            values = self._client.ask(partial(_each, command="get", names=some))
            gone = [
                name
                for name, value in zip(some, values, strict=True)
                if unit.encode() in name or (value is not None and unit.encode() in value)
            ]
            total += sum(self._client.ask(partial(_each, command="delete", names=gone))) if gone else 0
        return total

    def _set(self, client: Any, tenant: str, decision_id: str, value: bytes) -> Any:
        key = self._client.name("claim", f"{len(tenant)}", tenant, decision_id)  # the length keeps tenants apart
        return client.set(key, value, nx=True, get=True, px=self._life_ms)


# KEYS: value   ARGV: held, value, milliseconds   1: exchanged
_EXCHANGE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class RedisLeases:
    """One trip each. What nobody changes for a day goes by itself."""

    def __init__(self, client: RedisConnection, *, life_seconds: float = 86_400.0) -> None:
        self._client, self._life_ms = client, round(life_seconds * 1000)

    def read(self, names: Sequence[str]) -> list[bytes]:
        def values(client: Any) -> list[bytes]:
            with client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.get(self._key(name))
                return [value or b"" for value in pipeline.execute()]

        return self._client.ask(values) if names else []

    def exchange(self, name: str, held: bytes, value: bytes) -> bool:
        words = (held, value, self._life_ms)
        return bool(self._client.ask(lambda client: client.eval(_EXCHANGE, 1, self._key(name), *words)))

    def _key(self, name: str) -> str:
        return self._client.name("lease", name)


def _escaped(name: str) -> str:
    """A name as a pattern of SCAN that matches it alone."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", name)


def _each(client: Any, command: str, names: Sequence[bytes]) -> list[Any]:
    """A command of one key for each of several, in one trip a node."""
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            getattr(pipeline, command)(name)
        found: list[Any] = pipeline.execute()
        return found
