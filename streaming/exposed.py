"""What one decision moves of its groups' counters: looks delivered, entitled to and drawn, and what the groups are worth.

    …/exposure/<by>/<group>/delivered   Σ looks under the distributions that were drawn from
    …/exposure/<by>/<group>/entitled    … by the target
    …/exposure/<by>/<group>/drawn       … by the slates themselves
    …/exposure/<by>/<group>/worth       Σ r/p over the slots that people saw of it

Looks count once for a decision of which anything was seen, whatever else is said of it later, and are taken back when it turns
out that nothing was. Worth follows corrections. Pinned slots (p = 1) say nothing of worth: nobody chose among candidates there.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from streaming.applied import Touched

Group = tuple[str, str, str]  # exposure, what it is by, the group: parts of a counter's name
LOOKS = ("delivered", "entitled", "drawn")
WORTH = "worth"


MEASURES = (*LOOKS, WORTH)
READ = ("delivered", "entitled", WORTH)  # what a controller asks for


def moved(one: Touched) -> Mapping[Group, Sequence[float]]:
    """Group → what its `MEASURES` moved by."""
    drawn, exposure = one.join.drawn, one.terms.compiled.surface.fairness.exposure
    if drawn is None or drawn.exposed is None or exposure is None:
        return {}
    said, k = drawn.exposed, len(drawn.slate)
    seen = any(one.present) - any(one.present_before)
    worth = np.zeros(len(said.groups) + 1)  # the last of slots of no group
    place = place_of(one)
    if place >= 0 and one.rewards != one.rewards_before:
        free = np.array([slot not in drawn.pinned for slot in drawn.slots])
        change = _column(one.rewards, k, place) - _column(one.rewards_before, k, place)
        np.add.at(worth, np.array(said.of), change * free / np.array(drawn.propensities))
    if not seen and not worth.any():
        return {}
    found: dict[Group, Sequence[float]] = {}
    for j, group in enumerate(said.groups):
        looks = [seen * amount[j] for amount in (said.delivered, said.entitled, said.drawn)]
        found["exposure", exposure.by, group] = [*looks, float(worth[j])]
    return found


def place_of(one: Touched) -> int:
    """Which objective merit is measured in; −1 of a surface without."""
    surface = one.terms.compiled.surface
    exposure, objectives = surface.fairness.exposure, surface.objective_names
    assert exposure is not None  # asked only where there is one
    return objectives.index(exposure.objective or objectives[0]) if objectives else -1


def _column(packed: bytes, k: int, place: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.frombuffer(packed).reshape(k, -1)[:, place] if packed else np.zeros(k)
