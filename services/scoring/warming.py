"""Decisions that nobody asked for and nothing records, so that sessions and caches are ready before the port opens."""

from collections.abc import Callable
from time import perf_counter

from services.scoring.decide import Made
from services.scoring.live import Live
from services.scoring.wire import DecisionRequest, encode, read_decision

DECISIONS, CANDIDATES = 20, 100


def rehearse(live: Live, make: Callable[[DecisionRequest, float], Made]) -> None:
    """Some of every surface, from decoding to the bytes of the answer."""
    candidates: list[str] = [f"warm-{i}" for i in range(CANDIDATES)]
    for name in live.surfaces:
        body = encode({"surface": name, "unit": "warm", "candidates": candidates})
        for _ in range(DECISIONS):
            made = make(read_decision(body, "$"), perf_counter())
            encode(made.answer)
            made.drawn.served.recent.seconds.clear()
