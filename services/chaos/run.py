"""Faults one after another under traffic, and the verdict at the end: a row a fault, one for the whole."""

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.chaos.faults import Fault, moved_on
from services.chaos.house import House, house, wait_for
from services.chaos.traffic import Told, Traffic
from services.chaos.verify import Verdict, verify

RATE = 300.0  # decisions a second
WARM_ANSWERS = 200
QUIET_SECONDS = 2.0  # of whole traffic after a fault, before the next; of a shorter one as long as it was
JOIN_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Span:
    """When a fault was there, in seconds of the traffic; `whole_after`: until a bundle was published again."""

    fault: Fault
    begin: float
    end: float
    whole_after: float


@dataclass
class Run:
    """What happened in one house."""

    told: Told
    verdict: Verdict
    spans: list[Span] = field(default_factory=list)


def run(faults: Sequence[Fault], seconds: float, rate: float = RATE, keep: Path | None = None) -> Run:
    """A house of its own for these faults, `seconds` each. Raises what a fault, the traffic or the stack raised."""
    options = dict(option for fault in faults for option in fault.options)
    with (
        tempfile.TemporaryDirectory(prefix="slatewise-chaos-") as made,
        house(keep or Path(made), faults[0].surface, **options) as inhabited,
    ):
        with flowing(inhabited, rate) as traffic:
            spans = [_inflicted(fault, inhabited, traffic, seconds) for fault in faults]
        inhabited.stop()
        return Run(traffic.told, verify(inhabited.a.settings, traffic.told), spans)


def _inflicted(fault: Fault, inhabited: House, traffic: Traffic, seconds: float) -> Span:
    begin = traffic.seconds
    fault.inflict(inhabited, traffic, seconds)
    end = traffic.seconds
    wait_for(lambda: inhabited.a.ready() and inhabited.b.ready(), f"both replicas answer after {fault.name}")
    wait_for(moved_on(inhabited), f"something is published after {fault.name}")
    whole = traffic.seconds - end
    time.sleep(min(QUIET_SECONDS, seconds))
    return Span(fault, begin, end, whole)


@contextmanager
def flowing(inhabited: House, rate: float) -> Iterator[Traffic]:
    """Traffic over both replicas in a thread; after the block all that was asked for has been answered."""
    traffic = Traffic([inhabited.a.url, inhabited.b.url], rate)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(traffic.run())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            failed.append(error)

    thread = threading.Thread(target=work, name="traffic", daemon=True)
    thread.start()
    try:
        wait_for(lambda: failed or len(traffic.told.answers) > WARM_ANSWERS, "traffic flows")
        if not failed:
            wait_for(moved_on(inhabited), "something is published")
            yield traffic
    finally:
        traffic.end()
        thread.join(JOIN_SECONDS)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise TimeoutError(f"traffic had unanswered requests {JOIN_SECONDS:g} s after its end: {traffic.told.failures}")
