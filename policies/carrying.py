"""What a policy keeps of what it learned when its surface changes: the rule, and the parts of it all algorithms share.

A change of configuration acts on decisions made after it (`semantics.md` 17). Those before it keep the columns, rewards and
half-life they were learned under, in sums of their own, which go on taking corrections. A publish adds them up:

    half-life   every addend decays at its own rate, so one that never forgets never does, whatever half-life came later
    objectives  matched by name and kind. Another aggregate, default, range, credit or horizon is the same objective: what it
                was, old decisions were rewarded by. An objective that an addend does not know is filled in for it with what
                those that know it expect (before there are any, its default), so its mean is as learned; its spread is too
                narrow until decisions of now outweigh those of then
    features    see `policies.ridge_carrying`
    resets      an addend from before a reset counts as much as the reset left of it (`discounted`)
    not kept    an addend that knows none of the objectives the policy weighs; sums of another algorithm; of another policy
                name
"""

from collections.abc import Sequence

import numpy as np

from policies import forgetting
from policies.algorithm import Addend, Problem
from policies.types import F64, Arrays


def places(old: Problem, new: Problem) -> list[int | None]:
    """For each objective of `new` its column in the sums of `old`."""
    column = {(name, objective.kind): i for i, (name, objective) in enumerate(old.objectives.items())}
    return [column.get((name, objective.kind)) for name, objective in new.objectives.items()]


def relevant(problem: Problem, addends: Sequence[Addend]) -> list[Addend]:
    """Addends that know an objective the policy weighs."""
    weighed = [problem.weights.get(name, 0.0) != 0 for name in problem.objectives]
    return [addend for addend in addends if any(_knows(addend, problem, weighed))]


def _knows(addend: Addend, problem: Problem, weighed: Sequence[bool]) -> list[bool]:
    return [on and place is not None for on, place in zip(weighed, places(addend.problem, problem), strict=True)]


def discounted(arrays: Arrays, factor: float) -> Arrays:
    """Sums of any algorithm that carries, as addends that count `factor` times as much: their indices are moved, which all of
    them have and `scaled` reads, those of parts among them (`policies.corrected`). A power of two is exact."""
    if factor == 1.0:
        return arrays
    indices = [name for name in arrays if name == "index" or name.endswith(".index")]
    return arrays | {name: np.asarray(arrays[name], np.float64) + np.log2(factor) for name in indices}


def index_at(half_life: float, index: float, now: float) -> float:
    """The index in which sums of this half-life, at `index` so far, and addends of others meet at `now`."""
    return forgetting.index_for(now / half_life, index)


def scaled(sums: dict[str, F64], names: Sequence[str], half_life: float, index: float, now: float) -> dict[str, F64]:
    """Sums of any half-life as addends of sums of `half_life` at `index`: of the same weight at `now`.

    Exact, a power of two, where the half-life is the same.
    """
    theirs, at = float(sums["half_life"][0]), float(sums["index"][0])
    power = at - index if theirs == half_life else (at - now / theirs) - (index - now / half_life)
    factor = float(np.exp2(power))
    moved = {name: factor * sums[name] for name in names}
    return sums | moved | {"half_life": np.array([half_life]), "index": np.array([index])}
