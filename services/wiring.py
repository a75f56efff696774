"""The only place where adapters are chosen, by the URLs of the settings. Everything else speaks ports."""

from policies.errors import Rejected
from services.settings import PREFIX, Settings, path_of
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters
from streaming.adapters.sqlite import SqliteCheckpoints, SqliteClaims, SqliteDeadLetters, SqliteLog, SqliteState
from streaming.forward import Forwarder
from streaming.ports import Bundles, Checkpoints, Claims, DeadLetters, Log, State
from streaming.settle import Settlements
from streaming.spool import Spool


def open_log(settings: Settings) -> Log:
    settings.log_path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteLog(settings.log_path, partitions=settings.partitions)


def open_state(settings: Settings) -> State:
    settings.state_path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteState(settings.state_path)


def open_claims(settings: Settings) -> Claims:
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteClaims(settings.claims_path)


def open_bundles(settings: Settings) -> Bundles:
    settings.bundles_path.mkdir(parents=True, exist_ok=True)
    return FileBundles(settings.bundles_path)


def open_checkpoints(settings: Settings, partition: int) -> Checkpoints:
    path = settings.shard_path(partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteCheckpoints(path)


def open_settlements(settings: Settings, partition: int) -> Settlements:
    """What the settling process has come to in one partition, and the outbox of what it has settled."""
    path = settings.settling_path(partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    return SqliteCheckpoints(path)


def open_experiences(settings: Settings) -> Bundles:
    """Where files of settled decisions go. Raises Rejected for a URL that this build cannot open."""
    path = path_of(settings.experiences, "file", PREFIX + "EXPERIENCES")
    if path is None:
        raise Rejected("Expected a folder for settled decisions", at=PREFIX + "EXPERIENCES")
    path.mkdir(parents=True, exist_ok=True)
    return FileBundles(path)


def open_dead_letters(settings: Settings) -> DeadLetters:
    settings.data.mkdir(parents=True, exist_ok=True)
    return SqliteDeadLetters(settings.dead_letters_path)


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
