"""Where an export takes settled decisions from: the log itself, settled once more in memory, or files written before."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from policies.errors import Corrupt, Rejected, Unavailable
from policies.surface import Surface
from services.settings import Settings
from services.wiring import in_memory_settlements, open_log
from streaming.configuration import Configs
from streaming.experiences import Experiences
from streaming.parquet import FORMAT, SCHEMA, table_of
from streaming.settle import Settlements, Settler

PAGE = 1_000
DEPTH = 5  # folders from a file up to the root: date, surface, tenant
TIME = pa.timestamp("us", tz="UTC")


def from_log(settings: Settings, configs: Configs, *, unsettled: bool) -> Iterator[pa.Table]:
    """Everything the log still holds, partition by partition; with `unsettled` also what still waits, as it stands."""
    events = open_log(settings)
    for partition in range(events.partitions):
        kept = in_memory_settlements()
        settler = Settler(partition, events, kept, configs, epoch=1, read_limit=PAGE, limit=PAGE)
        experiences = Experiences(partition, kept, events)
        number = -1
        while True:
            report = settler.step()
            if not report.records and not report.settled and unsettled:
                report = settler.step(float("inf"))
            number, tables = _pulled(experiences, kept, number)
            yield from tables
            if not report.records and not report.settled:
                break


def _pulled(experiences: Experiences, kept: Settlements, number: int) -> tuple[int, list[pa.Table]]:
    """What was added to an outbox since `number`; before that it is let go of."""
    first, after = kept.numbers()
    number = max(number, first)
    if number == after:
        return number, []
    table = table_of(experiences.pull(number, after - number))
    kept.trim(after)
    return after, [table]


def from_files(url: str) -> Iterator[pa.Table]:
    """Every *.parquet below a folder or of a file, local or by any URL that fsspec opens. Raises Rejected, Corrupt, Unavailable."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        names = [path] if system.isfile(path) else sorted(system.glob(f"{path.rstrip('/')}/**/*.parquet"))
    except (ValueError, ImportError) as error:
        raise Rejected(f"Cannot open {url!r}: {error}", at="--from") from None
    except OSError as error:
        raise Unavailable(f"{url}: {error}") from error
    if not names:
        raise Rejected(f"No *.parquet below {url!r}", at="--from")
    for name in names:
        with system.open(name, "rb") as opened:
            yield from _tables(opened, name)


def _tables(opened: Any, name: str) -> Iterator[pa.Table]:
    try:
        file = pq.ParquetFile(opened)
    except pa.ArrowException as error:
        raise Corrupt("not_parquet", f"{name}: {error}") from None
    said = (file.schema_arrow.metadata or {}).get(b"slatewise.experiences", b"").decode()
    if said != str(FORMAT):
        raise Corrupt("format", f"{name} has experiences of format {said or 'unknown'}, this build reads {FORMAT}")
    for batch in file.iter_batches(PAGE):
        yield complete(pa.Table.from_batches([batch])).cast(SCHEMA)


def complete(table: pa.Table) -> pa.Table:
    """Columns that came after a file was written: null, or an empty list where they may not be."""
    for place, field in enumerate(SCHEMA):
        if field.name not in table.column_names:
            n = table.num_rows
            table = table.add_column(
                place, field, pa.nulls(n, field.type) if field.nullable else pa.array([[]] * n, field.type)
            )
    return table.select(SCHEMA.names)


def narrowed(
    tables: Iterator[pa.Table], surface: str | None, since: datetime | None, until: datetime | None
) -> Iterator[pa.Table]:
    """Decisions of one surface, made from `since` and before `until`; each of them or all."""
    for table in tables:
        kept, decided = table, pc.field("decided_at")
        if surface is not None:
            kept = kept.filter(pc.field("surface") == surface)
        if since is not None:
            kept = kept.filter(decided >= pa.scalar(since, TIME))
        if until is not None:
            kept = kept.filter(decided < pa.scalar(until, TIME))
        if kept.num_rows:
            yield kept


class Version(Struct, frozen=True):
    """A surface version as it lies beside the files (`streaming.windows`): `context`, `items` name the encoded columns."""

    context: list[str]
    items: list[str]
    surface: Surface


class Versions:
    """Surface versions that rows name: of the configuration record, else those beside the files at `url`."""

    def __init__(self, configs: Configs, url: str | None) -> None:
        self._configs, self._url = configs, url
        self._known: dict[str, Version] = {}

    def of(self, row: Mapping[str, Any]) -> Version:
        """Raises Rejected."""
        config = row["config"]
        if config not in self._known:
            self._known[config] = self._find(config)
        return self._known[config]

    def _find(self, config: str) -> Version:
        compiled = self._configs.get(config)
        if compiled is not None:
            encoder = compiled.encoder
            return Version([*encoder.context_names], [*encoder.item_names], compiled.surface)
        if self._url is not None:
            import fsspec

            system, path = fsspec.core.url_to_fs(self._url)
            for _ in range(DEPTH):
                name = f"{path.rstrip('/')}/versions/{config}.json"
                if system.isfile(name):
                    return msgspec.json.decode(system.cat_file(name), type=Version)
                path = system._parent(path)
        raise Rejected(f"Surface version {config} is not known here", at="--from", code="unknown_config")
