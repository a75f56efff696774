"""Releases of policies in the state record: kind `release`, one entry a surface, beside the holds of bundles."""

import msgspec

from policies.errors import Rejected
from policies.releases import OPEN, Released
from policies.surface import Surface
from streaming.checks import RESERVED
from streaming.experiments import DECISIONS
from streaming.ports import State

KIND, PREFIX = "release", "surface/"


def key_of(surface: str) -> str:
    return PREFIX + surface


def decode(value: bytes) -> Released:
    """Raises msgspec.MsgspecError."""
    return msgspec.json.decode(value, type=Released)


def stored(released: Released) -> bytes:
    return msgspec.json.encode(released)


def released_on(state: State, surface: str) -> Released:
    """What releases have made of a surface, from the record; nothing where there was none."""
    entry = state.get(KIND, key_of(surface))
    return decode(entry.value) if entry is not None and entry.value is not None else Released()


def keep_released(surface: Surface, released: Released) -> None:
    """Raises Rejected(409) for a version of a surface that lacks a policy that is released, or what one on its way needs."""
    release = released.release
    wanted = [released.live]
    if release is not None and release.stage in OPEN:
        wanted += [release.candidate, release.baseline]
        objective = surface.objectives.get(release.objective)
        gone = [name for name in release.terms.guardrails if name not in (*surface.objectives, DECISIONS)]
        if objective is None or objective.range is None or gone:
            lost = gone[0] if gone else release.objective
            raise Rejected(
                f"{release.candidate} is judged by {lost!r}: it stays, with its range, until the release is over",
                at=f"$.objectives.{lost}",
                code="released",
                status=409,
            )
    for name in wanted:
        if name is not None and name not in surface.policies and name not in RESERVED:
            raise Rejected(
                f"Policy {name!r} of this surface is released: roll back or abort before it goes",
                at="$.policies",
                code="released",
                status=409,
            )
