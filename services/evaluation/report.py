"""An evaluation as a table for people and as JSON for machines: the same numbers, and the same doubts."""

import math
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from policies.evaluation.diagnostics import Diagnostics
from policies.evaluation.intervals import Interval
from services.evaluation.evaluating import Evaluation, Line, Sessions

ESTIMATED = (
    "What is estimated: the mean reward of one decision, had the target made it instead, over the period that was logged. What a "
    "different past would have done to people and items is not part of it."
)


ESTIMATED_EPISODE = (
    "What is estimated: the mean discounted reward of a session, had the target made all its decisions, in the sessions that began "
    "over the period that was logged. Which sessions begin at all, and when, is as logged."
)
SHOWN_STEPS = 10  # of an episode, then every doubling


def show(told: Evaluation, console: Console | None = None) -> None:
    """Print estimates, what their weights are worth, what they assume, warnings and notes."""
    console = console or Console()
    for table in (_estimates(told), _weights(told), *([_steps(told.sessions)] if told.sessions else [])):
        console.print(table)
    for weighting, (_, names) in weightings(told).items():
        console.print(f"{weighting} weights: {', '.join(names)}", markup=False, highlight=False)
    for names, assumption in assumptions(told):
        console.print(f"{', '.join(names)} assume: {assumption}", markup=False, highlight=False)
    for warning in told.warnings:
        console.print(f"! {warning}", style="bold", markup=False, highlight=False)
    for note in notes(told):
        console.print(note, markup=False, highlight=False)


def _estimates(told: Evaluation) -> Table:
    columns, rows = estimated(told)
    table = Table(title=title(told))
    for column in columns:
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def estimated(told: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the estimates; the error of replays has a column where any slate was replayed."""
    lines = [told.baseline, *told.lines]
    replays = any(line.estimate is not None and line.estimate.monte_carlo_error > 0 for line in lines)
    columns = ["estimator", "value", *(["± Monte Carlo"] if replays else []), "asymptotic", "finite-sample"]
    rows = []
    for line in lines:
        if line.estimate is None:
            rows.append([line.name, *[""] * (len(columns) - 3), line.refused, ""])
            continue
        error = line.estimate.monte_carlo_error
        simulated = [f"{error:.2g}" if error > 0 else ""] if replays else []
        finite = spelled(line.finite) or line.finite_refused
        rows.append([line.name, f"{line.estimate.value:.6g}", *simulated, spelled(line.interval), finite])
    return columns, rows


def _weights(told: Evaluation) -> Table:
    table = Table(title="weights")
    for column in ("of each", "ESS", "design ESS", "mean", "z", "clipped", "largest"):
        table.add_column(column, justify="left" if column == "of each" else "right")
    for weighting, (found, _) in weightings(told).items():
        table.add_row(weighting, *doubts(found))
    return table


def _steps(sessions: Sessions) -> Table:
    columns, rows = by_step(sessions)
    table = Table(title="weights by step")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def by_step(sessions: Sessions) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of what the weights are worth as episodes go on: the first steps, then every doubling, and the last."""
    found, horizon = sessions.weights, len(sessions.weights.going)
    steps = sorted({t for t in range(horizon) if t < SHOWN_STEPS or t + 1 == horizon or (t + 1) & t == 0})
    rows = [
        [str(t + 1), str(found.going[t]), f"{found.ess[t]:.0f}", f"{found.mean[t]:.3f}", f"{found.zero[t]:.1%}"]
        for t in steps
    ]
    return ["step", "episodes", "ESS", "mean", "weight 0"], rows


def weightings(told: Evaluation) -> dict[str, tuple[Diagnostics, list[str]]]:
    """slot | prefix | slate … → what its weights are worth, and who rests on them; not those that use no weights."""
    found: dict[str, tuple[Diagnostics, list[str]]] = {}
    for line in told.lines:
        if line.diagnostics is not None and line.weighting != "none":
            found.setdefault(line.weighting, (line.diagnostics, []))[1].append(line.name)
    return found


def assumptions(told: Evaluation) -> list[tuple[list[str], str]]:
    """Estimators by what they assume."""
    found: dict[str, list[str]] = {}
    for line in told.lines:
        if line.estimate is not None:
            found.setdefault(line.assumption, []).append(line.name)
    return [(names, assumption) for assumption, names in found.items()]


def doubts(found: Diagnostics) -> list[str]:
    return [
        f"{found.ess:.0f}",
        "unknown" if math.isnan(found.design_ess) else f"{found.design_ess:.0f}",
        f"{found.mean_weight:.3f}",
        f"{found.mean_weight_z:+.1f}",
        f"{found.clipped_share:.2%}",
        f"{found.largest:.3g}",
    ]


def title(told: Evaluation) -> str:
    n, of = len(told.assembled.logged), f"{told.target} on {told.log.name} ({told.log.kind}): {told.objective}"
    if told.sessions is None:
        return f"{of} of a decision, {n} decisions, level {told.level:g}"
    return f"{of} of an episode, {n} episodes, discount {told.sessions.discount:g}, level {told.level:g}"


def spelled(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval.low:.6g}, {interval.high:.6g}]"


def notes(told: Evaluation) -> list[str]:
    found = told.assembled
    calibration = found.calibration
    support = "unknown" if math.isnan(found.outside) else f"{1 - found.outside:.4%}"
    said = [
        f"Support: {support} of the target's probability where the log could draw; full distributions of {found.known:.1%} of slots.",
        "Calibration of propensities: "
        + (
            "no full distributions"
            if math.isnan(calibration.worst_z)
            else f"worst z {calibration.worst_z:+.1f} ({calibration.arm}) over {calibration.decisions} decisions"
        )
        + (
            ""
            if math.isnan(calibration.inverse_z)
            else f"; mean 1/p off by {calibration.inverse_z:+.1f} standard errors"
        )
        + ".",
    ]
    if told.sessions is None:
        return [*said, *told.log.notes, ESTIMATED]
    left_out = "; ".join(f"{n} {reason}" for reason, n in sorted(told.sessions.left_out.items())) or "none"
    steps, episodes = told.sessions.weights, len(found.logged)
    said.append(
        f"Episodes: up to {len(steps.going)} steps, {sum(steps.going) / episodes:.1f} on average; {steps.zero[-1]:.1%} of them weigh 0 in "
        f"the end; left out: {left_out}; cut: {told.sessions.cut}."
    )
    return [*said, *told.log.notes, ESTIMATED_EPISODE]


def json(told: Evaluation) -> bytes:
    found = told.assembled
    document = {
        "target": told.target,
        "log": {"name": told.log.name, "kind": told.log.kind, "decisions": len(found.decisions)},
        "objective": told.objective,
        "level": told.level,
        "range": told.range,
        "rejected": {"counts": dict(told.log.rejected.counts), "first": told.log.rejected.first},
        "baseline": _line(told.baseline),
        "estimates": [_line(line) for line in told.lines],
        "support": {"outside": _number(found.outside), "known": found.known, "certain": found.certain},
        "calibration": {
            "ok": found.calibration.ok,
            "worst_z": _number(found.calibration.worst_z),
            "arm": found.calibration.arm,
            "decisions": found.calibration.decisions,
            "inverse_z": _number(found.calibration.inverse_z),
        },
        "sessions": None if told.sessions is None else msgspec.to_builtins(told.sessions),
        "warnings": told.warnings,
        "notes": notes(told),
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1)


def _line(line: Line) -> dict[str, Any]:
    said: dict[str, Any] = {"estimator": line.name, "assumption": line.assumption, "formula": line.formula}
    if line.estimate is None:
        return said | {"refused": line.refused}
    said |= {"value": line.estimate.value, "details": {k: _number(v) for k, v in line.estimate.details.items()}}
    said |= {"monte_carlo_error": line.estimate.monte_carlo_error}
    said |= {"asymptotic": _interval(line.interval), "finite_sample": _interval(line.finite)}
    if line.finite_refused:
        said["finite_sample_refused"] = line.finite_refused
    if line.diagnostics is not None:
        said["diagnostics"] = {k: _number(v) for k, v in msgspec.to_builtins(line.diagnostics).items()}
    return said


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {"low": _number(interval.low), "high": _number(interval.high), "method": interval.method}


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity: null, which is what is known."""
    return value if math.isfinite(value) else None
