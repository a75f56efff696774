"""Writes the golden files of this release: `python -m tests.golden.make` (README.md here says when).

A short story goes through the parts that write in production: events into a spool and a log, a shard that learns from it, a
settler that numbers what has settled, trainers that are taught it, a publisher that makes bundles, and the record of what
people configured. What each file means is written down from the story itself, not read back: `meaning.json`.
"""

import argparse
import gzip
import io
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np

from policies import bundle as bundling
from policies.experiments.course import drafted, started
from policies.experiments.document import Arm, Experiment, Metrics
from policies.registry import ALGORITHMS
from policies.releases import Released, Terms
from policies.releases import started as released
from policies.surface import Bool, Category, FeatureSpec, Number, Objective, PolicySpec, Surface
from policies.types import F32
from services.access import KIND as KEY
from services.access import Key, digest_of
from services.audit import Change, entry
from services.configuring import Applied
from services.scoring.wire import Item
from streaming import forgets
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryDeadLetters, MemoryLog, MemoryState
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.adapters.sqlite_checkpoints import SqliteCheckpoints
from streaming.configuration import Configs, publish_surface
from streaming.events import (
    Decision,
    Exposed,
    Feedback,
    Goal,
    Inside,
    Interleaved,
    Sample,
    Shadow,
    Shortlisted,
    Strayed,
    encode,
)
from streaming.experiences import Experience, Experiences
from streaming.experiments import KIND as EXPERIMENT
from streaming.experiments import indexed, stored
from streaming.feed import Feed
from streaming.parquet import table_of, writer
from streaming.publish import Publisher, pointer_name
from streaming.releases import KIND as RELEASE
from streaming.releases import key_of
from streaming.releases import stored as stored_release
from streaming.settle import Settler
from streaming.shard import Shard
from streaming.spool import Spool, segment_path
from streaming.trainer import Training
from streaming.training_uploads import TrainingUploads, take
from streaming.uploads import Uploads

HERE = Path(__file__).parent
NOW = 1_764_000_000.0  # seconds; the story's first moment
UNITS = ["00000000000000aa", "00000000000000bb"]
ITEMS = [f"item-{i}" for i in range(6)]
TOKEN = b"sw_0123456789ab_of-the-golden-files-and-of-nothing-else"  # of a key that no deployment has
SMALL = {"draws": 8, "hidden": 4, "size": 4, "embedding": 4, "minibatch": 8, "replay": 16, "batch": 8, "steps": 2}
SMALL |= {"window": 100, "epochs": 8, "waiting": 64, "goals": 3, "undrawn": 4, "replicates": 8}

SURFACE = Surface(
    "home",
    slots=2,
    horizon=100.0,
    correctable=1_000.0,
    session_timeout=30.0,
    history=2,
    features=FeatureSpec(
        context={"device": Category(["ios", "web"])},
        items={"price": Number(0.0, 8.0), "new": Bool()},
        cross=[("device", "price")],
    ),
    objectives={
        "click": Objective("click", aggregate="max", range=(0.0, 1.0)),
        "watch": Objective("watch", scale=0.1, range=(0.0, 60.0)),
    },
    live="linear_thompson",
)


def policies() -> dict[str, PolicySpec]:
    """One policy of every algorithm, under its algorithm's name, as small as its options allow."""
    made = {}
    for name, algorithm in ALGORITHMS.items():
        known = algorithm.config.__struct_fields__
        options = {key: value for key, value in SMALL.items() if key in known}
        if algorithm.config().draws == 1:
            options.pop("draws", None)
        made[name] = PolicySpec(name, objective="click", options=options)
    return {name: spec for name, spec in made.items() if name not in ("uniform", "given_order", "popular")} | {
        f"{name}-policy": made[name]
        for name in ("uniform", "given_order", "popular")  # the names are reserved
    }


def features(rng: np.random.Generator, *shape: int) -> F32:
    """Eighths, which every float keeps."""
    return np.asarray(rng.integers(0, 9, shape) / 8, np.float32)


def everything(configs: Configs) -> Decision:
    """A decision that says all that a decision can say."""
    compiled = configs.current("home")
    assert compiled is not None
    d, c = compiled.encoder.item_size, compiled.encoder.context_size
    rng = np.random.default_rng(1)
    matrix = features(rng, 4, d)
    made = Decision(
        decision_id="everything",
        unit=UNITS[0],
        at=NOW + 130,
        surface="home",
        config=compiled.hash,
        policy="linear_thompson",
        bundle="0" * 32,
        mode="fallback",
        reason="deadline",
        slate=["item-2", "item-0"],
        slots=[0, 1],
        rows=[2, 0],
        propensities=[0.25, 1.0],
        remaining=[4, 1],
        greedy=[2, 0],
        context=features(rng, c).tobytes(),
        shown=matrix[[2, 0]].tobytes(),
        epsilon=0.02,
        head="one_draw",
        max_share=0.5,
        temperature=0.7,
        alphas=[1.0, 0.5],
        pinned=[1],
        candidates=ITEMS[:4],
        asked=2,
        catalogue=7,
        shortlist=Shortlisted(5_000, 2, 2, [1.0, 0.5]),
        matrix=matrix.tobytes(),
        history=features(rng, 2, d).tobytes(),
        history_items=["item-4", "item-5"],
        goal=Goal(1, 0.5, "0" * 32, "an-earlier-one"),
        support=matrix.tobytes(),
        support_rows=[0, 1, 2, 3],
        weights={"click": 1.0, "watch": 0.05},
        weight=0.5,
        defer=True,
        own_id=True,
        session="s-1",
        raw_context={"device": "ios"},
        experiment={"name": "ts-vs-uniform", "arm": "treatment", "allocation": "0"},
        sample=Sample(
            rate=0.5,
            distributions=np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]).tobytes(),
            uniforms=np.array([0.6, 0.1]).tobytes(),
            boosts=np.array([0.0, 0.1, 0.0, 0.0]).tobytes(),
            masks=np.ones((2, 4), np.uint8).tobytes(),
            pins={1: 0},
            within=Inside(
                names=["cap:genre"],
                ops=np.array([1]).tobytes(),
                codes=np.zeros((1, 4), np.int64).tobytes(),
                limits=np.array([[2, 2]]).tobytes(),
                weights=np.array([0.3]).tobytes(),
                covers=np.zeros((1, 4), np.int64).tobytes(),
                vectors=np.zeros((1, 4), "<f4").tobytes(),
            ),
        ),
        shadows=[Shadow("softmax", "1" * 32, [0.5, 1.0], [2.0, None], 0.75)],
        acted=["cap:genre"],
        relaxed={"quota:new": [1]},
        skipped={"seen": "store away"},
        exposed=Exposed(("jazz", "rock"), (0.6, 0.4), (0.5, 0.5), (1.0, 0.0), (0, 1)),
        strayed=Strayed("device == 'web'", (0.25, 0.0)),
        interleaved=Interleaved(
            ("softmax", "linucb"),
            ("1" * 32, "2" * 32),
            [("softmax", 0.02, 1.0, 0.7), ("draws", 0.1, 0.5, 1.0)],
            [0, -1],
            [[0.5, 1.0], [0.25, 1.0]],
            Sample(0.5, np.full((2, 4), 0.25).tobytes(), np.array([0.6, 0.1]).tobytes()),
        ),
        dropped=3,
        tenant="default",
        generation=2,
    )
    silent = [
        f.name for f in msgspec.structs.fields(Decision) if not f.required and getattr(made, f.name) == _default(f)
    ]
    assert silent in (["tenant", "v"], ["v", "tenant"]), f"say these too: {silent}"
    return made


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def told(configs: Configs) -> Iterator[tuple[float, Decision | Feedback]]:
    """(append time, event): two units, sixteen decisions, and what feedback can be."""
    compiled = configs.current("home")
    assert compiled is not None
    d, c = compiled.encoder.item_size, compiled.encoder.context_size
    rng = np.random.default_rng(2)
    for i in range(16):
        at, unit = NOW + 8 * (i + 1), UNITS[i % 2]
        matrix = features(rng, 4, d)
        slate = [int(row) for row in rng.permutation(4)[:2]]
        yield (
            at,
            Decision(
                decision_id=f"{unit}-{i}",
                unit=unit,
                at=at,
                surface="home",
                config=compiled.hash,
                policy="uniform-policy",
                bundle="0" * 32,
                mode="live",
                slate=[ITEMS[row] for row in slate],
                slots=[0, 1],
                rows=slate,
                propensities=[0.25, 1 / 3],
                remaining=[4, 3],
                greedy=[0, 0],
                context=features(rng, c).tobytes(),
                shown=matrix[slate].tobytes(),
                epsilon=1.0,
                candidates=ITEMS[:4],
                asked=2,
                support=matrix.tobytes(),
                support_rows=[0, 1, 2, 3],
                history=features(rng, 1, d).tobytes(),
                history_items=["item-5"],
                session=f"s-{i // 8}",
            ),
        )
        if i % 2 == 0:
            yield (
                at + 1,
                Feedback(decision_id=f"{unit}-{i}", unit=unit, at=at + 1, kind="click", slot=0, feedback_id="c"),
            )
        if i % 3 == 0:
            yield (
                at + 2,
                Feedback(
                    decision_id=f"{unit}-{i}", unit=unit, at=at + 2, kind="watch", value=8.0, slot=1, feedback_id="w"
                ),
            )
    last = NOW + 8 * 16 + 3
    first, third = f"{UNITS[0]}-0", f"{UNITS[0]}-2"
    yield last, Feedback(decision_id=first, unit=UNITS[0], at=last, retracts="c")  # never clicked
    yield (
        last,
        Feedback(  # watched for 16, not for 8
            decision_id=first, unit=UNITS[0], at=NOW + 12, kind="watch", value=16.0, slot=1, feedback_id="w", revision=1
        ),
    )
    yield last, Feedback(decision_id=third, unit=UNITS[0], at=last, kind="shown", slots=[0], accepted_at=last)
    yield last, everything(configs)
    yield last, Feedback(decision_id="everything", unit=UNITS[0], at=last, kind="click", item="item-2", generation=2)
    yield last, Feedback(decision_id=f"{UNITS[1]}-later", unit=UNITS[1], at=last, kind="click", slot=0)


MEANING = {
    "decisions": 17,
    "feedback": 8 + 6 + 5,
    # (decision, slot) pairs seen: 16 slates of two, but for slot 1 of the third, which `shown` leaves out; and slot 0 of
    # `everything`, which waits to be shown, was clicked, and has its other slot pinned
    "present": 32 - 1 + 1,
    "clicks": 8 - 1 + 0.5,  # as learned: one was taken back, and one is of `everything`, which weighs half
    "watched": 6 * 8.0 + 8.0,  # one was corrected from 8 to 16
    "settled_clicks": 8 + 1,  # the first decision had settled before its feedback was taken back and corrected
    "settled_watched": 6 * 8.0,
    "early": f"{UNITS[1]}-later",
    "settled_by": NOW + 240,
}


def record(folder: Path) -> MemoryState:
    """The record of what people configured, with an entry of every kind."""
    state = MemoryState()
    surface = msgspec.structs.replace(SURFACE, policies=policies())
    digest = publish_surface(state, surface)
    document = Experiment(
        "ts-vs-uniform",
        "home",
        {"control": Arm("uniform-policy", 0.5), "treatment": Arm("linear_thompson", 0.25)},
        Metrics("click"),
        overrides={UNITS[1]: "treatment"},
        learners="shared",
    )
    trial = started(drafted(document, [], NOW), [], NOW)
    release = released(Released(), "home", "linucb", "linear_thompson", "shadow", Terms(objective="click"), NOW)
    change = Change(
        NOW, "ops@example.org", "start", "experiment/ts-vs-uniform", {"status": "draft"}, {"status": "running"}
    )
    item = Item("item-1", features={"price": 2.0}, attributes={"genre": ["jazz", "soul"]}, available=False)
    key = Key("0123456789ab", "backend", digest_of(TOKEN).hex(), ["decide", "feedback"], NOW, rate=50.0)
    pending = forgets.Forget(NOW, "a-job", "admin", {"joins": forgets.Store("pending")})
    entries: list[tuple[str, str, bytes | None]] = [
        (EXPERIMENT, "ts-vs-uniform", stored(trial)),
        *indexed(state, trial),
        (RELEASE, key_of("home"), stored_release(release)),
        (RELEASE, "holds", msgspec.json.encode({"home/softmax": "2" * 32})),
        entry(change),
        ("item", "item-1", msgspec.json.encode(item)),
        (KEY, key.id, msgspec.json.encode(key)),
        (forgets.KIND, "00000000000000cc", forgets.encode(pending)),
        (forgets.DONE, "00000000000000cc/joins", forgets.encode(forgets.Forgot(NOW, 3))),
        ("config-folder", "default", msgspec.json.encode(Applied("a-hash", ["home"], experiments=["ts-vs-uniform"]))),
        ("epoch", "learning", b"4"),
    ]
    state.put(entries)
    lines = [
        msgspec.json.encode({"kind": e.kind, "key": e.key, "version": e.version, "value": (e.value or b"").decode()})
        for e in state.read()
    ]
    (folder / "state.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "surface.hash").write_text(digest + "\n")
    return state


def make(folder: Path) -> None:
    """Every file of a release."""
    configs = Configs()
    configs.follow(record(folder))
    events = list(told(configs))
    with TemporaryDirectory() as scratch:
        here = Path(scratch)
        _spooled(events, here / "spool", folder)
        clock = [NOW]
        log = MemoryLog(1, now=lambda: clock[0], identity="golden")
        for at, event in events:
            clock[0] = at
            log.append([(event.unit.encode(), encode(event))])
        shard, sums = _shard(configs, log, here / "shard.sqlite", FileBundles(here / "uploads"))
        experiences = _settled(configs, log, here / "settled.sqlite")
        uploaded = FileBundles(here / "training-uploads")
        training, trained = _trained(configs, here / "settled.sqlite", log, here / "training.sqlite", uploaded)
        _published(configs, sums | trained, here / "bundles")
        shard.close()
        training.close()
        for name in ("shard", "settled", "training"):
            _packed(folder / f"{name}.sqlite.gz", (here / f"{name}.sqlite").read_bytes())
        for name in ("uploads", "training-uploads", "bundles"):
            _zipped(here / name, folder / f"{name}.zip")
    with writer(folder / "settled.parquet") as parquet:
        parquet.write_table(table_of(experiences))
    (folder / "meaning.json").write_bytes(msgspec.json.format(msgspec.json.encode(MEANING)) + b"\n")


def _spooled(events: list[tuple[float, Decision | Feedback]], scratch: Path, folder: Path) -> None:
    spool = Spool(scratch, spool_id="golden")
    for _, event in events:
        spool.append(event.unit.encode(), encode(event))
    spool.close()
    (folder / "spool.seg").write_bytes(segment_path(scratch / "golden", 0).read_bytes())
    appended = [at for at, _ in events]
    (folder / "appended.json").write_bytes(msgspec.json.encode(appended) + b"\n")  # the log's times


def _shard(
    configs: Configs, log: MemoryLog, path: Path, uploaded: FileBundles
) -> tuple[SqliteCheckpoints, dict[str, bundling.Arrays]]:
    checkpoints = SqliteCheckpoints(path)
    feed = Feed(0, 3, MemoryCounters(), MemoryProfiles(), lambda: 0.0)
    uploads = Uploads(uploaded, 0, 3)
    shard = Shard(0, log, checkpoints, configs, MemoryDeadLetters(), epoch=3, uploads=uploads, feed=feed)
    while shard.step().records:
        pass
    made = shard.checkpoint(uploads.known())
    assert made is not None
    uploads.put(made)
    return checkpoints, shard.statistics().arrays


def _settled(configs: Configs, log: MemoryLog, path: Path) -> list[Experience]:
    outbox = SqliteCheckpoints(path)
    settler = Settler(0, log, outbox, configs, epoch=3)
    while settler.step(MEANING["settled_by"] + 60.0).records or settler.step(MEANING["settled_by"] + 60.0).settled:  # type: ignore[operator]
        pass
    found = Experiences(0, outbox, log).pull(0, 100)
    outbox.close()
    return found


def _trained(
    configs: Configs, settled: Path, log: MemoryLog, path: Path, uploaded: FileBundles
) -> tuple[SqliteCheckpoints, dict[str, bundling.Arrays]]:
    """Trainers after the first ten rows, with a second entry of the order that the checkpoint does not hold yet."""
    store, outbox = SqliteCheckpoints(path), SqliteCheckpoints(settled)
    training = Training(store, [Experiences(0, outbox, log)], configs, epoch=3, identity="golden", limit=10)
    training.step({})
    training.checkpoint()
    arrays = {key: {name: np.array(a) for name, a in training.arrays(key).items()} for key in training.policies}
    training.step({})
    settler = Settler(0, log, outbox, configs, epoch=3)
    settler.step(MEANING["settled_by"] + 60.0)  # type: ignore[arg-type] - a number; from its checkpoint to its place
    taken = take(training, store, [settler], [outbox])
    assert taken is not None
    assert TrainingUploads(uploaded, 3).put("golden", training.checkpointed, taken, store)
    training.forget()
    outbox.close()
    return store, arrays


def _published(configs: Configs, sums: dict[str, bundling.Arrays], folder: Path) -> None:
    publisher = Publisher(FileBundles(folder), configs, 3)
    compiled = configs.current("home")
    assert compiled is not None
    for policy in compiled.policies.values():
        if policy.name in compiled.surface.policies:
            held = [sums[policy.key]] if policy.key in sums else []
            outcome = publisher.publish(policy, held, {0: 9}, NOW + 300, number=5, fresh=[NOW + 1])
            assert outcome.manifest is not None, f"{pointer_name(policy)}: {outcome.detail}"


def _packed(path: Path, data: bytes) -> None:
    with io.BytesIO() as made:
        with gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as file:
            file.write(data)
        path.write_bytes(made.getvalue())


def _zipped(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != "lock":
                made.writestr(
                    zipfile.ZipInfo(file.relative_to(folder).as_posix()), file.read_bytes(), zipfile.ZIP_DEFLATED
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="default: the folder of the version that pyproject.toml names")
    release = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    out = parser.parse_args().out or HERE / release
    out.mkdir(parents=True, exist_ok=True)
    make(out)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1000:.0f} kB")  # noqa: T201 - a command
