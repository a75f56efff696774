"""Redis URLs: one server, TLS, a service behind Sentinel, a cluster.

redis://user:password@host:6379/0             rediss://… the same over TLS
redis+sentinel://user:password@s1:26379,s2:26379/service/0
redis+cluster://user:password@n1:6379,n2:6379

prefix      before every key and channel: two installations can share a server (default `slatewise`)
timeout_ms  longest wait for a connection and for an answer (default 200); half of it is slow
tls         1: TLS to the servers of a sentinel or cluster URL;   ca: file of certificates to trust
sentinel_username, sentinel_password   of the sentinels themselves
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from policies.errors import Rejected

SCHEMES = ("redis", "rediss", "redis+sentinel", "redis+cluster")
OPTIONS = ("prefix", "timeout_ms", "tls", "ca", "sentinel_username", "sentinel_password")
TIMEOUT_MS = 200.0
_PORTS = {"redis+sentinel": 26379}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is. `service` only with Sentinel; passwords stay out of `repr`, and so out of logs."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    db: int = 0
    service: str = ""
    username: str | None = None
    password: "Secret | None" = None
    prefix: str = "slatewise"
    timeout_seconds: float = TIMEOUT_MS / 1000
    tls: bool = False
    ca: str | None = None
    sentinel_username: str | None = None
    sentinel_password: "Secret | None" = None

    def opener(self) -> Callable[[], Any]:
        """A function that makes a client, which for a cluster asks it where its slots are."""
        return {"redis+sentinel": self._sentinel, "redis+cluster": self._cluster}.get(self.scheme, self._single)

    def _single(self) -> Any:
        [(host, port)] = self.hosts
        return Redis(host, port, db=self.db, retry=_retries(0), **self._wire())

    def _sentinel(self) -> Any:
        sentinels: dict[str, Any] = {
            **self._waits(),
            "username": self.sentinel_username,
            "password": _said(self.sentinel_password),
            "retry": _retries(0),  # one that is down costs its timeout once, then the next is asked
        }
        found = Sentinel(list(self.hosts), sentinel_kwargs=sentinels)  # type: ignore[no-untyped-call]  # untyped library
        return found.master_for(self.service, db=self.db, retry=_retries(0), **self._wire())  # type: ignore[no-untyped-call]  # untyped library

    def _cluster(self) -> Any:
        nodes = [ClusterNode(host, port) for host, port in self.hosts]  # type: ignore[no-untyped-call]  # untyped library
        # after a failover the second try asks the new owner of the slot
        return RedisCluster(startup_nodes=nodes, retry=_retries(1), **self._wire())

    def _waits(self) -> dict[str, Any]:
        # RESP2: nothing here needs more, and a connection is ready one exchange earlier
        timeout = self.timeout_seconds
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "protocol": 2}

    def _wire(self) -> dict[str, Any]:
        wire = {**self._waits(), "username": self.username, "password": _said(self.password)}
        return wire | {"ssl": True, "ssl_ca_certs": self.ca} if self.tls else wire


class Secret(str):
    """Text that does not show itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


def _retries(times: int) -> Retry:
    return Retry(NoBackoff(), times)


def _said(secret: Secret | None) -> str | None:
    return None if secret is None else str.__str__(secret)


def parse_redis(url: str, at: str = "$", password: str = "") -> RedisAddress:
    """`password` where the URL has none. Raises Rejected at `at`, naming what is wrong but never a password."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise Rejected(f"Expected {', '.join(f'{scheme}://…' for scheme in SCHEMES)}, got {parts.scheme!r}://…", at=at)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    for name in options.keys() - set(OPTIONS):
        raise Rejected(f"Unknown option {name!r}, expected {', '.join(OPTIONS)}", at=at)
    login, _, where = parts.netloc.rpartition("@")
    username, _, own = login.partition(":")
    secret = unquote(own) or password
    hosts = tuple(_host(one, _PORTS.get(parts.scheme, 6379), at) for one in where.split(","))
    path = [unquote(piece) for piece in parts.path.split("/") if piece]
    service = ""
    if parts.scheme == "redis+sentinel":
        if not path:
            raise Rejected("Expected redis+sentinel://host:26379/service, got no service", at=at)
        service, *path = path
    elif parts.scheme != "redis+cluster" and len(hosts) > 1:
        raise Rejected("Expected one host; several are redis+sentinel:// or redis+cluster://", at=at)
    if len(path) > 1 or (parts.scheme == "redis+cluster" and path):
        raise Rejected(f"Expected nothing after the hosts' last part, got {'/'.join(path)!r}", at=at)
    return RedisAddress(
        scheme=parts.scheme,
        hosts=hosts,
        db=int(_number(path[0], "a database number", at)) if path else 0,
        service=service,
        username=unquote(username) or None,
        password=Secret(secret) if secret else None,
        prefix=options.get("prefix", "slatewise"),
        timeout_seconds=_number(options.get("timeout_ms", str(TIMEOUT_MS)), "milliseconds", at) / 1000,
        tls=parts.scheme == "rediss" or options.get("tls") == "1",
        ca=options.get("ca"),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=Secret(options["sentinel_password"]) if "sentinel_password" in options else None,
    )


def _host(text: str, port: int, at: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        found = parts.hostname, parts.port or port
    except ValueError as error:
        raise Rejected(f"Expected host:port, got {text!r} ({error})", at=at) from None
    if not found[0]:
        raise Rejected(f"Expected host:port, got {text!r}", at=at)
    return found[0], found[1]


def _number(text: str, what: str, at: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number < 0 or number == float("inf"):
        raise Rejected(f"Expected {what}, got {text!r}", at=at)
    return number
