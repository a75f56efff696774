"""`POST /v1/decisions` and its batch: what is answered at once, and what visits the claims' store first.

A request with an id of the caller's own is claimed in a thread, and waits for the claim no longer than `CLAIM_SECONDS`:
after that it is answered all the same, and says that a retry may get another answer (`semantics.md` 6). Claims that the
store never answers would fill the threads, so while as many as there are threads hang, nobody waits at all.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response

from policies.errors import Rejected, SlatewiseError, Unavailable
from services.scoring import wire
from services.scoring.admission import overloaded
from services.scoring.claiming import Claimed
from services.scoring.decide import Made
from services.scoring.replies import FAULT, Turn, body_of, inside, json
from services.scoring.service import Scoring

log = logging.getLogger("slatewise.scoring")
DECISIONS = "/v1/decisions"
FIRST_BYTE = "slatewise.first_byte"  # in an ASGI scope: perf_counter of a request's first byte, stamped by the protocol
CLAIM_SECONDS = 0.25  # far more than a store takes that is there
CLAIM_THREADS = 4
Found = Claimed | Unavailable | None


class Deciding:
    """Decisions over one `Scoring`. `begin` is synchronous: who has a whole request needs no task for it."""

    def __init__(self, scoring: Scoring, claim_seconds: float = CLAIM_SECONDS) -> None:
        self.scoring = scoring
        self._claim_seconds = claim_seconds
        self._threads = ThreadPoolExecutor(CLAIM_THREADS, "claims")
        self._hanging = 0

    def close(self) -> None:
        self._threads.shutdown(wait=self._hanging == 0, cancel_futures=True)

    def begin(self, body: bytes, first_byte: float) -> bytes | Made:
        """The answer, or what has to be claimed before it is one. Raises Rejected."""
        if perf_counter() - first_byte > self.scoring.patience.decision:
            raise overloaded()
        made = self.scoring.read(body, first_byte)
        return self.scoring.finish(made) if made.request.decision_id is None else made

    async def end(self, made: Made) -> bytes:
        """The answer of a request with an id of its own. Raises Rejected."""
        return (await self._claimed([made]))[0]

    async def decide(self, body: bytes, first_byte: float) -> bytes:
        """The answer to a request of any size. Raises Rejected."""
        if len(body) > wire.LARGE_BODY_BYTES:
            await asyncio.sleep(0)
        begun = self.begin(body, first_byte)
        return begun if isinstance(begun, bytes) else await self.end(begun)

    async def batch(self, request: Request) -> Response:
        first_byte = request.scope.get(FIRST_BYTE) or perf_counter()
        if perf_counter() - first_byte > self.scoring.patience.batch:
            raise overloaded()
        asked = wire.read_batch(await body_of(request, wire.BATCH_BYTES), "$").requests
        answers: list[bytes] = [b""] * len(asked)
        claimed: list[tuple[int, Made]] = []
        rest = Turn()
        for place, raw in enumerate(asked):
            try:
                made = self.scoring.make(self.scoring.asked(bytes(raw), f"$.requests[{place}]"), perf_counter())
                if made.request.decision_id is None:
                    answers[place] = self.scoring.finish(made)
                else:
                    claimed.append((place, made))
            except Rejected as error:
                answers[place] = self._refused(error, place)
            await rest()
        if len(claimed) == 1:
            place, made = claimed[0]
            try:
                answers[place] = await self.end(made)
            except Rejected as error:
                answers[place] = self._refused(error, place)
        elif claimed:
            for (place, _), answer in zip(claimed, await self._claimed([made for _, made in claimed]), strict=True):
                answers[place] = answer
        return json(b'{"responses":[' + b",".join(answers) + b"]}")

    def failed(self, error: Exception) -> SlatewiseError:
        """What the caller is told of an error; counted, and logged where it is a fault of ours."""
        if isinstance(error, SlatewiseError):
            self.count(error)
            return error
        log.error("fault", exc_info=error, extra={"path": DECISIONS})
        return FAULT

    def count(self, error: SlatewiseError) -> None:
        code = error.code if isinstance(error, Rejected) else "unavailable"
        self.scoring.telemetry.add("decide_rejected_total", code)

    def _refused(self, error: Rejected, place: int) -> bytes:
        self.count(error)
        return wire.encode(wire.error_body(inside(error, f"$.requests[{place}]")))

    async def _claimed(self, several: list[Made]) -> list[bytes]:
        """Answers of requests with ids of their own, claimed in one visit to the store."""
        answers = []
        for made, found in zip(several, await self._visit(several), strict=True):
            try:
                if isinstance(found, Unavailable):
                    log.warning("unclaimed", extra={"decision_id": made.answer.decision_id, "error": str(found)})
                    answers.append(self.scoring.finish_unclaimed(made))
                else:
                    answers.append(self.scoring.finish_claimed(made, found))
            except Rejected as error:
                if len(several) == 1:
                    raise
                answers.append(wire.encode(wire.error_body(error)))
        return answers

    async def _visit(self, several: list[Made]) -> list[Found]:
        if self._hanging >= CLAIM_THREADS:
            return [Unavailable("claims: the store does not answer")] * len(several)
        claiming = self._threads.submit(self._claim, several)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(claiming), self._claim_seconds + len(several) / 1_000)
        except TimeoutError:
            if not claiming.cancelled():
                self._hanging += 1
                loop = asyncio.get_running_loop()
                claiming.add_done_callback(lambda _: loop.call_soon_threadsafe(self._back))
            return [Unavailable(f"claims: no answer in {self._claim_seconds:g} s")] * len(several)

    def _back(self) -> None:
        self._hanging -= 1

    def _claim(self, several: list[Made]) -> list[Found]:
        try:
            return [*self.scoring.claim_all(several)] if len(several) > 1 else [self.scoring.claim(several[0])]
        except Unavailable as error:
            return [error] * len(several)
