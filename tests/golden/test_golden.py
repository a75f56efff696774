"""Rolling upgrades: today's code reads what every release wrote, with the meaning that was meant, and goes on from it; and what a
newer release writes is read where it only adds, else refused by name. The files are described in README.md here."""

import gzip
import hashlib
import json
import shutil
import sqlite3
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policies import bundle as bundling
from policies.errors import Corrupt, Rejected
from policies.experiments.assignment import NOBODY
from policies.registry import ALGORITHMS
from policies.surface import content_hash
from policies.types import Arrays
from services.access import Access
from services.audit import Audit
from services.configuring import applied
from services.epochs import current_epoch
from services.experiences.sources import complete, from_files
from services.releases import holds
from services.scoring.catalogue import Catalogue
from streaming import experiments, forgets, joined, releases
from streaming.adapters.files import FileBundles
from streaming.adapters.memory import MemoryDeadLetters, MemoryLog, MemoryState
from streaming.adapters.memory_tables import MemoryCounters, MemoryProfiles
from streaming.adapters.sqlite_checkpoints import SqliteCheckpoints
from streaming.configuration import POINTER, VERSION, Compiled, Configs
from streaming.events import Decision, Feedback, decode, encode, floats
from streaming.experiences import Experiences
from streaming.feed import Feed
from streaming.frames import scan
from streaming.parquet_reading import experiences_of
from streaming.ports import Record
from streaming.publish import pointer_name
from streaming.recovery import read_held
from streaming.scorer import score
from streaming.settle import Settler
from streaming.shard import Shard
from streaming.trainer import Training
from streaming.training_uploads import TrainingUploads, go_on
from streaming.uploads import Uploads
from tests.golden.make import HERE, NOW, TOKEN, UNITS, everything

LARGEST = 300_000  # bytes of all files of a release


@dataclass(frozen=True)
class Golden:
    """The files of one release, unpacked where they may be written to."""

    files: Path
    scratch: Path

    @cached_property
    def meaning(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((self.files / "meaning.json").read_bytes())
        return said

    @cached_property
    def records(self) -> list[tuple[bytes, bytes]]:
        found = scan((self.files / "spool.seg").read_bytes())
        assert not found.broken
        return found.records

    @cached_property
    def state(self) -> MemoryState:
        state = MemoryState()
        for line in (self.files / "state.jsonl").read_bytes().splitlines():
            one = json.loads(line)
            state.put([(one["kind"], one["key"], one["value"].encode())])
        return state

    @cached_property
    def configs(self) -> Configs:
        configs = Configs()
        configs.follow(self.state)
        assert not configs.refused
        return configs

    @property
    def compiled(self) -> Compiled:
        found = self.configs.current("home")
        assert found is not None
        return found

    def log(self, *more: tuple[bytes, bytes], at: float = NOW + 140) -> MemoryLog:
        """The log as it was, and what is said now, `at` a time."""
        times = iter(json.loads((self.files / "appended.json").read_bytes()))
        log = MemoryLog(1, now=lambda: next(times, at), identity="golden")
        for record in [*self.records, *more]:
            log.append([record])
        return log

    def sqlite(self, name: str) -> Path:
        """A copy of a checkpoint's file, as it was written."""
        path = self.scratch / f"{name}.sqlite"
        path.write_bytes(gzip.decompress((self.files / f"{name}.sqlite.gz").read_bytes()))
        return path

    def store(self, name: str) -> FileBundles:
        shutil.rmtree(self.scratch / name, ignore_errors=True)
        with zipfile.ZipFile(self.files / f"{name}.zip") as packed:
            packed.extractall(self.scratch / name)
        return FileBundles(self.scratch / name)

    def shard(self, checkpoints: SqliteCheckpoints, log: MemoryLog, epoch: int = 4, uploads: Any = None) -> Shard:
        feed = Feed(0, epoch, MemoryCounters(), MemoryProfiles(), lambda: 0.0)
        letters = MemoryDeadLetters()
        shard = Shard(0, log, checkpoints, self.configs, letters, epoch=epoch, feed=feed, uploads=uploads)
        while shard.step().records:
            pass
        assert letters.count() == {}
        return shard


@pytest.fixture(params=sorted(path.name for path in HERE.iterdir() if (path / "meaning.json").exists()))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(HERE / request.param, tmp_path)


def same(a: dict[str, Arrays], b: dict[str, Arrays]) -> None:
    assert a.keys() == b.keys()
    for key, arrays in a.items():
        assert arrays.keys() == b[key].keys(), key
        for name, array in arrays.items():
            if array.dtype.kind in "US":
                assert array.tolist() == b[key][name].tolist()
            else:
                np.testing.assert_allclose(array, b[key][name], rtol=1e-9, atol=1e-12, err_msg=f"{key} {name}")


# -- what is there is read ------------------------------------------------------------------------------------------------


def test_the_files_of_a_release_are_small(golden: Golden) -> None:
    assert sum(file.stat().st_size for file in golden.files.iterdir()) < LARGEST


def test_records_of_the_spool_say_what_was_said(golden: Golden) -> None:
    events = [decode(value) for _, value in golden.records]
    decisions = [event for event in events if isinstance(event, Decision)]
    assert len(decisions) == golden.meaning["decisions"]
    assert len(events) - len(decisions) == golden.meaning["feedback"]
    assert [key for key, _ in golden.records] == [event.unit.encode() for event in events]
    for decision in decisions[:-1]:
        assert decision.propensities == [0.25, 1 / 3]  # to the bit
        width = golden.compiled.encoder.item_size
        support = floats(decision.support or b"", width)
        np.testing.assert_array_equal(support[decision.rows], floats(decision.shown, width))
    feedback = [event for event in events if isinstance(event, Feedback)]
    assert [one.decision_id for one in feedback if one.retracts == "c"] == [f"{UNITS[0]}-0"]
    assert [(one.value, one.at) for one in feedback if one.revision] == [(16.0, NOW + 12)]
    assert [one.slots for one in feedback if one.kind == "shown"] == [[0]]


def test_a_decision_that_says_everything_is_read_field_by_field(golden: Golden) -> None:
    found = next(decode(value) for _, value in golden.records if b'"everything"' in value)
    wanted = everything(golden.configs)
    for name in Decision.__struct_fields__:
        assert getattr(found, name) == getattr(wanted, name), name
    drawn = joined.read_drawn(encode(found))
    assert (drawn.exposed, drawn.strayed) == (wanted.exposed, wanted.strayed)
    assert (drawn.pinned, drawn.weight, drawn.defer) == ((1,), 0.5, True)


def test_the_record_configures_as_it_did(golden: Golden) -> None:
    compiled, state = golden.compiled, golden.state
    assert compiled.hash == (golden.files / "surface.hash").read_text().strip()
    assert content_hash(compiled.surface) == compiled.hash  # written again, it is the same version
    assert (compiled.surface.horizon_seconds, compiled.surface.objectives["watch"].scale) == (100.0, 0.1)
    [trial] = golden.configs.trials("home")
    buckets = np.frombuffer(trial.buckets, np.uint8)
    shares = [float((buckets == number).mean()) for number in (0, 1, NOBODY)]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=1e-3)
    assert trial.document.overrides == {UNITS[1]: "treatment"}
    assert (trial.status, trial.start, trial.document.learners) == ("running", NOW, "shared")
    release = golden.configs.released("home").release
    assert release is not None
    assert (release.stage, release.candidate, release.baseline, release.gate) == (
        "shadow",
        "linucb",
        "linear_thompson",
        1,
    )
    assert holds(state) == {"home/softmax": "2" * 32}
    [change] = Audit(state).changes()
    assert (change.who, change.action, change.subject) == ("ops@example.org", "start", "experiment/ts-vs-uniform")
    assert (change.before, change.after) == ({"status": "draft"}, {"status": "running"})
    assert golden.configs.forgotten == {"00000000000000cc": NOW}
    catalogue = Catalogue()
    catalogue.apply(catalogue.prepare(state.read()), NOW)
    item = catalogue.get("item-1")
    assert item is not None
    assert (item.features, item.attributes, item.available) == ({"price": 2.0}, {"genre": ["jazz", "soul"]}, False)
    assert current_epoch(state) == 4
    folder = applied(state)
    assert folder is not None
    assert (folder.surfaces, folder.experiments, folder.managed) == (["home"], ["ts-vs-uniform"], True)


def test_a_key_opens_what_it_opened(golden: Golden) -> None:
    access = Access(clock=lambda: NOW)
    access.follow(golden.state)
    caller = access.check([(b"x-api-key", TOKEN)], "decide")
    assert caller is not None
    assert (caller.name, caller.scopes) == ("backend", {"decide", "feedback"})
    with pytest.raises(Rejected) as refused:
        access.check([(b"x-api-key", TOKEN)], "admin")
    assert refused.value.status == 403


def test_learner_keys_are_what_they_were(golden: Golden) -> None:
    """Otherwise an upgrade would begin to learn anew."""
    statistics = SqliteCheckpoints(golden.sqlite("shard")).load().statistics
    keys = {policy.key for policy in golden.compiled.policies.values() if policy.algorithm.learner is not None}
    assert keys == {key for key in statistics if key.startswith("default/")}


def test_a_shard_goes_on_from_its_checkpoint(golden: Golden) -> None:
    """Sums, joins and what waits: feedback on an open decision corrects it, and a decision takes the feedback that came first."""
    fresh = golden.shard(SqliteCheckpoints(golden.scratch / "fresh.sqlite"), golden.log()).statistics()
    checkpoints = SqliteCheckpoints(golden.sqlite("shard"))
    shard = golden.shard(checkpoints, golden.log())
    held = shard.statistics()
    assert held.offset == len(golden.records)
    assert read_held(checkpoints.load()).log == "golden"
    same(held.arrays, fresh.arrays)  # the same records come to the same sums
    key = golden.compiled.policies["linear_thompson"].key
    assert held.examples[key] == golden.meaning["present"]
    sums = held.arrays[key]
    names = golden.compiled.surface.objective_names
    # φ's first column is the intercept, so B of it is the reward summed
    np.testing.assert_allclose(
        sums["B"][0], [golden.meaning[{"click": "clicks", "watch": "watched"}[n]] for n in names]
    )
    click = Feedback(decision_id=f"{UNITS[1]}-1", unit=UNITS[1], at=NOW + 100, kind="watch", value=4.0, slot=0)
    early = next(decode(v) for _, v in golden.records if b'"decision"' in v and f'{UNITS[1]}-1"'.encode() in v)
    assert isinstance(early, Decision)
    late = msgspec.structs.replace(early, decision_id=golden.meaning["early"], at=NOW + 135)
    log = golden.log(*[(UNITS[1].encode(), encode(event)) for event in (click, late)])
    after = golden.shard(checkpoints, log, 5).statistics().arrays[key]
    np.testing.assert_allclose(after["B"][0] - sums["B"][0], [{"click": 1.0, "watch": 4.0}[name] for name in names])
    assert float(after["n"][0]) == pytest.approx(float(sums["n"][0]) + 2)


def test_a_shard_goes_on_from_the_upload(golden: Golden) -> None:
    local = golden.shard(SqliteCheckpoints(golden.sqlite("shard")), golden.log()).statistics()
    uploads = Uploads(golden.store("uploads"), 0, 4)
    newest = uploads.newest()
    assert newest is not None
    assert (newest.log, newest.offset, newest.clock) == ("golden", len(golden.records), NOW + 131)
    there = golden.shard(SqliteCheckpoints(golden.scratch / "new.sqlite"), golden.log(), uploads=uploads).statistics()
    same(there.arrays, local.arrays)
    assert there.examples == local.examples


def test_settling_goes_on_and_its_rows_mean_what_they_meant(golden: Golden) -> None:
    outbox, log = SqliteCheckpoints(golden.sqlite("settled")), golden.log()
    found = Experiences(0, outbox, log).pull(0, 100)
    wanted = [decode(value).decision_id for _, value in golden.records if b'"type":"decision"' in value]
    assert [one.decision.decision_id for one in found] == wanted
    order = [golden.compiled.surface.objective_names.index(name) for name in ("click", "watch")]
    total = sum(one.rewards[:, order].sum(axis=0) for one in found)
    np.testing.assert_allclose(total, [golden.meaning["settled_clicks"], golden.meaning["settled_watched"]])
    settler = Settler(0, log, outbox, golden.configs, epoch=4)
    report = settler.step(NOW + 10_000)
    assert (report.offset, report.settled) == (len(golden.records), {})


def test_trainers_go_on_from_their_checkpoint_and_its_order(golden: Golden) -> None:
    """The order has an entry that the checkpoint does not hold yet: it is applied again, and then the rest."""
    store, outbox = SqliteCheckpoints(golden.sqlite("training")), SqliteCheckpoints(golden.sqlite("settled"))
    source = Experiences(0, outbox, golden.log())
    training = Training(store, [source], golden.configs, epoch=4, identity="golden", limit=10)
    trained = {
        key for key, policy in ((p.key, p) for p in golden.compiled.policies.values()) if policy.algorithm.trainer
    }
    held = store.load().statistics
    assert trained <= held.keys()
    assert training.recover() == 1
    assert training.entry == 2
    assert training.lag_rows() == {0: 0}
    assert training.policies.keys() == trained
    for key in trained:  # the second entry taught what the checkpoint had not
        before, after = held[key], training.arrays(key)
        assert before.keys() <= after.keys()  # a newer build may keep more, begun from what there was
        assert any(not np.array_equal(before[name], after[name]) for name in before)
    training.close()


def test_trainers_go_on_from_their_upload_as_from_their_disk(golden: Golden) -> None:
    """What a disk would have come to, bit for bit, and then what nobody had settled yet."""
    store = SqliteCheckpoints(golden.sqlite("training"))
    source = Experiences(0, SqliteCheckpoints(golden.sqlite("settled")), golden.log())
    disk = Training(store, [source], golden.configs, epoch=4, identity="golden", limit=10)
    disk.recover()

    order, outbox, first = _regained(golden, golden.store("training-uploads"))
    event = next(decode(v) for _, v in golden.records if b'"decision"' in v and f'{UNITS[1]}-1"'.encode() in v)
    assert isinstance(event, Decision)
    late = msgspec.structs.replace(event, decision_id=f"{UNITS[1]}-late", at=NOW + 400, session="s-late")
    log = golden.log((UNITS[1].encode(), encode(late)), at=NOW + 400)
    settler = Settler(0, log, outbox, golden.configs, epoch=5)
    frontier = NOW
    while (report := settler.step(NOW + 10_000)).records or report.settled:
        frontier = report.frontier
    assert outbox.numbers() == (first, 18)  # numbers go on: 17 were settled
    training = Training(order, [Experiences(0, outbox, log)], golden.configs, epoch=5, identity="golden", limit=10)
    assert training.recover() == 1
    assert training.policies.keys() == disk.policies.keys()
    for key in training.policies:
        same({key: training.arrays(key)}, {key: disk.arrays(key)})
    later = training.step({0: frontier})
    assert later is not None
    assert later.rows == 1
    assert training.lag_rows() == {0: 0}
    disk.forget()
    training.close()


def _regained(golden: Golden, store: FileBundles) -> tuple[SqliteCheckpoints, SqliteCheckpoints, int]:
    """An empty disk that begins with an upload: the trainers' store, an outbox, and the first number in it."""
    uploads = TrainingUploads(store, 5)
    newest = uploads.newest()
    assert newest is not None
    assert (newest.log, newest.epoch, newest.entries) == ("golden", 3, 2)
    upload = uploads.read(newest)
    order, outbox = (SqliteCheckpoints(golden.scratch / f"new-{name}.sqlite") for name in ("order", "outbox"))
    go_on(upload, order, [outbox], 5)
    return order, outbox, upload.taken.outboxes[0][0]


def test_parquet_says_what_the_outbox_says(golden: Golden) -> None:
    table = pq.read_table(golden.files / "settled.parquet")
    wanted = Experiences(0, SqliteCheckpoints(golden.sqlite("settled")), golden.log()).pull(0, 100)
    for found, want in zip(experiences_of(complete(table)), wanted, strict=True):
        assert (found.partition, found.number, found.row.offset) == (want.partition, want.number, want.row.offset)
        for name in ("decision_id", "slate", "propensities", "rows", "pinned", "session", "goal", "at", "config"):
            assert getattr(found.decision, name) == getattr(want.decision, name), name
        for name in ("objectives", "viewed", "present", "rewards", "schema"):
            assert getattr(found.row, name) == getattr(want.row, name), name
    last = table.to_pylist()[-1]
    assert last["shortlist"] == {"eligible": 5_000, "kept": 2, "drawn": 2, "inclusions": [1.0, 0.5]}
    assert (last["uniforms"], last["pins"], last["acted"]) == ([0.6, 0.1], [(1, 0)], ["cap:genre"])


def test_every_bundle_passes_the_gate_and_scores_as_it_did(golden: Golden) -> None:
    store = golden.store("bundles")
    pointers = store.pointers()
    for policy in golden.compiled.policies.values():
        name = pointer_name(policy)
        if name not in pointers:
            assert policy.name not in golden.compiled.surface.policies
            continue
        made = bundling.read(pointers[name], store.get)
        bundling.verify(made, schema=golden.compiled.encoder.schema, algorithm=policy.algorithm.name, score=score)
        assert (made.manifest.key, made.manifest.config) == (policy.key, golden.compiled.hash)
        assert (made.manifest.number, made.manifest.fresh) == (5, [NOW + 1])
        said: Any = {n: array for n, array in made.probes.items() if n not in ("scores", "goal_logits")}
        found = policy.algorithm.reference(policy.config, policy.problem, made.arrays, said)
        np.testing.assert_allclose(found, made.probes["scores"], rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_was_learned_publishes_what_it_published(golden: Golden) -> None:
    """Sums of one release, published by another: the mean score of every probe candidate is the same."""
    store = golden.store("bundles")
    learned = SqliteCheckpoints(golden.sqlite("shard")).load().statistics
    learned |= SqliteCheckpoints(golden.sqlite("training")).load().statistics
    seen = 0
    for policy in golden.compiled.policies.values():
        if policy.key in learned and policy.name in golden.compiled.surface.policies:
            made = bundling.read(store.pointers()[pointer_name(policy)], store.get)
            problem, config, sums = policy.problem, policy.config, learned[policy.key]
            again = policy.algorithm.publish(config, problem, sums, made.manifest.created_at, made.manifest.seed)
            said: Any = {n: array for n, array in made.probes.items() if n not in ("scores", "goal_logits")}
            found = policy.algorithm.reference(config, problem, again.arrays, said).mean(axis=1)
            wanted = made.probes["scores"].mean(axis=1)
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4, err_msg=policy.name)
            seen += 1
    learning = [ALGORITHMS[one.algorithm] for one in golden.compiled.surface.policies.values()]
    assert seen == sum(one.learner is not None or one.trainer is not None for one in learning)


# -- what a newer release may write: read where it only adds, refused by name where it does not ----------------------------


def altered(value: bytes, **more: Any) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(value), **more})


def test_a_record_with_more_fields_is_read_and_one_of_another_version_is_a_letter(golden: Golden) -> None:
    log = golden.log()
    newer = [(key, altered(value, mood="blue", nested={"a": [1]})) for key, value in golden.records]
    records = [Record(i, log.read(0, i, 1)[0].appended, *pair) for i, pair in enumerate(newer)]
    again = MemoryLog(1, now=iter([r.appended for r in records]).__next__, identity="golden")
    for record in records:
        again.append([(record.key, record.value)])
    plain = golden.shard(SqliteCheckpoints(golden.scratch / "a.sqlite"), log).statistics().arrays
    same(golden.shard(SqliteCheckpoints(golden.scratch / "b.sqlite"), again).statistics().arrays, plain)

    letters = MemoryDeadLetters()
    of_two = MemoryLog(1, now=lambda: NOW + 8, identity="golden")
    of_two.append([(key, altered(value, v=2)) for key, value in golden.records[:3]])
    shard = Shard(0, of_two, SqliteCheckpoints(golden.scratch / "c.sqlite"), golden.configs, letters, epoch=1)
    assert shard.step().dead == {"version": 3}
    assert letters.count() == {"version": 3}
    for _, value in golden.records:
        with pytest.raises(Corrupt, match="version"):
            decode(altered(value, v=2))


def test_a_newer_bundle_is_refused_by_name(golden: Golden) -> None:
    """A manifest that says more may mean something else by the rest: the one before goes on serving."""
    store = golden.store("bundles")
    name = store.pointers()["home/linear_thompson"]
    data = store.get(bundling.manifest_file(name))
    for more in ({"clock_skew": 1}, {"format": 2}):
        with pytest.raises(Corrupt, match="format"):
            bundling.read_manifest(name, lambda _, more=more: altered(data, **more))  # type: ignore[misc] - bound here


def test_a_newer_upload_with_more_fields_is_read(golden: Golden) -> None:
    store = golden.store("uploads")
    name = store.pointers()["0"]
    said = altered(store.get(name), mood="blue")
    uploads = Uploads(store, 0, 4)
    newer = f"0/4-{hashlib.blake2b(said, digest_size=16).hexdigest()}.json"  # as its writer would name it
    store.put(newer, said)
    store.point("0", newer, 4)
    found = uploads.newest()
    assert found is not None
    same(uploads.read(found).statistics, Uploads(golden.store("uploads"), 0, 4).read(found).statistics)


def test_a_newer_upload_of_another_version_is_refused(golden: Golden) -> None:
    """Whose meaning changed: nothing is learned from it that it does not say."""
    for name, pointer, uploads in (("uploads", "0", Uploads), ("training-uploads", "training", TrainingUploads)):
        store = golden.store(name)
        at, epoch = store.pointers()[pointer], 5
        said = altered(store.get(at), v=2)
        newer = f"{pointer}/{epoch}-{hashlib.blake2b(said, digest_size=16).hexdigest()}.json"
        store.put(newer, said)
        store.point(pointer, newer, epoch)
        reader = Uploads(store, 0, 6) if uploads is Uploads else TrainingUploads(store, 6)
        with pytest.raises(Corrupt, match="version 2") as refused:
            reader.newest()
        assert refused.value.reason == "upload"


def test_a_newer_upload_of_trainers_with_more_fields_is_read(golden: Golden) -> None:
    """More in the manifest, and more at the end of what was taken along, of its entries and of its settlers' places."""
    store = golden.store("training-uploads")
    manifest = msgspec.json.decode(store.get(store.pointers()["training"]))
    head, first, entries, places, outboxes = msgspec.msgpack.decode(store.get(manifest["order"]))
    entries = [msgspec.msgpack.encode([*msgspec.msgpack.decode(entry), "blue"]) for entry in entries]
    taken = [head, first, entries, [[*place, "blue"] for place in places], outboxes, "blue"]

    def put(data: bytes, suffix: str) -> str:
        name = f"training/4-{hashlib.blake2b(data, digest_size=16).hexdigest()}.{suffix}"  # as its writer would name it
        store.put(name, data)
        return name

    order = put(msgspec.msgpack.encode(taken), "order")
    store.point("training", put(msgspec.json.encode({**manifest, "order": order, "mood": "blue"}), "json"), 4)
    newer, outbox, _ = _regained(golden, store)
    training = Training(
        newer, [Experiences(0, outbox, golden.log())], golden.configs, epoch=5, identity="golden", limit=10
    )
    assert training.recover() == 1
    training.close()


def test_a_newer_checkpoint_says_more_at_the_end_or_is_refused(golden: Golden) -> None:
    """What commits hold besides arrays are tuples: more at their end is passed over."""
    path = golden.sqlite("shard")
    want = golden.shard(SqliteCheckpoints(path), golden.log()).statistics()
    with sqlite3.connect(path) as db:
        [(extra,)] = db.execute("SELECT extra FROM head").fetchall()
        longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(extra), {"mood": "blue"}])
        db.execute("UPDATE head SET extra = ?", (longer,))
    db.close()
    found = golden.shard(SqliteCheckpoints(path), golden.log()).statistics()
    same(found.arrays, want.arrays)
    assert found.examples == want.examples
    row = SqliteCheckpoints(path).join(0)
    assert row is not None
    with pytest.raises(Corrupt, match="join_format"):
        joined.unpack(0, msgspec.msgpack.encode([*msgspec.msgpack.decode(row), "blue"]))


def test_newer_files_are_refused_by_their_number(golden: Golden) -> None:
    for name in ("shard", "settled", "training"):
        path = golden.sqlite(name)
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 2")
        db.close()
        with pytest.raises(Corrupt, match="format"):
            SqliteCheckpoints(path)


def test_newer_parquet_with_more_columns_is_read_and_of_another_format_refused(golden: Golden) -> None:
    table = pq.read_table(golden.files / "settled.parquet")
    path = golden.scratch / "newer.parquet"
    pq.write_table(table.append_column("mood", pa.array(["blue"] * len(table))), path)
    [found] = from_files(str(path))
    assert found.equals(complete(table).cast(found.schema))
    pq.write_table(table.replace_schema_metadata({"slatewise.experiences": "2"}), path)
    with pytest.raises(Corrupt, match="format"):
        list(from_files(str(path)))


def test_newer_entries_of_the_record_do_not_change_what_older_ones_said(golden: Golden) -> None:
    state = golden.state
    surface = state.get(VERSION, golden.compiled.hash)
    trial = state.get(experiments.KIND, "ts-vs-uniform")
    release = state.get(releases.KIND, releases.key_of("home"))
    forget = state.get(forgets.KIND, "00000000000000cc")
    key = state.get("key", "0123456789ab")
    item = state.get("item", "item-1")
    assert all(one is not None and one.value is not None for one in (surface, trial, release, forget, key, item))
    configs, access = Configs(), Access(clock=lambda: NOW)
    configs.follow(state)
    before = configs.current("home"), configs.trials("home"), configs.released("home")
    newer_trial = msgspec.json.decode(trial.value)  # type: ignore[union-attr, arg-type] - asserted above
    newer_trial["document"]["mood"] = "blue"
    state.put(
        [
            (VERSION, "f" * 16, altered(surface.value, mood="blue")),  # type: ignore[union-attr, arg-type]
            (POINTER, "home", b"f" * 16),
            (experiments.KIND, "ts-vs-uniform", msgspec.json.encode(newer_trial)),
            (releases.KIND, releases.key_of("home"), altered(release.value, mood="blue")),  # type: ignore[union-attr, arg-type]
            (forgets.KIND, "00000000000000dd", altered(forget.value, mood="blue")),  # type: ignore[union-attr, arg-type]
            ("key", "0123456789ab", altered(key.value, only_on_sundays=True)),  # type: ignore[union-attr, arg-type]
            ("item", "item-1", altered(item.value, mood="blue")),  # type: ignore[union-attr, arg-type]
            ("mood", "blue", b"{}"),
        ]
    )
    configs.follow(state)
    assert (configs.current("home"), configs.trials("home"), configs.released("home")) == before
    assert configs.refused.keys() == {"f" * 16, "experiment ts-vs-uniform"}
    assert configs.forgotten.keys() == {"00000000000000cc", "00000000000000dd"}
    catalogue = Catalogue()
    catalogue.apply(catalogue.prepare(state.read()), NOW)
    read = catalogue.get("item-1")
    assert read is not None
    assert (read.features, read.available) == ({"price": 2.0}, False)
    access.follow(state)
    with pytest.raises(Rejected) as refused:  # a limit that this build does not know must not open more
        access.check([(b"x-api-key", TOKEN)], "decide")
    assert refused.value.status == 401
