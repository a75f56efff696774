"""The exploration cap as the log shows it: four replicas over one log, with Redis and after it has gone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from redis_setup import started
from scoring_setup import beside, decisions, in_memory, publish, surface

from policies.errors import Unavailable
from policies.features import Encoder
from policies.surface import Exploration, Exposure, Fairness, Frequency, Logging, Rule, Seen, Segment, Surface
from policies.types import F64, Mask
from services.scoring import decide
from services.scoring.serve import open_scoring
from services.scoring.service import Scoring
from services.scoring.wire import encode
from services.settings import Settings
from services.stack.redis import RedisServer
from services.wiring import open_bundles, open_forwarder, open_log, open_state
from streaming.events import Decision, decode

REPLICAS, ASKED, SLOTS, CAP, WEB = 4, 120, 4, 0.2, 0.06
DEVICES = ("ios", "web", "other")
WEB_COLUMN = Encoder(surface().features).context_names.index("device=web")
CANDIDATES = [{"id": f"i{j}", "features": {"price": j, "genre": ("jazz", "rock")[j % 2]}} for j in range(10)]


def capped() -> Surface:
    """Everything that asks Redis beside the cap, which a segment has smaller; every decision tells its distributions."""
    return surface(
        slots=SLOTS,
        logging=Logging(1.0),
        exploration=Exploration(CAP, [Segment("device == 'web'", WEB)]),
        rules=[Rule(seen=Seen("1m")), Rule(frequency=Frequency(1_000, 60, "item")), Rule(cap=3, by="genre")],
        fairness=Fairness(Exposure("genre", positions=[1.0])),
    )


def replicas(folder: Path, redis: str) -> list[tuple[Settings, Scoring]]:
    """Services of their own, each with its folder, over one log, one bundle store and one Redis."""
    made = []
    for i in range(REPLICAS):
        settings = beside(folder, redis, i)
        publish(open_state(settings), open_bundles(settings), capped(), number=1, examples=20)
        scoring = open_scoring(settings)
        scoring.start()
        made.append((settings, scoring))
    return made


def ask(several: Sequence[Scoring], first: int) -> int:
    """Every unit asks any replica, some with ids of their own; how many answers nobody could claim."""
    unclaimed = 0
    for i in range(first, first + ASKED):
        scoring = several[i % REPLICAS]
        request = {"surface": "home", "unit": f"u{i % 19}", "candidates": CANDIDATES}
        own = {"decision_id": f"own-{i}"} if i % 5 == 0 else {}
        made = scoring.read(encode({**request, **own, "context": {"device": DEVICES[i % 3]}}))
        try:
            scoring.finish_claimed(made, scoring.claim(made)) if own else scoring.finish(made)
        except Unavailable:
            scoring.finish_unclaimed(made)
            unclaimed += 1
    return unclaimed


def logged(settings: Sequence[Settings]) -> list[Decision]:
    """What every spool held, out of the one log."""
    for one in settings:
        forwarder = open_forwarder(one)
        while forwarder.step():
            pass
        forwarder.close()
    log = open_log(settings[0])
    records = [decode(record.value) for p in range(log.partitions) for record in log.read(p, 0, 100_000)]
    return [record for record in records if isinstance(record, Decision)]


@dataclass(frozen=True)
class Share:
    """Of the slots of a log that were drawn: expected non-greedy share (s,), what the configuration allows (s,), whether the item
    was another than the greedy one (s,)."""

    expected: F64
    allowed: F64
    strayed: Mask

    @classmethod
    def of(cls, records: Sequence[Decision]) -> "Share":
        found = []
        for record in records:
            assert record.sample is not None
            chances = np.frombuffer(record.sample.distributions).reshape(len(record.slate), -1)
            web = (
                np.frombuffer(record.context, "<f4")[WEB_COLUMN] == 1.0
            )  # as the configuration says it, not the record
            for t, (row, greedy, slot) in enumerate(zip(record.rows, record.greedy, record.slots, strict=True)):
                if slot not in record.pinned:
                    found.append((1.0 - chances[t, greedy], WEB if web else CAP, row != greedy))
        expected, allowed, strayed = zip(*found, strict=True)
        return cls(np.array(expected), np.array(allowed), np.array(strayed))

    def holds(self) -> bool:
        """Whether no slot was expected to stray more than it may."""
        return bool((self.expected <= self.allowed + 1e-12).all())

    def z(self) -> float:
        """Standard errors between what strayed and what was expected to."""
        variance = self.expected * (1.0 - self.expected)
        return float((self.strayed - self.expected).sum() / np.sqrt(variance.sum()))


def in_turn(folder: Path) -> tuple[list[Decision], list[Decision]]:
    """What four replicas logged while Redis was there, and after it had gone."""
    with started(lambda: RedisServer(folder / "redis")) as server:
        several = replicas(folder, server.url)
        scorings = [scoring for _, scoring in several]
        assert ask(scorings, 0) == 0
        for scoring in scorings:
            scoring.refresh()
        server.stop()
        assert ask(scorings, ASKED) == ASKED // 5
        for scoring in scorings:
            scoring.close()
    records = sorted(logged([settings for settings, _ in several]), key=lambda record: record.at)
    assert len(records) == 2 * ASKED
    return records[:ASKED], records[ASKED:]


def test_no_slot_of_the_log_strays_more_than_it_may(tmp_path: Path) -> None:
    with_redis, without = in_turn(tmp_path)
    for records in (with_redis, without):
        assert {record.mode for record in records} == {"live"}
        share = Share.of(records)
        assert len(share.expected) == ASKED * SLOTS
        assert share.holds()
        assert (share.expected > share.allowed - 1e-9).mean() > 0.9  # it is the cap that binds, not the policy
        assert abs(share.z()) < 4.0
        for allowed in (CAP, WEB):
            of = share.allowed == allowed
            assert share.strayed[of].mean() < allowed + 4 * np.sqrt(allowed * (1 - allowed) / of.sum())


def test_a_replica_that_forgets_a_segment_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the segment's cap is not drawn under. The record itself says so, and nothing but its slots tells."""
    monkeypatch.setattr(decide, "capped", lambda settings, max_share: settings)
    scoring = in_memory(tmp_path, capped())
    ask([scoring] * REPLICAS, 0)
    assert not Share.of(decisions(tmp_path)).holds()
