"""Files of settled decisions without those of a unit: each file that holds its hash is written again, whole (`semantics.md` 24)."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from policies.errors import Corrupt, Unavailable
from services.settings import Settings
from services.wiring import open_experiences
from streaming.parquet import writer


def forget_in_files(settings: Settings, unit: str) -> tuple[int, int]:
    """(files looked at, rows removed). Raises Unavailable, Corrupt."""
    import fsspec

    store = open_experiences(settings)
    try:
        system, root = fsspec.core.url_to_fs(settings.experiences)
        root = root.rstrip("/")
        names = sorted(system.glob(f"{root}/**/*.parquet"))
    except OSError as error:
        raise Unavailable(f"experiences: {error}") from error
    removed = 0
    for path in names:
        name = str(path)[len(root) + 1 :]
        try:
            table = pq.read_table(io.BytesIO(store.get(name)))
        except pa.ArrowException as error:
            raise Corrupt("not_parquet", f"{name}: {error}") from None
        kept = table.filter(pc.not_equal(table["unit"], pa.scalar(unit)))
        if len(kept) == len(table):
            continue
        removed += len(table) - len(kept)
        store.remove(name)  # first: a store may take a file of the same size for the same
        if len(kept):
            sink = io.BytesIO()
            with writer(sink) as made:
                made.write_table(kept)
            store.put(name, sink.getvalue())
    return len(names), removed
