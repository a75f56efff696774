"""Shards as Ray actors, on this machine or on a cluster.

Actors are named and detached: the name is the seat of a group of partitions, a newcomer asks whoever sits there to
leave, and the epoch fences one that does not hear. They pull their records from the log; no method takes events, none
is retried by Ray, and a repeated `pull` is harmless (`semantics.md` 12). A pull waits for records and steps through
thousands of them, so that the millisecond of a remote call does not matter.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from policies.errors import Unavailable
from services.learning.shards import open_shards
from services.settings import Settings
from services.wiring import open_state
from streaming.configuration import Configs
from streaming.shard import Shard, Statistics, StepReport

log = logging.getLogger("slatewise.learning")
NAMESPACE = "slatewise"
PULL_SECONDS = 0.05  # a pull returns after this long even when nothing came
IDLE_SECONDS = 0.002
FOLLOW_SECONDS = 0.25
OBJECT_STORE_BYTES = 128 << 20  # statistics are a few hundred kilobytes a policy
CALL_SECONDS = 60.0


class ShardGroup:
    """The actor: shards of some partitions, with a view of the configuration that it follows by itself."""

    def __init__(self, environment: dict[str, str], partitions: Sequence[int], epoch: int) -> None:
        settings = Settings.load(environment)
        self._state, self._configs = open_state(settings), Configs()
        self._configs.follow(self._state)
        self._followed = time.monotonic()
        self._shards: list[Shard] = open_shards(settings, self._state, self._configs, epoch, partitions)

    def ready(self) -> int:
        """Answers when the checkpoints are loaded; the process id."""
        return os.getpid()

    def pull(self) -> list[StepReport]:
        """Steps until something was read or `PULL_SECONDS` have passed; only reports that say something."""
        until = time.monotonic() + PULL_SECONDS
        while True:
            if time.monotonic() - self._followed > FOLLOW_SECONDS:
                self._configs.follow(self._state)
                self._followed = time.monotonic()
            reports = [shard.step(time.time()) for shard in self._shards]
            if any(report.records for report in reports) or time.monotonic() >= until:
                return reports
            time.sleep(IDLE_SECONDS)

    def statistics(self) -> list[Statistics]:
        return [shard.statistics() for shard in self._shards]


class RayShards:
    """Drives the actors from the learning service. They touch no partition before the first `step`.

    Made in a thread that outlives it: Linux ends Ray's processes with the thread that started them.
    """

    def __init__(self, settings: Settings, partitions: int, epoch: int) -> None:
        self._settings, self._epoch = settings, epoch
        start_ray(settings)
        count = max(1, min(partitions, int(ray.cluster_resources().get("CPU", 1))))
        self._groups = [list(range(partitions))[seat::count] for seat in range(count)]
        self._actors = [self._seat(seat) for seat in range(count)]
        log.info("ray", extra={"actors": count, "pids": self.pids(), "epoch": epoch})
        self._pulls: dict[Any, int] = {}

    def step(self) -> list[StepReport]:
        for seat in set(range(len(self._actors))) - set(self._pulls.values()):
            self._pulls[self._actors[seat].pull.remote()] = seat
        done, _ = ray.wait(list(self._pulls), num_returns=1, timeout=PULL_SECONDS)
        reports: list[StepReport] = []
        for pull in done:
            seat = self._pulls.pop(pull)
            try:
                reports += ray.get(pull)
            except ray.exceptions.RayActorError as error:  # its process died: the checkpoint has all it committed
                log.warning("actor died", extra={"seat": seat, "error": str(error)})
                self._actors[seat] = self._seat(seat)
        return reports

    def statistics(self) -> list[Statistics]:
        """Raises Unavailable while a dead actor's successor is not up yet."""
        try:
            found = ray.get([actor.statistics.remote() for actor in self._actors], timeout=CALL_SECONDS)
        except ray.exceptions.RayError as error:  # `step` finds the dead one and seats another
            raise Unavailable(f"shards: {error}") from error
        return sorted((one for group in found for one in group), key=lambda one: one.partition)

    def pids(self) -> list[int]:
        """The actors' processes, once they are up."""
        return list(ray.get([actor.ready.remote() for actor in self._actors], timeout=CALL_SECONDS))

    def close(self) -> None:
        for actor in self._actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        ray.shutdown()

    def _seat(self, seat: int) -> Any:
        name = f"shards-{seat}"
        with contextlib.suppress(ValueError):  # nobody sits there
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        return (
            ray.remote(ShardGroup)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0.01,  # waiting for records takes no processor; Ray's count must not refuse a small machine
                max_restarts=0,
                max_task_retries=0,
            )
            .remote(self._settings.environment(), self._groups[seat], self._epoch)
        )


def start_ray(settings: Settings) -> None:
    """A local Ray on loopback without dashboard and without usage reports, or the cluster of `ray://host:port`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if settings.ray.startswith("ray://"):
        ray.init(address=settings.ray, namespace=NAMESPACE, log_to_driver=False)
        return
    ray.init(
        num_cpus=os.cpu_count() or 1,
        namespace=NAMESPACE,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
    )
