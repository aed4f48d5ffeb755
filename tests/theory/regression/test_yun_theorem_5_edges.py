"""Theorem 5 at the edges: degenerate data, single precision, broken assumptions."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory.regression import yun_theorem_5 as theory


def _problem(seed, n, m, d=None) -> Any:
    rng = np.random.default_rng(seed)
    S = None if d is None else rng.normal(size=(m, d))
    # With orthonormal rows the flows of the oracles are not stiff.
    X = np.linalg.qr(rng.normal(size=(d or m, n)))[0].T
    eta = rng.uniform(0.5, 1.5, m) * rng.choice([-1, 1], m)
    return S, X, rng.normal(size=n), eta


def _sparse(rng, X):
    return X, X[:, 0] * rng.normal()


def _twins(rng, X):
    return np.hstack([X[:, :4], -X[:, :4]]), rng.normal(size=X.shape[0])


def _dependent(rng, X):
    X[2], y = X[0] - 2 * X[1], rng.normal(size=3)
    y[2] = y[0] - 2 * y[1]
    return X, y


@pytest.mark.parametrize("depth", [2, 5])
def test_degenerate_data(depth):
    # Data with fewer active coordinates than equations, with equal columns, with dependent rows.
    rng = np.random.default_rng(8)
    for data in (_sparse, _twins, _dependent):
        X, y = data(rng, rng.normal(size=(3, 8)))
        for alpha in (1.0, 1e-2, 1e-6):
            limit = theory.limit_point(None, X, y, depth, alpha, jnp.ones(8))
            assert bool(limit.converged)
            assert np.max(np.abs(limit.residual)) <= 1e-12
            assert limit.stationarity <= 1e-12
            if data is _twins:
                # The twins are opposite by symmetry. Equal slopes determine them only to 1e-6.
                np.testing.assert_allclose(limit.rho[:4], -limit.rho[4:], rtol=0, atol=1e-6)


def test_contradictory_equations_are_projected():
    rng = np.random.default_rng(1)
    X = np.vstack([rng.normal(size=(2, 8)) * [[1], [30]], np.zeros((1, 8))])
    X[2] = X[0] + X[1]
    y = rng.normal(size=3)
    limit = theory.limit_point(None, X, y, 3, 0.5, jnp.ones(8))
    np.testing.assert_allclose(X.T @ limit.residual, 0, rtol=0, atol=1e-11)
    assert np.max(np.abs(limit.residual)) > 0.01


def test_float32():
    _, X, y, eta = _problem(0, 3, 8)
    for alpha in (1.0, 1e-3):
        values = [np.asarray(v, np.float32) for v in (X, y, alpha, eta)]
        limits = []
        for dtype in (np.float32, np.float64):
            X_, y_, alpha_, eta_ = (v.astype(dtype) for v in values)
            limits.append(theory.limit_point(None, X_, y_, 3, alpha_, eta_))
        single, double = limits
        assert single.coefficients.dtype == np.float32
        assert bool(single.converged)
        # The bound is some 100 roundings of entries of order one.
        np.testing.assert_allclose(single.coefficients, double.coefficients, rtol=0, atol=1e-5)


def test_broken_assumptions_are_named_with_their_values():
    rng = np.random.default_rng(0)
    problem = lt.Regression(rng.normal(size=(3, 8)), rng.normal(size=3))
    w = rng.uniform(1, 2, 8)
    good = lt.DiagonalNetwork(np.stack([w, w, 0 * w]))
    direct = theory.limit_point(None, problem.X, problem.y, 3, 1.0, w)
    np.testing.assert_allclose(
        theory.diagonal_limit(good, problem).coefficients, direct.coefficients, rtol=1e-12
    )
    for weights, words in (
        ([w, 1.5 * w, 0 * w], "first L-1 layers must be equal.* 0.333333 "),
        ([w, w, 0.5 * w], "last layer must be zero.* 0.5 "),
        ([w * (w < 1.9), w * (w < 1.9), 0 * w], "eta_j.* may vanish"),
    ):
        with pytest.raises(ValueError, match=words):
            theory.diagonal_limit(lt.DiagonalNetwork(np.stack(weights)), problem)
    odd = lt.ConvolutionalNetwork((np.array([3.0, 1, 2, 2, 0, 2, 2, 2]), np.zeros(8)))
    with pytest.raises(ValueError, match=r"layers must be even.* 0.166667 .*data must be even"):
        theory.even_convolution_limit(odd, problem)
    with pytest.raises(ValueError, match="full length"):
        theory.even_convolution_limit(lt.ConvolutionalNetwork((np.ones(2), np.zeros(8))), problem)
    with pytest.raises(ValueError, match="DiagonalNetwork"):
        theory.diagonal_limit(odd, problem)  # pyright: ignore[reportArgumentType]
    for change, words in (
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"eta": np.arange(8.0)}, "eta must be nonzero"),
        ({"depth": 1}, "depth must be"),
        ({"y": np.ones(4)}, "shapes"),
        ({"S": np.ones((8, 8)) * 1j}, "S must be real"),
        ({"X": np.full((3, 8), np.nan)}, "X must be finite"),
    ):
        arguments = {
            "S": None,
            "X": problem.X,
            "y": problem.y,
            "depth": 2,
            "alpha": 1.0,
            "eta": np.ones(8),
        }
        with pytest.raises(ValueError, match=words):
            theory.limit_point(**{**arguments, **change})
