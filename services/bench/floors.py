"""What this machine can do in this minute: floors that measurements are held against (absolute times drift, ratios do not).

decide  msgspec decode → gather 100 catalogue rows of 32 features → ONNX scores under 256 posterior draws → 10 slots drawn one
        after the other with exact conditional propensities → encode the record, one write to a spool file → encode the answer
learn   decode a decision and a feedback → join by id → normal equations of 10 slots × 32 features, nothing durable
http    the decide floor behind a bare Starlette route, `app()`, on uvicorn

They do nothing a service must do beside: no identity, rules, configuration, catalogue, metrics, deadlines, corrections, durability.
"""

import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numba
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FEATURES, POOL, SLOTS, CANDIDATES, CATALOGUE, EPSILON = 32, 256, 10, 100, 10_000, 0.02


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    surface: str
    unit: str
    candidates: list[str]
    slots: int = SLOTS
    decision_id: str | None = None
    context: dict[str, Any] | None = None


class Answered(msgspec.Struct):
    decision_id: str
    slate: list[dict[str, Any]]
    propensity: float


class Kept(msgspec.Struct):
    decision_id: str
    unit: str
    context: dict[str, Any] | None
    candidates: list[str]
    slate: list[str]
    propensities: list[float]
    features: bytes


class Heard(msgspec.Struct):
    decision_id: str
    slot: int
    kind: str
    value: float


@numba.njit(cache=True)  # type: ignore[untyped-decorator]  # numba ships no types
def _draw(scores: Any, epsilon: float, uniforms: Any, slots: int) -> Any:
    n, m = scores.shape
    best = np.zeros(m, np.int32)
    top = scores[0].copy()
    for c in range(1, n):  # candidates outside, so that the inner loop runs along memory and vectorises
        for z in range(m):
            better = scores[c, z] > top[z]
            top[z] = scores[c, z] if better else top[z]
            best[z] = np.int32(c) if better else best[z]
    wins, left = np.zeros(n), np.ones(n, numba.boolean)
    for z in range(m):
        wins[best[z]] += 1.0
    items, propensities = np.empty(slots, np.int64), np.empty(slots)
    for t in range(slots):
        cumulated, item, p = 0.0, -1, 0.0
        for c in range(n):
            if left[c]:
                item, p = c, (1.0 - epsilon) * wins[c] / m + epsilon / (n - t)
                cumulated += p
                if uniforms[t] < cumulated:
                    break
        items[t], propensities[t] = item, p
        left[item], wins[item] = False, 0.0
        for z in range(m):
            if best[z] == item:
                winner, high = -1, -np.inf
                for c in range(n):
                    if left[c] and scores[c, z] > high:
                        winner, high = c, scores[c, z]
                best[z] = winner
                wins[winner] += 1.0
    return items, propensities


class DecideFloor:
    """One request decided the shortest way that still draws, logs and answers."""

    def __init__(self) -> None:
        pool = np.random.default_rng(0).normal(size=(POOL, FEATURES)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("Gemm", ["items", "pool"], ["scores"], transB=1)],
            "floor",
            [helper.make_tensor_value_info("items", TensorProto.FLOAT, ["n", FEATURES])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "m"])],
            [numpy_helper.from_array(pool, "pool")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9  # what every onnxruntime we allow reads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._run = onnxruntime.InferenceSession(model.SerializeToString(), options).run
        self._catalogue = np.random.default_rng(1).normal(size=(CATALOGUE, FEATURES)).astype(np.float32)
        self._row = {f"item-{i}": i for i in range(CATALOGUE)}
        self._decode = msgspec.json.Decoder(Asked).decode
        self._encode = msgspec.json.Encoder().encode
        self._counter = itertools.count()
        self._folder = tempfile.TemporaryDirectory(prefix="slatewise-floor-")
        self.spool = os.path.join(self._folder.name, "spool")
        self._spool = os.open(self.spool, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def __enter__(self) -> "DecideFloor":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._spool)
        self._folder.cleanup()

    def __call__(self, body: bytes) -> bytes:
        asked = self._decode(body)
        unit = hashlib.blake2b(asked.unit.encode(), digest_size=8).hexdigest()
        name = asked.decision_id or f"{unit}-{next(self._counter):016x}"
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        rows = np.fromiter((self._row[c] for c in asked.candidates), np.int64, len(asked.candidates))
        items = self._catalogue[rows]
        scores = self._run(None, {"items": items})[0]
        uniforms = np.random.Generator(np.random.SFC64(seed)).random(asked.slots)
        drawn, propensities = _draw(scores, EPSILON, uniforms, asked.slots)
        ids, ps = [asked.candidates[i] for i in drawn.tolist()], propensities.tolist()
        kept = Kept(name, unit, asked.context, asked.candidates, ids, ps, items[drawn].tobytes())
        os.write(self._spool, self._encode(kept) + b"\n")
        slate = [{"slot": t, "id": i, "propensity": p} for t, (i, p) in enumerate(zip(ids, ps, strict=True))]
        return self._encode(Answered(name, slate, float(np.prod(propensities))))


def body() -> bytes:
    """The request both sides answer: 100 candidates by id."""
    candidates = [f"item-{i * 7}" for i in range(CANDIDATES)]
    return msgspec.json.encode(Asked("home", "user-42", candidates, context={"device": "ios", "hour": 13}))


def per_second(work: Callable[[], object], count: int, warm: int = 50) -> float:
    """Calls a second, one thread, after warming."""
    for _ in range(warm):
        work()
    start = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - start)


def decide(count: int = 3_000) -> float:
    """Microseconds a decision."""
    asked = body()
    with DecideFloor() as floor:
        return 1e6 / per_second(lambda: floor(asked), count)


def learn(count: int = 5_000, rounds: int = 5) -> float:
    """Decisions of 10 slots joined and learned a second."""
    encode = msgspec.json.Encoder().encode
    catalogue = np.random.default_rng(1).normal(size=(SLOTS, FEATURES)).astype(np.float32)
    ids, features = [f"item-{i * 7}" for i in range(CANDIDATES)], catalogue.tobytes()
    names = [f"{i:016x}-{i:x}" for i in range(count)]
    decisions = [encode(Kept(n, n[:16], {"hour": 1}, ids, ids[:SLOTS], [1 / SLOTS] * SLOTS, features)) for n in names]
    feedback = [encode(Heard(n, 3, "click", 1.0)) for n in names]
    read, hear = msgspec.json.Decoder(Kept).decode, msgspec.json.Decoder(Heard).decode

    def once() -> None:
        pending: dict[str, Kept] = {}
        sums, moments = np.zeros((FEATURES, FEATURES)), np.zeros(FEATURES)
        block: list[NDArray[np.float32]] = []
        rewards: list[NDArray[np.float64]] = []
        for d, f in zip(decisions, feedback, strict=True):
            decision = read(d)
            pending[decision.decision_id] = decision
            heard = hear(f)
            joined = pending.pop(heard.decision_id)
            block.append(np.frombuffer(joined.features, np.float32).reshape(SLOTS, FEATURES))
            reward = np.zeros(SLOTS)
            reward[heard.slot] = heard.value
            rewards.append(reward)
            if len(block) == 500:
                x = np.concatenate(block).astype(float)
                sums += x.T @ x
                moments += x.T @ np.concatenate(rewards)
                block.clear()
                rewards.clear()

    return count * per_second(once, rounds, warm=1)


def app() -> Starlette:
    """The HTTP floor: uvicorn services.bench.floors:app --factory."""
    floor = DecideFloor()
    floor(body())  # compiled before the port opens

    async def decisions(request: Request) -> Response:
        return Response(floor(await request.body()), media_type="application/json")

    async def alive(request: Request) -> Response:
        return Response(b"ok")

    return Starlette(routes=[Route("/v1/decisions", decisions, methods=["POST"]), Route("/readyz", alive)])
