"""Newton's method in the multipliers alone, and the fallback to the path of initial scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory import bregman_projection


def data(n, d, seed=0):
    rng = np.random.default_rng([n, d, seed])
    return rng.normal(size=(n, d)), rng.normal(size=n), rng


@pytest.mark.parametrize(("n", "d"), [(1, 2), (8, 32)])
@pytest.mark.parametrize("scale", [10.0, 0.1, 1e-4])
def test_a_few_steps_reach_the_projection(n, d, scale):
    X, y, rng = data(n, d)
    mu, start = scale * np.exp(rng.normal(size=d)), scale * rng.normal(size=d)
    found = bregman_projection(X, y, mu, start)
    assert found.converged
    assert found.num_iterations <= 12
    beta = np.asarray(found.coefficients)
    np.testing.assert_allclose(X @ beta, y, rtol=0, atol=1e-13 * np.abs(beta).max())
    # The change of asinh(beta / mu) is in the row space, with twice the multipliers.
    change = np.arcsinh(beta / mu) - np.arcsinh(start / mu)
    np.testing.assert_allclose(change, 2 * X.T @ found.dual, rtol=0, atol=1e-10)


def test_lanes_that_need_the_path_and_others_share_a_batch():
    X, y, rng = data(4, 12)
    scales = np.array([1.0, 1e-3, 1e-30, 1e-150, 0.1])
    mu = scales[:, None] * np.exp(rng.normal(size=(5, 12)))

    @jax.jit
    def limit(mu):
        found = bregman_projection(X, y, mu, jnp.zeros(12))
        return found.coefficients, found.converged, found.num_iterations

    together, converged, _ = jax.vmap(limit)(mu)
    assert converged.all()
    for lane, beta in zip(mu, together, strict=True):
        alone, _, _ = limit(lane)
        np.testing.assert_allclose(beta, alone, rtol=1e-9, atol=1e-13)
    # At the smallest scale |beta|_1 is nearly the least: an entry with a dual slope u of almost 1
    # vanishes as mu^(1 - u) only.
    best = lt.min_norm(lt.Regression(X, y), lt.L1Norm())
    least = np.abs(best.coefficients).sum()
    assert -1e-12 < np.abs(together[3]).sum() - least < 1e-6


@pytest.mark.slow
def test_a_problem_without_a_solution_is_projected():
    X = np.array([[1.0, 2.0, 0.5], [2.0, 4.0, 1.0]])
    found = bregman_projection(X, np.ones(2), np.full(3, 0.3), np.zeros(3))
    other = bregman_projection(X[:1], np.array([0.6]), np.full(3, 0.3), np.zeros(3))
    assert found.converged
    np.testing.assert_allclose(found.coefficients, other.coefficients, rtol=1e-12)


def test_derivatives_are_those_of_finite_differences():
    X, y, rng = data(2, 4)
    eta = np.exp(0.3 * rng.normal(size=4))

    @jax.jit
    def total(y, eta):
        found = lt.theory.limit_point(None, X, y, 2, 0.5, eta)
        return jnp.sum(found.coefficients * jnp.arange(1.0, 5.0))

    gradients = jax.grad(total, (0, 1))(jnp.asarray(y), jnp.asarray(eta))
    for place, (point, gradient) in enumerate(zip((y, eta), gradients, strict=True)):
        for j in range(point.size):
            step = 1e-5 * np.eye(point.size)[j]
            ahead, behind = ([y, eta], [y, eta])
            ahead[place], behind[place] = point + step, point - step
            slope = (total(*ahead) - total(*behind)) / 2e-5
            np.testing.assert_allclose(gradient[j], slope, rtol=1e-6, atol=1e-9)
