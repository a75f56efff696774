"""Decisions that nobody asked for and nothing records, so that sessions and caches are ready before the port opens."""

import logging
from collections.abc import Callable, Sequence
from time import perf_counter

from policies.errors import Rejected
from services.scoring.decide import Made
from services.scoring.live import Live
from services.scoring.wire import DecisionRequest, encode, read_decision

log = logging.getLogger("slatewise.scoring")
DECISIONS, CANDIDATES = 20, 100


def rehearse(live: Live, make: Callable[[DecisionRequest, float], Made], items: Sequence[str] = ()) -> None:
    """Some of every surface, from decoding to the bytes of the answer: with items of the catalogue, as far as there are any.

    A surface whose rules let none of them through has nothing to rehearse with, and serves its first request cold.
    """
    ids: list[str] = [*items[:CANDIDATES], *(f"warm-{i}" for i in range(CANDIDATES - len(items[:CANDIDATES])))]
    for name in live.surfaces:
        body = encode({"surface": name, "unit": "warm", "candidates": ids})
        for _ in range(DECISIONS):
            try:
                made = make(read_decision(body, "$"), perf_counter())
            except Rejected as error:
                log.info("not_rehearsed", extra={"surface": name, "why": str(error)})
                break
            encode(made.answer)
            made.drawn.served.recent.seconds.clear()
