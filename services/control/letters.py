"""`/v1/dead-letters`: what was set aside and why, and its way back into the log."""

from fastapi import APIRouter, Request, Response
from msgspec import Struct
from starlette.concurrency import run_in_threadpool

from policies.errors import Rejected
from services.audit import noted
from services.control.answering import OBJECT, body_of, decoded, json, who_of
from services.dead_letters import Replayed, replay
from streaming.ports import DeadLetters, Log, State

MOST_LETTERS = 1_000


class Again(Struct, frozen=True, forbid_unknown_fields=True):
    """Dead letters to bring to the log again: of one reason or of all, after a number."""

    reason: str | None = None
    after: int = 0


def router(dead: DeadLetters, events: Log, state: State) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/v1/dead-letters")
    def dead_letters(after: int = 0, limit: int = 100) -> Response:
        if after < 0 or not 1 <= limit <= MOST_LETTERS:
            raise Rejected(f"Expected after ≥ 0 and 1 ≤ limit ≤ {MOST_LETTERS}", at="$.limit")
        letters = [
            {
                "number": number,
                "partition": letter.partition,
                "offset": letter.offset,
                "reason": letter.reason,
                "detail": letter.detail,
                "key": letter.key.decode(errors="replace"),
                "value": letter.value.decode(errors="replace"),
            }
            for number, letter in dead.read(after, limit)
        ]
        return json({"counts": dead.count(), "letters": letters})

    @routes.post("/v1/dead-letters/replay", openapi_extra=OBJECT)
    async def replay_dead_letters(request: Request) -> Response:
        asked = decoded(await body_of(request), Again)
        found = await run_in_threadpool(_again, dead, events, state, asked, who_of(request))
        return json({"records": found.records, "last": found.last})

    return routes


def _again(dead: DeadLetters, events: Log, state: State, asked: Again, who: str) -> Replayed:
    if asked.after < 0:
        raise Rejected(f"Expected after ≥ 0, got {asked.after}", at="$.after")
    found = replay(dead, events, reason=asked.reason, after=asked.after)
    after = {"records": found.records, "from": asked.after, "to": found.last}
    noted(state, who, "replay", f"dead-letters/{asked.reason or 'all'}", None, after)
    return found
