"""From what is typed to a log and a target: which file this is, which policy is meant, and what it must be given to be asked.

--policy   uniform | greedy | logged | bernoulli_ts | a bundle's id | SURFACE/POLICY of the data folder
           with --config: POLICY or SURFACE/POLICY of its documents, fitted on the log's first part where it learns
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from policies.algorithm import Published
from policies.errors import Rejected
from policies.features import Encoder
from services.evaluation import bernoulli, dsjson, tabular
from services.evaluation.bundled import Bundled
from services.evaluation.decisions import Log
from services.evaluation.other_rules import OtherRules, UnderRules
from services.evaluation.replaying import Replaying
from services.evaluation.targets import HISTORY, Behaviour, Greedy, Positions, Scored, Target, Uniform, check_inputs
from services.scoring.live import served
from services.settings import Settings
from streaming.configuration import Compiled, CompiledPolicy, Configs, compile_surface, load_folder, parse
from streaming.scorer import Scorer

FORMATS = ("experiences", "obd", "dsjson", "hillstrom")
BUILT_IN: dict[str, Target] = {"uniform": Uniform(), "greedy": Greedy(), "logged": Behaviour()}


@dataclass(frozen=True)
class Asked:
    """What a reader must know before it reads.

    target    ready to be asked; None for one that must be fitted first (`policy` of `compiled`), or see the log (bernoulli_ts)
    trained_through  partition → offset up to which a bundle was learned from the log it belongs to
    """

    name: str
    target: Target | None = None
    compiled: Compiled | None = None
    policy: CompiledPolicy | None = None
    trained_through: dict[int, int] = field(default_factory=dict)

    @property
    def encoder(self) -> Encoder | None:
        if self.target is not None:
            return self.target.encoder
        return None if self.policy is None else self.policy.problem.encoder

    @property
    def follows(self) -> bool:
        return self.target is None or self.target.follows

    @property
    def remembers(self) -> bool:
        return self.target is not None and self.target.remembers

    @property
    def learns(self) -> bool:
        return self.policy is not None and self.policy.algorithm.learner is not None


def kind_of(log: str) -> str:
    """Raises Rejected where nothing tells."""
    path = Path(log)
    if "://" in log or path.suffix == ".parquet":
        return "experiences"
    if path.is_dir():
        if (path / "item_context.csv").is_file():
            return "obd"
        if (path / "log.sqlite").is_file() or any(path.glob("**/*.parquet")):
            return "experiences"
    elif path.is_file():
        if path.suffix == ".csv":
            return "hillstrom"
        return "dsjson"
    else:
        raise Rejected(f"There is no {log}", at="$.log", code="no_log")
    raise Rejected(
        f"{log} is no data folder, no folder of Parquet files and no folder of the Open Bandit Dataset (<campaign>.csv beside "
        "item_context.csv)",
        at="$.log",
        code="no_log",
    )


def asked_for(name: str, *, data: Path | None, config: Path | None) -> Asked:
    """Raises Rejected for a policy nobody knows, ConfigInvalid, Corrupt for a bundle that fails its gate."""
    if config is not None:
        return _configured(name, config)
    if name in BUILT_IN:
        return Asked(name, BUILT_IN[name])
    if name == "bernoulli_ts":
        return Asked(name)
    if data is None:
        raise Rejected(
            f"No policy {name!r}; there are {', '.join([*BUILT_IN, 'bernoulli_ts'])}, policies of a config folder with --config, "
            "and bundles of a data folder with --data",
            at="--policy",
            code="unknown_policy",
        )
    return _bundle(name, data)


def _configured(name: str, folder: Path) -> Asked:
    wanted, _, policy = name.rpartition("/")
    surfaces = load_folder(folder)
    found = [one for one in surfaces if wanted in ("", one.surface) and policy in one.policies]
    if len(found) != 1:
        known = [f"{s.surface}/{p}" for s in surfaces for p in s.policies]
        message = f"{name!r} is in {len(found)} surfaces" if found else f"No policy {name!r}"
        raise Rejected(f"{message}; there are {', '.join(known) or 'none'}", at="--policy", code="unknown_policy")
    compiled = compile_surface(found[0])
    chosen = compiled.policies[policy]
    if chosen.algorithm.trainer is not None:
        raise Rejected(
            f"{chosen.algorithm.name} is trained by gradient steps, not from a log in one pass: evaluate one of its bundles",
            at="--policy",
            code="needs_trainer",
        )
    check_inputs(name, chosen.algorithm.inputs)
    if chosen.algorithm.learner is None:
        return Asked(
            name, scored(compiled, chosen, chosen.algorithm.publish(chosen.config, chosen.problem, {}, 0.0, 0))
        )
    return Asked(name, compiled=compiled, policy=chosen)


def scored(compiled: Compiled, policy: CompiledPolicy, published: Published, name: str = "") -> Scored:
    """A policy after a publish, as scoring would serve it."""
    scorer = Scorer(policy.algorithm.graph(policy.config, policy.problem).SerializeToString())
    bound = scorer.bind(published.arrays).scores
    live = served(policy, compiled.surface, bound, published.arrays, temperature=published.temperature)
    return Scored(
        name=name or policy.name,
        served=live,
        encoder=policy.problem.encoder,
        remembers=bool(HISTORY & set(scorer.inputs)),
    )


def _bundle(name: str, data: Path) -> Asked:
    target, compiled, through = Bundled(data).find(name)
    return Asked(name, target, compiled, trained_through=through)


def replayable(kind: str, data: Path | None) -> Path:
    """The folder of the bundles that a log's slates are replayed by. Raises Rejected for logs that do not say what drew them."""
    said = "Slates are replayed by the bundles that drew them"
    if kind != "experiences":
        raise Rejected(f"{said}, and a log of kind {kind} names none", at="--estimator", code="no_bundles")
    if data is None:
        raise Rejected(f"{said}: give their data folder with --data", at="--data", code="no_bundles")
    return data


def replaying(log: Log, data: Path, replays: int, seed: int, paired: bool = True) -> Replaying:
    """How a log's slates are replayed."""
    return Replaying(Bundled(data).drew, log.encoder, replays, seed, paired)


def read(
    log: str,
    kind: str,
    asked: Asked,
    *,
    data: Path | None,
    surface: str | None,
    since: datetime | None,
    until: datetime | None,
    sampled: bool,
    unsettled: bool,
    whole: bool = False,
    rules: OtherRules | None = None,
) -> Log:
    """The log, encoded for the target. `whole`: with all that the logged draws read, for whoever draws them again; `rules`: others
    that the target draws under, made ready."""
    if asked.remembers and kind != "experiences":
        raise Rejected(
            f"{asked.name} reads what units did before, which this log does not hold", at="--policy", code="no_history"
        )
    if rules is not None and kind != "experiences":
        raise Rejected(f"A log of kind {kind} does not say what rules act on", at="--rules", code="no_catalogue")
    if kind == "obd":
        return tabular.read_obd(Path(log), asked.encoder)
    if kind == "hillstrom":
        return tabular.read_hillstrom(Path(log), asked.encoder)
    if kind == "dsjson":
        return dsjson.read_dsjson(Path(log), asked.encoder, sampled=sampled)
    return _experiences(log, asked, data, surface, since, until, sampled, unsettled, whole, rules)


def _experiences(
    log: str,
    asked: Asked,
    data: Path | None,
    surface: str | None,
    since: datetime | None,
    until: datetime | None,
    sampled: bool,
    unsettled: bool,
    whole: bool,
    rules: OtherRules | None,
) -> Log:
    from services.experiences import need_pyarrow

    need_pyarrow()
    from services.evaluation.experiences import read_experiences
    from services.evaluation.known_items import KnownItems
    from services.experiences.sources import Versions, from_files, from_log, narrowed
    from services.wiring import own_state

    is_log = "://" not in log and (Path(log) / "log.sqlite").is_file()
    folder = data or (Path(log) if is_log else None)
    settings = Settings.load(data=folder)  # None: where only files are read, the environment says whose they are
    configs, items = Configs(settings.tenant), None
    if folder is not None:
        state = own_state(settings)
        configs.follow(state)
        items = KnownItems(state, time.time())
    if unsettled and not is_log:
        raise Rejected("Files hold settled decisions only", at="--unsettled")
    if surface is None and asked.compiled is not None:
        surface = asked.compiled.surface.surface
    tables = from_log(Settings.load(data=Path(log)), configs, unsettled=unsettled) if is_log else from_files(log)

    def rows() -> Iterator[dict[str, Any]]:
        for table in narrowed(tables, surface, since, until):
            yield from table.to_pylist(maps_as_pydicts="strict")

    return read_experiences(
        rows(),
        Versions(configs, None if is_log else log),
        name=surface or Path(log).name,
        encoder=asked.encoder,
        needs_features=whole or rules is not None or asked.encoder is not None,
        needs_rules=whole or asked.follows,
        reader="whoever replays slates" if whole else "this target",
        needs_history=asked.remembers,
        items=items,
        sampled=sampled,
        rules=rules,
    )


def rules_of(document: Path, surface: str | None) -> OtherRules:
    """Those of a YAML file of surface documents, or of a folder of them. Raises Rejected, ConfigInvalid."""
    found = load_folder(document) if document.is_dir() else parse(document.read_text(encoding="utf-8"), str(document))
    named = [one for one in found if surface in (None, one.surface)]
    if len(named) != 1:
        known = ", ".join(one.surface for one in found) or "none"
        raise Rejected(
            f"{document} has {len(named)} documents of it: {known}; name one with --surface",
            at="--rules",
            code="unknown_surface",
        )
    return OtherRules(named[0])


def under_rules(target: Target, rules: OtherRules, log: Log, data: Path | None) -> Target:
    """A target under other rules; the logged policy and its greedy items are asked through the bundles that drew. Raises Rejected."""
    logged = None
    if isinstance(target, Behaviour | Greedy):
        logged = replaying(log, replayable("experiences", data), 0, 0).logged
    return UnderRules.over(target, rules, logged)


def ready(asked: Asked, log: Log) -> Target:
    """A target that had to see the log first, but for one that learns from it (`fitting`)."""
    if asked.target is not None:
        return asked.target
    if log.kind != "obd":
        raise Rejected("bernoulli_ts is a policy of the Open Bandit Dataset", at="--policy", code="unknown_policy")
    law, items = bernoulli.distribution(log.name.rpartition("/")[2]), tuple(log.decisions[0].candidates)
    if len(law) != len(items):
        raise Rejected(
            f"The campaign's prior has {len(law)} items, its catalogue {len(items)}", at="$.log", code="bad_catalogue"
        )
    return Positions(name="bernoulli_ts", items=items, distribution=law)


def after_training(log: Log, through: dict[int, int]) -> Log:
    """Decisions that a bundle was not trained on. Raises Rejected when none is left."""
    fresh = [one for one in log.decisions if one.place is None or one.place[1] >= through.get(one.place[0], 0)]
    out = len(log) - len(fresh)
    if not fresh and out:
        raise Rejected(
            f"The bundle was trained on all {out} decisions of the log, and its value on them would flatter it: take an older "
            "bundle or later decisions, or --in-sample to see the number anyway",
            at="--policy",
            code="in_sample",
        )
    if out:
        log.notes.append(f"{out} decisions that the bundle was trained on left out")
    return log.with_decisions(fresh)


def share_split(log: Log, share: float) -> tuple[Log, Log]:
    """(first part, rest) by time; decisions of one moment stay together."""
    if not 0.0 < share < 1.0:
        raise Rejected(f"Expected a share between 0 and 1, got {share:g}", at="--train-share", code="bad_share")
    times = np.array([one.at for one in log.decisions])
    cut = int(np.searchsorted(times, times[min(int(share * len(times)), len(times) - 1)], side="left"))
    if cut == 0:
        raise Rejected(f"The first {share:g} of the log holds no decision", at="--train-share", code="empty_log")
    return log.with_decisions(log.decisions[:cut]), log.with_decisions(log.decisions[cut:])
