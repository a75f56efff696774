"""What scoring draws from, as an operator handles it: look at a bundle, verify it, go back to one, follow learning again.

A rollback is state, not an edit: the hold is written to the state record, where the learning service sees it within a
second and stops moving the pointer, and only then is the pointer moved, so nothing published in between stays.
"""

import time
from dataclasses import dataclass
from typing import Self

import msgspec

from policies import bundle as bundling
from policies.errors import Corrupt, Rejected, Unavailable
from policies.surface import seconds
from services.epochs import current_epoch
from services.settings import Settings
from services.wiring import open_bundles, open_log, own_state
from streaming.configuration import Configs
from streaming.events import Decision, decode
from streaming.ports import Bundles, Log, State
from streaming.scorer import score

KIND, KEY = "release", "holds"
SEEN_SECONDS = 1.0  # the learning service follows the record every 0.25 s and a publish takes less than the rest
SEARCHED = 2_000  # records looked at from a moment of the log backwards


def holds(state: State) -> dict[str, str]:
    """`surface/policy` → the bundle it is held at."""
    entry = state.get(KIND, KEY)
    return msgspec.json.decode(entry.value, type=dict[str, str]) if entry and entry.value else {}


def named_bundles(state: State) -> set[str]:
    """Bundles that stay however old they are: those that policies are held at."""
    return set(holds(state).values())


@dataclass(frozen=True, slots=True)
class Releases:
    """Pointers and holds over the stores of one installation."""

    state: State
    bundles: Bundles
    events: Log

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(own_state(settings), open_bundles(settings), open_log(settings))

    def inspect(self, name: str | None) -> str:
        """JSON of a manifest, or of every pointer."""
        if name is None:
            held = holds(self.state)
            pointers = sorted(self.bundles.pointers().items())
            shown = {policy: {"bundle": bundle, "held": policy in held} for policy, bundle in pointers}
            return msgspec.json.format(msgspec.json.encode(shown)).decode()
        return msgspec.json.format(msgspec.json.encode(self.read(name).manifest)).decode()

    def read(self, name: str) -> bundling.Bundle:
        """The bundle of an id or of `surface/policy`. Raises Rejected(404), Corrupt."""
        name = self.bundles.pointers().get(name, name)
        try:
            return bundling.read(name, self.bundles.get)
        except (Unavailable, ValueError):  # a store refuses names that would leave it
            raise Rejected(f"No bundle {name!r}", code="unknown_bundle", status=404) from None

    def verify(self, name: str) -> bundling.Manifest:
        """Pass the gate of scoring, against the schema of the configuration the bundle was made under. Raises Corrupt."""
        found = self.read(name)
        manifest = found.manifest
        configs = Configs()
        configs.follow(self.state)
        compiled = configs.get(manifest.config)
        if compiled is None:
            raise Corrupt("schema", f"no configuration {manifest.config}")
        bundling.verify(found, schema=compiled.encoder.schema, algorithm=manifest.algorithm, score=score)
        return manifest

    def rollback(self, policy: str, *, to: str | None = None, before: str | None = None) -> str:
        """Hold a policy at a bundle, given by id or by how long ago it answered; the bundle. Raises Rejected, Corrupt."""
        if policy not in self.bundles.pointers():
            raise Rejected(f"No policy {policy!r} has a bundle", code="unknown_policy", status=404)
        if (to is None) == (before is None):
            raise Rejected("Expected either a bundle or how long ago it answered", at="$.to")
        target = to or self.answered_by(policy, time.time() - seconds(before or 0, "$.before"))
        manifest = self.verify(target)
        if f"{manifest.surface}/{manifest.policy}" != policy:
            raise Rejected(f"Bundle {target} is of {manifest.surface}/{manifest.policy}", at="$.to")
        self._hold(policy, target)
        time.sleep(SEEN_SECONDS)
        try:
            self.verify(target)  # retention sees the hold by now, and may have removed a file a moment before
        except (Rejected, Corrupt):
            self._hold(policy, None)
            raise
        self.bundles.point(policy, target, current_epoch(self.state))
        return target

    def resume(self, policy: str) -> None:
        """Let a policy follow what is learned. Raises Rejected(404) when it is not held."""
        if policy not in holds(self.state):
            raise Rejected(f"{policy!r} is not held", code="not_held", status=404)
        self._hold(policy, None)

    def answered_by(self, policy: str, moment: float) -> str:
        """The bundle of the last decision of a policy before a moment, found in the log. Raises Rejected(404)."""
        best: tuple[float, str] = (0.0, "")
        for partition in range(self.events.partitions):
            first, end = self.events.first(partition), self._before(partition, moment)
            start = max(first, end - SEARCHED)
            for record in reversed(self.events.read(partition, start, end - start)):
                try:
                    event = decode(record.value)
                except Corrupt:  # set aside by the shard; no concern of ours
                    continue
                if isinstance(event, Decision) and f"{event.surface}/{event.policy}" == policy and event.bundle:
                    best = max(best, (record.appended, event.bundle))
                    break
        if not best[1]:
            raise Rejected(
                f"No decision of {policy} found before that", at="$.before", code="unknown_bundle", status=404
            )
        return best[1]

    def _before(self, partition: int, moment: float) -> int:
        """Offset of the first record appended at or after a moment, by bisection."""
        low, high = self.events.first(partition), self.events.end(partition)[0]
        while low < high:
            middle = (low + high) // 2
            found = self.events.read(partition, middle, 1)
            if found and found[0].appended < moment:
                low = middle + 1
            else:
                high = middle
        return low

    def _hold(self, policy: str, bundle: str | None) -> None:
        while True:
            seen = self.state.version()
            held = {name: at for name, at in holds(self.state).items() if name != policy}
            if bundle is not None:
                held[policy] = bundle
            try:
                self.state.put([(KIND, KEY, msgspec.json.encode(held))], expect=seen)
            except Rejected:  # something else was written in between
                continue
            return
