"""Configuration: every mistake named by file, line and path, a hash that means the content, versions that never change."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.errors import Rejected
from policies.registry import ALGORITHMS
from policies.surface import Hashed, Objective, PolicySpec, Surface, content_hash
from streaming.adapters.memory import MemoryState
from streaming.configuration import (
    ConfigInvalid,
    Configs,
    Mistake,
    advice,
    canonical,
    compile_surface,
    from_json,
    load_folder,
    parse,
    publish_surface,
)

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no failure
HOME = """\
surface: home
slots: 3
horizon: 30m
correctable: 24h
features:
  context:
    device: {type: category, values: [ios, no, 2024-01-01]}
    hour: {type: number, min: 0, max: 23}
  items:
    price: {type: number, min: 0, max: 1e3}
    embedding: {type: vector, size: 2}
  cross:
    - [device, price]
objectives:
  watch: {kind: play, aggregate: sum, scale: 0.1, range: [0, 60]}
  hide: {kind: hide, aggregate: max, better: lower, range: [0, 1]}
kinds: [click]
policies:
  home-ts:
    algorithm: linear_thompson
    objective: watch
    half_life: 7d
    floor: 0.02
  both:
    algorithm: linear_thompson
    objectives: {watch: 1.0, hide: 0.3}
live: home-ts
fallback: popular
exploration: {max_share: 0.5}
logging: {sample: 0.1}
"""


def home(old: str = "", new: str = "") -> str:
    assert old in HOME
    return HOME.replace(old, new, 1)


def mistakes(text: str) -> list[Mistake]:
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, "home.yaml")
    return caught.value.mistakes


def surface(text: str = HOME) -> Surface:
    [found] = parse(text, "home.yaml")
    return found


def test_a_document_is_read_as_written() -> None:
    found = surface()
    assert found.surface == "home"
    assert found.slots == 3
    assert found.features.context["device"].values == ["ios", "no", "2024-01-01"]  # type: ignore[union-attr]
    assert found.features.items["price"].max == 1000.0  # type: ignore[union-attr]
    assert found.features.cross == [("device", "price")]
    assert found.objectives["watch"] == Objective("play", "sum", 0.1, range=(0.0, 60.0))
    assert found.policies["home-ts"] == PolicySpec(
        "linear_thompson", objective="watch", options={"half_life": "7d", "floor": 0.02}
    )
    assert found.policies["both"].objectives == {"watch": 1.0, "hide": 0.3}
    assert (found.live, found.fallback, found.exploration.max_share, found.logging.sample) == (
        "home-ts",
        "popular",
        0.5,
        0.1,
    )
    assert found.feedback_kinds == {"play", "hide", "click", "shown"}


MISTAKES = [
    # (what was written, what is written now, line, path, message)
    ("surface: home", "surface: ho/me", 1, "surface", "the name 'ho/me'"),
    ("surface: home", "surface: 7", 1, "surface", "expected text, got 7; write '7' in quotes"),
    ("surface: home", "surfaces: home", 1, "surfaces", "unknown key; did you mean 'surface'?"),
    ("slots: 3", "slots: ten", 2, "slots", "expected an integer, got 'ten'"),
    ("slots: 3", "slots: 3.5", 2, "slots", "expected an integer, got 3.5"),
    ("slots: 3", "slots: true", 2, "slots", "expected an integer, got true"),
    ("slots: 3", "slots:", 2, "slots", "expected an integer, got nothing"),
    ("slots: 3", "slots: 0", 2, "slots", "0 slots"),
    ("slots: 3", "slots: 257", 2, "slots", "257 slots"),
    ("slots: 3", "slot: 3", 2, "slot", "unknown key; did you mean 'slots'?"),
    ("slots: 3", "slots: 3\nslots: 4", 3, "slots", "written twice, first on line 2"),
    ("horizon: 30m", "horizon: half an hour", 3, "horizon", "expected a duration such as 30m"),
    ("horizon: 30m", "horizon: [30m]", 3, "horizon", "expected a duration such as 30m"),
    ("horizon: 30m", "horizon: 0s", 3, "horizon", "above 0"),
    ("horizon: 30m", "horizon: -5", 3, "horizon", "above 0"),
    ("horizon: 30m", "horizon: .nan", 3, "horizon", "expected a duration"),
    ("horizon: 30m", "horizon: .inf", 3, "horizon", "expected a duration"),
    ("correctable: 24h", "correctable: 29m", 4, "correctable", "29m is shorter than the horizon of 30m"),
    ("type: category", "type: categories", 7, "features.context.device.type", "expected one of number, category, bool"),
    ("type: category, ", "", 7, "features.context.device", "needs a type: number, category, bool, vector"),
    ("values: [ios, no, 2024-01-01]", "value: [ios]", 7, "features.context.device.value", "unknown key"),
    ("values: [ios, no, 2024-01-01]", "value: [ios]", 7, "features.context.device", "values is missing"),
    ("values: [ios, no, 2024-01-01]", "values: ios", 7, "features.context.device.values", "expected a list of text"),
    ("[ios, no, 2024-01-01]", "[ios, 5]", 7, "features.context.device.values[1]", "write '5' in quotes"),
    ("[ios, no, 2024-01-01]", "[]", 7, "features.context.device.values", "no values"),
    ("[ios, no, 2024-01-01]", "[ios, ios]", 7, "features.context.device.values", "'ios' is listed 2 times"),
    ("min: 0, max: 23", "min: 23, max: 23", 8, "features.context.hour.max", "the range from 23 to 23 is empty"),
    ("min: 0, max: 23", "min: none, max: 23", 8, "features.context.hour.min", "expected a number, got 'none'"),
    ("min: 0, max: 23", "min: 0, max: .inf", 8, "features.context.hour.max", "expected a number, got inf"),
    ("    hour:", "    the hour:", 8, "features.context.the hour", "the name 'the hour'"),
    ("size: 2", "size: 0", 11, "features.items.embedding.size", "0 numbers"),
    ("size: 2", "size: 2, clip: 0", 11, "features.items.embedding.clip", "clip is 0"),
    ("size: 2", "size: 5000", 11, "features.items.embedding.size", "5000 numbers"),
    ("size: 2", "size: 4096", 5, "features", "4106 columns, most of them (4096) by items embedding"),
    (
        "[device, price]",
        "[device, prize]",
        13,
        "features.cross[0]",
        "no feature 'prize' in items; did you mean 'price'?",
    ),
    ("[device, price]", "[price, device]", 13, "features.cross[0]", "no feature 'price' in context"),
    ("[device, price]", "[device]", 13, "features.cross[0]", "expected a list of 2: text, text, got 1 of them"),
    (
        "[device, price]",
        "[hour, price]\n    - [hour, price]",
        14,
        "features.cross[1]",
        "[hour, price] is crossed twice",
    ),
    ("kind: play, ", "", 15, "objectives.watch", "kind is missing"),
    ("kind: play", "kind: shown", 15, "objectives.watch.kind", "reserved"),
    ("aggregate: sum", "aggregate: total", 15, "objectives.watch.aggregate", "expected one of first, last, max, mean"),
    ("scale: 0.1", "scale: 0", 15, "objectives.watch.scale", "scale is 0"),
    ("scale: 0.1", "scale: -1", 15, "objectives.watch.scale", "scale is -1"),
    ("range: [0, 60]", "range: [60, 0]", 15, "objectives.watch.range", "the range from 60 to 0 is empty"),
    ("range: [0, 60]", "range: [0, 60, 70]", 15, "objectives.watch.range", "expected a list of 2: a number, a number"),
    ("range: [0, 60]", "range: [0, x]", 15, "objectives.watch.range[1]", "expected a number, got 'x'"),
    ("range: [0, 60]", "range: [1, 60]", 15, "objectives.watch.range", "default 0 is outside the range from 1 to 60"),
    (
        "range: [0, 60]",
        "range: [0, 60], default: -1",
        15,
        "objectives.watch.default",
        "default -1 is outside the range",
    ),
    ("better: lower", "better: smaller", 16, "objectives.hide.better", "expected one of higher, lower, got 'smaller'"),
    ("kinds: [click]", "kinds: [click, shown]", 17, "kinds[1]", "reserved"),
    ("kinds: [click]", "kinds: click", 17, "kinds", "expected a list of text, got 'click'"),
    ("  home-ts:\n", "  uniform:\n", 19, "policies.uniform", "belongs to the policy every surface has"),
    ("    algorithm: linear_thompson\n", "", 19, "policies.home-ts", "algorithm is missing"),
    (
        "algorithm: linear_thompson",
        "algorithm: linear_thomson",
        20,
        "policies.home-ts.algorithm",
        "did you mean 'linear_t",
    ),
    ("algorithm: linear_thompson", "algorithm: [a]", 20, "policies.home-ts.algorithm", "expected text, got a list"),
    ("objective: watch", "objective: watches", 21, "policies.home-ts.objective", "did you mean 'watch'?"),
    ("objective: watch", "objectives: {}", 21, "policies.home-ts.objectives", "no objective has a weight"),
    ("objective: watch", "objectives: {watch: 1, buy: 2}", 21, "policies.home-ts.objectives.buy", "no objective 'buy'"),
    (
        "objective: watch",
        "objectives: {watch: a}",
        21,
        "policies.home-ts.objectives.watch",
        "expected a number, got 'a'",
    ),
    ("half_life: 7d", "half_life: 7 days", 22, "policies.home-ts.half_life", "Expected a duration such as"),
    ("half_life: 7d", "half_life: [7d]", 22, "policies.home-ts.half_life", "expected a duration such as"),
    ("half_life: 7d", "halflife: 7d", 22, "policies.home-ts.halflife", "unknown key; did you mean 'half_life'?"),
    ("half_life: 7d", "options: {halflife: 7d}", 22, "policies.home-ts.options.halflife", "did you mean 'half_life'?"),
    ("half_life: 7d", "options: 7d", 22, "policies.home-ts.options", "expected a mapping, got '7d'"),
    ("half_life: 7d", "draws: 0", 22, "policies.home-ts.draws", "expected an integer from 1 to 4096, got 0"),
    ("half_life: 7d", "temperature: 0", 22, "policies.home-ts.temperature", "expected a number above 0, got 0"),
    (
        "half_life: 7d",
        "head: dice",
        22,
        "policies.home-ts.head",
        "expected one of draws, inverse_gap, one_draw, softmax, got 'dice'",
    ),
    ("floor: 0.02", "floor: 1.5", 23, "policies.home-ts.floor", "expected a number from 0 to 1, got 1.5"),
    ("floor: 0.02", "floor: 0.51", 23, "policies.home-ts.floor", "explores more than exploration.max_share 0.5 allows"),
    (
        "{watch: 1.0, hide: 0.3}",
        "{watch: 0}\n    objective: hide",
        26,
        "policies.both.objectives",
        "both objective and",
    ),
    ("live: home-ts", "live: home", 27, "live", "no policy 'home'"),
    ("slots: 3", "history_hashed: {newest: 40, rows: 10}", 2, "history_hashed", "are all of 50 interactions"),
    ("slots: 3", "history_hashed: {newest: -1}", 2, "history_hashed.newest", "-1 interactions"),
    ("slots: 3", "history_hashed: {newest: 8, rows: 0}", 2, "history_hashed.rows", "0 rows"),
    ("fallback: popular", "fallback: home-ts", 28, "fallback", "expected one of given_order, popular, uniform"),
    ("max_share: 0.5", "max_share: 0", 29, "exploration.max_share", "max_share is 0"),
    ("max_share: 0.5", "max_share: 1.5", 29, "exploration.max_share", "max_share is 1.5"),
    ("exploration: {max_share: 0.5}", "exploration: 0.5", 29, "exploration", "expected a mapping, got 0.5"),
    ("sample: 0.1", "sample: 2", 30, "logging.sample", "sample is 2"),
    ("sample: 0.1}", "sample: 0.1}\nlearn_pins: yes", 31, "learn_pins", "expected true or false, got 'yes'"),
    ("sample: 0.1}", "sample: 0.1}\nruless: []", 31, "ruless", "unknown key; did you mean 'rules'?"),
    ("sample: 0.1}", "sample: !!python/name:os.system ''}", 30, "logging.sample", "the tag !!python/name:os.system"),
    ("sample: 0.1}", "sample: !!int x}", 30, "logging.sample", "'x' does not fit its tag"),
    ("sample: 0.1}", "[1]: 0.1}", 30, "logging", "a key that is not text"),
    ("sample: 0.1}", "sample: 0.1", 31, "document", "not YAML"),
    ("sample: 0.1}", "sample: *nothing}", 30, "document", "not YAML: found undefined alias"),
    ("sample: 0.1}", "sample: \x07}", 30, "document", "a character that YAML does not allow"),
]


@pytest.mark.parametrize(("old", "new", "line", "path", "message"), MISTAKES, ids=[row[1][:40] for row in MISTAKES])
def test_a_mistake_is_named_by_line_and_path(old: str, new: str, line: int, path: str, message: str) -> None:
    found = mistakes(home(old, new))
    assert any((one.line, one.path) == (line, path) and message in one.message for one in found), "\n".join(
        map(str, found)
    )
    assert all(one.file == "home.yaml" for one in found)
    assert len(found) <= 3, "a mistake should not be told many times"


def test_all_mistakes_are_told_at_once() -> None:
    text = HOME.replace("slots: 3", "slots: ten").replace("max: 23", "max: x").replace("live: home-ts", "live: nobody")
    text += "---\nsurface: other\nslots: -1\n"
    assert [(one.line, one.path) for one in mistakes(text)] == [
        (2, "slots"),
        (8, "features.context.hour.max"),
        (27, "live"),
        (33, "slots"),
    ]


def test_a_mistake_reads_like_a_compilers() -> None:
    [one] = mistakes(home("slots: 3", "slots: ten"))
    assert str(one) == "home.yaml:2: slots: expected an integer, got 'ten'"
    [one] = mistakes(home("live: home-ts", "live: home-tx"))
    assert str(one) == (
        "home.yaml:27: live: no policy 'home-tx'; did you mean 'home-ts'?; "
        "expected one of home-ts, both, given_order, popular, uniform"
    )


def test_a_broken_part_does_not_make_others_wrong() -> None:
    """References to a feature or an objective that is itself wrong are not mistakes of their own."""
    [one] = mistakes(home("min: 0, max: 1e3", "min: 0, max: x"))
    assert one.path == "features.items.price.max"
    [one] = mistakes(home("aggregate: sum", "aggregate: total"))
    assert one.path == "objectives.watch.aggregate"


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "---\n---\n"])
def test_empty_documents_are_skipped(text: str) -> None:
    assert parse(text, "empty.yaml") == []
    assert [one.surface for one in parse(f"{text}\n---\n{HOME}---\n", "home.yaml")] == ["home"]


@pytest.mark.parametrize("text", ["5", "[]", "home"])
def test_a_document_is_a_mapping(text: str) -> None:
    [one] = mistakes(text)
    assert "expected a mapping" in one.message


def test_one_surface_is_defined_once() -> None:
    [one] = mistakes(f"{HOME}---\n{HOME}")
    assert (one.line, one.path) == (32, "surface")
    assert "line 1" in one.message


def test_a_document_that_folds_into_itself_ends() -> None:
    layers = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 12))
    assert any("over" in one.message for one in mistakes(f"x0: &x0 [1]\n{layers}\n"))
    assert any("levels deep" in one.message for one in mistakes("surface: &a [*a]\n"))
    assert any("levels deep" in one.message for one in mistakes("[" * 100_000))


SURFACE_BYTES = msgspec.json.encode(surface())


@STEADY
@given(st.data())
def test_no_text_is_an_accident(data: st.DataObject) -> None:
    """A broken document is refused by its mistakes, never by a traceback."""
    start = data.draw(st.integers(0, len(HOME)))
    end = data.draw(st.integers(start, min(len(HOME), start + 30)))
    put = data.draw(
        st.one_of(st.text(max_size=8), st.sampled_from(["{", "[", "- ", ": ", "\n", "&a ", "*a", "!!x ", "~"]))
    )
    text = HOME[:start] + put + HOME[end:]
    assert all(one.message and 1 <= one.line <= text.count("\n") + 2 for one in problems(text))


def problems(text: str) -> list[Mistake]:
    try:
        parse(text, "home.yaml")
    except ConfigInvalid as error:
        return error.mistakes
    return []


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@STEADY
@given(st.data())
def test_no_json_is_an_accident(data: st.DataObject) -> None:
    """Any value in any place of a document: accepted in full, or refused by path."""
    document = json.loads(SURFACE_BYTES)
    inside, here = document, document
    while isinstance(here, dict) and here and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(here)))
        inside, here = here, here[key]
    if isinstance(inside, dict) and inside:
        inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(PLAIN)
    outcome = verdict(msgspec.json.encode(document))
    assert outcome.startswith("$") if isinstance(outcome, str) else compile_surface(outcome).surface == outcome


def verdict(data: bytes) -> Surface | str:
    try:
        return from_json(data)
    except ConfigInvalid as error:
        return error.at


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"surface": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_undecodable(data: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        from_json(data)
    assert (caught.value.status, caught.value.code) == (400, "undecodable")


def test_json_and_yaml_are_one_language() -> None:
    flat = json.dumps(
        {"surface": "s", "objectives": {"w": {"kind": "play"}}, "policies": {"p": {"algorithm": "uniform"}}}
    )
    nested = json.dumps(json.loads(msgspec.json.encode(surface(flat))))
    assert from_json(flat.encode()) == surface(flat) == from_json(nested.encode())
    assert from_json(SURFACE_BYTES) == surface()


def test_the_order_of_keys_is_no_content() -> None:
    swapped = HOME.replace("    device: {type: category, values: [ios, no, 2024-01-01]}\n", "").replace(
        "max: 23}\n", "max: 23}\n    device: {type: category, values: [ios, no, 2024-01-01]}\n"
    )
    assert swapped != HOME
    assert compile_surface(surface(swapped)).hash == compile_surface(surface()).hash


def test_the_first_objective_as_written_is_the_default() -> None:
    for names in (("b", "a"), ("a", "b")):
        objectives = {name: Objective(name) for name in names}
        made = canonical(Surface("s", objectives=objectives, policies={"p": PolicySpec("linear_thompson")}))
        assert made.policies["p"].objective == names[0]
        assert made.objective_names == ("a", "b")
        assert canonical(made) == made


def test_a_type_that_is_no_word_is_a_mistake_like_any_other() -> None:
    document = msgspec.to_builtins(surface())
    document["features"]["context"]["device"]["type"] = []
    with pytest.raises(ConfigInvalid, match="expected one of"):
        from_json(msgspec.json.encode(document))


def test_the_hash_is_this_for_ever() -> None:
    """Logs name their configuration by it. A field added to `Surface` moves it: new versions of all, with the sums they had."""
    assert compile_surface(surface()).hash == "1aef8a7f8489ac1f"
    assert content_hash(surface()) == compile_surface(surface()).hash


def key(found: Surface, policy: str = "home-ts") -> str:
    return compile_surface(found).policies[policy].key


def test_a_learner_key_names_tenant_surface_and_policy() -> None:
    tenant, name, policy, signature = compile_surface(surface(), "acme").policies["home-ts"].key.split("/")
    assert (tenant, name, policy, len(signature)) == ("acme", "home", "home-ts", 16)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("floor: 0.02", "floor: 0.05"),
        ("floor: 0.02", "draws: 64"),
        ("floor: 0.02", "head: softmax"),
        ("scale: 0.1", "scale: 5"),
        ("objective: watch", "objective: hide"),
        ("hide: 0.3", "hide: 3"),
        ("better: lower", "better: higher"),
        ("live: home-ts", "live: both"),
        ("fallback: popular", "fallback: uniform"),
        ("max_share: 0.5", "max_share: 0.1"),
        ("sample: 0.1", "sample: 1"),
        ("correctable: 24h", "correctable: 48h"),
        ("horizon: 30m", "horizon: 0.5h"),
        ("half_life: 7d", "half_life: 168h"),
        ("kinds: [click]", "kinds: [click, open]"),
    ],
)
def test_changing_what_shapes_no_sums_keeps_what_was_learned(old: str, new: str) -> None:
    changed = surface(home(old, new))
    assert key(changed) == key(surface())
    assert compile_surface(changed).hash != compile_surface(surface()).hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slots: 3", "slots: 4"),
        ("horizon: 30m", "horizon: 31m"),
        ("half_life: 7d", "half_life: 6d"),
        ("half_life: 7d", "draws: 256"),
        ("aggregate: sum", "aggregate: mean"),
        ("aggregate: sum", "aggregate: sum, default: 1"),
        ("kind: play", "kind: plays"),
        ("range: [0, 60]", "range: [0, 50]"),
        ("  watch: {kind", "  more: {kind: more}\n  watch: {kind"),
        ("max: 1e3", "max: 1e4"),
        ("- [device, price]", "- [device, embedding]"),
        ("kinds: [click]", "credit: clicked"),
    ],
)
def test_changing_what_shapes_the_sums_starts_new_ones(old: str, new: str) -> None:
    assert key(surface(home(old, new))) != key(surface())


def test_how_a_history_is_read_shapes_what_reads_it() -> None:
    """Policies that read histories begin anew under another `history_hashed`; others keep what they learned."""
    agent = "live: home-ts", "  agent: {algorithm: constrained_actor_critic, objective: watch}\nlive: home-ts"
    plain = surface(home(*agent))
    few, fewer = (msgspec.structs.replace(plain, history_hashed=Hashed(newest=8, rows=rows)) for rows in (16, 8))
    assert len({key(one, "agent") for one in (plain, few, fewer)}) == 3
    assert len({key(one) for one in (plain, few, fewer)}) == 1
    assert compile_surface(few).policies["agent"].problem.history == few.history_rows == 24
    assert compile_surface(plain).policies["agent"].problem.history == 50


def test_weights_are_scaled_and_turned_so_that_more_is_better() -> None:
    compiled = compile_surface(surface())
    assert compiled.policies["both"].problem.weights == {"hide": -0.3, "watch": pytest.approx(0.1)}
    assert compiled.policies["home-ts"].problem.weights == {"hide": 0.0, "watch": pytest.approx(0.1)}
    assert list(compiled.policies["both"].problem.objectives) == ["hide", "watch"]
    assert compiled.rewards.silence.tolist() == [0.0, 0.0]


def test_every_surface_can_fall_back() -> None:
    compiled = compile_surface(Surface("bare"))
    assert {"given_order", "popular", "uniform"} == compiled.policies.keys()
    both = compile_surface(surface(home("live: home-ts", "live: both")))
    assert both.policies["popular"].problem.weights == both.policies["both"].problem.weights
    assert compile_surface(surface(home("max_share: 0.5", "max_share: 0.02"))).policies["popular"].config.floor <= 0.02


def test_an_option_keeps_its_type() -> None:
    compiled = compile_surface(surface(home("floor: 0.02", "floor: 0")))
    assert compiled.policies["home-ts"].config.floor == 0.0
    assert isinstance(compiled.policies["home-ts"].config, ALGORITHMS["linear_thompson"].config)


def test_a_surface_made_in_code_is_checked_too() -> None:
    with pytest.raises(ConfigInvalid, match="no policy 'nobody'"):
        compile_surface(Surface("home", live="nobody"))
    with pytest.raises(ConfigInvalid, match="No algorithm 'magic'"):
        compile_surface(Surface("home", policies={"p": PolicySpec("magic")}))
    with pytest.raises(ConfigInvalid, match="floor"):
        compile_surface(Surface("home", policies={"p": PolicySpec("uniform", options={"floor": "x"})}))


def test_advice_states_the_largest_weight() -> None:
    said = advice(surface(home("max_share: 0.5", "max_share: 1")))
    assert any(
        "policies.home-ts" in line and "100 candidates: 5,000" in line and "warning" not in line for line in said
    )
    said = advice(surface(home("floor: 0.02", "floor: 0.001")))
    assert any("policies.home-ts" in line and "warning: above 10,000" in line for line in said)
    assert any("floor 0" in line for line in advice(surface(home("floor: 0.02", "floor: 0"))))
    assert any("live is not set" in line for line in advice(surface(home("live: home-ts\n", ""))))
    assert any("no range" in line for line in advice(surface(home(", range: [0, 60]", ""))))


def test_a_folder_is_read_in_order_and_every_file_told(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text("surface: b\n")
    (tmp_path / "a.yaml").write_text("surface: a\n---\nsurface: c\n")
    (tmp_path / ".hidden.yaml").write_text("not: read\n")
    (tmp_path / "notes.txt").write_text("not: read\n")
    assert [one.surface for one in load_folder(tmp_path)] == ["a", "c", "b"]
    assert [one.surface for one in load_folder(tmp_path / "a.yaml")] == ["a", "c"]
    (tmp_path / "d.yaml").write_text("surface: a\n")
    (tmp_path / "e.yaml").write_text("slots: 1\n")
    (tmp_path / "f.yaml").write_bytes(b"surface: \xff\n")
    with pytest.raises(ConfigInvalid) as caught:
        load_folder(tmp_path)
    told = [(Path(one.file).name, one.line, one.message) for one in caught.value.mistakes]
    assert told == [
        ("d.yaml", 1, f"'a' is already defined at {tmp_path / 'a.yaml'}:1"),
        ("e.yaml", 1, "surface is missing"),
        ("f.yaml", 1, "not UTF-8: invalid start byte"),
    ]


def test_no_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no such folder"):
        load_folder(tmp_path / "none")


def test_versions_are_added_and_the_last_is_current() -> None:
    configs = Configs()
    one = configs.add(surface())
    other = configs.add(surface(home("slots: 3", "slots: 5")))
    assert configs.surfaces() == ["home"]
    assert configs.current("home") is other
    assert (configs.get(one.hash), configs.get("nothing"), configs.current("none")) == (one, None, None)
    assert configs.add(surface()) is one
    assert configs.current("home") is one


def test_a_follower_gets_what_was_published() -> None:
    state, configs = MemoryState(), Configs()
    assert not configs.follow(state)
    digest = publish_surface(state, surface())
    assert configs.follow(state)
    found = configs.current("home")
    assert found is not None
    assert (found.hash, found.surface) == (digest, surface())
    assert {name: one.key for name, one in found.policies.items()} == {
        name: one.key for name, one in compile_surface(surface()).policies.items()
    }
    before = state.version()
    assert publish_surface(state, surface()) == digest
    assert state.version() == before, "publishing the same again writes nothing"
    assert not configs.follow(state)

    second = publish_surface(state, surface(home("slots: 3", "slots: 5")))
    assert configs.follow(state)
    assert configs.current("home") is configs.get(second)
    assert configs.get(digest) is found, "the version that old decisions name stays"
    publish_surface(state, surface())
    assert configs.follow(state)
    assert configs.current("home") is found


def test_a_version_is_stored_before_it_is_pointed_at() -> None:
    state = MemoryState()
    publish_surface(state, surface())
    kinds = [entry.kind for entry in state.read()]
    assert kinds == ["surface-version", "surface"]


def test_a_stored_version_that_cannot_run_is_refused_and_the_old_one_stays() -> None:
    state, configs = MemoryState(), Configs()
    good = publish_surface(state, surface())
    configs.follow(state)
    stranger = msgspec.json.encode({"surface": "home", "policies": {"p": {"algorithm": "of_tomorrow"}}})
    named = content_hash(msgspec.json.decode(stranger))
    tampered = msgspec.json.encode(surface(home("slots: 3", "slots: 5")))
    for digest, stored in (
        (named, msgspec.json.encode(msgspec.json.decode(stranger), order="sorted")),
        ("0" * 16, tampered),
    ):
        state.put([("surface-version", digest, stored)])
        state.put([("surface", "home", digest.encode())])
    assert not configs.follow(state)
    restarted = Configs()
    assert restarted.follow(state)
    for one in (configs, restarted):
        current = one.current("home")
        assert current is not None
        assert current.hash == good
        assert "of_tomorrow" in one.refused[named]
        assert one.refused["0" * 16] == "its content has another hash"


def test_a_surface_taken_away_answers_no_more() -> None:
    state, configs = MemoryState(), Configs()
    digest = publish_surface(state, surface())
    configs.follow(state)
    state.put([("surface", "home", None)])
    assert configs.follow(state)
    assert configs.surfaces() == []
    assert configs.get(digest) is not None
