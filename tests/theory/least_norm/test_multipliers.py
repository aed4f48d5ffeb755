"""Multipliers: nonnegative least squares against SciPy, users' regularisers against SLSQP."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.theory.least_norm.multipliers import (
    approximate_multipliers,
    nonnegative_least_squares,
)

jax.config.update("jax_enable_x64", True)

ROUNDING = 1e-13
certify: Any = lt.certify  # residuals may be None, though not here


def _separable(seed, n, d):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return lt.Classification(X, np.sign(X @ rng.normal(size=d)))


def test_nonnegative_least_squares_against_scipy():
    rng = np.random.default_rng(0)
    for trial in range(200):
        rows, columns = rng.integers(1, 30, size=2)
        matrix = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 6, size=columns)
        right = rng.normal(size=rows)
        if trial % 3 == 0:
            matrix[:, -1] = matrix[:, 0]
        if trial % 4 == 0:
            right = matrix @ rng.exponential(size=columns)
        unit = matrix / np.linalg.norm(matrix, axis=0)
        expected, rest = scipy.optimize.nnls(unit, right)
        # Without a guess of the support, with a random one, and with the right one.
        for guess in (None, rng.random(columns) < 0.5, expected > 0):
            x = nonnegative_least_squares(matrix, right, guess)
            assert (x >= 0).all()
            assert np.linalg.norm(matrix @ x - right) <= rest + 1e-13 * np.linalg.norm(right)
    assert (nonnegative_least_squares(np.zeros((3, 2)), np.ones(3)) == 0).all()


def test_huge_columns_that_cancel():
    """Data of margins near 1e-8: here plain least squares finds multipliers with errors of 0.1.

    A convex combination of the tight samples' other parts vanishes by construction.
    """
    rng = np.random.default_rng(1)
    for trial in range(20):
        across = rng.normal(size=(14, 8))
        weights = np.append(rng.dirichlet(np.ones(9)), np.zeros(5))
        across[8] = -(weights[:8] @ across[:8]) / weights[8]
        columns = np.append(1e8 * across, np.ones((14, 1)), axis=1)
        slack = np.append(np.zeros(9), rng.uniform(0.01, 1, size=5))
        columns[:, -1] += slack
        found = approximate_multipliers(columns, np.eye(9)[-1], slack)
        assert found.residual <= found.resolution < 1e-5
        np.testing.assert_allclose(found.values, weights, rtol=0, atol=1e-5)
        # If the slack of one sample is 1e-4, the residual is at most that times its weight.
        loose = slack + 1e-4 * np.eye(14)[trial % 9]
        found = approximate_multipliers(columns, np.eye(9)[-1], loose)
        assert found.residual <= 1.01e-4 * weights[trial % 9] + found.resolution


def test_a_gradient_of_a_user():
    problem = _separable(5, 14, 6)
    for like, norm in ((lt.DiagonalNetwork.zeros(3, 6), lt.LpNorm(2 / 3)), (None, lt.L2Norm())):
        z = lt.max_margin(problem, norm).coefficients
        keep = np.abs(z) > 0
        data = lt.Classification(np.asarray(problem.X)[:, keep], problem.y)
        if like is None:
            slope = jax.grad(lambda b: jnp.sum(b**2) ** 2)
        else:
            like = lt.DiagonalNetwork.zeros(3, int(keep.sum()))
            slope = jax.grad(lambda b, like=like: lt.induced_regularizer(like, b))
        own = lt.Regularizer(gradient=slope)
        found = certify(np.asarray(z)[keep], data, regularizer=own)
        assert found.predictor_residual < ROUNDING
        moved = certify(np.asarray(z)[keep] + 1e-4, data, regularizer=own)
        assert 1e-6 < moved.predictor_residual < 1e-2
        direction = np.asarray(z)[keep] / np.linalg.norm(np.asarray(z)[keep])
        combination = np.asarray(found.multipliers) @ np.asarray(data.signed_data)
        np.testing.assert_allclose(combination, slope(jnp.asarray(direction)), rtol=0, atol=1e-12)


def test_a_prox_of_a_user():
    """Soft thresholding is the l1 norm; elsewhere the residual is a constrained proximal step."""
    problem = _separable(5, 14, 6)
    own = lt.Regularizer(prox=lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - 1, 0))
    z = np.asarray(lt.max_margin(problem, lt.L1Norm()).coefficients)
    for factor in (1e-6, 1.0, 1e6):
        data = lt.Classification(factor * problem.X, problem.y)
        assert certify(z, data, regularizer=own).predictor_residual < ROUNDING
    z = np.asarray(lt.max_margin(problem, lt.L2Norm()).direction)
    Z = np.asarray(problem.signed_data)
    level = float(np.min(Z @ z))
    # min |u|_1 + |u - z|^2 / 2 in u = a - b, by SLSQP.
    step = scipy.optimize.minimize(
        lambda ab: np.sum(ab) + 0.5 * np.sum((ab[:6] - ab[6:] - z) ** 2),
        np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)]),
        jac=lambda ab: 1 + np.concatenate([ab[:6] - ab[6:] - z, z + ab[6:] - ab[:6]]),
        bounds=[(0, None)] * 12,
        constraints={
            "type": "ineq",
            "fun": lambda ab: Z @ (ab[:6] - ab[6:]) - level,
            "jac": lambda ab: np.hstack([Z, -Z]),
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    found = certify(z, problem, regularizer=own)
    expected = np.linalg.norm(step[:6] - step[6:] - z)
    assert expected > 1e-2
    np.testing.assert_allclose(found.predictor_residual, expected, rtol=1e-6)
