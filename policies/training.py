"""Trainers: learners that do not merge. One a policy, fed by all partitions in one recorded order (`semantics.md` 15)."""

from typing import Protocol

from policies.sequences import Transitions
from policies.types import Arrays


class Trainer(Protocol):
    """Owns weights, optimiser and replay. Its state is a function of the calls it got, in their order, and of its seed.

    As everywhere, named arrays are all that passes: `arrays` gives everything a checkpoint needs (weights, optimiser, replay,
    random state), `load` takes it in another process, and `Algorithm.publish` makes a bundle of the same arrays.
    """

    def train(self, batch: Transitions) -> dict[str, float]:
        """Take new transitions and learn; metrics by name, as they stand after the call (losses, clipped_share …).

        A loss that is not finite changes nothing and is counted: `skipped` is the number of updates it happened to since the
        beginning. `multiplier_<objective>` is a constraint's. A trainer that holds processes has a `close()` too.
        """

    def arrays(self) -> Arrays: ...

    def load(self, arrays: Arrays) -> None: ...
