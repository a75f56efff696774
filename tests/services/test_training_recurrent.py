"""recurrent_slate through the whole house: decided with the unit's clicks, settled, trained by torch, published, swapped in."""

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies import bundle as bundling
from policies.surface import Category, FeatureSpec, PolicySpec
from services.wiring import open_bundles
from tests.services import test_training as house_of

ITEMS = [
    {"id": f"item-{i}", "features": {"genre": "jazz" if i % 2 == 0 else "rock", "new": i % 2 == 0}} for i in range(6)
]


def test_clicks_train_vectors_that_the_service_then_scores_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People click on jazz alone: after a publish jazz items are what is shown, to somebody new and to an item nobody saw."""
    options = {"group": "genre", "size": 2, "steps": 30, "floor": 0.1, "learning_rate": 0.1}
    features = FeatureSpec(
        context=house_of.SURFACE.features.context,
        items={"genre": Category(["jazz", "rock"]), **{"new": house_of.SURFACE.features.items["new"]}},
    )
    surface = msgspec.structs.replace(
        house_of.SURFACE,
        features=features,
        policies={"agent": PolicySpec("recurrent_slate", objective="click", options=options)},
    )
    monkeypatch.setattr(house_of, "SURFACE", surface)
    monkeypatch.setattr(house_of, "ITEMS", ITEMS)
    house = house_of.House(tmp_path)
    first = house.pointed()
    for _ in range(4):
        for unit in range(6):
            house.visit(f"u-{unit}")
        house.forward()
    time.sleep(house_of.HORIZON)
    house.turn(time.time() + 1e4)
    house.course._next_publish = 0.0
    house.turn(time.time() + 2e4)
    assert house.pointed() != first
    made = bundling.read(house.pointed(), open_bundles(house.settings).get)
    assert made.manifest.diagnostics["items"] == 6
    house.scoring.swap(house.scoring.poll())
    found = house.record(house.visit("somebody new"))
    assert found.bundle == house.pointed()
    assert found.sample is not None
    distribution = np.frombuffer(found.sample.distributions).reshape(-1, 6)[0]
    assert distribution[::2].sum() > 0.6
