"""`slatewise chaos`: the real stack under load, one fault after another; what was promised, and whether it was kept."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from services.bench.report import provenance, write
from services.chaos.faults import FAULTS
from services.chaos.run import RATE, Run, run

COLUMNS = (
    "fault",
    "seconds",
    "answers/s",
    "p50 ms",
    "p99 ms",
    "answers by mode",
    "published again after s",
    "lost",
    "changed",
    "sums off",
    "kept",
)


@click.command()
@click.option("--fault", "names", type=click.Choice(sorted(FAULTS)), multiple=True, help="Default: all of them.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Of each fault.")
@click.option("--rate", type=float, default=RATE, show_default=True, help="Decisions asked for a second.")
@click.option("--together", is_flag=True, help="One house for all faults that can share one: quicker, less told apart.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for what the houses leave behind.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for dated markdown and JSON.")
def command(
    names: tuple[str, ...], seconds: float, rate: float, together: bool, keep: Path | None, out: Path | None
) -> None:
    """Kill, stop, pause, flush and double under load on Kafka, Redis and Ray; then hold the log against what was answered.

    Ends with exit code 1 when a promise was broken.
    """
    chosen = [FAULTS[name] for name in names or FAULTS]
    plain = [fault for fault in chosen if not fault.apart]
    groups = [plain] if together and plain else [[fault] for fault in plain]
    groups += [[fault] for fault in chosen if fault.apart]
    runs: list[Run] = []
    for group in groups:
        click.echo("… " + ", ".join(fault.name for fault in group), err=True)
        runs.append(run(group, seconds, rate, keep / group[0].name if keep else None))
    rows = [row for one in runs for row in _rows(one)]
    table = Table(title=f"chaos at {rate:g} decisions/s")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
    if out:
        for path in write(out, "chaos", _markdown(rows, runs, seconds, rate), _json(rows, runs)):
            click.echo(f"wrote {path}", err=True)
    if not all(one.verdict.kept for one in runs):
        raise SystemExit(1)


def _rows(one: Run) -> list[dict[str, Any]]:
    """A row a fault; the verdict is of its whole house."""
    verdict, told = one.verdict, one.told
    return [
        {
            "fault": span.fault.does,
            "seconds": span.end - span.begin,
            "rate": told.rate(span.begin, span.end),
            "p50_ms": 1e3 * told.percentile(50, span.begin, span.end),
            "p99_ms": 1e3 * told.percentile(99, span.begin, span.end),
            "modes": told.share(span.begin, span.end),
            "whole_after": span.whole_after,
            "lost": verdict.lost_decisions + verdict.lost_feedback,
            "changed": verdict.changed_decisions,
            "off": max(verdict.off, verdict.counted_off),
            "kept": verdict.kept,
        }
        for span in one.spans
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    modes = ", ".join(f"{mode} {100 * share:.3g}%" for mode, share in sorted(row["modes"].items()))
    numbers = [row[name] for name in ("seconds", "rate", "p50_ms", "p99_ms")]
    return [
        row["fault"],
        *("" if math.isnan(number) else f"{number:,.0f}" for number in numbers),
        modes,
        f"{row['whole_after']:.1f}",
        str(row["lost"]),
        str(row["changed"]),
        f"{row['off']:.1e}",
        "yes" if row["kept"] else "NO",
    ]


def _markdown(rows: list[dict[str, Any]], runs: list[Run], seconds: float, rate: float) -> str:
    where = provenance()
    answers, events = sum(len(one.told.answers) for one in runs), sum(len(one.told.accepted) for one in runs)
    lines = [
        "# Chaos on the real stack",
        "",
        f"`slatewise chaos --seconds {seconds:g} --rate {rate:g}` · {where['date']} · commit {where['commit']} · {where['machine']}",
        "",
        "Two hosts (two scoring replicas, two forwarders, one learning service) on Kafka, Redis and a Ray cluster of two nodes, all on this machine,",
        f"and the load generator beside them. {answers:,} answers, {events:,} accepted feedback. Latency is from the first attempt to the answer, retries on the",
        "other replica included. Lost: answered decisions and accepted feedback that the log does not have. Changed: a decision in the log with another slate",
        "than was answered. Sums off: committed sums against an undisturbed replay of the log, and popular's sums against what the callers know, relative.",
        "Where there is a trainer, what it came to is also a replay of its recorded order, to the last bit, or nothing was kept.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
    ]
    for one in runs:
        names = ", ".join(span.fault.name for span in one.spans)
        failed = ", ".join(f"{name} {count}" for name, count in sorted(one.told.failures.items()) if count) or "none"
        dead = ", ".join(f"{name} {count}" for name, count in sorted(one.verdict.dead.items())) or "none"
        verdict = one.verdict
        lines.append(
            f"- {names}: {verdict.decisions:,} decisions and {verdict.feedback:,} feedback in the log, {verdict.repeated:,} records there again; "
            f"attempts that had to be repeated: {failed}; dead letters: {dead}"
        )
    return "\n".join(lines) + "\n"


def _json(rows: list[dict[str, Any]], runs: list[Run]) -> bytes:
    document = {
        **provenance(),
        "rows": rows,
        "verdicts": [asdict(one.verdict) for one in runs],
        "failures": [dict(one.told.failures) for one in runs],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1)
