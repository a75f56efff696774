"""Files of settled decisions: the same bytes whichever way they come about, read alike by pyarrow, DuckDB and pandas."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.adapters.files import FileBundles
from streaming.adapters.fsspec import FsspecBundles
from streaming.adapters.memory import MemoryBundles
from streaming.adapters.rules import checked_name
from streaming.events import Decision, Feedback, Sample
from streaming.experiences import Experiences
from streaming.parquet import FORMAT, SCHEMA, table_of
from streaming.settle import Settler
from streaming.windows import Windows, folder_of, plain
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, UNIT, Abort, Ports, decision, feedback
from tests.streaming.stories import CONFIGS, PLAIN

WINDOW = 60.0
DAY = "date=1970-01-12"  # of EPOCH0


def sampled(name: str, at: float) -> Decision:
    """A decision with everything that may be in a record."""
    made = decision(PLAIN, name, at, k=2)
    size = PLAIN.encoder.item_size
    matrix = np.arange(4 * size, dtype="<f4").reshape(4, size) / 8
    full = np.array([[0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 0.25, 0.25]])
    return msgspec.structs.replace(
        made,
        slate=["a", "c"],
        rows=[0, 2],
        propensities=[0.4, 0.25],
        remaining=[4, 3],
        candidates=["a", "b", "c", "d"],
        asked=2,
        matrix=matrix.tobytes(),
        shown=matrix[[0, 2]].tobytes(),
        alphas=[1.0, 0.5],
        weights={"like": 0.3, "watch": 1.0},
        session="s-1",
        raw_context={"hour": 3},
        experiment={"name": "ts-vs-control", "arm": "treatment"},
        defer=False,
        mode="holdout",
        reason="held_out",
        sample=Sample(
            rate=0.25,
            distributions=full.tobytes(),
            uniforms=np.array([0.1, 0.9]).tobytes(),
            boosts=np.array([0.0, 1.0, 0.0, -1.0]).tobytes(),
            masks=np.array([[1, 1, 1, 1], [0, 1, 1, 1]], np.uint8).tobytes(),
            pins={1: 2},
        ),
    )


def events(n: int = 40) -> list[Decision | Feedback]:
    """A day's end in small: decisions every ten seconds, some pinned, some deferred, some with everything in them."""
    made: list[Decision | Feedback] = []
    for i in range(n):
        at, name = EPOCH0 + 10 * i, f"{UNIT}-{i:03}"
        if i % 7 == 0:
            made.append(sampled(name, at))
        else:
            made.append(decision(PLAIN, name, at, pinned=[1] if i % 5 == 0 else [], defer=i % 11 == 0))
        made.append(feedback(name, at + 3, slot=1, value=1.5, feedback_id="w"))
        if i % 3 == 0:
            made.append(feedback(name, at + 4, kind="shown", slots=[0, 1], feedback_id="s"))
    return made


def told(*told: Decision | Feedback) -> Ports:
    ports = Ports(CONFIGS)
    for event in told:
        ports.append(event, at=event.at)
    return ports


def settler(ports: Ports, read_limit: int = 2000) -> Settler:
    return Settler(0, ports.log, ports.checkpoints, ports.configs, epoch=1, read_limit=read_limit)


def windows(ports: Ports, store: Any, **options: Any) -> Windows:
    return Windows(Experiences(0, ports.checkpoints, ports.log), store, CONFIGS, window_seconds=WINDOW, **options)


def write_all(ports: Ports, store: Any, now: float, read_limit: int = 2000, **options: Any) -> list[str]:
    """Settle and write in turns, as the process does."""
    one, made = settler(ports, read_limit), windows(ports, store, **options)
    names: list[str] = []
    while True:
        report = one.step(now)
        number, files = made.write(one.written, report.frontier)
        one.wrote(number)
        names += files
        if not report.records and not report.settled and not files:
            return names


LATER = EPOCH0 + 10 * CORRECTABLE


def stored(store: MemoryBundles) -> dict[str, bytes]:
    return {name: data for name, data in store._files.items() if name.endswith(".parquet")}


def digests(store: MemoryBundles) -> dict[str, str]:
    """Two of these differ in a line, not in megabytes."""
    return {name: hashlib.blake2b(data, digest_size=8).hexdigest() for name, data in stored(store).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("experiences")
    write_all(told(*events()), FileBundles(made), LATER)
    return made


def test_a_file_is_the_same_whichever_way_it_came_about() -> None:
    once, pieces = MemoryBundles(), MemoryBundles()
    names = write_all(told(*events()), once, LATER)
    assert sorted(names) == sorted(stored(once))
    assert len(names) >= 6  # windows of a minute in seven minutes
    ports = Ports(CONFIGS)
    one = settler(ports, read_limit=3)
    for event in events():  # one by one, every time with a settler and a writer that know nothing
        ports.append(event, at=event.at)
        report = one.step()
        number, _ = windows(ports, pieces).write(one.written, report.frontier)
        if event.at > EPOCH0 + 200:
            one.wrote(number)
        one = settler(ports, read_limit=3)
    write_all(ports, pieces, LATER)
    assert digests(pieces) == digests(once)


def test_who_dies_between_the_files_writes_them_again() -> None:
    class Dying(MemoryBundles):
        left = 4

        def put(self, name: str, data: bytes) -> None:
            super().put(name, data)
            Dying.left -= 1
            if Dying.left == 0:
                raise Abort

    once, broken, ports = MemoryBundles(), Dying(), told(*events())
    write_all(told(*events()), once, LATER)
    with pytest.raises(Abort):
        write_all(ports, broken, LATER)
    write_all(ports, broken, LATER)
    assert digests(broken) == digests(once)


def test_a_window_is_cut_into_pieces_of_the_same_size_early_or_late() -> None:
    early, late, ports = MemoryBundles(), MemoryBundles(), told(*events())
    write_all(told(*events()), late, LATER, piece_rows=4)
    one = settler(ports, read_limit=2)
    for _ in range(200):
        report = one.step()
        number, _ = windows(ports, early, piece_rows=4).write(one.written, report.frontier)
        one.wrote(number)
    write_all(ports, early, LATER, piece_rows=4)
    assert digests(early) == digests(late)
    assert {pq.read_metadata(pa.BufferReader(data)).num_rows for data in stored(late).values()} <= {1, 2, 3, 4}


def test_nothing_is_written_twice_and_nothing_is_missing(folder: Path) -> None:
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in sorted(folder.glob("**/*.parquet"))])
    assert sorted(table["number"].to_pylist()) == list(range(40))
    assert sorted(table["decision_id"].to_pylist()) == [f"{UNIT}-{i:03}" for i in range(40)]
    for file in folder.glob("**/*.parquet"):
        offsets = pq.ParquetFile(file).read(["log_offset"])["log_offset"].to_pylist()
        assert file.relative_to(folder).parts[:3] == ("default", "home", DAY)
        assert file.name == f"p0000-{min(offsets):012d}-{max(offsets):012d}.parquet"


def test_every_value_is_what_the_record_said(folder: Path) -> None:
    rows = pq.read_table(folder / "default" / "home", partitioning=None).sort_by("number").to_pylist()
    whole = sampled(f"{UNIT}-000", EPOCH0)
    row = rows[0]
    assert row["candidates"] == whole.candidates
    assert row["slate"] == ["a", "c"]
    assert row["propensities"] == [0.4, 0.25]
    assert row["prefix_propensities"] == [0.4, 0.4 * 0.25]
    assert row["propensity"] == 0.4 * 0.25
    assert row["distributions"] == [[0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 0.25, 0.25]]
    assert row["masks"] == [[True] * 4, [False, True, True, True]]
    assert row["boosts"] == [0.0, 1.0, 0.0, -1.0]
    assert row["uniforms"] == [0.1, 0.9]
    assert row["pins"] == [(1, 2)]
    assert row["sample_rate"] == 0.25
    assert row["weights"] == [("like", 0.3), ("watch", 1.0)]
    assert (row["experiment"], row["arm"], row["session"]) == ("ts-vs-control", "treatment", "s-1")
    assert (row["mode"], row["reason"]) == ("holdout", "held_out")
    assert row["raw_context"] == '{"hour":3}'
    np.testing.assert_array_equal(row["context"], np.frombuffer(bytes(whole.context), "<f4"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(row["candidate_features"])[[0, 2]], row["features"])
    assert row["alphas"] == [1.0, 0.5]
    assert dict(row["rewards"]) == {"like": [0.0, 0.0], "watch": [0.25, 1.5]}
    assert row["viewed"] == row["present"] == [True, True]
    assert [said["kind"] for said in row["feedback"]] == ["watch", "shown"]
    assert row["feedback"][0]["slots"] == [1]
    assert row["feedback"][0]["given_at"].timestamp() == EPOCH0 + 3
    assert row["candidate_rows"] == [0, 2]
    assert row["decided_at"].timestamp() == EPOCH0
    assert row["settled_at"].timestamp() == EPOCH0 + HORIZON
    pinned = rows[5]
    assert pinned["pinned"] == [False, True, False]
    assert pinned["viewed"] == [True, True, True]
    assert pinned["present"] == [True, False, True]
    assert dict(pinned["rewards"])["watch"] == [
        0.25,
        1.5,
        0.25,
    ]  # a pinned slot's reward is for evaluation, not learning
    assert pinned["distributions"] is pinned["candidate_features"] is pinned["sample_rate"] is None
    deferred = rows[11]
    assert deferred["deferred"]
    assert deferred["viewed"] == [False, True, False]
    assert dict(deferred["rewards"])["watch"] == [0.0, 1.5, 0.0]


def test_duckdb_and_pandas_read_what_pyarrow_wrote(folder: Path) -> None:
    ours = pq.read_table(folder / "default" / "home", partitioning=None).sort_by("number")
    with duckdb.connect() as db:
        query = f"""
            SELECT count(*), sum(list_sum(rewards['watch'])), min(propensity), max(len(candidates)),
                   count(distributions), count(DISTINCT date), sum(distributions[1][2]), epoch(min(decided_at))
            FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"""
        found = db.execute(query).fetchone()
        [(value,)] = db.execute(
            f"""SELECT avg(list_dot_product(rewards['watch']::DOUBLE[], list_transform(propensities, lambda p: 0.5 / p)))
                FROM read_parquet('{folder}/**/*.parquet') WHERE mode = 'live' AND len(slate) = 3"""
        ).fetchall()
    assert found is not None
    rewards = [dict(one)["watch"] for one in ours["rewards"].to_pylist()]
    assert found[0] == 40
    assert found[1] == sum(map(sum, rewards))
    assert found[2] == pytest.approx(0.1)
    assert found[3] == 4
    assert found[4:6] == (6, 1)
    assert found[6] == pytest.approx(6 * 0.3)
    assert found[7] == EPOCH0
    frame = pd.read_parquet(folder / "default" / "home").sort_values("number")  # with the day of the path
    assert frame["date"].astype(str).unique().tolist() == ["1970-01-12"]
    assert frame["propensities"].iloc[0].tolist() == [0.4, 0.25]
    assert [dict(one)["watch"].tolist() for one in frame["rewards"]] == rewards
    assert str(frame["decided_at"].dtype) == "datetime64[us, UTC]"
    live = frame[(frame["mode"] == "live") & (frame["slate"].map(len) == 3)]
    by_hand = [
        sum(np.array(dict(r)["watch"]) * 0.5 / p) for r, p in zip(live["rewards"], live["propensities"], strict=True)
    ]
    assert value == pytest.approx(np.mean(by_hand))


def test_types_are_those_that_spark_reads_too() -> None:
    def leaves(kind: pa.DataType) -> list[pa.DataType]:
        inner = [kind.field(i).type for i in range(kind.num_fields)]
        return [leaf for one in inner for leaf in leaves(one)] or [kind]

    readable = {pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.bool_(), pa.timestamp("us", "UTC")}
    assert {leaf for field in SCHEMA for leaf in leaves(field.type)} == readable
    assert {field.type for field in SCHEMA if field.name.endswith("propensities")} == {pa.list_(pa.float64())}


def test_no_column_needs_quotes_in_sql(folder: Path) -> None:
    with duckdb.connect() as db:
        names = ", ".join(SCHEMA.names)
        db.execute(f"CREATE TABLE told AS SELECT {names} FROM read_parquet('{folder}/**/*.parquet')")
        said = db.execute(
            """SELECT count(f.feedback_id), sum(f.value), epoch(min(f.given_at)), max(f.slots), count(DISTINCT f.kind)
               FROM (SELECT unnest(feedback) AS f FROM told)"""
        ).fetchone()
    assert said == (40 + 14, 40 * 1.5 + 14, EPOCH0 + 3, [1], 2)


def test_the_surface_version_lies_beside_the_files(folder: Path) -> None:
    said = msgspec.json.decode((folder / "versions" / f"{PLAIN.hash}.json").read_bytes())
    assert said["schema"] == PLAIN.encoder.schema
    assert said["context"] == list(PLAIN.encoder.context_names)
    assert len(said["items"]) == PLAIN.encoder.item_size
    assert said["surface"]["objectives"].keys() == {"watch", "like"}


def test_an_empty_slate_and_no_experiences_at_all_are_rows_too() -> None:
    ports = told(decision(PLAIN, "empty", EPOCH0, k=0))
    settler(ports).step()
    settler(ports).step(LATER)
    [one] = Experiences(0, ports.checkpoints, ports.log).pull(0, 10)
    [row] = table_of([one]).to_pylist()
    assert row["slate"] == row["features"] == row["viewed"] == []
    assert row["propensity"] == 1.0
    assert dict(row["rewards"]) == {"like": [], "watch": []}
    assert table_of([]).num_rows == 0


@pytest.mark.parametrize("tenant", ["..", "../../etc", "a/b", "", "ü", "x" * 65, "a b"])
def test_a_tenant_that_a_producer_made_up_names_no_path(tenant: str) -> None:
    assert checked_name(f"{plain(tenant)}/home/x.parquet").startswith("hashed=")
    assert plain("default") == "default"


def test_the_day_is_that_of_the_decision_in_utc() -> None:
    ports = told(*(decision(PLAIN, f"d{at}", at) for at in (1_036_799.0, 1_036_800.0)))  # either side of midnight
    store = MemoryBundles()
    write_all(ports, store, LATER + CORRECTABLE * 100)
    assert {name.split("/")[2] for name in stored(store)} == {"date=1970-01-12", "date=1970-01-13"}
    assert folder_of(Experiences(0, ports.checkpoints, ports.log).pull(0, 1)[0]) == f"default/home/{DAY}"


def test_the_documentation_names_every_column_with_its_type() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiences.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", page, re.MULTILINE))
    names = {
        "float": "float",
        "double": "double",
        "string": "string",
        "int32": "int32",
        "int64": "int64",
        "bool": "bool",
    }

    def said(kind: pa.DataType) -> str:
        if pa.types.is_map(kind):
            return f"map of {said(kind.key_type)} to {said(kind.item_type)}"
        if pa.types.is_list(kind):
            return f"list of {said(kind.value_type)}"
        if pa.types.is_struct(kind):
            return "struct"
        return "timestamp, UTC" if pa.types.is_timestamp(kind) else names[str(kind)]

    assert told == {field.name: said(field.type) + (", null" if field.nullable else "") for field in SCHEMA}
    assert list(told) == SCHEMA.names
    assert f"Format {FORMAT}" in page


def test_any_store_that_fsspec_opens_has_the_same_files() -> None:
    folder, store = MemoryBundles(), FsspecBundles("memory://experiences", clock=lambda: 0.0)
    names = write_all(told(*events()), folder, LATER)
    assert write_all(told(*events()), store, LATER) == names
    assert {name: store.get(name) for name in names} == stored(folder)


def _open_windows_are_written(patch: pytest.MonkeyPatch) -> None:
    write = Windows.write
    patch.setattr(Windows, "write", lambda self, number, frontier: write(self, number, frontier + WINDOW))


@pytest.mark.parametrize("plant", [_open_windows_are_written], ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_file_is_the_same_whichever_way_it_came_about()
