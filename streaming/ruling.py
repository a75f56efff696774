"""What rules, diversity and exploration segments of a surface document must hold beyond their types."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec import UnsetType

from policies.counted import counted
from policies.errors import Rejected
from policies.reranking.diversity import MAX_WEIGHT
from policies.reranking.expressions import Comparison, Condition
from policies.reranking.rules import KEYS, Key, keys_of, named
from policies.surface import Bool, Category, Diversity, Feature, Number, Rule, Surface, Vector, seconds
from streaming.documents import Path
from streaming.fitting import DURATION, unknown

Fault = tuple[Path, str, str]
MAX_RULES = 32  # each is looked at for every candidate and slot
MAX_WINDOW_SECONDS = 30 * 86_400.0
NAME = re.compile(r"\w[\w.:=-]{0,63}")  # a label value of metrics
WITH: dict[str, tuple[Key, ...]] = {"by": ("cap", "spacing"), "slot": ("pin",)}


def faults(surface: Surface) -> Iterator[Fault]:
    """Everything wrong with what acts before the draw."""
    if len(surface.rules) > MAX_RULES:
        yield ("rules",), f"{len(surface.rules)} rules", f"at most {MAX_RULES}"
    sound = True
    for i, rule in enumerate(surface.rules):
        for fault in _rule(("rules", i), rule, surface):
            sound = False
            yield fault
    if sound:
        yield from _together(surface)
    yield from _diversity(surface.diversity, surface.features.items)
    for i, segment in enumerate(surface.exploration.segments):
        path: Path = ("exploration", "segments", i)
        if not 0 < segment.max_share <= 1:
            yield (*path, "max_share"), f"max_share is {segment.max_share:g}", "a number above 0 and at most 1"
        yield from _lending(path, segment.max_share, segment.lend_up_to)
        yield from _condition((*path, "when"), segment.when, surface.features.context, closed=True)
    yield from _lending(("exploration",), surface.exploration.max_share, surface.exploration.lend_up_to)


def _lending(path: Path, cap: float, up_to: float | UnsetType) -> Iterator[Fault]:
    if not isinstance(up_to, UnsetType) and not cap < up_to <= 1:
        expected = f"a number above max_share {cap:g} and at most 1"
        yield (*path, "lend_up_to"), f"lend_up_to is {up_to:g}", expected


def _rule(path: Path, rule: Rule, surface: Surface) -> Iterator[Fault]:
    keys = keys_of(rule)
    if len(keys) != 1:
        said = f"{' and '.join(keys)} in one rule" if keys else "a rule that says nothing"
        yield path, said, f"one of {', '.join(KEYS)}"
        return
    key = keys[0]
    for extra, owners in WITH.items():
        if getattr(rule, extra) is None and key in owners:
            yield path, f"{extra} is missing", f"{extra} beside {key}"
        if getattr(rule, extra) is not None and key not in owners:
            yield (*path, extra), f"{extra} says nothing beside {key}", f"{extra} only beside {' or '.join(owners)}"
    if rule.name is not None and not NAME.fullmatch(rule.name):
        yield (*path, "name"), f"the name {rule.name[:80]!r}", "1 to 64 letters, digits and . : = - _"
    items = surface.features.items
    match key:
        case "pin" if rule.slot is not None and not 0 <= rule.slot < surface.slots:
            yield (*path, "slot"), f"slot {rule.slot} of {surface.slots}", f"an integer from 0 to {surface.slots - 1}"
        case "exclude" if not rule.exclude:
            yield (*path, "exclude"), "no item", "ids of items"
        case "available" if not rule.available:
            yield (*path, "available"), "available: false would show nothing", "true, or no such rule"
        case "filter":
            yield from _condition((*path, "filter"), rule.filter or "", items)
        case "seen":
            yield from _window((*path, "seen", "window"), rule.seen.window if rule.seen else 0)
        case "frequency" if rule.frequency:
            yield from _window((*path, "frequency", "window"), rule.frequency.window)
            yield from _at_least((*path, "frequency", "cap"), rule.frequency.cap, 1)
        case "cap":
            yield from _at_least((*path, "cap"), rule.cap or 0, 1)
        case "spacing":
            yield from _at_least((*path, "spacing"), rule.spacing or 0, 2)
        case "quota" if rule.quota:
            if not 1 <= rule.quota.min <= surface.slots:
                expected = f"an integer from 1 to {surface.slots}"
                yield (*path, "quota", "min"), f"min is {rule.quota.min} of {surface.slots} slots", expected
            if rule.quota.by in items:
                yield from _constant(
                    (*path, "quota", "value"),
                    items[rule.quota.by],
                    Comparison(rule.quota.by, (rule.quota.value,), False),
                )
    if rule.by is not None and isinstance(items.get(rule.by), Vector):
        yield (*path, "by"), f"{rule.by} is a vector, which has no kinds", "an attribute or another feature"


def _together(surface: Surface) -> Iterator[Fault]:
    pins = [(i, rule) for i, rule in enumerate(surface.rules) if rule.pin is not None]
    for what in ("slot", "pin"):
        count: Counter[object] = Counter()
        for i, rule in pins:
            value = getattr(rule, what)
            count[value] += 1
            if count[value] == 2:
                yield ("rules", i, what), f"{value!r} is pinned twice", "each slot and item once"
    given: Counter[str] = Counter()
    made = named(surface.rules)
    for i, one in enumerate(made):
        given[one.rule.name or ""] += 1
        others = {other.name for other in made if other is not one and other.rule.name is None}
        if one.rule.name and (given[one.rule.name] == 2 or one.rule.name in others):
            yield ("rules", i, "name"), f"two rules are named {one.rule.name!r}", "each name once"


def _diversity(diversity: Diversity, items: Mapping[str, Feature]) -> Iterator[Fault]:
    for what in ("mmr", "coverage"):
        weight = getattr(diversity, what)
        if not 0 <= weight <= MAX_WEIGHT:
            yield ("diversity", what), f"{what} is {weight:g}", f"a number from 0 to {MAX_WEIGHT:g}"
    if diversity.coverage and diversity.by is None:
        yield ("diversity", "coverage"), "by is missing", "by: the attribute whose values are covered"
    if diversity.over is not None and not isinstance(items.get(diversity.over), Vector):
        vectors = [name for name, feature in items.items() if isinstance(feature, Vector)]
        hint, expected = unknown(diversity.over, vectors)
        yield ("diversity", "over"), f"no vector feature {diversity.over!r} of items{hint}", expected
    if diversity.by is not None and isinstance(items.get(diversity.by), Vector):
        yield ("diversity", "by"), f"{diversity.by} is a vector, which has no values", "an attribute"


def _condition(path: Path, text: str, features: Mapping[str, Feature], *, closed: bool = False) -> Iterator[Fault]:
    """`closed`: every name must be a feature; otherwise the catalogue may know more."""
    try:
        condition = Condition(text)
    except Rejected as error:
        yield path, error.message, "a condition such as price < 10 and genre in ['jazz', 'rock']"
        return
    for name in condition.names:
        if closed and name not in features:
            hint, expected = unknown(name, list(features))
            yield path, f"no context feature {name!r}{hint}", expected
    for name in sorted(set(condition.names) & counted(features).keys()):
        yield path, f"{name} is counted by the service, and conditions know what callers say", "another feature"
    for one in condition.comparisons:
        if one.name in features:
            yield from _constant(path, features[one.name], one)


def _constant(path: Path, feature: Feature, compared: Comparison) -> Iterator[Fault]:
    """A constant that a feature can never be equal to, or be ordered beside."""
    for value in compared.values:
        match feature:
            case Number() if isinstance(value, bool | str):
                yield path, f"{compared.name} is a number, and is compared with {value!r}", "a number"
            case Category(values) if compared.ordered:
                yield path, f"{compared.name} is a category, which has no order", "== or in"
            case Category(values) if value not in values or isinstance(value, bool):
                hint, expected = unknown(str(value), values)
                yield path, f"{compared.name} has no value {value!r}{hint}", expected
            case Bool() if not isinstance(value, bool):
                yield path, f"{compared.name} is true or false, and is compared with {value!r}", "true or false"
            case Vector():
                yield path, f"{compared.name} is a vector, and cannot be compared", "another feature"


def _window(path: Path, window: str | float) -> Iterator[Fault]:
    try:
        found = seconds(window)
    except Rejected:
        yield path, f"expected {DURATION}, got {window!r}", DURATION
        return
    if not 0 < found <= MAX_WINDOW_SECONDS:
        yield path, f"a window of {window}", f"{DURATION}, above 0 and at most 30d"


def _at_least(path: Path, number: int, least: int) -> Iterator[Fault]:
    if not least <= number <= 1_000:
        yield path, f"{path[-1]} is {number}", f"an integer from {least} to 1000"
