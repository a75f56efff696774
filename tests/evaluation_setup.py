"""A log that was really served: scoring decided, people clicked by a known law, and all of it lies in a data folder."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from scoring_setup import CALM, decisions, publish, surface

from policies.surface import Logging, Objective, PolicySpec, Surface
from services.keys import KEY_BYTES, Keys
from services.scoring.service import Scoring
from services.settings import Settings
from services.wiring import open_bundles, open_claims, open_log, open_state
from streaming.events import Decision, Feedback, encode, unit_hash
from streaming.spool import Spool

ITEMS = [f"item-{i:02d}" for i in range(8)]
FEATURES = [{"price": 10 * i / 7, "genre": ("jazz", "rock")[i % 2]} for i in range(8)]
PIN_EVERY = 5


def made(**changes: Any) -> Surface:
    """The surface of `scoring_setup` with two policies and one objective; half of all decisions sampled."""
    policies = {
        "home-ts": PolicySpec("linear_thompson", objective="click", options={"floor": 0.2}),
        "other": PolicySpec("linear_thompson", objective="click", options={"floor": 0.1, "head": "one_draw"}),
    }
    fixed = {
        "objectives": {"click": Objective("click", range=(0, 1))},
        "policies": policies,
        "logging": Logging(0.5),
        "horizon": "30m",
    }
    return surface(**{**fixed, **changes})


def chance(item: str, device: str, slot: int) -> float:
    """P(click): dearer items more, jazz on ios and rock on the web, less further down."""
    i = ITEMS.index(item)
    liked = (i % 2 == 0) == (device == "ios")
    return (0.05 + 0.3 * i / 7 + 0.25 * liked) / (1 + 0.2 * slot)


def served_log(
    folder: Path, count: int, one: Surface | None = None, seed: int = 1, catalogue: bool = True, pins: bool = True
) -> Settings:
    """A data folder with `count` decisions of `home-ts`, every fifth with a pin, and one click feedback for each click."""
    settings = Settings.load({}, data=folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("server.key", "salt.default"):
        (folder / name).write_bytes(bytes(KEY_BYTES))
    state = open_state(settings)
    publish(state, open_bundles(settings), one or made(), examples=200)
    if catalogue:
        items = [{"id": item, "features": said} for item, said in zip(ITEMS, FEATURES, strict=True)]
        state.put([("item", str(item["id"]), msgspec.json.encode(item)) for item in items])
    spool = Spool(folder / "spool", quota_bytes=1 << 30)
    scoring = Scoring(
        state=state,
        claims=open_claims(settings),
        bundles=open_bundles(settings),
        spool=spool,
        keys=Keys.load(folder),
        patience=CALM,
    )
    scoring.start()
    for i in range(count):
        unit = f"user-{i % 499}"
        request: dict[str, Any] = {
            "surface": "home",
            "unit": unit,
            "decision_id": f"{unit_hash(unit, bytes(KEY_BYTES))}-{i}",  # as the service's own, but the same in every run
            "context": {"device": ("ios", "web")[i % 2], "hour": i % 24},
            "candidates": ITEMS,
        }
        if pins and i % PIN_EVERY == 0:
            request["pins"] = {"1": ITEMS[i % 3]}
        scoring.decide(msgspec.json.encode(request))
    scoring.close()
    append(settings, decisions(folder), seed)
    return settings


def append(settings: Settings, records: list[Decision], seed: int) -> None:
    """Decisions and the clicks on them into the log."""
    rng, events = np.random.default_rng(seed), []
    for i, record in enumerate(records):
        key = record.unit.encode()
        events.append((key, encode(record)))
        for item, slot in zip(record.slate, record.slots, strict=True):
            if rng.random() < chance(item, ("ios", "web")[i % 2], slot):
                heard = Feedback(
                    decision_id=record.decision_id,
                    unit=record.unit,
                    at=record.at + 0.001,
                    feedback_id=f"c{slot}",
                    kind="click",
                    slot=slot,
                )
                events.append((key, encode(heard)))
    open_log(settings).append(events)
