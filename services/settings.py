"""Settings of every process: one frozen value out of environment variables `SLATEWISE_…` and flags; flags win.

An adapter is picked by a URL; left out, everything lives under the data directory:

    log          sqlite:///…  kafka://host:9092  kafka+confluent://host:9092
    state        sqlite:///…  redis://  rediss://  redis+sentinel://  redis+cluster://
    bundles      file:///…    any URL that fsspec opens, such as s3://bucket/folder
    experiences  the same; empty: settled examples are not written

    log.sqlite dead.sqlite state.sqlite claims.sqlite   spool/ bundles/ shards/<partition>.sqlite metrics/
    training/ (what was settled for trainers, in what order they had it, and their checkpoint)
    server.key salt.*

`state` on Redis holds claims, counters, profiles and pointers, all of which can be rebuilt. The record of surfaces, items
and releases then lies beside the log: on Kafka a compacted topic, else in `state.sqlite` (`semantics.md` 18).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from dataclasses import field as described
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from policies.errors import Rejected

PREFIX = "SLATEWISE_"
ACKNOWLEDGE = ("spool", "log")
DERIVE = ("auto", "off", "on")
SWITCH = ("off", "on")
NUMBERS = ("partitions", "workers", "spool_bytes", "publish_ms", "retention_seconds")
LISTENERS = ("http", "control_http", "metrics_http")
SECRETS, LEAST_SECRET = ("admin_key", "bundle_key"), 32
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")  # a part of counters' and files' names
LOGS = ("sqlite", "kafka", "kafka+confluent")
STATES = ("sqlite", "redis", "rediss", "redis+sentinel", "redis+cluster")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process needs to know before it opens anything.

    http, control_http  host:port of the two listeners
    metrics_http        host:port where learning and settling give out their metrics, each in a container of its own; empty:
                        they share the data folder with scoring, which gives out those of all
    metrics_from        host:port, …: where the ops page reads metrics, a host of several addresses at each; empty: at `http`
    data                folder of the embedded state, and of what a host keeps to itself: spool, shards, snapshots
    keys                folder of the server key and the tenants' salts, the same on every host; None: `data`
    config              folder of surface documents, applied when its content changes; None: what the state record holds
    log, state, bundles, experiences   adapter URLs; empty: under `data`
    kafka_password, redis_password   of the users in `log` and `state`, so that no URL has to hold them
    derive              on: shards derive counters and profiles and keep them in `state`; off: nobody reads them; auto: on where
                        a policy reads what units did before, or a rule what they were shown
    estimates           on: the control service folds what each policy earns from settled decisions, which promotion rests on; off
    drift               on: the control service watches features and residuals of settled decisions for drift; off
    retention_seconds   how long the log keeps records: at least the longest `correctable`, and what checkpoints need
    partitions          partitions of a log that is created here; an existing log keeps its own number
    ray                 auto (local when Ray is installed, else inline) | inline | local | ray://host:port
    workers             scoring processes that share the port
    spool_bytes         quota of a host's spool
    ack                 spool: feedback is accepted when it is on this disk; log: when the log has it
    publish_ms          least time between two publishes of a policy
    api_key             by which commands call a running service; empty: the admin key, if there is one
    admin_key           an admin key without a record; with it listeners may be reached from elsewhere (`services.access`)
    tenant              whose deployment this is: keys of others are refused
    bundle_key          signs bundles where they are published and is asked for where they are drawn from; empty: neither
    otel                OTLP collector that traces are sent to over HTTP, such as http://collector:4318; empty: none are made
    ops_user_header     header of a proxy that names the people it let in to `/ops`; empty: admin keys log in
    ops_proxies         networks, beside loopback, from which that header is believed
    """

    http: str = "127.0.0.1:8080"
    control_http: str = "127.0.0.1:8081"
    metrics_http: str = ""
    metrics_from: str = ""
    data: Path = Path(".slatewise")
    keys: Path | None = None
    config: Path | None = None
    log: str = ""
    state: str = ""
    bundles: str = ""
    experiences: str = ""
    kafka_password: str = described(default="", repr=False)
    redis_password: str = described(default="", repr=False)
    derive: str = "auto"
    estimates: str = "on"
    drift: str = "on"
    retention_seconds: int = 7 * 86_400
    partitions: int = 4
    ray: str = "auto"
    workers: int = 1
    spool_bytes: int = 1 << 30
    ack: str = "spool"
    publish_ms: int = 100
    log_level: str = "info"
    api_key: str = described(default="", repr=False)
    admin_key: str = described(default="", repr=False)
    tenant: str = "default"
    bundle_key: str = described(default="", repr=False)
    otel: str = ""
    ops_user_header: str = ""
    ops_proxies: str = ""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **flags: Any) -> "Settings":
        """Settings of the environment, overridden by the flags that are not None. Raises Rejected, naming the setting."""
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        for field in fields(cls):
            variable = PREFIX + field.name.upper()
            value = flags.pop(field.name, None)
            if value is None:
                value = environ.get(variable)
            if value is not None and value != "":
                found[field.name] = _typed(field.name, variable, value)
        if flags:
            raise TypeError(f"no such settings: {sorted(flags)}")
        return cls(**found)._checked()

    def _checked(self) -> "Settings":
        for name in LISTENERS if self.metrics_http else LISTENERS[:2]:
            host, _ = address(getattr(self, name), PREFIX + name.upper())
            if not _loopback(host) and not self.admin_key:
                # nothing tells callers apart, so nothing but this machine may reach a listener
                raise Rejected(
                    f"Expected a loopback address while no {PREFIX}ADMIN_KEY is configured, got {host}",
                    at=PREFIX + name.upper(),
                )
        _ = self.metrics_sources  # each an address
        for name in SECRETS:
            if 0 < len(getattr(self, name)) < LEAST_SECRET or not getattr(self, name).isascii():
                raise Rejected(f"Expected at least {LEAST_SECRET} ASCII characters", at=PREFIX + name.upper())
        if not TENANT.fullmatch(self.tenant):
            raise Rejected(f"Expected a to z, 0 to 9, _ and -, got {self.tenant!r}", at=PREFIX + "TENANT")
        if not re.fullmatch(r"[A-Za-z0-9-]*", self.ops_user_header):
            raise Rejected(
                f"Expected the name of a header, got {self.ops_user_header!r}", at=PREFIX + "OPS_USER_HEADER"
            )
        for network in filter(None, map(str.strip, self.ops_proxies.split(","))):
            try:
                ip_network(network)
            except ValueError as error:
                raise Rejected(str(error), at=PREFIX + "OPS_PROXIES") from None
        if self.otel and scheme_of(self.otel) not in ("http", "https"):
            raise Rejected(f"Expected http://host:port or https://…, got {self.otel!r}", at=PREFIX + "OTEL")
        for name in NUMBERS:
            if getattr(self, name) < 1:
                raise Rejected(f"Expected at least 1, got {getattr(self, name)}", at=PREFIX + name.upper())
        if self.ack not in ACKNOWLEDGE:
            raise Rejected(f"Expected one of {', '.join(ACKNOWLEDGE)}, got {self.ack!r}", at=PREFIX + "ACK")
        if self.derive not in DERIVE:
            raise Rejected(f"Expected one of {', '.join(DERIVE)}, got {self.derive!r}", at=PREFIX + "DERIVE")
        for name in ("estimates", "drift"):
            if getattr(self, name) not in SWITCH:
                raise Rejected(f"Expected on or off, got {getattr(self, name)!r}", at=PREFIX + name.upper())
        if self.ray not in ("auto", "inline", "local") and not self.ray.startswith("ray://"):
            raise Rejected(f"Expected auto, inline, local or ray://host:port, got {self.ray!r}", at=PREFIX + "RAY")
        for name, schemes in (("log", LOGS), ("state", STATES)):
            url = getattr(self, name)
            if url and scheme_of(url) not in schemes:
                expected = ", ".join(f"{scheme}://…" for scheme in schemes)
                raise Rejected(f"Expected {expected}, got {url!r}", at=PREFIX + name.upper())
        for name in ("bundles", "experiences"):
            if getattr(self, name) and not scheme_of(getattr(self, name)):
                raise Rejected(
                    f"Expected a URL such as file:///path, got {getattr(self, name)!r}", at=PREFIX + name.upper()
                )
        return replace(
            self,
            data=self.data.absolute(),
            keys=self.keys.absolute() if self.keys else None,
            config=self.config.absolute() if self.config else None,
        )

    def environment(self) -> dict[str, str]:
        """The same settings as environment variables, for a child process."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {PREFIX + name.upper(): str(value) for name, value in values if value is not None and value != ""}

    @property
    def bearer(self) -> dict[str, str]:
        """The header by which commands call a running service."""
        key = self.api_key or self.admin_key
        return {"authorization": f"Bearer {key}"} if key else {}

    @property
    def http_address(self) -> tuple[str, int]:
        return address(self.http, PREFIX + "HTTP")

    @property
    def control_address(self) -> tuple[str, int]:
        return address(self.control_http, PREFIX + "CONTROL_HTTP")

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Where a process without routes gives out its metrics."""
        return address(self.metrics_http, PREFIX + "METRICS_HTTP") if self.metrics_http else None

    @property
    def metrics_sources(self) -> dict[str, tuple[str, int]]:
        """What to call it → (host, port), of all whose metrics the ops page reads."""
        named = [one.strip() for one in self.metrics_from.split(",") if one.strip()]
        found = {one: address(one, PREFIX + "METRICS_FROM") for one in named}
        return found or {"scoring": self.http_address}

    @property
    def on_kafka(self) -> bool:
        return scheme_of(self.log).startswith("kafka")

    @property
    def on_redis(self) -> bool:
        return scheme_of(self.state).startswith("redis")

    @property
    def keys_path(self) -> Path:
        return self.keys or self.data

    @property
    def log_path(self) -> Path:
        return path_of(self.log, "sqlite", PREFIX + "LOG") or self.data / "log.sqlite"

    @property
    def state_path(self) -> Path:
        return (
            None if self.on_redis else path_of(self.state, "sqlite", PREFIX + "STATE")
        ) or self.data / "state.sqlite"

    @property
    def claims_path(self) -> Path:
        return self.data / "claims.sqlite"

    @property
    def dead_letters_path(self) -> Path:
        return self.data / "dead.sqlite"

    @property
    def spool_path(self) -> Path:
        return self.data / "spool"

    @property
    def metrics_path(self) -> Path:
        return self.data / "metrics"

    def shard_path(self, partition: int) -> Path:
        return self.data / "shards" / f"{partition}.sqlite"

    def settling_path(self, partition: int) -> Path:
        return self.data / "settling" / f"{partition}.sqlite"

    @property
    def training_path(self) -> Path:
        return self.data / "training" / "order.sqlite"

    def training_settled_path(self, partition: int) -> Path:
        return self.data / "training" / f"{partition}.sqlite"


def address(text: str, at: str) -> tuple[str, int]:
    """(host, port) of `host:port`; an IPv6 host stands in brackets. Raises Rejected."""
    parts = urlsplit(f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Rejected(f"Expected host:port, got {text!r} ({error})", at=at) from None
    if not host or port is None or parts.path:
        raise Rejected(f"Expected host:port, got {text!r}", at=at)
    return host, port


def scheme_of(url: str) -> str:
    """What stands before `://`; empty where nothing does."""
    scheme, found, _ = url.partition("://")
    return scheme if found else ""


def path_of(url: str, scheme: str, at: str) -> Path | None:
    """The path of `scheme:///path` (three slashes: relative, four: absolute, as SQLAlchemy writes it; file:///x is
    absolute); None of an empty URL. Raises Rejected, naming what this build can open."""
    if not url:
        return None
    found, _, rest = url.partition("://")
    if found != scheme or not rest.startswith("/") or len(rest) < 2:
        raise Rejected(f"Expected {scheme}:///path, got {url!r}", at=at)
    return Path(rest) if scheme == "file" else Path(rest[1:])


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _typed(name: str, variable: str, value: Any) -> Any:
    if name in ("data", "keys", "config"):
        return Path(value)
    if name in NUMBERS:
        try:
            return int(value)
        except ValueError:
            raise Rejected(f"Expected int, got {value!r}", at=variable) from None
    return str(value)
