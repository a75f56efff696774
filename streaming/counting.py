"""What counted features of a surface document must hold beyond their types, and what is worth knowing about them."""

from collections.abc import Iterator

from policies.counted import SHOWN, counted
from policies.errors import Rejected
from policies.surface import Counted, Rate, Surface, seconds
from streaming.documents import Path
from streaming.fitting import DURATION, unknown

MAX_COUNTED = 16  # of items: each is read for every candidate and worker once a second
MAX_WINDOW_SECONDS = 30 * 86_400.0
MAX_PRIOR = 1e6


def faults(surface: Surface) -> Iterator[tuple[Path, str, str]]:
    """Everything wrong with what is to be counted."""
    kinds = sorted(surface.feedback_kinds - {SHOWN})
    for side, features in (("context", surface.features.context), ("items", surface.features.items)):
        found = counted(features)
        if len(found) > MAX_COUNTED:
            yield ("features", side), f"{len(found)} counted features", f"at most {MAX_COUNTED}"
        for name, feature in found.items():
            yield from _feature(("features", side, name), feature, kinds)


def _feature(path: Path, feature: Counted, kinds: list[str]) -> Iterator[tuple[Path, str, str]]:
    rate = isinstance(feature, Rate)
    named = {"kind": feature.kind} | ({"per": feature.per} if isinstance(feature, Rate) else {})
    for field, kind in named.items():
        if kind not in kinds and (kind != SHOWN or (rate and field == "kind")):
            hint, expected = unknown(kind, kinds if field == "kind" and rate else [*kinds, SHOWN])
            yield (*path, field), f"no feedback kind {kind!r}{hint}", expected
    try:
        window = seconds(feature.window)
    except Rejected:
        yield (*path, "window"), f"expected {DURATION}, got {feature.window!r}", DURATION
    else:
        if not 1 <= window <= MAX_WINDOW_SECONDS or window != int(window):
            yield (*path, "window"), f"a window of {feature.window}", f"{DURATION}, whole seconds from 1s to 30d"
    if isinstance(feature, Rate):
        yield from _rate(path, feature)
    elif not 1 <= feature.max <= 1e9:
        yield (*path, "max"), f"max is {feature.max:g}", "a number from 1 to 1e9"


def _rate(path: Path, rate: Rate) -> Iterator[tuple[Path, str, str]]:
    a, b = rate.prior
    if not (0 < a <= MAX_PRIOR and 0 < b <= MAX_PRIOR):
        yield (*path, "prior"), f"prior is [{a:g}, {b:g}]", f"[hits, misses], both above 0 and at most {MAX_PRIOR:g}"
    elif not a / (a + b) < rate.max <= 1:
        expected = f"a number above the prior's {a / (a + b):.3g} and at most 1"
        yield (*path, "max"), f"max is {rate.max:g}", expected
    if rate.per == rate.kind:
        yield (*path, "per"), f"a rate of {rate.kind} per {rate.kind} is always 1", "another kind, or shown"


def advice(surface: Surface) -> Iterator[str]:
    """What to think about in a surface without mistakes."""
    for side, features in (("context", surface.features.context), ("items", surface.features.items)):
        for name, feature in counted(features).items():
            if seconds(feature.window) < surface.horizon_seconds:
                yield (
                    f"features.{side}.{name}: feedback counts with its decision, which may be as old as the horizon: a window of "
                    f"{feature.window} misses what comes later than that"
                )
    if counted(surface.features.items):
        yield "features.items: counted by the service, so every decision logs the encoded features of all candidates"
