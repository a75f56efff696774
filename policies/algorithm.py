"""What an algorithm is: one module with a Config, a score graph, a learner and a publish step, named by one `Algorithm` value.

Reader and writer are different objects. The reader is an ONNX graph, built once for a problem, plus named arrays that
change with every publish. The writer is a `Learner` that owns sums. Named arrays are all that passes between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from msgspec import Meta, Struct

from policies.features import Encoder
from policies.surface import Objective
from policies.training import Trainer
from policies.types import F32, Arrays, Changes, DrawSettings, Head

if TYPE_CHECKING:
    from onnx import ModelProto


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options every algorithm has; each adds its own in a subclass. Defaults are the one default configuration."""

    floor: Annotated[float, Meta(ge=0, le=1)] = 0.02
    head: Head = "draws"
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    draws: Annotated[int, Meta(ge=1, le=4096)] = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """What an algorithm is asked to solve: one surface version seen by one policy.

    weights  objective → weight × scale, signs turned so that larger is better; the order is the surface's
    history  most interactions of a unit that a decision reads (`history`, `history_rows`); 0: none
    horizon  seconds for which silence is corrected for, see `policies.corrected`; 0: it is taken as it is
    """

    encoder: Encoder
    objectives: dict[str, Objective]
    weights: dict[str, float]
    slots: int
    history: int = 0
    horizon: float = 0.0


@dataclass(frozen=True, slots=True)
class Published:
    """What a publish makes of merged sums.

    arrays       the graph's changing initialisers, by input name (float32)
    slot_weight  1/(1+(k−1)ρ̂), logged with each decision drawn from this bundle
    diagnostics  numbers for metrics and the ops page, such as sigma, examples, rho
    temperature  of the draw, where the algorithm finds it instead of the configuration; logged with each decision as any
    """

    arrays: Arrays
    slot_weight: float = 1.0
    diagnostics: dict[str, float] = field(default_factory=dict)
    temperature: float | None = None


def draw_settings(config: Config, temperature: float | None = None, max_share: float = 1.0) -> DrawSettings:
    """How the scores of a publish are drawn from; `temperature` is the publish's own, None: the configuration's."""
    return DrawSettings(
        config.head, config.floor, max_share, config.temperature if temperature is None else temperature
    )


@dataclass(frozen=True, slots=True)
class Addend:
    """Sums that a policy learned under another version of its surface; `problem` says what they are sums of."""

    problem: Problem
    arrays: Arrays


class Learner(Protocol):
    """Owns sums. `arrays` is a copy-free view for a commit; `load` takes what `arrays` gave, here or in another process."""

    def learn(self, changes: Changes) -> None: ...

    def arrays(self) -> Arrays: ...

    def load(self, arrays: Arrays) -> None: ...


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One line of the registry.

    graph      (config, problem) → ONNX model; changing arrays are initialisers that are also inputs
    learner    (config, problem) → Learner with nothing learned; None for algorithms that do not learn
    merge      sums of several shards → one; for `merges` algorithms addition after aligning reference times
    carry      (config, problem, own sums, addends, now seconds) → own sums and all the addends say about this problem, see
               `policies.carrying`; None: a version whose sums have another shape starts with nothing learned
    publish    (config, problem, merged arrays, now seconds, seed) → Published; pure
    reference  (config, problem, published arrays, inputs) → scores (n, m) in plain numpy: what the graph must equal
    shaping    options besides `half_life` that shape the sums: with another value, what was learned is an addend
    trainer    (config, problem) → Trainer, for algorithms that do not merge; None for all others
    manager    (config, problem) → ONNX model of a second graph in the same bundle, over the same arrays: any of context, history,
               history_rows and weights → `goal_logits` f32[g]. The goal drawn of them is the input `goal` of `graph`: f32[g], 1 at
               the goal, all 0 the neutral one. Its Config says how many decisions a goal is kept for: `goal_steps`, 0 = the
               session. None: no goals
    manage     (config, problem, published arrays, inputs) → goal logits (g,) in plain numpy: what the manager must equal
    inputs     names out of the fixed vocabulary that the graph reads (context, items, item_rows, weights …). `group_rows` i64[n]:
               the row of each item's group, −1 = none known; `item_keys` i64[n]: the item's hash, so that draws of items nobody
               has seen differ. `history` f32[h, d],
               `history_rows` i64[h]: the unit's last interactions, oldest first, h from 0 to `Problem.history`
    traits     `odds`: rewards are moved into [0, 1] by their range and cut there, so none may be weighed up beyond it
               `predicts`: the mean of an item's scores is the weighted reward it is expected to earn, in slot 0 where the model knows
               slots
    """

    name: str
    summary: str
    source: str
    config: type[Config]
    graph: Callable[[Any, Problem], "ModelProto"]
    publish: Callable[[Any, Problem, Arrays, float, int], Published]
    reference: Callable[[Any, Problem, Arrays, dict[str, F32]], F32]
    inputs: tuple[str, ...]
    learner: Callable[[Any, Problem], Learner] | None = None
    merge: Callable[[Sequence[Arrays]], Arrays] | None = None
    carry: Callable[[Any, Problem, Arrays, Sequence[Addend], float], Arrays] | None = None
    trainer: Callable[[Any, Problem], Trainer] | None = None
    manager: Callable[[Any, Problem], "ModelProto"] | None = None
    manage: Callable[[Any, Problem, Arrays, dict[str, F32]], F32] | None = None
    shaping: tuple[str, ...] = ()
    traits: frozenset[str] = frozenset()  # merges, learns, contextual, uses_draws, epochs, corrects, predicts, odds
