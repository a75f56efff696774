"""Whatever is delivered twice, late, early, out of order or half-processed counts once in effect, or is set aside by name.

The oracle judges the log as a whole from the rules' words. Then each rule is taken away, and the same property must fail:
a property that no fault can break proves nothing.
"""

from hypothesis import HealthCheck, given, settings

from streaming.events import encode
from streaming.shard import Shard
from tests.streaming.joining import UNIT, Abort, Ports, decision, drain, reasons, total
from tests.streaming.stories import CONFIGS, END, PLAIN, Story, _nothing, oracle, stories


def tell(story: Story) -> Ports:
    """Feed a log as the story says; the process dies as the story says; at the end the log goes on past every deadline."""
    ports = Ports(CONFIGS)
    deaths = list(story.deaths)
    shard = ports.shard(story.read_limit, story.hot_limit)

    def step(shard: Shard) -> Shard:
        ports.operations, ports.die_at = 0, deaths.pop(0) if deaths else None
        try:
            shard.step()
        except Abort:
            shard = ports.shard(story.read_limit, story.hot_limit)
        ports.die_at = None
        return shard

    for (at, value), stepping in zip(story.deliveries, story.steps, strict=True):
        ports.append(value, at=at)
        if stepping:
            shard = step(shard)
    ports.append(encode(decision(PLAIN, f"{UNIT}-end", END, k=0)), at=END)  # the clock moves on
    while deaths:
        shard = step(shard)
    drain(shard)
    return ports


def check(story: Story) -> None:
    ports = tell(story)
    sums, dead, examples = oracle(ports.log.read(0, 0, 10_000))
    assert reasons(ports.letters.read()) == dead
    statistics = ports.shard().statistics()
    assert sum(statistics.examples.values()) == examples
    learned = total(statistics.arrays) or _nothing(PLAIN)
    for name, array in sums.items():
        assert abs(array - learned[name]).max() <= 1e-9 * max(1.0, abs(array).max()), name


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories())
def test_any_delivery_gives_the_sums_of_the_log_as_a_whole(story: Story) -> None:
    check(story)
