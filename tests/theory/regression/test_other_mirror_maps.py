"""Differential and unbalanced networks against SciPy's flows and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import lintensor_jax as lt
from lintensor_jax.theory.regression import (
    other_mirror_maps as mirror_limits,
)
from lintensor_jax.theory.regression import (
    yun_theorem_5 as interpolation,
)


def _end_of_flow(start, gradient, residual, time=20.0):
    theta = np.ravel(start)
    for _ in range(20):
        theta = scipy.integrate.solve_ivp(
            lambda _, theta: -gradient(theta), (0, time), theta, "DOP853", rtol=1e-11, atol=1e-14
        ).y[:, -1]
        # Below this residual an explicit solver is at its limit of stability.
        if np.max(np.abs(residual(theta))) < 1e-10:
            return theta
    raise AssertionError("the oracle's flow did not arrive")


def _data(seed, n=2, d=5):
    rng = np.random.default_rng(seed)
    # With orthonormal rows the flows of the oracles are not stiff.
    return np.linalg.qr(rng.normal(size=(d, n)))[0].T, rng.normal(size=n), rng


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(("depth", "alpha"), [(2, 0.2), (3, 0.5), (4, 0.6), (7, 0.9)])
def test_the_differential_flow_ends_at_the_limit(depth, alpha):
    X, y, rng = _data(depth)
    eta = rng.uniform(0.7, 1.3, 5)

    def residual(theta):
        plus, minus = theta.reshape(2, 5)
        return X @ (plus**depth - minus**depth) - y

    def gradient(theta):
        plus, minus = theta.reshape(2, 5)
        g = depth * (X.T @ residual(theta))
        return np.concatenate([g * plus ** (depth - 1), -g * minus ** (depth - 1)])

    plus, minus = _end_of_flow([alpha * eta, alpha * eta], gradient, residual).reshape(2, 5)
    limit = mirror_limits.differential_limit(X, y, depth, alpha, eta)
    assert bool(limit.converged)
    # The error is that of some hundred steps with rtol 1e-11.
    np.testing.assert_allclose(limit.coefficients, plus**depth - minus**depth, rtol=0, atol=1e-8)
    # The parameters of the limit, from nu alone.
    s = X.T @ np.asarray(limit.dual)
    if depth == 2:
        np.testing.assert_allclose(
            2 * (alpha * eta) ** 2 * np.sinh(4 * s), limit.rho, rtol=0, atol=1e-12
        )
    else:
        t = depth * (depth - 2) * (alpha * eta) ** (depth - 2) * s
        assert 1 - np.max(np.abs(t)) == pytest.approx(float(limit.boundary_distance), rel=1e-8)
        np.testing.assert_allclose(alpha * eta * (1 - t) ** (-1 / (depth - 2)), plus, rtol=1e-7)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("depth", "alpha"), [(3, 1e-8), (2, 1e-40), (2, 1e6), (4, 1e-3), (4, 1e2), (7, 1e-8)]
)
def test_the_differential_potential(depth, alpha):
    X, y, _ = _data(depth + 20)
    limit = mirror_limits.differential_limit(X, y, depth, alpha)
    assert bool(limit.converged)
    assert int(limit.num_iterations) <= 60
    assert np.max(np.abs(limit.residual)) <= 1e-13
    assert float(limit.stationarity) <= 1e-12

    # The integral of the slope d(potential)/d(rho) over z, by SciPy's quadrature.
    def integrand(z):
        if depth == 2:
            return alpha**2 * z / 2 * np.cosh(z)
        p = depth / (depth - 2)
        growth = 2 * p * np.cosh(z) ** (p - 1) * np.cosh((p + 1) * z)
        return alpha**2 * np.tanh(z) / (depth * (depth - 2)) * growth

    total = sum(
        scipy.integrate.quad(integrand, 0, abs(float(z)), epsabs=0, epsrel=1e-10, limit=200)[0]
        for z in limit.coordinate
    )
    assert float(limit.potential) == pytest.approx(total, rel=1e-8)
    assert float(limit.log_potential) == pytest.approx(np.log(total), abs=1e-8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("depth", [2, 3])
def test_derivatives_of_the_differential_limit(depth):
    X, y, _ = _data(depth)
    eta = np.linspace(0.8, 1.2, 5)
    arguments = [jnp.asarray(v) for v in (y, 1e-2, eta)]

    def outputs(*arguments):
        y, alpha, eta = arguments
        limit = mirror_limits.differential_limit(X, y, depth, alpha, eta)
        return jnp.append(limit.coefficients, limit.potential)

    jacobians = jax.jacrev(outputs, range(3))(*arguments)
    for k, value in enumerate(arguments):
        index = (1,) * value.ndim
        step = 1e-5 * float(jnp.abs(value[index]))
        ends = [
            outputs(*arguments[:k], value.at[index].add(sign * step), *arguments[k + 1 :])
            for sign in (1, -1)
        ]
        # Central differences: step^2 + rounding / step.
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(
            jacobians[k][(slice(None), *index)], difference, rtol=0, atol=1e-6
        )
    # dV/dy = nu.
    limit = mirror_limits.differential_limit(X, y, depth, 1e-2, eta)
    np.testing.assert_allclose(jacobians[0][-1], limit.dual, rtol=1e-10)


def test_woodworth_limits_interpolate():
    X, y, _ = _data(4)
    l1 = lt.min_norm(lt.Regression(X, y), lt.L1Norm()).coefficients
    l2 = np.linalg.lstsq(X, y)[0]
    for depth in (2, 3):
        small = mirror_limits.differential_limit(X, y, depth, 1e-30 if depth == 2 else 1e-6)
        np.testing.assert_allclose(small.coefficients, l1, rtol=0, atol=1e-6)
        large = mirror_limits.differential_limit(X, y, depth, 1e6)
        np.testing.assert_allclose(large.coefficients, l2, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_layers_from_any_start(seed):
    X, y, rng = _data(seed)
    # Either layer may be the larger one; one coordinate is nearly balanced.
    start = rng.normal(size=(2, 5))
    start[1, 0] = start[0, 0] * (1 + 1e-4)

    def residual(theta):
        return X @ np.prod(theta.reshape(2, 5), axis=0) - y

    def gradient(theta):
        return np.ravel((X.T @ residual(theta)) * theta.reshape(2, 5)[::-1])

    end = np.prod(_end_of_flow(start, gradient, residual).reshape(2, 5), axis=0)
    network = lt.DiagonalNetwork(start)
    limit = mirror_limits.two_layer_diagonal_limit(network, lt.Regression(X, y))
    assert bool(limit.converged)
    np.testing.assert_allclose(limit.coefficients, end, rtol=0, atol=1e-8)
    mu, beta_0 = np.abs(start[0] ** 2 - start[1] ** 2) / 2, start[0] * start[1]
    projection = mirror_limits.bregman_projection(X, y, mu, beta_0)
    np.testing.assert_allclose(projection.coefficients, end, rtol=0, atol=1e-8)

    def phi(beta):
        return np.sum(beta * np.arcsinh(beta / mu) - np.hypot(beta, mu)) / 2

    divergence = phi(end) - phi(beta_0) - np.arcsinh(beta_0 / mu) / 2 @ (end - beta_0)
    assert float(projection.potential) == pytest.approx(divergence, abs=1e-7)


@pytest.mark.slow
def test_two_layers_with_one_zero_agree_with_theorem_5():
    X, y, rng = _data(7, 2, 4)
    S, eta = rng.normal(size=(6, 4)), rng.normal(size=6)
    expected = interpolation.limit_point(S, X, y, 2, 1e-6, eta)
    got = mirror_limits.two_layer_limit(S, X, y, 1e-6 * eta, 0 * eta)
    np.testing.assert_allclose(got.coefficients, expected.coefficients, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.dual, expected.dual, rtol=1e-11)
    np.testing.assert_allclose(got.potential, expected.potential, rtol=1e-11)


@pytest.mark.parametrize("mu", [1e-40, 1e-3, 1e3])
def test_bregman_projection_far_from_the_start(mu):
    # Large starts with the wrong signs, at scales mu where the flow would be stiff.
    X, y, rng = _data(9)
    beta_0 = 10 * rng.normal(size=5)
    scale = mu * np.exp(rng.normal(size=5))
    limit = mirror_limits.bregman_projection(X, y, scale, beta_0)
    assert bool(limit.converged)
    assert np.max(np.abs(limit.residual)) <= 1e-12
    # The definition of the projection, with NumPy's asinh.
    moved = np.arcsinh(np.asarray(limit.coefficients) / scale) - np.arcsinh(beta_0 / scale)
    np.testing.assert_allclose(moved, 2 * X.T @ np.asarray(limit.dual), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_derivatives_of_the_bregman_projection():
    X, y, rng = _data(10)
    arguments = [jnp.asarray(v) for v in (y, rng.uniform(0.01, 0.1, 5), rng.normal(size=5))]

    def outputs(*arguments):
        limit = mirror_limits.bregman_projection(X, *arguments)
        return jnp.append(limit.coefficients, limit.potential)

    jacobians = jax.jacrev(outputs, range(3))(*arguments)
    for k, value in enumerate(arguments):
        step = 1e-5 * float(jnp.abs(value[1]))
        ends = [
            outputs(*arguments[:k], value.at[1].add(sign * step), *arguments[k + 1 :])
            for sign in (1, -1)
        ]
        # Central differences: step^2 + rounding / step.
        difference = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(jacobians[k][:, 1], difference, rtol=0, atol=1e-6)
    dual = mirror_limits.bregman_projection(X, *arguments).dual
    np.testing.assert_allclose(jacobians[0][-1], dual, rtol=1e-10)


def test_bad_input():
    X, y, _ = _data(0)
    for call, words in (
        (lambda: mirror_limits.bregman_projection(X, y, np.zeros(5), np.ones(5)), "balanced"),
        (lambda: mirror_limits.bregman_projection(X, y, np.ones(4), np.ones(5)), "shapes"),
        (lambda: mirror_limits.two_layer_limit(None, X, y, np.ones(5), -np.ones(5)), "balanced"),
        (lambda: mirror_limits.two_layer_limit(None, X, y, np.ones(4), np.ones(4)), "shapes"),
        (lambda: mirror_limits.differential_limit(X, y, 1, 1.0), "depth"),
        (lambda: mirror_limits.differential_limit(X, y, 2, -1.0), "alpha must be > 0"),
        (lambda: mirror_limits.differential_limit(X, y, 2, 1.0, -np.ones(5)), "eta must be > 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    deep = lt.DiagonalNetwork(np.ones((3, 5)))
    with pytest.raises(ValueError, match="L = 2"):
        mirror_limits.two_layer_diagonal_limit(deep, lt.Regression(X, y))
