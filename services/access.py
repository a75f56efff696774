"""API keys: who may ask for what, resolved in memory from the record that is followed anyway.

    token   sw_<id>_<secret>: the id names the record, the secret is 32 random bytes
    record  kind `key`, under its id: BLAKE2b-256 of the token, scopes, tenant, rate, expiry; never the token

A hash without salt or stretching is enough for 32 random bytes: nobody guesses them. Rotation is two keys that are both
valid until one is revoked. A revoked key's record stays, so that a service which ever had keys never opens by itself.
`SLATEWISE_ADMIN_KEY` is an admin key without a record. Without any key everything is open, which settings allow on loopback only.
"""

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from policies.errors import Rejected
from streaming.ports import State, Versioned

log = logging.getLogger("slatewise.access")
KIND = "key"
SCOPES = ("decide", "feedback", "read", "admin")
ADMIN = "admin"  # may do everything the others may
SECRET_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")  # ends in audit entries and logs: nothing that breaks a line
SETTING = "setting"  # id of the admin key that comes by setting
AT = "$.headers.authorization"


class Key(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A key as it is recorded. Times are epoch seconds; `rate` is requests a second of one worker, None: unlimited."""

    id: str
    name: str
    hash: str
    scopes: list[str]
    created_at: float
    tenant: str = "default"
    expires_at: float | None = None
    rate: float | None = None
    revoked_at: float | None = None


class Limited(Rejected):
    """More requests than the key's rate allows; `retry_after` seconds later there is room for one."""

    def __init__(self, rate: float, retry_after: int) -> None:
        super().__init__(f"More than {rate:g} requests a second of this key", code="rate_limited", status=429)
        self.retry_after = retry_after


class Bucket:
    """A token bucket: `rate` a second, a second's worth at once and never less than one."""

    __slots__ = ("_left", "_most", "_rate", "_then")

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._most = rate, max(1.0, rate)
        self._left, self._then = self._most, now

    def take(self, now: float) -> None:
        """Raises Limited."""
        left = min(self._most, self._left + (now - self._then) * self._rate)
        self._then = now
        if left < 1.0:
            self._left = left
            raise Limited(self._rate, max(1, math.ceil((1.0 - left) / self._rate)))
        self._left = left - 1.0


@dataclass(slots=True)
class Caller:
    """Whoever holds a key: what every request of theirs is checked against."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[str]
    tenant: str
    ends: float = math.inf
    bucket: Bucket | None = None


class Access:
    """The keys of one tenant's deployment. Read by the event loop, fed by whoever follows the record.

    admin_key  the key that comes by setting; empty: none
    clock      epoch seconds, for expiry;   timer  seconds, for rates
    """

    def __init__(
        self,
        tenant: str = "default",
        admin_key: str = "",
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tenant, self._clock, self._timer, self._seen = tenant, clock, timer, 0
        self._callers: dict[bytes, Caller] = {}
        self._admin: Caller | None = None
        if admin_key:
            digest = digest_of(admin_key.encode())
            # the id changes with the key, so that sessions which it opened end when it is replaced
            self._admin = Caller(f"{SETTING}-{digest.hex()[:12]}", ADMIN, digest, frozenset(SCOPES), tenant)
        self.guarded = self._admin is not None

    def follow(self, state: State) -> None:
        """Take in what is newer in the record. Raises Unavailable."""
        while entries := state.read(self._seen):
            self.apply(entries)
            self._seen = entries[-1].version

    def apply(self, entries: Sequence[Versioned]) -> None:
        """Entries of the record, in version order; those of other kinds are passed over."""
        for entry in entries:
            if entry.kind == KIND:
                self.guarded = True  # also when it cannot be read: closed, not open
                self._take(entry)

    def check(self, headers: Iterable[tuple[bytes, bytes]], scope: str) -> Caller | None:
        """Who asks; None while no key is configured. Raises Rejected(401 | 403), Limited."""
        if not self.guarded:
            return None
        caller = self.caller(token_of(headers))
        if scope not in caller.scopes:
            raise Rejected(
                f"The key {caller.name} has the scopes {', '.join(sorted(caller.scopes))}; this needs {scope}",
                at=AT,
                code="forbidden",
                status=403,
            )
        if caller.bucket is not None:
            caller.bucket.take(self._timer())
        return caller

    def caller(self, token: bytes | None) -> Caller:
        """Whose key this is. Raises Rejected: 401 without a valid one, 403 for one of another tenant."""
        if not token:
            raise Rejected("A key is required: Authorization: Bearer …", at=AT, code="unauthenticated", status=401)
        digest = digest_of(token)
        admin = self._admin
        if admin is not None and hmac.compare_digest(digest, admin.digest):
            return admin
        found = self._callers.get(token[3:15]) if token.startswith(b"sw_") else None
        if found is None or not hmac.compare_digest(digest, found.digest) or found.ends <= self._clock():
            raise Rejected("Not a key that is valid here", at=AT, code="unauthenticated", status=401)
        if found.tenant != self.tenant:
            raise Rejected("The key belongs to another tenant", at=AT, code="other_tenant", status=403)
        return found

    def admits(self, key_id: str) -> Caller | None:
        """The admin whose key has this id, as long as it is valid: a session ends with the key that opened it."""
        if self._admin is not None and key_id == self._admin.id:
            return self._admin
        found = self._callers.get(key_id.encode())
        if found is None or found.ends <= self._clock() or ADMIN not in found.scopes or found.tenant != self.tenant:
            return None
        return found

    def _take(self, entry: Versioned) -> None:
        name = entry.key.encode()
        try:
            key = msgspec.json.decode(entry.value, type=Key) if entry.value is not None else None
        except msgspec.MsgspecError as error:
            log.error("key_unreadable", extra={"key": entry.key, "error": str(error)})
            key = None
        if key is None or key.revoked_at is not None:
            self._callers.pop(name, None)
            return
        scopes = frozenset(SCOPES) if ADMIN in key.scopes else frozenset(key.scopes)
        ends = math.inf if key.expires_at is None else key.expires_at
        bucket = None if key.rate is None else Bucket(key.rate, self._timer())
        self._callers[name] = Caller(key.id, key.name, bytes.fromhex(key.hash), scopes, key.tenant, ends, bucket)


def digest_of(token: bytes) -> bytes:
    return hashlib.blake2b(token, digest_size=32).digest()


def token_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token that a request carries. Raises Rejected(401) where two headers carry different ones."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
            token = token.strip()
        elif name == b"x-api-key":
            token = value.strip()
        else:
            continue
        if found is not None and found != token:
            raise Rejected("Two headers carry different keys", at=AT, code="unauthenticated", status=401)
        found = token
    return found


def carries_key(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request means to be let in by a key, right or wrong."""
    return any(
        name == b"x-api-key" or (name == b"authorization" and value[:7].lower() == b"bearer ")
        for name, value in headers
    )


def make(
    name: str,
    scopes: Sequence[str],
    *,
    tenant: str = "default",
    rate: float | None = None,
    expires_at: float | None = None,
    now: float,
) -> tuple[Key, str]:
    """(record, token): the only time that the token is seen. Raises Rejected."""
    if not NAME.fullmatch(name):
        raise Rejected(f"Expected letters, digits and _ . @ -, at most 64, got {name[:80]!r}", at="$.name")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Rejected(f"Expected some of {', '.join(SCOPES)}, got {', '.join(scopes) or 'none'}", at="$.scopes")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise Rejected(f"Expected more than 0 requests a second, got {rate}", at="$.rate")
    if expires_at is not None and not (math.isfinite(expires_at) and expires_at > now):
        raise Rejected("Expected a time that is still to come", at="$.expires_at")
    key_id = secrets.token_hex(6)
    token = f"sw_{key_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    digest = digest_of(token.encode()).hex()
    kept = [scope for scope in SCOPES if scope in scopes]
    return Key(key_id, name, digest, kept, now, tenant, expires_at, rate), token


def keys_in(state: State, tenant: str) -> list[Key]:
    """Records of a tenant, the oldest first. Raises Unavailable."""
    found: dict[str, Key] = {}
    seen = 0
    while entries := state.read(seen):
        for entry in entries:
            if entry.kind == KIND and entry.value is not None:
                key = msgspec.json.decode(entry.value, type=Key)
                if key.tenant == tenant:
                    found[key.id] = key
        seen = entries[-1].version
    return sorted(found.values(), key=lambda key: key.created_at)
