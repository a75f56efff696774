"""Two hosts of the service on the real stack, on this machine: what faults are done to.

    host a   scoring, forwarder, learning (two partitions' shards on two Ray nodes), control: `slatewise up`
    host b   scoring and forwarder, with a spool of its own, the same keys, and nothing else in common with a but the stack

Every process is started by its own command line, so what chaos kills is what an operator would see die. A dead one is
started again, as systemd or Kubernetes would.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

from services.chaos.traffic import SURFACE
from services.loopback import free_port
from services.settings import Settings
from services.stack.kafka import Broker
from services.stack.ray import ENVIRONMENT, RayNodes
from services.stack.redis import RedisServer
from services.supervisor import Part, Supervisor, parts_of, prepare

T = TypeVar("T")
READY_SECONDS = 180.0
STOP_SECONDS = 90.0
PARTITIONS = 2
REPLICA = ("scoring", "forwarder")  # what host b runs


@dataclass
class Host:
    """One machine's processes, each alive again after a death."""

    settings: Settings
    supervisor: Supervisor
    thread: threading.Thread

    @classmethod
    def start(cls, settings: Settings, parts: Sequence[Part]) -> "Host":
        supervisor = Supervisor(settings, parts, settings.data.with_suffix(".log"))
        thread = threading.Thread(target=supervisor.run, name=f"host-{settings.data.name}", daemon=True)
        thread.start()
        return cls(settings, supervisor, thread)

    @property
    def url(self) -> str:
        return f"http://{self.settings.http}"

    def pid(self, part: str) -> int:
        """The process of a part; waits while it is being started again."""
        return wait_for(lambda: self.supervisor.pids().get(part), f"{part} of {self.settings.data.name} runs")

    def kill(self, part: str) -> None:
        os.kill(self.pid(part), signal.SIGKILL)

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5.0).status_code == 200
        return False

    def stop(self) -> None:
        """SIGTERM in the supervisor's order: nothing admitted is dropped, spools are forwarded."""
        self.supervisor.stop.set()
        self.thread.join(STOP_SECONDS)
        if self.thread.is_alive():
            raise RuntimeError(f"{self.settings.data.name} did not stop in {STOP_SECONDS:g} s")


@dataclass
class House:
    """The stack and the two hosts. `folder` holds everything, and says in `a.log` and `b.log` what the processes said."""

    folder: Path
    kafka: Broker
    redis: RedisServer
    ray: RayNodes
    options: dict[str, str] = field(default_factory=dict)
    surface: str = SURFACE
    a: Host = field(init=False)
    b: Host = field(init=False)

    def start(self) -> None:
        keys, config = self.folder / "keys", self.folder / "config"
        config.mkdir(parents=True, exist_ok=True)
        (config / "page.yaml").write_text(self.surface)
        shared = {
            "keys": str(keys),
            "log": f"kafka://{self.kafka.bootstrap}",
            "state": self.redis.url,
            "bundles": (self.folder / "bundles").as_uri(),
            "ray": self.ray.url,
            "partitions": str(PARTITIONS),
            **self.options,
        }
        a, b = (
            Settings.load(
                {},
                data=self.folder / name,
                http=f"127.0.0.1:{free_port()}",
                control_http=f"127.0.0.1:{free_port()}",
                **shared,
            )
            for name in ("a", "b")
        )
        os.environ.update(ENVIRONMENT)
        prepare(Settings.load(a.environment(), config=config))
        replica = [part for part in parts_of(b) if part.name in REPLICA]
        self.a, self.b = Host.start(a, parts_of(a)), Host.start(b, replica)
        wait_for(lambda: self.a.ready() and self.b.ready() and self.shards(), "the house is ready")

    def shards(self) -> list[int]:
        """The processes of the shards' actors, ascending; a stopped one is still one."""
        return actors("ShardGroup")

    def trainers(self) -> list[int]:
        """The process of the trainers' actor, once it is there."""
        return actors("Trainer")

    def stop(self) -> None:
        """Both hosts; the stack goes on, so that what they left behind can be read."""
        self.b.stop()
        self.a.stop()


def actors(name: str) -> list[int]:
    """Processes below this one that are Ray actors of a class, ascending."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(f"ray::{name}"):
                found.append(process.pid)
    return sorted(found)


@contextlib.contextmanager
def house(folder: Path, surface: str = SURFACE, **options: str) -> Iterator[House]:
    """A house that runs; stopped with its stack at the end, whatever happened."""
    with contextlib.ExitStack() as stack:
        kafka = stack.enter_context(Broker(folder / "kafka"))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        ray = stack.enter_context(RayNodes())
        made = House(folder, kafka, redis, ray, options, surface)
        made.start()
        try:
            yield made
        finally:
            for host in (made.a, made.b):
                host.supervisor.stop.set()
                host.thread.join(STOP_SECONDS)


def wait_for(found: Callable[[], T | None], what: str, seconds: float = READY_SECONDS) -> T:
    """What `found` finds, once it finds something. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while not (it := found()):
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return it
