"""`slatewise release`: asked of the control service, which holds the evidence."""

import sys
from typing import Any

import click
import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from policies.errors import Rejected, Unavailable
from services.cli import _settings, settings_options
from services.experimenting import PIPED_COLUMNS, who
from services.settings import Settings


@click.group()
def command() -> None:
    """Releases: start, status, promote, canary, abort, rollback; value and convergence."""


@command.command()
@click.argument("surface")
@click.argument("candidate")
@click.option("--baseline", help="What is served meanwhile; default: what is served already.")
@click.option("--stage", type=click.Choice(["apprentice", "shadow"]), default="apprentice", show_default=True)
@click.option("--terms", default="{}", help='How it will be judged, as JSON: {"rate": 0.25, "margin": 0, …}.')
@settings_options
def start(surface: str, candidate: str, baseline: str | None, stage: str, terms: str, **flags: Any) -> None:
    """Draw CANDIDATE beside what SURFACE serves."""
    try:
        wanted = msgspec.json.decode(terms)
    except msgspec.DecodeError as error:
        raise Rejected(f"Expected JSON: {error}", at="--terms") from None
    step = {"action": "start", "candidate": candidate, "baseline": baseline, "stage": stage, "terms": wanted}
    show(_post(_settings(flags), surface, step), _console())


@command.command()
@click.argument("surface")
@click.option("--json", "as_json", is_flag=True, help="All of it, for machines.")
@settings_options
def status(surface: str, as_json: bool, **flags: Any) -> None:
    """The release of SURFACE with its evidence, and those before."""
    found = _asked(_settings(flags), "GET", f"/v1/releases/{surface}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    show(found, _console())


@command.command()
@click.argument("surface")
@click.argument("candidate")
@click.option("--force", is_flag=True, help="Whatever the verdict; needs --reason, and the audit says so.")
@click.option("--reason", default="")
@settings_options
def promote(surface: str, candidate: str, force: bool, reason: str, **flags: Any) -> None:
    """Make CANDIDATE what SURFACE serves, if the gate or its canary allows it."""
    step = {"action": "promote", "candidate": candidate, "force": force, "reason": reason}
    show(_post(_settings(flags), surface, step), _console())


@command.command()
@click.argument("surface")
@click.argument("candidate")
@click.option("--share", type=float, help="Of the units; default: the release's.")
@settings_options
def canary(surface: str, candidate: str, share: float | None, **flags: Any) -> None:
    """Let CANDIDATE answer for a share of SURFACE's units."""
    show(_post(_settings(flags), surface, {"action": "canary", "candidate": candidate, "share": share}), _console())


@command.command()
@click.argument("surface")
@click.argument("candidate")
@click.option("--reason", default="")
@settings_options
def abort(surface: str, candidate: str, reason: str, **flags: Any) -> None:
    """End the release of CANDIDATE; what is served stays."""
    show(_post(_settings(flags), surface, {"action": "abort", "candidate": candidate, "reason": reason}), _console())


@command.command()
@click.argument("surface")
@click.option("--reason", default="")
@settings_options
def rollback(surface: str, reason: str, **flags: Any) -> None:
    """Serve again what SURFACE served before its last promotion."""
    show(_post(_settings(flags), surface, {"action": "rollback", "reason": reason}), _console())


@command.command()
@click.argument("surface")
@settings_options
def value(surface: str, **flags: Any) -> None:
    """What each policy of SURFACE earns, with bounds that hold at any time: is it learning, and what does exploration cost?"""
    found = _asked(_settings(flags), "GET", f"/v1/surfaces/{surface}/value")
    table = Table(title=f"{surface}: {found['objective']}, {found['unit']}")
    for name in ("policy", "decisions", "low", "estimate", "high"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for policy, objectives in found["policies"].items():
        line = objectives.get(found["objective"])
        if line is not None:
            numbers = (_number(line[name]) for name in ("low", "estimate", "high"))
            table.add_row(policy, f"{line['decisions']:.0f}", *numbers)
    console = _console()
    console.print(table)
    console.print(f"learned {_number(found['learned'])}   exploration costs {_number(found['exploration_cost'])}")


@command.command()
@click.argument("policy")
@settings_options
def convergence(policy: str, **flags: Any) -> None:
    """How sure the bundle of SURFACE/POLICY is of its leaders, and what stopping now would cost."""
    surface, _, name = policy.partition("/")
    found = _asked(_settings(flags), "GET", f"/v1/policies/{surface}/{name}/convergence")
    asked = f"{found['asked']} decisions" if found["asked"] else "the bundle's probe"
    click.echo(
        f"{policy} {found['bundle']}, over {asked}: the leader is best with probability {found['probability']:.3f} (least "
        f"{found['least_probability']:.3f}); stopping costs {found['expected_loss']:.4g} a slot, at most "
        f"{found['loss_95']:.4g} with 95%"
    )


def show(found: dict[str, Any], console: Console) -> None:
    """A release for people."""
    release = found["release"]
    console.print(f"live {found['live'] or 'as the document says'}")
    if release is None:
        console.print("no candidate so far")
        return
    reason = f" ({release['reason']})" if release["reason"] else ""
    console.print(f"{release['candidate']} against {release['baseline']}: {release['stage']}{reason}")
    if "gate" in found:
        _verdict(found["gate"], console)
        agreement = found["gate"]["agreement"]
        console.print(f"agreement {_number(agreement)}")
    canary = found.get("canary")
    if canary:
        console.print("  ".join(f"{arm} {count} units" for arm, count in canary["assigned"].items()))
        for one in canary["guardrails"]:
            console.print(f"guardrail {one['metric']}: {one['verdict']}, {_number(one['effect'])}")
        if canary["verdict"] is not None:
            _verdict(canary["verdict"], console)
    for past in found["history"][-10:]:
        console.print(f"before: {past['candidate']} {past['stage']}")


def _verdict(verdict: dict[str, Any], console: Console) -> None:
    offers = ", a canary is offered" if verdict.get("offers") else ""
    console.print(
        f"{verdict['outcome']}{offers}: better by {_number(verdict['estimate'])} a decision, at least "
        f"{_number(verdict['low'])} (α {verdict['alpha']:.3g}), {verdict['decisions']} decisions, design ESS "
        f"{_number(verdict['design_ess'])}"
    )
    console.print(f"estimated is {verdict['estimates']}")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS)


def _post(settings: Settings, surface: str, step: dict[str, Any]) -> dict[str, Any]:
    return _asked(settings, "POST", f"/v1/releases/{surface}", step)


def _asked(settings: Settings, method: str, path: str, body: Any = None) -> dict[str, Any]:
    headers = {**settings.bearer, "x-slatewise-who": who()}
    url = f"http://{settings.control_http}{path}"
    try:
        answer = httpx.request(method, url, json=body, headers=headers, timeout=60.0)
    except httpx.HTTPError as error:
        raise Unavailable(f"the control service at {settings.control_http}: {error}") from error
    found: dict[str, Any] = answer.json()
    if answer.status_code != 200:
        said = found["error"]
        raise Rejected(said["message"], at=said["at"], code=said["code"], status=answer.status_code)
    return found
