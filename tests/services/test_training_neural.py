"""neural_linear through the whole house: decided, settled, trained by torch, published, swapped in; and taught from files before."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from policies import bundle as bundling
from policies.features import Encoder
from policies.surface import PolicySpec
from services.cli import main
from services.settings import Settings
from services.wiring import open_bundles, open_state
from streaming.configuration import publish_surface
from streaming.parquet import table_of
from streaming.replay import recompute
from streaming.scorer import score
from tests.services import test_training as house_of


def test_clicks_teach_a_network_that_the_service_then_scores_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People click on new items alone: after a publish these are what is shown, drawn as the record says, bit for bit. And
    `slatewise train` makes a first bundle of the same decisions in a folder that has none, which likes them too."""
    options = {"hidden": 16, "features": 8, "minibatch": 8, "floor": 0.1}
    policies = {"agent": PolicySpec("neural_linear", objective="click", options=options)}
    surface = msgspec.structs.replace(house_of.SURFACE, policies=policies)
    monkeypatch.setattr(house_of, "SURFACE", surface)
    house = house_of.House(tmp_path / "there")
    first = house.pointed()
    house.teach()
    assert house.pointed() != first
    made = bundling.read(house.pointed(), open_bundles(house.settings).get)
    before = bundling.read_manifest(first, open_bundles(house.settings).get)
    assert made.manifest.diagnostics["rebuilt"] >= 1
    assert made.manifest.graph == before.graph, "the graph is built once"
    assert made.manifest.arrays["second"] != before.arrays["second"], "weights are refreshed"
    house.scoring.swap(house.scoring.poll())
    found = house.record(house.visit("somebody new"))
    assert found.bundle == house.pointed()
    assert found.sample is not None
    distribution = np.frombuffer(found.sample.distributions).reshape(-1, len(house_of.ITEMS))[0]
    assert distribution[::2].sum() > 0.6
    assert recompute(found, made).propensities.tolist() == found.propensities
    house.scoring.close()

    log, data = tmp_path / "log.parquet", tmp_path / "nowhere"
    pq.write_table(table_of(house.settled()), log)
    settings = Settings.load({}, data=data)
    publish_surface(open_state(settings), surface)
    done = CliRunner().invoke(main, ["train", str(log), "--policy", "agent", "--data", str(data), "--epochs", "2"])
    assert done.exit_code == 0, done.output
    assert "epoch 2: 24 transitions" in done.output
    bundles = open_bundles(settings)
    taught = bundling.read(bundles.pointers()["home/agent"], bundles.get)
    assert taught.manifest.diagnostics["examples"] > 24
    encoder, items = Encoder(surface.features), [item["features"] for item in house_of.ITEMS]
    asked = {"context": encoder.context({"hour": 3}), "items": encoder.rows(items, "$.items")}  # type: ignore[arg-type] - of literals
    scores = score(taught.graph, taught.arrays, asked).mean(axis=1)
    assert scores[::2].min() > scores[1::2].max()
