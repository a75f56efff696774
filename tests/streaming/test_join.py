"""Verdicts one by one: what is refused and under which name, what is bounded, what is given back."""

import msgspec
import numpy as np
import pytest

import streaming.join
import streaming.plain.batch
import streaming.rows
import streaming.verdicts
from streaming.events import Decision, encode
from streaming.join import EARLY_EACH
from tests.streaming.joining import (
    CORRECTABLE,
    EPOCH0,
    HORIZON,
    UNIT,
    Ports,
    TallyConfigs,
    decision,
    drain,
    feedback,
    reasons,
    surface,
    total,
)

CONFIGS = TallyConfigs()
PLAIN = CONFIGS.add(surface())
ID = f"{UNIT}-1"


@pytest.fixture
def ports() -> Ports:
    return Ports(CONFIGS)


def run(ports: Ports, **limits: int) -> dict[int, str]:
    drain(ports.shard(**limits))
    return reasons(ports.letters.read())


def examples(ports: Ports) -> int:
    return sum(ports.shard().statistics().examples.values())


def made(at: float = EPOCH0, **changes: object) -> Decision:
    return decision(PLAIN, ID, at, **changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": "0" * 16}, "unknown_config"),
        ({"surface": "elsewhere"}, "unknown_surface"),
        ({"at": EPOCH0 + 61}, "bad_time"),
        ({"at": EPOCH0 - CORRECTABLE - 1}, "too_late"),
        ({"slots": [0, 1]}, "bad_decision"),
        ({"slots": [0, 2, 1]}, "bad_slot"),
        ({"slots": [0, 1, 3]}, "bad_slot"),
        ({"slots": [-1, 1, 2]}, "bad_slot"),
        ({"propensities": [0.5, 0.0, 0.5]}, "bad_decision"),
        ({"propensities": [0.5, 1.5, 0.5]}, "bad_decision"),
        ({"weight": 0.0}, "bad_decision"),
        ({"context": b""}, "bad_vector"),
        ({"shown": b"\0" * 8}, "bad_vector"),
        ({"context": np.array([np.nan], "<f4").tobytes()}, "bad_vector"),
        ({"context": np.array([np.inf], "<f4").tobytes()}, "bad_vector"),
        ({"context": np.array([1e30], "<f4").tobytes()}, "bad_vector"),
        ({"context": [1e300]}, "bad_vector"),
        ({"context": "no base64"}, "undecodable"),
        ({"v": 2}, "version"),
        ({"slate": "abc"}, "undecodable"),
    ],
)
def test_a_decision_that_cannot_be_used_is_set_aside_by_name(
    ports: Ports, changes: dict[str, object], reason: str
) -> None:
    ports.append(made(**changes), feedback("other", EPOCH0))
    assert run(ports) == {0: reason}
    assert examples(ports) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "unheard_of"}, "unknown_kind"),
        ({"slot": 3}, "bad_slot"),
        ({"item": "not shown"}, "bad_slot"),
        ({"slot": 0, "item": "not there"}, "bad_slot"),
        ({"kind": "shown", "slots": [0, 7]}, "bad_slot"),
        ({"unit": "00000000000000ff"}, "wrong_unit"),
        ({"at": EPOCH0 + 61}, "bad_time"),
        ({"at": EPOCH0 - CORRECTABLE - 1}, "bad_time"),
    ],
)
def test_feedback_that_cannot_be_used_is_set_aside_by_name(
    ports: Ports, changes: dict[str, object], reason: str
) -> None:
    ports.append(made(), feedback(ID, changes.pop("at", EPOCH0), **changes))  # type: ignore[arg-type]
    assert run(ports) == {1: reason}
    assert examples(ports) == 3


def test_a_bad_neighbour_in_the_batch_harms_no_one(ports: Ports) -> None:
    bad = decision(PLAIN, f"{UNIT}-2", EPOCH0, context=np.array([np.nan], "<f4").tobytes())
    ports.append(made(), bad, b"not json", feedback(ID, EPOCH0, slot=0))
    assert run(ports) == {1: "bad_vector", 2: "undecodable"}
    assert examples(ports) == 3


def test_vectors_may_be_arrays_of_numbers(ports: Ports) -> None:
    ours, theirs = made(), made()
    numbers = {name: np.frombuffer(getattr(theirs, name), "<f4").tolist() for name in ("context", "shown")}
    ports.append(ours)
    other = Ports(CONFIGS)
    other.append(msgspec.structs.replace(theirs, **numbers))
    assert run(ports) == run(other) == {}
    for name, array in total(ports.shard().statistics().arrays).items():
        np.testing.assert_array_equal(array, total(other.shard().statistics().arrays)[name])


def test_what_another_tenant_says_is_set_aside(ports: Ports) -> None:
    """Of the same version, as it has when both have the same surface; nor is the id used up, nor the decision clicked."""
    ports.append(made(tenant="other", weight=0.25), feedback(ID, EPOCH0, slot=0, tenant="other"), made())
    assert run(ports) == {0: "other_tenant", 1: "other_tenant"}
    assert examples(ports) == 3
    alone = Ports(CONFIGS)
    alone.append(made())
    assert run(alone) == {}
    for name, array in total(ports.shard().statistics().arrays).items():
        np.testing.assert_array_equal(array, total(alone.shard().statistics().arrays)[name])


def test_an_answer_given_again_is_not_a_decision(ports: Ports) -> None:
    ports.append(made(), made(mode="cached", reason="again"))
    assert run(ports) == {}
    assert examples(ports) == 3


def test_feedback_names_an_item_or_a_slot(ports: Ports) -> None:
    item = made().slate[1]
    ports.append(made(), feedback(ID, EPOCH0, item=item, value=2.0))
    other = Ports(CONFIGS)
    other.append(made(), feedback(ID, EPOCH0, slot=1, value=2.0))
    assert run(ports) == run(other) == {}
    np.testing.assert_array_equal(
        total(ports.shard().statistics().arrays)["B"], total(other.shard().statistics().arrays)["B"]
    )


def test_an_unknown_version_is_looked_up_once_more(ports: Ports) -> None:
    configs = TallyConfigs()
    shard = ports.shard()
    shard._configs, shard._refresh = configs, lambda: configs.add(surface())  # type: ignore[assignment]
    ports.append(made())
    assert shard.step().dead == {}
    assert shard.statistics().examples.popitem()[1] == 3


def test_a_second_version_has_its_own_rules(ports: Ports) -> None:
    wider = CONFIGS.add(surface(horizon=2 * HORIZON))
    ports.append(made(), decision(wider, f"{UNIT}-2", EPOCH0))
    late = EPOCH0 + 1.5 * HORIZON
    ports.append(feedback(ID, late, slot=0), feedback(f"{UNIT}-2", late, slot=0), at=late)
    report = ports.shard().step()
    assert report.outcomes == {("home", "joined"): 3, ("home", "after_horizon"): 1}
    assert len(report.learned) == 2


def test_early_feedback_is_bounded_for_a_decision_and_in_all(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.join, "EARLY_DECISIONS", 2)
    many = [feedback(ID, EPOCH0, feedback_id=str(i)) for i in range(EARLY_EACH + 1)]
    ports.append(*many, feedback("second", EPOCH0), feedback("third", EPOCH0))
    assert run(ports) == {EARLY_EACH: "early_full", EARLY_EACH + 2: "early_full"}


def test_what_a_decision_hears_is_bounded(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.verdicts, "HEARD_EACH", 2)
    said = [feedback(ID, EPOCH0, feedback_id=name, slot=0) for name in "aab"]
    again = feedback(ID, EPOCH0, feedback_id="a", slot=0, value=5.0)
    ports.append(made(), *said, feedback(ID, EPOCH0, feedback_id="c"), again, made())
    assert run(ports) == {4: "too_many"}


def test_rows_are_given_back_and_their_decisions_unknown_again(ports: Ports) -> None:
    shard = ports.shard()
    ports.append(made())
    shard.step()
    ports.append(feedback(ID, EPOCH0 + CORRECTABLE, slot=0), at=EPOCH0 + CORRECTABLE + 1)
    assert shard.step().dead == {"too_late": 1}
    ports.append(feedback(ID, EPOCH0 + 2 * CORRECTABLE, slot=0), at=EPOCH0 + 2 * CORRECTABLE + 1)
    assert shard.step().outcomes == {("", "early"): 1}
    assert ports.checkpoints.load().evicted == 1
    ports.append(b"{}", at=EPOCH0 + 2 * CORRECTABLE + 86_402)
    assert shard.step().dead == {"no_decision": 1, "undecodable": 1}
    ports.append(b"{}", at=EPOCH0 + 2 * CORRECTABLE + 3 * 86_400)
    shard.step()
    assert ports.checkpoints.load().evicted == 2
    assert not ports.checkpoints.load().ids


def test_an_idle_partition_gives_rows_back_and_learns_nothing(ports: Ports) -> None:
    shard = ports.shard()
    ports.append(made(), feedback(ID, EPOCH0, slot=0))
    shard.step()
    before = shard.statistics()
    assert shard.step(EPOCH0 + 2 * CORRECTABLE + 1).records == 0
    assert ports.checkpoints.load().evicted == 1
    after = shard.statistics()
    assert (after.offset, after.clock, after.examples) == (before.offset, before.clock, before.examples)


def test_an_id_may_come_back_once_its_row_is_gone(ports: Ports) -> None:
    later = EPOCH0 + 2 * CORRECTABLE + 1
    ports.append(made())
    ports.append(decision(PLAIN, ID, later), feedback(ID, later, slot=0), at=later)
    assert run(ports) == {}
    assert examples(ports) == 6


def test_two_ids_of_one_hash_are_told_apart(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.rows, "id_hash", lambda key: 7)
    sevens = lambda text, ints, records, out: (out.fill(7), np.full(len(records), 7, np.uint64))[1]  # noqa: E731
    monkeypatch.setattr(streaming.plain.batch, "id_hashes", sevens)
    names = [f"{UNIT}-{i}" for i in range(4)]
    ports.append(*[decision(PLAIN, name, EPOCH0) for name in names])
    ports.append(*[feedback(name, EPOCH0, slot=0) for name in names], decision(PLAIN, names[0], EPOCH0))
    shard = ports.shard(read_limit=1, hot_limit=0)
    drain(shard)
    assert reasons(ports.letters.read()) == {}
    assert shard.statistics().examples.popitem()[1] == 12


def test_a_wait_surface_learns_at_its_horizon(ports: Ports) -> None:
    wait = CONFIGS.add(surface(silence="wait"))
    shard = ports.shard(hot_limit=0)
    ports.append(decision(wait, ID, EPOCH0), feedback(ID, EPOCH0, slot=0))
    assert shard.step().learned == {}
    shard = ports.shard(hot_limit=0)
    assert shard.step(EPOCH0 + 10 * HORIZON).learned == {}, "a service's clock must not teach"
    ports.append(b"{}", at=EPOCH0 + HORIZON + 1)
    assert list(shard.step().learned.values()) == [3]


def test_feedback_without_an_id_is_named_by_its_record(ports: Ports) -> None:
    said = encode(feedback(ID, EPOCH0, slot=0, value=2.0))
    ports.append(made(), said, said, feedback(ID, EPOCH0, slot=0, value=3.0))
    report = ports.shard().step()
    assert report.outcomes == {("home", "joined"): 3, ("home", "duplicate"): 1}
