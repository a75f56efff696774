"""The Open Bandit Dataset, small version: every estimator on uniform logs against the shop's own Thompson sampler, whose logs lie beside.

Target    Bernoulli Thompson sampling from the shop's published prior, 100,000 simulations (`services.evaluation.bernoulli`)
Truth     mean click of the `bts` logs: 38 to 69 clicks a log, so its own interval is wide
Known     campaign all: IPS 0.004553, relative error 0.084019 (published quickstart of the Open Bandit Pipeline)
"""

from pathlib import Path

import numpy as np

from policies.evaluation.intervals import Interval, standard_error
from services.evaluation import tabular
from services.evaluation.evaluating import Evaluation, Line, evaluate
from services.evaluation.resolving import Asked, ready
from services.evaluation.targets import Behaviour
from services.replay.datasets import located
from services.studies.study import Cell, Study

CAMPAIGNS = ("all", "men", "women")
PUBLISHED = {"ips": 0.004553, "relative error of ips": 0.084019}


def run(quick: bool, seeds: int | None, data: Path | None) -> Study:
    """`quick`: campaign all alone. There is nothing random but the target's published simulation: `seeds` changes nothing."""
    study = Study("Open Bandit Dataset (small): off-policy estimates of the shop's own policy from uniform logs")
    for campaign in CAMPAIGNS[:1] if quick else CAMPAIGNS:
        folder = {name: located(data, f"obd/{name}/{campaign}/{campaign}.csv").parent for name in ("random", "bts")}
        truth = evaluate(tabular.read_obd(folder["bts"]), Behaviour(), "click", names=["ips"]).baseline
        log = tabular.read_obd(folder["random"])
        told = evaluate(log, ready(Asked("bernoulli_ts"), log), "click")
        betting = evaluate(log, ready(Asked("bernoulli_ts"), log), "click", names=["ips"], method="betting").lines[0]
        if campaign == "all":
            _published(study, told, truth)
        _table(study, campaign, told, truth, betting)
    study.note(
        "Clicks are rare (38 to 69 a log): these numbers check formulas and intervals, and rank no estimator. The truth is a mean "
        "with an interval of its own, so z is the difference in standard errors of both together. The policy of the bts logs went "
        "on learning while it was logged, the target is where it started."
    )
    study.note(
        "Asymptotic intervals are clustered by profile (the four hashed user features: the data has no user id). Finite-sample ones "
        "take rewards in [0, 1] and weights without a ceiling: with 38 clicks they say little, which is the truth at that size."
    )
    study.note("Nothing was tuned: caps, thresholds and the reward model's ridge are the estimators' defaults.")
    return study


def _published(study: Study, told: Evaluation, truth: Line) -> None:
    ips = next(line for line in told.lines if line.name == "ips")
    assert ips.estimate is not None
    assert truth.estimate is not None
    value, on_policy = ips.estimate.value, truth.estimate.value
    error = abs(value - on_policy) / on_policy
    rows: list[list[Cell]] = [
        [name, PUBLISHED[name], found, f"{found:.6f}" == f"{PUBLISHED[name]:.6f}"]
        for name, found in zip(PUBLISHED, (value, error), strict=True)
    ]
    study.table("Published numbers, campaign all", ["number", "published", "found", "equal to the sixth decimal"], rows)


def _table(study: Study, campaign: str, told: Evaluation, truth: Line, betting: Line) -> None:
    assert truth.estimate is not None
    rows: list[list[Cell]] = [
        ["floor: uniform, as logged", *_numbers(told.baseline, truth), "", ""],
        ["truth: bts logs, on-policy", *_numbers(truth, truth), "", ""],
    ]
    for line in told.lines:
        if line.estimate is not None and line.name != "cvar":
            diagnostics = line.diagnostics
            ess = None if diagnostics is None or line.weighting == "none" else round(diagnostics.ess)
            design = None if diagnostics is None or line.weighting == "none" else round(diagnostics.design_ess)
            rows.append([line.name, *_numbers(line, truth), ess, design])
    rows.append(["ips, finite-sample by betting", "", "", _said(betting.finite), "", "", "", ""])
    study.table(
        f"Campaign {campaign}: {len(told.assembled.logged)} uniform impressions, {int(told.assembled.logged.totals.sum())} clicks",
        ["estimator", "value", "asymptotic 95%", "finite-sample 95%", "relative error", "z", "ESS", "design ESS"],
        rows,
    )


def _numbers(line: Line, truth: Line) -> list[Cell]:
    """Value, intervals, relative error, and the difference from the truth in standard errors of the two together."""
    assert line.estimate is not None
    assert truth.estimate is not None
    off = line.estimate.value - truth.estimate.value
    z = off / float(np.hypot(standard_error(line.estimate), standard_error(truth.estimate)))
    return [
        line.estimate.value,
        _said(line.interval),
        _said(line.finite),
        abs(off) / truth.estimate.value,
        None if line is truth else z,
    ]


def _said(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.5f}, {interval.high:.5f}]"
