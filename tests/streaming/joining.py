"""A small world for joins: one surface, a learner whose sums are exact, stories told to a log, and an oracle that reads them.

The oracle knows nothing of batches, rows or order: it judges the whole log at once from the rules' own words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from policies.algorithm import Algorithm, Config, Problem, Published
from policies.corrected import corrected
from policies.surface import Bool, FeatureSpec, Number, Objective, PolicySpec, Surface
from policies.types import Arrays, Changes
from streaming.adapters.memory import MemoryCheckpoints, MemoryDeadLetters, MemoryLog
from streaming.configuration import Compiled, CompiledPolicy, Configs
from streaming.events import Decision, Feedback, encode
from streaming.feed import Feed
from streaming.ports import DeadLetter, Loaded
from streaming.shard import Shard

EPOCH0 = 1_000_000.0  # append times start here
HORIZON, CORRECTABLE = 100.0, 1000.0
UNIT = "00000000000000aa"
SLOTS = 3
TOTALS = ("n", "S", "B", "Y", "T")


class Tally:
    """Sums that say everything: n, Σ w x xᵀ, Σ w x rᵀ, Σ w r rᵀ with x = [1, context, item, slot], and per item Σ r."""

    def __init__(self, config: Config, problem: Problem) -> None:
        width = 1 + problem.encoder.context_size + problem.encoder.item_size + 1
        objectives = len(problem.objectives)
        self.sums: Arrays = {
            "n": np.zeros(1),
            "S": np.zeros((width, width)),
            "B": np.zeros((width, objectives)),
            "Y": np.zeros((objectives, objectives)),
            "T": np.zeros(1),
            "items": np.zeros(16),
        }

    def learn(self, changes: Changes) -> None:
        one = np.ones((len(changes), 1))
        x = np.hstack([one, changes.context, changes.items, changes.slots[:, None]]).astype(np.float64)
        w = changes.weights
        before, after = changes.present_before, changes.present_after
        rb, ra = changes.rewards_before, changes.rewards_after
        assert not rb[before == 0].any()
        assert not ra[after == 0].any()
        change = after - before
        self.sums["n"] += change.sum()
        self.sums["S"] += x.T @ (x * (w * change)[:, None])
        self.sums["B"] += x.T @ ((ra - rb) * w[:, None])
        self.sums["Y"] += ra.T @ (ra * w[:, None]) - rb.T @ (rb * w[:, None])
        self.sums["T"] += ((changes.times - EPOCH0) * change).sum()
        np.add.at(self.sums["items"], (changes.item_hashes % np.uint64(16)).astype(np.int64), (ra - rb).sum(axis=1))

    def arrays(self) -> Arrays:
        return self.sums

    def load(self, arrays: Arrays) -> None:
        self.sums = {name: np.array(array) for name, array in arrays.items()}


def _added(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}


def _no_graph(config: Config, problem: Problem) -> object:
    raise NotImplementedError


TALLY = Algorithm(
    name="tally",
    summary="sums for tests",
    source="tests",
    config=Config,
    graph=_no_graph,  # type: ignore[arg-type]
    publish=lambda config, problem, arrays, now, seed: Published({}),
    reference=lambda config, problem, arrays, inputs: np.zeros((1, 1), np.float32),
    inputs=(),
    learner=Tally,
    merge=_added,
    traits=frozenset({"merges", "learns", "corrects"}),
)
CORRECTED_TALLY = corrected(TALLY)


def surface(**changes: object) -> Surface:
    """Number features in a range of (0, 8) so that multiples of 1/8 are exact."""
    return Surface(
        **{
            "surface": "home",
            "slots": SLOTS,
            "horizon": HORIZON,
            "correctable": CORRECTABLE,
            "features": FeatureSpec(context={"hour": Number(0, 8)}, items={"price": Number(0, 8), "new": Bool()}),
            "objectives": {
                "watch": Objective(kind="watch", aggregate="sum", default=0.25),
                "like": Objective(kind="like", aggregate="max", range=(0.0, 4.0)),
            },
            "kinds": ["seen_price"],
            "policies": {"ts": PolicySpec(algorithm="linear_thompson", objective="watch")},
            "live": "ts",
        }
        | changes  # type: ignore[arg-type]
    )


class TallyConfigs(Configs):
    """Versions as they are, but the one policy that learns is the tally."""

    def get(self, digest: str) -> Compiled | None:
        compiled = super().get(digest)
        if compiled is None:
            return None
        problem = compiled.policies["ts"].problem
        tally = CORRECTED_TALLY if problem.horizon else TALLY
        policy = CompiledPolicy("tally", tally, Config(), problem, f"default/home/tally/{compiled.hash}")
        return replace(compiled, policies={"tally": policy})


def decision(compiled: Compiled, name: str, at: float, k: int = SLOTS, **changes: object) -> Decision:
    """A decision whose features follow from its name, the same every time."""
    rng = np.random.default_rng(sum(name.encode()))
    width, size = compiled.encoder.context_size, compiled.encoder.item_size
    return Decision(
        **{
            "decision_id": name,
            "unit": UNIT,
            "at": at,
            "surface": compiled.surface.surface,
            "config": compiled.hash,
            "policy": "ts",
            "bundle": "b",
            "mode": "live",
            "slate": [f"item-{i}" for i in rng.permutation(8)[:k]],
            "slots": list(range(k)),
            "rows": list(range(k)),
            "propensities": [0.5] * k,
            "remaining": [8] * k,
            "greedy": [0] * k,
            "context": (rng.integers(0, 9, width) / 8).astype("<f4").tobytes(),
            "shown": (rng.integers(0, 9, (k, size)) / 8).astype("<f4").tobytes(),
            "weight": 0.5,
        }
        | changes  # type: ignore[arg-type]
    )


def feedback(name: str, at: float, **changes: object) -> Feedback:
    return Feedback(**{"decision_id": name, "unit": UNIT, "at": at, "kind": "watch"} | changes)  # type: ignore[arg-type]


class Abort(Exception):
    """The process dies here."""


@dataclass
class Ports:
    """Ports of a shard that die at a chosen operation; what was durable before stays."""

    configs: Configs
    clock: float = EPOCH0
    checkpoints: MemoryCheckpoints = field(default_factory=MemoryCheckpoints)
    letters: MemoryDeadLetters = field(default_factory=MemoryDeadLetters)
    die_at: int | None = None
    operations: int = 0

    def __post_init__(self) -> None:
        self.log = MemoryLog(1, now=lambda: self.clock)

    def touch(self) -> None:
        self.operations += 1
        if self.die_at is not None and self.operations > self.die_at:
            self.die_at = None
            raise Abort

    def append(self, *events: Decision | Feedback | bytes, at: float | None = None) -> None:
        if at is not None:
            self.clock = max(self.clock, at)
        self.log.append([(UNIT.encode(), e if isinstance(e, bytes) else encode(e)) for e in events])

    def shard(self, read_limit: int = 2000, hot_limit: int = 32_768, epoch: int = 1, feed: Feed | None = None) -> Shard:
        log, checkpoints, letters = _Dying(self, self.log), _Dying(self, self.checkpoints), _Dying(self, self.letters)
        return Shard(
            0,
            log,  # type: ignore[arg-type]
            checkpoints,  # type: ignore[arg-type]
            self.configs,
            letters,  # type: ignore[arg-type]
            epoch=epoch,
            read_limit=read_limit,
            hot_limit=hot_limit,
            feed=feed,
        )


class _Dying:
    """Every call may be the last: before it had its effect, or just after."""

    def __init__(self, ports: Ports, inner: object) -> None:
        self._ports, self._inner = ports, inner

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        if not callable(call):
            return call

        def touched(*arguments: object) -> object:
            self._ports.touch()
            answer = call(*arguments)
            self._ports.touch()
            return answer

        return touched


def drain(shard: Shard) -> None:
    while shard.step().records:
        pass


def same(a: Arrays, b: Arrays) -> None:
    """Equal to 1e-9 in every sum."""
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_allclose(array, b[name], rtol=1e-9, atol=1e-9, err_msg=name)


def total(arrays: dict[str, Arrays]) -> Arrays:
    """The tally's sums over all versions, without those by item; nothing if it was never taught."""
    summed: Arrays = {}
    for sums in arrays.values():
        for name, array in sums.items():
            if name in TOTALS:
                summed[name] = summed.get(name, 0.0) + array  # type: ignore[operator]
    return summed


def reasons(letters: Sequence[tuple[int, DeadLetter]]) -> dict[int, str]:
    return {letter.offset: letter.reason for _, letter in letters}


def state(loaded: Loaded) -> tuple[int, dict[str, Arrays]]:
    return loaded.offset, loaded.statistics
