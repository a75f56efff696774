"""`slatewise export` and the settling process, over the embedded adapters as they are installed."""

import csv
import io
import math
import threading
import time
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import vowpalwabbit
from click.testing import CliRunner, Result
from scoring_setup import until

import services.experiences
from policies.errors import Rejected, Unavailable
from policies.surface import Category, FeatureSpec, Number, Objective, Surface
from services.cli import main
from services.experiences.settling import Settling
from services.experiences.settling import run as run_settling
from services.settings import Settings
from services.wiring import open_experiences, open_log, open_settlements, open_state
from streaming.adapters.memory import MemoryBundles
from streaming.configuration import Compiled, compile_surface, publish_surface
from streaming.events import Decision, Feedback, Sample, encode
from streaming.experiences import Experiences

ENVIRONMENT = {"SLATEWISE_PARTITIONS": "2"}
UNIT = "00000000000000aa"
SURFACE = Surface(
    surface="home",
    slots=2,
    horizon=0.05,  # seconds: the log's clock is the machine's
    features=FeatureSpec(
        context={"device": Category(["ios", "web"])}, items={"price": Number(0, 8), "_odd": Number(0, 1)}
    ),
    objectives={"watch": Objective(kind="watch"), "hate": Objective(kind="hate", better="lower")},
)
OTHER = Surface(surface="cart", slots=1, horizon=0.05, objectives={"buy": Objective(kind="buy")})


def made(compiled: Compiled, name: str, at: float, **changes: object) -> Decision:
    size = compiled.encoder.item_size
    k = compiled.surface.slots
    return Decision(
        **{
            "decision_id": f"{UNIT}-{name}",
            "unit": UNIT,
            "at": at,
            "surface": compiled.surface.surface,
            "config": compiled.hash,
            "policy": "p",
            "bundle": "b-1",
            "mode": "live",
            "slate": ["b", "a"][:k],
            "slots": list(range(k)),
            "rows": [1, 0][:k],
            "propensities": [0.5, 0.75][:k],
            "remaining": [3, 2][:k],
            "greedy": [1, 0][:k],
            "candidates": ["a", "b", "c"],
            "asked": k,
            "context": compiled.encoder.context({"device": "ios"} if size else {}).tobytes(),
            "shown": (np.arange(1, k * size + 1, dtype="<f4") / 8).tobytes(),
        }
        | changes  # type: ignore[arg-type]
    )


@pytest.fixture
def installed(tmp_path: Path) -> Settings:
    """A log of three settled decisions on `home` and one on `cart`, and one whose horizon is far away."""
    settings = Settings.load({}, data=tmp_path / "data", experiences=f"file://{tmp_path / 'experiences'}", partitions=2)
    state = open_state(settings)
    for surface in (SURFACE, OTHER):
        publish_surface(state, surface)
    log, home, cart = open_log(settings), compile_surface(SURFACE), compile_surface(OTHER)
    now = time.time()
    size = home.encoder.item_size
    full = np.array([[0.25, 0.5, 0.25], [0.75, 0.0, 0.25]])
    sampled = Sample(rate=1.0, distributions=full.tobytes(), uniforms=np.array([0.5, 0.5]).tobytes())
    events: list[Decision | Feedback] = [
        made(home, "0", now, sample=sampled, matrix=(np.arange(3 * size, dtype="<f4") / 8).tobytes()),
        made(home, "1", now + 0.001),
        made(home, "2", now + 0.002, bundle="", defer=True),
        made(cart, "3", now + 0.003),
        Feedback(decision_id=f"{UNIT}-0", unit=UNIT, at=now, kind="watch", value=3.0, slot=1, feedback_id="w"),
        Feedback(decision_id=f"{UNIT}-1", unit=UNIT, at=now, kind="hate", value=2.0, slot=0, feedback_id="h"),
        Feedback(decision_id=f"{UNIT}-3", unit=UNIT, at=now, kind="buy", slot=0, feedback_id="b"),
    ]
    log.append([(UNIT.encode(), encode(event)) for event in events])
    until(lambda: time.time() > now + 0.2, "the horizon to pass")
    log.append([(UNIT.encode(), encode(made(home, "late", time.time() + 30.0)))])
    return settings


def export(settings: Settings, *words: str) -> Result:
    return CliRunner(env=ENVIRONMENT).invoke(main, ["export", "--data", str(settings.data), *words])


def exported(settings: Settings, *words: str) -> bytes:
    out = settings.data.parent / "out"
    result = export(settings, "--out", str(out), *words)
    assert result.exit_code == 0, result.output
    assert not list(out.parent.glob("*.writing"))
    return out.read_bytes()


def dsjson(settings: Settings, *words: str) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in exported(settings, "--format", "dsjson", *words).splitlines()]


def test_parquet_of_the_log_holds_what_is_settled(installed: Settings) -> None:
    exported(installed, "--format", "parquet")
    rows = pq.read_table(installed.data.parent / "out").to_pylist(maps_as_pydicts="strict")
    assert [row["decision_id"][-1] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["rewards"] == {"hate": [0.0, 0.0], "watch": [0.0, 3.0]}
    assert rows[3]["rewards"] == {"buy": [1.0]}
    exported(installed, "--format", "parquet", "--surface", "cart")
    assert pq.read_table(installed.data.parent / "out")["surface"].to_pylist() == ["cart"]
    exported(installed, "--format", "parquet", "--unsettled", "--surface", "home")
    assert len(pq.read_table(installed.data.parent / "out")) == 4
    for words, rows_left in (
        (["--until", "2001-01-01"], 0),
        (["--since", "2001-01-01"], 4),
        (["--since", "2200-01-01"], 0),
    ):
        exported(installed, "--format", "parquet", *words)
        assert len(pq.read_table(installed.data.parent / "out")) == rows_left


def test_dsjson_has_the_fields_of_vowpal_wabbit_in_its_order(installed: Settings) -> None:
    first, second, third = dsjson(installed, "--surface", "home", "--objective", "watch")
    assert list(first) == ["Timestamp", "Version", "c", "_outcomes", "VWState"]
    assert (
        first["c"]
        == {
            "Context": {"device=ios": 1.0},
            "_multi": [
                {"Item": {"id": "a", "price:0.0..8.0": 0.125}},
                {"Item": {"id": "b", "x_odd:0.0..1.0": 0.125, "price:0.0..8.0": 0.25}},
                {"Item": {"id": "c", "x_odd:0.0..1.0": 0.5, "price:0.0..8.0": 0.625}},
            ],
            "_slots": [{"_id": f"{UNIT}-0-0"}, {"_id": f"{UNIT}-0-1"}],
        }
        or first["c"]["_multi"] != second["c"]["_multi"]
    )  # type: ignore[index]  # shown features win over the matrix
    outcomes = first["_outcomes"]
    assert outcomes == [
        {"_label_cost": 0.0, "_id": f"{UNIT}-0-0", "_a": [1, 0, 2], "_p": [0.5, 0.25, 0.25], "_o": []},
        {"_label_cost": -3.0, "_id": f"{UNIT}-0-1", "_a": [0, 2], "_p": [0.75, 0.25], "_o": []},
    ]
    assert list(outcomes[0]) == ["_label_cost", "_id", "_a", "_p", "_o"]
    assert [one["_a"] for one in second["_outcomes"]] == [[1], [0]]  # type: ignore[index, union-attr]
    assert second["c"]["_multi"][2] == {"Item": {"id": "c"}}  # type: ignore[index]  # nothing else is known of it
    assert (second["VWState"], third["VWState"]) == ({"m": "b-1"}, {"m": "N/A"})
    costs = [
        one["_outcomes"][0]["_label_cost"] for one in dsjson(installed, "--surface", "home", "--objective", "hate")
    ]  # type: ignore[index]
    assert costs == [0.0, 2.0, 0.0]  # less is better: a cost as it is


def test_vowpal_wabbit_reads_every_line_as_a_slate(installed: Settings) -> None:
    vw = vowpalwabbit.Workspace("--ccb_explore_adf --dsjson --quiet")
    try:
        for line in exported(installed, "--format", "dsjson", "--surface", "home", "--objective", "watch").splitlines():
            wanted = msgspec.json.decode(line)["_outcomes"]
            examples = vw.parse(line.decode())
            labels = [e.get_label(vowpalwabbit.LabelType.CONDITIONAL_CONTEXTUAL_BANDIT) for e in examples]
            assert [str(label.type) for label in labels] == ["0", "1", "1", "1", "2", "2"]  # shared, actions, slots
            for label, slot in zip(labels[4:], wanted, strict=True):
                assert label.outcome.cost == slot["_label_cost"]
                assert [one.action for one in label.outcome.action_probs] == slot["_a"]
                assert [one.score for one in label.outcome.action_probs] == pytest.approx(slot["_p"])
            vw.learn(examples)
            vw.finish_example(examples)
        assert math.isfinite(vw.get_sum_loss())
    finally:
        vw.finish()


def test_obp_columns_give_the_cascade_estimate_by_hand(installed: Settings) -> None:
    text = exported(installed, "--format", "obp", "--surface", "home", "--objective", "watch").decode()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert list(lines[0])[:5] == ["slate_id", "position", "reward", "pscore", "pscore_cascade"]
    told = [(int(x["slate_id"]), int(x["position"]), float(x["reward"])) for x in lines]
    assert told == [(0, 0, 0.0), (0, 1, 3.0), (1, 0, 0.0), (1, 1, 0.0), (2, 0, 0.0), (2, 1, 0.0)]
    assert [float(x["pscore"]) for x in lines] == [0.375] * 6
    assert [float(x["pscore_cascade"]) for x in lines] == [0.5, 0.375] * 3
    assert [x["item"] for x in lines[:2]] == ["b", "a"]
    assert [int(x["action"]) for x in lines[:2]] == [1, 0]
    uniform = [1 / 3, 1 / 6]
    weights = np.array([uniform[int(x["position"])] / float(x["pscore_cascade"]) for x in lines])
    estimate = sum(weights * [float(x["reward"]) for x in lines]) / 3  # RIPS of the uniform policy
    assert estimate == pytest.approx(3.0 * (1 / 6) / 0.375 / 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "dsjson", "--surface", "home"], "hate, watch: name one of them"),
        (["--format", "obp", "--surface", "home", "--objective", "wacht"], "has the objectives hate, watch"),
        (["--format", "parquet", "--from", "/nowhere/at/all"], "No *.parquet below"),
        (["--format", "parquet", "--from", "gopher://x"], "Cannot open"),
        (["--format", "parquet", "--from", ".", "--unsettled"], "settled decisions only"),
    ],
)
def test_what_cannot_be_exported_is_said_and_leaves_no_file(installed: Settings, words: list[str], said: str) -> None:
    out = installed.data.parent / "out"
    result = export(installed, "--out", str(out), *words)
    assert result.exit_code == 1
    assert said in result.output
    assert not list(out.parent.glob("out*"))


def test_a_file_that_is_something_else_is_named(installed: Settings, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"not at all")
    result = export(installed, "--format", "obp", "--out", "-", "--from", str(tmp_path / "x.parquet"))
    assert result.exit_code == 1
    assert "not_parquet" in result.output
    with duckdb.connect() as db:
        db.execute(f"COPY (SELECT 1 AS a) TO '{tmp_path / 'y.parquet'}' (FORMAT parquet)")
    result = export(installed, "--format", "obp", "--out", "-", "--from", str(tmp_path / "y.parquet"))
    assert result.exit_code == 1
    assert "format" in result.output


def settle(settings: Settings, now: float) -> list[Path]:
    """Turns of the process until there is no more to do."""
    settling = Settling(open_state(settings), open_log(settings), open_experiences(settings), settings)
    while settling.turn(now):
        pass
    return sorted(Path(settings.experiences.removeprefix("file://")).glob("**/*.parquet"))


def test_the_process_writes_files_that_export_like_the_log(installed: Settings) -> None:
    before = {name: dsjson(installed, "--surface", name, *more) for name, more in WORDS.items()}
    files = settle(installed, time.time() + 1_000)
    ids = [name[-1] for file in files for name in pq.ParquetFile(file).read(["decision_id"])["decision_id"].to_pylist()]
    assert sorted(ids) == ["0", "1", "2", "3", "e"]
    assert settle(installed, time.time() + 2_000) == files
    for name, more in WORDS.items():
        out = dsjson(installed, "--from", installed.experiences, "--surface", name, *more)
        assert out[: len(before[name])] == before[name]
        elsewhere = ["--data", str(installed.data.parent / "empty"), "--from", str(files[0].parents[2])]
        again = CliRunner().invoke(
            main, ["export", "--format", "dsjson", "--out", "-", "--surface", name, *more, *elsewhere]
        )
        assert again.exit_code == 0, again.output  # another machine has the files and what lies beside them, no more
        assert [msgspec.json.decode(x) for x in again.stdout_bytes.splitlines()] == out


WORDS = {"home": ["--objective", "watch"], "cart": []}


def test_a_trainer_pulls_by_number(installed: Settings) -> None:
    settle(installed, time.time() + 1_000)
    log = open_log(installed)
    found = [
        one
        for partition in range(log.partitions)
        for one in Experiences(partition, open_settlements(installed, partition), log).pull(0, 100)
    ]
    assert [one.decision.decision_id[-1] for one in found] == ["0", "1", "2", "3", "e"]
    assert [one.number for one in found] == list(range(5))


def test_rows_in_files_leave_the_outbox_at_retention_the_newest_last(installed: Settings) -> None:
    settle(installed, time.time() + 1_000)
    [partition] = [p for p in range(2) if open_settlements(installed, p).numbers()[1]]
    assert open_settlements(installed, partition).numbers() == (0, 5)
    settle(installed, time.time() + installed.retention_seconds - 100)
    assert open_settlements(installed, partition).numbers() == (0, 5)
    settle(installed, time.time() + installed.retention_seconds + 100)
    assert open_settlements(installed, partition).numbers() == (4, 5)


class Away(MemoryBundles):
    """A store that is not there until it is."""

    def __init__(self) -> None:
        super().__init__()
        self.there = False

    def put(self, name: str, data: bytes) -> None:
        if not self.there:
            raise Unavailable("no store")
        super().put(name, data)


def test_a_store_that_is_away_holds_up_no_settling_and_loses_nothing(installed: Settings) -> None:
    store = Away()
    settling = Settling(open_state(installed), open_log(installed), store, installed)
    later = time.time() + 2 * installed.retention_seconds
    for _ in range(3):
        settling.turn(later)
    numbers = [open_settlements(installed, p).numbers() for p in range(2)]
    assert sorted(numbers) == [(0, 0), (0, 5)]  # settled, and kept though it is older than the log's retention
    store.there = True
    while settling.turn(later):
        pass
    settling.turn(later + 100)
    files = [data for name, data in store._files.items() if name.endswith(".parquet")]
    assert sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in files) == 5
    assert sorted(open_settlements(installed, p).numbers() for p in range(2)) == [(0, 0), (4, 5)]


def test_of_two_processes_the_older_one_ends_by_itself(installed: Settings) -> None:
    def settling() -> Settling:
        return Settling(open_state(installed), open_log(installed), open_experiences(installed), installed)

    old = settling()
    old.turn(time.time())
    new = settling()
    new.turn(time.time())
    open_log(installed).append([(UNIT.encode(), encode(made(compile_surface(SURFACE), "x", time.time())))])
    old.run(threading.Event())  # would go on for ever
    with pytest.raises(Rejected):
        old.turn(time.time())
    new.turn(time.time())


def test_a_partition_whose_records_are_gone_stops_alone(installed: Settings) -> None:
    log = open_log(installed)
    [full] = [p for p in range(2) if log.end(p)[0]]
    settling = Settling(open_state(installed), log, open_experiences(installed), installed)
    settling.turn(time.time())
    home = compile_surface(SURFACE)
    log.append([(UNIT.encode(), encode(made(home, f"x{i}", time.time()))) for i in range(5)])
    log.trim(full, log.end(full)[0])  # type: ignore[attr-defined]  # a log of SQLite can be
    log.append([(UNIT.encode(), encode(made(home, "y", time.time())))])
    assert settling.turn(time.time()) is False
    assert [bool(seat.stopped) for seat in settling._seats] == [p == full for p in range(2)]
    assert f'slatewise_settle_stopped{{partition="{full}"}} 1.0' in settling._telemetry.text().decode()


def test_without_a_folder_the_process_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="SLATEWISE_EXPERIENCES"):
        run_settling(Settings.load({}, data=tmp_path))


@pytest.mark.parametrize("words", [["settle"], ["export", "--format", "obp", "--out", "-"]], ids=["settle", "export"])
def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]) -> None:
    monkeypatch.setattr(services.experiences, "find_spec", lambda name: None)
    result = CliRunner().invoke(main, [*words, "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "slatewise[learning]" in result.output
