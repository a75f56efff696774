"""Options of algorithms in a surface document: what is wrong is named with its line, its path and what would be right."""

import pytest

from streaming.configuration import ConfigInvalid, compile_surface, parse

DOCUMENT = """surface: home
objectives: {click: {kind: click, range: [0, 1]}}
policies:
  p: {algorithm: %s, %s}
"""


@pytest.mark.parametrize(
    ("algorithm", "written", "path", "message"),
    [
        ("epsilon_greedy", "floor: 2", "floor", "expected a number from 0 to 1, got 2"),
        ("epsilon_greedy", "head: softmax", "head", "expected draws, got 'softmax'"),
        ("epsilon_greedy", "draws: 64", "draws", "expected 1, got 64"),
        ("softmax", "temperature: 0", "temperature", "expected a number above 0, got 0"),
        ("linucb", "alpha: -1", "alpha", "expected a number at least 0, got -1"),
        ("linucb", "alfa: 1", "alfa", "did you mean 'alpha'?"),
        ("squarecb", "gamma_scale: 0", "gamma_scale", "expected a number above 0 and at most 1e+09, got 0"),
        ("squarecb", "gamma_exponent: 3", "gamma_exponent", "expected a number from 0 to 1, got 3"),
        ("squarecb", "temperature: 0.5", "temperature", "expected 1, got 0.5"),
        ("bootstrap", "replicates: 1", "replicates", "expected an integer from 2 to 256, got 1"),
        ("bootstrap", "half_life: soon", "half_life", "Expected a duration such as 30m"),
        ("logistic_thompson", "first_epoch: 0", "first_epoch", "expected an integer at least 1, got 0"),
        ("logistic_thompson", "spread: wide", "spread", "expected a number at least 0, got 'wide'"),
        ("neural_linear", "hidden: 0", "hidden", "expected an integer from 1 to 1024, got 0"),
        ("neural_linear", "features: 300", "features", "expected an integer from 1 to 256, got 300"),
        ("neural_linear", "refresh: 0", "refresh", "expected a number above 0 and at most 1, got 0"),
        ("neural_linear", "replay_ratio: 0", "replay_ratio", "expected a number above 0, got 0"),
        ("neural_linear", "half_life: soon", "half_life", "Expected a duration such as 30m"),
        ("neural_linear", "layers: 2", "layers", "unknown key"),
    ],
)
def test_a_wrong_option_is_named(algorithm: str, written: str, path: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse(DOCUMENT % (algorithm, written), "home.yaml")
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.path) == (4, f"policies.p.{path}")
    assert message in mistake.message


def test_options_that_shape_sums_are_part_of_their_key() -> None:
    """Another number of replicates is another state; another floor is not."""

    def key(written: str) -> str:
        (surface,) = parse(DOCUMENT % ("bootstrap", written), "home.yaml")
        return compile_surface(surface).policies["p"].key

    assert key("replicates: 8") != key("replicates: 16") == key("replicates: 16, floor: 0.1") == key("draws: 64")
