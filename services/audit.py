"""Who changed what, before and after: one entry of the state record a change, written in the same step as the change."""

import secrets
import threading
import time
from typing import Any

import msgspec
from msgspec import Struct

from streaming.ports import State

KIND = "audit"
NOBODY = "anonymous"  # nobody said who it was
Entry = tuple[str, str, bytes | None]  # of the state record


class Change(Struct, frozen=True, omit_defaults=True):
    """One change. `before` and `after` are what it changed, as people read it; None where there was or is nothing."""

    at: float
    who: str
    action: str
    subject: str  # kind/name, such as experiment/ts-vs-control
    before: Any = None
    after: Any = None


def entry(change: Change) -> Entry:
    """A change for the record, under a key of its own: nothing is compacted away."""
    return KIND, f"{int(change.at * 1e6):017d}-{secrets.token_hex(4)}", msgspec.json.encode(change)


def noted(state: State, who: str, action: str, subject: str, before: Any, after: Any) -> None:
    """A change that was made elsewhere. Raises Unavailable."""
    state.put([entry(Change(time.time(), who, action, subject, before, after))])


class Audit:
    """The changes of a record, followed. May be asked by several threads."""

    def __init__(self, state: State) -> None:
        self._state, self._seen = state, 0
        self._changes: list[Change] = []
        self._lock = threading.Lock()

    def changes(self, subject: str | None = None, limit: int = 100) -> list[Change]:
        """The newest first. Raises Unavailable."""
        with self._lock:
            while entries := self._state.read(self._seen):
                for one in entries:
                    if one.kind == KIND and one.value is not None:
                        self._changes.append(msgspec.json.decode(one.value, type=Change))
                self._seen = entries[-1].version
            found = self._changes[::-1]
        return [change for change in found if subject in (None, change.subject)][:limit]
