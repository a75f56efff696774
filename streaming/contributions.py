"""What settled decisions add to counts by a sensitive attribute of people, and what a unit may still add (`streaming.impressions`).

contribution   of a decision that somebody saw: one item it showed, one that it could have shown, each drawn evenly by the hash
               of its id, and the unit's summary: three counts
ledger         of a unit: ε spent by day, over all surfaces, and requests counted by window; it pays with its first count in a
               window, and adds none that would take it over what a window or a day allows
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from policies.features import Encoder
from policies.reranking.impression_variance import COUNTS_A_REQUEST, Privacy
from policies.surface import Surface
from streaming.events import Decision
from streaming.experiences import Experience
from streaming.impressions import DELIVERED, ELIGIBLE, OTHERS, SUMMARIES, Cell, Ledger, Place, asked_of, summaries_of


class Contribution(NamedTuple):
    """What one decision adds. `eligible` empty: its candidates are not in the log."""

    unit: str
    surface: str
    at: float
    delivered: str
    eligible: str
    summary: str


def summary_of(decision: Decision, surface: Surface, encoder: Encoder) -> str:
    """As the decision's context says it."""
    asked = asked_of(surface)
    assert asked is not None  # asked only where there is one
    context = decision.context
    values = np.frombuffer(context, "<f4") if isinstance(context, bytes) else np.asarray(context)
    places = {name: place for place, name in enumerate(encoder.context_names)}
    for value in summaries_of(surface)[:-1]:
        if values[places[f"{asked.summary}={value}"]] > 0:
            return value
    return OTHERS


def contribution(one: Experience, surface: Surface, encoder: Encoder) -> Contribution | None:
    """Of a settled decision; None of one that nobody saw."""
    decision, viewed = one.decision, np.flatnonzero(np.frombuffer(one.row.viewed, np.uint8))
    if not len(viewed):
        return None
    digest = hashlib.blake2b(decision.decision_id.encode(), digest_size=16, person=b"impression").digest()
    u, v = (np.frombuffer(digest, "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    shown = decision.slate[int(viewed[int(u * len(viewed))])]
    summary = summary_of(decision, surface, encoder)
    return Contribution(decision.unit, surface.surface, decision.at, shown, _eligible(decision, v), summary)


def _eligible(decision: Decision, v: float) -> str:
    """One of all that might have been shown, evenly; of a shortlist's random part, which stands for all that were not kept."""
    ids, short = decision.candidates, decision.shortlist
    if not ids:
        return ""
    if short is None or not short.drawn:
        return ids[int(v * len(ids))]
    place = int(v * short.eligible)
    if place < short.kept:
        return ids[place]
    return ids[short.kept + (place - short.kept) * short.drawn // (short.eligible - short.kept)]


def admitted(ledger: Ledger, place: Place, privacy: Privacy, day: int) -> str:
    """Enter one request into a ledger (it is changed), or say why not: over_counts | over_budget; empty: it counts."""
    scheme, window = place
    counted = ledger.counted.setdefault(scheme, {})
    before = counted.get(window, 0)
    if (before + 1) * COUNTS_A_REQUEST > privacy.counts:
        return "over_counts"
    if not before:
        spent = ledger.spent.get(day, 0.0)
        if spent + privacy.release > privacy.total + 1e-9:  # rounding of sums
            return "over_budget"
        ledger.spent[day] = spent + privacy.release
    counted[window] = before + 1
    return ""


def pruned(ledger: Ledger, open_windows: Mapping[str, int], oldest: int) -> None:
    """Take out of a ledger what no open window (`counted_as` → number) and no day from the oldest of these on asks for."""
    ledger.spent = {day: spent for day, spent in ledger.spent.items() if day >= oldest}
    ledger.counted = {
        scheme: kept
        for scheme, windows in ledger.counted.items()
        if (kept := {w: count for w, count in windows.items() if w >= open_windows.get(scheme, w + 1)})
    }


def cells(one: Contribution, value: str) -> list[Cell]:
    """What a contribution of somebody with a value of the attribute adds one to."""
    found = [(DELIVERED, one.delivered, value), (SUMMARIES, one.summary, value)]
    return [*found, (ELIGIBLE, one.eligible, value)] if one.eligible else found
