"""The loop that a replay drives: the running service over HTTP, or the same rooms in this process without any server.

Both take people in batches, answer with slates, and are told what each shown item was worth. `settle` returns when all
that was told is in what decisions are drawn from.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from policies.algorithm import draw_settings
from policies.errors import SlatewiseError, Unavailable
from policies.slate import draw, uniforms
from services.client import Decision as Answer
from services.client import Slatewise, reward
from services.epochs import take_epoch
from services.learning.shards import open_shards
from services.settings import Settings
from services.wiring import open_log, open_state
from streaming.configuration import Configs, from_json, publish_surface
from streaming.events import Decision, Feedback, encode, unit_hash
from streaming.publish import merged
from streaming.scorer import Scorer

QUIET_SECONDS, SETTLE_SECONDS = 1.5, 60.0


@dataclass(frozen=True)
class Item:
    """A catalogue item."""

    id: str
    features: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One request: who, and what is known of them. `learn` false: decided, never learned from."""

    unit: str
    context: dict[str, Any]
    learn: bool = True


class Driver(Protocol):
    def decide(self, asked: Sequence[Asked]) -> list[list[str]]:
        """Item ids of each slate, by slot; `tell` refers to these, in this order."""

    def tell(self, kind: str, rewards: Sequence[Sequence[float]]) -> None:
        """Rewards of the slates of the last `decide`, by slot."""

    def settle(self) -> None: ...


class OverHttp:
    """The running service: decisions in batches, feedback through /v1/feedback, learning at its own pace."""

    def __init__(self, url: str, surface: str, items: Sequence[Item]) -> None:
        self._client = Slatewise(url, timeout=30.0)
        self._surface = surface
        self._ids = [item.id for item in items]
        self._client.put_items([{"id": item.id, "features": item.features} for item in items])
        self._last: list[Answer] = []
        self.modes: dict[str, int] = {}

    def decide(self, asked: Sequence[Asked]) -> list[list[str]]:
        requests = [
            {
                "surface": self._surface,
                "unit": a.unit,
                "context": a.context,
                "candidates": self._ids,
                "defer": not a.learn,
            }
            for a in asked
        ]
        self._last = []
        for answer in self._client.decide_batch(requests):
            if isinstance(answer, SlatewiseError):
                raise answer
            self._last.append(answer)
            self.modes[answer.mode] = self.modes.get(answer.mode, 0) + 1
        return [answer.items for answer in self._last]

    def tell(self, kind: str, rewards: Sequence[Sequence[float]]) -> None:
        sent = [
            reward(answer, kind, float(value), slot=shown.slot)
            for answer, values in zip(self._last, rewards, strict=True)
            for shown, value in zip(answer.slate, values, strict=True)
        ]
        accepted = self._client.feedback_batch(sent)
        if accepted.rejected:
            raise Unavailable(f"{len(accepted.rejected)} feedback refused, first: {accepted.rejected[0]}")

    def settle(self) -> None:
        """Until the bundle has stood still: the learner publishes whenever it learned something new."""
        end, seen, since = time.monotonic() + SETTLE_SECONDS, "", time.monotonic()
        while time.monotonic() < end:
            probe = self._client.decide_batch(
                [{"surface": self._surface, "unit": "settle", "candidates": self._ids, "defer": True}]
            )[0]
            if isinstance(probe, SlatewiseError):
                raise probe
            now = time.monotonic()
            if probe.bundle != seen:
                seen, since = probe.bundle or "", now
            if now - since > QUIET_SECONDS:
                return
            time.sleep(0.1)
        raise Unavailable(f"bundles still change after {SETTLE_SECONDS:g} s")

    def close(self) -> None:
        self._client.close()


class InProcess:
    """Encoder, draw, log, shards and publish as the service has them, called one after the other in this process."""

    def __init__(self, document: dict[str, Any], items: Sequence[Item], folder: Path, key: bytes = b"replay") -> None:
        settings = Settings.load(environ={}, data=folder)
        state, self._log = open_state(settings), open_log(settings)
        self._configs = Configs(settings.tenant)
        surface = from_json(msgspec.json.encode(document))
        publish_surface(state, surface)
        self._configs.follow(state)
        found = self._configs.current(surface.surface)
        if found is None:
            raise Unavailable(f"the surface {surface.surface} was not stored")
        self._compiled = found
        self._policy = found.policies[surface.live or ""]
        self._items, self._key = items, key
        self._row = {item.id: i for i, item in enumerate(items)}
        self._matrix = found.encoder.rows([item.features for item in items], "$.items")
        self._shards = open_shards(settings, state, self._configs, take_epoch(state), range(self._log.partitions))
        graph = self._policy.algorithm.graph(self._policy.config, self._policy.problem)
        self._scorer = Scorer(graph.SerializeToString())
        self._count = self._publishes = 0
        self._last: list[Decision] = []
        self.settle()

    def decide(self, asked: Sequence[Asked]) -> list[list[str]]:
        self._last = [self._one(a) for a in asked]
        self._log.append([(d.unit.encode(), encode(d)) for d in self._last])
        return [d.slate for d in self._last]

    def tell(self, kind: str, rewards: Sequence[Sequence[float]]) -> None:
        now = time.time()
        self._log.append(
            [
                (
                    d.unit.encode(),
                    encode(
                        Feedback(
                            decision_id=d.decision_id,
                            unit=d.unit,
                            at=now,
                            feedback_id=f"{kind}-{slot}",
                            kind=kind,
                            value=float(value),
                            slot=slot,
                            accepted_at=now,
                        )
                    ),
                )
                for d, values in zip(self._last, rewards, strict=True)
                for slot, value in zip(d.slots, values, strict=True)
            ]
        )
        self.settle()

    def settle(self) -> None:
        for shard in self._shards:
            while shard.step().records:
                pass
        sums = [arrays[self._policy.key] for s in self._shards if self._policy.key in (arrays := s.statistics().arrays)]
        self._publishes += 1
        policy = self._policy
        made = policy.algorithm.publish(
            policy.config, policy.problem, merged(policy, sums), time.time(), self._publishes
        )
        self._slot_weight = made.slot_weight
        self._settings = draw_settings(policy.config, made.temperature, self._compiled.surface.exploration.max_share)
        self._bound = self._scorer.bind(made.arrays)

    def _one(self, asked: Asked) -> Decision:
        compiled, settings = self._compiled, self._settings
        unit = unit_hash(asked.unit, self._key)
        self._count += 1
        name = f"{unit}-{self._count:012x}"
        context = compiled.encoder.context(asked.context)
        scores = self._bound.scores({"context": context, "items": self._matrix})
        k = compiled.surface.slots
        slate = draw(scores, k, uniforms(self._key, name, "slate", k), self._settings)
        rows = slate.items.tolist()
        return Decision(
            decision_id=name,
            unit=unit,
            at=time.time(),
            surface=compiled.surface.surface,
            config=compiled.hash,
            policy=self._policy.name,
            bundle=str(self._publishes),
            mode="live",
            slate=[self._items[r].id for r in rows],
            slots=slate.slots.tolist(),
            rows=rows,
            propensities=slate.propensities.tolist(),
            remaining=slate.remaining.tolist(),
            greedy=slate.greedy.tolist(),
            context=context.astype("<f4").tobytes(),
            shown=np.ascontiguousarray(self._matrix[rows]).astype("<f4").tobytes(),
            epsilon=settings.floor,
            head=settings.head,
            max_share=settings.max_share,
            temperature=settings.temperature,
            asked=k,
            weight=self._slot_weight,
            defer=not asked.learn,
        )
