"""Sweeps of matrix completion from a TOML, and the observables of implicit bias."""

from pathlib import Path

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.config import ConfigError
from lintensor_jax.sweeps import EffectiveRank, KernelAlignment, NonzeroCoefficients, TestLoss
from lintensor_jax.sweeps.from_toml import configuration
from lintensor_jax.sweeps.from_toml.recipes import RandomCompletion

ENTRIES = """
[network]
architecture = "matrix-factorization"
[data]
task = "completion"
shape = [2, 3]
X = [[0, 0], [1, 2], [1, 0]]
y = [1.0, 2.0, 0.5]
[start]
initialization = "gaussian"
alphas = [0.2, 0.4]
num_repeats = 3
"""


def read(folder: Path, text: str):
    (folder / "c.toml").write_text(text)
    return configuration.read(folder / "c.toml")


def test_a_sweep_from_entries_equals_single_flows(tmp_path):
    _, grid, _ = read(tmp_path, ENTRIES)
    problem = lt.MatrixCompletion([0, 1, 1], [0, 2, 0], [1.0, 2.0, 0.5], (2, 3))
    assert grid.problem.entries == problem.entries  # pyright: ignore[reportAttributeAccessIssue]
    held_out = lt.MatrixCompletion([0], [2], [0.5], (2, 3))
    chosen = (
        lt.sweeps.Limit(),
        EffectiveRank(),
        NonzeroCoefficients(0.1),
        KernelAlignment(),
        TestLoss(held_out),
    )
    results = lt.sweep(grid, tmp_path / "s", observables=chosen, rtol=1e-9)
    assert results.limit.dims == ("alpha", "repeat", "coefficient", "output")
    assert (results.status == 1).all()
    again = lt.resume(tmp_path / "s")
    np.testing.assert_array_equal(again.limit, results.limit)
    for index in ((0, 0), (1, 2)):
        row = results.isel(alpha=index[0], repeat=index[1])
        beta = np.asarray(row.limit)
        np.testing.assert_allclose(problem.predictions(beta), problem.values, atol=1e-8)  # pyright: ignore[reportArgumentType]
        sizes = np.linalg.svd(beta, compute_uv=False)
        p = sizes / sizes.sum()
        np.testing.assert_allclose(row.effective_rank, np.exp(-np.sum(p * np.log(p))), rtol=1e-9)
        assert int(row.num_nonzero) == np.sum(np.abs(beta) > 0.1 * np.abs(beta).max())
        np.testing.assert_allclose(
            np.exp(row.log_test_loss), (beta[0, 2] - 0.5) ** 2 / 2, rtol=1e-9
        )
        assert 0 < float(row.kernel_alignment) < 1
        assert 0 < float(row.kernel_similarity) < 1


def test_random_entries_are_of_a_matrix_of_low_rank(tmp_path):
    text = ENTRIES.replace(
        "X = [[0, 0], [1, 2], [1, 0]]\ny = [1.0, 2.0, 0.5]", "num_samples = 20\nseed = [3, 4]"
    )
    _, grid, _ = read(tmp_path, text.replace("[2, 3]", "[6, 7]").replace("task", "rank = 2\ntask"))
    recipe = grid.problem
    assert recipe == RandomCompletion(20, (6, 7), 2, None)
    assert grid.axes[0].name == "data_seed"
    assert grid.axes[0].changes_shape  # pyright: ignore[reportAttributeAccessIssue]
    problem = recipe({"data_seed": 3})  # pyright: ignore[reportArgumentType, reportCallIssue]
    truth = recipe.matrix(np.random.default_rng(3))  # pyright: ignore[reportAttributeAccessIssue]
    assert np.linalg.matrix_rank(truth) == 2
    assert problem.values.shape == (20,)  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(problem.predictions(truth), problem.values)  # pyright: ignore[reportAttributeAccessIssue]


MISTAKES = [
    ("shape = [2, 3]\n", "", "data.shape", "must be given for completion"),
    ('"completion"', '"regression"', "data.shape", "for task"),
    ('"matrix-factorization"', '"diagonal"', "network.architecture", "matrix-factorization"),
    ("[1, 2]", "[1, 3]", "data.X and data.y", "columns must lie in [0, 3)"),
    ("[1, 2]", "[1, 0]", "data.X and data.y", "values of one entry"),
    ("[1, 2]", "[1, 1.5]", "data.X and data.y", "whole numbers"),
    ("shape = [2, 3]", "shape = [2, 3]\nrank = 1", "data.rank", "random entries"),
    ("shape = [2, 3]", "shape = [2, 3]\ndimension = 3", "data.dimension", "give `shape`"),
    ("num_repeats = 3", "directions = [[1.0]]", "start.directions", "num_directions"),
]


@pytest.mark.parametrize(("old", "new", "key", "words"), MISTAKES)
def test_mistakes_are_named_by_their_key(old, new, key, words, tmp_path):
    text = ENTRIES.replace(old, new)
    if "directions" in new:
        text = text.replace('"gaussian"', '"balanced"')
    assert text != ENTRIES
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert key in str(caught.value)
    assert words in str(caught.value)


def test_too_many_entries_are_refused(tmp_path):
    text = ENTRIES.replace("X = [[0, 0], [1, 2], [1, 0]]\ny = [1.0, 2.0, 0.5]", "num_samples = 7")
    with pytest.raises(ConfigError, match=r"data.num_samples must be at most 6.*got 7"):
        read(tmp_path, text)


def test_observables_that_do_not_fit_are_refused():
    regression = lt.Regression(np.ones((1, 2)), np.ones(1))
    network = lt.DiagonalNetwork(np.ones((2, 2)))
    with pytest.raises(ValueError, match="EffectiveRank needs a matrix"):
        EffectiveRank().check(network, regression)
    with pytest.raises(ValueError, match="coefficients"):
        TestLoss(lt.Regression(np.ones((1, 3)), np.ones(1))).check(network, regression)
