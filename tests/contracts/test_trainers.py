"""Every algorithm with a trainer, fed as the service feeds it: killed and started again, it is what the recorded order makes of it."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.registry import ALGORITHMS
from policies.surface import PolicySpec
from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints
from streaming.configuration import Configs
from streaming.publish import Publisher
from streaming.scorer import score
from streaming.trainer import Training
from tests.streaming.test_sequences import START, SURFACE, Settled, experience, frontiers
from tests.training_setup import registered

TRAINED = [name for name, algorithm in ALGORITHMS.items() if algorithm.trainer is not None]
DECISIONS = 1_100  # more than two minibatches of the default size


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_trainer_is_what_the_recorded_order_makes_of_it(name: str) -> None:
    configs = Configs()
    compiled = configs.add(
        msgspec.structs.replace(SURFACE, policies={"agent": PolicySpec(name, objective="click")}, live="agent")
    )
    key = compiled.policies["agent"].key
    with registered():
        found = [experience(i, i % 37, START + i, config=compiled.hash) for i in range(DECISIONS)]
    row = found[0].row
    assert (row.schema, row.objectives) == (compiled.encoder.schema, ("click", "watch"))
    sources = [Settled(0, found), Settled(1, [])]

    def opened(store: MemoryCheckpoints, epoch: int) -> Training:
        return Training(store, sources, configs, epoch=epoch)

    def fed(training: Training, known: int) -> None:
        sources[0].known = known
        while training.step(frontiers(sources)) is not None:
            pass

    store = MemoryCheckpoints()
    one = opened(store, 1)
    one.recover()
    begun = {part: array.copy() for part, array in one.arrays(key).items()}
    fed(one, 700)
    one.checkpoint()
    fed(one, DECISIONS)
    after = {part: array.copy() for part, array in one.arrays(key).items()}
    assert any(not np.array_equal(array, begun.get(part)) for part, array in after.items())
    one.forget()  # no word to the store: killed

    again = opened(store, 2)
    assert again.recover() > 0
    for part, array in again.arrays(key).items():
        assert array.tobytes() == after[part].tobytes(), part

    policy = compiled.policies["agent"]
    outcome = Publisher(bundles := MemoryBundles(), configs, 1).publish(
        policy, [again.arrays(key)], again.through, START
    )
    assert outcome.manifest is not None, outcome
    made = bundling.read(outcome.manifest.bundle, bundles.get)
    empty = {**made.probes, "history": made.probes["history"][:0]} if "history" in made.probes else {**made.probes}
    if "history_rows" in empty:
        empty["history_rows"] = empty["history_rows"][:0]
    assert np.isfinite(score(made.graph, made.arrays, empty)).all()  # a unit nobody knows yet
    again.close()


def test_what_is_planted_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer whose state depends on more than its calls is found."""
    with registered() as _:
        from tests.training_setup import ALGORITHM, Gradients

        class Forgetful(Gradients):
            def load(self, arrays: "dict[str, np.ndarray]") -> None:  # type: ignore[type-arg,override]
                super().load({**arrays, "velocity": np.zeros_like(arrays["velocity"])})

        monkeypatch.setitem(ALGORITHMS, "forgetful", replace(ALGORITHM, name="forgetful", trainer=Forgetful))
        with pytest.raises(AssertionError, match=r"theta|velocity|M"):
            test_a_killed_trainer_is_what_the_recorded_order_makes_of_it("forgetful")
