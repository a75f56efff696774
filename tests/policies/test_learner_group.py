"""RLlib's LearnerGroup with two learners on a local Ray: the gradient is shared, so the weights are those of one learner."""

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from policies.algorithms import constrained_actor_critic
from policies.algorithms.constrained_actor_critic import ConstrainedActorCritic, network
from tests.policies.test_constrained_actor_critic import PROBLEM, lived

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'slatewise[agents]'")
pytest.importorskip("torch", reason="needs torch: pip install 'slatewise[agents]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray and torch warn of themselves, in processes of theirs
]
CONFIG = ConstrainedActorCritic(minibatch=64, replay=256)


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray of this process's own, with room for two learners."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def test_two_learners_are_one(cluster: None) -> None:
    """Three updates of two learners and of one end in the same weights to float32 rounding; state passes between them."""
    batch = lived(30, 8)
    batch = batch.rows(slice(0, 192))
    alone = constrained_actor_critic.trainer(CONFIG, PROBLEM)
    both = constrained_actor_critic.trainer(msgspec.structs.replace(CONFIG, learners=2), PROBLEM)
    try:
        said = [trainer.train(batch) for trainer in (alone, both)]
        assert said[0]["updates"] == said[1]["updates"] == 3
        one, two, start = alone.arrays(), both.arrays(), network.initial(CONFIG, PROBLEM, 3)
        for name in network.WEIGHTS:
            moved = np.abs(one[name].astype(float) - start[name]).max()
            assert moved > 1e-4, name
            np.testing.assert_allclose(two[name], one[name], atol=0.02 * moved, err_msg=name)
        alone.load(two)
        more = lived(30, 8, seed=2).rows(slice(0, 64))
        for trainer in (alone, both):
            trainer.train(more)
        one, two = alone.arrays(), both.arrays()
        for name in network.WEIGHTS:
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, err_msg=name)
    finally:
        both.close()
