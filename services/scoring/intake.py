"""`POST /v1/feedback` and `…/shown`: what is accepted is on this disk, or in the log, before the 202."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import Response

from policies.errors import Rejected
from services.scoring import feedback as feedbacks
from services.scoring import wire
from services.scoring.deciding import Deciding
from services.scoring.replies import Turn, body_of, json
from streaming.events import Feedback


class Intake:
    """Feedback of one worker. `disk`: the threads that wait for the flush that many share."""

    def __init__(self, deciding: Deciding, disk: ThreadPoolExecutor) -> None:
        self._deciding, self._scoring, self._disk = deciding, deciding.scoring, disk

    async def feedback(self, request: Request) -> Response:
        self._scoring.refuse_when_full()
        body = await body_of(request, wire.FEEDBACK_BYTES)
        if not body.lstrip().startswith(b"["):
            return await self._kept([feedbacks.read(body, self._scoring.clock(), self._scoring.terms())], [])
        sent = wire.read_many_feedback(body, "$")
        if len(sent) > wire.MAX_FEEDBACK:
            raise Rejected(f"Expected array of length <= {wire.MAX_FEEDBACK}", at="$")
        heard, rejected = [], []
        terms, rest = self._scoring.terms(), Turn()
        for place, raw in enumerate(sent):
            try:
                heard.append(feedbacks.read(bytes(raw), self._scoring.clock(), terms, f"$[{place}]"))
            except Rejected as error:
                self._deciding.count(error)
                rejected.append(wire.RejectedFeedback(place, wire.error_detail(error)))
            await rest()
        return await self._kept(heard, rejected)

    async def shown(self, request: Request) -> Response:
        self._scoring.refuse_when_full()
        decision_id = request.path_params["decision_id"]
        if not 1 <= len(decision_id) <= 128:
            raise Rejected("Expected str of length 1 to 128", at="$.decision_id")
        body = await body_of(request, wire.FEEDBACK_BYTES)
        asked = wire.read_shown(body, "$") if body else wire.ShownRequest()
        return await self._kept([feedbacks.shown(decision_id, asked, self._scoring.clock(), self._scoring.terms())], [])

    async def _kept(self, heard: list[Feedback], rejected: list[wire.RejectedFeedback]) -> Response:
        await asyncio.get_running_loop().run_in_executor(self._disk, self._scoring.keep, heard)
        telemetry, surfaces = self._scoring.telemetry, self._scoring.live.surfaces
        only = next(iter(surfaces)) if len(surfaces) == 1 else ""  # feedback names a decision, not its surface
        for one in heard:
            telemetry.add("feedback_events_total", only, one.kind or "retraction", "accepted")
        if rejected:
            telemetry.add("feedback_events_total", only, "", "rejected", by=len(rejected))
        return json(wire.encode(wire.FeedbackAnswer(len(heard), rejected)), 202)
