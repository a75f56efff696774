"""`slatewise bench`: speed of this build beside the machine's floors and its peers, in one run; a table and JSON."""

from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from services.bench.report import Report, typed

PARTS = (
    "decide",
    "rules",
    "counted",
    "catalogue",
    "http",
    "http-full",
    "traces",
    "learn",
    "algorithms",
    "agents",
    "settle",
    "sizes",
    "publish",
    "freshness",
    "peers",
    "open",
    "kafka",
    "stack",
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for dated markdown and JSON.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, help="Default: all of them.")
@click.option("--quick", is_flag=True, help="Short runs: shows that everything works, not what it can do.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Of one HTTP run.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="HTTP runs by id, alternating with the floor's.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output instead of the table.")
def command(out: Path | None, parts: tuple[str, ...], quick: bool, seconds: float, rounds: int, as_json: bool) -> None:
    """Measure decisions, learning, publishing and freshness, with peers beside.

    Budgets are ratios to floors taken in the same run, or stated limits. A budget that is missed is shown, not an error.
    """
    report = Report("slatewise bench" + (" --quick" if quick else ""), typed())
    for name in parts or PARTS:
        click.echo(f"… {name}", err=True)
        _parts(quick, seconds, rounds)[name](report)
    if as_json:
        click.echo(report.json().decode())
    else:
        report.show(Console())
    if out:
        for path in report.write(out, "bench" if set(parts or PARTS) == set(PARTS) else "bench-" + "-".join(parts)):
            click.echo(f"wrote {path}", err=True)


def _parts(quick: bool, seconds: float, rounds: int) -> dict[str, Callable[[Report], None]]:
    from services.bench import (
        agents,
        algorithms,
        catalogue,
        counted,
        decide,
        freshness,
        full,
        http,
        kafka,
        many,
        peers,
        publish,
        ruled,
        settling,
        sizes,
        stacked,
        traced,
    )

    def http_part(report: Report) -> None:
        if quick:
            http.measure(report, 1.0, (1,), 1, (8,))
        else:
            http.measure(report, seconds, rounds=rounds)

    return {
        "decide": lambda report: decide.measure(report, 1 if quick else 15),
        "rules": lambda report: ruled.measure(report, 1 if quick else 25),
        "counted": lambda report: counted.measure(report, 1 if quick else 25),
        "catalogue": lambda report: catalogue.measure(report, *((5, 20_000) if quick else ())),
        "http": http_part,
        "http-full": lambda report: full.measure(report, *((1.0, 1, (1,)) if quick else (seconds, rounds))),
        "traces": lambda report: traced.measure(*((report, 20, 1) if quick else (report,))),
        "learn": lambda report: _learn(report, quick),
        "algorithms": lambda report: algorithms.measure(*((report, 1, 1, 20) if quick else (report,))),
        "agents": lambda report: agents.measure(*((report, 1, 1) if quick else (report,))),
        "settle": lambda report: settling.measure(report, 500 if quick else 30_000),
        "sizes": lambda report: sizes.measure(report, *((500, 500) if quick else ())),
        "publish": lambda report: publish.measure(report, 200 if quick else 5_000, 3 if quick else 30),
        "freshness": lambda report: freshness.measure(
            report, 2.0 if quick else 20.0, 50.0 if quick else freshness.RATE
        ),
        "peers": lambda report: peers.measure(report, 10 if quick else 300),
        "open": lambda report: many.measure(report, 20_000 if quick else 5_000_000),
        "kafka": lambda report: kafka.measure(report, 2_000 if quick else 120_000, 1.0 if quick else 10.0),
        "stack": lambda report: stacked.measure(report, 2.0 if quick else 30.0, 20.0 if quick else stacked.RATE),
    }


def _learn(report: Report, quick: bool) -> None:
    from services.bench import stream

    found = stream.measure(500 if quick else 50_000, restart_events=2_000 if quick else 1_000_000)
    report.add(
        "joined and learned, durable",
        found["joined_and_learned_per_second"],
        "decisions/s",
        floor=found["floor_per_second"],
        at_least=0.4,
        of_floor=True,
        note="10 slots × 32 features, 1 feedback each",
    )
    two = stream.side_by_side(500 if quick else 100_000)
    report.add(
        "two shards side by side",
        two["joined_and_learned_per_second"],
        "decisions/s",
        floor=found["joined_and_learned_per_second"],
        at_least=1.7,
        of_floor=True,
        note="a process each; the floor is one shard",
    )
    costs = stream.by_surfaces((1, 10) if quick else (1, 10, 100, 1_000), 200 if quick else 20_000)
    for surfaces, cost in costs.items():
        report.add(
            f"joined and learned, {surfaces:,} surface{'s' * (surfaces > 1)}",
            cost,
            "µs CPU/decision",
            floor=costs[1],
            at_most=1.5,
            of_floor=True,
            note="2 learning policies each; the floor is 1 surface",
        )
    report.add(
        "restart", found["restart_seconds"], "s", at_most=5.0, note=f"{found['restart_events']:,.0f} events in the log"
    )
