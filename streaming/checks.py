"""What a surface document must hold beyond its types, and what is worth knowing about one that is right."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import NamedTuple

from msgspec import UnsetType

from policies.algorithm import Config
from policies.errors import Rejected
from policies.features import Encoder
from policies.registry import ALGORITHMS
from policies.rewards import LIMIT
from policies.surface import Category, Feature, Number, Objective, PolicySpec, Surface, Vector, seconds
from streaming import adjusting, counting, fairness, ruling
from streaming.documents import Path
from streaming.fitting import DURATION, unknown

RESERVED = ("given_order", "popular", "uniform")  # policies every surface has, so that any can be its fallback
NAME = re.compile(r"\w[\w.-]{0,63}")  # no slash: names become keys of learners, pointers and label values
MAX_SLOTS, MAX_COLUMNS, MAX_WEIGHT = 256, 4096, 1e4
MAX_HISTORY = 2_000  # interactions of a unit: what scoring keeps within its budget
CANDIDATES = 100  # for which `advice` states the largest weight


class Fault(NamedTuple):
    path: Path
    message: str
    expected: str = ""


def faults(surface: Surface, configs: Mapping[str, Config]) -> Iterator[Fault]:
    """Everything wrong with a surface whose types fit; `configs` are the built options of its policies."""
    yield from _names(surface)
    if not 1 <= surface.slots <= MAX_SLOTS:
        yield Fault(("slots",), f"{surface.slots} slots", f"an integer from 1 to {MAX_SLOTS}")
    if not 0 <= surface.history <= MAX_HISTORY:
        yield Fault(("history",), f"{surface.history} interactions", f"an integer from 0 to {MAX_HISTORY}")
    yield from _hashed(surface)
    kinds = sorted(surface.feedback_kinds - {"shown"})
    for i, kind in enumerate(surface.history_kinds):
        if kind not in kinds:
            hint, expected = unknown(kind, kinds)
            yield Fault(("history_kinds", i), f"no feedback kind {kind!r}{hint}", expected)
    yield from _durations(surface)
    yield from _features(surface)
    for name, objective in surface.objectives.items():
        yield from _objective(("objectives", name), objective)
    for name, policy in surface.policies.items():
        yield from _policy(("policies", name), name, policy, surface)
    if surface.live is not None and surface.live not in surface.policies and surface.live not in RESERVED:
        hint, expected = unknown(surface.live, [*surface.policies, *RESERVED])
        yield Fault(("live",), f"no policy {surface.live!r}{hint}", expected)
    for i, name in enumerate(surface.untaught):
        if name not in surface.policies and name not in RESERVED:
            hint, expected = unknown(name, [*surface.policies, *RESERVED])
            yield Fault(("untaught", i), f"no policy {name!r}{hint}", expected)
    share = surface.exploration.max_share
    if not 0 < share <= 1:
        yield Fault(("exploration", "max_share"), f"max_share is {share:g}", "a number above 0 and at most 1")
    yield from starmap(Fault, ruling.faults(surface))
    yield from starmap(Fault, fairness.faults(surface))
    yield from starmap(Fault, adjusting.faults(surface))
    share = surface.exploration.least_share
    if not 0 <= surface.logging.sample <= 1:
        yield Fault(("logging", "sample"), f"sample is {surface.logging.sample:g}", "a number from 0 to 1")
    for name, config in configs.items():
        if name in surface.policies:
            yield from _config(("policies", name), config, share)
            yield from _group(("policies", name), getattr(config, "group", None), surface)


def _names(surface: Surface) -> Iterator[Fault]:
    named: list[tuple[Path, str]] = [(("surface",), surface.surface)]
    named += [(("objectives", name), name) for name in surface.objectives]
    named += [(("objectives", name, "kind"), o.kind) for name, o in surface.objectives.items()]
    named += [(("kinds", i), kind) for i, kind in enumerate(surface.kinds)]
    named += [(("policies", name), name) for name in surface.policies]
    for side, features in (("context", surface.features.context), ("items", surface.features.items)):
        named += [(("features", side, name), name) for name in features]
    for path, name in named:
        if not NAME.fullmatch(name):
            yield Fault(path, f"the name {name[:80]!r}", "1 to 64 letters, digits, dots, dashes and underscores")
        elif name == "shown" and path[-1] != "surface" and ("kind" in path or "kinds" in path):
            yield Fault(path, "the kind 'shown' is reserved: it is always there", "another name")


def _hashed(surface: Surface) -> Iterator[Fault]:
    hashed, at = surface.history_hashed, "history_hashed"
    if isinstance(hashed, UnsetType):
        return
    if hashed.newest < 0:
        yield Fault((at, "newest"), f"{hashed.newest} interactions", "an integer from 0")
    if hashed.rows < 1:
        yield Fault((at, "rows"), f"{hashed.rows} rows", "an integer from 1")
    if hashed.newest + hashed.rows >= surface.history:
        message = f"{hashed.newest} + {hashed.rows} rows are all of {surface.history} interactions: nothing is left to stand for"
        yield Fault((at,), message, f"newest + rows below history, {surface.history}")


def _durations(surface: Surface) -> Iterator[Fault]:
    found: dict[str, float] = {}
    for name in ("horizon", "correctable", "session_timeout"):
        written = getattr(surface, name)
        try:
            found[name] = seconds(written)
        except Rejected:
            yield Fault((name,), f"expected {DURATION}, got {written!r}", DURATION)
            continue
        if found[name] <= 0:
            yield Fault((name,), f"expected {DURATION}, above 0, got {written!r}", DURATION)
    if found.get("correctable", math.inf) < found.get("horizon", 0.0):
        yield Fault(
            ("correctable",),
            f"{surface.correctable} is shorter than the horizon of {surface.horizon}: feedback that counts would be refused",
            f"at least {surface.horizon}",
        )


def _features(surface: Surface) -> Iterator[Fault]:
    spec = surface.features
    before = 0
    for side, features in (("context", spec.context), ("items", spec.items)):
        for name, feature in features.items():
            for fault in _feature(("features", side, name), feature):
                before += 1
                yield fault
    for fault in starmap(Fault, counting.faults(surface)):
        before += 1
        yield fault
    seen: Counter[tuple[str, str]] = Counter()
    for i, (left, right) in enumerate(spec.cross):
        path: Path = ("features", "cross", i)
        for side, name, features in (("context", left, spec.context), ("items", right, spec.items)):
            if name not in features:
                before += 1
                hint, expected = unknown(name, list(features))
                yield Fault(
                    path, f"no feature {name!r} in {side}{hint}", f"[context feature, item feature]: {expected}"
                )
        seen[left, right] += 1
        if seen[left, right] == 2:
            before += 1
            yield Fault(path, f"[{left}, {right}] is crossed twice", "each pair once")
    if before:
        return  # an encoder needs a sound spec
    sizes = {f"{side} {name}": _width(f) for side in ("context", "items") for name, f in getattr(spec, side).items()}
    crossed = sum(_width(spec.context[left]) * _width(spec.items[right]) for left, right in spec.cross)
    if sum(sizes.values()) + crossed > MAX_COLUMNS:
        largest = max({**sizes, "the crosses": crossed}.items(), key=lambda pair: pair[1])
        message = f"{sum(sizes.values()) + crossed} columns, most of them ({largest[1]}) by {largest[0]}"
        yield Fault(("features",), message, f"at most {MAX_COLUMNS}")
        return
    encoder = Encoder(spec)
    for names in (encoder.context_names, encoder.item_names, encoder.cross_names):
        for name, times in Counter(names).items():
            if times > 1:
                yield Fault(("features",), f"{times} columns would be named {name!r}", "names that differ")


def _width(feature: Feature) -> int:
    match feature:
        case Category(values):
            return len(values) + 1
        case Vector(size):
            return size
    return 1


def _feature(path: Path, feature: Feature) -> Iterator[Fault]:
    match feature:
        case Number(low, high):
            if not low < high or not (high / 2 - low / 2) > 0:
                yield Fault((*path, "max"), f"the range from {low:g} to {high:g} is empty", "a max above min")
        case Category(values):
            if not values:
                yield Fault((*path, "values"), "no values", "at least one")
            for value, times in Counter(values).items():
                if times > 1:
                    yield Fault((*path, "values"), f"{value!r} is listed {times} times", "each value once")
        case Vector(size, clip):
            if not 1 <= size <= MAX_COLUMNS:
                yield Fault((*path, "size"), f"{size} numbers", f"an integer from 1 to {MAX_COLUMNS}")
            if not 0 < clip <= 1e6:
                yield Fault((*path, "clip"), f"clip is {clip:g}", "a number above 0, at most 1e6")


def _objective(path: Path, objective: Objective) -> Iterator[Fault]:
    if objective.scale <= 0:
        yield Fault(
            (*path, "scale"), f"scale is {objective.scale:g}", "a number above 0; `better: lower` turns the sign"
        )
    low, high = objective.range or (-LIMIT, LIMIT)
    if objective.range is not None and not -LIMIT <= low < high <= LIMIT:
        message = f"the range from {low:g} to {high:g} is empty or too wide"
        yield Fault((*path, "range"), message, f"[low, high], low below high, both within ±{LIMIT:g}")
    elif not low <= objective.default <= high:
        message = f"default {objective.default:g} is outside the range from {low:g} to {high:g}"
        yield Fault((*path, "default" if objective.default else "range"), message, "a default inside the range")


def _policy(path: Path, name: str, policy: PolicySpec, surface: Surface) -> Iterator[Fault]:
    if name in RESERVED and policy.algorithm != name:
        yield Fault(path, f"the name {name!r} belongs to the policy every surface has", "another name")
    if policy.algorithm not in ALGORITHMS:
        hint, expected = unknown(policy.algorithm, sorted(ALGORITHMS))
        yield Fault((*path, "algorithm"), f"no algorithm {policy.algorithm!r}{hint}", expected)
        return
    learns = ALGORITHMS[policy.algorithm].learner is not None
    if surface.silence == "corrected" and learns and "corrects" not in ALGORITHMS[policy.algorithm].traits:
        able = sorted(name for name, one in ALGORITHMS.items() if "corrects" in one.traits)
        message = f"{policy.algorithm} cannot learn with silence: corrected, which wants sums that add"
        yield Fault((*path, "algorithm"), message, f"silence: eager or wait, or one of {', '.join(able)}")
    if policy.objective is not None and policy.objectives is not None:
        yield Fault((*path, "objectives"), "both objective and objectives", "one of them")
    known = list(surface.objectives)
    if policy.objective is not None and policy.objective not in known:
        hint, expected = unknown(policy.objective, known)
        yield Fault((*path, "objective"), f"no objective {policy.objective!r}{hint}", expected)
    for one in policy.objectives or {}:
        if one not in known:
            hint, expected = unknown(one, known)
            yield Fault((*path, "objectives", one), f"no objective {one!r}{hint}", expected)
    if policy.objectives is not None and not any(policy.objectives.values()):
        yield Fault((*path, "objectives"), "no objective has a weight", "at least one weight other than 0")
    if not known and "learns" in ALGORITHMS[policy.algorithm].traits:
        yield Fault(
            (*path, "algorithm"), f"{policy.algorithm} learns, and the surface has no objectives", "an objective"
        )


def _config(path: Path, config: Config, share: float) -> Iterator[Fault]:
    if config.floor > share > 0:
        message = f"floor {config.floor:g} explores more than exploration.max_share {share:g} allows"
        yield Fault((*path, "floor"), message, f"at most {share:g}")


def _group(path: Path, group: str | None, surface: Surface) -> Iterator[Fault]:
    """Items are put in groups by a feature of theirs."""
    if group is not None and not isinstance(surface.features.items.get(group), Category):
        categories = [name for name, feature in surface.features.items.items() if isinstance(feature, Category)]
        hint, expected = unknown(group, categories)
        yield Fault((*path, "group"), f"no category {group!r} among the item features{hint}", expected)


def advice(surface: Surface, configs: Mapping[str, Config]) -> Iterator[str]:
    """What to think about in a surface without mistakes, one line each."""
    share = surface.exploration.least_share
    for name, config in configs.items():
        if name not in surface.policies:
            continue
        if config.floor == 0:
            yield f"policies.{name}: floor 0: items the model never draws get no support, their values cannot be estimated"
            continue
        least = share * config.floor
        warning = f"; warning: above {MAX_WEIGHT:,.0f}" if CANDIDATES / least > MAX_WEIGHT * (1 + 1e-9) else ""
        yield (
            f"policies.{name}: largest possible weight ∣R∣/ε of a slot with {CANDIDATES} candidates: "
            f"{CANDIDATES / least:,.0f} (ε {least:g}){warning}, {MAX_WEIGHT:,.0f} from {math.floor(MAX_WEIGHT * least + 1e-9):,} candidates"
        )
    if surface.live is None and surface.policies:
        yield f"live is not set: the fallback {surface.fallback} answers every decision"
    for name, objective in surface.objectives.items():
        if objective.range is None:
            yield f"objectives.{name}: no range: no interval and no gate can use it, rewards are clipped to ±{LIMIT:g}"
    for side, features in (("context", surface.features.context), ("items", surface.features.items)):
        for feature, spec in features.items():
            if isinstance(spec, Number) and (spec.min, spec.max) == (0.0, 1.0):
                yield f"features.{side}.{feature}: scaled from 0 to 1; set min and max where values go beyond"
    yield from counting.advice(surface)
    yield from adjusting.advice(surface)
    yield from fairness.advice(surface)
    contextual = any("contextual" in ALGORITHMS[p.algorithm].traits for p in surface.policies.values())
    if surface.features.context and contextual and not surface.features.cross:
        yield "features.cross is empty: the context moves all items alike, so it changes no ranking"
