"""Merges the sums of all partitions into a bundle, passes it through the gate, stores it, moves the pointer.

    committed sums ─ merge ─► Algorithm.publish ─► bundle.build ─► bundle.verify ─► files ─► pointer "surface/policy"

Everything up to the files is pure, and the last two steps are harmless to repeat. A publish skips while a partition is
behind what was last published (`semantics.md` 14), so what scoring draws from never goes back in time. A bundle that
fails the gate is stored nowhere and pointed at by nobody. The graph is built once for a configuration; a publish makes
arrays.

When a surface changes what its sums are made of, a policy's key changes, and what was learned under older keys is merged in
at every publish (`policies.carrying`): configuration never resets learning. The first bundle of a new version waits for
the partitions like any other, while the old version goes on serving.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from policies import bundle as bundling
from policies.algorithm import Addend, Published
from policies.carrying import discounted
from policies.errors import Corrupt, Rejected, Unavailable
from policies.types import Arrays
from streaming.configuration import CompiledPolicy, Configs
from streaming.ports import Bundles
from streaming.scorer import score

WRITERS = 6  # files flushed at a time: a publish writes as many, and waits for the disk more than for anything else
Result = Literal["published", "behind", "refused"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a publish: `detail` says why when it is not `published`, `manifest` is there when it is."""

    result: Result
    pointer: str
    manifest: bundling.Manifest | None = None
    detail: str = ""


class Publisher:
    """Publishes for one epoch of the learning service. Raises Rejected('fenced') once a later epoch has published."""

    def __init__(self, bundles: Bundles, configs: Configs, epoch: int) -> None:
        self._bundles, self._configs, self._epoch = bundles, configs, epoch
        self._last: dict[str, bundling.Manifest] = {}
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="publish")
        self._graphs: dict[tuple[str, str], bytes] = {}  # (learner key, configuration) → graph
        self._managers: dict[tuple[str, str], bytes] = {}  # … of goals, of algorithms that have any

    def last(self, policy: CompiledPolicy) -> bundling.Manifest | None:
        """What the policy's pointer names, by this publisher or by one before it; None when nothing that can be read."""
        pointer = pointer_name(policy)
        if pointer not in self._last:
            name = self._bundles.pointers().get(pointer)
            if name is None:
                return None
            try:
                self._last[pointer] = bundling.read_manifest(name, self._bundles.get)
            except (Corrupt, Unavailable):  # a lost or spoilt file: the next publish replaces it
                return None
        return self._last[pointer]

    def current(self, policy: CompiledPolicy) -> bool:
        """Whether the policy's pointer already names a bundle of this very configuration."""
        last = self.last(policy)
        return last is not None and last.config == self._config(policy) and last.key == policy.key

    def publish(
        self,
        policy: CompiledPolicy,
        sums: Sequence[Arrays],
        trained_through: Mapping[int, int],
        now: float,
        number: int | None = None,
        fresh: Sequence[float] = (),
        older: Sequence[Addend] = (),
        ready: Published | None = None,
    ) -> Outcome:
        """A bundle of what the partitions have committed.

        sums             learned arrays of the policy's key, of the partitions that have any; none: the prior
        trained_through  partition → offset each partition has applied
        number           of the publish, which seeds the pool; None: one more than the last
        fresh            acceptance times of feedback that this bundle is the first to contain
        older            what the policy learned under other keys, see `older_sums`
        ready            of a trainer's policy: made by whoever owns the trainer, in place of `sums`
        """
        pointer, last = pointer_name(policy), self.last(policy)
        if last is not None:
            behind = [p for p, offset in last.trained_through.items() if trained_through.get(int(p), 0) < offset]
            if behind:
                return Outcome("behind", pointer, detail=f"partitions {', '.join(behind)}")
        if number is None:
            number = last.number + 1 if last else 0
        try:
            published = ready or policy.algorithm.publish(
                policy.config, policy.problem, merged(policy, sums, older, now), now, number
            )
            made = self._make(policy, published, trained_through, now, number, fresh)
        except Corrupt as error:
            return Outcome("refused", pointer, detail=str(error))
        list(self._writers.map(self._bundles.put, *zip(*bundling.files(made).items(), strict=True)))
        self._bundles.point(pointer, made.manifest.bundle, self._epoch)
        self._last[pointer] = made.manifest
        return Outcome("published", pointer, made.manifest)

    def _make(
        self,
        policy: CompiledPolicy,
        published: Published,
        trained_through: Mapping[int, int],
        now: float,
        number: int,
        fresh: Sequence[float],
    ) -> bundling.Bundle:
        algorithm, config_hash = policy.algorithm, self._config(policy)
        tenant, surface = policy.key.split("/")[:2]
        made = bundling.build(
            algorithm,
            policy.config,
            policy.problem,
            published,
            tenant=tenant,
            surface=surface,
            policy=policy.name,
            key=policy.key,
            config_hash=config_hash,
            number=number,
            seed=number,
            created_at=now,
            trained_through={str(partition): offset for partition, offset in trained_through.items()},
            epoch=self._epoch,
            fresh=list(fresh),
            score=score,
            graph=self._graphs.get((policy.key, config_hash)),
            manager=self._managers.get((policy.key, config_hash)),
        )
        self._graphs[policy.key, config_hash] = made.graph
        self._managers[policy.key, config_hash] = made.manager
        bundling.verify(made, schema=policy.problem.encoder.schema, algorithm=algorithm.name, score=score)
        return made

    def _config(self, policy: CompiledPolicy) -> str:
        compiled = self._configs.current(policy.key.split("/")[1])
        if compiled is None:
            raise Rejected(f"No surface {policy.key.split('/')[1]}", code="unknown_surface", status=404)
        return compiled.hash


def merged(policy: CompiledPolicy, sums: Sequence[Arrays], older: Sequence[Addend] = (), now: float = 0.0) -> Arrays:
    """One state of several; of none, what the learner or trainer starts from; empty for algorithms that do not learn."""
    algorithm = policy.algorithm
    if algorithm.trainer is not None:
        return dict(sums[0]) if sums else algorithm.trainer(policy.config, policy.problem).arrays()
    if algorithm.learner is None:
        return {}
    if not sums:
        own = algorithm.learner(policy.config, policy.problem).arrays()
    elif len(sums) == 1 or algorithm.merge is None:
        own = dict(sums[0])
    else:
        own = algorithm.merge(sums)
    return algorithm.carry(policy.config, policy.problem, own, older, now) if older and algorithm.carry else own


Learned = Mapping[str, Mapping[str, Sequence[Arrays]]]  # lineage → learner key → sums of the partitions that have any


def by_lineage(partitions: Iterable[Mapping[str, Arrays]]) -> Learned:
    """Committed sums, arranged once for a round of publishes."""
    found: dict[str, dict[str, list[Arrays]]] = {}
    for arrays in partitions:
        for key, sums in arrays.items():
            found.setdefault(lineage(key), {}).setdefault(key, []).append(sums)
    return found


def older_sums(configs: Configs, policy: CompiledPolicy, learned: Learned) -> list[Addend]:
    """What a policy learned under other keys of the same algorithm, merged over partitions, each an addend."""
    found = []
    for key, sums in sorted(learned.get(lineage(policy.key), {}).items()):
        older = configs.learned_as(key)
        if key != policy.key and older is not None and older.algorithm.name == policy.algorithm.name:
            factor = reset_factor(older.resets, policy.resets)
            found.append(Addend(older.problem, discounted(merged(older, sums), factor)))
    return found


def reset_factor(before: Sequence[float], after: Sequence[float]) -> float:
    """What is left of evidence that was learned after some resets, once there have been others. Resets that the later version
    does not know of took nothing from it: it is carried whole."""
    known = len(before)
    return math.prod(after[known:]) if tuple(after[:known]) == tuple(before) else 1.0


def lineage(key: str) -> str:
    """`tenant/surface/policy` of a learner key: what it has in common with the keys of the policy's other versions."""
    return key.rpartition("/")[0]


def pointer_name(policy: CompiledPolicy) -> str:
    """`surface/policy`: the name of the pointer that scoring follows."""
    return f"{policy.key.split('/')[1]}/{policy.name}"
