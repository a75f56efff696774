"""Bulk work in a thread beside the event loop, a breath between pages: one interpreter runs both, and a thread that computes gives
way only every five milliseconds. A reading of 20,000 counters in one go held up decisions for 50 ms, every second."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

PAGE = 128  # of whatever is read: under a millisecond
BREATH_SECONDS = 0.0002  # any sleep gives way; the loop then runs until it waits
T = TypeVar("T")


def paged(things: Sequence[T], size: int = PAGE) -> Iterator[Sequence[T]]:
    """Pages of things, with a breath before each but the first."""
    for at in range(0, len(things), size):
        if at:
            time.sleep(BREATH_SECONDS)
        yield things[at : at + size]
