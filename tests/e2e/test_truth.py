"""The propensity that was answered and logged is the probability that was drawn from: over HTTP, with everything on."""

import time
import uuid
from collections.abc import Callable

import httpx
import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, installed, serving, surface

from policies.evaluation.truth import Truth
from policies.surface import (
    Diversity,
    Exploration,
    Exposure,
    Fairness,
    Frequency,
    ImpressionVariance,
    Logging,
    PolicySpec,
    Prefix,
    Quota,
    Rule,
    Seen,
    Segment,
    Surface,
)
from policies.types import F64
from services.keys import KEY_BYTES
from services.scoring.wire import DecisionAnswer
from services.settings import Settings
from services.wiring import open_derived, open_state
from streaming.events import Decision, unit_hash
from streaming.impressions import KIND, Told, scheme_of
from streaming.impressions import encode as encoded
from streaming.index import id_hash
from streaming.partition import partition_of
from streaming.ports import Mark
from streaming.shown import shown_key, window_names, with_decision
from tests.e2e.running import wait_for

pytestmark = pytest.mark.slow
DECISIONS, BATCH, N, SLOTS = 20_480, 256, 12, 4
FAIR = ("exposure", "impression_variance")
UNSEEN = ImpressionVariance("religion", ["north", "south"], "device")  # an attribute that the service is never told
IDS = [f"item-{i:02d}" for i in range(N)]
WINDOW = 30 * 86_400
RULES = [
    Rule(available=True),
    Rule(filter="price < 8 or genre == 'jazz'"),
    Rule(exclude=["never-seen"]),
    Rule(seen=Seen("1d")),
    Rule(frequency=Frequency(50, WINDOW, "item")),
    Rule(frequency=Frequency(2, "1d")),
    Rule(cap=2, by="creator"),
    Rule(quota=Quota(1, "genre", "jazz")),
    Rule(spacing=3, by="creator"),
    Rule(cap=1, by="creator", name="one-each"),
    Rule(cap=1, by="genre", name="two-genres"),  # of which there are four slots: it has to yield
]
Answers = dict[str, DecisionAnswer]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, list[Decision]]:
    """20,480 answers over HTTP and what the service logged of them; key, ids and pool are fixed, so are the draws."""
    folder = tmp_path_factory.mktemp("truth")
    for name in ("server.key", "salt.default"):
        (folder / name).write_bytes(bytes(KEY_BYTES))
    made = surface(
        slots=SLOTS,
        policies={"home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.1})},
        exploration=Exploration(0.3, [Segment("device == 'web'", 0.2)]),
        logging=Logging(1.0),
        rules=RULES,
        diversity=Diversity(mmr=0.5, coverage=0.3, by="genre"),
        fairness=Fairness(Exposure("creator", window="1d"), Prefix("genre", {"jazz": 0.25}), UNSEEN),
    )
    answers: Answers = {}
    settings = installed(folder, [made], examples=30)
    put(settings)
    shown_before(settings)
    open_state(settings).put([(KIND, "home", encoded(released(made)))])
    with serving(settings) as server, server.client() as client:
        wait_for(lambda: everything_is_known(client), "the counters were read")
        for start in range(0, DECISIONS, BATCH):
            if start == 5 * BATCH:
                owed(settings)
            asked = [ask(i) for i in range(start, start + BATCH)]
            response = client.post("/v1/decisions:batch", json={"requests": asked}).raise_for_status()
            for one in msgspec.convert(response.json()["responses"], list[DecisionAnswer]):
                answers[one.decision_id] = one
    return answers, [record for record in decisions(folder) if record.decision_id in answers]


def everything_is_known(client: httpx.Client) -> bool:
    """Whether no rule is skipped any more: what is owed from then on is seen to come."""
    request = ask(0) | {"decision_id": f"first-{uuid.uuid4().hex}", "explain": True}
    answer = client.post("/v1/decisions", json=request).raise_for_status()
    return not answer.json()["rules"].get("skipped")


def released(made: Surface) -> Told:
    """What an aggregator would have released: other boosts for people on ios than for those on the web."""
    boosts = np.random.default_rng(6).uniform(-0.4, 0.4, (N, 3)).astype("<f4")
    return Told(scheme_of(made), 1, time.time(), 1, IDS, [1] * N, boosts=boosts.tobytes())


def shown_before(settings: Settings) -> None:
    """Every third user has seen two items lately, and one item was shown to everybody more often than it may be."""
    counters, profiles = open_derived(settings, settings.partitions)
    salt, now = bytes(KEY_BYTES), time.time()
    units: dict[int, dict[str, bytes]] = {}
    for i in range(0, 97, 3):
        unit = unit_hash(f"user-{i}", salt)
        seen = with_decision(None, i, now, [id_hash(IDS[i % 7]), id_hash(IDS[(i + 3) % 7])])
        units.setdefault(partition_of(unit.encode(), settings.partitions), {})[shown_key(unit)] = seen
    for partition, found in units.items():
        profiles.write(partition, Mark(1, 1), found, None)
    name, _ = window_names(IDS[5], WINDOW, now)
    following, _ = window_names(IDS[5], WINDOW, now + WINDOW)  # should the window end meanwhile
    counters.write(0, Mark(1, 1), {f"default/home/{one}/exposures": 60.0 for one in (name, following)}, None)


def owed(settings: Settings) -> None:
    """One creator was delivered less than it is entitled to, since the service began."""
    counters, _ = open_derived(settings, settings.partitions)
    looks = {f"c{i}": (10.0 - 4.0 * (i == 0) + 4.0 * (i == 1), 10.0) for i in range(5)}
    names = {
        f"default/home/exposure/creator/{group}/{what}": value
        for group, pair in looks.items()
        for what, value in zip(("delivered", "entitled"), pair, strict=True)
    }
    counters.write(1, Mark(1, 1), names, None)


def put(settings: Settings) -> None:
    """Items whose features differ, so that no two have the same chance."""
    items = [
        {
            "id": item,
            "features": {"price": 10 * i / N, "genre": ("jazz", "rock")[i % 2]},
            "attributes": {"creator": f"c{i % 5}"},
        }
        for i, item in enumerate(IDS)
    ]
    open_state(settings).put([("item", str(item["id"]), msgspec.json.encode(item)) for item in items])


def ask(i: int) -> dict[str, object]:
    """Request i: contexts take turns, every third has a pin, every second leaves two items out."""
    request: dict[str, object] = {
        "surface": "home",
        "unit": f"user-{i % 97}",
        "decision_id": f"truth-{i}",
        "context": {"device": ("ios", "web")[i % 2], "hour": i % 24},
        "candidates": IDS,
    }
    if i % 3 == 0:
        request["pins"] = {"1": IDS[i % 5]}
    if i % 2:
        request["exclude"] = [IDS[6 + i % 4], IDS[11], "never-seen"]
    return request


def heard(records: list[Decision], said: Callable[[Decision, int, F64], F64] = lambda record, slot, p: p) -> Truth:
    """The statistic fed with the log, in which distributions are what `said` makes of them."""
    truth = Truth()
    for record in records:
        assert record.sample is not None
        distributions = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)
        for slot, row, p in zip(record.slots, record.rows, distributions, strict=True):
            logged = said(record, slot, p)
            arms = dict(zip(record.candidates, logged.tolist(), strict=True))
            truth.add(slot, arms, record.candidates[row], float(logged[row]))
    return truth


def test_every_answer_is_logged_as_it_was_given(told: tuple[Answers, list[Decision]]) -> None:
    answers, records = told
    assert len(answers) == len(records) == DECISIONS
    capped = 0
    for record in records:
        answer = answers[record.decision_id]
        assert answer.mode == record.mode == "live"
        assert [slot.id for slot in answer.slate] == record.slate
        assert [slot.propensity for slot in answer.slate] == record.propensities
        assert answer.propensity == pytest.approx(np.prod(record.propensities))
        assert record.sample is not None
        distributions = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)
        assert [float(p[row]) for p, row in zip(distributions, record.rows, strict=True)] == record.propensities
        assert np.allclose(distributions.sum(axis=1), 1)
        greedy = distributions[np.arange(len(record.slots)), record.greedy]
        free = np.array([slot not in record.pinned for slot in record.slots])
        assert record.max_share == (0.3, 0.2)[int(record.decision_id.removeprefix("truth-")) % 2]
        assert (1 - greedy[free] <= record.max_share + 1e-9).all()  # the cap, where one item leads
        chosen = free & (np.array(record.remaining) > 1)
        assert (distributions[chosen].max(axis=1) < 1).all()  # the floor
        capped += record.alphas is not None
    assert capped > DECISIONS / 10  # the cap was not only switched on, it acted


def test_pins_and_excludes_are_kept(told: tuple[Answers, list[Decision]]) -> None:
    answers, _ = told
    for i in range(DECISIONS):
        slate = answers[f"truth-{i}"].slate
        request = ask(i)
        pinned = IDS[i % 5] if "pins" in request else None
        for slot in slate:
            assert (slot.id == pinned) == (pinned is not None and slot.slot == 1)
            assert slot.slot != 1 or pinned is None or slot.propensity == 1.0
            assert slot.id not in request.get("exclude", [])  # type: ignore[operator]  # a list here
        assert len({slot.id for slot in slate}) == SLOTS


def test_rules_are_kept_or_said_to_be_relaxed(told: tuple[Answers, list[Decision]]) -> None:
    for record in told[1]:
        places = [IDS.index(item) for item in record.slate]
        creators = [place % 5 for place in places]
        pinned = [record.slots.index(slot) for slot in record.pinned]
        free = [place for i, place in enumerate(places) if i not in pinned]
        assert all(10 * place / N < 8 or place % 2 == 0 for place in places)
        assert "one-each" in record.relaxed or max(map(creators.count, creators)) == 1
        assert "cap:creator" in record.relaxed or max(map(creators.count, creators)) <= 2
        assert "quota:genre=jazz" in record.relaxed or any(place % 2 == 0 for place in places)
        assert "frequency:item" in record.relaxed or 5 not in free
        apart = [j - i for j in range(SLOTS) for i in range(j) if creators[i] == creators[j]]
        assert "spacing:creator" in record.relaxed or min(apart, default=9) >= 3
        assert not record.skipped
    acted = {name for record in told[1] for name in record.acted}
    assert acted >= {"filter", "seen", "frequency:item", "spacing:creator", "one-each", "mmr", "coverage", *FAIR}
    assert sum(bool(record.relaxed) for record in told[1]) > 0


def test_the_share_that_is_not_greedy_is_the_one_expected(told: tuple[Answers, list[Decision]]) -> None:
    """In every slot: as often as its probability says (4 standard errors), which the cap bounds."""
    strayed, expected, variance, most = np.zeros((4, SLOTS))
    for record in told[1]:
        assert record.sample is not None
        distributions = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)
        for slot, row, greedy, p in zip(record.slots, record.rows, record.greedy, distributions, strict=True):
            share = 1.0 - p[greedy]
            strayed[slot] += row != greedy
            expected[slot] += share
            variance[slot] += share * (1.0 - share)
            most[slot] += record.max_share
    assert (expected <= most + 1e-6).all()
    assert (abs(strayed - expected) < 4 * np.sqrt(variance)).all()


def test_what_was_drawn_is_what_was_logged(told: tuple[Answers, list[Decision]]) -> None:
    truth = heard(told[1])
    assert len(truth.z) > 0.8 * SLOTS * N  # the rest was drawn too seldom for a z of its own
    assert truth.worst_z < 4
    assert abs(truth.mean_inverse.z) < 4


@pytest.mark.parametrize("slot", range(SLOTS))
def test_an_arm_that_is_a_fifth_off_is_caught(told: tuple[Answers, list[Decision]], slot: int) -> None:
    def could(p: float) -> bool:
        return 0.05 <= p < 1.0

    mass = dict.fromkeys(IDS, 0.0)  # the arm that the fault touches most often
    for record in told[1]:
        assert record.sample is not None
        p = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)[record.slots.index(slot)]
        for item, one in zip(record.candidates, p.tolist(), strict=True):
            mass[item] += one * could(one)
    arm = max(IDS, key=mass.__getitem__)

    def off(record: Decision, at: int, p: F64) -> F64:
        row = record.candidates.index(arm) if at == slot and arm in record.candidates else -1
        if row < 0 or not could(p[row]):
            return p
        wrong = p.copy()
        wrong[row] *= 0.8
        wrong[np.arange(len(p)) != row] *= (1 - wrong[row]) / (1 - p[row])
        return wrong

    assert heard(told[1], off).worst_z > 4
