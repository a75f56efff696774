"""A real Kafka broker on this machine, without Docker: for tests and `make stack`.

    jars    fetched once by Maven (`deploy/kafka/pom.xml`) into the cache folder, named by what the pom says
    node    one process, broker and controller in one (KRaft), on loopback, in a folder that it formats when it is empty
    stop    by its process id; what it held is there when it starts again in the same folder on the same port

One node with one replica keeps what it acknowledged through its own death, not through that of its disk.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from policies.errors import Unavailable
from services.loopback import free_port

POM = Path(__file__).parents[2] / "deploy" / "kafka" / "pom.xml"
CLUSTER_ID = "c2xhdGV3aXNlLXN0YWNrMQ"  # 16 bytes in base64, as Kafka wants it
FETCH_SECONDS, FORMAT_SECONDS, START_SECONDS, STOP_SECONDS = 600.0, 60.0, 90.0, 30.0
POLL_SECONDS = 0.05
JVM = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # a small broker that starts fast


def missing() -> str | None:
    """Why no broker can be started here; None when one can."""
    for command, what in (("java", "Java 17 or newer"), ("mvn", "Maven")):
        if shutil.which(command) is None and not (command == "mvn" and jars_folder().is_dir()):
            return f"needs {what}, and there is no {command} on this machine"
    return None


def jars_folder() -> Path:
    """Where the jars of this pom lie once they are fetched: $SLATEWISE_CACHE, or the user's cache folder."""
    cache = Path(os.environ.get("SLATEWISE_CACHE") or Path.home() / ".cache" / "slatewise")
    return cache / f"kafka-{hashlib.sha256(POM.read_bytes()).hexdigest()[:12]}"


def fetch() -> Path:
    """The folder of jars, fetched if it is not there; whole or absent, whoever fetches at once. Raises Unavailable."""
    folder = jars_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", "-DincludeScope=runtime"]
        _run([*command, f"-DoutputDirectory={place}/jars"], FETCH_SECONDS, os.environ)
        try:
            (Path(place) / "jars").rename(folder)
        except OSError:
            if not folder.is_dir():  # someone else's copy is as good
                raise
    return folder


@dataclass
class Broker:
    """A broker over a folder. `start` returns when it answers; `bootstrap` is its host:port.

    properties  settings beyond ours, as in server.properties
    users       name → password, for listeners with SCRAM; made when the folder is formatted
    """

    folder: Path
    port: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _controller: int = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    def start(self) -> "Broker":
        """Raises Unavailable, with the end of what the broker said."""
        jars = fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self._controller = self.port or free_port(), self._controller or free_port()
        settings = self.folder / "server.properties"
        settings.write_text("".join(f"{name}={value}\n" for name, value in self._settings().items()))
        java = ["java", *JVM, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{jars}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            users = [f"SCRAM-SHA-512=[name={name},password={password}]" for name, password in self.users.items()]
            scram = [part for user in users for part in ("--add-scram", user)]
            command = [*java, "kafka.tools.StorageTool", "format", "--standalone", "--cluster-id", CLUSTER_ID]
            _run([*command, "--config", str(settings), *scram], FORMAT_SECONDS, os.environ)
        with (self.folder / "broker.log").open("ab") as said:
            self.process = subprocess.Popen(
                [*java, "kafka.Kafka", str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,  # a terminal's Ctrl-C is not for it
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)  # one that is paused would not hear it
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _settings(self) -> dict[str, str]:
        named = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller}",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "broker.heartbeat.interval.ms": "500",
            "broker.session.timeout.ms": "3000",  # how long a killed one keeps its successor waiting
        }
        for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
            named |= {f"{topic}.num.partitions": "1", f"{topic}.replication.factor": "1"}
        named |= {"transaction.state.log.min.isr": "1", "share.coordinator.state.topic.min.isr": "1"}
        for name, value in self.properties.items():  # a listener more is added to ours, anything else is theirs
            joined = name in ("listeners", "advertised.listeners", "listener.security.protocol.map")
            named[name] = f"{named[name]},{value}" if joined else value
        return named

    def _wait(self) -> None:
        """Until it answers a question that only a started broker can."""
        from kafka.admin import KafkaAdminClient  # read only when a broker is started
        from kafka.errors import KafkaError

        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process is not None and self.process.poll() is not None:
                break
            with socket.socket() as knock:
                listening = knock.connect_ex(("127.0.0.1", self.port)) == 0
            if listening:
                try:
                    admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
                    admin.list_topics()
                    admin.close()
                except KafkaError:
                    continue
                return
            time.sleep(POLL_SECONDS)
        said = (self.folder / "broker.log").read_text(errors="replace")[-2000:]
        raise Unavailable(f"the broker in {self.folder} did not start: {said}")


def _run(command: list[str], seconds: float, environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        raise Unavailable(f"{' '.join(command[:1])} failed: {said}")
