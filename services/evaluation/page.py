"""An evaluation as one HTML file: the table, three pictures as inline SVG, and every doubt. Nothing is loaded from anywhere."""

import io
from collections.abc import Callable, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

import numpy as np

from policies.errors import Rejected
from policies.evaluation.diagnostics import BOUND
from services.bench.report import provenance
from services.evaluation.evaluating import Evaluation
from services.evaluation.report import assumptions, by_step, doubts, estimated, notes, title, weightings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .75rem; border-bottom: 1px solid #d8d8de; text-align: right; }
td:first-child, th:first-child, td.text { text-align: left; } .warning { background: #fff2d6; padding: .5rem 1rem; margin: .5rem 0; }
svg { max-width: 100%; height: auto; } caption { text-align: left; font-weight: 600; padding: .25rem 0; }
"""


def page(told: Evaluation) -> str:
    """The document. Raises Rejected without matplotlib."""
    if find_spec("matplotlib") is None:
        raise Rejected("Pictures need matplotlib: pip install 'slatewise[studies]'", at="--html", code="missing")
    where = provenance()
    weights = [[name, *doubts(found), ", ".join(names)] for name, (found, names) in weightings(told).items()]
    parts = [
        f"<h1>{escape(told.target)}</h1>",
        f"<p>{escape(title(told))}</p>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in told.warnings),
        _table("Estimates", *estimated(told)),
        _picture(lambda axes: _intervals(axes, told), 0.34 * (len(told.lines) + 1) + 1.2),
        _table(
            "Weights",
            ("of each", "ESS", "design ESS", "mean", "z", "clipped", "largest", "estimators"),
            weights,
        ),
        _table("Weights by step", *by_step(told.sessions)) if told.sessions else "",
        _picture(lambda axes: _histogram(axes, told), 3.2),
        "<h2>Calibration of the logged propensities</h2>",
        _picture(lambda axes: _calibration(axes, told), 3.2) if told.assembled.calibration.z else "",
        *(f"<p>{escape(note)}</p>" for note in notes(told)),
        "<h2>What each estimator assumes</h2><ul>",
        *(f"<li>{escape(', '.join(names))}: {escape(assumption)}</li>" for names, assumption in assumptions(told)),
        "</ul>",
        f"<p>{escape(where['date'])} · commit {escape(where['commit'])}</p>",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(told.target)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><tr>{head}</tr>\n{body}</table>"


def _picture(draw: Callable[[Any], None], height: float) -> str:
    """Inline SVG of one pair of axes, the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": "slatewise", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(8.6, height))
        draw(axes)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _intervals(axes: Any, told: Evaluation) -> None:
    lines = [line for line in [told.baseline, *told.lines] if line.estimate is not None]
    for place, line in enumerate(lines):
        assert line.estimate is not None
        for interval, width, colour in ((line.finite, 1.0, "tab:orange"), (line.interval, 4.0, "tab:blue")):
            if interval is not None and np.isfinite([interval.low, interval.high]).all():
                axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=width)
        axes.plot([line.estimate.value], [place], "o", color="black", markersize=4)
    own = told.baseline.estimate
    assert own is not None
    axes.axvline(own.value, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(lines)), [line.name for line in lines])
    axes.invert_yaxis()
    of = "a decision" if told.sessions is None else "an episode"
    axes.set_xlabel(f"mean reward of {of}: thick asymptotic, thin finite-sample, dotted as logged")


def _histogram(axes: Any, told: Evaluation) -> None:
    logged = told.assembled.logged
    ratios = logged.ratios[logged.present]
    above = ratios[ratios > 0]
    if len(above):
        low, high = float(np.log10(above.min())), float(np.log10(above.max()))
        axes.hist(above, bins=np.logspace(low - 0.05, high + 0.05, 40).tolist(), color="tab:blue", alpha=0.7)
    axes.set_xscale("log")
    axes.set_yscale("symlog")
    of = "slot" if told.sessions is None else "step"
    axes.set_xlabel(f"weight of a {of}; {len(ratios) - len(above)} of {len(ratios)} are 0")
    axes.set_ylabel(f"{of}s")


def _calibration(axes: Any, told: Evaluation) -> None:
    for place, values in enumerate(told.assembled.calibration.z.values()):
        shown = np.clip(values, -2 * BOUND, 2 * BOUND)
        axes.plot(
            np.linspace(place - 0.3, place + 0.3, len(shown)), np.sort(shown), ".", color="tab:blue", markersize=4
        )
    for bound in (-BOUND, BOUND):
        axes.axhline(bound, color="tab:red", linewidth=0.8)
    axes.set_xticks(range(len(told.assembled.calibration.z)), list(told.assembled.calibration.z))
    axes.set(xlabel="slot", ylabel="z of each item, sorted; beyond the lines: not what was drawn from")
