"""Printed statements of Min et al. 2021 (and Yun's Theorem 7) next to the corrected ones.

Theorems 2 and 3 of Yun et al. 2021 are in theory/classification/test_errata.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax import theory

RNG = np.random.default_rng(5)


def scalar_flow(u, v, y, times):
    """1/2 (y - u v)^2 at the times, by SciPy."""

    def field(_, w):
        return (y - w[0] * w[1]) * w[::-1]

    solved = solve_ivp(field, (0, times[-1]), [u, v], t_eval=times, rtol=1e-11, atol=1e-13)
    return (y - solved.y[0] * solved.y[1]) ** 2 / 2


def scalar(u, v, y):
    return lt.FullyConnectedNetwork([[[u]], [v]]), lt.Regression([[1.0]], [y])


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_corollary_5s_rate(share):
    """Printed 2 l_r(Sigma) c(0), right l_r(Sigma) c(0), for a balanced scalar with a margin."""
    y = 2.0
    u = np.sqrt(share * y)
    bounds = {b.theorem: b for b in theory.rate_bounds(*scalar(u, u, y))}
    corollary = bounds["Corollary 5"]
    assert corollary.holds
    times = np.linspace(0, 1, 6)
    losses = scalar_flow(u, u, y, times)
    # SciPy's tolerance, relative to losses that fall to 1e-4.
    assert np.all(losses <= losses[0] * np.exp(-corollary.value * times) * (1 + 1e-6))
    assert np.all(losses[1:] > losses[0] * np.exp(-2 * corollary.value * times[1:]))


def test_corollary_6s_time():
    """Printed exp(-l_r c(t_0) t) from t_0 on, right exp(-l_r c(t_0) (t - t_0))."""
    u, y, start = 1.0, 2.0, 0.2
    times = np.array([0, start, 0.3, 0.5, 0.8])
    losses = scalar_flow(u, u, y, times)[1:]
    times = times[1:]
    # At t_0 the product is y - sqrt(2 L).
    reached = np.sqrt(y - np.sqrt(2 * losses[0]))
    bound = theory.rate_bounds(*scalar(reached, reached, y))[1]
    corrected = losses[0] * np.exp(-bound.value * (times - start))
    printed = losses[0] * np.exp(-bound.value * times)
    assert np.all(losses <= corrected * (1 + 1e-6))
    # At t_0 the printed bound is already wrong, by the factor exp(c t_0).
    assert losses[0] > 2 * printed[0]
    assert bound.decay is not None
    np.testing.assert_allclose(bound.decay(times - start), corrected, rtol=1e-5)


def two_layer_flow(network, problem, times):
    """The coefficients at the times, by SciPy; one output."""
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    shape = network.weights[0].shape
    size = shape[0] * shape[1]

    def field(_, theta):
        u, v = theta[:size].reshape(shape), theta[size:]
        slope = X.T @ (X @ (u @ v) - y)
        return -np.concatenate([np.outer(slope, v).ravel(), u.T @ slope])

    start = np.concatenate([np.asarray(w).ravel() for w in network.weights])
    solved = solve_ivp(field, (0, times[-1]), start, "DOP853", t_eval=times, rtol=1e-12, atol=1e-14)
    return np.array([theta[:size].reshape(shape) @ theta[size:] for theta in solved.y.T])


@pytest.fixture(scope="module")
def rich():
    """An underdetermined problem with room for U_2 in a hidden layer of eight units."""
    problem = lt.Regression(RNG.standard_normal((3, 6)), RNG.standard_normal(3))
    return problem, lt.min_norm(problem, lt.L2Norm()).coefficients


def first_condition_alone(problem, key):
    """A start with V U_2^T = 0 and U_1 U_2^T != 0: U_2 is orthogonal to V, but not to U_1."""
    like = lt.FullyConnectedNetwork.zeros((6, 8))
    drawn = lt.initialization.gaussian(like, key)
    u, v = drawn.weights
    resting = theory.resting_part(drawn, problem)
    unit = v / jnp.linalg.norm(v)
    return lt.FullyConnectedNetwork([u - jnp.outer(resting @ unit, unit), v])


def products(network, problem):
    """|V U_2^T| and |U_1 U_2^T|."""
    resting = theory.resting_part(network, problem)
    seen = network.weights[0] - resting
    return float(jnp.linalg.norm(resting @ network.weights[1])), float(
        jnp.linalg.norm(seen @ resting.T)
    )


def test_proposition_10_needs_both_conditions(rich):
    """U V^T(0) in the span of the data is enough in linear regression, but not here."""
    problem, solution = rich
    half = first_condition_alone(problem, jax.random.key(1))
    both = lt.initialization.invariant(half, problem, jax.random.key(1))
    assert products(half, problem)[0] < 1e-14
    assert products(half, problem)[1] > 1
    assert max(products(both, problem)) < 1e-13
    assert jnp.linalg.norm(theory.resting_part(both, problem)) > 1
    # The time after which the loss is 1e-26 of the initial one, by Theorem 3.
    ends = [
        two_layer_flow(
            n, problem, [0, 60 / float(lt.convergence_rate_bound(n, problem).guaranteed)]
        )
        for n in (half, both)
    ]
    errors = [np.max(np.abs(end[-1] - solution)) for end in ends]
    assert errors[0] > 0.1
    # The bound is SciPy's tolerance, because the flow contracts at its end.
    assert errors[1] < 1e-10


def test_theorem_7s_rate_without_its_2():
    """The printed bound lacks a factor 2: it is valid, but loose. With the 2 it holds, too."""
    problem = lt.Regression(np.eye(2), [1.0, -0.5])
    network = lt.FullyConnectedNetwork([np.diag([1.0, 1.1]), [0.0, 0.0]])
    bound = theory.yun_rate_bound(network, problem)
    assert bound.decay is not None
    assert "Theorem 7" in bound.decay.source
    assert bound.value == pytest.approx(2.0, rel=1e-12)
    assert bound.decay is not None

    times = np.array([0, 0.1, 0.3, 0.6, 1.0])
    betas = two_layer_flow(network, problem, times)
    losses = np.sum((betas - np.asarray(problem.y)) ** 2, axis=1) / 2
    corrected = np.asarray(bound.decay(times))
    printed = losses[0] * np.exp(-bound.value / 2 * times)
    assert np.all(losses <= corrected * (1 + 1e-6))
    assert np.all(corrected[1:] < printed[1:])
