"""The propensity that was answered and logged is the probability that was drawn from: over HTTP, with everything on."""

from collections.abc import Callable

import httpx
import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, installed, serving, surface

from policies.evaluation.truth import Truth
from policies.surface import Exploration, Logging, PolicySpec
from policies.types import F64
from services.keys import KEY_BYTES
from services.scoring.wire import DecisionAnswer
from streaming.events import Decision

pytestmark = pytest.mark.slow
DECISIONS, BATCH, N, SLOTS = 20_480, 256, 12, 4
IDS = [f"item-{i:02d}" for i in range(N)]
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
        exploration=Exploration(0.3),
        logging=Logging(1.0),
    )
    answers: Answers = {}
    with serving(installed(folder, [made], examples=30)) as server, server.client() as client:
        put(client)
        for start in range(0, DECISIONS, BATCH):
            asked = [ask(i) for i in range(start, start + BATCH)]
            response = client.post("/v1/decisions:batch", json={"requests": asked}).raise_for_status()
            for one in msgspec.convert(response.json()["responses"], list[DecisionAnswer]):
                answers[one.decision_id] = one
    return answers, decisions(folder)


def put(client: httpx.Client) -> None:
    """Items whose features differ, so that no two have the same chance."""
    items = [
        {"id": item, "features": {"price": 10 * i / N, "genre": ("jazz", "rock")[i % 2]}} for i, item in enumerate(IDS)
    ]
    client.put("/v1/items", json=items).raise_for_status()


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


def heard(records: list[Decision], said: Callable[[int, F64], F64] = lambda slot, p: p) -> Truth:
    """The statistic fed with the log, in which distributions are what `said` makes of them."""
    truth = Truth()
    for record in records:
        assert record.sample is not None
        distributions = np.frombuffer(record.sample.distributions).reshape(len(record.slots), -1)
        for slot, row, p in zip(record.slots, record.rows, distributions, strict=True):
            logged = said(slot, p)
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
        free = [slot not in record.pinned for slot in record.slots]
        assert (1 - greedy[free] <= 0.3 + 1e-9).all()  # the cap, where one item leads
        assert (distributions[free].max(axis=1) < 1).all()  # the floor
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


def test_what_was_drawn_is_what_was_logged(told: tuple[Answers, list[Decision]]) -> None:
    truth = heard(told[1])
    assert len(truth.z) > 0.8 * SLOTS * N  # the rest was drawn too seldom for a z of its own
    assert truth.worst_z < 4
    assert abs(truth.mean_inverse.z) < 4


@pytest.mark.parametrize("slot", range(SLOTS))
def test_an_arm_that_is_a_fifth_off_is_caught(told: tuple[Answers, list[Decision]], slot: int) -> None:
    first = np.frombuffer(next(r for r in told[1] if slot not in r.pinned).sample.distributions)  # type: ignore[union-attr]
    arm = int(first.reshape(SLOTS, -1)[slot].argmax())

    def off(at: int, p: F64) -> F64:
        if at != slot or len(p) <= arm or not 0.05 <= p[arm] < 0.83:
            return p
        wrong = p.copy()
        wrong[arm] *= 1.2
        wrong[np.arange(len(p)) != arm] *= (1 - wrong[arm]) / (1 - p[arm])
        return wrong

    assert heard(told[1], off).worst_z > 4
