"""`slatewise load`: a soak that looks at memory, an overload that looks at what is shed; dated tables."""

from pathlib import Path

import click
from rich.console import Console

from services.bench.report import typed
from services.studies.study import Study

OVERLOAD_SECONDS = 20.0


@click.command()
@click.option("--soak", type=click.FloatRange(min=0.1), help="Minutes at half of peak; 30 is what is promised.")
@click.option("--overload", is_flag=True, help="Three times peak: what is shed, and how soon it is itself again.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1.0),
    default=OVERLOAD_SECONDS,
    show_default=True,
    help="Of a phase of overload.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for dated markdown and JSON.")
def command(soak: float | None, overload: bool, seconds: float, out: Path | None) -> None:
    """Load a service of its own, on this machine, and say what became of it. A target that is missed is shown, not an error."""
    if soak is None and not overload:
        raise click.UsageError("Say --soak MINUTES, --overload, or both")
    from services.bench import overload as overloading
    from services.bench import soak as soaking

    study = Study("Load: soak and overload" if soak and overload else "Load: soak" if soak else "Load: overload")
    if overload:
        overloading.measure(study, seconds)
    if soak is not None:
        soaking.measure(study, soak)
    study.show(Console())
    if out:
        name = "load" if soak and overload else "load-soak" if soak else "load-overload"
        for path in study.write(out, name, typed()):
            click.echo(f"wrote {path}", err=True)
