"""What an experiment shows so far: effects, guardrails, sample ratio, and what to know before believing it.

The observation is a unit: its total over the window from its first exposure, entering when the window is complete. Everyone
assigned counts, in the arm that was first (intent to treat), whatever came later. Effects are turned so that higher is better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from policies.experiments.bayesian import Posterior, posterior
from policies.experiments.correction import corrected
from policies.experiments.document import Allocation, Experiment
from policies.experiments.effects import Effect, adjusted, effect, ratio, stratified
from policies.experiments.fixed import fixed
from policies.experiments.interleaving import credit_name, preferred
from policies.experiments.mismatch import ALPHA, p_value
from policies.experiments.sequential import UNKNOWN, Interval, sequential
from policies.types import F64, I64, Mask

DECISIONS = "decisions"
Verdict = Literal["better", "worse", "open"]


@dataclass(frozen=True, slots=True)
class Units:
    """N units that were assigned.

    arms, allocations (N,)  of the first exposure: numbers of arms of the document and of its allocations
    complete (N,)           whether the window has closed
    totals, before (N, M)   metrics' totals over the window, and over a window before the experiment
    metrics                 names of the M columns: objectives and `decisions`
    """

    arms: I64
    allocations: I64
    complete: Mask
    totals: F64
    before: F64
    metrics: Sequence[str]


class Comparison(Struct, frozen=True, omit_defaults=True):
    """One metric of a treatment against the control. `low` and `high` None: unbounded so far."""

    metric: str
    role: str  # primary | secondary | guardrail
    arm: str
    verdict: Verdict
    control: float | None = None
    treatment: float | None = None
    effect: float | None = None
    relative: float | None = None
    low: float | None = None
    high: float | None = None
    p: float = 1.0
    p_adjusted: float | None = None
    variance_left: float = 1.0  # by CUPED
    chance: float | None = None  # Bayesian: that the treatment is better
    loss_keep: float | None = None
    loss_ship: float | None = None


class Guarded(Struct, frozen=True):
    """A guardrail of a treatment. `breached`: an effect below `min_effect` is established; `safe`: one above."""

    metric: str
    arm: str
    min_effect: float
    effect: float | None
    low: float | None
    high: float | None
    verdict: Literal["breached", "safe", "open"]


class Ratio(Struct, frozen=True):
    """Sample ratio of everyone assigned."""

    p: float
    mismatch: bool
    alpha: float = ALPHA


class Readout(Struct, frozen=True):
    """All of it. `final`: no further look is planned, or looks cost nothing."""

    experiment: str
    method: str
    final: bool
    assigned: dict[str, int]
    complete: dict[str, int]
    sample_ratio: Ratio
    comparisons: list[Comparison]
    guardrails: list[Guarded]
    interference: list[str]
    notes: list[str]


def readout(
    document: Experiment,
    units: Units,
    allocations: Sequence[Allocation],
    better: Mapping[str, Literal["higher", "lower"]],
    interference: Sequence[str] = (),
) -> Readout:
    """The readout of units. `better` of objectives: what is lower when better is turned."""
    names = list(document.arms)
    comparisons = _compared(document, units, better)
    complete = {name: int((units.complete & (units.arms == i)).sum()) for i, name in enumerate(names)}
    return Readout(
        experiment=document.experiment,
        method=document.analysis.method,
        final=document.analysis.method != "fixed" or sum(complete.values()) >= document.analysis.planned,
        assigned={name: int((units.arms == i).sum()) for i, name in enumerate(names)},
        complete=complete,
        sample_ratio=sample_ratio(document, units, allocations),
        comparisons=comparisons,
        guardrails=guarded(document, units, better),
        interference=list(interference),
        notes=_notes(document, units),
    )


def sample_ratio(document: Experiment, units: Units, allocations: Sequence[Allocation]) -> Ratio:
    """Of everyone assigned, each under the shares that were in force."""
    names = list(document.arms)
    counts = []
    for number in range(len(allocations)):
        found = np.bincount(units.arms[units.allocations == number], minlength=len(names))
        counts.append(dict(zip(names, found.tolist(), strict=True)))
    p = p_value(counts, [allocation.shares for allocation in allocations])
    return Ratio(p, p < ALPHA)


def guarded(document: Experiment, units: Units, better: Mapping[str, Literal["higher", "lower"]]) -> list[Guarded]:
    """Judged sequentially whatever the method, because they are looked at all the time; α is shared by all of them."""
    found = []
    alpha = document.analysis.alpha / max(1, len(document.metrics.guardrails) * len(document.treatments))
    for metric, guardrail in document.metrics.guardrails.items():
        for arm in document.treatments:
            seen, _ = _effect(document, units, metric, arm, better)
            interval = sequential(seen, _planned(document), alpha)
            verdict: Literal["breached", "safe", "open"] = "open"
            if interval.high < guardrail.min_effect:
                verdict = "breached"
            elif interval.low > guardrail.min_effect:
                verdict = "safe"
            value = seen.value if seen else None
            bounds = _bounds(interval)
            found.append(Guarded(metric, arm, guardrail.min_effect, value, *bounds, verdict))
    return found


def _compared(document: Experiment, units: Units, better: Mapping[str, Literal["higher", "lower"]]) -> list[Comparison]:
    analysis = document.analysis
    wanted = [(document.metrics.primary, "primary"), *((name, "secondary") for name in document.metrics.secondary)]
    cases = [(metric, role, arm) for metric, role in wanted for arm in document.treatments]
    found: list[tuple[Effect | None, float, Interval, Posterior | None]] = []
    for metric, _, arm in cases:
        seen, left = _effect(document, units, metric, arm, better)
        if analysis.method == "bayesian":
            belief = posterior(seen, analysis.effect, analysis.alpha) if seen else None
            bounds = Interval(belief.low, belief.high, 1.0) if belief else UNKNOWN
            found.append((seen, left, bounds, belief))
        else:
            judged = sequential(seen, _planned(document), analysis.alpha)
            if analysis.method == "fixed":
                judged = fixed(seen, analysis.alpha)
            found.append((seen, left, judged, None))
    p = corrected(np.array([interval.p for _, _, interval, _ in found]), analysis.correction)
    done = analysis.method != "fixed" or int(units.complete.sum()) >= analysis.planned
    comparisons = []
    for (metric, role, arm), (seen, left, interval, belief), after in zip(cases, found, p.tolist(), strict=True):
        said = after < analysis.alpha if belief is None else interval.low > 0 or interval.high < 0
        verdict: Verdict = "open"
        if seen is not None and said and done:
            verdict = "better" if seen.value > 0 else "worse"
        low, high = _bounds(interval)
        line = Comparison(metric, role, arm, verdict, low=low, high=high, p=interval.p, variance_left=left)
        told: dict[str, float | None] = {}
        if seen is not None:
            told = {
                "control": seen.control,
                "treatment": seen.treatment,
                "effect": seen.value,
                "relative": seen.relative,
            }
        if belief is None:
            told["p_adjusted"] = after
        else:
            told |= {"effect": belief.mean, "chance": belief.chance}
            told |= {"loss_keep": belief.loss_keep, "loss_ship": belief.loss_ship}
        comparisons.append(msgspec.structs.replace(line, **told))
    return comparisons


def _effect(
    document: Experiment, units: Units, metric: str, arm: str, better: Mapping[str, Literal["higher", "lower"]]
) -> tuple[Effect | None, float]:
    """(effect of an arm on a metric, share of the variance that CUPED left)."""
    if document.kind == "interleaving":
        return _preferred(document, units, metric, arm, better), 1.0
    names = list(document.arms)
    values, covariates, times = [], [], []
    for name in (document.control_arm, arm):
        rows = units.complete & (units.arms == names.index(name))
        times.append(units.allocations[rows])
        values.append(_values(document, units.totals[rows], units.metrics, metric))
        covariates.append(_values(document, units.before[rows], units.metrics, metric))
    if document.analysis.cuped and all(len(x) == len(y) for x, y in zip(covariates, values, strict=True)):
        values, left = adjusted(values, covariates)
    else:  # a ratio whose denominator nobody had before
        left = 1.0
    sign = -1.0 if better.get(document.metrics.ratios.get(metric, (metric,))[0]) == "lower" else 1.0
    control, treatment = (sign * side for side in values)
    if not len(control) or not len(treatment):  # of a ratio: nothing to divide by
        return None, left
    strata = np.unique(np.concatenate(times)).tolist()
    return stratified([effect(control[times[0] == one], treatment[times[1] == one]) for one in strata]), left


def _preferred(
    document: Experiment, units: Units, metric: str, arm: str, better: Mapping[str, Literal["higher", "lower"]]
) -> Effect | None:
    columns = list(units.metrics)
    sign = -1.0 if better.get(metric) == "lower" else 1.0
    sides = [
        sign * units.totals[units.complete, columns.index(credit_name(metric, name))]
        for name in (document.control_arm, arm)
    ]
    return preferred(sides[0], sides[1])


def _values(document: Experiment, totals: F64, metrics: Sequence[str], metric: str) -> F64:
    columns = list(metrics)
    if metric in document.metrics.ratios:
        numerator, denominator = document.metrics.ratios[metric]
        return ratio(totals[:, columns.index(numerator)], totals[:, columns.index(denominator)])
    return totals[:, columns.index(metric)]


def _planned(document: Experiment) -> int:
    """Units of one comparison, of those that all arms together shall have."""
    shares = [arm.share for arm in document.arms.values()]
    part = 2 / len(shares) if shares else 1.0
    return max(2, round(document.analysis.planned * part))


def _bounds(interval: Interval) -> tuple[float | None, float | None]:
    return (
        interval.low if math.isfinite(interval.low) else None,
        interval.high if math.isfinite(interval.high) else None,
    )


def _notes(document: Experiment, units: Units) -> list[str]:
    analysis = document.analysis
    notes = [
        "Arms go on learning while the experiment runs: an effect is an average over the run, not the value of what was learned at its end.",
        f"A unit enters when its window of {analysis.window} is complete; everyone assigned counts, in the arm of the first exposure.",
    ]
    if document.kind == "interleaving":
        notes.append(
            "Interleaved: every slate is of both policies. `control` and `treatment` are shares of units whose items of that side earned"
            " more, ties counting half, units that gave nothing left out; the effect is what the treatment's share is above one half."
        )
    if document.unit == "session":
        notes.append(
            "Assigned by session: sessions of one unit are taken as independent, so intervals are too narrow where they are not."
        )
    if analysis.method == "fixed":
        notes.append(f"Fixed horizon: valid once, at {analysis.planned} units; earlier looks are no result.")
    if analysis.method == "bayesian":
        notes.append("Bayesian: the interval holds belief, not a rate of false alarms over many looks.")
    if len(document.treatments) * (1 + len(document.metrics.secondary)) > 1:
        notes.append(f"Verdicts are of p-values adjusted by {analysis.correction}; intervals are each for itself.")
    if len(np.unique(units.allocations)) > 1:
        notes.append(
            "Shares changed during the run: units keep the arm of their first exposure, also those that were moved."
        )
    return notes
