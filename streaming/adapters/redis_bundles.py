"""Bundles whose pointers Redis tells of: the store has the files and the last word, Redis makes a move known at once.

    move    the store first, then one script in Redis: refuse a passed epoch, write the pointer, publish it
    follow  a thread holds every pointer in memory: what is published arrives within milliseconds; four times a second it
            looks at Redis (a message can be lost) and once a second at the store (Redis can be flushed, or be of another
            life): what differs is written to Redis again, unless it has moved meanwhile
    away    while Redis does not answer the thread reads the store ten times a second; a move is then only in the store

Redis' values are `epoch number bundle`; the number is Redis' own time in µs, never going back within a pointer, so an old
message never undoes a new one, and a flush starts nothing from zero.
"""

import threading
from contextlib import suppress
from typing import Any, NamedTuple

from policies.errors import Corrupt, Unavailable
from streaming.adapters.redis_connection import RedisConnection
from streaming.adapters.rules import refuse_outrun
from streaming.ports import Bundles

LOOK_SECONDS, STORE_SECONDS, AWAY_SECONDS = 0.25, 1.0, 0.1

# KEYS: pointers   ARGV: channel, policy, epoch, bundle, and to mend only: what the pointer still has to be
# answers the new value, or a negative epoch that has passed this one, or 0 when there was nothing left to mend
_MOVE = """
local held = redis.call('HGET', KEYS[1], ARGV[2])
if ARGV[5] and (held or '') ~= ARGV[5] then return 0 end
local epoch, number = string.match(held or '', '^(%d+) (%d+) ')
if epoch and not ARGV[5] and tonumber(epoch) > tonumber(ARGV[3]) then return -tonumber(epoch) end
local time = redis.call('TIME')
number = math.max(tonumber(number or 0) + 1, tonumber(time[1]) * 1000000 + tonumber(time[2]))
local value = ARGV[3] .. ' ' .. string.format('%.0f', number) .. ' ' .. ARGV[4]
redis.call('HSET', KEYS[1], ARGV[2], value)
redis.call('PUBLISH', ARGV[1], ARGV[2] .. '\\n' .. value)
return value
"""


class Told(NamedTuple):
    """A pointer as Redis has it."""

    number: int
    bundle: str
    raw: bytes


class RedisBundles:
    """Wraps a store. `pointers()` is memory once it was read; the thread that keeps it fresh starts with the first call."""

    def __init__(self, bundles: Bundles, client: RedisConnection) -> None:
        self._store, self._client = bundles, client
        self._key, self._channel = client.name("pointers"), client.name("moved")
        self._lock = threading.Lock()
        self._pointers: dict[str, str] | None = None
        self._told: dict[str, Told] = {}
        self._closed = threading.Event()
        self._follower: threading.Thread | None = None
        self.following = False  # whether a subscription stands, for metrics

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data)

    def get(self, name: str) -> bytes:
        return self._store.get(name)

    def names(self, folder: str) -> list[str]:
        return self._store.names(folder)

    def remove(self, name: str) -> None:
        self._store.remove(name)

    def epochs(self) -> dict[str, int]:
        return self._store.epochs()

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        """Raises Rejected('fenced'), Unavailable when the store is away; Redis away is no error, the thread tells it later."""
        self._store.point(policy, bundle, epoch)
        try:
            answer = self._move(policy, epoch, bundle)
            if isinstance(answer, int):
                # the store has the last word: either another owner has passed us since, or Redis is of another life
                refuse_outrun(epoch, self._store.epochs().get(policy, epoch))
                held = self._held().get(policy)
                answer = self._move(policy, epoch, bundle, b"" if held is None else held.raw)
            if isinstance(answer, bytes):
                self._take(policy, _told(answer))
        except Unavailable:
            with self._lock:
                if self._pointers is not None:
                    self._pointers[policy] = bundle

    def pointers(self) -> dict[str, str]:
        if self._closed.is_set() or (self._follower is not None and not self._follower.is_alive()):
            return self._store.pointers()  # nobody keeps memory fresh
        if self._pointers is None:
            found = self._first()
            with self._lock:
                if self._pointers is None:
                    self._pointers = found
                    self._follower = threading.Thread(target=self._follow, name="pointers", daemon=True)
                    self._follower.start()
        with self._lock:
            return dict(self._pointers)

    def _first(self) -> dict[str, str]:
        try:
            return self._store.pointers()
        except Unavailable:
            held = {policy: told.bundle for policy, told in self._held().items() if told.bundle}
            if not held:
                raise
            return held

    def close(self) -> None:
        """Ends the thread; the connection and the store are their openers'."""
        self._closed.set()
        if self._follower is not None:
            self._follower.join()

    # -- Redis -------------------------------------------------------------------------------------------------------

    def _move(self, policy: str, epoch: int, bundle: str, still: bytes | None = None) -> bytes | int:
        words: list[str | bytes | int] = [self._channel, policy, epoch, bundle]
        if still is not None:
            words.append(still)
        answer: bytes | int = self._client.ask(lambda client: client.eval(_MOVE, 1, self._key, *words))
        return answer

    def _held(self) -> dict[str, Told]:
        found: dict[bytes, bytes] = self._client.ask(lambda client: client.hgetall(self._key))
        return {policy.decode(): _told(value) for policy, value in found.items()}

    # -- the thread --------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                with self._client.subscribed(self._channel) as listening:
                    self._listen(listening)
            except (Unavailable, Corrupt):
                self.following = False
            with suppress(Unavailable, Corrupt):  # then memory is the best there is
                found = self._store.pointers()
                with self._lock:
                    self._pointers = found
            self._closed.wait(AWAY_SECONDS)

    def _listen(self, listening: Any) -> None:
        clock = self._client.clock
        self._look(store=True)  # after subscribing, so nothing falls between
        self.following = True
        looked = stored = clock()
        while not self._closed.is_set():
            message = listening.get_message(timeout=max(looked + LOOK_SECONDS - clock(), 0.0))
            if message is not None:
                policy, _, value = message["data"].partition(b"\n")
                self._take(policy.decode(errors="replace"), _told(value))
            now = clock()
            if now >= looked + LOOK_SECONDS:
                looked = now
                due = now >= stored + STORE_SECONDS
                stored = now if due else stored
                self._look(store=due)

    def _look(self, *, store: bool) -> None:
        """Take what Redis has; with `store`, and where Redis has lost something, mend Redis first."""
        held = self._held()
        with self._lock:
            lost = self._told.keys() - held.keys()
        if store or lost:
            with suppress(Unavailable, Corrupt):  # the store's turn comes again
                self._mend(held)
                return
        for policy, told in held.items():
            self._take(policy, told)

    def _mend(self, held: dict[str, Told]) -> None:
        """Make Redis say what the store says, which is read later and so is at least as new."""
        epochs, pointers = self._store.epochs(), self._store.pointers()
        for policy, bundle in pointers.items():
            found = held.get(policy)
            if found is None or found.bundle != bundle:
                answer = self._move(policy, epochs.get(policy, 0), bundle, b"" if found is None else found.raw)
                if isinstance(answer, int):
                    continue  # it has moved meanwhile, and tells of it
                found = _told(answer)
            with self._lock:
                self._told.pop(policy, None)  # the store's word, even if Redis' time has gone back since
            self._take(policy, found)

    def _take(self, policy: str, told: Told) -> None:
        with self._lock:
            before = self._told.get(policy)
            if told.bundle and (before is None or told.number >= before.number):
                self._told[policy] = told
                if self._pointers is not None:
                    self._pointers[policy] = told.bundle


def _told(value: bytes) -> Told:
    """What is not ours to read has number 0 and no bundle: it is mended by the store."""
    parts = value.decode(errors="replace").split(" ", 2)
    if len(parts) == 3 and parts[1].isdecimal():
        return Told(int(parts[1]), parts[2], value)
    return Told(0, "", value)
