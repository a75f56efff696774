"""Addresses of clusters, and a real one that wants TLS and a password."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.errors import Rejected
from services.loopback import free_port
from services.stack.kafka import Broker
from streaming.adapters.kafka import parse_kafka
from streaming.adapters.kafka_address import KafkaAddress
from tests import kafka_setup
from tests.streaming.children import ROOT

URL = "kafka://reader:s%40fe@one:9092,two:9093?tls=1&sasl=SCRAM-SHA-512&ca=/etc/ca.pem"


def test_a_full_url() -> None:
    found = parse_kafka(URL, "at")
    assert found == KafkaAddress(
        servers=("one:9092", "two:9093"),
        user="reader",
        password="s@fe",
        tls=True,
        sasl="SCRAM-SHA-512",
        ca="/etc/ca.pem",
    )
    assert found.security == "SASL_SSL"
    assert "s@fe" not in repr(found) + str(found)


@pytest.mark.parametrize(
    ("url", "servers", "security", "confluent"),
    [
        ("kafka://host", ("host:9092",), "PLAINTEXT", False),
        ("kafka+confluent://host:1", ("host:1",), "PLAINTEXT", True),
        ("kafka://host?tls=1", ("host:9092",), "SSL", False),
        ("kafka://me:pw@host/", ("host:9092",), "SASL_PLAINTEXT", False),
        ("kafka://[::1]:9094,h", ("[::1]:9094", "h:9092"), "PLAINTEXT", False),
    ],
)
def test_short_urls(url: str, servers: tuple[str, ...], security: str, confluent: bool) -> None:
    found = parse_kafka(url, "at")
    assert (found.servers, found.security, found.confluent) == (servers, security, confluent)


def test_the_password_may_come_from_elsewhere() -> None:
    assert parse_kafka("kafka://me@host?sasl=PLAIN", "at", "secret").password == "secret"
    assert parse_kafka("kafka://me:mine@host?sasl=PLAIN", "at", "secret").password == "mine"
    assert parse_kafka("kafka://host", "at", "secret").password == "", "of nobody"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host", "kafka:// or|kafka://host"),
        ("kafka://", "host:port"),
        ("kafka://host:port", "host:port, got 'host:port'"),
        ("kafka://one,,two", "host:port, got ''"),
        ("kafka://host:99999", "host:port"),
        ("kafka://host/topic", "no path, got '/topic'"),
        ("kafka://host?ssl=1", "tls, sasl and ca, got ssl"),
        ("kafka://host?tls=yes", "tls=0 or tls=1, got 'yes'"),
        ("kafka://me:pw@host?sasl=GSSAPI", "got 'GSSAPI'"),
        ("kafka://host?sasl=PLAIN", "user and sasl together"),
        ("kafka://me@host", "password for me"),
        ("kafka://host?ca=/x", "tls=1 beside ca"),
    ],
)
def test_a_wrong_url_is_named(url: str, said: str) -> None:
    with pytest.raises(Rejected, match=said.replace("?", r"\?")) as caught:
        parse_kafka(url, "SLATEWISE_LOG")
    assert caught.value.at == "SLATEWISE_LOG"
    assert "pw" not in str(caught.value)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """(port, certificate) of a listener that speaks TLS and wants SCRAM."""
    if shutil.which("keytool") is None:
        pytest.skip("needs Java's keytool")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    store, ca = folder / "broker.p12", folder / "ca.pem"
    name = ["-alias", "broker", "-keystore", str(store), "-storepass", "changeit", "-storetype", "PKCS12"]
    made = ["-genkeypair", "-keyalg", "RSA", "-dname", "CN=localhost", "-ext", "SAN=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(["keytool", *made, *name], check=True, capture_output=True, timeout=120)
    subprocess.run(
        ["keytool", "-exportcert", "-rfc", "-file", str(ca), *name], check=True, capture_output=True, timeout=120
    )
    properties = {
        "listeners": f"SECURE://127.0.0.1:{port}",
        "advertised.listeners": f"SECURE://127.0.0.1:{port}",
        "listener.security.protocol.map": "SECURE:SASL_SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "listener.name.secure.ssl.keystore.location": str(store),
        "listener.name.secure.ssl.keystore.password": "changeit",
        "listener.name.secure.ssl.keystore.type": "PKCS12",
    }
    with kafka_setup.broker(properties=properties, users={"slatewise": "s@fe"}) as broker:
        assert isinstance(broker, Broker)
        yield port, ca


SPEAK = """
import sys, time
from contextlib import closing
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from policies.errors import Unavailable
from streaming.adapters.kafka import KafkaLog, KafkaState, parse_kafka
from streaming.adapters.kafka_confluent import ConfluentLog

kind, address = sys.argv[2], parse_kafka(sys.argv[3], "at", sys.argv[4])
try:
    if kind == "KafkaState":
        with closing(KafkaState(address, sys.argv[5], clock=time.monotonic, timeout_seconds=20.0)) as state:
            print(state.put([("item", "a", b"1")]))
    else:
        log = {"KafkaLog": KafkaLog, "ConfluentLog": ConfluentLog}[kind](
            address, topic=sys.argv[5], partitions=1, positions=Path(sys.argv[6]), clock=time.monotonic,
            timeout_seconds=float(sys.argv[7]),
        )
        with closing(log):
            log.append([(b"k", b"said over TLS")])
            print(log.read(0, 0, 10)[0].value.decode())
except Unavailable as error:
    print("Unavailable", error)
"""


def speak(kind: str, url: str, password: str, folder: Path, seconds: float = 20.0) -> str:
    """What a process of its own says: kafka-python leaves sockets of TLS open when it is closed, a warning here."""
    command = [sys.executable, "-c", SPEAK, ROOT, kind, url, password, kafka_setup.fresh(), folder, seconds]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("kind", ["KafkaLog", "ConfluentLog"])
def test_tls_and_a_password(secure: tuple[int, Path], kind: str, tmp_path: Path) -> None:
    port, ca = secure
    assert speak(kind, f"kafka://slatewise@127.0.0.1:{port}?tls=1&ca={ca}", "s@fe", tmp_path) == "said over TLS"


def test_the_record_over_tls(secure: tuple[int, Path], tmp_path: Path) -> None:
    port, ca = secure
    assert speak("KafkaState", f"kafka://slatewise@127.0.0.1:{port}?tls=1&ca={ca}", "s@fe", tmp_path) == "1"


@pytest.mark.parametrize("wrong", ["password", "certificate"])
def test_who_may_not_in_is_unavailable_and_told_why(secure: tuple[int, Path], tmp_path: Path, wrong: str) -> None:
    port, ca = secure
    password, trusted = ("guess", f"&ca={ca}") if wrong == "password" else ("s@fe", "")
    said = speak("KafkaLog", f"kafka://slatewise@127.0.0.1:{port}?tls=1{trusted}", password, tmp_path, 3.0)
    assert said.startswith("Unavailable")
    assert "guess" not in said
