"""The aggregator: counts settled decisions by a sensitive attribute of people, and releases noisy sums once a window.

It runs in the control service, beside the readouts, on what their settlers give out; the attribute is told to it by
`PUT /v1/units:attributes` and lies in its own store, which no other process opens. What it releases goes to the state record,
from which scoring boosts. A release is drawn and durable here before anybody is told, so a crash repeats it bit for bit.

A store that is lost loses attributes, open counts and ledgers: sums go on from the record, and nothing is counted before the
next day begins, for nobody knows what was spent of this one.
"""

import logging
import math
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct

from policies.errors import Corrupt, Rejected
from policies.reranking.impression_variance import Privacy, distances
from policies.surface import Surface
from services.audit import Change, entry
from services.control.readouts import PAGE, Seat
from services.telemetry import Telemetry
from streaming.configuration import Compiled, Configs
from streaming.contributions import Contribution, admitted, cells, contribution, pruned
from streaming.events import unit_hash
from streaming.experiences import Experience
from streaming.forgets import forgotten
from streaming.impressions import (
    DAY_SECONDS,
    KIND,
    Audience,
    Counting,
    Counts,
    Ledger,
    Opened,
    Place,
    Told,
    asked_of,
    counted_as,
    decode,
    encode,
    released,
    scheme_of,
    window_seconds,
)
from streaming.ports import State

log = logging.getLogger("slatewise.control")
MOST_PEOPLE, MOST_UNIT = 10_000, 256  # of one request; of a unit's id
SURE = 10.0  # standard errors of the noise: items with fewer counts are in no metric


class Store(Audience, Counting, Protocol):
    """The aggregator's own."""


class Person(Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of a unit: attribute → value, null takes it away."""

    unit: str
    attributes: dict[str, str | None]


_people = msgspec.json.Decoder(list[Person])


class Impressions:
    """Of all surfaces. `fold` and `tell` belong to the readouts' thread; `people` and `report` to any.

    noise  makes the generator of a release; nobody outside may know its state
    """

    def __init__(
        self,
        state: State,
        opened: Callable[[], Store],
        partitions: int,
        salt: bytes,
        tenant: str = "default",
        *,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.time,
        noise: Callable[[], np.random.Generator] = lambda: np.random.default_rng(secrets.randbits(256)),
    ) -> None:
        self._state, self._opened, self._partitions, self._salt = state, opened, partitions, salt
        self._configs, self._clock, self._noise = Configs(tenant), clock, noise
        self._telemetry = telemetry or Telemetry()
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._frontiers: dict[int, float] = {}
        self._told: dict[str, bytes] = {}  # surface → what the record has, as far as is known here

    # -- what people are ---------------------------------------------------------------------------------------------

    def people(self, body: bytes, who: str) -> dict[str, int]:
        """Keep what is told of people. Raises Rejected, which repeats no value, and Unavailable."""
        told = _decoded(body)
        known = self._attributes()
        for i, person in enumerate(told):
            if not 1 <= len(person.unit) <= MOST_UNIT:
                raise Rejected(f"Expected str of length 1 to {MOST_UNIT}", at=f"$[{i}].unit")
            for name, value in person.attributes.items():
                if name not in known:
                    said = f"No surface counts by it; attributes are: {', '.join(sorted(known)) or 'none'}"
                    raise Rejected(said, at=f"$[{i}].attributes", code="unknown_attribute")
                if value is not None and value not in known[name]:
                    said = f"Expected one of: {', '.join(sorted(known[name]))}"
                    raise Rejected(said, at=f"$[{i}].attributes.{name}")
        names = sorted({name for person in told for name in person.attributes})
        self._open().tell({unit_hash(person.unit, self._salt): person.attributes for person in told})
        said_of = {"units": len(told), "attributes": names}
        self._state.put([entry(Change(self._clock(), who, "attributes", "units", None, said_of))])
        return {"units": len(told)}

    def report(self, name: str) -> dict[str, Any]:
        """What was released of a surface: noisy sums, all that anybody may know. Raises Rejected(404), Unavailable."""
        self._follow()
        compiled = self._configs.current(name)
        asked = asked_of(compiled.surface) if compiled is not None else None
        if compiled is None or asked is None:
            said = f"No surface {name!r} with fairness.impression_variance"
            raise Rejected(said, at="$.name", code="unknown_surface", status=404)
        told = self._configs.impressions(name)
        found = {"surface": name, "attribute": asked.attribute, "values": asked.values, "releases": 0, "items": []}
        if told is None or told.scheme != scheme_of(compiled.surface):
            return found
        sums = told.sums(len(asked.values))
        lines = zip(told.items, sums.delivered.round(1).tolist(), sums.eligible.round(1).tolist(), strict=True)
        items = [{"item": item, "delivered": delivered, "eligible": eligible} for item, delivered, eligible in lines]
        return {**found, "releases": told.releases, "ends": told.ends, "items": items}

    # -- beside the readouts -----------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """Whether any surface asks for it. Raises Unavailable."""
        self._follow()
        return bool(self._surfaces())

    def fold(self, seat: Seat) -> None:
        """Everything of a partition that has settled, each decision once. Raises Unavailable, and Rejected('fenced')."""
        self._follow()  # a version that a settled decision names is in the record by now
        surfaces = self._surfaces()
        if not surfaces:
            self._frontiers.clear()  # where it is asked for again, every partition is looked at before anything is released
            return
        for compiled in surfaces.values():
            self._begun(compiled)
        partition, store = seat.settler.partition, self._open()
        number = store.cursor(partition)
        first, after = seat.outbox.numbers()
        while number < after:
            rows = seat.experiences.rows(max(number, first), PAGE)
            counts: dict[Place, Counts] = {}
            ledgers: dict[str, Ledger] = {}
            try:
                self._count(seat.experiences.of(rows), surfaces, counts, ledgers)
            except Corrupt as error:  # the log is trimmed by its age, and this was behind
                self._telemetry.add("impression_counts_total", "", "lost", by=len(rows))
                log.warning("impressions lack decisions", extra={"partition": partition, "error": str(error)})
            reached = rows[-1][0] + 1
            store.commit(partition, number, reached, counts, ledgers)
            number = reached
        self._frontiers[partition] = seat.frontier

    def folded(self, partition: int) -> int:
        """The next number that is wanted: none where nobody asks, for decisions of before that are not counted."""
        return self._open().cursor(partition) if self._surfaces() else sys.maxsize

    def tell(self) -> None:
        """Release every window that is over, and bring the record to what is released."""
        if len(self._frontiers) < self._partitions:
            return
        frontier, surfaces = min(self._frontiers.values()), self._surfaces()
        for name, compiled in surfaces.items():
            asked = asked_of(compiled.surface)
            opened = self._begun(compiled)
            assert asked is not None  # `_surfaces` are those that ask
            while (opened.window + 1) * window_seconds(asked) + compiled.surface.horizon_seconds <= frontier:
                if not self._release(compiled.surface, opened.window, self._open_windows(surfaces)[1]):
                    break
                opened = self._begun(compiled)
            if opened.told and self._told.get(name) != opened.told:
                self._write(name, opened.told)
                self._measure(compiled.surface, decode(opened.told))

    def _count(
        self,
        settled: list[Experience],
        surfaces: Mapping[str, Compiled],
        counts: dict[Place, Counts],
        ledgers: dict[str, Ledger],
    ) -> None:
        """Contributions of settled decisions into counts and ledgers."""
        said: Counter[tuple[str, str]] = Counter()
        open_windows, oldest = self._open_windows(surfaces)
        for name, compiled in surfaces.items():
            found = self._contributions(settled, compiled)
            asked, store = asked_of(compiled.surface), self._open()
            opened = self._begun(compiled)
            assert asked is not None  # `_surfaces` are those that ask
            privacy, length = Privacy(asked.counts, asked.release, asked.total), window_seconds(asked)
            units = list(dict.fromkeys(one.unit for one in found))
            values = store.values(units, asked.attribute)
            ledgers |= store.ledgers([unit for unit in units if unit in values and unit not in ledgers])
            for one in found:
                value = values.get(one.unit)
                if value is None or value not in asked.values or one.at < opened.since:
                    said[name, "before" if one.at < opened.since else "unknown"] += 1
                    continue
                window = max(opened.window, math.floor(one.at / length))
                day = math.floor(window * length / DAY_SECONDS)
                place = (counted_as(name, opened.scheme), window)
                ledger = ledgers.setdefault(one.unit, Ledger({}, {}))
                why = admitted(ledger, place, privacy, day)
                said[name, why or "counted"] += 1
                if not why:
                    pruned(ledger, open_windows, oldest)
                    sums = counts.setdefault(place, {})
                    for cell in cells(one, value):
                        sums[cell] = sums.get(cell, 0.0) + 1.0
        for (name, outcome), count in said.items():
            self._telemetry.add("impression_counts_total", name, outcome, by=count)

    def _contributions(self, settled: list[Experience], compiled: Compiled) -> list[Contribution]:
        """Of decisions made under the scheme that is counted now."""
        found, scheme = [], scheme_of(compiled.surface)
        for one in settled:
            decision = one.decision
            if decision.surface != compiled.surface.surface:
                continue
            version = self._configs.get(decision.config)
            if version is None or asked_of(version.surface) is None or scheme_of(version.surface) != scheme:
                continue
            if forgotten(self._configs.forgotten, decision.unit, decision.at):
                continue
            made = contribution(one, version.surface, version.encoder)
            if made is not None:
                found.append(made)
        return found

    def _open_windows(self, surfaces: Mapping[str, Compiled]) -> tuple[dict[str, int], int]:
        """(`counted_as` → open window, the oldest day that one of them is of)."""
        windows: dict[str, int] = {}
        days = []
        for name, compiled in surfaces.items():
            opened, asked = self._begun(compiled), asked_of(compiled.surface)
            assert asked is not None  # `_surfaces` are those that ask
            windows[counted_as(name, opened.scheme)] = opened.window
            days.append(math.floor(opened.window * window_seconds(asked) / DAY_SECONDS))
        return windows, min(days, default=0)

    def _release(self, surface: Surface, window: int, oldest: int) -> bool:
        """Durable here before it is told."""

        def made(opened: Opened, counts: Counts) -> bytes:
            before = decode(opened.told) if opened.told else Told(opened.scheme, window, 0.0)
            return encode(released(before, counts, surface, window, self._noise()))

        done = self._open().release(surface.surface, window, oldest, made)
        if done:
            self._telemetry.add("impression_releases_total", surface.surface)
        return done

    def _begun(self, compiled: Compiled) -> Opened:
        """A surface as it is counted, begun where that is new here."""
        name, scheme, store = compiled.surface.surface, scheme_of(compiled.surface), self._open()
        opened = store.opened(name)
        if opened is not None and opened.scheme == scheme:
            return opened
        asked = asked_of(compiled.surface)
        assert asked is not None  # asked only where there is one
        length, now = window_seconds(asked), self._clock()
        told = self._configs.impressions(name)
        if opened is None and told is not None and told.scheme == scheme:  # the store is new, what was released is not
            tomorrow = (math.floor(max(now, told.ends) / DAY_SECONDS) + 1) * DAY_SECONDS
            made = Opened(scheme, math.floor(tomorrow / length), float(tomorrow), encode(told))
            log.warning("impressions begin anew", extra={"surface": name, "since": tomorrow})
        else:
            made = Opened(scheme, math.floor(now / length), 0.0, b"")
        store.open(name, made)
        return made

    def _write(self, name: str, told: bytes) -> None:
        held, ours = self._state.get(KIND, name), decode(told)
        theirs = decode(held.value) if held is not None and held.value is not None else None
        if theirs is not None and theirs.scheme == ours.scheme and theirs.window > ours.window:
            log.error("impressions superseded", extra={"surface": name})  # what another control service said stands
        elif held is None or held.value != told:
            self._state.put([(KIND, name, told)], held.version if held is not None else 0)
        self._told[name] = told

    def _measure(self, surface: Surface, told: Told) -> None:
        """Mean distance over items whose counts stand clear of the noise, as anybody could compute it from what was released."""
        asked = asked_of(surface)
        assert asked is not None  # asked only where there is one
        sums, scale = told.sums(len(asked.values)), Privacy(asked.counts, asked.release, asked.total).scale
        least = SURE * scale * np.sqrt(2.0 * told.releases)
        here, could = np.maximum(sums.delivered, 0.0), np.maximum(sums.eligible, 0.0)
        clear = (here.sum(axis=1) >= least) & (could.sum(axis=1) >= least)
        if clear.any():
            far = float(distances(here[clear], could[clear]).mean())
            self._telemetry.set("impression_distance_share", surface.surface, value=far)

    def _attributes(self) -> dict[str, set[str]]:
        """Attribute → values, of all surfaces that count by one."""
        self._follow()
        found: dict[str, set[str]] = {}
        for compiled in self._surfaces().values():
            asked = asked_of(compiled.surface)
            assert asked is not None  # `_surfaces` are those that ask
            found.setdefault(asked.attribute, set()).update(asked.values)
        return found

    def _surfaces(self) -> dict[str, Compiled]:
        asking = (one for one in self._configs.answering() if asked_of(one.surface) is not None)
        return {one.surface.surface: one for one in asking}

    def _follow(self) -> None:
        with self._lock:
            self._configs.follow(self._state)

    def _open(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = self._opened()
            return self._store


def _decoded(body: bytes) -> list[Person]:
    """Raises Rejected without a word of the body."""
    try:
        told = _people.decode(body)
    except msgspec.ValidationError as error:
        _, _, at = str(error).partition(" - at `")
        said = "Expected [{unit: text, attributes: {name: text or null}}]"
        raise Rejected(said, at=at.rstrip("`") or "$") from None
    except msgspec.DecodeError:
        raise Rejected("The body is not JSON", code="undecodable", status=400) from None
    if len(told) > MOST_PEOPLE:
        raise Rejected(f"Expected at most {MOST_PEOPLE} units", at="$")
    return told
