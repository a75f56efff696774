"""The only place where adapters are chosen, by the URLs of the settings. Everything else speaks ports.

What a process does not use it does not import: a client library costs a start tenths of a second.
"""

import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from policies.errors import Rejected
from services.settings import PREFIX, Settings, path_of, scheme_of
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.adapters.sqlite import (
    SqliteCheckpoints,
    SqliteClaims,
    SqliteDeadLetters,
    SqliteLeases,
    SqliteLog,
    SqliteState,
)
from streaming.copies import Copies
from streaming.estimates import Estimates
from streaming.forward import Forwarder
from streaming.kept import KeptBundles, KeptState
from streaming.ports import Bundles, Checkpoints, Claims, Counters, DeadLetters, Leases, Log, Profiles, State
from streaming.retention import TrimmedLetters, TrimmedLog
from streaming.settle import Settlements
from streaming.signed import SignedBundles
from streaming.snapshot import Snapshot
from streaming.spool import Spool
from streaming.tenancy import check
from streaming.totals import Totals

if TYPE_CHECKING:
    from streaming.adapters.kafka import KafkaAddress
    from streaming.adapters.redis import RedisConnection
    from streaming.adapters.sqlite_audience import SqliteAudience
    from streaming.feed import Feed


def open_log(settings: Settings) -> Log:
    if not settings.on_kafka:
        settings.log_path.parent.mkdir(parents=True, exist_ok=True)
        return SqliteLog(settings.log_path, partitions=settings.partitions)
    from streaming.adapters.kafka import KafkaLog

    address, kind = _kafka(settings), KafkaLog
    if address.confluent:
        from streaming.adapters.kafka_confluent import ConfluentLog

        kind = ConfluentLog
    return kind(
        address,
        partitions=settings.partitions,
        retention_seconds=settings.retention_seconds,
        positions=settings.data / "positions",
        clock=time.monotonic,
    )


def open_state(settings: Settings) -> State:
    """The record of surfaces, items and releases: beside the log, whatever `state` holds the rest."""
    if settings.on_kafka:
        from streaming.adapters.kafka import KafkaState

        return KafkaState(_kafka(settings), clock=time.monotonic)
    settings.state_path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteState(settings.state_path)


def own_state(settings: Settings) -> State:
    """The same, for those who work on what it holds. Raises Rejected('other_tenant') where it is another's, Unavailable."""
    state = open_state(settings)
    check(state, settings.tenant)
    return state


def open_claims(settings: Settings) -> Claims:
    if settings.on_redis:
        from streaming.adapters.redis import RedisClaims

        return RedisClaims(_redis(settings))
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteClaims(settings.claims_path)


def open_derived(settings: Settings, partitions: int) -> tuple[Counters, Profiles]:
    """What shards derive from a log of so many partitions."""
    if settings.on_redis:
        from streaming.adapters.redis import RedisCounters, RedisProfiles

        return RedisCounters(_redis(settings), partitions), RedisProfiles(_redis(settings), partitions)
    from streaming.adapters.sqlite_tables import SqliteCounters, SqliteProfiles

    settings.data.mkdir(parents=True, exist_ok=True)
    counters = SqliteCounters(settings.data / "counters.sqlite", partitions)
    return counters, SqliteProfiles(settings.data / "profiles.sqlite", partitions)


def open_leases(settings: Settings) -> Leases:
    """What is lent of budgets that shards derive."""
    if settings.on_redis:
        from streaming.adapters.redis import RedisLeases

        return RedisLeases(_redis(settings))
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteLeases(settings.data / "leases.sqlite")


def open_feed(
    settings: Settings, partitions: int, partition: int, owner: int, history: Callable[[], int]
) -> "Feed | None":
    """How a shard tells what it derives; None while nobody wants it. `history`: interactions kept of a unit."""
    if settings.derive != "on":  # `auto` is decided by the learning service, which knows the surfaces
        return None
    from streaming.derived import Derived
    from streaming.feed import Feed

    counters, profiles = open_derived(settings, partitions)
    return Feed(partition, owner, counters, profiles, time.monotonic, Derived(history=history))


def open_bundles(settings: Settings) -> Bundles:
    bundles = _store(settings.bundles, settings.data / "bundles", PREFIX + "BUNDLES")
    if settings.on_redis:
        from streaming.adapters.redis import RedisBundles

        bundles = RedisBundles(bundles, _redis(settings))
    return SignedBundles(bundles, settings.bundle_key) if settings.bundle_key else bundles


def open_copies(settings: Settings) -> tuple[State, Bundles, Copies | None]:
    """State and bundles of a scoring replica, with copies to start from; without any where they lie on its own disk."""
    if not (settings.on_kafka or settings.on_redis or settings.state or settings.bundles):
        return open_state(settings), open_bundles(settings), None
    folder = settings.data / "copies"
    state = KeptState(lambda: open_state(settings), Snapshot(folder / "state"), time.monotonic)
    bundles = KeptBundles(lambda: open_bundles(settings), FileBundles(folder / "bundles"), time.monotonic)
    return state, bundles, Copies(folder, state, bundles)


def open_uploads(settings: Settings) -> Bundles:
    """The shards' checkpoints in the bundle store: a store of their own in it, so that nobody takes them for bundles."""
    url = settings.bundles and f"{settings.bundles.rstrip('/')}/checkpoints"
    return _store(url, settings.data / "bundles" / "checkpoints", PREFIX + "BUNDLES")


def open_checkpoints(settings: Settings, partition: int) -> Checkpoints:
    path = settings.shard_path(partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteCheckpoints(path)


def open_settlements(settings: Settings, partition: int) -> Settlements:
    """What the settling process has come to in one partition, and the outbox of what it has settled."""
    path = settings.settling_path(partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteCheckpoints(path)


def open_training(settings: Settings) -> tuple[SqliteCheckpoints, list[SqliteCheckpoints]]:
    """Order and checkpoint of the trainers, and of each partition the outbox they are fed from."""
    settings.training_path.parent.mkdir(parents=True, exist_ok=True)
    paths = [settings.training_settled_path(partition) for partition in range(open_log(settings).partitions)]
    return SqliteCheckpoints(settings.training_path), [SqliteCheckpoints(path) for path in paths]


def clear_training(settings: Settings) -> None:
    """Keep aside what `open_training` opens, in place of what was kept aside before. Nothing of it may be open."""
    folder = settings.training_path.parent
    aside = folder.with_name(f"{folder.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    folder.replace(aside)


def open_totals(settings: Settings) -> tuple[Totals, Callable[[int], Settlements]]:
    """What experiments know of their units, and a partition's settled decisions that this is folded from."""
    from streaming.adapters.sqlite_totals import SqliteTotals

    folder = settings.data / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    return SqliteTotals(folder / "units.sqlite"), lambda partition: SqliteCheckpoints(folder / f"{partition}.sqlite")


def open_estimates(settings: Settings) -> Estimates:
    """What policies have earned, folded beside the experiments."""
    from streaming.adapters.sqlite_estimates import SqliteEstimates

    folder = settings.data / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    return SqliteEstimates(folder / "estimates.sqlite")


def open_watched(settings: Settings) -> Estimates:
    """What is known of drift, folded beside the experiments."""
    from streaming.adapters.sqlite_estimates import SqliteEstimates

    folder = settings.data / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    return SqliteEstimates(folder / "drift.sqlite")


def open_audience(settings: Settings) -> "SqliteAudience":
    """What people are, and counts by it: of the aggregator alone, whatever `state` holds the rest."""
    from streaming.adapters.sqlite_audience import SqliteAudience

    folder = settings.data / "audience"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SqliteAudience(folder / "people.sqlite")


def open_experiences(settings: Settings) -> Bundles:
    """Where files of settled decisions go. Raises Rejected for a URL that this installation cannot open."""
    if not settings.experiences:
        raise Rejected("Expected a folder for settled decisions such as file:///path", at=PREFIX + "EXPERIENCES")
    return _store(settings.experiences, settings.data / "experiences", PREFIX + "EXPERIENCES")


def open_dead_letters(settings: Settings) -> DeadLetters:
    if settings.on_kafka:
        from streaming.adapters.kafka import KafkaDeadLetters

        return KafkaDeadLetters(_kafka(settings), clock=time.monotonic, retention_seconds=settings.retention_seconds)
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteDeadLetters(settings.dead_letters_path)


def open_trimmed(settings: Settings) -> tuple[TrimmedLog, TrimmedLetters] | None:
    """Log and dead letters where their retention is ours to keep; None where a broker keeps it."""
    if settings.on_kafka:
        return None
    settings.log_path.parent.mkdir(parents=True, exist_ok=True)
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteLog(settings.log_path, partitions=settings.partitions), SqliteDeadLetters(settings.dead_letters_path)


def open_spool(settings: Settings, spool_id: str | None = None) -> Spool:
    """A spool of this host, for one writer; without an id a free one is adopted."""
    settings.spool_path.mkdir(parents=True, exist_ok=True)
    return Spool(settings.spool_path, spool_id=spool_id, quota_bytes=settings.spool_bytes)


def open_forwarder(settings: Settings) -> Forwarder:
    """The one forwarder of this host. Raises Unavailable while another one holds the folder."""
    settings.spool_path.mkdir(parents=True, exist_ok=True)
    return Forwarder(settings.spool_path, open_log(settings))


def in_memory_settlements() -> Settlements:
    """What an export settles for itself, and leaves nothing behind."""
    return MemoryCheckpoints()


def in_memory() -> tuple[Checkpoints, DeadLetters]:
    """Stores of a shard that replays a log beside the one that owns it, and leaves nothing behind."""
    return MemoryCheckpoints(), MemoryDeadLetters()


def _store(url: str, folder: Path, at: str) -> Bundles:
    """A folder of this host, or what fsspec opens."""
    if scheme_of(url) in ("", "file"):
        path = path_of(url, "file", at) or folder
        path.mkdir(parents=True, exist_ok=True)
        return FileBundles(path)
    from streaming.adapters.fsspec import FsspecBundles

    return FsspecBundles(url, clock=time.monotonic)


def _kafka(settings: Settings) -> "KafkaAddress":
    from streaming.adapters.kafka_address import parse_kafka

    return parse_kafka(settings.log, PREFIX + "LOG", settings.kafka_password)


def _redis(settings: Settings) -> "RedisConnection":
    return _connection(settings.state, settings.redis_password)


@cache
def _connection(url: str, password: str) -> "RedisConnection":
    """One for all adapters of a process: what one of them finds away, the others do not wait for."""
    from streaming.adapters.redis import connect

    return connect(url, clock=time.monotonic, at=PREFIX + "STATE", password=password)
