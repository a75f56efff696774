"""`slatewise study novelty`: the novelty hierarchy beside itself with a part taken out, in `novelty_world` (methods.md §3).

Every way starts from nothing and learns in rounds: new people live under its newest policy, and its trainer gets their transitions
with the goals they were drawn under. Each way gets the same people, rounds and network. Scored on unshaped acceptances and returns
of fresh people under the final policy, common random numbers for all ways.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from policies.algorithm import Problem
from policies.algorithms import novelty_hierarchy
from policies.algorithms.novelty_hierarchy import network
from policies.algorithms.novelty_hierarchy.config import NoveltyHierarchy, read
from policies.novelty import novelty
from policies.types import F64, Arrays
from policies.worlds.novelty_world import HISTORY, OBJECTIVES, Drawn, Glance, NoveltyWorld, Policy, Value
from policies.worlds.session_world import drawn
from services.studies.study import Study, interval, with_interval

SEEDS = 5
TUNED_ON = (101,)  # worlds of other seeds than those reported
JUDGED = 9_001  # seed of the people that values are of
ROUND_SECONDS = 40 * 86_400.0  # a round's people are all gone before the next
CONFIG = NoveltyHierarchy(
    long_run=["explorer"],
    least=-8.0,
    most=8.0,
    shaping=0.1,
    clip=5.0,
    entropy=0.0,
    goal_entropy=0.01,
    minibatch=256,
    replay_ratio=6.0,
    learning_rate=2e-2,
)
WAYS = {
    "novelty_hierarchy": CONFIG,
    "without manager": msgspec.structs.replace(CONFIG, managed=False),
    "without static": msgspec.structs.replace(CONFIG, static=False),
    "without session input": msgspec.structs.replace(CONFIG, session=False),
    "without novelty": msgspec.structs.replace(CONFIG, managed=False, novel=False),
}
AGAINST = ("without manager", "without novelty")  # where novelty does not pay, what has the least to learn


@dataclass(frozen=True)
class Size:
    """People and rounds of learning, people and decisions of the judging."""

    people: int = 200
    rounds: int = 12
    steps: int = 16
    judged: int = 1_000
    life: int = 30


def problem(world: NoveltyWorld) -> Problem:
    return Problem(world.encoder, dict(OBJECTIVES), {"accept": 1.0}, world.slots, HISTORY)


def agent(config: NoveltyHierarchy, asked: Problem, arrays: Arrays) -> Policy:
    """The policy that the published arrays are, drawn as the service draws it, for many people at once."""
    w = novelty_hierarchy.publish(config, asked, arrays, 0.0, 0).arrays
    w["own"] = np.asarray(w["own"], np.float32) * np.float32(config.novel)
    told, size = read(config, asked), config.goals

    def policy(seen: Glance, u: F64) -> Drawn:
        phi = network.features(seen.context, seen.history, config.recent)
        logits = network.body(w, "manager", phi * told)
        goals, p = seen.goals.copy(), seen.goal_propensities.copy()
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = (1 - config.floor) * chances / chances.sum(axis=1, keepdims=True) + config.floor / size
        at = np.minimum((np.cumsum(chances, axis=1) <= u[:, -1:]).sum(axis=1), size - 1)
        goals[seen.begins], p[seen.begins] = at[seen.begins], chances[np.arange(len(at)), at][seen.begins]
        new = novelty(seen.items, seen.history)
        found = network.scores(w, phi, seen.items, new, np.eye(size)[goals], config.strengths)
        return Drawn(*drawn(found, u[:, :-1], config.floor, config.temperature), goals, p)

    return policy


def learn(world: NoveltyWorld, config: NoveltyHierarchy, size: Size, seed: int) -> Policy:
    asked = problem(world)
    trainer = novelty_hierarchy.trainer(config, asked)
    for number in range(size.rounds):
        policy = agent(config, asked, trainer.arrays())
        lived = world.simulate(policy, size.people, size.steps, 1_000 * seed + number)[1]
        trainer.train(replace(lived, times=lived.times + number * ROUND_SECONDS))
    return agent(config, asked, trainer.arrays())


def play(pays: float, size: Size, seed: int) -> dict[str, Value]:
    world = NoveltyWorld(seed, pays=pays)

    def judged(policy: Policy) -> Value:
        return world.simulate(policy, size.judged, size.life, JUDGED)[0]

    found = {"uniform (floor)": judged(world.uniform)}
    for name, config in WAYS.items():
        if not pays and name != "novelty_hierarchy" and name not in AGAINST:
            continue
        found[name] = judged(learn(world, msgspec.structs.replace(config, seed=seed), size, seed))
    return found | {"reference (knows the world)": world.reference_value(size.judged, size.life, JUDGED)}


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    size = Size(people=40, rounds=3, steps=8, judged=100, life=10) if quick else Size()
    numbers = range(1, (seeds or (1 if quick else SEEDS)) + 1)
    study = Study("How new a session's items should be: novelty_world")
    for pays in (1.0, 0.0):
        told(study, pays, [play(pays, size, seed) for seed in numbers])
    study.note(
        f"Every way learns from {size.rounds} rounds of {size.people} new people and at most {size.steps} decisions. Values: "
        f"{size.judged} fresh people, at most {size.life} decisions each, in {len(numbers)} worlds. Options were chosen on world "
        f"{TUNED_ON[0]}, none on those reported. Intervals: Student's t over seeds, 95%."
    )
    study.note(
        "Without novelty: neither goals nor the worker's own weight of novelty, and no shaping; the same network otherwise."
    )
    return study


def told(study: Study, pays: float, played: list[dict[str, Value]]) -> None:
    measures: dict[str, Callable[[Value], float]] = {
        "accepted a person": lambda v: v.per_person,
        "accepted a decision": lambda v: v.per_decision,
        "returned after a session": lambda v: v.returned,
    }
    where = "novelty is wished for or loathed" if pays else "novelty does not pay"
    rows = [
        [name, *(with_interval(np.array([of(p[name]) for p in played])) for of in measures.values())]
        for name in played[0]
    ]
    study.table(f"Where {where}: true values of the final policies, unshaped", ["policy", *measures], rows)
    compared: list[list[str | float | bool]] = []
    for name in [name for name in list(WAYS)[1:] if name in played[0]]:
        gains = {
            k: 100 * np.array([of(p["novelty_hierarchy"]) / of(p[name]) - 1 for p in played])
            for k, of in measures.items()
        }
        person, returned = gains["accepted a person"], gains["returned after a session"]
        if pays:
            verdict = bool(interval(person)[1] > 0 and interval(returned)[1] > 0)
            ahead: list[bool] = [bool(interval(person)[1] > 0), verdict]
        else:
            ahead = [bool(interval(person)[1] >= -1)]
        compared.append([name, percent(person), percent(returned), *ahead])
    wanted = ["ahead in acceptances (95%)", "… and in returns"] if pays else ["non-inferior within 1% (95%)"]
    columns = ["than", "accepted a person", "returned after a session", *wanted]
    study.table(f"Where {where}: novelty_hierarchy, the same people and luck", columns, compared)
    floor, best, ours = (
        np.array([p[name].per_person for p in played])
        for name in ("uniform (floor)", "reference (knows the world)", "novelty_hierarchy")
    )
    study.note(
        f"Where {where}, novelty_hierarchy comes {with_interval(100 * (ours - floor) / (best - floor))} % of the way from the floor to "
        "the reference, which is told everybody's taste and mood."
    )


def percent(values: F64) -> str:
    mean, low, high = interval(values)
    return f"{mean:+.2f} % [{low:+.2f}, {high:+.2f}]"
