"""A policy of a config folder, fitted by its own learner on the first part of a log, as shards would have taught it."""

from collections.abc import Sequence

import numpy as np

from policies.errors import Rejected
from policies.types import F32, Changes, item_hashes
from services.evaluation.decisions import Log, LoggedDecision
from services.evaluation.resolving import Asked, scored
from services.evaluation.targets import Scored
from streaming.joined import Terms

BATCH = 2_000  # decisions learned at once


def fitted(asked: Asked, log: Log, seed: int = 0) -> Scored:
    """The policy after all decisions of `log`, its pool of draws made from `seed`.

    Raises Rejected for an objective of its surface that the log has not, and for slots its surface has not.
    """
    compiled, policy = asked.compiled, asked.policy
    assert compiled is not None
    assert policy is not None
    algorithm, problem = policy.algorithm, policy.problem
    assert algorithm.learner is not None  # `Asked.learns`
    wanted = compiled.surface.objective_names
    missing = [name for name in wanted if name not in log.objectives]
    if missing:
        raise Rejected(
            f"The surface learns {', '.join(missing)}, and the log has {', '.join(log.objectives) or 'no objective'}",
            at="--config",
            code="unknown_objective",
        )
    order = np.array([log.objectives.index(name) for name in wanted], np.int64)
    most = max(int(one.slots[-1]) for one in log.decisions) + 1
    if most > problem.slots:
        raise Rejected(f"The log has {most} slots, the surface {problem.slots}", at="--config", code="too_many_slots")
    learner, terms = algorithm.learner(policy.config, problem), Terms.of(compiled)
    for start in range(0, len(log), BATCH):
        learner.learn(terms.taught(changes(log.decisions[start : start + BATCH], order)))
    now = log.decisions[-1].at + problem.horizon  # what is logged has settled
    published = algorithm.publish(policy.config, problem, learner.arrays(), now, seed)
    return scored(compiled, policy, published, f"{asked.name}, fitted on {len(log)} decisions")


def changes(decisions: Sequence[LoggedDecision], objectives: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Changes:
    """New examples, all slots of each decision; `objectives`: the log's columns in the surface's order."""
    sizes = np.array([len(one.rows) for one in decisions])
    contexts: list[F32] = []
    shown: list[F32] = []
    for one in decisions:
        matrix = one.matrix
        if matrix is None or one.context is None:
            raise Rejected("The log has no features to learn from", at="$.candidates", code="features_unknown")
        contexts.append(one.context)
        shown.append(matrix[one.rows])
    n = int(sizes.sum())
    present = np.concatenate([one.present for one in decisions]).astype(float)
    rewards = np.concatenate([one.rewards[:, objectives] for one in decisions]) * present[:, None]
    names = [one.candidates[row] for one in decisions for row in one.rows.tolist()]
    return Changes(
        context=np.repeat(np.stack(contexts), sizes, axis=0),
        items=np.concatenate(shown),
        slots=np.concatenate([one.slots for one in decisions]),
        slates=np.repeat(np.arange(len(decisions)), sizes),
        times=np.repeat([one.at for one in decisions], sizes),
        weights=np.repeat([one.slot_weight for one in decisions], sizes),
        present_before=np.zeros(n),
        present_after=present,
        rewards_before=np.zeros((n, len(objectives))),
        rewards_after=rewards,
        item_hashes=item_hashes(names),
        propensities=np.concatenate([one.propensities for one in decisions]),
    )
