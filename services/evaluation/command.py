"""`slatewise evaluate LOG --policy …`: what a policy would have earned on what was logged, with intervals and with what speaks against it."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policies.errors import Rejected

if TYPE_CHECKING:
    from policies.evaluation.anytime import Method

TIMES = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
REPLAYS = 2_000  # methods.md §5
TRAINED = 0.5  # of the log, for a policy that learns, unless said


@click.command()
@click.argument("log")
@click.option(
    "--policy", "name", required=True, help="uniform, greedy, logged, bernoulli_ts, a bundle, or one of --config."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["auto", "experiences", "obd", "dsjson", "hillstrom"]),
    default="auto",
    show_default=True,
    help="What LOG is: our own log or its Parquet files, the Open Bandit Dataset's layout, Vowpal Wabbit's dsjson, Hillstrom.",
)
@click.option("--objective", help="Whose reward; needed where the log has several.")
@click.option("--estimator", "estimators", multiple=True, help="Only these; default: all that apply.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="1 − the level of the intervals.")
@click.option(
    "--finite-sample",
    "method",
    type=click.Choice(["empirical_bernstein", "betting"]),
    default="empirical_bernstein",
    show_default=True,
    help="betting is narrower, and takes the value to be the same all along.",
)
@click.option("--range", "span", type=(float, float), help="Least and largest reward of a slot, where no surface says.")
@click.option(
    "--config", type=click.Path(exists=True, path_type=Path), help="Folder of surface documents with the policy."
)
@click.option(
    "--rules",
    "document",
    type=click.Path(exists=True, path_type=Path),
    help="Surface document: the policy draws under its rules, diversity, prefix shares and exploration cap instead.",
)
@click.option(
    "--train-share",
    type=float,
    help="First part of the log, that a policy learns from; it is judged on the rest. [0.5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of a fitted policy's posterior, and of replays.")
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), help="Folder with bundles, catalogue and versions."
)
@click.option("--surface", help="Only this one, of our own log.")
@click.option("--since", type=TIMES, help="Only decisions made from then on (UTC), of our own log.")
@click.option("--until", type=TIMES, help="Only decisions made before (UTC), of our own log.")
@click.option("--sampled", is_flag=True, help="Only decisions that were logged with everything the draw read.")
@click.option("--unsettled", is_flag=True, help="Also decisions whose horizon has not passed, as they stand.")
@click.option(
    "--replays",
    type=click.IntRange(100),
    help="Slates replayed of each decision, for iips and pseudo_inverse. [2,000 where one of them is asked for]",
)
@click.option("--sequences", is_flag=True, help="Of whole sessions instead of single decisions, on our own log.")
@click.option("--discount", type=float, help="Of a session's later decisions, a step; with --sequences. [1]")
@click.option(
    "--steps", type=click.IntRange(1), help="Only the first so many decisions of a session; with --sequences."
)
@click.option("--in-sample", is_flag=True, help="Also decisions that the bundle was trained on.")
@click.option("--partial-support", is_flag=True, help="Go on where the target shows what the log could not.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--html", type=click.Path(path_type=Path), help="Also write a page with pictures.")
def command(
    log: str,
    name: str,
    kind: str,
    objective: str | None,
    estimators: tuple[str, ...],
    alpha: float,
    method: "Method",
    span: tuple[float, float] | None,
    config: Path | None,
    document: Path | None,
    train_share: float | None,
    seed: int,
    data: Path | None,
    surface: str | None,
    since: datetime | None,
    until: datetime | None,
    sampled: bool,
    unsettled: bool,
    replays: int | None,
    sequences: bool,
    discount: float | None,
    steps: int | None,
    in_sample: bool,
    partial_support: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """The value of a policy on a log it did not make: estimates, intervals, diagnostics. Formats and columns: docs/evaluation.md."""
    from services.evaluation import report
    from services.evaluation.decisions import nothing_left
    from services.evaluation.evaluating import evaluate
    from services.evaluation.fitting import fitted
    from services.evaluation.replaying import NEEDING, PAIRED
    from services.evaluation.resolving import (
        after_training,
        asked_for,
        kind_of,
        read,
        ready,
        replayable,
        replaying,
        rules_of,
        share_split,
        under_rules,
    )
    from services.evaluation.sequencing import asked_of_sessions, evaluate_sequences

    sequences = asked_of_sessions(
        sequences, estimators, sampled=sampled, replays=replays is not None, discount=discount, steps=steps
    )
    if replays is None and set(NEEDING) & set(estimators):
        replays = REPLAYS
    kind = kind_of(log) if kind == "auto" else kind
    folder = data or (Path(log) if (Path(log) / "log.sqlite").is_file() else None)
    rules = None if document is None else rules_of(document, surface)
    bundles = None if replays is None else replayable(kind, folder)
    paired = not estimators or PAIRED in estimators
    asked = asked_for(name, data=folder, config=config)
    found = read(
        log,
        kind,
        asked,
        data=data,
        surface=surface,
        since=None if sequences else _utc(since),
        until=None if sequences else _utc(until),
        sampled=sampled,
        unsettled=unsettled,
        whole=replays is not None,
        rules=rules,
    )
    if not len(found):
        raise nothing_left(found)
    if asked.learns or train_share is not None:
        first, found = share_split(found, TRAINED if train_share is None else train_share)
        found.notes.append(f"{len(first)} earlier decisions are not part of the estimate")
        target = fitted(asked, first, seed) if asked.learns and asked.target is None else ready(asked, found)
    else:
        target = ready(asked, found)
    if rules is not None:
        target = under_rules(target, rules, found, folder)
    if asked.trained_through and not in_sample:
        found = after_training(found, asked.trained_through)
    objective = _objective(objective, found.objectives)
    if sequences:
        told = evaluate_sequences(
            found,
            target,
            objective,
            names=estimators,
            alpha=alpha,
            discount=1.0 if discount is None else discount,
            most=steps,
            since=-math.inf if since is None else since.replace(tzinfo=UTC).timestamp(),
            until=math.inf if until is None else until.replace(tzinfo=UTC).timestamp(),
            unsettled=unsettled,
            partial_support=partial_support,
        )
    else:
        told = evaluate(
            found,
            target,
            objective,
            names=estimators,
            alpha=alpha,
            span=span,
            partial_support=partial_support,
            method=method,
            replaying=None if replays is None or bundles is None else replaying(found, bundles, replays, seed, paired),
        )
    if html is not None:
        from services.evaluation.page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(told), encoding="utf-8")
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(report.json(told).decode())
    else:
        report.show(told)


def _objective(asked: str | None, known: tuple[str, ...]) -> str:
    if asked is not None:
        return asked
    if len(known) != 1:
        raise Rejected(f"The log has the objectives {', '.join(known) or 'none'}: name one of them", at="--objective")
    return known[0]


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)
