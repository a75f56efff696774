"""Shards as Ray actors, on this machine or on a cluster.

Actors are named, detached and passive: they pull records from the log when they are asked to step, no method takes
events, Ray retries nothing, and a repeated `pull` is harmless (`semantics.md` 12). A pull waits for records and steps
through thousands of them, so that the millisecond of a remote call does not matter.

    names       `shards-<owner>`: the owner's number is new for every actor, checkpoints and uploads refuse what comes from a lower
                one, so an actor that was replaced and goes on, or that nobody could kill, changes nothing
    newcomers   end every actor of an older owner. Those of one log share a namespace: other installations keep theirs
    seats       groups of partitions, as many as processors in the cluster. An actor that dies, whose node dies or that does not
                answer gets a successor wherever Ray finds room; without the local checkpoint it goes on from the upload
    away        what cannot reach Ray raises `Lost`: whoever drives the shards goes on without it (`switching`)
"""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.util import list_named_actors

from policies.errors import Rejected, SlatewiseError, Unavailable
from services.allocating import steady
from services.learning.group import Group
from services.learning.shards import RAY_NICENESS, Lost, open_shards
from services.settings import Settings
from services.wiring import open_log, open_state
from streaming.configuration import Configs
from streaming.shard import Statistics, StepReport

log = logging.getLogger("slatewise.learning")
PREFIX = "shards-"
PULL_SECONDS = 0.05  # a pull returns after this long even when nothing came
IDLE_SECONDS = 0.002
FOLLOW_SECONDS = 0.25
OBJECT_STORE_BYTES = 128 << 20  # statistics are a few hundred kilobytes a policy
START_SECONDS = 120.0  # for an actor's process, its imports and its checkpoints
STUCK_SECONDS = 20.0  # without an answer to a pull, which takes as long as a step at most: a store's bounded wait
STATISTICS_SECONDS = 5.0
CLOSE_SECONDS = 15.0
HEAD_PROCESSES = ("gcs_server", "raylet")
RECONNECT_SECONDS = "5"  # that a client's calls hang when the head goes; then learning goes on without it
LOOK_SECONDS = 5.0  # between two looks at whether Ray is there and how large the cluster is


class ShardGroup:
    """The actor: shards of some partitions, with a view of the configuration that it follows by itself."""

    def __init__(self, environment: dict[str, str], partitions: Sequence[int], owner: int) -> None:
        steady()
        settings = Settings.load(environment)
        self._state, self._configs = open_state(settings), Configs(settings.tenant)
        self._configs.follow(self._state)
        self._followed = time.monotonic()
        self._group = Group(open_shards(settings, self._state, self._configs, owner, partitions))

    def ready(self) -> int:
        """Answers when the files are open; the process id."""
        return os.getpid()

    def pull(self) -> list[StepReport]:
        """Steps until something was read or `PULL_SECONDS` have passed; only reports that say something."""
        until = time.monotonic() + PULL_SECONDS
        while True:
            if time.monotonic() - self._followed > FOLLOW_SECONDS:
                self._configs.follow(self._state)
                self._followed = time.monotonic()
            reports = self._group.step()
            if any(report.records or report.forgot for report in reports) or time.monotonic() >= until:
                return reports
            time.sleep(IDLE_SECONDS)

    def statistics(self) -> list[Statistics]:
        return self._group.statistics()

    def close(self) -> None:
        """Uploads what was committed since the last upload."""
        self._group.close()


@dataclass
class _Seat:
    """A group of partitions and who sits there. `pull` is under way since `asked`.

    heard    whether it ever answered
    awaited  whether publishing waits for its statistics: not while it starts, nor when it does not answer
    """

    partitions: list[int]
    actor: Any
    owner: int
    pull: Any = None
    asked: float = 0.0
    heard: bool = False
    awaited: bool = True

    @property
    def patience_seconds(self) -> float:
        return STUCK_SECONDS if self.heard else START_SECONDS


@dataclass
class RayShards:
    """Drives the actors from the learning service. They touch no partition before the first `step`.

    Made in a thread that outlives it: Linux ends Ray's processes with the thread that started them.

    owner    gives the next owner's number
    actors   that share the partitions; None: as many as the cluster has processors, followed as it grows and shrinks
    """

    settings: Settings
    partitions: int
    owner: Callable[[], int]
    actors: int | None = None
    _seats: list[_Seat] = field(default_factory=list)
    _known: dict[int, Statistics] = field(default_factory=dict)  # newest of each partition
    _next_look: float = 0.0

    def __post_init__(self) -> None:
        try:
            with reached():
                self._local = start_ray(self.settings)
                self._namespace = namespace(self.settings)
                self._first = self.owner()
                end_older(self._namespace, PREFIX, self._first)
                self.reseat(self.actors or self._wanted())
                log.info("ray", extra={"pids": self.pids(), "owner": self._first})
        except BaseException:
            self.close()  # a connection that stays would refuse the next try
            raise

    def step(self) -> list[StepReport]:
        """Reports of actors that have answered. Raises Lost, Unavailable, Rejected('fenced')."""
        with reached():
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + LOOK_SECONDS
                self._look()
            for seat in self._seats:
                if seat.pull is None:
                    seat.pull, seat.asked = seat.actor.pull.remote(), time.monotonic()
            ray.wait([seat.pull for seat in self._seats], num_returns=1, timeout=PULL_SECONDS)
            return [report for seat in list(self._seats) for report in self._answer(seat)]

    def statistics(self) -> list[Statistics]:
        """The newest committed statistics of every partition; of a seat that does not answer, those it gave last.

        Raises Unavailable while there are none of a partition yet.
        """
        with reached():
            asked = {seat.actor.statistics.remote(): seat for seat in self._seats if seat.awaited}
            done, late = (
                ray.wait(list(asked), num_returns=len(asked), timeout=STATISTICS_SECONDS) if asked else ([], [])
            )
            for answer in late:
                asked[answer].awaited = False
            for answer in done:
                with contextlib.suppress(ray.exceptions.RayActorError, Unavailable):  # `step` sees to it
                    for one in got(answer):
                        self._know(one)
        if len(self._known) < self.partitions:
            raise Unavailable(
                f"partitions {sorted(set(range(self.partitions)) - set(self._known))} have not answered yet"
            )
        return [self._known[partition] for partition in range(self.partitions)]

    def pids(self) -> list[int]:
        """The actors' processes, once they are up."""
        with reached():
            return list(ray.get([seat.actor.ready.remote() for seat in self._seats], timeout=START_SECONDS))

    def reseat(self, count: int) -> None:
        """Share the partitions between `count` actors. State is per partition, so it moves with them, or by its upload."""
        for seat in self._seats:
            self._leave(seat)
        count = max(1, min(count, self.partitions))
        self._seats = [self._seat(list(range(self.partitions))[first::count]) for first in range(count)]

    def close(self) -> None:
        with contextlib.suppress(Lost), reached():
            for seat in self._seats:
                self._leave(seat)
        self._seats = []
        with contextlib.suppress(Exception):  # whatever Ray says when it is told to go while it is gone
            ray.shutdown()

    def _look(self) -> None:
        """Raises Lost when a local Ray's own processes have died: Ray would end ours a minute later."""
        dead = [
            process for process in self._local if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        ]
        if dead:
            raise Lost(f"Ray: process {dead[0].pid} died")
        if self.actors is None and not self._local and self._wanted() != len(self._seats):
            self.reseat(self._wanted())

    def _answer(self, seat: _Seat) -> list[StepReport]:
        done, _ = ray.wait([seat.pull], timeout=0)
        if not done:
            if time.monotonic() - seat.asked > seat.patience_seconds:
                self._replace(seat, "does not answer")
            return []
        pull, seat.pull = seat.pull, None
        try:
            reports: list[StepReport] = got(pull)
        except ray.exceptions.RayActorError as error:  # its process or node died: the checkpoint has all it committed
            self._replace(seat, str(error))
            return []
        seat.heard = seat.awaited = True
        return reports

    def _replace(self, seat: _Seat, why: str) -> None:
        log.warning("actor replaced", extra={"partitions": seat.partitions, "owner": seat.owner, "why": why})
        end(seat.actor)
        successor = self._seats[self._seats.index(seat)] = self._seat(seat.partitions)
        successor.awaited = False

    def _know(self, one: Statistics) -> None:
        """A successor that catches up does not take back what its predecessor had committed and we may have published."""
        known = self._known.get(one.partition)
        if known is None or one.offset >= known.offset:
            self._known[one.partition] = one

    def _leave(self, seat: _Seat) -> None:
        """Have a seat upload what it has and go. One that cannot is fenced by its successor's number."""
        with contextlib.suppress(ray.exceptions.RayError, SlatewiseError):
            ray.get(seat.actor.close.remote(), timeout=CLOSE_SECONDS)
        end(seat.actor)

    def _seat(self, partitions: list[int]) -> _Seat:
        owner = self.owner()
        made = ray.remote(ShardGroup).options(**options(f"{PREFIX}{owner}", self._namespace))
        return _Seat(partitions, made.remote(self.settings.environment(), partitions, owner), owner)

    def _wanted(self) -> int:
        return max(1, min(self.partitions, int(ray.cluster_resources().get("CPU", 1))))


def options(name: str, of: str) -> dict[str, Any]:
    """Of every actor: named, detached, and restarted by nobody but us."""
    return {
        "name": name,
        "namespace": of,
        "lifetime": "detached",
        "num_cpus": 0.01,  # waiting for records takes no processor; Ray's count must not refuse a small machine
        "scheduling_strategy": "SPREAD",
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def end_older(of: str, prefix: str, owner: int) -> None:
    """End actors of older owners in a namespace. Raises Rejected('fenced') when a newer one sits there already."""
    for entry in list_named_actors(all_namespaces=True):
        name = entry["name"]
        if entry["namespace"] != of or not name.startswith(prefix):
            continue
        if int(name.removeprefix(prefix)) > owner:
            raise Rejected(f"{name} sits there, this is owner {owner}", code="fenced", status=409)
        with contextlib.suppress(ValueError):  # gone meanwhile
            end(ray.get_actor(name, namespace=of))


def end(actor: Any) -> None:
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor)


def namespace(settings: Settings) -> str:
    """Actors of one log know each other, and none of another's."""
    return "slatewise-" + hashlib.blake2b(open_log(settings).identity.encode(), digest_size=6).hexdigest()


def got(answer: Any) -> Any:
    """What an actor's method returned, or raised: our own errors are the caller's to see, as what they are."""
    try:
        return ray.get(answer, timeout=STATISTICS_SECONDS)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SlatewiseError):
            raise error.cause from None
        raise


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Failures to reach Ray become `Lost`. What actors raised is not among them."""
    try:
        yield
    except (SlatewiseError, ray.exceptions.RayTaskError):
        raise
    except (ConnectionError, TimeoutError, RuntimeError, ray.exceptions.RayError) as error:
        raise Lost(f"Ray: {error}") from error
    except Exception as error:
        if type(error) is not Exception:  # Ray's client says so when its server is gone
            raise
        raise Lost(f"Ray: {error}") from error


def start_ray(settings: Settings) -> list[psutil.Process]:
    """A local Ray on loopback without dashboard and without usage reports, or the cluster of `ray://host:port`.

    The processes without which a local one cannot go on.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", RECONNECT_SECONDS)
    os.environ.setdefault("RAY_worker_niceness", RAY_NICENESS)
    if settings.ray.startswith("ray://"):
        try:
            ray.init(address=settings.ray, log_to_driver=False)
        except ConnectionError as error:  # it does not say why; since 2.60 this is the likeliest reason
            hint = "a cluster that asks for tokens wants RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN here"
            raise ConnectionError(f"{error}; {hint}") from error
        return []
    ray.init(
        address="local",  # else Ray joins whatever cluster was started on this machine last
        num_cpus=os.cpu_count() or 1,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _node_ip_address="127.0.0.1",
    )
    return [child for child in psutil.Process().children() if child.name() in HEAD_PROCESSES]
