"""What a policy would have earned over whole sessions: estimators of sequences on the episodes of a log."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from policies.errors import Rejected
from policies.evaluation.diagnostics import Diagnostics, diagnose
from policies.evaluation.estimate import Estimate, mean_of
from policies.evaluation.estimators import ESTIMATORS
from policies.evaluation.intervals import skewed
from policies.evaluation.logged import Logged
from policies.evaluation.sequences import SEQUENCES, SequenceEstimator, StepWeights, Trajectories
from policies.types import F64
from services.evaluation.assembling import Assembled, calibrate, certain, features_of, objective_column, set_aside
from services.evaluation.decisions import Log
from services.evaluation.episodes import Episode, episodes
from services.evaluation.evaluating import Evaluation, Line, Sessions, check_support, doubts
from services.evaluation.stepping import Step, Walk
from services.evaluation.targets import Target

NOT_IN_ORDER = "none: episodes overlap in time"


def asked_of_sessions(
    sequences: bool,
    names: Sequence[str],
    *,
    sampled: bool,
    replays: bool,
    discount: float | None,
    steps: int | None,
) -> bool:
    """Whether sessions are asked about, by the flag or by an estimator's name. Raises Rejected for what does not go with it."""
    of_sessions = [name for name in names if name in SEQUENCES]
    wanted = sequences or bool(of_sessions)
    if not wanted:
        for option, given in (("--discount", discount), ("--steps", steps)):
            if given is not None:
                raise Rejected("It is of sessions: say --sequences too", at=option, code="not_sequences")
        return False
    others = [name for name in names if name in ESTIMATORS]
    if others:
        raise Rejected(
            f"{others[0]} is of a decision, and an episode is asked about: run them apart",
            at="--estimator",
            code="mixed",
        )
    for option, given in (("--sampled", sampled), ("--replays", replays)):
        if given:
            said = "leaves holes in sessions" if sampled else "is for iips and pseudo_inverse, of single decisions"
            raise Rejected(f"It {said}", at=option, code="not_of_sessions")
    return True


def evaluate_sequences(
    log: Log,
    target: Target,
    objective: str,
    *,
    names: Sequence[str] = (),
    alpha: float = 0.05,
    discount: float = 1.0,
    most: int | None = None,
    since: float = -np.inf,
    until: float = np.inf,
    unsettled: bool = False,
    partial_support: bool = False,
) -> Evaluation:
    """`names`: estimators, default all; `most`: steps of an episode that count; `since`, `until`: of its beginning. Raises Rejected:
    see `episodes`, and as `evaluating.evaluate` does.
    """
    if not 0.0 < alpha < 1.0:
        raise Rejected(f"Expected a number between 0 and 1, got {alpha:g}", at="--alpha", code="bad_alpha")
    if not 0.0 < discount <= 1.0:
        raise Rejected(
            f"Expected a number above 0 and at most 1, got {discount:g}", at="--discount", code="bad_discount"
        )
    column = objective_column(log, objective)
    wanted = [_estimator(name) for name in names] or [*SEQUENCES.values()]
    found, counts = episodes(log, since=since, until=until, unsettled=unsettled)
    cut = sum(len(episode) > most for episode in found) if most is not None else 0
    modelled = any(each.needs for each in wanted)
    walked = []
    for episode in found:
        steps = _walked(log, target, episode[:most], modelled)
        if steps is None:
            counts["broken"] += 1
        else:
            walked.append(steps)
    left_out = {reason: n for reason, n in sorted(counts.items()) if n}
    if not walked:
        said = "; ".join(f"{n} {reason}" for reason, n in left_out.items()) or "it holds none"
        raise Rejected(
            f"No episode of the log can be used: {said}; --unsettled adds those that may go on",
            at="$.log",
            code="empty_log",
        )
    trajectories = Trajectories(_logged(log, walked, column), discount)
    assembled = _assembled(trajectories.steps, [step for steps in walked for step in steps])
    check_support(assembled, target, partial_support)
    level = 1.0 - alpha
    own = Estimate("logged", (mean_of(trajectories.steps.rewards @ trajectories.discounts),), trajectories.steps.units)
    baseline = Line("logged", "none: what was logged", "mean Σ_t γ^t r_t", own, skewed(own, level))
    looked = diagnose(trajectories.steps, "prefix")
    lines = [_line(each, trajectories, looked, level, strict=bool(names)) for each in wanted]
    return Evaluation(
        log,
        target.name,
        objective,
        level,
        log.ranges.get(objective),
        baseline,
        lines,
        assembled,
        doubts(log, assembled, lines),
        Sessions(discount, StepWeights.of(trajectories), left_out, cut),
    )


def _line(
    each: SequenceEstimator, trajectories: Trajectories, looked: Diagnostics, level: float, *, strict: bool
) -> Line:
    """`strict`: it was asked for, so what refuses it is raised."""
    try:
        estimate = each(trajectories)
    except Rejected as error:
        if strict:
            raise
        return Line(each.name, each.assumption, each.formula, refused=error.message)
    weighs = each.name != "fqe"
    return Line(
        each.name,
        each.assumption,
        each.formula,
        estimate,
        skewed(estimate, level),
        weighting="prefix" if weighs else "none",
        diagnostics=looked if weighs else None,
        finite_refused=NOT_IN_ORDER,
    )


def _estimator(name: str) -> SequenceEstimator:
    if name not in SEQUENCES:
        raise Rejected(
            f"No estimator of sequences {name!r}; there are {', '.join(SEQUENCES)}",
            at="--estimator",
            code="unknown_estimator",
        )
    return SEQUENCES[name]


def _walked(log: Log, target: Target, episode: Episode, modelled: bool) -> list[Step] | None:
    """The episode's steps; None where one of them cannot be weighed, which is counted."""
    walk = Walk(target, modelled)
    steps = []
    for decision in episode:
        try:
            steps.append(walk.step(decision))
        except (Rejected, ValueError) as error:
            set_aside(log, decision, error)
            return None
    return steps


def _assembled(logged: Logged, steps: Sequence[Step]) -> Assembled:
    """What is known of the support and of the propensities behind the episodes' steps."""
    outside = np.concatenate([step.outside for step in steps])
    known = ~np.isnan(outside)
    return Assembled(
        logged,
        calibrate([step.decision for step in steps]),
        float(outside[known].mean()) if known.any() else float("nan"),
        float(known.mean()),
        sum(certain(step.decision) for step in steps),
        [step.decision for step in steps],
    )


def _logged(log: Log, walked: Sequence[Sequence[Step]], column: int) -> Logged:
    n, T = len(walked), max(map(len, walked))
    rewards, behaviour, target = np.zeros((n, T)), np.ones((n, T)), np.ones((n, T))
    present, design = np.zeros((n, T), np.bool_), np.ones((n, T))
    for i, steps in enumerate(walked):
        size = len(steps)
        rewards[i, :size] = [step.decision.rewards[:, column].sum() for step in steps]
        behaviour[i, :size] = [step.behaviour for step in steps]
        target[i, :size] = [step.target for step in steps]
        design[i, :size] = [step.design for step in steps]
        present[i, :size] = True
    _, units = np.unique([steps[0].decision.unit for steps in walked], return_inverse=True)
    made = Logged(
        rewards=rewards,
        behaviour=behaviour,
        target=target,
        present=present,
        units=units.astype(np.int64),
        times=np.array([steps[0].decision.at for steps in walked]),
        design=design,
    )
    known = _features(log, walked)
    if known is None:
        return made
    features, expected = (np.zeros((n, T, value.shape[-1])) for value in known)
    features[present], expected[present] = known
    return replace(made, features=features, expected_features=expected)


def _features(log: Log, walked: Sequence[Sequence[Step]]) -> tuple[F64, F64] | None:
    """φ(s, a) and E_π φ(s, ·) of every step (steps, d): the mean over its slots."""
    steps = [step for some in walked for step in some]
    marginals = [step.marginals for step in steps if step.marginals is not None]
    if len(marginals) < len(steps):
        return None
    found = features_of([step.decision for step in steps], marginals, log)
    if found is None:
        return None
    sizes = np.array([len(step.decision.rows) for step in steps])[:, None]
    features, expected = (value.sum(axis=1) / sizes for value in found)
    return features, expected
