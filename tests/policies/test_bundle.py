"""The bundle gate: what is refused, with which reason; and what a healthy bundle looks like."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from policies import bundle
from policies.algorithm import Problem, Published
from policies.algorithms import linear_thompson, popular
from policies.bundle import Bundle
from policies.errors import Corrupt
from policies.features import Encoder
from policies.surface import FeatureSpec, Objective, Vector
from policies.types import F32, Arrays, item_hashes
from streaming.scorer import score
from tests.contracts.algorithm_contract import ENCODER, PROBLEM, START, evidence, trained

CONFIG = linear_thompson.ALGORITHM.config()
FACTS: dict[str, Any] = {
    "surface": "home",
    "policy": "home-ts",
    "key": "default/home/home-ts/1",
    "config_hash": "c",
    "number": 3,
    "seed": 7,
    "created_at": START,
    "trained_through": {"0": 40},
    "epoch": 2,
}


def made(change: Callable[[Arrays], Arrays] = dict, *, problem: Problem = PROBLEM, **facts: Any) -> Bundle:
    sums = trained(linear_thompson.ALGORITHM, CONFIG, problem, evidence(3)).arrays() if problem is PROBLEM else {}
    published = linear_thompson.publish(CONFIG, problem, sums, START, 7)
    changed = Published(change(published.arrays), published.slot_weight)
    return bundle.build(linear_thompson.ALGORITHM, CONFIG, problem, changed, score=score, **FACTS | facts)


def refused(wrong: Bundle, **options: Any) -> str:
    with pytest.raises(Corrupt) as caught:
        bundle.verify(wrong, **{"schema": ENCODER.schema, "score": score} | options)
    return caught.value.reason


def renamed(wrong: Bundle, **parts: Any) -> Bundle:
    """A bundle whose manifest honestly names changed content: hashes alone would let it pass."""
    changed = replace(wrong, **parts)
    named = {n: bundle.digest(bundle._npy(a)) for n, a in changed.arrays.items()}
    probes = {n: bundle.digest(bundle._npy(a)) for n, a in changed.probes.items()}
    manifest = msgspec.structs.replace(
        changed.manifest, arrays=named, probes=probes, graph=bundle.digest(changed.graph), bundle=""
    )
    return replace(changed, manifest=msgspec.structs.replace(manifest, bundle=bundle._name(manifest)))


def test_a_healthy_bundle_passes() -> None:
    good = made()
    bundle.verify(good, schema=ENCODER.schema, score=score, algorithm="linear_thompson")
    assert bundle.spread(np.asarray(good.probes["scores"], np.float32)) > 1.0


@pytest.mark.parametrize("folder", ["graphs", "arrays", "manifests"])
def test_a_flipped_byte_is_refused_wherever_it_is(folder: str) -> None:
    good = made()
    stored = bundle.files(good)
    for name in [name for name in stored if name.startswith(folder)]:
        for at in (0, len(stored[name]) // 2, len(stored[name]) - 1):
            data = bytearray(stored[name])
            data[at] ^= 1
            with pytest.raises(Corrupt) as caught:
                bundle.read(good.manifest.bundle, (stored | {name: bytes(data)}).__getitem__)
            assert caught.value.reason in ({"hash"} if folder != "manifests" else {"hash", "format"})


def test_a_byte_flipped_in_memory_is_refused() -> None:
    good = made()
    flipped = bytearray(good.graph)
    flipped[len(flipped) // 2] ^= 1
    assert refused(replace(good, graph=bytes(flipped))) == "hash"
    pool = good.arrays["pool"].copy()
    pool.view(np.uint8)[3, 5] ^= 1
    assert refused(replace(good, arrays=good.arrays | {"pool": pool})) == "hash"
    assert refused(replace(good, arrays={n: a for n, a in good.arrays.items() if n != "pool"})) == "hash"
    assert refused(replace(good, manifest=msgspec.structs.replace(good.manifest, slot_weight=0.5))) == "hash"


def test_another_schema_format_or_algorithm_is_refused() -> None:
    good = made()
    assert refused(good, schema=Encoder(FeatureSpec(items={"taste": Vector(size=3)})).schema) == "schema"
    assert refused(good, algorithm="popular") == "format"
    assert refused(replace(good, manifest=msgspec.structs.replace(good.manifest, format=2))) == "format"
    newer = msgspec.json.encode(msgspec.structs.replace(good.manifest, format=2))
    with pytest.raises(Corrupt, match="format"):
        bundle.read("x", {"manifests/x.json": newer}.__getitem__)


def test_a_nan_weight_is_refused_by_who_builds_and_by_who_serves() -> None:
    good = made()
    pool = good.arrays["pool"].copy()
    pool[1, 1] = np.nan
    assert refused(renamed(good, arrays=good.arrays | {"pool": pool})) == "nonfinite"
    with pytest.raises(Corrupt, match="nonfinite"):
        made(lambda arrays: arrays | {"pool": pool})


def test_a_wrong_probe_is_refused() -> None:
    good = made()
    scores = np.array(good.probes["scores"])
    scores[4, 9] += 1e-3 * np.abs(scores).max()
    assert refused(renamed(good, probes=good.probes | {"scores": scores})) == "probe"
    assert refused(renamed(good, probes=good.probes | {"scores": scores[:, :5]})) == "probe"


def test_a_graph_that_differs_from_the_reference_is_not_built() -> None:
    def another(graph: bytes, arrays: Arrays, inputs: Mapping[str, NDArray[np.generic]]) -> F32:
        return score(graph, arrays, inputs) * np.float32(1.001)

    published = linear_thompson.publish(CONFIG, PROBLEM, {}, START, 7)
    with pytest.raises(Corrupt, match="probe"):
        bundle.build(linear_thompson.ALGORITHM, CONFIG, PROBLEM, published, score=another, **FACTS)


def test_a_graph_that_does_not_run_is_refused() -> None:
    assert refused(renamed(made(), graph=b"not a graph")) == "format"


@pytest.mark.parametrize(
    "collapse",
    [
        lambda array: np.repeat(array[..., :1], array.shape[-1], axis=-1),  # every draw the same
        lambda array: array.mean(axis=-1, keepdims=True) + 1e-7 * (array - array.mean(axis=-1, keepdims=True)),  # σ → 0
        lambda array: np.concatenate(
            [array[..., :2], np.repeat(array[..., 2:3], 254, axis=-1)], axis=-1
        ),  # all but two
    ],
    ids=["one_draw", "no_width", "few_draws"],
)
def test_an_entropy_collapse_is_refused(collapse: Callable[[Any], Any]) -> None:
    wrong = made(lambda arrays: {name: np.ascontiguousarray(collapse(a), np.float32) for name, a in arrays.items()})
    assert refused(wrong) == "entropy"


def test_a_posterior_that_has_learned_much_is_no_collapse() -> None:
    """A hundred million examples: the same item wins nearly every draw, and still the draws scatter."""
    problem = Problem(
        Encoder(FeatureSpec(items={"taste": Vector(size=3)})), {"click": Objective("click")}, {"click": 1.0}, 3
    )
    items = np.random.default_rng(2).normal(size=(1200, 3)).astype(np.float32)
    batch = replace(evidence(3, slates=400), items=items, context=np.zeros((1200, 0), np.float32))
    batch = replace(batch, rewards_after=batch.rewards_after + items @ np.array([[0.3], [-0.2], [0.1]]))
    sums = trained(linear_thompson.ALGORITHM, CONFIG, problem, batch).arrays()
    many = {name: array * 1e5 if array.dtype.kind == "f" else array for name, array in sums.items()}
    published = linear_thompson.publish(CONFIG, problem, many, START, 7)
    good = bundle.build(linear_thompson.ALGORITHM, CONFIG, problem, published, score=score, **FACTS)
    assert np.bincount(np.asarray(good.probes["scores"]).argmax(axis=0)).max() == 256
    bundle.verify(good, schema=problem.encoder.schema, score=score)


@pytest.mark.parametrize("size", [0, 1])
def test_surfaces_with_next_to_no_features_pass(size: int) -> None:
    encoder = Encoder(FeatureSpec(items={"x": Vector(size=1)} if size else {}))
    problem = Problem(encoder, {"click": Objective("click")}, {"click": 1.0}, 2)
    bundle.verify(made(problem=problem), schema=encoder.schema, score=score)


def test_a_publish_stores_only_what_changed() -> None:
    """Same graph, same probe query: the next bundle adds its arrays, its expected scores and its manifest."""
    first = bundle.files(made())
    second = bundle.files(made(lambda arrays: {name: a * np.float32(2) for name, a in arrays.items()}, number=4))
    assert len(second.keys() - first.keys()) == 3 + 1 + 1
    assert list(second)[-1].startswith("manifests/")


def test_the_id_is_a_function_of_everything_in_the_bundle() -> None:
    assert made().manifest.bundle == made().manifest.bundle
    others = [
        made(number=4),
        made(fresh=[START]),
        made(lambda arrays: {n: a * np.float32(2) for n, a in arrays.items()}),
    ]
    assert len({one.manifest.bundle for one in [made(), *others]}) == 4


def test_item_rows_finds_what_the_bundle_knows() -> None:
    known = np.sort(item_hashes(["a", "b", "c"]))
    rows = bundle.item_rows({"item_hashes": known}, item_hashes(["c", "zebra", "a"]))
    assert rows[1] == -1
    assert np.array_equal(known[rows[[0, 2]]], item_hashes(["c", "a"]))
    assert bundle.item_rows({"item_hashes": np.zeros(0, np.uint64)}, item_hashes(["a"])).tolist() == [-1]


def test_popular_scores_known_items_by_their_own_reward_and_unseen_ones_by_the_mean() -> None:
    config = popular.ALGORITHM.config()
    published = popular.publish(
        config, PROBLEM, trained(popular.ALGORITHM, config, PROBLEM, evidence(3)).arrays(), START, 1
    )
    made = bundle.build(popular.ALGORITHM, config, PROBLEM, published, score=score, **FACTS)
    rows = bundle.item_rows(made.arrays, item_hashes(["item-3", "nobody"]))
    batch = evidence(3)
    mine = batch.item_hashes == item_hashes(["item-3"])[0]
    w, r = batch.weights, batch.rewards_after[:, 0]
    mean = (w @ r) / (w.sum() + 10)
    own = (w[mine] @ r[mine] + 10 * mean) / (w[mine].sum() + 10)
    np.testing.assert_allclose(score(made.graph, made.arrays, {"item_rows": rows})[:, 0], [own, mean], rtol=1e-6)
