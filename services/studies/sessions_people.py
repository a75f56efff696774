"""People of `session_world` who are shown slates over HTTP, and say over HTTP what they did: cohorts of them, two at a time.

All that a person does is the world's; which items a slate holds, in what order, is the service's answer. The state that policies
see is the service's own too: what the person watched reaches the next decision through the log, the shards and the state store.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policies.errors import Rejected
from policies.types import F64, I64
from policies.worlds.session_world import NAMED, OBJECTIVES, SEGMENTS, Glance, People, SessionWorld
from services.client import Decision, Slatewise, reward
from services.studies.sessions_site import EXPERIMENT, SURFACE

BATCH = 50  # requests of one call
KINDS = tuple(OBJECTIVES[name].kind for name in NAMED)


@dataclass(frozen=True, slots=True)
class Shown:
    """A slate and what came of it. `at`: seconds since the crowd began; rewards (3,): watch, likes, hates of the slate."""

    at: float
    cohort: int
    person: int
    arm: str
    policy: str
    mode: str
    bundle: str
    rewards: F64


class Cohort:
    """People of one number, between slates."""

    def __init__(self, world: SessionWorld, number: int, people: int, began: float) -> None:
        self._world, self._number, self._began = world, number, began
        self._people: People = world.people(people, 1_000 * (number + 1))
        self._answers: list[Decision] = []
        self.steps, self.feedback = 0, 0

    @property
    def over(self) -> bool:
        return not self._people.here.any()

    def step(self, client: Slatewise) -> list[Shown]:
        """Everybody who is here is shown one slate, and says what they did."""
        at = time.monotonic() - self._began

        def policy(seen: Glance, u: F64) -> tuple[I64, F64]:
            return self._asked(client, seen)

        lived = self._people.step(policy)
        said = [
            reward(decision, kind, float(value), slot=slot, feedback_id=f"{kind}-{slot}")
            for decision, rewards in zip(self._answers, lived.rewards, strict=True)
            for slot, values in enumerate(rewards)
            for kind, value in zip(KINDS, values, strict=True)
            if value > 0
        ]
        told = client.feedback_batch(said)
        if told.rejected:
            raise RuntimeError(f"feedback refused: {told.rejected[0].error}")
        self.feedback += told.accepted
        self.steps += 1
        return [
            Shown(
                at=at,
                cohort=self._number,
                person=int(person),
                arm=(one.experiment or {}).get("arm", ""),
                policy=one.policy,
                mode=one.mode if one.reason is None else f"{one.mode}: {one.reason}",
                bundle=one.bundle or "",
                rewards=rewards.sum(axis=0),
            )
            for person, one, rewards in zip(lived.who, self._answers, lived.rewards, strict=True)
        ]

    def _asked(self, client: Slatewise, seen: Glance) -> tuple[I64, F64]:
        people, ids = self._people, self._world.ids
        who = np.flatnonzero(people.here)
        requests = [
            {
                "surface": SURFACE,
                "unit": f"{self._number}-{person}",
                "context": {
                    "segment": SEGMENTS[people.segments[person]],
                    "depth": float(min(people.depth[person], 20)),
                },
                "candidates": [ids[row] for row in rows],
            }
            for person, rows in zip(who, seen.rows, strict=True)
        ]
        self._answers = []
        for start in range(0, len(requests), BATCH):
            for answer in client.decide_batch(requests[start : start + BATCH]):
                if isinstance(answer, Rejected):
                    raise answer
                assert answer.experiment is None or answer.experiment["name"] == EXPERIMENT  # there is no other
                self._answers.append(answer)
        places = [
            [request["candidates"].index(shown.id) for shown in answer.slate]  # type: ignore[attr-defined]  # a list, above
            for request, answer in zip(requests, self._answers, strict=True)
        ]
        return np.array(places), np.array([[shown.propensity for shown in one.slate] for one in self._answers])


@dataclass(frozen=True)
class Lived:
    """What a crowd was shown, and how much feedback was accepted of it."""

    shown: list[Shown]
    feedback: int


def crowd(
    client: Slatewise,
    world: SessionWorld,
    people: int,
    steps: int,
    seconds: float,
    watch: Callable[[], None],
    first: int = 0,
) -> Lived:
    """Cohorts of new people, two at a time, each for `steps` slates at most, until `seconds` have passed; the last ones to the end.

    watch  called between slates;   first  number of the first cohort, in which its people's luck lies
    """
    began, shown, feedback, number = time.monotonic(), list[Shown](), 0, first
    here: list[Cohort] = []
    while True:
        now = time.monotonic() - began
        if now < seconds or number == first:
            while len(here) < 2:
                here.append(Cohort(world, number, people, began))
                number += 1
        if not here:
            return Lived(shown, feedback)
        for cohort in here:
            shown += cohort.step(client)
            watch()
        gone = [one for one in here if one.over or one.steps >= steps]
        feedback += sum(one.feedback for one in gone)
        here = [one for one in here if one not in gone]
