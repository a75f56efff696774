"""The command line. Imports wait until a command needs them, so that `--help` answers at once."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from services.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

ELSEWHERE = {  # commands that live in rooms of their own: name → module, what --help says
    "replay": ("services.replay.command", "Drive the service with public data, or replay logged data into a log."),
    "export": ("services.experiences.command", "Settled decisions as Parquet, Vowpal Wabbit's dsjson or for obp."),
    "evaluate": ("services.evaluation.command", "What a policy would have earned on a log, with intervals and doubts."),
    "train": ("services.training.command", "Train a policy with a trainer from settled decisions, before it decides."),
    "chaos": ("services.chaos.command", "Break the real stack under load and hold the log against what was answered."),
    "stack": ("services.stack.command", "Kafka, Redis and Ray on this machine, and the service on them."),
    "study": ("services.studies.command", "Studies with seeds, floors and intervals: what the README claims."),
    "experiment": ("services.experimenting", "Experiments: list, create, start, allocate, stop, report."),
    "keys": ("services.key_command", "API keys: create, list, revoke."),
    "release": (
        "services.releasing",
        "Releases of policies: start, status, canary, promote, abort, value, convergence.",
    ),
    "plan": ("services.planning", "What applying a config folder would keep, rebuild and move."),
    "bench": ("services.bench.command", "Measure decisions, learning, publishing and freshness, with peers beside."),
    "load": ("services.bench.load_command", "A soak that looks at memory, an overload that looks at what is shed."),
}


class Rooms(click.Group):
    """A group that imports the commands of `ELSEWHERE` only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in ELSEWHERE:
            return super().get_command(ctx, name)
        command = importlib.import_module(ELSEWHERE[name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        here = {name: found.get_short_help_str(80) for name, found in self.commands.items()}
        rows = sorted({**here, **{name: said for name, (_, said) in ELSEWHERE.items()}}.items())
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        from policies.errors import SlatewiseError

        try:
            return super().invoke(ctx)
        except SlatewiseError as error:  # what a user can act on: one line, not a traceback
            raise click.ClickException(str(error)) from error


READERS = ("learning", "settle", "control")  # of the log, in batches


def settings_options(command: Command) -> Command:
    """Flags of every process; each has an environment variable `SLATEWISE_…` of the same name."""
    for option in (
        click.option("--data", type=click.Path(path_type=Path), help="Folder of the embedded state."),
        click.option("--config", type=click.Path(path_type=Path), help="Folder of surface documents."),
        click.option("--http", help="host:port of the scoring service."),
        click.option("--control-http", help="host:port of the control service."),
        click.option("--workers", type=int, help="Scoring processes that share the port."),
        click.option("--ray", help="auto, inline, local or ray://host:port: where shards learn."),
    ):
        command = option(command)
    return command


def _settings(flags: dict[str, Any]) -> "Settings":
    from services.settings import Settings

    return Settings.load(**flags)


def _begin(flags: dict[str, Any], process: str) -> "Settings":
    from services.allocating import steady
    from services.lifetime import follow_parent
    from services.telemetry import configure_logs

    if process in READERS:
        steady()
    settings = _settings(flags)
    configure_logs(process, settings.log_level)
    follow_parent()
    return settings


@click.group(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="slatewise")
def main() -> None:
    """Decides which items to show to whom, and learns from what people do with them in under a second."""


@main.command()
@settings_options
def up(**flags: Any) -> None:
    """Scoring, forwarder, learning and control on this machine."""
    from services.lifetime import stopping
    from services.supervisor import Supervisor, prepare
    from services.telemetry import configure_logs

    settings = _settings(flags)
    configure_logs("up", settings.log_level)
    stop = stopping()
    prepare(settings)
    click.echo(f"decisions  http://{settings.http}/docs\noperations http://{settings.control_http}/ops", err=True)
    Supervisor(settings, stop=stop).run()


@main.command()
@settings_options
def scoring(**flags: Any) -> None:
    """The scoring service alone."""
    from services.scoring.serve import run

    run(_begin(flags, "scoring"))


@main.command()
@settings_options
def forwarder(**flags: Any) -> None:
    """The process that brings this host's spools to the log."""
    from services.forwarding import run

    run(_begin(flags, "forwarder"))


@main.command()
@settings_options
def learning(**flags: Any) -> None:
    """The learning service alone: join, learn, publish."""
    from services.learning.app import run

    run(_begin(flags, "learning"))


@main.command()
@settings_options
def settle(**flags: Any) -> None:
    """The settling process alone: decisions whose horizon has passed, as Parquet (SLATEWISE_EXPERIENCES)."""
    from services.experiences import need_pyarrow

    need_pyarrow()
    from services.experiences.settling import run

    run(_begin(flags, "settle"))


@main.command()
@settings_options
def control(**flags: Any) -> None:
    """The control service alone: surfaces, policies, bundles, releases, /ops."""
    from services.control.app import run

    run(_begin(flags, "control"))


@main.command()
@click.option(
    "--seconds", type=float, default=60.0, show_default=True, help="How long the visitors come; 0: until interrupted."
)
@click.option("--rate", type=float, default=150.0, show_default=True, help="Visits a second.")
@click.option("--seed", type=int, default=7, show_default=True, help="Seed of the world and its visitors.")
@settings_options
def demo(seconds: float, rate: float, seed: int, **flags: Any) -> None:
    """A service of its own in a fresh folder, simulated visitors, live progress, a summary."""
    from services.demo import run

    run(_settings(flags), seconds=seconds, rate=rate, seed=seed, keep=flags["data"] is not None)


@main.command()
@click.argument("config", type=click.Path(exists=True, path_type=Path))
def validate(config: Path) -> None:
    """Name every mistake of a config folder (or file), with file, line and what would be right."""
    from services.validating import check

    said, mistakes = check(config)
    for line in said:
        click.echo(line)
    for line in mistakes:
        click.echo(line, err=True)
    if mistakes:
        raise SystemExit(1)


@main.group()
def bundle() -> None:
    """What scoring draws from: look, verify, go back."""


@bundle.command()
@click.argument("name", required=False)
@settings_options
def inspect(name: str | None, **flags: Any) -> None:
    """The manifest of a bundle id or a SURFACE/POLICY; without a name, what every policy points to."""
    from services.releases import Releases

    click.echo(Releases.of(_settings(flags)).inspect(name))


@bundle.command()
@click.argument("name")
@settings_options
def verify(name: str, **flags: Any) -> None:
    """Pass a bundle through the gate that scoring uses: hashes, schema, probes, finite, entropy."""
    from services.releases import Releases

    manifest = Releases.of(_settings(flags)).verify(name)
    click.echo(f"{manifest.bundle} of {manifest.surface}/{manifest.policy} is what it claims to be")


@bundle.command()
@click.argument("policy")
@click.option("--to", help="The bundle to go back to.")
@click.option("--before", help="Or: the bundle that answered this long ago, such as 10m.")
@settings_options
def rollback(policy: str, to: str | None, before: str | None, **flags: Any) -> None:
    """Point SURFACE/POLICY to an earlier bundle and hold it there; learning goes on, publishing waits."""
    from services.releases import Releases

    click.echo(f"{policy} is held at {Releases.of(_settings(flags)).rollback(policy, to=to, before=before)}")


@bundle.command()
@click.argument("policy")
@settings_options
def resume(policy: str, **flags: Any) -> None:
    """End a rollback: SURFACE/POLICY follows what is learned again."""
    from services.releases import Releases

    Releases.of(_settings(flags)).resume(policy)
    click.echo(f"{policy} follows what is learned")


@main.command("accept-loss")
@click.argument("partition", type=int)
@settings_options
def accept_loss(partition: int, **flags: Any) -> None:
    """Have a partition that waits (`offset_out_of_range`) go on where its log begins now. What retention took is lost."""
    import time

    from services.wiring import open_log, own_state
    from streaming.losses import accept

    settings = _settings(flags)
    try:
        loss = accept(open_log(settings), own_state(settings), partition, time.time())
    except IndexError as error:
        raise click.BadParameter(str(error), param_hint="PARTITION") from error
    click.echo(f"partition {partition}: records before offset {loss.offset} are done with; its shard goes on there")


@main.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be used."""


@dead_letters.command("list")
@click.option("--after", type=int, default=0, help="Sequence number to start after.")
@click.option("--limit", type=int, default=50, show_default=True)
@settings_options
def list_(after: int, limit: int, **flags: Any) -> None:
    """Reasons with their counts, then the records."""
    from services.wiring import open_dead_letters

    letters = open_dead_letters(_settings(flags))
    for reason, count in sorted(letters.count().items()):
        click.echo(f"{count:8d}  {reason}")
    for number, letter in letters.read(after, limit):
        click.echo(f"{number} {letter.partition}:{letter.offset} {letter.reason} {letter.detail}")


@dead_letters.command("replay")
@click.option("--reason", help="Only letters with this reason; without it, all.")
@click.option("--after", type=int, default=0, help="Sequence number to start after.")
@settings_options
def again(reason: str | None, after: int, **flags: Any) -> None:
    """Append the records of letters to the log again, once what refused them is mended."""
    from services.dead_letters import replay
    from services.wiring import open_dead_letters, open_log

    settings = _settings(flags)
    records, last = replay(open_dead_letters(settings), open_log(settings), reason=reason, after=after)
    click.echo(f"{records} records are in the log again; go on with --after {last}")


if __name__ == "__main__":
    main()
