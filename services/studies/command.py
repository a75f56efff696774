"""`slatewise study NAME`: run one of the studies and write its table. Adding one is a module and a line here.

A study's module has `run(quick: bool, seeds: int | None, data: Path | None) -> Study`.
"""

import importlib
from pathlib import Path

import click
from rich.console import Console

from services.bench.report import typed
from services.studies.study import Study

STUDIES: dict[str, tuple[str, str]] = {  # name → (module, what it shows)
    "eide": (
        "services.studies.eide",
        "Eide's simulator: greedy and Thompson slates, flat and hierarchical, cold items.",
    ),
    "counted": (
        "services.studies.counted",
        "An item's own click rate as a feature: where quality is known, unknown and fading.",
    ),
    "delay": ("services.studies.delay", "Late feedback where items come and go: eager, wait and corrected."),
    "drift": ("services.studies.drift", "Drift of residuals: false alarms, delay, and what a reset is worth."),
    "examination": (
        "services.studies.examination",
        "How often slots are looked at: estimated beside true, and what learners make of it.",
    ),
    "fairness": (
        "services.studies.fairness",
        "Impression variance, exposure and creators: before, after, and what it costs.",
    ),
    "guardrails": ("services.studies.guardrails", "One objective raised while others hold, by seven ways of learning."),
    "leases": ("services.studies.leases", "What an exploration cap leaves unused, lent when new items come at once."),
    "long_term": ("services.studies.long_term", "What the best constant leaves: share closed, and what transfers."),
    "neural": (
        "services.studies.neural",
        "Neural-linear beside linear Thompson sampling, where taste is linear and not.",
    ),
    "novelty": ("services.studies.novelty", "How new a session's items should be: the hierarchy with parts taken out."),
    "regret": ("services.studies.regret", "One-slot algorithms beside Vowpal Wabbit and MABWiser: who wins where."),
    "sessions": (
        "services.studies.sessions",
        "Agents end to end on Kafka, Redis and Ray, their trainer killed; needs Java and redis-server.",
    ),
    "experiments": (
        "services.studies.experiments",
        "False alarms, power, sample ratio, CUPED and assignment.",
    ),
    "gate": ("services.studies.gate", "Promotion gate and canary: how often the wrong one is let through."),
    "gate-service": (
        "services.studies.gate_service",
        "The gate through the service's own releases and fold: false promotions.",
    ),
    "ope-skewness": (
        "services.studies.ope_skewness",
        "Asymptotic intervals where rewards are rare: the side they miss on.",
    ),
    "ope-coverage": ("services.studies.ope_coverage", "Intervals of off-policy estimates: coverage and width."),
    "rules-coverage": (
        "services.studies.rules_coverage",
        "Intervals of off-policy estimates on logs with every rule on: coverage and width.",
    ),
    "obd": ("services.studies.obd", "Off-policy estimates on the Open Bandit Dataset beside the published ones."),
}


def _names(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo("\n".join(STUDIES))
        context.exit()


@click.command(epilog="\n\n".join(f"{name}: {what}" for name, (_, what) in STUDIES.items()))
@click.argument("name", type=click.Choice(sorted(STUDIES)))
@click.option(
    "--names",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_names,
    help="Every study's name, and nothing else.",
)
@click.option("--seeds", type=click.IntRange(1), help="Default: as many as the study's claim needs.")
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: shows that it works, not what it shows.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), envvar="SLATEWISE_DATASETS", help="Public data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for dated markdown and JSON.")
def command(name: str, seeds: int | None, quick: bool, data: Path | None, out: Path | None) -> None:
    """Run a study: seeds, floors and intervals in one table."""
    found: Study = importlib.import_module(STUDIES[name][0]).run(quick, seeds, data)
    found.show(Console())
    if out:
        for path in found.write(out, name, typed()):
            click.echo(f"wrote {path}", err=True)
