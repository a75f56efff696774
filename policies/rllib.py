"""RLlib's LearnerGroup as trainers use it: named arrays in, named arrays out, torch and ray imported when one is made.

    group = Group(module, learner, model, learners=0, learning_rate=1e-3, clip_norm=1.0)
    group.load({"w": …}, {})                  weights, and what `moments` gave (empty: an optimiser that has seen nothing)
    group.update({"x": …}) → [measured, …]    one gradient step on all rows, split over the learners: what each measured

`module` is a TorchRLModule whose parameters are what `load` and `weights` name, `learner` a `SteadyLearner`. State leaves by
`get_state` and enters by `set_state`; nothing is pickled to a file.
"""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policies.types import F32, Arrays

if TYPE_CHECKING:
    from ray.rllib.core.learner.learner_group import LearnerGroup

ADAM = {"mean": "exp_avg", "square": "exp_avg_sq", "step": "step"}  # our name of a moment → Adam's


class Group:
    """0 learners: in this process, without a cluster. n ≥ 1: actors on the Ray cluster this process is connected to."""

    def __init__(
        self,
        module: type,
        learner: type,
        model: dict[str, Any],
        *,
        learners: int,
        learning_rate: float,
        clip_norm: float,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # RLlib and what it imports warn of their own old names
            self._group = _made(module, learner, model, learners, learning_rate, clip_norm)
        self.learners = max(1, learners)

    def update(self, columns: dict[str, NDArray[np.generic]]) -> list[F32]:
        """Rows are split evenly over the learners, so there must be at least as many."""
        from ray.rllib.core import DEFAULT_MODULE_ID
        from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

        rows = len(next(iter(columns.values())))
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)
        return [np.asarray(result["measured"], np.float32) for result in self._group.update(batch=batch)]

    def weights(self) -> dict[str, F32]:
        """Copies: RLlib's own arrays are the parameters' memory."""
        return {name: np.array(value, np.float32) for name, value in self._parameters(self._state()).items()}

    def arrays(self) -> Arrays:
        """Weights by their own names, and Adam's moments as `mean.<name>`, `square.<name>`, `step.<name>`."""
        state = self._state()
        parameters = self._parameters(state)
        held: Arrays = {name: np.array(value, np.float32) for name, value in parameters.items()}
        moments = _optimiser(state)["state"]["state"]
        for i, name in enumerate(parameters):
            for ours, theirs in ADAM.items():
                if i in moments:
                    held[f"{ours}.{name}"] = np.array(moments[i][theirs], np.float32)
        return held

    def load(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave; weights alone start an optimiser that has seen nothing."""
        state = self._state()
        parameters = self._parameters(state)
        optimiser = _optimiser(state)
        moments = {
            i: {theirs: np.array(arrays[f"{ours}.{name}"], np.float32) for ours, theirs in ADAM.items()}
            for i, name in enumerate(parameters)
            if f"mean.{name}" in arrays
        }
        optimiser["state"] = {**optimiser["state"], "state": moments}
        for name in parameters:
            parameters[name] = np.array(arrays[name], np.float32)
        state["weights_seq_no"] = (
            0  # any other number that is not larger than the learner's own: the weights are ignored
        )
        self._group.set_state({"learner": state})

    def close(self) -> None:
        self._group.shutdown()

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._group.get_state()["learner"]
        return state

    @staticmethod
    def _parameters(state: dict[str, Any]) -> dict[str, Any]:
        from ray.rllib.core import DEFAULT_MODULE_ID

        parameters: dict[str, Any] = state["rl_module"][DEFAULT_MODULE_ID]
        return parameters


def _optimiser(state: dict[str, Any]) -> dict[str, Any]:
    (found,) = state["optimizer"].values()
    return dict(found) if not isinstance(found, dict) else found


def _made(
    module: type, learner: type, model: dict[str, Any], learners: int, learning_rate: float, clip_norm: float
) -> "LearnerGroup":
    from gymnasium import spaces  # RLlib's own dependency
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.learner.learner_group import LearnerGroup
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    config = (
        AlgorithmConfig()
        .framework("torch")
        .learners(num_learners=learners, learner_class=learner, num_cpus_per_learner=1, num_gpus_per_learner=0)
        .training(lr=learning_rate, grad_clip=clip_norm, grad_clip_by="global_norm")
        .experimental(_torch_grad_scaler_class=None)
    )
    config.torch_skip_nan_gradients = True  # a step that is not finite is not taken at all, see `SteadyLearner`
    spec = RLModuleSpec(
        module_class=module,
        # RLlib wants spaces; the module never asks for them
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Discrete(2),
        model_config=model,
    )
    return LearnerGroup(config=config, module_spec=spec)
