"""Weights that prove non-separability, also where the solver of the margin problem fails."""

import jax
import numpy as np
import pytest

from lintensor_jax import Classification, L1Norm, L2Norm, LpNorm, is_separable, max_margin
from lintensor_jax.theory import NonSeparableError
from lintensor_jax.theory.least_norm import max_margin as margins
from lintensor_jax.theory.least_norm.zero_combination import zero_combination

jax.config.update("jax_enable_x64", True)


def _on_a_line(seed):
    """Samples on one line, on both sides of the origin: Clarabel fails on some of these."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(30, 80)), int(rng.integers(1, 12))
    X = np.outer(rng.standard_normal(n), rng.standard_normal(d))
    return X, np.sign(rng.standard_normal(n))


def _fails(*arguments):
    raise ArithmeticError("no solution")


@pytest.mark.parametrize("norm", [L2Norm(), L1Norm(), LpNorm(0.5)], ids=lambda n: type(n).__name__)
def test_a_failed_solver_does_not_hide_contradictory_data(norm, monkeypatch):
    X, y = _on_a_line(3)
    rows = X * y[:, None] * 10.0 ** np.random.default_rng(0).uniform(-3, 3, (len(y), 1))
    monkeypatch.setattr(margins, "optimum", _fails)
    with pytest.raises(NonSeparableError) as caught:
        max_margin(Classification(rows, np.ones(len(y))), norm)
    weights = np.asarray(caught.value.certificate)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    scale = weights @ np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(weights @ rows, 0, rtol=0, atol=1e-14 * scale)


def test_a_failed_solver_proves_nothing_about_separable_data(monkeypatch):
    X = np.random.default_rng(1).standard_normal((20, 4))
    y = np.sign(X @ np.ones(4))
    monkeypatch.setattr(margins, "optimum", _fails)
    with pytest.raises(ArithmeticError, match="no solution"):
        max_margin(Classification(X, y), L1Norm())


@pytest.mark.parametrize("seed", [3, 55])
def test_data_on_a_line(seed):
    X, y = _on_a_line(seed)
    found = is_separable(Classification(X, y))
    assert not found.separable
    assert float(found.residual) < 1e-14
    straight = np.sign(X @ X[0])
    assert is_separable(Classification(X, straight)).separable


def test_the_weights_are_the_smallest_combination():
    rows = np.array([[1.0, 0.0], [-0.5, 0.0], [0.0, 1.0]])
    weights = zero_combination(rows)
    np.testing.assert_allclose(weights / weights.sum(), [1 / 3, 2 / 3, 0], rtol=0, atol=1e-15)
