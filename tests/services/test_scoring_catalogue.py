"""Decisions over a catalogue too large to be drawn from whole: shortlisted, recorded, recomputed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scoring_setup import decisions, in_memory, surface

from policies import bundle as bundling
from policies.errors import Rejected
from policies.shortlist import EACH, RANDOM, WHOLE, sample
from policies.slate import uniforms
from policies.surface import Logging, PolicySpec, Rule
from services.keys import KEY_BYTES
from services.scoring.catalogue import Catalogue
from services.scoring.decide import inputs_of
from services.scoring.query import Query
from services.scoring.service import Scoring
from services.scoring.wire import DecisionAnswer, Item, encode
from streaming.events import Decision, Shortlisted
from streaming.ports import Versioned
from streaming.replay import recompute

ITEMS = 4_000


def put(catalogue: Catalogue, items: list[Item]) -> None:
    version = catalogue.version
    entries = [Versioned(version + i, "item", item.id, encode(item)) for i, item in enumerate(items, 1)]
    catalogue.apply(catalogue.prepare(entries), 0.0)


def started(folder: Path, *rules: Rule, **more: Any) -> Scoring:
    scoring = in_memory(folder, surface(slots=4, rules=list(rules), **{"logging": Logging(1.0), **more}))
    rng = np.random.default_rng(2)
    put(
        scoring.catalogue,
        [
            Item(
                id=f"i{j}",
                features={"price": float(rng.uniform(0, 10)), "genre": "jazz" if j % 2 else "rock"},
                attributes={"shelf": "small" if j < 100 else "large"},
            )
            for j in range(ITEMS)
        ],
    )
    return scoring


def ask(scoring: Scoring, unit: str = "u", **more: Any) -> DecisionAnswer:
    request = {"surface": "home", "unit": unit, "context": {"device": "ios", "hour": 3}, **more}
    return msgspec.json.decode(scoring.decide(msgspec.json.encode(request)), type=DecisionAnswer)


def last(folder: Path) -> Decision:
    return decisions(folder)[-1]


def test_the_record_says_what_was_kept_what_was_drawn_and_with_which_chance(tmp_path: Path) -> None:
    scoring = started(tmp_path)
    answer = ask(scoring)
    record = last(tmp_path)
    short = record.shortlist
    assert isinstance(short, Shortlisted)
    assert (short.eligible, short.drawn) == (ITEMS, RANDOM)
    assert EACH <= short.kept <= WHOLE
    assert len(record.candidates) == len(set(record.candidates)) == short.kept + short.drawn
    assert short.inclusions == answer.inclusions
    before = 0
    for row, chance in zip(record.rows, short.inclusions, strict=True):
        assert chance == (1.0 if row < short.kept else (RANDOM - before) / (ITEMS - short.kept - before))
        before += row >= short.kept


def test_the_random_part_is_a_function_of_key_and_id_and_the_draw_is_recomputed(tmp_path: Path) -> None:
    scoring = started(tmp_path)
    for i in range(3):
        ask(scoring, decision_id=f"mine-{i}")
        record = last(tmp_path)
        assert record.shortlist is not None
        kept = set(record.candidates[: record.shortlist.kept])
        others = [f"i{j}" for j in range(ITEMS) if f"i{j}" not in kept]
        chosen = sample(uniforms(scoring.keys.server, f"mine-{i}", "shortlist", RANDOM), len(others))
        assert record.candidates[record.shortlist.kept :] == [others[j] for j in chosen.tolist()]
        slate = recompute(record, bundling.read(record.bundle, scoring._follower._bundles.get))
        assert slate.items.tolist() == record.rows
        assert slate.propensities.tolist() == record.propensities


def test_the_same_id_asked_twice_is_answered_bit_for_bit(tmp_path: Path) -> None:
    answers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for secret in ("server.key", "salt.default"):
            (tmp_path / name / secret).write_bytes(b"k" * KEY_BYTES)
        answers.append(ask(started(tmp_path / name), decision_id="mine"))
    assert answers[0].slate == answers[1].slate
    assert answers[0].inclusions == answers[1].inclusions


def test_few_eligible_items_are_drawn_from_whole(tmp_path: Path) -> None:
    scoring = started(tmp_path)
    answer = ask(scoring, where={"shelf": "small"})
    assert answer.inclusions is None
    assert last(tmp_path).shortlist is None
    assert len(last(tmp_path).candidates) == 100


def test_an_unknown_filter_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    scoring = started(tmp_path)
    with pytest.raises(Rejected) as refused:
        ask(scoring, where={"colour": "red"})
    assert (refused.value.code, refused.value.at) == ("no_candidates", "$.candidates")
    assert not decisions(tmp_path)


def test_what_is_excluded_never_is_a_candidate_and_what_is_pinned_always(tmp_path: Path) -> None:
    excluded, gone = [f"i{j}" for j in range(1_000)], [f"i{j}" for j in range(1_000, 1_900)]
    scoring = started(
        tmp_path, Rule(exclude=gone), Rule(pin="i3998", slot=2), Rule(filter="genre == 'jazz' or price < 10.5")
    )
    answer = ask(scoring, exclude=excluded, pins={"0": "i3999"}, explain=True)
    record = last(tmp_path)
    assert not {*excluded, *gone} & set(record.candidates)
    assert record.shortlist is not None
    assert record.shortlist.eligible == ITEMS - 1_900
    assert {"i3998", "i3999"} <= set(record.candidates[: record.shortlist.kept])
    assert [answer.slate[0].id, answer.slate[2].id] == ["i3999", "i3998"]
    assert answer.inclusions is not None
    assert answer.inclusions[0] == answer.inclusions[2] == 1.0
    assert answer.rules is not None
    assert set(answer.rules.removed["exclude"]) == set(gone)
    with pytest.raises(Rejected) as refused:
        ask(scoring, exclude=excluded, pins={"0": "i0"})
    assert refused.value.code == "unknown_candidate"


def test_the_items_scored_best_are_kept(tmp_path: Path) -> None:
    """Against every item scored by the policy's own graph, in the first of its draws."""
    scoring = started(tmp_path)
    ask(scoring)
    record = last(tmp_path)
    home = scoring.live.surfaces["home"]
    assert home.policy is not None
    assert record.shortlist is not None
    encoder = home.reader.encoder
    items, context = scoring.catalogue.matrix(encoder.schema)[:ITEMS], encoder.context({"device": "ios", "hour": 3})
    scores = home.policy.scores(inputs_of(home.policy, Query((), items, context, 4, False, None, None)))[:, 0]
    top = {f"i{j}" for j in np.argsort(-scores)[: EACH // 2].tolist()}  # half: the rest may trade places by rounding
    assert top <= set(record.candidates[: record.shortlist.kept])


@pytest.mark.parametrize("algorithm", ["hierarchical_thompson", "uniform"])
def test_policies_whose_scores_are_not_affine_draw_from_a_uniform_sample(tmp_path: Path, algorithm: str) -> None:
    spec = PolicySpec(algorithm, objective=None if algorithm == "uniform" else "click")
    scoring = started(tmp_path, policies={"home-ts": spec}, logging=Logging(0.0))
    answer = ask(scoring)
    short = last(tmp_path).shortlist
    assert short is not None
    assert (short.kept, short.drawn) == (0, WHOLE)
    assert answer.inclusions == [(WHOLE - j) / (ITEMS - j) for j in range(4)]


def test_what_is_eligible_follows_every_change() -> None:
    catalogue = Catalogue()
    put(catalogue, [Item(id="a"), Item(id="b", expires_at=5.0)])
    assert catalogue.eligible({}).tolist() == [0, 1]
    put(catalogue, [Item(id="c")])
    assert catalogue.eligible({}).tolist() == [0, 1, 2]
    catalogue.expire(9.0)
    assert catalogue.eligible({}).tolist() == [0, 2]
    put(catalogue, [Item(id="a", available=False)])
    assert catalogue.eligible({}).tolist() == [2]
