"""`silence: corrected` on its way: which surfaces may have it, what names their sums, and what a log says of delays."""

import msgspec
import numpy as np
import pytest

from policies.corrected import CorrectedLearner, settled
from policies.delays import bucket_of
from policies.registry import ALGORITHMS
from policies.surface import PolicySpec
from policies.types import Arrays
from streaming.configuration import ConfigInvalid, Configs, compile_surface
from streaming.publish import merged
from tests.streaming.joining import CORRECTABLE, EPOCH0, HORIZON, UNIT, Ports, decision, drain, feedback, surface

CORRECTED = surface(silence="corrected")


def test_an_algorithm_without_sums_that_add_is_refused_by_name() -> None:
    document = msgspec.structs.replace(CORRECTED, policies={"lt": PolicySpec(algorithm="logistic_thompson")}, live="lt")
    with pytest.raises(ConfigInvalid, match="logistic_thompson cannot learn with silence: corrected") as caught:
        compile_surface(document)
    [mistake] = caught.value.mistakes
    assert mistake.path == "policies.lt.algorithm"
    assert "linear_thompson" in mistake.expected
    compile_surface(msgspec.structs.replace(document, silence="wait"))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_other_algorithm_may_be_asked_for(name: str) -> None:
    able = "corrects" in ALGORITHMS[name].traits
    if ALGORITHMS[name].learner is not None and not able:
        return
    document = msgspec.structs.replace(CORRECTED, policies={"p": PolicySpec(algorithm=name)}, live="p")
    policy = compile_surface(document).policies["p"]
    assert policy.problem.horizon == (HORIZON if able else 0.0)
    if able:
        assert policy.algorithm.learner is not None
        assert isinstance(policy.algorithm.learner(policy.config, policy.problem), CorrectedLearner)


def test_keys_change_only_for_what_is_corrected() -> None:
    eager, wait, made = (compile_surface(surface(silence=s)).policies for s in ("eager", "wait", "corrected"))
    assert {name: one.key for name, one in eager.items()} == {name: one.key for name, one in wait.items()}
    assert eager["ts"].key != made["ts"].key
    assert eager["uniform"].key == made["uniform"].key


def learned(configs: Configs, ports: Ports, **limits: int) -> Arrays:
    shard = ports.shard(**limits)
    drain(shard)
    policy = configs.current("home").policies["ts"]  # type: ignore[union-attr] - it was added
    return merged(policy, [shard.statistics().arrays[policy.key]])


def test_delays_of_a_log_by_hand() -> None:
    """A sum that grows twice, a whole-slate reward, a correction that moves one, one taken back, one after the horizon."""
    configs = Configs()
    compiled = configs.add(CORRECTED)
    ports = Ports(configs)
    names = [f"{UNIT}-{i}" for i in range(5)]
    ports.append(*(decision(compiled, name, EPOCH0) for name in names))
    ports.append(
        feedback(names[0], EPOCH0 + 10, slot=0, value=2.0, feedback_id="a"),
        feedback(names[0], EPOCH0 + 40, slot=0, value=3.0, feedback_id="b"),
        feedback(names[1], EPOCH0 + 20, value=3.0, feedback_id="a"),
        feedback(names[2], EPOCH0 + 5, slot=1, value=1.25, feedback_id="a"),
        feedback(names[3], EPOCH0 + 5, slot=1, kind="like", feedback_id="a"),
        feedback(names[4], EPOCH0 + HORIZON + 1, slot=1, kind="like", feedback_id="a"),
        at=EPOCH0 + HORIZON + 1,
    )
    step_by_step = learned(configs, ports, read_limit=1)
    ports.append(
        feedback(names[2], EPOCH0 + 50, slot=1, value=1.25, feedback_id="a", revision=1),
        feedback(names[3], EPOCH0 + 60, kind="", retracts="a", feedback_id="r"),
    )
    once = Ports(configs)
    once.log = ports.log
    for arrays in (learned(configs, ports, read_limit=1), learned(configs, once)):
        mass = np.zeros((2, 64))  # like, watch
        for delay, moved in ((10.0, 1.75), (40.0, 3.0), (20.0, 3 * 0.75), (50.0, 1.0)):
            mass[1, bucket_of(np.array([delay]), HORIZON)[0]] += moved
        np.testing.assert_allclose(arrays["delay_mass"], mass, atol=1e-12)
        np.testing.assert_allclose(arrays["delay_count"], [0, 3], atol=1e-12)
    assert step_by_step["delay_count"].tolist() == [1, 3]


def test_sums_of_all_decisions_are_what_eager_has() -> None:
    """… to the last bit: what is beside them changes nothing in them."""
    found = {}
    for silence in ("eager", "corrected"):
        configs = Configs()
        compiled = configs.add(surface(silence=silence))
        ports = Ports(configs)
        for i in range(30):
            name = f"{UNIT}-{i}"
            ports.append(decision(compiled, name, EPOCH0 + 10 * i), at=EPOCH0 + 10 * i)
            ports.append(feedback(name, EPOCH0 + 10 * i, slot=i % 3, value=i / 8, feedback_id="a"))
        found[silence] = learned(configs, ports, read_limit=7)
    for name in ("S", "B", "Y", "n", "slate_S", "slate_B", "slate_Y", "pairs"):
        np.testing.assert_array_equal(found["corrected"][name], found["eager"][name], err_msg=name)


def test_a_restart_from_an_upload_goes_on_with_the_same_delays() -> None:
    """Rows that are read again teach nothing a second time, and what is taken back afterwards is what they had brought."""
    from streaming.adapters.memory import MemoryBundles, MemoryCheckpoints
    from streaming.uploads import Uploads

    configs = Configs()
    compiled = configs.add(CORRECTED)
    ports = Ports(configs)
    names = [f"{UNIT}-{i}" for i in range(40)]
    for i, name in enumerate(names):
        ports.append(decision(compiled, name, EPOCH0 + i), at=EPOCH0 + i)
        ports.append(feedback(name, EPOCH0 + i + i % 7, slot=0, feedback_id="a"))
    shard = ports.shard()
    drain(shard)
    uploads = Uploads(MemoryBundles(), 0, 1)
    checkpoint = shard.checkpoint({})
    assert checkpoint is not None
    uploads.put(checkpoint)
    for i, name in enumerate(names[:20]):
        ports.append(
            feedback(name, EPOCH0 + 45 + i, slot=0, value=2.0, feedback_id="a", revision=1), at=EPOCH0 + 45 + i
        )
        ports.append(
            feedback(name, EPOCH0 + 45, kind="", retracts="a", feedback_id="r") if i % 2 else feedback(name, EPOCH0)
        )
    whole = learned(configs, ports)
    lost = Ports(configs)
    lost.log, lost.checkpoints = ports.log, MemoryCheckpoints()
    again = lost.shard(epoch=2)
    again.uploads = uploads
    drain(again)
    policy = compiled.policies["ts"]
    found = again.statistics().arrays[policy.key]
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        if name == "columns":
            continue
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
    assert CORRECTABLE > HORIZON
    now = EPOCH0 + 60
    one, two = (settled(ALGORITHMS["linear_thompson"], policy.problem, sums, now)[0] for sums in (whole, found))
    np.testing.assert_allclose(one["S"], two["S"], atol=1e-9)
