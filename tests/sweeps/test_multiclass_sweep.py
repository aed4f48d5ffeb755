"""Sweeps over several classes from a TOML."""

from pathlib import Path

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.config import ConfigError
from lintensor_jax.sweeps.from_toml import configuration
from lintensor_jax.sweeps.from_toml.recipes import RandomClasses

SAMPLES = """
[network]
architecture = "linear"
[data]
task = "multiclass"
X = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]
y = [0, 1, 2]
[start]
initialization = "balanced"
alphas = [0.2, 0.4]
num_directions = 2
[flow]
margin = 100.0
[record]
observables = ["direction", "margins", "distance_to_prediction"]
"""
RANDOM = SAMPLES.replace(
    "X = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]\ny = [0, 1, 2]",
    "num_samples = 6\ndimension = 3\nnum_classes = 4\nseed = [3, 4]",
)


def read(folder: Path, text: str):
    (folder / "c.toml").write_text(text)
    return configuration.read(folder / "c.toml")


@pytest.mark.slow
def test_a_sweep_of_one_layer_comes_near_the_svm(tmp_path):
    _, grid, options = read(tmp_path, SAMPLES)
    results = lt.sweep(grid, tmp_path / "s", observables=options.observables, stop=options.stop)
    assert results.direction_reached.dims[-2:] == ("coefficient", "output")
    assert (results.log_margin >= np.log(100.0)).all()
    svm = lt.max_margin(grid.problem, lt.L2Norm()).direction
    # At margin 100 one layer is O(1/100) from its limit.
    distance = np.linalg.norm(
        np.asarray(results.direction_reached) - np.asarray(svm), axis=(-2, -1)
    )
    assert distance.max() < 0.05
    np.testing.assert_allclose(results.distance_to_prediction, distance, atol=1e-12)
    again = lt.resume(tmp_path / "s")
    np.testing.assert_array_equal(again.direction_reached, results.direction_reached)


def test_random_classes(tmp_path):
    _, grid, _ = read(tmp_path, RANDOM)
    recipe = grid.problem
    assert recipe == RandomClasses(6, 3, 4, None)
    problem = recipe({"data_seed": 3})  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert problem.coefficient_shape == (3, 4)
    assert problem.margins(np.zeros((3, 4))).shape == (6, 3)  # pyright: ignore[reportAttributeAccessIssue]


MISTAKES = [
    (SAMPLES, "[0, 1, 2]", "[0, 1, 3]", "data.X and data.y", "labels must be"),
    (SAMPLES, "[0, 1, 2]", "[0, 1, 1.5]", "data.X and data.y", "must be integers"),
    (SAMPLES, '"linear"', '"convolutional"', "network.architecture", "one output"),
    (SAMPLES, "num_directions = 2", "directions = [[1.0]]", "start.directions", "num_directions"),
    (SAMPLES, '"multiclass"', '"classification"\nnum_classes = 3', "data.num_classes", "only"),
    (RANDOM, "num_classes = 4\n", "", "data.num_classes", "must be given"),
    (RANDOM, "dimension = 3", "dimension = [3, 4]", "data.dimension", "one number"),
]


@pytest.mark.parametrize(("text", "old", "new", "key", "words"), MISTAKES)
def test_mistakes_are_named_by_their_key(text, old, new, key, words, tmp_path):
    assert old in text
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text.replace(old, new))
    assert key in str(caught.value)
    assert words in str(caught.value)
