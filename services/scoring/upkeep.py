"""What keeps a worker current: threads that wait for disks and stores, and hand over to the event loop only what is new.

    bundles  every 20 ms: pointers; what is new is read and checked here
    state    every 100 ms: items and configuration
    spool    every 50 ms: to the disk
    exposures  every second: what was shown before, where rules ask for it
    leases   every second: what is lent of exploration caps
    copies   every 5 s: what a replica starts from when its stores are away
    tick     on the event loop every 100 ms: expiry, running percentiles, metrics

A visit that finds nothing new never touches the event loop: fifty visits a second through its executor took a tenth of a
worker's time.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from policies.errors import SlatewiseError
from services.scoring.exposures import REFRESH_SECONDS
from services.scoring.leases import RENEW_SECONDS
from services.scoring.live import Live
from services.scoring.service import Scoring

log = logging.getLogger("slatewise.scoring")
POLL_SECONDS, STATE_SECONDS, SYNC_SECONDS, KEEP_SECONDS, TICK_SECONDS = 0.02, 0.1, 0.05, 5.0, 0.1
LOOK_SYNCS, AGE_TICKS = 10, 10  # how many of the above between two looks
DISK_THREADS = 8  # feedback waits here for the flush that many share


class Upkeep:
    """The threads and the task of one worker. `start` in a running event loop; `follow_state` also after a write."""

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self.disk = ThreadPoolExecutor(DISK_THREADS, "disk")
        self._following = ThreadPoolExecutor(1, "state")
        self._state = asyncio.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._tick: asyncio.Task[None] | None = None
        self._syncs = 0

    async def start(self) -> None:
        """Warm, then follow. The port opens after this returns."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._following, self._scoring.start)
        works: list[tuple[str, Callable[[asyncio.AbstractEventLoop], None], float]] = [
            ("bundles", self._follow_bundles, POLL_SECONDS),
            ("state", self._follow_state, STATE_SECONDS),
            ("spool", self._flush, SYNC_SECONDS),
            ("exposures", lambda _: self._scoring.refresh(), REFRESH_SECONDS),
            ("leases", lambda _: self._scoring.renew(), RENEW_SECONDS),
        ]
        if self._scoring.copies is not None:
            works.append(("copies", lambda _: self._scoring.keep_copies(), KEEP_SECONDS))
        for name, work, every in works:
            thread = threading.Thread(target=self._repeat, args=(work, every, loop), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._tick = asyncio.create_task(self._ticks())

    async def stop(self) -> None:
        self._stop.set()
        if self._tick is not None:
            self._tick.cancel()
            with suppress(asyncio.CancelledError):
                await self._tick
        for thread in self._threads:  # in a thread: they may be waiting for the event loop
            await asyncio.get_running_loop().run_in_executor(self.disk, thread.join)
        for threads in (self.disk, self._following):
            threads.shutdown()
        self._scoring.close()

    async def follow_state(self) -> None:
        """Bring catalogue and configuration to the newest version of the state record. Raises Unavailable."""
        scoring, loop = self._scoring, asyncio.get_running_loop()
        async with self._state:
            while entries := await loop.run_in_executor(self._following, scoring.state.read, scoring.catalogue.version):
                scoring.access.apply(entries)
                change = await loop.run_in_executor(self._following, scoring.catalogue.prepare, entries)
                scoring.catalogue.apply(change, scoring.clock())
                await loop.run_in_executor(self._following, scoring.configs.follow, scoring.state)

    def _follow_bundles(self, loop: asyncio.AbstractEventLoop) -> None:
        live = self._scoring.poll()
        if live is not self._scoring.live:
            _on(loop, self._swap(live))

    def _follow_state(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._scoring.state.read(self._scoring.catalogue.version, 1):
            _on(loop, self.follow_state())

    async def _swap(self, live: Live) -> None:
        self._scoring.swap(live)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scoring.spool.sync()
        self._syncs += 1
        if self._syncs % LOOK_SYNCS == 0:
            self._scoring.spool.look()

    async def _ticks(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            ticks += 1
            try:
                if ticks % AGE_TICKS == 0:
                    self._scoring.tell_ages()
                self._scoring.tick()
            except Exception:  # a fault of ours: metrics may miss a beat, expiry and percentiles must go on
                log.exception("fault", extra={"what": "tick"})

    def _repeat(
        self, work: Callable[[asyncio.AbstractEventLoop], None], every: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Do something for ever. What it needs may be away for a while: that is logged once, and tried again."""
        away = ""
        while not self._stop.wait(every):
            try:
                work(loop)
                away = ""
            except SlatewiseError as error:
                if str(error) != away:
                    away = str(error)
                    log.warning("away", extra={"what": threading.current_thread().name, "error": away})
            except Exception:  # a fault of ours: the thread must live, or the worker would serve an old policy for ever
                log.exception("fault", extra={"what": threading.current_thread().name})


def _on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Done by the event loop, waited for by this thread."""
    asyncio.run_coroutine_threadsafe(work, loop).result()
