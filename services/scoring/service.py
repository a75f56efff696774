"""The scoring service without HTTP: ports in, answers out. A decision is decode → query → score → draw → spool → encode.

Everything a decision reads is held here and belongs to the event loop; `poll`, `claim` and `keep` wait for disks, in
threads, and hand over finished values.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count, islice
from time import perf_counter
from typing import Any, Protocol

import msgspec

from policies.errors import Rejected, Unavailable
from policies.experiments.assignment import choose
from policies.slate import warm
from policies.types import Arrays
from services.access import Access
from services.keys import Keys
from services.scoring import feedback as feedbacks
from services.scoring.admission import Admission, Patience
from services.scoring.before import Before
from services.scoring.catalogue import Catalogue, Encoded, check_items
from services.scoring.claiming import Claimed, pack, request_hash, unpack
from services.scoring.countings import Countings
from services.scoring.decide import (
    Drawn,
    Lends,
    Made,
    Served,
    answer_of,
    drawn_from,
    encoded_record,
    experiment_of,
    inputs_of,
    item_scores,
    record_of,
)
from services.scoring.explaining import explanation_of, exploration_explained, rules_explained
from services.scoring.exposures import Exposures
from services.scoring.goals import NEUTRAL, UNCLAIMED, Goals, one_hot
from services.scoring.histories import Histories
from services.scoring.inline import surface_named
from services.scoring.interleaving import drawn_together
from services.scoring.lately import MOST_ITEMS
from services.scoring.leases import Lending
from services.scoring.live import Follower, Live, LiveSurface
from services.scoring.query import Query
from services.scoring.shadowing import Shadowing
from services.scoring.shortlisting import Cut
from services.scoring.tallies import Tallies
from services.scoring.warming import CANDIDATES, rehearse
from services.scoring.wire import DecisionAnswer, DecisionRequest, ExperimentArm, Item, encode, read_decision
from services.telemetry import Telemetry
from streaming.configuration import Configs
from streaming.copies import Copies
from streaming.events import Feedback, Goal, Shadow, unit_hash
from streaming.events import encode as encode_event
from streaming.ports import Bundles, Claims, State
from streaming.spool import Spool

log = logging.getLogger("slatewise.scoring")
HURRY = 4.0  # a deadline below so many times what a shadow lately took leaves no time for one
STAGES = ("decode", "query", "score", "draw", "record", "spool", "answer")


class Appends(Protocol):
    """As much of a log as feedback needs that goes straight to it."""

    def append(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises Unavailable."""


class Scoring:
    """Wired from ports. `clock` gives epoch seconds and only places events; ages are measured by `perf_counter`.

    acknowledge  a log that feedback goes straight to, when a 202 has to mean that the log has it; else the spool's disk
    histories, exposures, countings   see `Before`
    leases       what surfaces left of their exploration caps, lent; None: never
    access       whose keys may ask for what; None: no key but those that the record has
    copies       what this replica starts from while the stores are away; None where they lie on the same disk
    """

    def __init__(
        self,
        *,
        state: State,
        claims: Claims,
        bundles: Bundles,
        spool: Spool,
        keys: Keys,
        configs: Configs | None = None,
        telemetry: Telemetry | None = None,
        patience: Patience | None = None,
        acknowledge: Appends | None = None,
        copies: Copies | None = None,
        histories: Histories | None = None,
        exposures: Exposures | None = None,
        countings: Countings | None = None,
        leases: Lending | None = None,
        tenant: str = "default",
        access: Access | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.state, self.claims, self.spool, self.keys = state, claims, spool, keys
        self.configs = configs or Configs(tenant)
        self.telemetry = telemetry or Telemetry()
        self.telemetry.add("log_write_errors_total", by=0.0)  # born before the first error, which `rate` would not see
        self.admission = Admission(patience or Patience())
        self.patience = self.admission.patience
        self.catalogue = Catalogue()
        self.live = Live()
        self.tenant, self.clock, self.acknowledge, self.copies = tenant, clock, acknowledge, copies
        self.before = Before(self.telemetry, histories, exposures, countings)
        self.leases = leases or Lending(tenant=tenant)
        self.access = access or Access(tenant)
        self._goals = Goals(claims, tenant, keys.server)
        self._follower = Follower(bundles, self.configs, self.telemetry)
        self._salt = keys.salt(tenant)
        self._worker, self._count = secrets.token_hex(2), count(secrets.randbits(24))
        self._stages = [self.telemetry.series("decide_stage_seconds", stage) for stage in STAGES]
        self._tallies = Tallies(self.telemetry)
        self._encoded: dict[str, Encoded | None] = {}  # schema → items encoded for it, between `poll` and `swap`

    # -- decisions ---------------------------------------------------------------------------------------------------

    def decide(self, body: bytes, first_byte: float | None = None) -> bytes:
        """Answer a request that needs no claim, or claim in this thread. Raises Rejected, Unavailable."""
        made = self.read(body, first_byte)
        if made.request.decision_id is None:
            return self.finish(made)
        return self.finish_claimed(made, self.claim(made))

    def read(self, body: bytes, first_byte: float | None = None) -> Made:
        """Decode, check, draw; nothing is written yet. Raises Rejected."""
        start = perf_counter()
        request = self.asked(body)
        self._stages[0].append(perf_counter() - start)
        return self.make(request, start if first_byte is None else first_byte)

    def asked(self, body: bytes, at: str = "$") -> DecisionRequest:
        """A request; `at` is where it stands in a larger one. Raises Rejected."""
        surface = self.live.surfaces.get(surface_named(body))
        request = None if surface is None else surface.reader.inline.read(body)
        return read_decision(body, at) if request is None else request

    def make(self, request: DecisionRequest, first_byte: float, because: str | None = None) -> Made:
        """Draw the answer to a request; `because` names a reason to draw from the fallback. Raises Rejected."""
        started = perf_counter()
        surface = self.live.surfaces.get(request.surface)
        if surface is None:
            raise Rejected("No such surface", at="$.surface", code="unknown_surface", status=404)
        unit = unit_hash(request.unit, self._salt)
        now = self.clock()
        past, told = self.before.known(unit, surface, request, now)
        shown = self.before.shown(unit, surface, now)
        decision_id = self._identity(request, unit)
        policy, config, choice = surface.policy, surface.config, None
        if surface.splits:
            choice = choose(surface.splits, unit, request.session, request.context, now)
            if choice is not None:
                arm = surface.arms[choice.experiment, choice.arm]
                policy, config = arm.policy, arm.config
        together = policy is not None and policy.pair is not None
        reason = because or self._reason(policy, started - first_byte, request.deadline_ms)
        drawer = policy if policy is not None and reason is None else surface.fallback
        if together:  # a shortlist is one policy's
            drawer = surface.policy or surface.fallback
        cut = Cut(decision_id, self.keys.server, item_scores(drawer)) if request.candidates is None else None
        lifting = surface.lifting if surface.lifting is not None and now < surface.lifting.until else None
        query = surface.reader.read(request, self.catalogue, past, shown, cut, lifting, told)
        if together and query.shortlist is not None:  # … so the experiment leaves the request to what serves otherwise
            policy, config, choice = surface.policy, surface.config, None
            reason = because or self._reason(policy, started - first_byte, request.deadline_ms)
        read = perf_counter()
        session = f"{request.surface}\0{unit}\0{request.session or ''}"
        beside = surface.shadow if choice is None and reason is None else None
        if beside is not None and not self._shadowed(beside, decision_id, started - first_byte, request.deadline_ms):
            beside = None
        drawn, reason, scored = self._draw(surface, policy, query, decision_id, reason, session, beside is not None)
        done = perf_counter()
        answer = answer_of(
            drawn,
            query,
            decision_id=decision_id,
            unit=unit,
            surface=request.surface,
            mode="fallback" if reason is not None else "live" if choice is None else choice.mode,
            reason=reason,
        )
        if choice is not None:
            answer.experiment = ExperimentArm(choice.experiment, choice.arm)
        record = record_of(
            drawn,
            query,
            answer,
            now=now,
            config=config,
            catalogue=self.catalogue.version,
            rate=surface.rate,
            session=request.session,
            defer=request.defer,
            own_id=request.decision_id is not None,
            tenant=self.tenant,
            trains=surface.reader.trains,
            experiment=None if choice is None else experiment_of(choice),
            shadows=()
            if beside is None or reason is not None
            else self._shadows(beside, query, drawn, request.surface),
        )
        if request.explain and drawn.interleaved is None and started - first_byte < self.patience.explain:
            answer.explain, answer.rules = explanation_of(drawn, query), rules_explained(drawn, query)
            answer.exploration = exploration_explained(drawn)
        encoded = encoded_record(record, len(query.ids))
        _, queries, scores, draws, records, _, _ = self._stages
        queries.append(read - started)
        scores.append(scored - read)
        draws.append(done - scored)
        records.append(perf_counter() - done)
        drawn.served.recent.seconds.append(done - started)
        return Made(request, answer, encoded, first_byte, drawn)

    def finish(self, made: Made) -> bytes:
        """Log the answer, then give it. A full spool turns it into one from the fallback that says it is not logged."""
        start = perf_counter()
        try:
            self.spool.append(made.answer.key.encode(), made.record)
        except Unavailable as error:
            made = self._unlogged(made, error)
        spooled = perf_counter()
        body = encode(made.answer)
        end = perf_counter()
        self._stages[5].append(spooled - start)
        self._stages[6].append(end - spooled)
        self._tallies.count(made.answer, made.drawn, end - made.first_byte)
        return body

    def claim(self, made: Made) -> Claimed | None:
        """Claim the caller's own id for an hour: None when it is ours now. Raises Unavailable. May run in a thread."""
        held = self.claims.claim(self.tenant, made.answer.decision_id, _claim_of(made), self.clock())
        return None if held is None else unpack(held)

    def claim_all(self, several: Sequence[Made]) -> list[Claimed | None]:
        """As `claim` of each, in one visit to the store."""
        claims = [(made.answer.decision_id, _claim_of(made)) for made in several]
        found = self.claims.claim_all(self.tenant, claims, self.clock())
        return [None if held is None else unpack(held) for held in found]

    def finish_claimed(self, made: Made, winner: Claimed | None) -> bytes:
        """The answer after its claim: ours, or that of the request that was first. Raises Rejected(409)."""
        if winner is None:
            return self.finish(made)
        if winner.request != request_hash(made.request):
            raise Rejected(
                "Another request was answered under this id", at="$.decision_id", code="conflict", status=409
            )
        answer = msgspec.json.decode(winner.answer, type=DecisionAnswer)
        answer.mode, answer.retry_unchecked = "cached", False
        try:
            self.spool.append(winner.unit.encode(), winner.record)
        except Unavailable as error:
            self._spool_failed(error)
            answer.logged = False
        made.answer = answer
        self._tallies.count(made.answer, made.drawn, perf_counter() - made.first_byte)
        return encode(answer)

    def finish_unclaimed(self, made: Made) -> bytes:
        """The claims' store is away: answered all the same, and it says that a retry may get another answer."""
        made.answer.retry_unchecked = True
        self.telemetry.add("decide_unchecked_total", made.answer.surface)
        return self.finish(made)

    def _identity(self, request: DecisionRequest, unit: str) -> str:
        own = request.decision_id
        if own is None:
            return f"{unit}-{int(self.clock() * 1000):012x}{self._worker}{next(self._count) & 0xFFFFFF:06x}"
        if feedbacks.OURS.match(own) and own[:16] != unit:
            raise Rejected(
                "An id that starts like one of ours must carry its own unit's hash",
                at="$.decision_id",
                code="wrong_unit",
            )
        return own

    def _reason(self, policy: Served | None, waited: float, deadline_ms: float | None) -> str | None:
        """Why the fallback answers in place of a policy, or None."""
        if policy is None:
            return "no_bundle"
        if self.spool.level == "full":
            return "spool_full"
        if waited > self.patience.live:
            return "overload"
        if deadline_ms is not None and deadline_ms / 1000 - waited < policy.recent.p99:
            return "deadline"
        return None

    def _draw(
        self,
        surface: LiveSurface,
        policy: Served | None,
        query: Query,
        decision_id: str,
        reason: str | None,
        session: str,
        full: bool = False,
    ) -> tuple[Drawn, str | None, float]:
        """(drawn, why in mode `fallback`, when scoring ended)."""
        if reason is None and policy is not None:
            try:
                drawn, scored = self._drawn(policy, surface, query, decision_id, session, full)
                unclaimed = drawn.goal is not None and drawn.goal.id == NEUTRAL
                return drawn, UNCLAIMED if unclaimed else None, scored
            except Rejected:
                raise
            except Exception:  # whatever a policy's graph can raise: there is always an answer
                log.exception("policy_failed", extra={"decision_id": decision_id, "policy": policy.policy})
                reason = "error"
        drawn, scored = self._drawn(surface.fallback, surface, query, decision_id, session, borrows=False)
        return drawn, reason, scored

    def _drawn(
        self,
        served: Served,
        surface: LiveSurface,
        query: Query,
        decision_id: str,
        session: str,
        full: bool = False,
        borrows: bool = True,
    ) -> tuple[Drawn, float]:
        if served.pair is not None:
            return drawn_together(served, query, decision_id, self.keys.server, surface.rate), perf_counter()
        inputs, goal = inputs_of(served, query), None
        if served.goals:
            goal = self._goal(served, decision_id, session, inputs)
            inputs["goal"] = one_hot(goal.id, served.goals)
        scores = served.scores(inputs)
        scored = perf_counter()
        leases: Mapping[str, Lends] = self.leases.on(surface.surface) if borrows else self.leases.off(surface.surface)
        server, rate = self.keys.server, surface.rate
        return drawn_from(served, query, scores, decision_id, server, rate, goal, full, leases), scored

    def _shadowed(self, beside: Shadowing, decision_id: str, waited: float, deadline_ms: float | None) -> bool:
        """Whether the candidate is drawn beside this decision: chance, and nothing that the draw could tell. It is the first
        thing that a decision in a hurry leaves out."""
        if waited > self.patience.explain or (
            deadline_ms is not None and deadline_ms / 1000 < HURRY * beside.served.recent.p99
        ):
            return False
        return beside.chosen(decision_id, self.keys.server)

    def _shadows(self, beside: Shadowing, query: Query, drawn: Drawn, surface: str) -> list[Shadow]:
        started = perf_counter()
        found, outcome = beside.draw(query, drawn)
        beside.served.recent.seconds.append(perf_counter() - started)
        self.telemetry.add("shadow_draws_total", surface, beside.served.policy, outcome)
        return found

    def _goal(self, served: Served, decision_id: str, session: str, inputs: Arrays) -> Goal:
        if served.manager is None:
            return Goal(NEUTRAL, 1.0, served.bundle, decision_id)
        return self._goals.of(
            f"{served.policy}\0{session}",
            decision_id,
            served.bundle,
            served.manager,
            inputs,
            steps=served.goal_steps,
            floor=served.settings.floor,
            now=self.clock(),
        )

    def _unlogged(self, made: Made, error: Unavailable) -> Made:
        self._spool_failed(error)
        if made.answer.mode != "fallback":
            made = self.make(made.request, made.first_byte, "spool_full")
        made.answer.logged = False
        return made

    def _spool_failed(self, error: Exception) -> None:
        self.telemetry.add("log_write_errors_total")
        log.error("spool_failed", extra={"error": str(error)})

    # -- feedback ----------------------------------------------------------------------------------------------------

    def terms(self) -> feedbacks.Terms:
        return feedbacks.Terms(self.live.kinds, self.live.correctable_seconds, self._salt, self.tenant)

    def refuse_when_full(self) -> None:
        """Raises Unavailable when feedback has to wait: decisions need the room more (`semantics.md` 10)."""
        if self.acknowledge is None and self.spool.level != "ok":
            raise Unavailable("The spool is nearly full, try again")

    def keep(self, heard: Sequence[Feedback]) -> None:
        """Feedback on this host's disk (or in the log). Waits for it: run in a thread. Raises Unavailable."""
        if not heard:
            return
        records = [(one.unit.encode(), encode_event(one)) for one in heard]
        if self.acknowledge is not None:
            self.acknowledge.append(records)
            return
        for key, value in records:
            self.spool.append(key, value)
        self.spool.sync()

    def check_items(self, items: Sequence[Item]) -> None:
        """Raises Rejected with the path of the first item that is wrong."""
        check_items(items, [surface.reader.encoder for surface in self.live.surfaces.values()])

    # -- what time brings --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything a first request would wait for: configuration, items, bundles, compiled code. Raises Unavailable."""
        warm()
        self._start_items()
        try:
            self.configs.follow(self.state)  # after the items, so that nothing written meanwhile is skipped
        except Unavailable as error:
            if not self.configs.surfaces():
                raise
            log.warning("configured_from_copy", extra={"error": str(error)})
        try:
            self.swap(self.poll())
        except Unavailable as error:  # there is always an answer: the fallbacks need no bundle
            log.warning("started_without_bundles", extra={"error": str(error)})
            self.swap(self._follower.poll(self.live, {}))
        with suppress(Unavailable):  # rules that ask are skipped until it is there, and `rule_skips_total` says so
            self.refresh(list(islice(self.catalogue.index, MOST_ITEMS)))
        rehearse(self.live, self.make, list(islice(self.catalogue.index, CANDIDATES)))

    def _start_items(self) -> None:
        try:
            while entries := self.state.read(self.catalogue.version):
                self.access.apply(entries)
                self.catalogue.apply(self.catalogue.prepare(entries), self.clock())
        except Unavailable as error:
            if not self.catalogue.version:
                raise
            log.warning("items_from_copy", extra={"error": str(error), "version": self.catalogue.version})

    def poll(self) -> Live:
        """What to serve from now on; reads and checks bundles, encodes items anew. May run in a thread, one at a time."""
        live = self._follower.poll(self.live)
        self.before.open(live.surfaces.values())
        if live is not self.live:
            for surface in live.surfaces.values():
                self._encoded.setdefault(surface.schema, self.catalogue.encode_for(surface.reader.encoder))
        return live

    def refresh(self, expected: Sequence[str] = ()) -> None:
        """What was shown before and counted of items (`Before.refresh`), in a thread, one at a time. Raises Unavailable."""
        self.before.refresh([*self.live.surfaces.values()], self.clock(), expected)

    def renew(self) -> None:
        """Every second, in a thread: what is lent of exploration caps. Raises Unavailable."""
        self.leases.renew([found.surface for found in self.live.surfaces.values()], self.clock(), self.telemetry)

    def swap(self, live: Live) -> None:
        """Serve from a value; on the event loop."""
        if live is self.live:
            return
        for surface in live.surfaces.values():
            self.catalogue.attach(surface.reader.encoder, self._encoded.get(surface.schema))
        self._encoded.clear()
        self.live = live
        self.catalogue.detach(surface.schema for surface in live.surfaces.values())

    def standing(self) -> tuple[bool, dict[str, Any]]:
        """(whether callers should be sent here, what `GET /readyz` says)."""
        surfaces = {
            name: {"mode": "live", "policy": found.policy.policy, "bundle": found.policy.bundle}
            if found.policy
            else {"mode": "fallback", "reason": "no_bundle", "policy": found.fallback.policy}
            for name, found in self.live.surfaces.items()
        }
        draining = self.admission.draining
        status = "draining" if draining else "ready" if surfaces else "no surface is configured"
        body = {"status": status, "surfaces": surfaces, "catalogue": self.catalogue.version}
        if self.copies is not None:
            body["stores"] = self.copies.standing
        return bool(surfaces) and not draining, body

    def keep_copies(self) -> None:
        """Every few seconds, in a thread: what this replica would start from if all stores were away."""
        if self.copies is not None:
            self.copies.keep(self.live.bundles)

    def tick(self) -> None:
        """Every 100 ms, on the event loop: expiry, running percentiles, metrics."""
        self.catalogue.expire(self.clock())
        self._tallies.tell()
        self.telemetry.set("spool_bytes", value=self.spool.bytes)
        self.telemetry.flush()

    def tell_ages(self) -> None:
        """Every second and before a scrape: what changes though nobody asks."""
        now = self.clock()
        if self.copies is not None:
            for store, standing in self.copies.standing.items():
                self.telemetry.set("store_away", store, value=float(standing != "reached"))
        for name, surface in self.live.surfaces.items():
            for policy, served in surface.policies.items():
                if served.created_at:
                    self.telemetry.set("bundle_age_seconds", name, policy, value=now - served.created_at)

    def close(self) -> None:
        self.spool.close()
        if self.copies is not None:
            self.copies.close()
        self.telemetry.flush()


def _claim_of(made: Made) -> bytes:
    return pack(Claimed(request_hash(made.request), made.answer.key, made.record, encode(made.answer)))
