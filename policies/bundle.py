"""A bundle: what a publish hands to those who score. A graph, the arrays it runs on, probes, and a manifest that names them.

    manifests/<id>.json    graphs/<hash>.onnx    arrays/<hash>.npy

Every file is named by the hash of its content and the bundle by the hash of its manifest, so a publish stores only what
changed and nothing can be swapped underneath a name. `verify` is the gate that every bundle passes before it may decide.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from numpy.typing import NDArray

from policies import graphs, item_draws
from policies.algorithm import Algorithm, Problem, Published
from policies.errors import Corrupt
from policies.types import F32, I64, Arrays, item_hashes

FORMAT = 1
FRESH = 32  # accepted times a manifest carries at most: freshness is a sample, not a ledger
PROBES = 16  # candidates a probe query has
PAST = 5  # interactions a probe query's unit has had
ROUNDING = 64 * float(np.finfo(np.float32).eps)  # of the largest number involved: float32 sums in another order
ENTROPY_NATS = 0.1  # two equally likely outcomes have 0.69, 50 to 1 has 0.1

Score = Callable[[bytes, Arrays, Mapping[str, Any]], F32]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a bundle except its arrays.

    bundle           hash of the rest of the manifest: its name
    key              learner key `tenant/surface/policy/signature`
    config, schema   surface version's hash and the encoder's
    graph, arrays    hashes by name; arrays the graph does not read (`item_hashes`, `group_columns`) travel with it
    inputs           what a request must bring, by name
    draws            columns of the scores
    number, seed     the publish's count, and what its pool was drawn from
    trained_through  partition → offset up to which everything was learned
    slot_weight      weight of one slot's example of a decision drawn from this bundle
    weights          default objective weights; their order is that of the input `weights`
    fresh            `accepted_at` of feedback that is in this bundle for the first time
    probes           name → hash of the probe query's inputs, and `scores`: what the learner computed
    manager          hash of the second graph, of algorithms that have goals; left out otherwise
    temperature      of the draw, where the publish found it; left out otherwise, so that older manifests keep their names
    """

    bundle: str = ""
    format: int = FORMAT
    tenant: str = "default"
    surface: str
    policy: str
    algorithm: str
    key: str
    config: str
    schema: str
    graph: str
    arrays: dict[str, str]
    inputs: list[str]
    draws: int
    number: int
    seed: int
    created_at: float
    trained_through: dict[str, int]
    epoch: int
    slot_weight: float
    weights: dict[str, float]
    diagnostics: dict[str, float]
    fresh: list[float]
    probes: dict[str, str]
    temperature: float | UnsetType = UNSET
    manager: str | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and what it names. `probes` holds the probe query's inputs and, as `scores`, what they must give.

    With a manager, a second graph over the same arrays, also its inputs and, as `goal_logits`, what they must give.
    """

    manifest: Manifest
    graph: bytes
    arrays: Arrays
    probes: Arrays
    manager: bytes = b""


def digest(data: bytes) -> str:
    """32 hex digits of BLAKE2b: the name of a file's content."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def build(
    algorithm: Algorithm,
    config: Any,
    problem: Problem,
    published: Published,
    *,
    surface: str,
    policy: str,
    key: str,
    config_hash: str,
    number: int,
    seed: int,
    created_at: float,
    trained_through: Mapping[str, int],
    epoch: int,
    score: Score,
    tenant: str = "default",
    fresh: list[float] | None = None,
    graph: bytes | None = None,
    manager: bytes | None = None,
) -> Bundle:
    """The bundle of one publish, its probes scored. `graph` and `manager` save building graphs that were built before.

    Raises Corrupt('probe') when the graph and the algorithm's reference disagree, Corrupt('nonfinite').
    """
    graph = graph or algorithm.graph(config, problem).SerializeToString()
    arrays = {name: np.array(array, order="C") for name, array in published.arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    _finite(arrays)
    query = probe(problem, graphs.requested(graph), arrays)
    expected = score(graph, arrays, query)
    _agree(
        expected,
        algorithm.reference(config, problem, arrays, cast(dict[str, F32], query)),
        arrays,
        "graph and reference differ",
    )
    probes: Arrays = {**query, "scores": expected}
    if algorithm.manager is not None and algorithm.manage is not None:
        manager = manager or algorithm.manager(config, problem).SerializeToString()
        query_goal = probe(problem, graphs.requested(manager), arrays)
        logits = score(manager, arrays, query_goal)
        wanted = algorithm.manage(config, problem, arrays, cast(dict[str, F32], query_goal))
        _agree(logits, wanted, arrays, "manager and reference differ")
        probes |= {**query_goal, "goal_logits": logits}
    manifest = Manifest(
        tenant=tenant,
        surface=surface,
        policy=policy,
        algorithm=algorithm.name,
        key=key,
        config=config_hash,
        schema=problem.encoder.schema,
        graph=digest(graph),
        arrays={name: digest(_npy(array)) for name, array in arrays.items()},
        inputs=list(query),
        draws=expected.shape[1],
        number=number,
        seed=seed,
        created_at=created_at,
        trained_through=dict(trained_through),
        epoch=epoch,
        slot_weight=published.slot_weight,
        weights=problem.weights,
        diagnostics=published.diagnostics,
        fresh=(fresh or [])[:FRESH],
        probes={name: digest(_npy(array)) for name, array in probes.items()},
        temperature=UNSET if published.temperature is None else published.temperature,
        manager=digest(manager) if manager else UNSET,
    )
    return Bundle(msgspec.structs.replace(manifest, bundle=_name(manifest)), graph, arrays, probes, manager or b"")


def probe(problem: Problem, inputs: Mapping[str, graphs.Shape], arrays: Arrays) -> Arrays:
    """One query with 16 candidates as encoders make them (within [-1, 1], one of them all missing), the same at every publish.

    inputs  the graph's, by name with their shapes: a goal is as long as the graph says
    """
    rng, encoder = np.random.default_rng(0), problem.encoder
    items = rng.uniform(-1, 1, (PROBES, encoder.item_size)).astype(np.float32)
    items[-1] = 0
    rows = np.arange(-1, PROBES - 1)
    vocabulary: Arrays = {
        "context": rng.uniform(-1, 1, encoder.context_size).astype(np.float32),
        "items": items,
        "item_rows": np.where(rows < len(arrays.get("item_hashes", ())), rows, -1),
        "group_rows": np.where(rows < len(arrays.get("group_columns", ())), rows, -1),
        "item_keys": item_draws.keys_of(item_hashes([f"probe-{row}" for row in rows.tolist()])),
        "weights": np.array(list(problem.weights.values()), np.float32),
    }
    past = min(PAST, problem.history)  # drawn after all the others, whose numbers stay what they were
    vocabulary["history"] = rng.uniform(-1, 1, (past, encoder.item_size)).astype(np.float32)
    vocabulary["history_rows"] = vocabulary["item_rows"][:past]
    if "goal" in inputs:
        vocabulary["goal"] = np.eye(1, int(inputs["goal"][0]), dtype=np.float32)[0]
    return {name: vocabulary[name] for name in inputs}


def item_rows(arrays: Mapping[str, NDArray[np.generic]], hashes: NDArray[np.uint64]) -> I64:
    """The graph input `item_rows` of candidates (n,): their place in the bundle's sorted `item_hashes`, −1 = unseen."""
    known = arrays["item_hashes"]
    if not len(known):
        return np.full(len(hashes), -1)
    rows = np.searchsorted(known, hashes)
    rows[rows == len(known)] = 0
    return np.where(known[rows] == hashes, rows, -1)


def item_inputs(arrays: Mapping[str, NDArray[np.generic]], items: F32, hashes: NDArray[np.uint64]) -> Arrays:
    """What graphs read of candidates by their ids, from encoded items (n, d) and hashes (n,) of their ids: `item_rows`, `item_keys`
    and, where the bundle's `group_columns` (G,) say which columns of an item are its group's, `group_rows`: −1 = none of them.
    """
    made: Arrays = {"item_rows": item_rows(arrays, hashes), "item_keys": item_draws.keys_of(hashes)}
    if "group_columns" in arrays:
        columns = arrays["group_columns"].astype(np.int64)
        shown = items[:, columns]
        none = np.full(len(items), -1)
        made["group_rows"] = np.where(shown.any(axis=1), shown.argmax(axis=1), -1) if len(columns) else none
    return made


def files(bundle: Bundle) -> dict[str, bytes]:
    """File name → content, the manifest last: who writes in this order never shows a bundle with parts missing."""
    made = {f"graphs/{bundle.manifest.graph}.onnx": bundle.graph}
    if bundle.manifest.manager is not UNSET:
        made[f"graphs/{bundle.manifest.manager}.onnx"] = bundle.manager
    for name, array in bundle.arrays.items():
        made[f"arrays/{bundle.manifest.arrays[name]}.npy"] = _npy(array)
    for name, array in bundle.probes.items():
        made[f"arrays/{bundle.manifest.probes[name]}.npy"] = _npy(array)
    made[manifest_file(bundle.manifest.bundle)] = msgspec.json.encode(bundle.manifest, order="sorted")
    return made


def manifest_file(bundle: str) -> str:
    return f"manifests/{bundle}.json"


def read_manifest(bundle: str, get: Callable[[str], bytes]) -> Manifest:
    """The manifest alone. Raises Corrupt('format' | 'hash') and what `get` raises."""
    try:
        manifest = msgspec.json.decode(get(manifest_file(bundle)), type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt("format", f"manifest {bundle}: {error}") from None
    if manifest.format != FORMAT:
        raise Corrupt("format", f"bundle format {manifest.format}, this build reads {FORMAT}")
    if manifest.bundle != bundle or _name(manifest) != bundle:
        raise Corrupt("hash", f"manifest {bundle} is not what its name says")
    return manifest


def read(bundle: str, get: Callable[[str], bytes]) -> Bundle:
    """A bundle from its files, every hash checked. Raises Corrupt('format' | 'hash') and what `get` raises."""
    manifest = read_manifest(bundle, get)

    def checked(name: str, wanted: str) -> bytes:
        data = get(name)
        if digest(data) != wanted:
            raise Corrupt("hash", f"{name} is not what its name says")
        return data

    def arrays(names: Mapping[str, str]) -> Arrays:
        return {name: _array(checked(f"arrays/{wanted}.npy", wanted)) for name, wanted in names.items()}

    graph = checked(f"graphs/{manifest.graph}.onnx", manifest.graph)
    named = manifest.manager
    manager = b"" if named is UNSET else checked(f"graphs/{named}.onnx", named)
    return Bundle(manifest, graph, arrays(manifest.arrays), arrays(manifest.probes), manager)


def verify(bundle: Bundle, *, schema: str, score: Score, algorithm: str | None = None) -> None:
    """The bundle gate. Raises Corrupt with the first reason found:

    format     of another format or algorithm, or a graph that does not run on these inputs
    hash       some content is not what the manifest names
    schema     made for another feature schema than this surface version's
    nonfinite  an array or a probe's score is NaN or infinite
    probe      the graph does not give the scores the learner computed (to float32 rounding)
    entropy    the posterior draws have become one, see `spread`
    """
    manifest = bundle.manifest
    if manifest.format != FORMAT or (algorithm is not None and manifest.algorithm != algorithm):
        raise Corrupt("format", f"format {manifest.format}, algorithm {manifest.algorithm}")
    contents = {"graph": digest(bundle.graph)}
    named = {"graph": manifest.graph}
    if bundle.manager or manifest.manager is not UNSET:
        contents["manager"] = digest(bundle.manager)
        named["manager"] = "" if manifest.manager is UNSET else manifest.manager
    for part, held, wanted in (("arrays", bundle.arrays, manifest.arrays), ("probes", bundle.probes, manifest.probes)):
        contents |= {f"{part}/{name}": digest(_npy(array)) for name, array in held.items()}
        named |= {f"{part}/{name}": wanted_hash for name, wanted_hash in wanted.items()}
    if contents != named or manifest.bundle != _name(manifest):
        wrong = sorted(name for name in contents.keys() | named.keys() if contents.get(name) != named.get(name))
        raise Corrupt("hash", f"{', '.join(wrong) or 'manifest'}: not what the manifest names")
    if manifest.temperature is not UNSET and not 0 < manifest.temperature < np.inf:
        raise Corrupt("nonfinite", f"the draw's temperature is {manifest.temperature}")
    if manifest.schema != schema:
        raise Corrupt("schema", f"made for {manifest.schema}, this surface has {schema}")
    _finite(bundle.arrays)
    query = {name: array for name, array in bundle.probes.items() if name not in ("scores", "goal_logits")}
    try:
        scores = score(bundle.graph, bundle.arrays, query)
        logits = score(bundle.manager, bundle.arrays, query) if bundle.manager else None
    except Exception as error:  # noqa: BLE001 - a graph can fail in any of the runtime's ways; all mean the same here
        raise Corrupt("format", f"the graph does not run: {error}") from None
    _finite({"scores": scores})
    _agree(scores, bundle.probes["scores"], bundle.arrays, "the graph does not give what the learner computed")
    if logits is not None:
        _finite({"goal_logits": logits})
        _agree(
            logits, bundle.probes["goal_logits"], bundle.arrays, "the manager does not give what the learner computed"
        )
    if manifest.draws > 1 and spread(scores) < ENTROPY_NATS:
        raise Corrupt("entropy", "the posterior draws no longer differ")


def spread(scores: F32) -> float:
    """Entropy in nats of which candidate gains most from a draw, taken over the draws of scores (n, m).

    The pool mean is removed first: a posterior that has honestly learned which item is best may choose it always, but
    its draws still scatter around their mean in some direction or other. Scatter below what float32 can tell is none.
    Candidates that a model cannot tell apart at all leave the choice to chance: log n.
    """
    n = len(scores)
    between = scores.astype(float) - scores.mean(axis=0, dtype=float)
    if not between.any():
        return float(np.log(n))
    around = between - between.mean(axis=1, keepdims=True)
    if np.abs(around).max() <= ROUNDING * np.abs(scores).max():
        return 0.0
    share = np.bincount(around.argmax(axis=0), minlength=n) / scores.shape[1]
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


def _finite(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Corrupt("nonfinite", f"{name} holds NaN or infinity")


def _agree(found: F32, wanted: NDArray[np.generic], arrays: Arrays, message: str) -> None:
    """Raises Corrupt('probe') unless equal to float32 rounding of the largest number involved."""
    largest = max(float(np.abs(a).max(initial=0)) for a in (wanted, *arrays.values()) if a.dtype.kind == "f")
    if (
        found.shape != wanted.shape
        or not np.abs(found - np.asarray(wanted, np.float32)).max(initial=0) <= ROUNDING * largest
    ):
        raise Corrupt("probe", message)


def _name(manifest: Manifest) -> str:
    return digest(msgspec.json.encode(msgspec.structs.replace(manifest, bundle=""), order="sorted"))


def _npy(array: NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asanyarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _array(data: bytes) -> NDArray[np.generic]:
    """A read-only array. Raises Corrupt('format')."""
    try:
        array: NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Corrupt("format", f"not an array: {error}") from None
    array.flags.writeable = False
    return array
