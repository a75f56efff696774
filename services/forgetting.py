"""Forgetting a unit: what is asked for, done store by store, and a report that is searched for before it says `done`.

    joins        rows of open decisions and feedback that waits, blanked by the shard that owns the partition, which says so
    profiles     forgotten by the same shard, then taken out of the store, then looked for
    claims       those that name the unit, taken away
    counters     hold no unit: numbers by item, policy and group, which stay as sums do
    attributes   what the aggregator of impressions knows of the unit, and its ledger
    experiments  the unit's totals, and those of its sessions as far as the log still has them
    experiences  Parquet files that hold the hash, written again without it
    log, dead_letters, checkpoints   at retention: the report says until when

Records of the unit that are dated before are dropped wherever they are read from then on, so nothing that is gone comes back
from the log; the settling processes blank their rows with their next step.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from policies.errors import Corrupt, Rejected, SlatewiseError
from services.audit import Change, entry
from services.settings import Settings
from services.wiring import open_audience, open_claims, open_derived, open_experiences, open_log, open_totals
from streaming.counted import counts_key
from streaming.events import unit_hash
from streaming.forgets import DONE, KIND, Forget, Forgot, Store, decode, encode
from streaming.joined import Drawn, read_event
from streaming.partition import partition_of
from streaming.ports import State
from streaming.shown import shown_key

log = logging.getLogger("slatewise.control")
TURN_SECONDS = 0.2
PAGE = 2_000
FILES = "experiences"  # last: all of them are read, and the rest is done within a second
STORES = ("joins", "profiles", "claims", "counters", "attributes", "experiments", FILES)


class Forgetting:
    """Jobs of one installation; `run` belongs to one thread of the process that writes the record."""

    def __init__(self, settings: Settings, state: State, salt: bytes, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._state, self._salt, self._clock = settings, state, salt, clock
        self._pending: dict[str, Forget] = {}
        self._seen = 0
        self._said = ""

    def ask(self, unit: str, who: str) -> tuple[str, Forget]:
        """(hash, job) of a unit to be forgotten from now on. Raises Unavailable."""
        key, now = unit_hash(unit, self._salt), self._clock()
        until = now + self._settings.retention_seconds
        kept = Store("retention", f"gone by {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(until))}", 0, until)
        stores = {
            **dict.fromkeys(STORES, Store("pending")),
            **dict.fromkeys(("log", "dead_letters", "checkpoints"), kept),
        }
        made = Forget(now, secrets.token_hex(8), who, stores)
        change = Change(now, who, "forget", f"unit/{key}", None, {"job": made.job})
        self._state.put([(KIND, key, encode(made)), entry(change)])
        return key, made

    def jobs(self) -> dict[str, Forget]:
        """Unit's hash → its newest job. Raises Unavailable."""
        found: dict[str, Forget] = {}
        seen = 0
        while entries := self._state.read(seen):
            found |= {one.key: decode(one.value) for one in entries if one.kind == KIND and one.value is not None}
            seen = entries[-1].version
        return found

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; what is away is tried again."""
        while not stop.wait(TURN_SECONDS):
            try:
                self.turn()
                self._said = ""
            except SlatewiseError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    log.warning("away", extra={"what": "forgetting", "error": self._said})
            except Exception:  # a fault of ours: the next job may fare better, and this one stays pending
                log.exception("fault", extra={"what": "forgetting"})

    def turn(self) -> None:
        """One look at every job that is not done. Raises Unavailable."""
        while entries := self._state.read(self._seen):
            for one in entries:
                if one.kind == KIND and one.value is not None:
                    self._pending[one.key] = decode(one.value)
            self._seen = entries[-1].version
        for unit, job in list(self._pending.items()):
            stores = dict(job.stores)
            waiting = [name for name in STORES if stores[name].state == "pending"]
            for name in waiting if waiting == [FILES] else [name for name in waiting if name != FILES]:
                stores[name] = self._done(name, unit, job)
            if stores != job.stores:
                job = msgspec.structs.replace(job, stores=stores)
                self._write(unit, job)
            if all(stores[name].state in ("done", "failed") for name in STORES):
                del self._pending[unit]

    def _write(self, unit: str, job: Forget) -> None:
        held = self._state.get(KIND, unit)
        if held is None or held.value is None or decode(held.value).job != job.job:
            return  # asked for again meanwhile: that job looks at everything anew
        with suppress(Rejected):  # … or in this very moment
            self._state.put([(KIND, unit, encode(job))], held.version)
        self._pending[unit] = job

    def _done(self, name: str, unit: str, job: Forget) -> Store:
        try:
            found: tuple[int, str] | None = getattr(self, f"_{name}")(unit, job)
        except (Corrupt, ImportError) as error:
            return Store("failed", str(error), 0, self._clock())
        return Store("pending") if found is None else Store("done", found[1], found[0], self._clock())

    def _joins(self, unit: str, job: Forget) -> tuple[int, str] | None:
        done = self._state.get(DONE, f"{unit}/joins")
        said = msgspec.json.decode(done.value, type=Forgot) if done is not None and done.value is not None else None
        return None if said is None or said.of < job.at else (said.rows, "rows blanked by the partition's shard")

    def _profiles(self, unit: str, job: Forget) -> tuple[int, str] | None:
        if self._joins(unit, job) is None:
            return None
        _, profiles = open_derived(self._settings, open_log(self._settings).partitions)
        names = [unit, shown_key(unit), counts_key(unit)]
        gone = profiles.forget(names)
        return None if any(profiles.read(names)) else (gone, "taken away once the shard knew them no more")

    def _claims(self, unit: str, job: Forget) -> tuple[int, str] | None:
        gone = open_claims(self._settings).forget(self._settings.tenant, unit)
        return gone, "claims that named the unit"

    def _counters(self, unit: str, job: Forget) -> tuple[int, str] | None:
        return 0, "hold no unit; sums of statistics stay"

    def _attributes(self, unit: str, job: Forget) -> tuple[int, str] | None:
        if self._clock() < job.at + 2 * TURN_SECONDS:
            return None  # as with experiments
        return open_audience(self._settings).forget(unit), "attributes and ledger; counts of groups stay"

    def _experiments(self, unit: str, job: Forget) -> tuple[int, str] | None:
        if self._clock() < job.at + 2 * TURN_SECONDS:
            return None  # a fold that began before has ended, and the next ones leave the unit out
        totals, _ = open_totals(self._settings)
        keys = [unit, *self._sessions(unit)]
        return sum(totals.forget(key) for key in keys), f"totals of the unit and of {len(keys) - 1} sessions in the log"

    def _experiences(self, unit: str, job: Forget) -> tuple[int, str] | None:
        if not self._settings.experiences:
            return 0, "no files are written"
        open_experiences(self._settings)
        from services.experiences.forgetting import forget_in_files  # pyarrow, which not everyone has

        looked, removed = forget_in_files(self._settings, unit)
        return removed, f"rows, of {looked} files looked at"

    def _sessions(self, unit: str) -> set[str]:
        """Keys of the unit's sessions, as experiments that are sticky by session know them."""
        events = open_log(self._settings)
        partition = partition_of(unit.encode(), events.partitions)
        offset, end = events.first(partition), events.end(partition)[0]
        found: set[str] = set()
        while offset < end:
            records = events.read(partition, offset, PAGE)
            if not records:
                break
            offset = records[-1].offset + 1
            for record in records:
                if record.key == unit.encode():
                    found |= _session(record.value, unit)
        return found


def told(unit: str, job: Forget) -> dict[str, Any]:
    """A report as people read it."""
    plain: dict[str, Any] = msgspec.to_builtins(job)
    states = {store.state for name, store in job.stores.items() if name in STORES}
    return {
        "unit": unit,
        "status": "failed" if "failed" in states else "pending" if "pending" in states else "done",
        **plain,
    }


def _session(value: bytes, unit: str) -> set[str]:
    with suppress(Corrupt, msgspec.MsgspecError, AttributeError):
        event = read_event(value)
        if isinstance(event, Drawn):
            session = msgspec.json.decode(value).get("session")
            if session is not None:
                return {hashlib.blake2b(f"{unit}\0{session}".encode(), digest_size=8).hexdigest()}
    return set()
