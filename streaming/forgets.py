"""Forgetting a person (`semantics.md` 24): what is to be forgotten is an entry of the record, which every process follows.

forget   under the unit's hash: since when. Records of the unit dated before are dropped wherever the log is read, rows of
         its decisions are blanked, its profile goes; sums of statistics stay
forgot   under `<unit>/joins`: by the shard that has done so, and committed it
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from policies.errors import Corrupt
from streaming.joined import read_event
from streaming.ports import Record

KIND, DONE = "forget", "forgot"


class Store(Struct, frozen=True):
    """What became of a store. `state`: pending | done | retention | failed; `removed` what was found there and is gone."""

    state: str
    detail: str = ""
    removed: int = 0
    at: float | None = None


class Forget(Struct, frozen=True):
    """A unit to be forgotten and the report of it. `at`: records dated before are dropped. The raw id is nowhere."""

    at: float
    job: str
    who: str
    stores: dict[str, Store] = {}


class Forgot(Struct, frozen=True):
    """That a shard has blanked the rows of a unit: of the forget at `of`."""

    of: float
    rows: int


def encode(value: Forget | Forgot) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes) -> Forget:
    return msgspec.json.decode(data, type=Forget)


def forgotten(units: Mapping[str, float], unit: str, at: float) -> bool:
    """Whether what a unit did at a time is to be taken for never done."""
    return at < units.get(unit, 0.0)


def without(records: Sequence[Record], units: Mapping[str, float]) -> list[Record]:
    """Records that nobody has asked to forget. A record of such a unit is decoded for its date, all others are not."""
    keys = {unit.encode(): since for unit, since in dict(units).items()}  # a copy: it may grow meanwhile
    return [record for record in records if record.key not in keys or _date(record) >= keys[record.key]]


def _date(record: Record) -> float:
    try:
        event: Any = read_event(record.value)
    except Corrupt:  # set aside as any other, if it came after
        return record.appended
    return float(event.at)
