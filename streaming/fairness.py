"""What the fairness of a surface document must hold beyond its types."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from policies.errors import Rejected
from policies.surface import Category, Exposure, Feature, Prefix, Surface, Vector, seconds
from streaming.documents import Path
from streaming.fitting import DURATION, unknown

Fault = tuple[Path, str, str]
LONGEST_SECONDS, STRONGEST = 30 * 86_400.0, 10.0


def faults(surface: Surface) -> Iterator[Fault]:
    items, fairness = surface.features.items, surface.fairness
    if fairness.exposure is not None:
        yield from _exposure(("fairness", "exposure"), fairness.exposure, surface)
    if fairness.prefix is not None:
        yield from _prefix(("fairness", "prefix"), fairness.prefix, items)


def _exposure(path: Path, exposure: Exposure, surface: Surface) -> Iterator[Fault]:
    yield from _by(path, exposure.by, surface.features.items)
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
