"""Settled decisions as trainers and files take them: rows of the outbox together with their records of the log."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt
from policies.rewards import Heard
from policies.types import F64
from streaming.applied import Settled
from streaming.events import Decision, decode
from streaming.joined import SHOWN, WHOLE, Drawn, Version, in_force, presence, read_drawn
from streaming.ports import Log, Outbox
from streaming.rows import GAP


class Told(Struct, frozen=True, array_like=True, gc=False):
    """A feedback in force when its decision settled. `positions` as in `joined.Version`: none means the whole slate."""

    feedback_id: str
    kind: str
    value: float
    at: float
    positions: tuple[int, ...]


class Row(Struct, frozen=True, array_like=True, gc=False):
    """One row of the outbox: a decision of k slots under o objectives, but for its record.

    viewed   k bytes of 0 or 1: slots that were seen, as far as anyone said
    present  k bytes: slots learners are taught, that is viewed and not pinned (unless `learn_pins`)
    rewards  float64 (k, o), 0 where not viewed
    """

    due: float
    offset: int
    objectives: tuple[str, ...]
    schema: str
    viewed: bytes
    present: bytes
    rewards: bytes
    told: tuple[Told, ...]


@dataclass(frozen=True, slots=True)
class Experience:
    """A settled decision with all that training and evaluation need of it."""

    partition: int
    number: int
    row: Row
    decision: Decision

    @property
    def rewards(self) -> F64:
        """(k, o), in the order of `row.objectives`."""
        return np.frombuffer(self.row.rewards, np.float64).reshape(-1, max(len(self.row.objectives), 1))


encode_row = msgspec.msgpack.Encoder().encode
_row = msgspec.msgpack.Decoder(Row).decode


def row_of(settled: Settled) -> Row:
    """What the outbox says of a decision: its evidence as it stood, judged by the version it was made under."""
    drawn, terms = settled.drawn, settled.terms
    until = drawn.at + terms.horizon
    force: list[tuple[float, str, Version]] = []
    for name, versions in settled.heard.items():
        version = in_force(versions, until)
        if version is not None:
            force.append((version.at, name, version))
    force.sort(key=lambda said: said[:2])
    versions_in_force = [version for _, _, version in force]
    viewed = presence(msgspec.structs.replace(drawn, pinned=()), terms, versions_in_force)
    heard = [
        Heard(version.positions[0] if version.positions else WHOLE, version.kind, version.value, at)
        for at, _, version in force
        if version.kind != SHOWN and at <= until
    ]
    rewards, _ = terms.compiled.rewards(len(drawn.slate), heard)
    rewards[np.frombuffer(viewed, np.uint8) == 0] = 0.0
    return Row(
        due=settled.due,
        offset=settled.offset,
        objectives=terms.compiled.surface.objective_names,
        schema=terms.compiled.encoder.schema,
        viewed=bytes(viewed),
        present=bytes(presence(drawn, terms, versions_in_force)),
        rewards=rewards.tobytes(),
        told=tuple(Told(name, v.kind, v.value, v.at, v.positions) for _, name, v in force),
    )


class Experiences:
    """One partition's settled decisions by number: rows of the outbox with their records of the log."""

    def __init__(self, partition: int, outbox: Outbox, log: Log) -> None:
        self.partition, self._outbox, self._log = partition, outbox, log

    def numbers(self) -> tuple[int, int]:
        """(first number that can be pulled, next number to be given)."""
        return self._outbox.numbers()

    def rows(self, number: int, limit: int) -> list[tuple[int, Row]]:
        """Rows of the outbox alone. Raises Corrupt('number_out_of_range')."""
        return [(found, _row(data)) for found, data in self._outbox.pull(number, limit)]

    def pull(self, number: int, limit: int) -> list[Experience]:
        """Up to `limit` from `number`, in order. Raises Corrupt('number_out_of_range' | 'offset_out_of_range'), Unavailable."""
        return self.of(self.rows(number, limit))

    def of(self, rows: Sequence[tuple[int, Row]]) -> list[Experience]:
        """Rows with their decisions, neighbours in the log read in one go."""
        offsets = sorted({row.offset for _, row in rows})
        records: dict[int, bytes] = {}
        start = 0
        for end in range(1, len(offsets) + 1):
            if end == len(offsets) or offsets[end] - offsets[end - 1] > GAP:
                first, last = offsets[start], offsets[end - 1]
                found = self._log.read(self.partition, first, last - first + 1)
                records |= {record.offset: record.value for record in found}
                start = end
        missing = [offset for offset in offsets if offset not in records]
        if missing:
            raise Corrupt("join_missing", f"decision at offset {missing[0]} of partition {self.partition}")
        return [Experience(self.partition, number, row, whole(records[row.offset])) for number, row in rows]


def whole(value: bytes) -> Decision:
    """The decision in a record that was joined. One of a producer that says only what joining needs gets neutral values."""
    try:
        event = decode(value)
    except Corrupt:
        return _from_drawn(read_drawn(value))
    return event if isinstance(event, Decision) else _from_drawn(read_drawn(value))


def _from_drawn(drawn: Drawn) -> Decision:
    said = msgspec.structs.asdict(drawn)
    lists = {name: list(value) for name, value in said.items() if isinstance(value, tuple)}
    return Decision(**{**said, **lists}, rows=[], remaining=[], greedy=[], candidates=list(drawn.slate))
