"""Every estimator's word on a target, with intervals, what it assumes, and what speaks against believing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from policies.errors import Rejected
from policies.evaluation.anytime import Method, martingale
from policies.evaluation.diagnostics import Diagnostics, diagnose
from policies.evaluation.estimate import Estimate, Weighting, mean_of
from policies.evaluation.estimators import ESTIMATORS, estimator
from policies.evaluation.intervals import Interval, skewed
from policies.evaluation.logged import Logged
from policies.evaluation.sequences import StepWeights
from policies.evaluation.slates import SLATES
from policies.evaluation.tails import TAILS
from services.evaluation.assembling import Assembled, assemble
from services.evaluation.decisions import Log
from services.evaluation.replaying import Replaying
from services.evaluation.targets import Target

WHOLE = "the log has one reward for the whole slate, and this estimator wants one for each slot"
BY_NAME = "only by name: it replays every decision's slate"
FROM_REPLAYS = "none: replays know its weights up to their own error"
ENOUGH = 200.0  # design effective sample size below which no gate decides (methods.md 5)


@dataclass(frozen=True, slots=True)
class Line:
    """One estimator: `refused` says why it gives no number."""

    name: str
    assumption: str
    formula: str
    estimate: Estimate | None = None
    interval: Interval | None = None
    finite: Interval | None = None
    weighting: str = ""
    diagnostics: Diagnostics | None = None
    refused: str = ""
    finite_refused: str = ""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Of an evaluation of episodes: `left_out` reason → episodes that are no part of it; `cut`: longer than what counts."""

    discount: float
    weights: StepWeights
    left_out: dict[str, int]
    cut: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is known of a target's value on a log, beside that of the policy that was logged: of a decision, or of an episode."""

    log: Log
    target: str
    objective: str
    level: float
    range: tuple[float, float] | None
    baseline: Line
    lines: list[Line]
    assembled: Assembled
    warnings: list[str] = field(default_factory=list)
    sessions: Sessions | None = None


def evaluate(
    log: Log,
    target: Target,
    objective: str,
    *,
    names: Sequence[str] = (),
    alpha: float = 0.05,
    span: tuple[float, float] | None = None,
    partial_support: bool = False,
    method: Method = "empirical_bernstein",
    replaying: Replaying | None = None,
) -> Evaluation:
    """`names`: estimators, default all that apply; `span`: (low, high) of one slot's reward, default the objective's;
    `method` of the finite-sample intervals, which are those of the target's value under the weights of the estimator;
    `replaying`: what iips and pseudo_inverse need.

    Raises Rejected: see `assemble`; for a target that may show what the log could not, unless `partial_support`.
    """
    if not 0.0 < alpha < 1.0:
        raise Rejected(f"Expected a number between 0 and 1, got {alpha:g}", at="--alpha", code="bad_alpha")
    found = assemble(log, target, objective, replaying)
    check_support(found, target, partial_support)
    logged = found.logged
    one_slot = logged.rewards.shape[1] == 1  # estimators for slates are those of slots then
    all_that_apply = [each for each in ESTIMATORS.values() if not (one_slot and each in SLATES)]
    wanted = [estimator(name, "--estimator") for name in names] or all_that_apply
    level = 1.0 - alpha
    limits = span or log.ranges.get(objective)
    own = Estimate("logged", (mean_of(logged.totals),), logged.units)
    own_logged = replace(logged, target=logged.behaviour)
    finite, refused = _finite(own_logged, limits, "slot", level, method)
    baseline = Line(
        "logged", "none: what was logged", "mean Σ_t r_t", own, skewed(own, level), finite, finite_refused=refused
    )
    lines: list[Line] = []
    looked: dict[Weighting, Diagnostics] = {}
    bounded: dict[Weighting, tuple[Interval | None, str]] = {}
    for each in wanted:
        line: dict[str, Any] = {"name": each.name, "assumption": each.assumption, "formula": each.formula}
        try:
            if log.whole and each.weighting in ("slot", "marginal") and not one_slot:
                raise Rejected(WHOLE, at="--estimator", code="whole_reward")
            if "marginals" in each.needs and logged.marginals is None:
                raise Rejected(BY_NAME, at="--estimator", code="no_marginals")
            estimate = each(logged)
        except Rejected as error:
            if names:
                raise
            lines.append(Line(**line, refused=error.message))
            continue
        line |= {"estimate": estimate, "interval": skewed(estimate, level)}
        if each.weighting not in looked:
            looked[each.weighting] = diagnose(logged, each.weighting)
            bounded[each.weighting] = _finite(logged, limits, each.weighting, level, method)
        finite, refused = (None, "") if each in TAILS or each.weighting == "none" else bounded[each.weighting]
        line |= {"finite": finite, "finite_refused": refused}
        lines.append(Line(**line, weighting=each.weighting, diagnostics=looked[each.weighting]))
    return Evaluation(log, target.name, objective, level, limits, baseline, lines, found, doubts(log, found, lines))


def check_support(found: Assembled, target: Target, partial: bool) -> None:
    """Raises Rejected for a target that may show what the log could not, unless part of it is enough."""
    if found.outside > 1e-9 and not partial:  # rounding of probabilities that sum to one
        raise Rejected(
            f"{found.outside:.2%} of the probability of {target.name} lies on items that the log could not have drawn: what it "
            "earns there is not in the log. --partial-support estimates the rest",
            at="--policy",
            code="outside_support",
        )


def _finite(
    logged: Logged, limits: tuple[float, float] | None, weighting: Weighting, level: float, method: Method
) -> tuple[Interval | None, str]:
    """The interval that holds at every size, or why there is none. A model's weights are none."""
    if weighting == "none":
        return None, ""
    if weighting == "marginal":
        return None, FROM_REPLAYS
    if limits is None:
        return None, "needs a --range"
    return martingale(logged, limits, weighting, level, method), ""


def doubts(log: Log, found: Assembled, lines: Sequence[Line]) -> list[str]:
    """What speaks against believing the numbers."""
    said = []
    if log.rejected.total:
        said.append(f"{log.rejected.total} records set aside: {'; '.join(log.rejected.lines())}")
    if found.outside > 1e-9:
        said.append(
            f"{found.outside:.2%} of the target's probability is outside the log's support: the value is of the rest"
        )
    if not found.calibration.ok:
        said.append(
            f"The logged propensities are not what was drawn from: z {found.calibration.worst_z:.1f} ({found.calibration.arm}), "
            f"mean 1/p off by {found.calibration.inverse_z:.1f} standard errors; no number below can be believed"
        )
    if found.certain:
        said.append(f"{found.certain} slots were drawn with probability 1: no other policy can be judged there")
    weights = [line.diagnostics for line in lines if line.diagnostics is not None]
    if any(not one.weights_ok for one in weights):
        worst = max(weights, key=lambda one: abs(one.mean_weight_z))
        said.append(
            f"The mean weight is {worst.mean_weight:.3f}, {worst.mean_weight_z:.1f} standard errors from 1: wrong propensities, "
            "a target that is not supported, or missing decisions"
        )
    low = [one.design_ess for one in weights if one.design_ess < ENOUGH]
    if low:
        said.append(
            f"Design effective sample size {min(low):.0f}: below {ENOUGH:.0f} no interval but the finite-sample one holds"
        )
    return said
