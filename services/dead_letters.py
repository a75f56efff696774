"""Dead letters brought to the log again, once what refused them is mended: an unknown surface, an older build, a wrong hash.

The joiner takes a record it knows as once, so a replay of what was learned meanwhile changes nothing; what still cannot be
used comes back as a letter of its own.
"""

from typing import NamedTuple

from streaming.ports import DeadLetters, Log

PAGE = 500


class Replayed(NamedTuple):
    """`records` are in the log again; every letter up to the number `last` has been looked at."""

    records: int
    last: int


def replay(letters: DeadLetters, log: Log, *, reason: str | None = None, after: int = 0) -> Replayed:
    """Append the records of the letters after a number, of one reason or of all. Raises Unavailable: then begin again.

    Letters that come while it runs, its own among them, are left for the next time.
    """
    last = _last(letters, after)
    records = 0
    while after < last:
        page = [(number, letter) for number, letter in letters.read(after, PAGE) if number <= last]
        if not page:
            break
        found = [(letter.key, letter.value) for _, letter in page if reason in (None, letter.reason)]
        if found:
            log.append(found)
        records, after = records + len(found), page[-1][0]
    return Replayed(records, last)


def _last(letters: DeadLetters, after: int) -> int:
    while page := letters.read(after, PAGE):
        after = page[-1][0]
    return after
