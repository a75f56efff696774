"""What the fairness of a surface document must hold beyond its types."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from policies.errors import Rejected
from policies.reranking.exposure import EACH
from policies.reranking.impression_variance import Privacy
from policies.surface import Category, Exposure, Feature, ImpressionVariance, Prefix, Surface, Vector, seconds
from streaming.documents import Path
from streaming.fitting import DURATION, unknown

Fault = tuple[Path, str, str]
LONGEST_SECONDS, STRONGEST = 30 * 86_400.0, 10.0
DAY_SECONDS = 86_400.0
SHORTEST_SECONDS = 60.0  # of a window of releases
MOST_GROUPS, MOST_SUMMARIES = 8, 16  # of people: what is released of every item has to fit into a record


def faults(surface: Surface) -> Iterator[Fault]:
    items, fairness = surface.features.items, surface.fairness
    if fairness.exposure is not None:
        yield from _exposure(("fairness", "exposure"), fairness.exposure, surface)
    if fairness.prefix is not None:
        yield from _prefix(("fairness", "prefix"), fairness.prefix, items)
    if fairness.impression_variance is not None:
        path: Path = ("fairness", "impression_variance")
        yield from _impressions(path, fairness.impression_variance, surface.features.context)


def advice(surface: Surface) -> Iterator[str]:
    """What to think about in a fairness without mistakes."""
    asked = surface.fairness.impression_variance
    if asked is None:
        return
    where = "fairness.impression_variance"
    for side, features in (("context", surface.features.context), ("items", surface.features.items)):
        if asked.attribute in features:
            yield f"{where}: {asked.attribute} is also a feature of the {side}: models read it, and records hold it"
    spent = asked.release * DAY_SECONDS / seconds(asked.window)
    if spent > asked.total + 1e-9:  # rounding
        yield (
            f"{where}: releases of a day come to ε {spent:g}, a unit stops at {asked.total:g}: who comes all day is left out of the "
            "later ones"
        )


def _exposure(path: Path, exposure: Exposure, surface: Surface) -> Iterator[Fault]:
    yield from _by(path, exposure.by, surface.features.items)
    if exposure.by == EACH and EACH in surface.features.items:
        yield (*path, "by"), f"{EACH} is a feature, and means every item by itself", "another name for the feature"
    if isinstance(exposure.target, dict):
        yield from _shares((*path, "target"), exposure.by, exposure.target, surface.features.items)
        if not any(exposure.target.values()):
            yield (*path, "target"), "no group has a share", "a share above 0"
    if exposure.objective is not None and exposure.objective not in surface.objectives:
        hint, expected = unknown(exposure.objective, list(surface.objectives))
        yield (*path, "objective"), f"no objective {exposure.objective!r}{hint}", expected
    elif exposure.target == "merit":
        name = exposure.objective or next(iter(surface.objectives), None)
        if name is None:
            yield (*path, "target"), "merit of a surface without objectives", "equal, or shares"
        elif surface.objectives[name].better == "lower":
            yield (
                (*path, "objective"),
                f"of {name} less is better, which is no merit",
                "an objective of which more is better",
            )
    try:
        window = seconds(exposure.window)
        if not 1 <= window <= LONGEST_SECONDS:
            yield (*path, "window"), f"a window of {exposure.window}", f"{DURATION}, from 1s to 30d"
    except Rejected:
        yield (*path, "window"), f"expected {DURATION}, got {exposure.window!r}", DURATION
    if not 0 < exposure.gain < 1:
        expected = "a number above 0 and below 1: more would make up for what was already made up for"
        yield (*path, "gain"), f"gain, K times the looks of a sync, is {exposure.gain:g}", expected
    if not 0 < exposure.most <= STRONGEST:
        yield (*path, "most"), f"most is {exposure.most:g}", f"a number above 0 and at most {STRONGEST:g}"
    looks = exposure.positions
    if looks and (looks[0] <= 0 or min(looks) < 0 or any(a < b for a, b in pairwise(looks)) or not max(looks) <= 1):
        yield (*path, "positions"), f"looks {looks}", "numbers from 0 to 1, the first above 0, never rising"


def _impressions(path: Path, asked: ImpressionVariance, context: Mapping[str, Feature]) -> Iterator[Fault]:
    if not 1 <= len(asked.attribute) <= 64:
        yield (*path, "attribute"), "no name, or a long one", "a name of 1 to 64 characters"
    values = asked.values
    if not 2 <= len(values) <= MOST_GROUPS or len(set(values)) < len(values):
        yield (*path, "values"), f"{len(values)} values", f"2 to {MOST_GROUPS} values, each once"
    feature = context.get(asked.summary)
    if feature is None:
        hint, expected = unknown(asked.summary, list(context))
        yield (*path, "summary"), f"no context feature {asked.summary!r}{hint}", expected
    elif not isinstance(feature, Category) or len(feature.values) > MOST_SUMMARIES - 1:
        expected = f"a category of at most {MOST_SUMMARIES - 1} values: all people of one get the same boosts"
        yield (*path, "summary"), f"{asked.summary} does not part people into a few", expected
    elif asked.summary == asked.attribute:
        yield (*path, "summary"), "the summary is the attribute", "a feature that is not sensitive"
    try:
        window = seconds(asked.window)
        if not SHORTEST_SECONDS <= window <= DAY_SECONDS or DAY_SECONDS % window:
            yield (*path, "window"), f"a window of {asked.window}", f"{DURATION}, from 1m to 24h, whole windows a day"
    except Rejected:
        yield (*path, "window"), f"expected {DURATION}, got {asked.window!r}", DURATION
    try:
        Privacy(asked.counts, asked.release, asked.total)
    except Rejected as error:
        yield (*path, error.at.removeprefix("$.")), error.message, "as the message says"
    if not 0 < asked.most <= STRONGEST:
        yield (*path, "most"), f"most is {asked.most:g}", f"a number above 0 and at most {STRONGEST:g}"


def _prefix(path: Path, prefix: Prefix, items: Mapping[str, Feature]) -> Iterator[Fault]:
    yield from _by(path, prefix.by, items)
    if not prefix.min and not prefix.max:
        yield path, "neither min nor max", "group: share under min or max"
    for what in ("min", "max"):
        yield from _shares((*path, what), prefix.by, getattr(prefix, what), items)
    if sum(prefix.min.values()) > 1 + 1e-9:
        yield (*path, "min"), f"shares add up to {sum(prefix.min.values()):g}", "at most 1"
    for group in prefix.min.keys() & prefix.max.keys():
        if prefix.min[group] > prefix.max[group]:
            yield (*path, "max", group), f"max of {group!r} is below its min", "min ≤ max"


def _by(path: Path, by: str, items: Mapping[str, Feature]) -> Iterator[Fault]:
    if isinstance(items.get(by), Vector):
        yield (*path, "by"), f"{by} is a vector, which has no groups", "an attribute or another feature"


def _shares(path: Path, by: str, shares: Mapping[str, float], items: Mapping[str, Feature]) -> Iterator[Fault]:
    feature = items.get(by)
    for group, share in shares.items():
        if not 0 <= share <= 1:
            yield (*path, group), f"a share of {share:g}", "a number from 0 to 1"
        if isinstance(feature, Category) and group not in feature.values:
            hint, expected = unknown(group, feature.values)
            yield (*path, group), f"{by} has no value {group!r}{hint}", expected
