"""Rules, diversity and segments of a surface document: every mistake is named by line and path, what is right is kept."""

import msgspec
import pytest

from policies.surface import Exploration, Frequency, Quota, Rule, Seen, Segment
from streaming.configuration import ConfigInvalid, canonical, parse
from streaming.surfaces import from_json

RIGHT = """surface: home
slots: 5
features:
  context: {device: {type: category, values: [ios, web]}, hour: {type: number, min: 0, max: 23}}
  items:
    price: {type: number, min: 0, max: 10}
    genre: {type: category, values: [jazz, rock]}
    look: {type: vector, size: 4}
rules:
  - {pin: i1, slot: 0}
  - {exclude: [x, y]}
  - {available: true}
  - {filter: "price < 10 and genre in ['jazz','rock']"}
  - {seen: {window: 24h}}
  - {frequency: {cap: 3, per: item, window: 1d}}
  - {cap: 3, by: creator}
  - {quota: {min: 1, by: genre, value: jazz}}
  - {spacing: 2, by: creator, name: apart}
diversity: {mmr: 0.3, over: look, coverage: 0.2, by: genre}
exploration:
  max_share: 0.1
  segments:
    - {when: "device == 'ios'", max_share: 0.05}
"""


def test_what_is_right_is_kept_through_every_form() -> None:
    [surface] = parse(RIGHT, "home.yaml")
    assert surface.rules == [
        Rule(pin="i1", slot=0),
        Rule(exclude=["x", "y"]),
        Rule(available=True),
        Rule(filter="price < 10 and genre in ['jazz','rock']"),
        Rule(seen=Seen("24h")),
        Rule(frequency=Frequency(3, "1d", "item")),
        Rule(cap=3, by="creator"),
        Rule(quota=Quota(1, "genre", "jazz")),
        Rule(spacing=2, by="creator", name="apart"),
    ]
    assert surface.exploration == Exploration(0.1, [Segment("device == 'ios'", 0.05)])

    assert from_json(msgspec.json.encode(canonical(surface))) == surface


def test_what_is_lent_is_by_segment_and_no_part_of_a_version_that_lends_nothing() -> None:
    """So versions from before there was such a thing are named as they were."""
    lent = RIGHT.replace("max_share: 0.1\n", "max_share: 0.1\n  lend_up_to: 0.4\n")
    [surface] = parse(lent, "home.yaml")
    assert surface.exploration.lending == {"": (0.1, 0.4)}  # devices with a cap of their own neither lend nor borrow
    assert from_json(msgspec.json.encode(canonical(surface))) == surface
    [surface] = parse(lent.replace("max_share: 0.05", "max_share: 0.05, lend_up_to: 0.06"), "home.yaml")
    assert surface.exploration.lending == {"": (0.1, 0.4), "device == 'ios'": (0.05, 0.06)}
    [plain] = parse(RIGHT, "home.yaml")
    assert plain.exploration.lending == {}
    assert b"lend" not in msgspec.json.encode(canonical(plain))


@pytest.mark.parametrize(
    ("was", "now", "line", "path", "message"),
    [
        ("{cap: 3, by: creator}", "{cap: 3}", 16, "rules[6]", "by is missing"),
        ("{cap: 3, by: creator}", "{cap: 0, by: creator}", 16, "rules[6].cap", "cap is 0"),
        ("{cap: 3, by: creator}", "{cap: three, by: creator}", 16, "rules[6].cap", "expected an integer"),
        ("{cap: 3, by: creator}", "{cap: 3, by: look}", 16, "rules[6].by", "look is a vector"),
        ("{cap: 3, by: creator}", "{cap: 3, spacing: 2, by: creator}", 16, "rules[6]", "cap and spacing in one rule"),
        ("{cap: 3, by: creator}", "{capp: 3, by: creator}", 16, "rules[6].capp", "unknown key; did you mean 'cap'?"),
        ("{cap: 3, by: creator}", "{by: creator}", 16, "rules[6]", "a rule that says nothing"),
        (
            "{cap: 3, by: creator}",
            "{cap: 3, by: creator, slot: 1}",
            16,
            "rules[6].slot",
            "slot says nothing beside cap",
        ),
        ("{cap: 3, by: creator}", "{cap: 3, by: creator, name: 'a b'}", 16, "rules[6].name", "the name 'a b'"),
        ("{cap: 3, by: creator}", "{cap: 3, by: creator, name: apart}", 18, "rules[8].name", "two rules are named"),
        ("{cap: 3, by: creator}", "{pin: i2, slot: 0}", 16, "rules[6].slot", "0 is pinned twice"),
        ("{pin: i1, slot: 0}", "{pin: i1, slot: 5}", 10, "rules[0].slot", "slot 5 of 5"),
        ("{pin: i1, slot: 0}", "{pin: i1}", 10, "rules[0]", "slot is missing"),
        ("{exclude: [x, y]}", "{exclude: []}", 11, "rules[1].exclude", "no item"),
        ("{available: true}", "{available: false}", 12, "rules[2].available", "would show nothing"),
        ("price < 10", "price < ", 13, "rules[3].filter", "Not a condition at column"),
        ("price < 10", "print(1)", 13, "rules[3].filter", "got 'print(1)' at column 1"),
        ("price < 10", "price < 'x'", 13, "rules[3].filter", "price is a number"),
        ("price < 10", "genre < 'x'", 13, "rules[3].filter", "genre is a category, which has no order"),
        ("'jazz','rock'", "'jaz'", 13, "rules[3].filter", "genre has no value 'jaz'; did you mean 'jazz'?"),
        ("price < 10", "look == 1", 13, "rules[3].filter", "look is a vector"),
        ("window: 24h", "window: soon", 14, "rules[4].seen.window", "got 'soon'"),
        ("window: 24h", "window: 90d", 14, "rules[4].seen.window", "a window of 90d"),
        ("{window: 24h}", "{}", 14, "rules[4].seen", "window is missing"),
        ("per: item", "per: day", 15, "rules[5].frequency.per", "expected one of"),
        ("cap: 3, per", "cap: 0, per", 15, "rules[5].frequency.cap", "cap is 0"),
        ("min: 1,", "min: 6,", 17, "rules[7].quota.min", "min is 6 of 5 slots"),
        ("value: jazz", "value: pop", 17, "rules[7].quota.value", "genre has no value 'pop'"),
        ("{spacing: 2,", "{spacing: 1,", 18, "rules[8].spacing", "spacing is 1"),
        ("mmr: 0.3", "mmr: -1", 19, "diversity.mmr", "mmr is -1"),
        ("over: look", "over: genre", 19, "diversity.over", "no vector feature 'genre'"),
        (", by: genre}\nexp", "}\nexp", 19, "diversity.coverage", "by is missing"),
        ("device == 'ios'", "country == 'de'", 23, "exploration.segments[0].when", "no context feature 'country'"),
        ("device == 'ios'", "device == 'android'", 23, "exploration.segments[0].when", "has no value 'android'"),
        ("max_share: 0.05", "max_share: 0", 23, "exploration.segments[0].max_share", "max_share is 0"),
        (
            "max_share: 0.05",
            "max_share: 0.05, lend_up_to: 0.05",
            23,
            "exploration.segments[0].lend_up_to",
            "above max_share",
        ),
        (
            "max_share: 0.05",
            "max_share: 0.05, lend_up_to: a lot",
            23,
            "exploration.segments[0].lend_up_to",
            "got 'a lot'",
        ),
        ("max_share: 0.1", "max_share: 0.1\n  lend_up_to: 1.5", 22, "exploration.lend_up_to", "lend_up_to is 1.5"),
    ],
)
def test_a_mistake_is_named_by_line_and_path(was: str, now: str, line: int, path: str, message: str) -> None:
    assert RIGHT.count(was) == 1
    with pytest.raises(ConfigInvalid) as caught:
        parse(RIGHT.replace(was, now), "home.yaml")
    found = [(one.line, one.path) for one in caught.value.mistakes if message in str(one)]
    assert found == [(line, path)], str(caught.value)


def test_policies_explore_no_more_than_the_smallest_segment_allows() -> None:
    text = RIGHT + "policies: {p: {algorithm: uniform, floor: 0.08}}\n"
    with pytest.raises(ConfigInvalid, match=r"0\.08 explores more than exploration\.max_share 0\.05"):
        parse(text, "home.yaml")
