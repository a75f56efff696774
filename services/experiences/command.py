"""`slatewise export`: settled decisions as Parquet, as Vowpal Wabbit's dsjson, or for Open Bandit Pipeline."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from policies.errors import Rejected

Row = Mapping[str, Any]
TIMES = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])


@click.command()
@click.option("--format", "kind", type=click.Choice(["parquet", "dsjson", "obp"]), required=True)
@click.option(
    "--out", type=click.Path(path_type=Path, allow_dash=True), required=True, help="A file; -: standard output."
)
@click.option(
    "--from", "url", help="Files of settled decisions, by path or URL; default: the log, as far back as it goes."
)
@click.option("--surface", help="Only this one; default: all.")
@click.option("--since", type=TIMES, help="Only decisions made from then on (UTC).")
@click.option("--until", type=TIMES, help="Only decisions made before (UTC).")
@click.option("--objective", help="Whose reward, for dsjson and obp; needed where a surface has several.")
@click.option(
    "--unsettled", is_flag=True, help="Of the log, also decisions whose horizon has not passed, as they stand."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the embedded state.")
def command(
    kind: str,
    out: Path,
    url: str | None,
    surface: str | None,
    since: datetime | None,
    until: datetime | None,
    objective: str | None,
    unsettled: bool,
    data: Path | None,
) -> None:
    """Settled decisions with what they earned: one row, line or slate each.

    What a decision earned is settled when its surface's horizon has passed. Columns: docs/experiences.md.
    """
    from services.experiences import need_pyarrow

    need_pyarrow()
    from services.experiences.sources import Versions, from_files, from_log, narrowed
    from services.settings import Settings
    from services.wiring import own_state
    from streaming.configuration import Configs

    settings = Settings.load(data=data)
    if url is not None and unsettled:
        raise Rejected("Files hold settled decisions only", at="--unsettled")
    configs = Configs(settings.tenant)
    if url is None or settings.state_path.exists():
        configs.follow(own_state(settings))
    found = from_log(settings, configs, unsettled=unsettled) if url is None else from_files(url)
    tables = narrowed(found, surface, _utc(since), _utc(until))
    versions = Versions(configs, url)
    with _opened(out) as sink:
        written = _parquet(tables, sink) if kind == "parquet" else _lines(kind, tables, versions, objective, sink)
    click.echo(f"{written} decisions", err=True)


def _parquet(tables: Iterator[Any], sink: BinaryIO) -> int:
    from streaming.parquet import writer

    written = 0
    with writer(sink) as out:
        for table in tables:
            out.write_table(table)
            written += table.num_rows
    return written


def _lines(kind: str, tables: Iterator[Any], versions: Any, objective: str | None, sink: BinaryIO) -> int:
    from services.experiences import dsjson, obp

    written = 0

    def rows() -> Iterator[Row]:
        nonlocal written
        for table in tables:
            for row in table.to_pylist(maps_as_pydicts="strict"):
                written += 1
                yield row

    def costs(row: Row) -> list[float]:
        sign = 1.0 if versions.of(row).surface.objectives[_named(row, objective)].better == "lower" else -1.0
        return [sign * reward for reward in reward_of(objective)(row)]

    if kind == "dsjson":
        made = dsjson.lines(rows(), lambda row: (versions.of(row).context, versions.of(row).items), costs)
    else:
        made = obp.lines(rows(), reward_of(objective))
    for line in made:
        sink.write(line)
    return written


def reward_of(objective: str | None) -> Callable[[Row], list[float]]:
    """A decision's rewards by slot, of the objective named, or of the only one. Raises Rejected where there is no such one."""
    return lambda row: row["rewards"][_named(row, objective)]


def _named(row: Row, objective: str | None) -> str:
    known: list[str] = list(row["rewards"])
    if objective is None and len(known) == 1:
        return known[0]
    if objective is None or objective not in known:
        message = f"Surface {row['surface']} has the objectives {', '.join(known) or 'none'}"
        raise Rejected(f"{message}: name one of them" if objective is None else message, at="--objective")
    return objective


@contextmanager
def _opened(out: Path) -> Iterator[BinaryIO]:
    """A file that is there when all of it is written, or standard output."""
    if out == Path("-"):
        yield sys.stdout.buffer
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.name}.writing")
    try:
        with beside.open("wb") as file:
            yield file
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.replace(tzinfo=UTC)
