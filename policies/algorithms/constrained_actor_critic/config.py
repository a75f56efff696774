"""What may be set of the constrained actor-critic, and which objective plays which part."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from policies.algorithm import Config, Problem
from policies.errors import Rejected
from policies.types import F64, Head

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0, le=1)]


class ConstrainedActorCritic(Config, frozen=True):
    """Options.

    mode         two_stage: stay near the auxiliary policies; lagrangian: hold `thresholds`
    main         objective to raise; default the one of largest weight
    keep         auxiliary objectives; default all others of the surface
    thresholds   objective → mean reward of a whole slate (sum over slots), as the objective counts it: at least this, at most
                 where `better: lower`. Read by lagrangian
    discount     γ of the main objective's critic
    discounts    objective → γ of its critic; 0 by default for the auxiliary ones: what is held is the mean of a slate, and a life
                 cut short has few dislikes in total
    strengths    objective → λ_i of stage 2, default 1: how hard the main policy is held to that auxiliary's
    bound        of KL(π‖β) a slot, nats, for the auxiliary policies and the Lagrangian's: what is above has a price, which has an
                 end, since no policy is within it where the log is of several
    clip         c: largest ratio π/β that counts
    weight_bound largest ∣w_i∣ a request may give an auxiliary policy
    multiplier_max, multiplier_rate   bound of μ, and its step in running standard deviations of the objective
    window       settled decisions the thresholds are judged on
    entropy      nats of entropy worth one standard deviation of advantage
    hidden, attention, embedding   width of the state's layer, attention heads over the history, learned item features
    undrawn      candidates kept of a decision beside those drawn: more are stood for by a uniform sample of as many, each counting
                 for several in the softmax (what training costs hangs on it)
    minibatch, replay, replay_ratio   transitions an update reads, transitions kept, times each is read on average
    learners     RLlib learners: 0 = in this process, n ≥ 1 = n actors on Ray
    """

    head: Head = "softmax"
    draws: Annotated[int, Meta(ge=1, le=1)] = 1
    mode: Literal["two_stage", "lagrangian"] = "two_stage"
    main: str | None = None
    keep: list[str] | None = None
    thresholds: dict[str, float] = {}
    discount: Share = 0.9
    discounts: dict[str, Share] = {}
    strengths: dict[str, Positive] = {}
    bound: Positive = 0.1
    clip: Positive = 2.0
    weight_bound: Annotated[float, Meta(ge=0)] = 2.0
    multiplier_max: Positive = 10.0
    multiplier_rate: Positive = 0.5
    window: Annotated[int, Meta(ge=100)] = 4_096
    entropy: Annotated[float, Meta(ge=0)] = 0.0
    learning_rate: Positive = 1e-3
    hidden: Annotated[int, Meta(ge=1, le=1024)] = 32
    attention: Annotated[int, Meta(ge=1, le=8)] = 1
    embedding: Annotated[int, Meta(ge=1, le=256)] = 16
    undrawn: Annotated[int, Meta(ge=1)] = 32
    minibatch: Annotated[int, Meta(ge=1)] = 512
    replay: Annotated[int, Meta(ge=1)] = 8_192
    replay_ratio: Positive = 1.0
    learners: Annotated[int, Meta(ge=0, le=64)] = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Roles:
    """Who is who: `names` has the main objective first, then the auxiliaries; everything is in that order.

    places (P,)     of them in the surface's order
    signs (P,)      +1, or −1 where lower is better
    scales (P,)     signed scale: what a request's weight was multiplied by before it became an input
    discounts (P,)
    strengths (P − 1,)   λ_i of the auxiliaries
    thresholds (P,)      NaN where there is none
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    signs: F64
    scales: F64
    discounts: F64
    strengths: F64
    thresholds: F64

    def __len__(self) -> int:
        return len(self.names)


def roles(config: ConstrainedActorCritic, problem: Problem) -> Roles:
    """Raises Rejected naming the field, when it names an objective that the surface does not have."""
    known = list(problem.objectives)
    if not known:
        raise Rejected("Expected a surface with at least one objective", at="$.objectives")
    if not problem.encoder.item_size:
        raise Rejected("Expected item features: this policy knows items by nothing else", at="$.features.items")

    def checked(name: str, at: str) -> str:
        if name not in problem.objectives:
            raise Rejected(
                f"Unknown objective {name!r}, expected one of: {', '.join(known)}", at=at, code="unknown_objective"
            )
        return name

    main = config.main or max(known, key=lambda name: abs(problem.weights.get(name, 0.0)))
    names = [checked(main, "$.main")]
    for i, name in enumerate(known if config.keep is None else config.keep):
        if checked(name, f"$.keep[{i}]") not in names:
            names.append(name)
    for field in ("thresholds", "discounts", "strengths"):
        for name in getattr(config, field):
            if checked(name, f"$.{field}.{name}") not in names:
                raise Rejected(f"Expected one of: {', '.join(names)}", at=f"$.{field}.{name}", code="unknown_objective")
    if config.mode == "lagrangian" and main in config.thresholds:
        raise Rejected("The main objective is raised, not held", at=f"$.thresholds.{main}")
    signs = np.array([1.0 if problem.objectives[n].better == "higher" else -1.0 for n in names])
    return Roles(
        names=tuple(names),
        places=tuple(known.index(n) for n in names),
        signs=signs,
        scales=signs * [problem.objectives[n].scale or 1.0 for n in names],  # a scale of 0 silences an objective anyway
        discounts=np.array([config.discounts.get(n, config.discount if i == 0 else 0.0) for i, n in enumerate(names)]),
        strengths=np.array([config.strengths.get(n, 1.0) for n in names[1:]]),
        thresholds=np.array([config.thresholds.get(n, np.nan) for n in names]),
    )
