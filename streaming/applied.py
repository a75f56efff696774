"""What applying a batch of records to the joins of a partition came to: for learners, for whoever watches, and for the commit."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec import Struct

from policies.types import Changes
from streaming.counted import NOTHING, Said
from streaming.joined import Drawn, Join, Terms, Version
from streaming.ports import DeadLetter

LONGEST_SECONDS = 86_400.0  # early feedback waits at least this long: the default `correctable`


class Extra(Struct, array_like=True):
    """What a commit holds besides rows: small, written whole."""

    longest: float = LONGEST_SECONDS
    ghosts: bytes = b""  # packed uint64: rows whose decision has not come
    waiting_from: int = 0  # no row below is a `wait` decision before its horizon
    spans: list[tuple[Any, ...]] = []  # see `streaming.rows.Span`
    examples: dict[str, int] = {}  # learner key → (decision, slot) pairs present


@dataclass(slots=True)
class Applied:
    """What a batch came to. `changes` are to be learned, `letters` to be set aside, before the commit."""

    changes: list[tuple[Terms, Changes]] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    decisions: int = 0
    feedback: int = 0
    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)
    heard: list[tuple[Terms, float]] = field(default_factory=list)  # accepted_at of feedback that moved a decision
    settled: list["Settled"] = field(default_factory=list)  # by a settling joiner only
    touched: list["Touched"] = field(default_factory=list)  # by a watching joiner only

    def count(self, surface: str, outcome: str, by: int = 1) -> None:
        name = surface, outcome
        self.outcomes[name] = self.outcomes.get(name, 0) + by


class Touched(NamedTuple):
    """A decision that heard something in this batch, and what was taught of it before and after (see `Join`), and counted of
    what was said (`joined.said_of`).

    `came`: its record was in this batch, the first of its id. `join` goes on changing with the next batch.
    """

    terms: Terms
    join: Join
    present_before: bytes
    rewards_before: bytes
    present: bytes
    rewards: bytes
    said_before: Said = NOTHING
    said: Said = NOTHING
    came: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """A decision whose time has come, as it stood then. `offset` is its record's; `heard` as in `Join`."""

    due: float
    offset: int
    drawn: Drawn
    terms: Terms
    heard: dict[str, tuple[Version, ...]]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What changed since the last commit, as `Commit` wants it."""

    joins: list[tuple[int, bytes]]
    ids: tuple[int, bytes] | None
    evicted: int
    extra: bytes
