"""Settled decisions as Parquet: one row a decision, lists by slot and by candidate. `docs/experiences.md` says every column.

Types are those that DuckDB, pandas and Spark all read: signed integers, microseconds in UTC, lists, maps; no dictionaries, no
nanoseconds; no column is called by a word of SQL. Probabilities are float64, encoded features float32 as they were drawn from. Equal experiences give equal bytes.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streaming.events import Decision, Floats, Inside, Interleaved, floats
from streaming.experiences import Experience, Told

FORMAT = 1  # raised when a column changes its meaning or goes; new columns may come without
ROW_GROUP = 1_000  # decisions: a few MB, so that a reader of one column of many files stays small

_strings, _floats, _doubles = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.float64())
_integers, _flags = pa.list_(pa.int32()), pa.list_(pa.bool_())
_time = pa.timestamp("us", tz="UTC")
_feedback = pa.struct(
    [
        ("feedback_id", pa.string()),
        ("kind", pa.string()),
        ("value", pa.float64()),
        ("given_at", _time),
        ("slots", _integers),
    ]
)

_goal = pa.struct(
    [
        ("id", pa.int32()),
        ("propensity", pa.float64()),
        ("bundle", pa.string()),
        ("drawn_at_decision", pa.string()),
    ]
)

_interleaved = pa.struct(
    [
        ("policies", _strings),
        ("bundles", _strings),
        ("teams", _integers),
        ("own", pa.list_(_doubles)),
    ]
)

_shortlist = pa.struct(
    [
        ("eligible", pa.int32()),
        ("kept", pa.int32()),
        ("drawn", pa.int32()),
        ("inclusions", _doubles),
    ]
)

_codes = pa.list_(pa.list_(pa.int64()))
_within = pa.struct(
    [
        ("names", _strings),
        ("ops", pa.list_(pa.int64())),
        ("codes", _codes),
        ("limits", _codes),
        ("weights", _doubles),
        ("covers", _codes),
        ("vectors", pa.list_(_floats)),
    ]
)

_COLUMNS: list[tuple[str, pa.DataType, bool]] = [  # name, type, may be null
    ("log_partition", pa.int32(), False),
    ("number", pa.int64(), False),
    ("log_offset", pa.int64(), False),
    ("decision_id", pa.string(), False),
    ("tenant", pa.string(), False),
    ("surface", pa.string(), False),
    ("unit", pa.string(), False),
    ("session", pa.string(), True),
    ("decided_at", _time, False),
    ("settled_at", _time, False),
    ("config", pa.string(), False),
    ("feature_schema", pa.string(), False),
    ("policy", pa.string(), False),
    ("bundle", pa.string(), False),
    ("mode", pa.string(), False),
    ("reason", pa.string(), True),
    ("experiment", pa.string(), True),
    ("arm", pa.string(), True),
    ("context", _floats, False),
    ("raw_context", pa.string(), True),
    ("slate", _strings, False),
    ("slots", _integers, False),
    ("candidate_rows", _integers, False),
    ("features", pa.list_(_floats), False),
    ("propensities", _doubles, False),
    ("prefix_propensities", _doubles, False),
    ("propensity", pa.float64(), False),
    ("remaining", _integers, False),
    ("greedy", _integers, False),
    ("alphas", _doubles, True),
    ("pinned", _flags, False),
    ("viewed", _flags, False),
    ("present", _flags, False),
    ("rewards", pa.map_(pa.string(), _doubles), False),
    ("feedback", pa.list_(_feedback), False),
    ("weight", pa.float64(), False),
    ("weights", pa.map_(pa.string(), pa.float64()), True),
    ("head", pa.string(), False),
    ("epsilon", pa.float64(), False),
    ("max_share", pa.float64(), False),
    ("temperature", pa.float64(), False),
    ("asked", pa.int32(), False),
    ("candidates", _strings, False),
    ("candidate_features", pa.list_(_floats), True),
    ("support_rows", _integers, False),
    ("support", pa.list_(_floats), True),
    ("history_items", _strings, False),
    ("history", pa.list_(_floats), True),
    ("goal", _goal, True),
    ("catalogue", pa.int64(), False),
    ("dropped", pa.int32(), False),
    ("deferred", pa.bool_(), False),
    ("own_id", pa.bool_(), False),
    ("sample_rate", pa.float64(), True),
    ("distributions", pa.list_(_doubles), True),
    ("uniforms", _doubles, True),
    ("boosts", _doubles, True),
    ("masks", pa.list_(_flags), True),
    ("pins", pa.map_(pa.int32(), pa.int32()), True),
    ("acted", _strings, True),
    ("within", _within, True),
    ("shortlist", _shortlist, True),
    ("interleaved", _interleaved, True),
]
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable) for name, kind, nullable in _COLUMNS],
    metadata={"slatewise.experiences": str(FORMAT)},
)

Vector = NDArray[Any]


def table_of(experiences: Sequence[Experience]) -> pa.Table:
    """One row an experience, in the order given."""
    made = [(experience, experience.decision) for experience in experiences]
    shown = [_rows(d.shown, len(d.slate)) for _, d in made]
    samples = [d.sample for _, d in made]
    matrices = [None if d.matrix is None else _rows(d.matrix, len(d.candidates)) for _, d in made]
    propensities = [np.array(d.propensities) for _, d in made]
    columns: dict[str, Any] = {
        "log_partition": [e.partition for e, _ in made],
        "number": [e.number for e, _ in made],
        "log_offset": [e.row.offset for e, _ in made],
        "decided_at": _times([d.at for _, d in made]),
        "settled_at": _times([e.row.due for e, _ in made]),
        "feature_schema": [e.row.schema for e, _ in made],
        "experiment": [(d.experiment or {}).get("name") for _, d in made],
        "arm": [(d.experiment or {}).get("arm") for _, d in made],
        "candidate_rows": [d.rows for _, d in made],
        "context": _lists([floats(d.context) for _, d in made], pa.float32()),
        "raw_context": [
            None if d.raw_context is None else msgspec.json.encode(d.raw_context).decode() for _, d in made
        ],
        "features": _matrices(shown, pa.float32()),
        "propensities": _lists(propensities, pa.float64()),
        "prefix_propensities": _lists([np.cumprod(p) for p in propensities], pa.float64()),
        "propensity": [float(np.prod(p)) for p in propensities],
        "pinned": [[slot in d.pinned for slot in d.slots] for _, d in made],
        "viewed": _lists([np.frombuffer(e.row.viewed, np.uint8) > 0 for e, _ in made], pa.bool_()),
        "present": _lists([np.frombuffer(e.row.present, np.uint8) > 0 for e, _ in made], pa.bool_()),
        "rewards": _rewards(experiences),
        "feedback": [[_told(said, d) for said in e.row.told] for e, d in made],
        "weights": [None if d.weights is None else list(d.weights.items()) for _, d in made],
        "candidate_features": _matrices(matrices, pa.float32()),
        "support": _matrices(
            [None if d.support is None else _rows(d.support, len(d.support_rows)) for _, d in made], pa.float32()
        ),
        "history": _matrices(
            [None if d.history is None else _rows(d.history, len(d.history_items)) for _, d in made], pa.float32()
        ),
        "goal": [None if d.goal is None else msgspec.structs.asdict(d.goal) for _, d in made],
        "shortlist": [None if d.shortlist is None else msgspec.structs.asdict(d.shortlist) for _, d in made],
        "interleaved": [None if d.interleaved is None else _drafted(d.interleaved) for _, d in made],
        "deferred": [d.defer for _, d in made],
        "sample_rate": [None if s is None else s.rate for s in samples],
        "distributions": _matrices(
            [
                None if s is None else _folded(np.frombuffer(s.distributions), len(d.slate))
                for s, (_, d) in zip(samples, made, strict=True)
            ],
            pa.float64(),
        ),
        "uniforms": _lists([None if s is None else np.frombuffer(s.uniforms) for s in samples], pa.float64()),
        "boosts": _lists(
            [None if s is None or s.boosts is None else np.frombuffer(s.boosts) for s in samples], pa.float64()
        ),
        "masks": _matrices(
            [
                None if s is None or s.masks is None else _folded(np.frombuffer(s.masks, np.uint8) > 0, d.asked)
                for s, (_, d) in zip(samples, made, strict=True)
            ],
            pa.bool_(),
        ),
        "pins": [None if s is None else list(s.pins.items()) for s in samples],
        "acted": [d.acted or None for _, d in made],
        "within": [
            None if s is None or s.within is None else _inside(s.within, len(d.candidates), d.asked)
            for s, (_, d) in zip(samples, made, strict=True)
        ],
    }
    arrays = []
    for field in SCHEMA:
        column = columns.get(field.name)
        if column is None:  # under the name it has in the record
            column = [getattr(d, field.name) for _, d in made]
        arrays.append(column if isinstance(column, pa.Array) else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def writer(sink: Any) -> pq.ParquetWriter:
    """Into a file-like object or a path."""
    return pq.ParquetWriter(sink, SCHEMA, compression="zstd", version="2.6", coerce_timestamps="us")


def _times(seconds: Sequence[float]) -> Any:
    return pa.array(np.rint(np.array(seconds) * 1e6).astype(np.int64), _time)


def _rows(vectors: Floats, n: int) -> Vector:
    """(n, d) of a record's vectors."""
    return _folded(floats(vectors), n)


def _folded(flat: Vector, n: int) -> Vector:
    """(n, d); (0, 0) where there are none, or where they are not n rows of one width."""
    return flat.reshape(n, -1) if n and len(flat) % n == 0 else flat[:0].reshape(0, 0)


def _offsets(sizes: Sequence[int]) -> Any:
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))


def _lists(vectors: Sequence[Vector | None], kind: pa.DataType) -> Any:
    """list<kind>, null where there is no vector."""
    given = [v for v in vectors if v is not None]
    values = pa.array(np.concatenate(given) if given else np.zeros(0, bool if kind == pa.bool_() else None), kind)
    offsets = _offsets([0 if v is None else len(v) for v in vectors])
    return pa.ListArray.from_arrays(offsets, values, mask=_missing(vectors))


def _matrices(matrices: Sequence[Vector | None], kind: pa.DataType) -> Any:
    """list<list<kind>>, row by row."""
    rows = [row for m in matrices if m is not None for row in m]
    offsets = _offsets([0 if m is None else len(m) for m in matrices])
    return pa.ListArray.from_arrays(offsets, _lists(rows, kind), mask=_missing(matrices))


def _inside(inside: Inside, n: int, k: int) -> dict[str, Any]:
    """Arrays of what depended on the slots before, as lists: by constraint or coverage, then by candidate or slot."""
    return {
        "names": inside.names,
        "ops": np.frombuffer(inside.ops, "<i8").tolist(),
        "codes": np.frombuffer(inside.codes, "<i8").reshape(-1, n).tolist(),
        "limits": np.frombuffer(inside.limits, "<i8").reshape(-1, k).tolist(),
        "weights": np.frombuffer(inside.weights).tolist(),
        "covers": np.frombuffer(inside.covers, "<i8").reshape(-1, n).tolist(),
        "vectors": np.frombuffer(inside.vectors, "<f4").reshape(-1, n).tolist(),
    }


def _drafted(said: Interleaved) -> dict[str, Any]:
    return {name: getattr(said, name) for name in ("policies", "bundles", "teams", "own")}


def _missing(values: Sequence[Vector | None]) -> Any:
    absent = np.array([v is None for v in values], bool)
    return pa.array(absent) if absent.any() else None


def _rewards(experiences: Sequence[Experience]) -> Any:
    """map<objective, list<double> by slot>."""
    keys = [name for e in experiences for name in e.row.objectives]
    values = [column for e in experiences if e.row.objectives for column in e.rewards.T]
    offsets = _offsets([len(e.row.objectives) for e in experiences])
    return pa.MapArray.from_arrays(offsets, pa.array(keys, pa.string()), _lists(values, pa.float64()))


def _told(said: Told, decision: Decision) -> dict[str, Any]:
    return {
        "feedback_id": said.feedback_id,
        "kind": said.kind,
        "value": said.value,
        "given_at": round(said.at * 1e6),
        "slots": [decision.slots[position] for position in said.positions],
    }
