"""A unit's profile in bytes: its last interactions as columns, so that who reads one for every decision builds no object each.

    times f8, items, kinds as u2 into the list of those there are, values f8, hashes of decisions u8; oldest first

Profiles of an older build, a list of tuples, are read too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np


class Interaction(NamedTuple):
    """One thing a person did. `decision` is the hash of the decision's id."""

    at: float
    item: str
    kind: str
    value: float
    decision: int


Act = tuple[float, str, str, float, int]  # an `Interaction`, or what is the same without names
_Stored = tuple[bytes, list[str], list[str], bytes, bytes, bytes]
_encode = msgspec.msgpack.Encoder().encode
_columns = msgspec.msgpack.Decoder(_Stored).decode
_rows = msgspec.msgpack.Decoder(list[Act]).decode


def write_profile(acts: Sequence[Act]) -> bytes:
    """Of interactions in the order of their times."""
    if not acts:
        return b""
    times, items, kinds, values, decisions = zip(*acts, strict=True)
    names = list(dict.fromkeys(kinds))
    places = {name: place for place, name in enumerate(names)}
    stored: _Stored = (
        np.array(times, "<f8").tobytes(),
        list(items),
        names,
        np.array([places[kind] for kind in kinds], "<u2").tobytes(),
        np.array(values, "<f8").tobytes(),
        np.array(decisions, "<u8").tobytes(),
    )
    return _encode(stored)


def read_acts(profile: bytes) -> list[Act]:
    """Oldest first; empty for a unit that is not known."""
    if not profile:
        return []
    try:
        times, items, names, kinds, values, decisions = _columns(profile)
    except msgspec.ValidationError:
        return _rows(profile)
    return list(
        zip(
            np.frombuffer(times, "<f8").tolist(),
            items,
            [names[kind] for kind in np.frombuffer(kinds, "<u2").tolist()],
            np.frombuffer(values, "<f8").tolist(),
            np.frombuffer(decisions, "<u8").tolist(),
            strict=True,
        )
    )


def read_profile(profile: bytes) -> list[Interaction]:
    """As `read_acts`, by name."""
    return [Interaction(*act) for act in read_acts(profile)]


def last_items(profile: bytes, kinds: Sequence[str], most: int) -> list[str]:
    """The items of the last interactions of these kinds (none named: all), oldest first. What was done to one item of one
    decision is one, at the time of the first."""
    if not profile:
        return []
    try:
        _, items, names, which, _, decisions = _columns(profile)
    except msgspec.ValidationError:
        return last_items(write_profile(_rows(profile)), kinds, most)
    pairs = zip(np.frombuffer(decisions, "<u8").tolist(), items, strict=True)
    if kinds and not set(names) <= set(kinds):
        wanted = np.isin(np.frombuffer(which, "<u2"), [place for place, name in enumerate(names) if name in kinds])
        pairs = (pair for pair, on in zip(pairs, wanted.tolist(), strict=True) if on)  # type: ignore[assignment]  # as good
    return [item for _, item in dict.fromkeys(pairs)][-most:]
