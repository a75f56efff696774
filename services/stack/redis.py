"""Real redis-server processes on this machine: for tests and for `make stack`. Started, awaited, stopped by process id.

Nothing is saved to disk: what this project keeps in Redis can be rebuilt.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from policies.errors import Unavailable
from services.loopback import free_port

READY_SECONDS = 30.0
SLOTS = 16384
PAUSE_SECONDS = 0.02
FAILOVER_MS = 500  # a sentinel or a cluster takes a server for dead after as long without an answer


class RedisServer:
    """One redis-server on loopback. `options` are lines of its configuration, without the dashes.

    Raises Unavailable when redis-server is not installed, or does not answer in time.
    """

    def __init__(
        self, folder: Path, port: int | None = None, options: Sequence[str] = (), *, sentinel: bool = False
    ) -> None:
        self.folder, self.port = folder, port or free_port()
        self._options, self._sentinel = options, sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None  # asked of a started server only
        return self._process.pid

    def start(self) -> None:
        """Start (again) on the same port, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("redis-server is not installed: apt-get install redis-server")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / f"{self.port}.conf"
        own = ["bind 127.0.0.1", f"port {self.port}", f"dir {self.folder}", f"logfile {self.folder}/{self.port}.log"]
        own += [] if self._sentinel else ['save ""', "appendonly no"]
        config.write_text("\n".join([*own, *self._options, ""]))
        command = [program, str(config), *(["--sentinel"] if self._sentinel else [])]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + READY_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise Unavailable(f"redis-server on port {self.port} does not answer: see {self.folder}")
            time.sleep(PAUSE_SECONDS)

    def answers(self) -> bool:
        with suppress(RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False

    def client(self) -> "Redis":
        """A plain client, for whoever looks at the server from outside."""
        return Redis(port=self.port, socket_timeout=READY_SECONDS)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, also of a paused one."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)
            try:
                self._process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisService:
    """A master, a replica, and sentinels that put the replica in its place when it dies."""

    def __init__(self, folder: Path, name: str = "slatewise", sentinels: int = 1) -> None:
        self.name = name
        self.servers = [RedisServer(folder / "master")]
        self.sentinels: list[RedisServer] = []
        try:
            master = self.servers[0].port
            self.servers.append(RedisServer(folder / "replica", options=[f"replicaof 127.0.0.1 {master}"]))
            watch = [
                f"sentinel monitor {name} 127.0.0.1 {master} {sentinels // 2 + 1}",
                f"sentinel down-after-milliseconds {name} {FAILOVER_MS}",
                f"sentinel failover-timeout {name} {10 * FAILOVER_MS}",
            ]
            for number in range(sentinels):
                self.sentinels.append(RedisServer(folder / f"sentinel-{number}", options=watch, sentinel=True))
            _await(self._complete, "sentinels do not see the replica")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    def _complete(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                state = client.sentinel_master(self.name)
                if state["num-slaves"] < 1 or state["num-other-sentinels"] < len(self.sentinels) - 1:
                    return False
        with self.servers[1].client() as client:
            return bool(client.info("replication")["master_link_status"] == "up")

    def stop(self) -> None:
        _stop([*self.sentinels, *self.servers])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisNodes:
    """A cluster of masters, each with its share of the slots."""

    def __init__(self, folder: Path, masters: int = 3) -> None:
        self.servers: list[RedisServer] = []
        try:
            buses = [free_port() for _ in range(masters)]
            for number, bus in enumerate(buses):
                options = ["cluster-enabled yes", f"cluster-node-timeout {4 * FAILOVER_MS}", f"cluster-port {bus}"]
                self.servers.append(RedisServer(folder / f"node-{number}", options=options))
            for number, server in enumerate(self.servers):
                first, last = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
                with server.client() as client:
                    client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                    client.execute_command("CLUSTER MEET", "127.0.0.1", self.servers[0].port, buses[0])
            _await(self._complete, "the cluster does not form")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def _complete(self) -> bool:
        for server in self.servers:
            with server.client() as client:
                told = client.cluster("INFO")
                if told["cluster_state"] != "ok" or int(told["cluster_known_nodes"]) < len(self.servers):
                    return False
        return True

    def stop(self) -> None:
        _stop(self.servers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _await(ready: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + READY_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise Unavailable(otherwise)
        time.sleep(PAUSE_SECONDS)


def _stop(servers: Iterable[RedisServer]) -> None:
    for server in servers:
        server.stop()
