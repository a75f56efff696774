"""Ports: what the core asks of the outside world. Each is small, each has adapters of the same names in `adapters/`.

An adapter is technology + port: `SqliteLog`, `MemoryLog`. Only a service's `app.py` chooses one, by URL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from policies.types import Arrays


class Record(NamedTuple):  # a tuple, because the log is read faster than dataclasses can be made
    """One record of the log. `appended` is epoch seconds set by the log, never going back within a partition."""

    offset: int
    appended: float
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """How far a spool has been forwarded: everything of `spool` before (segment, byte) is in the log."""

    spool: str
    segment: int
    byte: int


class Log(Protocol):
    """The append-only log of events, partitioned by key. Offsets count from 0 in each partition, without holes."""

    @property
    def partitions(self) -> int: ...

    @property
    def identity(self) -> str:
        """Which log this is, the same for everyone who opens it and no other's: every checkpoint names it (`semantics.md` 8)."""

    def append(self, records: Sequence[tuple[bytes, bytes]], position: Position | None = None) -> None:
        """Append (key, value) pairs in order; with a position, both become durable in one step. Raises Unavailable."""

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        """Up to `limit` records from `offset`, in order; empty at the end. Raises Unavailable, Corrupt('offset_out_of_range')."""

    def first(self, partition: int) -> int:
        """Offset of the oldest record that can be read; the end where there is none."""

    def end(self, partition: int) -> tuple[int, float]:
        """(next offset to be written, newest append time or 0.0)."""

    def position(self, spool: str) -> Position | None:
        """The last position appended for a spool."""


@runtime_checkable
class Moves(Protocol):
    """A log that others append to by themselves, so that a record may lie in another key's partition (`semantics.md` 8)."""

    def reroute(
        self, partition: int, records: Sequence[Record], *, again: bool = True
    ) -> tuple[list[Record], list["DeadLetter"]]:
        """Of what was just read: the records that belong to this partition, and letters for those that never will.

        The rest is appended to the right partition, once, before this returns, and not at all without `again`.
        Raises Unavailable.
        """


@runtime_checkable
class Watched(Protocol):
    """A log that other people's tools look at, and whose retention runs by itself."""

    def commit_offsets(self, partition: int, offset: int) -> None:
        """Tell lag tools how far the shard has come; nothing of ours reads it. Raises Unavailable."""

    def headroom(self, partition: int, offset: int, now: float) -> float:
        """How much of the retention is left to the record at `offset`, the oldest still needed: 1 new, 0 lost. Raises Unavailable."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """One entry of the state record: `value` None means deleted."""

    version: int
    kind: str  # surface | item | policy-state | release | config-folder | key …
    key: str
    value: bytes | None


class State(Protocol):
    """The record `slatewise.state`: items, configuration, releases. Compacted by (tenant, kind, key); versions only grow."""

    def put(self, entries: Sequence[tuple[str, str, bytes | None]], expect: int | None = None) -> int:
        """Write (kind, key, value) entries in one step, each at a version of its own; returns the version reached.

        `expect` is the version the writer has seen, of the record or of the entry (0: it must not exist): Rejected(409)
        when one of these entries has been written after it.
        """

    def read(self, after: int = 0, limit: int = 10_000) -> list[Versioned]:
        """Entries newer than a version, in version order."""

    def get(self, kind: str, key: str) -> Versioned | None: ...

    def version(self) -> int: ...


class Claims(Protocol):
    """One answer for each caller's decision id, for an hour."""

    def claim(self, tenant: str, decision_id: str, value: bytes, now: float) -> bytes | None:
        """Store `value` if the id is free (or its claim expired) and return None; else the winner's value. Raises Unavailable."""

    def claim_all(self, tenant: str, claims: Sequence[tuple[str, bytes]], now: float) -> list[bytes | None]:
        """As `claim` of each (decision id, value) in order, in one visit. Raises Unavailable, when some may have been made."""

    def forget(self, tenant: str, unit: str) -> int:
        """Take away every claim whose id or value names a unit; how many. All claims are looked at. Raises Unavailable."""


class Leases(Protocol):
    """Small values by name that several change by turns: what is lent of a budget. One that is lost is one that never was."""

    def read(self, names: Sequence[str]) -> list[bytes]:
        """Each name's value; empty for one that is not there. Raises Unavailable."""

    def exchange(self, name: str, held: bytes, value: bytes) -> bool:
        """Put `value` where `held` is, in one step (empty: where nothing is); whether it was. Raises Unavailable, when it may
        have been done."""


class Mark(NamedTuple):
    """How far a partition's derived values go: every record before `offset`, by its owner of `epoch`. Greater is newer."""

    epoch: int
    offset: int


class Counters(Protocol):
    """Numbers by name, derived from the log: absolute for each partition, which alone writes them; readers sum (`semantics.md` 20)."""

    def write(self, partition: int, mark: Mark, values: Mapping[str, float], since: Mark | None) -> bool:
        """Replace what has changed since a mark; with `since` None, replace all. A 0 takes a name away.

        True: the store is at `mark`, or was at it or beyond and nothing was written. False: the store is not at `since`
        (it was flushed, or another owner wrote) and nothing was written: write all. Raises Unavailable.
        """

    def read(self, names: Sequence[str]) -> list[float]:
        """The sum over partitions of each name; 0 for one that is not there. Raises Unavailable."""


class Profiles(Protocol):
    """A unit's last interactions, derived from the log by the partition that its hash belongs to."""

    def write(self, partition: int, mark: Mark, values: Mapping[str, bytes], since: Mark | None) -> bool:
        """As `Counters.write`; empty bytes take a unit away."""

    def forget(self, units: Sequence[str]) -> int:
        """Take units away, by names as `read` has them, once their shard no longer knows them; how many there were.
        Raises Unavailable."""

    def read(self, units: Sequence[str]) -> list[bytes]:
        """Each unit's profile, by hash, or by hash and what follows a slash; empty for one that is not there. Raises Unavailable."""


class Bundles(Protocol):
    """Content-addressed bundle files and one atomic pointer a policy."""

    def put(self, name: str, data: bytes) -> None:
        """Store immutable bytes under a name; durable on return, never half-written, repeat is harmless."""

    def get(self, name: str) -> bytes:
        """Raises Unavailable when there is no such name."""

    def point(self, policy: str, bundle: str, epoch: int) -> None:
        """Move a policy's pointer. Raises Rejected('fenced') when a higher epoch has written before."""

    def pointers(self) -> dict[str, str]:
        """policy → bundle, all of them; cheap enough to poll every 20 ms."""

    def epochs(self) -> dict[str, int]:
        """policy → the epoch its pointer was last moved with, which a rollback must at least have."""

    def names(self, folder: str) -> list[str]:
        """Names stored in a folder (`manifests`), sorted: for retention (`semantics.md` 22)."""

    def remove(self, name: str) -> None:
        """Forget a file that nothing names any more; one that is not there is no error."""


class Checkpoints(Protocol):
    """What a shard commits: one transaction holds joins, statistics and offset (`semantics.md` 13)."""

    def commit(self, commit: "Commit") -> None:
        """Durable on return, all or nothing."""

    def load(self, epoch: int = 0) -> "Loaded":
        """What is committed. With an epoch, in the same step: no lower one commits from now on. Raises Rejected('fenced')."""

    def join(self, row: int) -> bytes | None:
        """One open join by its row number, for those no longer in memory."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The incremental step from one committed state to the next.

    joins       (row, bytes): new or changed open joins; row numbers ascend in order of first arrival, never random
    ids         (first row, packed little-endian uint64 id hashes of the rows added by this commit, in row order)
    evicted     rows below this number are gone
    statistics  learner key → changed arrays
    restart     everything committed before is forgotten first, but for the outbox: rows count from 0 again
    outbox      (first number, rows): what is added to the numbered outbox, see `Outbox`; a repeat changes nothing
    """

    partition: int
    offset: int
    clock: float
    epoch: int
    joins: Sequence[tuple[int, bytes]] = ()
    ids: tuple[int, bytes] | None = None
    evicted: int = 0
    statistics: dict[str, Arrays] | None = None
    extra: bytes = b""  # early feedback, retractions before their decision, counters
    restart: bool = False
    outbox: tuple[int, Sequence[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint as read back at start. `ids` as committed, evicted rows left out."""

    offset: int
    clock: float
    epoch: int
    next_row: int
    evicted: int
    ids: Sequence[tuple[int, bytes]]
    statistics: dict[str, Arrays]
    extra: bytes


class Outbox(Protocol):
    """One partition's settled decisions, numbered without holes in the order they were settled (`semantics.md` 15).

    The rows are written by commits (`Commit.outbox`); whoever pulls keeps the number it has come to.
    """

    def pull(self, number: int, limit: int) -> list[tuple[int, bytes]]:
        """Up to `limit` (number, row) pairs from `number`, in order; empty at the end. Raises Corrupt('number_out_of_range')."""

    def numbers(self) -> tuple[int, int]:
        """(first number that can be pulled, next number to be given)."""

    def trim(self, before: int) -> None:
        """Rows below a number are gone, but for the newest; pulling them is Corrupt('number_out_of_range')."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be used, with where it came from; (partition, offset) names it, so a repeat is harmless."""

    partition: int
    offset: int
    reason: str
    detail: str
    key: bytes
    value: bytes


class DeadLetters(Protocol):
    """Records set aside: listed, counted, replayed by hand."""

    def put(self, letters: Sequence[DeadLetter]) -> None: ...

    def read(self, after: int = 0, limit: int = 1_000) -> list[tuple[int, DeadLetter]]:
        """(sequence number, letter) pairs newer than `after`, in order."""

    def count(self) -> dict[str, int]:
        """reason → number."""
