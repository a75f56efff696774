"""recurrent_slate through the whole house: decided with the unit's clicks, settled, trained by torch, published, swapped in."""

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


def of_genres(folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> house_of.House:
    """A house whose items have a genre, and whose policy is a recurrent one."""
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
    return house_of.House(folder)


def test_clicks_train_vectors_that_the_service_then_scores_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People click on jazz alone: after a publish jazz items are what is shown, to somebody new and to an item nobody saw."""
    options = {"group": "genre", "size": 2, "steps": 30, "floor": 0.1, "learning_rate": 0.1}
    house = of_genres(tmp_path, monkeypatch, options)
    first = house.pointed()
    house.teach()
    assert house.pointed() != first
    made = bundling.read(house.pointed(), open_bundles(house.settings).get)
    assert made.manifest.diagnostics["items"] == 6
    house.scoring.swap(house.scoring.poll())
    found = house.record(house.visit("somebody new"))
    assert found.bundle == house.pointed()
    assert found.sample is not None
    distribution = np.frombuffer(found.sample.distributions).reshape(-1, 6)[0]
    assert distribution[::2].sum() > 0.6
