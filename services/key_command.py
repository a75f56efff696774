"""`slatewise keys`: made, listed and revoked in the record itself, also while no service runs."""

import getpass
import time
from typing import Any

import click

from policies.surface import seconds
from services.access import SCOPES
from services.cli import settings_options


@click.group("keys")
def command() -> None:
    """API keys: make, list, revoke. Rotation: make a second one, move callers over, revoke the first."""


@command.command()
@click.argument("name")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES), help="May be repeated.")
@click.option("--rate", type=float, help="Requests a second that a worker takes of this key; unlimited without.")
@click.option("--expires", help="Valid for this long, such as 90d; for ever without.")
@settings_options
def create(name: str, scopes: tuple[str, ...], rate: float | None, expires: str | None, **flags: Any) -> None:
    """Make a key. Its token is printed, alone, on standard output, and can never be shown again."""
    from services.granting import create as make
    from services.settings import Settings
    from services.wiring import own_state

    settings, now = Settings.load(**flags), time.time()
    ends = None if expires is None else now + seconds(expires)
    key, token = make(
        own_state(settings), _who(), name, list(scopes), tenant=settings.tenant, rate=rate, expires_at=ends, now=now
    )
    click.echo(f"key {key['id']} ({', '.join(key['scopes'])}); keep this, it is not shown again:", err=True)
    click.echo(token)


@command.command("list")
@settings_options
def list_(**flags: Any) -> None:
    """Every key, the revoked ones too."""
    from services.granting import listed
    from services.settings import Settings
    from services.wiring import own_state

    settings, now = Settings.load(**flags), time.time()
    for key in listed(own_state(settings), settings.tenant):
        ended = key.get("expires_at") is not None and key["expires_at"] <= now
        standing = "revoked" if key.get("revoked_at") else "expired" if ended else "valid"
        rate = f"{key['rate']:g}/s" if key.get("rate") else "unlimited"
        click.echo(f"{key['id']}  {standing:8s} {rate:>10s}  {','.join(key['scopes']):28s} {key['name']}")


@command.command()
@click.argument("key_id", metavar="ID")
@settings_options
def revoke(key_id: str, **flags: Any) -> None:
    """Revoke a key by its id, for ever; services refuse it within a second."""
    from services.granting import revoke as end
    from services.settings import Settings
    from services.wiring import own_state

    settings = Settings.load(**flags)
    key = end(own_state(settings), _who(), key_id, tenant=settings.tenant, now=time.time())
    click.echo(f"key {key['id']} ({key['name']}) is revoked")


def _who() -> str:
    return f"cli:{getpass.getuser()}"
