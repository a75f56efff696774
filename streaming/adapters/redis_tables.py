"""Counters and profiles in Redis: one hash a partition, whose field "" is the mark, so that they are lost together.

A write of what changed is one script. A write of everything goes to a hash beside it, in pieces small enough for the
timeout, which then takes the old one's place in one step; readers see the old values, then the new.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from streaming.adapters.redis_connection import RedisConnection
from streaming.adapters.tables import TableCounters, TableProfiles
from streaming.ports import Mark

PIECE = 500  # rows in one exchange
STAGE_SECONDS = 60  # what an owner that died was about to write goes by itself

_HELD = """
local held = redis.call('HGET', KEYS[1], '')
local epoch, offset = string.match(held or '-1 -1', '^(-?%d+) (-?%d+)$')
epoch, offset = tonumber(epoch), tonumber(offset)
local to_epoch, to_offset = tonumber(ARGV[1]), tonumber(ARGV[2])
if epoch > to_epoch or (epoch == to_epoch and offset >= to_offset) then return 1 end
"""
# KEYS: rows   ARGV: epoch, offset, since: epoch, offset, then name, value, …   1: it is there, 0: write all
_CHANGE = (
    _HELD
    + """
if epoch ~= tonumber(ARGV[3]) or offset ~= tonumber(ARGV[4]) then return 0 end
for i = 5, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('HSET', KEYS[1], '', ARGV[1] .. ' ' .. ARGV[2])
return 1
"""
)
# KEYS: rows, beside   ARGV: epoch, offset
_REPLACE = (
    _HELD
    + """
redis.call('HSET', KEYS[2], '', ARGV[1] .. ' ' .. ARGV[2])
redis.call('PERSIST', KEYS[2])
redis.call('RENAME', KEYS[2], KEYS[1])
return 1
"""
)


class RedisTable:
    def __init__(self, client: RedisConnection, kind: str) -> None:
        self._client, self._kind = client, kind

    def write(self, partition: int, mark: Mark, rows: Mapping[str, bytes], since: Mark | None) -> bool:
        key = self._key(partition)
        if since is None:
            self._replace(key, mark, rows)
            return True
        words: list[Any] = [*mark, *since]
        for name, value in rows.items():
            words += (name, value)
        return bool(self._client.ask(lambda client: client.eval(_CHANGE, 1, key, *words)))

    def read(self, wanted: Mapping[int, Sequence[str]]) -> Mapping[int, Sequence[bytes | None]]:
        def rows(client: Any) -> list[Sequence[bytes | None]]:
            with client.pipeline(transaction=False) as pipeline:
                for partition, names in wanted.items():
                    pipeline.hmget(self._key(partition), list(names))
                found: list[Sequence[bytes | None]] = pipeline.execute()
                return found

        return dict(zip(wanted, self._client.ask(rows), strict=True))

    def forget(self, wanted: Mapping[int, Sequence[str]]) -> int:
        def taken(client: Any) -> int:
            with client.pipeline(transaction=False) as pipeline:
                for partition, names in wanted.items():
                    pipeline.hdel(self._key(partition), *names)
                return sum(pipeline.execute())

        return self._client.ask(taken)

    def _replace(self, key: str, mark: Mark, rows: Mapping[str, bytes]) -> None:
        beside = f"{key}:{mark.epoch}"
        self._client.ask(lambda client: client.delete(beside))
        for piece in _pieces(rows):

            def put(client: Any, piece: dict[str, bytes] = piece) -> None:
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.hset(beside, mapping=piece)
                    pipeline.expire(beside, STAGE_SECONDS)
                    pipeline.execute()

            self._client.ask(put)
        self._client.ask(lambda client: client.eval(_REPLACE, 2, key, beside, *mark))

    def _key(self, partition: int) -> str:
        return f"{{{self._client.name(self._kind, str(partition))}}}"  # braces: what lies beside it is on the same node


def _pieces(rows: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    left = ((name, row) for name, row in rows.items() if row)
    while piece := dict(islice(left, PIECE)):
        yield piece


class RedisCounters(TableCounters):
    """`partitions` are the log's; a read is one exchange."""

    def __init__(self, client: RedisConnection, partitions: int = 1) -> None:
        super().__init__(RedisTable(client, "counters"), partitions)


class RedisProfiles(TableProfiles):
    """`partitions` are the log's; a read is one exchange."""

    def __init__(self, client: RedisConnection, partitions: int = 1) -> None:
        super().__init__(RedisTable(client, "profiles"), partitions)
