"""Small l2 problems: nonnegative least squares finds the optimum, or today's solver does.

The oracle is weak duality, by hand: a point z with margins of at least 1, and multipliers nu >= 0
with sum nu = |z| and |sum_i nu_i y_i x_i|_2 = 1, are optimal. Tolerances are some hundred units in
the last place, times the condition number of the case.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.theory import NonSeparableError
from lintensor_jax.theory.least_norm import least_distance, max_margin
from lintensor_jax.theory.least_norm.newton import Level
from lintensor_jax.theory.least_norm.signed_rows import SignedRows

jax.config.update("jax_enable_x64", True)


def _gaussian(n, d, seed=0):
    """Gaussian samples and their labels by a Gaussian vector."""
    rng = np.random.default_rng([n, d, seed])
    X = rng.standard_normal((n, d))
    return X, np.where(X @ rng.standard_normal(d) > 0, 1.0, -1.0)


def _duplicated(n, d):
    X, y = _gaussian(n, d)
    return np.vstack([X, X, 3 * X]), np.tile(y, 3)


def _nearly_contradictory(gap):
    """Ten pairs of samples x + gap u, x - gap u with opposite labels: the margin is at most gap."""
    rng = np.random.default_rng(1)
    X, u = rng.standard_normal((10, 5)), np.eye(5)[0]
    X[:, 0] = 0.0
    return np.vstack([X + gap * u, X - gap * u]), np.repeat([1.0, -1.0], 10)


CASES = {
    "one sample": _gaussian(1, 6),
    "two numbers": (np.array([[2.0, 0.0]]), np.array([-1.0])),
    "more features": _gaussian(8, 30),
    "square": _gaussian(20, 20),
    "more samples": _gaussian(200, 10),
    "large": (1e6 * _gaussian(20, 10)[0], _gaussian(20, 10)[1]),
    "small": (1e-6 * _gaussian(20, 10)[0], _gaussian(20, 10)[1]),
}


@pytest.fixture
def no_other_solver(monkeypatch):
    def called(*_):
        raise AssertionError("another solver was called")

    monkeypatch.setattr(max_margin, "optimum", called)


def _require_optimal(X, y, found, tolerance):
    rows = X * y[:, None]
    z, nu = np.asarray(found.coefficients), np.asarray(found.multipliers)
    size = np.linalg.norm(z)
    assert found.status == "optimal"
    assert found.unique
    assert np.min(rows @ z) >= 1 - tolerance
    assert (nu >= 0).all()
    np.testing.assert_allclose(nu.sum(), size, rtol=tolerance)
    np.testing.assert_allclose(np.linalg.norm(rows.T @ nu), 1.0, rtol=tolerance)
    np.testing.assert_allclose(found.margin, 1 / size, rtol=tolerance)
    np.testing.assert_allclose(found.direction, z / size, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_without_another_solver(case, no_other_solver):
    X, y = CASES[case]
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    assert found.kkt_residual < 1e-12
    _require_optimal(X, y, found, 1e-12)


# Their multipliers are not unique, or their margin is too small for nonnegative least squares.
OTHERS = {
    "duplicates": _duplicated(9, 6),
    "one height": (np.array([[10, 2, 10], [-7, 9, 10], [-5, -10, 10], [8, -6, 10.0]]), np.ones(4)),
    "nearly contradictory": _nearly_contradictory(1e-2),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_problems_are_those_of_the_inner_point_method(case):
    X, y = OTHERS[case]
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    _require_optimal(X, y, found, 1e-12)
    # The multipliers in the middle of all are positive on every tight row.
    assert jnp.array_equal(found.multipliers > 0, found.support)


@pytest.mark.parametrize("case", CASES | OTHERS)
def test_the_inner_point_method_has_the_same_answer(case, monkeypatch):
    problem = lt.Classification(*(CASES | OTHERS)[case])
    found = lt.max_margin(problem, lt.L2Norm())
    monkeypatch.setattr(least_distance, "_MOST_ENTRIES", 0)
    other = lt.max_margin(problem, lt.L2Norm())
    # Coefficients are as accurate as the residual times one over the relative margin, 1e3.
    np.testing.assert_allclose(found.direction, other.direction, atol=1e-10)
    np.testing.assert_allclose(found.margin, other.margin, rtol=1e-12)
    assert jnp.array_equal(found.support, other.support)
    assert (found.status, found.unique) == (other.status, other.unique)


def test_samples_of_very_different_lengths():
    """No warning of NumPy, which would be an error here, and a separator."""
    X, y = _gaussian(20, 10)
    X = X * np.where(np.arange(20) < 10, 1e-300, 1.0)[:, None]
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    assert (y * (X @ found.direction) > 0).all()


def test_one_feature():
    X, y = _gaussian(12, 1)
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    _require_optimal(X, y, found, 1e-12)
    np.testing.assert_allclose(found.margin, np.min(np.abs(X)), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_as_accurate_as_that_of_the_inner_point_method(seed):
    """The multipliers of nonnegative least squares alone have residuals of up to 1e-12."""
    X, y = _gaussian(60, 30, seed)
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    assert found.kkt_residual < 1e-13


def test_what_is_not_certified_is_solved_by_the_inner_point_method(monkeypatch):
    X, y = _gaussian(20, 10)
    problem = lt.Classification(X, y)
    found = lt.max_margin(problem, lt.L2Norm())

    def separating(given):  # but not of the largest margin
        point = np.asarray(found.direction) + 0.01 * np.eye(10)[0]
        point = point / np.linalg.norm(point)
        level = float(np.min(given.rows @ point / given.targets))
        assert level > 0
        yield Level(point, np.zeros(0), level, np.ones(20) / given.targets.sum())

    monkeypatch.setattr(max_margin, "least_distance", separating)
    _require_optimal(X, y, lt.max_margin(problem, lt.L2Norm()), 1e-12)


def test_too_many_exchanges_of_rows(monkeypatch):
    def stopped(*_):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr(scipy.optimize, "nnls", stopped)
    X, y = _gaussian(20, 10)
    _require_optimal(X, y, lt.max_margin(lt.Classification(X, y), lt.L2Norm()), 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_data_that_are_not_separable_keep_their_error(scale, monkeypatch):
    X, y = _gaussian(30, 4)
    X, y = scale * np.vstack([X, X[:1]]), np.append(y, -y[0])  # a sample with both labels
    for entries in (least_distance._MOST_ENTRIES, 0):
        monkeypatch.setattr(least_distance, "_MOST_ENTRIES", entries)
        with pytest.raises(NonSeparableError) as caught:
            lt.max_margin(lt.Classification(X, y), lt.L2Norm())
        weights = np.asarray(caught.value.certificate)
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
        np.testing.assert_allclose(weights @ (X * y[:, None]), 0.0, atol=1e-13 * scale)


@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8])
def test_nearly_contradictory_data_have_their_tiny_margin(gap):
    X, y = _nearly_contradictory(gap)
    found = lt.max_margin(lt.Classification(X, y), lt.L2Norm())
    assert found.status == "optimal"
    # The margins of the samples are differences of terms of order 1.
    np.testing.assert_allclose(found.margin, gap, rtol=1e-15 / gap)


def test_a_zero_sample_is_refused():
    X, y = _gaussian(12, 5)
    X[3] = 0.0
    with pytest.raises(NonSeparableError, match="sample 3 is zero"):
        lt.max_margin(lt.Classification(X, y), lt.L2Norm())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_signed_rows_of_a_classification_are_its_signed_data(dtype):
    X, y = _gaussian(7, 3)
    problem = lt.Classification(X.astype(dtype), y.astype(dtype))
    rows = SignedRows.of(problem, "test")
    assert rows.dtype == problem.signed_data.dtype
    np.testing.assert_array_equal(rows.counted, problem.signed_data)
    found = lt.max_margin(problem, lt.L2Norm())
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype), np.dtype(bool)}
