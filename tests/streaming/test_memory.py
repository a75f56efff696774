"""What a joiner holds in memory follows what may still change, however long it has run."""

import pytest

from streaming.index import RECENT
from streaming.rows import MOST_SPANS, SPANS
from streaming.shard import Shard
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, Ports, decision, feedback
from tests.streaming.stories import CONFIGS, PLAIN
from tests.streaming.test_settle import settler

RUNS = 5  # times `correctable` passes
EACH = 10  # seconds between decisions
BATCH = 20  # records: ten decisions and their feedback


def told(decisions: int) -> Ports:
    """Decisions, each heard when the next is made."""
    ports = Ports(CONFIGS)
    for i in range(decisions):
        now = EPOCH0 + EACH * i
        ports.append(decision(PLAIN, f"d{i}", now, k=1), at=now)
        if i:
            ports.append(feedback(f"d{i - 1}", now))
    return ports


@pytest.mark.parametrize("general", [False, True], ids=["plain", "general"])
def test_a_shard_holds_the_decisions_that_may_still_change(general: bool) -> None:
    """… and no more rows than answer for their ids, though feedback for unknown decisions would wait a day."""
    ports, changing = told(int(RUNS * CORRECTABLE / EACH)), CORRECTABLE / EACH
    shard = Shard(0, ports.log, ports.checkpoints, CONFIGS, ports.letters, epoch=1, read_limit=BATCH)
    held, indexed, spans = [], [], []
    while True:
        joiner = shard._state()
        if general:
            joiner._plain = None
        if not shard.step().records:
            break
        rows = joiner._rows
        held.append(len(rows.hot) + len(rows.kept))
        indexed.append(rows.next_row - rows.evicted)
        spans.append(len(rows.spans))
    slack = BATCH + 2 * changing / SPANS + 2  # a batch, spans that are not over, and the ends
    assert changing - slack <= max(held) <= changing + slack
    assert max(indexed) <= 2 * changing + slack
    assert len(ports.checkpoints._joins) == indexed[-1]
    assert max(spans) <= 2 * SPANS + 2 <= MOST_SPANS
    assert not ports.letters.read()


def test_what_waits_a_day_does_not_cut_rows_ever_finer() -> None:
    """A decision that never comes holds up what is given back: then steps are of the day that it is waited for."""
    ports = Ports(CONFIGS)
    ports.append(feedback("never", EPOCH0))
    for i in range(1_000):
        ports.append(decision(PLAIN, f"d{i}", EPOCH0 + EACH * i, k=1), at=EPOCH0 + EACH * i)
    shard = Shard(0, ports.log, ports.checkpoints, CONFIGS, ports.letters, epoch=1, read_limit=1)
    while shard.step().records:
        pass
    rows = shard._state()._rows
    assert rows.evicted == 0
    assert MOST_SPANS <= len(rows.spans) <= MOST_SPANS + 1_000 * EACH / (86_400 / SPANS) + 1


def test_a_settler_holds_the_decisions_that_wait_for_their_horizon() -> None:
    ports, waiting, held = told(200), HORIZON / EACH, []
    one = settler(ports, read_limit=2)
    while one.step().records:
        held.append(len(one._rows.hot))
    assert waiting <= max(held) <= waiting + 2


def test_few_ids_lie_beside_the_sorted_runs() -> None:
    """In a dict they are 0.1 kB each, which fills for an hour where decisions are few, and then starts again."""
    assert RECENT <= 1 << 13
