"""Where a Kafka cluster is and how to speak to it, out of one URL; and its errors as the error tree.

    kafka://[user[:password]@]host[:port][,host[:port]…][?tls=1&sasl=SCRAM-SHA-512&ca=/path/to/ca.pem]
    kafka+confluent://…    the same by confluent-kafka

kafka-python leaves a thread and sockets behind when a cluster does not answer its first call. So `client` looks first
whether anything listens, and closes what a failed start has opened: a long outage must cost nothing but time.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from kafka import errors
from kafka.net.compat import KafkaNetClient

from policies.errors import Corrupt, Rejected, Unavailable

Client = TypeVar("Client")
_said = logging.getLogger("kafka")
if (
    _said.level == logging.NOTSET
):  # what matters is in the errors that are raised; that one writer ends another is no error
    _said.setLevel(logging.CRITICAL)
SCHEMES = {"kafka": False, "kafka+confluent": True}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PORT = 9092
CLIENT_ID = "slatewise"
_RECONNECT_MS = 1_000  # kafka-python's 30 s would keep the loop still long after a cluster is back
_KNOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """A cluster. `servers` are host:port; `confluent` picks the client; the password is never shown."""

    servers: tuple[str, ...]
    confluent: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    sasl: str = ""
    ca: str = ""

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}"

    @property
    def security(self) -> str:
        """Kafka's name of it: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
        return ("SASL_" if self.sasl else "") + ("SSL" if self.tls else "PLAINTEXT")

    def options(self, timeout_seconds: float) -> dict[str, Any]:
        """What every kafka-python client of this cluster is made with."""
        return {
            "bootstrap_servers": list(self.servers),
            "client_id": CLIENT_ID,
            "security_protocol": self.security,
            "sasl_mechanism": self.sasl or None,
            "sasl_plain_username": self.user or None,
            "sasl_plain_password": self.password or None,
            "ssl_cafile": self.ca or None,
            "request_timeout_ms": int(timeout_seconds * 1000),
            "bootstrap_timeout_ms": int(timeout_seconds * 1000),
            "reconnect_backoff_max_ms": _RECONNECT_MS,
        }

    def confluent_options(self) -> dict[str, Any]:
        """What every confluent-kafka client of this cluster is made with."""
        found = {
            "bootstrap.servers": ",".join(self.servers),
            "client.id": CLIENT_ID,
            "security.protocol": self.security,
            "sasl.mechanism": self.sasl,
            "sasl.username": self.user,
            "sasl.password": self.password,
            "ssl.ca.location": self.ca,
        }
        fixed = {
            "reconnect.backoff.max.ms": _RECONNECT_MS,
            "log_level": 0,
        }  # it would write to standard error by itself
        return {name: value for name, value in found.items() if value} | fixed


def parse_kafka(url: str, at: str, password: str = "") -> KafkaAddress:
    """The address in a URL; `password` stands in for one that the URL does not hold. Raises Rejected, naming `at`."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise Rejected(f"Expected {' or '.join(f'{name}://host:port' for name in SCHEMES)}", at=at)
    logon, _, hosts = parts.netloc.rpartition("@")
    user, _, given = logon.partition(":")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = options.keys() - {"tls", "sasl", "ca"}
    if unknown:
        raise Rejected(f"Expected the options tls, sasl and ca, got {', '.join(sorted(unknown))}", at=at)
    if parts.path not in ("", "/"):
        raise Rejected(f"Expected no path, got {parts.path!r}", at=at)
    if options.get("tls", "0") not in ("0", "1"):
        raise Rejected(f"Expected tls=0 or tls=1, got {options['tls']!r}", at=at)
    sasl = options.get("sasl", "SCRAM-SHA-512" if user else "")
    if sasl and sasl not in MECHANISMS:
        raise Rejected(f"Expected sasl to be one of {', '.join(MECHANISMS)}, got {sasl!r}", at=at)
    if bool(sasl) != bool(user):
        raise Rejected("Expected a user and sasl together: kafka://user@host:9092?sasl=SCRAM-SHA-512", at=at)
    found = KafkaAddress(
        servers=tuple(_server(text, at) for text in hosts.split(",")),
        confluent=SCHEMES[parts.scheme],
        user=unquote(user),
        password=unquote(given) or (password if user else ""),
        tls=options.get("tls") == "1",
        sasl=sasl,
        ca=options.get("ca", ""),
    )
    if found.ca and not found.tls:
        raise Rejected("Expected tls=1 beside ca", at=at)
    if found.sasl and not found.password:
        raise Rejected(f"Expected a password for {found.user}, in the URL or in SLATEWISE_KAFKA_PASSWORD", at=at)
    return found


def _server(text: str, at: str) -> str:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise Rejected(f"Expected host:port, got {text!r}", at=at)
    return f"[{host}]:{port or PORT}" if ":" in host else f"{host}:{port or PORT}"


@contextmanager
def named(address: KafkaAddress) -> Iterator[None]:
    """kafka-python's errors as ours: Unavailable for whatever time or an operator mends, Corrupt for the record at hand."""
    try:
        yield
    except errors.OffsetOutOfRangeError as error:
        raise Corrupt("offset_out_of_range", str(error)) from error
    except (errors.CorruptRecordError, errors.UnsupportedCodecError) as error:
        raise Corrupt("log_record", str(error)) from error
    except (errors.KafkaError, OSError) as error:
        raise Unavailable(f"{address}: {type(error).__name__}: {error}") from error


def client(kind: Callable[..., Client], address: KafkaAddress, timeout_seconds: float, **options: Any) -> Client:
    """A kafka-python client that has reached the cluster, or nothing left of it. Raises Unavailable."""
    knock(address)
    made: list[Any] = []

    def net(*arguments: Any, **settings: Any) -> Any:
        made.append(KafkaNetClient(*arguments, **settings))
        return made[-1]

    try:
        with named(address):
            return kind(**address.options(timeout_seconds), kafka_client=net, **options)
    except BaseException:
        for one in made:
            one.close()
        raise


def knock(address: KafkaAddress) -> None:
    """Raises Unavailable when none of the servers takes a connection."""
    for server in address.servers:
        host, _, port = server.rpartition(":")
        with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS):
            return
    raise Unavailable(f"{address}: nothing listens there")
