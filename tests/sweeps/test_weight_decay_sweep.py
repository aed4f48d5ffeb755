"""Weight decay in a TOML: one number, or an axis."""

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.config import ConfigError
from lintensor_jax.sweeps.from_toml import configuration

TEXT = """
[data]
X = [[1.0, 2.0], [0.5, -1.0]]
y = [1.0, 0.25]
[start]
initialization = "gaussian"
alphas = [0.5]
num_repeats = 2
[flow]
weight_decay = [0.1, 0.4]
max_steps = 50000
"""


def read(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    return configuration.read(tmp_path / "c.toml")


def test_an_axis_of_weight_decays_is_stored_and_resumed(tmp_path):
    _, grid, options = read(tmp_path, TEXT)
    assert grid.dims == ("weight_decay", "alpha", "repeat")
    results = lt.sweep(grid, tmp_path / "s", max_steps=options.max_steps)
    X, y = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([1.0, 0.25])
    for decay in (0.1, 0.4):
        for beta in np.asarray(results.limit.sel(weight_decay=decay)).reshape(2, 2):
            # Stationarity of the lasso: X^T r = -lambda sign(beta), or at most lambda at zeros.
            pull = X.T @ (y - X @ beta)
            kept = np.abs(beta) > 1e-6
            np.testing.assert_allclose(pull[kept], decay * np.sign(beta[kept]), atol=1e-7)
            assert np.abs(pull).max() < decay + 1e-7
    np.testing.assert_array_equal(lt.resume(tmp_path / "s").limit, results.limit)


def test_a_negative_value_of_an_axis_is_refused_before_any_flow():
    problem, start = lt.Regression(np.ones((1, 2)), np.ones(1)), lt.DiagonalNetwork.zeros(2, 2)
    grid = lt.sweeps.Grid(
        (lt.sweeps.Axis("weight_decay", [0.1, -0.1]),),
        lambda point: start,
        lambda point: lt.Penalized(problem, point.weight_decay),
    )
    with pytest.raises(ValueError, match="weight_decay: must be finite and not negative"):
        lt.sweep(grid)


def test_one_number_and_mistakes(tmp_path):
    _, grid, _ = read(tmp_path, TEXT.replace("[0.1, 0.4]", "0.1"))
    assert grid.dims == ("alpha", "repeat")
    assert float(grid.problem.weight_decay) == 0.1  # pyright: ignore[reportAttributeAccessIssue]
    _, grid, _ = read(tmp_path, TEXT.replace("[0.1, 0.4]", "0.0"))
    assert isinstance(grid.problem, lt.Regression)
    with pytest.raises(
        ConfigError, match=r"flow.weight_decay must be a finite number >= 0, got -1"
    ):
        read(tmp_path, TEXT.replace("[0.1, 0.4]", "-1.0"))
