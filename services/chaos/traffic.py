"""Callers under chaos: what they were answered and what was accepted from them is the truth that everything is held against.

An open loop asks for slates at a rate, alternating between replicas, half of the requests under ids of its own, and sends
feedback in batches. A request whose answer was lost is asked again, on the other replica, until it is answered: a backend
that gives up would hide what a fault does. Only what was answered or accepted counts as promised.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import numpy as np

from services.bench.sockets import Connection

CONNECTIONS = 24
FEEDBACK_EACH = 16  # feedback objects of a request
UNITS, ITEMS, SLOTS = 2_000, 8, 3
PAUSE_SECONDS = 0.1  # before a request is asked again
GIVE_UP_SECONDS = 150.0
SURFACE = f"""
surface: page
slots: {SLOTS}
features:
  context: {{hour: {{type: number, min: 0, max: 23}}}}
  items: {{size: {{type: number, min: 0, max: 1}}}}
objectives: {{score: {{kind: score, aggregate: sum}}}}
policies:
  shown: {{algorithm: popular, objective: score}}
  model: {{algorithm: linear_thompson, objective: score, draws: 64}}
live: model
"""
# the same, with a policy that is trained from settled decisions, and drawn from by nobody
TRAINED = SURFACE.replace(
    "live: model",
    "  agent: {algorithm: constrained_actor_critic, objective: score}\nlive: model\nhorizon: 2s\ncorrectable: 1m",
)
CANDIDATES = [{"id": f"item-{n}", "features": {"size": n / ITEMS}} for n in range(ITEMS)]


class _Shown(msgspec.Struct):
    slot: int
    id: str
    propensity: float


class _Answer(msgspec.Struct):
    decision_id: str
    key: str
    mode: str
    slate: list[_Shown]
    bundle: str | None = None
    reason: str | None = None
    logged: bool = True
    retry_unchecked: bool = False


class _Heard(msgspec.Struct):
    decision_id: str
    key: str
    item: str
    value: float
    feedback_id: str
    kind: str = "score"


class _Refused(msgspec.Struct):
    index: int


class _Accepted(msgspec.Struct):
    accepted: int
    rejected: list[_Refused] = []


@dataclass(frozen=True, slots=True)
class Answered:
    """What a caller was told: `at` seconds since the traffic began, `seconds` from the first attempt to the answer."""

    at: float
    seconds: float
    mode: str
    key: str
    items: tuple[str, ...]
    propensities: tuple[float, ...]
    logged: bool
    unchecked: bool


@dataclass
class Told:
    """Everything promised to the callers of one run."""

    answers: dict[str, Answered] = field(default_factory=dict)
    sequence: list[tuple[str, Answered]] = field(default_factory=list)  # the same as they came; faults read its end
    # (decision, feedback id) → item, value
    accepted: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)  # attempts that were not answered, by status or error

    def share(self, since: float, until: float) -> dict[str, float]:
        """mode → share of the answers of a time span; `unlogged` and `unchecked` beside, not instead."""
        found = [one for one in self.answers.values() if since <= one.at < until]
        modes = Counter(one.mode for one in found)
        modes["unlogged"] = sum(not one.logged for one in found)
        modes["unchecked"] = sum(one.unchecked for one in found)
        return {mode: count / max(len(found), 1) for mode, count in modes.items() if count}

    def percentile(self, q: float, since: float, until: float) -> float:
        """Seconds from the first attempt to the answer, of answers in a time span; NaN when there was none."""
        found = [one.seconds for one in self.answers.values() if since <= one.at < until]
        return float(np.percentile(found, q)) if found else float("nan")

    def rate(self, since: float, until: float) -> float:
        """Decisions answered a second."""
        return sum(since <= one.at < until for one in self.answers.values()) / max(until - since, 1e-9)


class Traffic:
    """Runs until `end`; then everything asked for is still waited for."""

    def __init__(self, urls: Sequence[str], rate: float, seed: int = 0) -> None:
        self.told = Told()
        self._ended = False
        self._urls, self._rate = list(urls), rate
        self._generator = np.random.default_rng(seed)
        self._heard: list[_Heard] = []
        self._free: list[asyncio.Queue[Connection | None]] = []
        self._started = 0.0

    @property
    def seconds(self) -> float:
        """Since the traffic began."""
        return time.perf_counter() - self._started if self._started else 0.0

    def end(self) -> None:
        """Ask for nothing more; from any thread."""
        self._ended = True

    async def run(self) -> None:
        for _ in self._urls:
            free: asyncio.Queue[Connection | None] = asyncio.Queue()
            for _ in range(CONNECTIONS // len(self._urls)):
                free.put_nowait(None)
            self._free.append(free)
        self._started = time.perf_counter()
        busy: set[asyncio.Task[None]] = set()
        number = 0
        while not self._ended:
            await asyncio.sleep(max(0.0, self._started + number / self._rate - time.perf_counter()))
            self._spawn(self._decide(number), busy)
            number += 1
            if len(self._heard) >= FEEDBACK_EACH:
                self._spawn(self._tell(number, self._taken()), busy)
        while busy or self._heard:
            if self._heard:
                self._spawn(self._tell(number, self._taken()), busy)
            await asyncio.gather(*busy)
        for free in self._free:
            while not free.empty():
                connection = free.get_nowait()
                if connection is not None:
                    connection.close()

    def _spawn(self, work: Coroutine[None, None, None], busy: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        busy.add(task)
        task.add_done_callback(busy.discard)

    def _taken(self) -> list[_Heard]:
        taken, self._heard = self._heard, []
        return taken

    async def _decide(self, number: int) -> None:
        unit = f"unit-{self._generator.integers(UNITS)}"
        request = {"surface": "page", "unit": unit, "context": {"hour": number % 24}, "candidates": CANDIDATES}
        if number % 2:
            request["decision_id"] = f"chaos-{number}"
        start = time.perf_counter()
        content = await self._posted("/v1/decisions", msgspec.json.encode(request), number, (200,))
        answer = msgspec.json.decode(content, type=_Answer)
        items = tuple(shown.id for shown in answer.slate)
        told = Answered(
            at=start - self._started,
            seconds=time.perf_counter() - start,
            mode=answer.mode if answer.reason is None else f"{answer.mode}: {answer.reason}",
            key=answer.key,
            items=items,
            propensities=tuple(shown.propensity for shown in answer.slate),
            logged=answer.logged,
            unchecked=answer.retry_unchecked,
        )
        self.told.answers[answer.decision_id] = told
        self.told.sequence.append((answer.decision_id, told))
        if not answer.logged:
            return  # nothing learns from a decision that no log has
        for item in items:
            if self._generator.random() < 0.3:
                value = float(self._generator.integers(1, 5))
                self._heard.append(_Heard(answer.decision_id, answer.key, item, value, f"{number}-{item}"))

    async def _tell(self, number: int, heard: list[_Heard]) -> None:
        content = await self._posted("/v1/feedback", msgspec.json.encode(heard), number, (202,))
        refused = {one.index for one in msgspec.json.decode(content, type=_Accepted).rejected}
        self.told.failures["feedback refused"] += len(refused)
        for index, one in enumerate(heard):
            if index not in refused:
                self.told.accepted[one.decision_id, one.feedback_id] = (one.item, one.value)

    async def _posted(self, path: str, body: bytes, number: int, good: tuple[int, ...]) -> bytes:
        """The answer, however many attempts it takes. Raises TimeoutError after `GIVE_UP_SECONDS`."""
        until, attempt = time.perf_counter() + GIVE_UP_SECONDS, 0
        while True:
            which = (number + attempt) % len(self._urls)
            try:
                status, content = await self._once(which, path, body)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.told.failures[type(error).__name__] += 1
            else:
                if status in good:
                    return content
                self.told.failures[str(status)] += 1
                if status not in (429, 503):
                    raise RuntimeError(f"{path} answered {status}: {content[:500]!r}")
            if time.perf_counter() > until:
                raise TimeoutError(f"{path} was not answered in {GIVE_UP_SECONDS:g} s; failures: {self.told.failures}")
            attempt += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _once(self, which: int, path: str, body: bytes) -> tuple[int, bytes]:
        connection = await self._free[which].get()
        keep: Connection | None = None
        try:
            connection = connection or await Connection.open(self._urls[which])
            answer = await connection.post(path, body)
            keep = connection
            return answer
        finally:
            if keep is None and connection is not None:
                with suppress(OSError):
                    connection.close()
            self._free[which].put_nowait(keep)
