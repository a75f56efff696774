"""Players of one-slot streams: Vowpal Wabbit and MABWiser from PyPI, a uniform one, and our own algorithms without a service.

Every player is told a context and the candidates, answers with a position among them, and is told the reward at once.
Each runs the one configuration its documentation gives as default; nothing is tuned on the streams that are reported.

vw squarecb / cover   cb_explore_adf, quadratic interactions context × arm (-q ca), else defaults (squarecb gamma_scale 10,
                      exponent 0.5; cover 16)
mabwiser LinTS, LinUCB  alpha 1, l2 1; one ridge model an arm (disjoint), so arm features are not used: its design
ours                  an algorithm of the registry as configured by default, bundle published every `every` decisions; the
                      peers learn after each decision, which is to their advantage
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from policies.types import F32, I64
from services.replay.streams import Stream


class Player(Protocol):
    """Chooses among candidates and hears what it earned."""

    def choose(self, context: F32, candidates: I64) -> int: ...

    def learn(self, reward: float) -> None: ...

    def close(self) -> None: ...


class Uniform:
    """The floor: every candidate alike."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])

    def choose(self, context: F32, candidates: I64) -> int:
        return int(self._rng.integers(len(candidates)))

    def learn(self, reward: float) -> None:
        return None

    def close(self) -> None:
        return None


class VowpalWabbit:
    """cb_explore_adf over text examples: one shared line, one line a candidate; the label is the cost of the one shown."""

    def __init__(self, stream: Stream, seed: int, exploration: str) -> None:
        from vowpalwabbit import Workspace  # the bench extra

        self._vw = Workspace(f"--cb_explore_adf {exploration} -q ca --quiet --random_seed {seed + 1}")
        self._rng = np.random.default_rng([seed, 2])
        self._arms = [
            f"arm_{k} " + " ".join(f"f{i}:{v:.6g}" for i, v in enumerate(features) if v)
            for k, features in enumerate(stream.arms)
        ]
        self._last: tuple[str, I64, int, float] | None = None

    def choose(self, context: F32, candidates: I64) -> int:
        shared = "shared |c " + " ".join(f"x{i}:{v:.6g}" for i, v in enumerate(context) if v)
        p = np.array(self._vw.predict("\n".join([shared, *(f"|a {self._arms[k]}" for k in candidates)])))
        position = int(self._rng.choice(len(p), p=p / p.sum()))
        self._last = (shared, candidates, position, float(p[position]))
        return position

    def learn(self, reward: float) -> None:
        if self._last is None:
            raise RuntimeError("nothing was chosen yet")
        shared, candidates, position, p = self._last
        lines = [f"|a {self._arms[k]}" for k in candidates]
        lines[position] = f"0:{-reward:.6g}:{p:.6g} {lines[position]}"
        self._vw.learn("\n".join([shared, *lines]))

    def close(self) -> None:
        self._vw.finish()


class MabWiser:
    """A disjoint linear model an arm; candidates of a round are ranked by its sampled or bounded expectations.

    It cannot be asked for some of its arms. Where a round offers only some, each arm is a bandit of its own, which is the
    same model (arms share nothing) and spares it hundreds of predictions nobody asks for.
    """

    def __init__(self, stream: Stream, seed: int, policy: str) -> None:
        from mabwiser.mab import MAB, LearningPolicy  # the bench extra

        rule, arms = getattr(LearningPolicy, policy)(), list(range(len(stream.arms)))
        whole = stream.candidates.shape[1] == len(arms)
        one = MAB(arms, rule, seed=seed + 1) if whole else None
        self._of: list[Any] = [one or MAB([k], rule, seed=1_000 * (seed + 1) + k) for k in arms]
        self._whole = whole
        nothing, zero = stream.context[:1] * 0, [0.0]  # a fit makes the models: at context zero it teaches them nothing
        for mab, k in zip(self._of[:1] if whole else self._of, arms, strict=False):
            mab.fit([k], zero, nothing)
        self._last: tuple[F32, int] | None = None

    def choose(self, context: F32, candidates: I64) -> int:
        asked, ids = context[None], candidates.tolist()
        if self._whole:
            expected = self._of[0].predict_expectations(asked)
            position = int(np.argmax([expected[k] for k in ids]))
        else:
            position = int(np.argmax([_alone(self._of[k].predict_expectations(asked)) for k in ids]))
        self._last = (context, ids[position])
        return position

    def learn(self, reward: float) -> None:
        if self._last is None:
            raise RuntimeError("nothing was chosen yet")
        context, arm = self._last
        self._of[arm].partial_fit([arm], [reward], context[None])

    def close(self) -> None:
        return None


def _alone(expected: dict[int, float]) -> float:
    """The expectation of a bandit of one arm."""
    (value,) = expected.values()
    return value


PEERS: dict[str, Callable[[Stream, int], Player]] = {
    "uniform": Uniform,
    "vw squarecb": lambda stream, seed: VowpalWabbit(stream, seed, "--squarecb"),
    "vw cover 16": lambda stream, seed: VowpalWabbit(stream, seed, "--cover 16"),
    "mabwiser LinTS": lambda stream, seed: MabWiser(stream, seed, "LinTS"),
    "mabwiser LinUCB": lambda stream, seed: MabWiser(stream, seed, "LinUCB"),
}


def play(stream: Stream, player: Player) -> list[float]:
    """What the rounds that counted were worth, in order: the reward where no world knows better. The player is closed."""
    earned = []
    for t in range(len(stream)):
        position = player.choose(stream.context[t], stream.candidates[t])
        if stream.logged is not None and position != stream.logged[t]:
            continue  # rejection replay: nobody knows what this would have earned, nobody learns
        reward = float(stream.rewards[t, position])
        player.learn(reward)
        earned.append(reward if stream.worth is None else float(stream.worth[t, position]))
    player.close()
    return earned
