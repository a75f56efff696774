"""What every adapter of a port must decide alike, whatever it stores things in."""

import re
from collections.abc import Iterable, Sequence

from policies.errors import Corrupt, Rejected
from policies.types import Arrays
from streaming.ports import Commit, Loaded, Versioned

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)*")  # no way out of the folder
NOTHING = Loaded(offset=0, clock=0.0, epoch=0, next_row=0, evicted=0, ids=(), statistics={}, extra=b"")


def refuse_stale(expect: int, found: Iterable[Versioned | None]) -> None:
    """Rejected('conflict', 409) when an entry about to be written has a version newer than the writer has seen."""
    for entry in found:
        if entry is not None and entry.version > expect:
            message = f"{entry.kind} {entry.key} has been written since version {expect}: it is at {entry.version}"
            raise Rejected(message, code="conflict", status=409)


def refuse_outrun(epoch: int, newest: int) -> None:
    """Rejected('fenced', 409) for a writer whose epoch another owner has passed."""
    if epoch < newest:
        raise Rejected(f"epoch {epoch} is over, {newest} has written", code="fenced", status=409)


def next_row(reached: int, commit: Commit) -> int:
    """One past the newest row a checkpoint knows after a commit."""
    joins = commit.joins[-1][0] + 1 if commit.joins else 0
    ids = commit.ids[0] + len(commit.ids[1]) // 8 if commit.ids else 0
    return max(reached, joins, ids)


def without(ids: Sequence[tuple[int, bytes]], evicted: int) -> list[tuple[int, bytes]]:
    """Packed id hashes of the rows that are still there."""
    cut = ((max(first, evicted), packed[8 * max(evicted - first, 0) :]) for first, packed in ids)
    return [(first, packed) for first, packed in cut if packed]


def refuse_gap(number: int, pulled: Sequence[tuple[int, bytes]], numbers: tuple[int, int]) -> None:
    """Corrupt('number_out_of_range') when an outbox was asked for what it has trimmed or never had."""
    first, end = numbers
    if (pulled and pulled[0][0] != number) or not first <= number <= end:
        raise Corrupt("number_out_of_range", f"the outbox has {first}..{end}, not {number}")


def copied(arrays: Arrays) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


def checked_name(name: str) -> str:
    """A bundle file's name, or ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a bundle file's name: {name!r}")
    return name
