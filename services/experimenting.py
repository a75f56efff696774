"""`slatewise experiment`: list, create, start, allocate, stop on the record itself; the report comes from the control service."""

import getpass
import os
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from policies.errors import Rejected, Unavailable
from services.cli import _settings, settings_options
from services.trials import Trials, told

PIPED_COLUMNS = 160  # where nobody says how wide it is, nothing is cut off


@click.group()
def command() -> None:
    """Experiments: list, create, start, allocate, stop, report."""


@command.command("list")
@settings_options
def list_(**flags: Any) -> None:
    """Every experiment with its shares."""
    for trial in Trials.of(_settings(flags)).all():
        plain = told(trial)
        shares = "  ".join(f"{arm} {share:.2%}" for arm, share in plain["shares"].items())
        reason = f"  ({trial.reason})" if trial.reason else ""
        click.echo(f"{trial.document.experiment:24s} {trial.document.surface:16s} {trial.status:8s} {shares}{reason}")


@command.command()
@click.argument("document", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@settings_options
def create(document: Path, **flags: Any) -> None:
    """A new experiment of a JSON or YAML document; it waits to be started."""
    trials = Trials.of(_settings(flags))
    click.echo(f"{trials.create_from(document, who()).document.experiment} is drafted")


@command.command()
@click.argument("name")
@settings_options
def start(name: str, **flags: Any) -> None:
    """Assign units to NAME from now on."""
    click.echo(f"{name} is {Trials.of(_settings(flags)).start(name, who()).status}")


@command.command()
@click.argument("name")
@click.option("--reason", default="", help="For the audit and the report.")
@settings_options
def stop(name: str, reason: str, **flags: Any) -> None:
    """Assign nobody to NAME any more, for good; windows that are open are waited for."""
    click.echo(f"{name} is {Trials.of(_settings(flags)).stop(name, who(), reason).status}")


@command.command()
@click.argument("name")
@click.argument("shares", nargs=-1, required=True, metavar="ARM=SHARE…")
@settings_options
def allocate(name: str, shares: tuple[str, ...], **flags: Any) -> None:
    """Other shares of some arms of NAME; units move only where a share needs them."""
    wanted = {}
    for said in shares:
        arm, found, share = said.partition("=")
        try:
            wanted[arm] = float(share)
        except ValueError:
            raise Rejected(f"Expected ARM=SHARE such as treatment=0.1, got {said!r}", at=arm or "shares") from None
        if not found:
            raise Rejected(f"Expected ARM=SHARE such as treatment=0.1, got {said!r}", at=arm)
    trial = Trials.of(_settings(flags)).allocate(name, wanted, who())
    click.echo("  ".join(f"{arm} {share:.2%}" for arm, share in trial.allocations[-1].shares.items()))


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="All of it, for machines.")
@settings_options
def report(name: str, as_json: bool, **flags: Any) -> None:
    """The readout of NAME as it stands, from the control service."""
    settings = _settings(flags)
    try:
        answer = httpx.get(
            f"http://{settings.control_http}/v1/experiments/{name}/report", headers=settings.bearer, timeout=60.0
        )
    except httpx.HTTPError as error:
        raise Unavailable(f"the control service at {settings.control_http}: {error}") from error
    if answer.status_code != 200:
        said = answer.json()["error"]
        raise Rejected(said["message"], at=said["at"], code=said["code"], status=answer.status_code)
    if as_json:
        click.echo(msgspec.json.format(answer.content).decode())
        return
    show(answer.json(), Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS))


def show(found: dict[str, Any], console: Console) -> None:
    """A readout for people."""
    reason = f": {found['reason']}" if found["reason"] else ""
    console.print(f"{found['experiment']}: {found['status']}{reason}", markup=False)
    units = "  ".join(f"{arm} {found['complete'][arm]:,} of {n:,}" for arm, n in found["assigned"].items())
    console.print(f"units complete, of assigned: {units}")
    ratio = found["sample_ratio"]
    console.print(
        f"sample ratio: {'MISMATCH, believe nothing below' if ratio['mismatch'] else 'as it should be'} (p {ratio['p']:.3g})"
    )
    table = Table("metric", "arm", "control", "treatment", "effect", "interval", "p", "verdict", title=found["method"])
    for one in found["comparisons"]:
        p = one.get("p_adjusted", one.get("p", 1.0))
        cells = [_number(one.get(name)) for name in ("control", "treatment", "effect")]
        table.add_row(one["metric"], one["arm"], *cells, _interval(one), _number(p), one["verdict"])
    for one in found["guardrails"]:
        floor = f"≥ {one['min_effect']:g}"
        table.add_row(one["metric"], one["arm"], "", "", _number(one["effect"]), _interval(one), floor, one["verdict"])
    console.print(table)
    console.print(f"interference: {' | '.join(found['interference']) or 'none known'}")
    for note in [*found["notes"], *found["missing"]]:
        console.print(f"- {note}", markup=False)


def who() -> str:
    """The account that types, for the audit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _interval(one: dict[str, Any]) -> str:
    low, high = one.get("low"), one.get("high")
    return "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
