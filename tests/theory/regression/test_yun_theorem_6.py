"""Theorem 6 (Yun et al. 2021) against mpmath, against SciPy's integration, and its edge cases."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian, matching
from lintensor_jax.networks import split
from lintensor_jax.theory.regression.yun_theorem_6 import limit_point_two_layer

D = 3
X = np.array([[1.0, 2.0, -0.7]])
EPS = np.finfo(float).eps
predict = eqx.filter_jit(limit_point_two_layer)

NETWORKS = {
    "diagonal": lt.DiagonalNetwork.zeros(2, D),
    "conv-full": lt.ConvolutionalNetwork.zeros(D, (D, D)),
    "conv-1": lt.ConvolutionalNetwork.zeros(D, (1, D)),
    "conv-2": lt.ConvolutionalNetwork.zeros(D, (2, D)),
    "fully-connected": lt.FullyConnectedNetwork.zeros((D, 2)),
    "tensor": lt.TensorNetwork(
        jax.random.normal(jax.random.key(9), (4, 2, D)), (jnp.zeros(4), jnp.zeros(2))
    ),
}


def problem(y, x: Any = X):
    return lt.Regression(jnp.asarray(x), jnp.asarray([y], float))


def start(name, alpha):
    """A start in random directions, which need not satisfy the theorem's sufficient condition."""
    return gaussian(NETWORKS[name], jax.random.key(4), alpha)


def exact_limit(network, y, guess):
    """(nu, beta) by mpmath, from the equations of the flow: no SVD, no formula of the theorem.

    v' = nu' [[0, M], [M^T, 0]] v, so v = expm(nu B) v(0), and nu solves v_1^T M v_2 = y; `guess`
    only starts Newton's method, whose end is checked.
    """

    def as_matrix(array):
        return mpmath.matrix(np.asarray(array, float).tolist())

    M = as_matrix(network.data_tensor(X[0]))
    split_at, size = M.rows, M.rows + M.cols
    B = mpmath.zeros(size)
    B[:split_at, split_at:], B[split_at:, :split_at] = M, M.T
    v0 = as_matrix(np.concatenate([np.asarray(v) for v in network.factors]))
    nu = mpmath.mpf(float(guess))
    for _ in range(20):
        v = mpmath.expm(B * nu, method="taylor") * v0
        v1, v2 = v[:split_at], v[split_at:]
        error = mpmath.mpf(y) - (v1.T * M * v2)[0]
        if abs(error) < mpmath.mpf(10) ** -40:
            break
        nu += error / (mpmath.norm(M.T * v1) ** 2 + mpmath.norm(M * v2) ** 2)
    else:
        raise AssertionError("Newton's method did not converge")
    basis = np.eye(D)
    return nu, [(v1.T * as_matrix(network.data_tensor(e)) * v2)[0] for e in basis]


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("y", [1.0, -2.0, 0.0])
@pytest.mark.parametrize("alpha", [1e-100, 1e-50, 1e-8, 1.0, 1e3])
@pytest.mark.parametrize("name", ["diagonal", "conv-2", "fully-connected"])
def test_limit_against_mpmath(name, alpha, y):
    network = start(name, alpha)
    limit = predict(network, problem(y))
    with mpmath.workdps(330):  # e^(2 s nu) cancels alpha^-2 = 1e200 and then some
        nu, beta = exact_limit(network, y, limit.nu)
        scale = max(abs(b) for b in beta)
        error = max(
            abs(mpmath.mpf(float(ours)) - b)
            for ours, b in zip(limit.coefficients, beta, strict=True)
        )
    # The singular values of M(x) have errors of a few ulp, which nu multiplies: this is the
    # condition number of the problem. All other errors are a few ulp.
    s_max = np.linalg.norm(np.asarray(network.data_tensor(X[0])), 2)
    condition = 1 + 2 * s_max * abs(float(limit.nu))
    assert error <= 6 * EPS * condition * scale
    assert abs(mpmath.mpf(float(limit.nu)) - nu) <= 6 * EPS * condition / s_max
    assert abs(limit.residual) <= 10 * EPS * (abs(y) + float(scale))


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_limit_against_an_independent_integration(name):
    """All parameters agree with SciPy's DOP853 at rtol = 1e-12, at a negligible residual."""
    network, data = start(name, 0.3), problem(1.5)
    limit = predict(network, data)
    parameters, rest = split(network)
    theta, unravel = ravel_pytree(parameters)

    def loss(theta):
        return data.loss(eqx.combine(unravel(theta), rest).linear_coefficients())

    velocity = jax.jit(lambda theta: -jax.grad(loss)(theta))
    solution = solve_ivp(
        lambda _, theta: np.asarray(velocity(theta)),
        (0.0, 60.0),
        np.asarray(theta),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    end = eqx.combine(unravel(jnp.asarray(solution.y[:, -1])), rest)
    # The solver's tolerance times the growth from the saddle near zero.
    for ours, theirs in zip(limit.network.factors, end.factors, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(limit.coefficients, end.linear_coefficients(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        limit.network.linear_coefficients(), limit.coefficients, rtol=0, atol=1e-13
    )


@pytest.mark.slow
def test_small_initialization_finds_the_norms_of_each_architecture():
    """Yun et al. 2021, section 6: x = [1, 2], y = 1, alpha -> 0."""
    data = problem(1.0, x=[[1.0, 2.0]])
    cases = [
        (lt.FullyConnectedNetwork.zeros((2, 2)), [0.2, 0.4]),
        (lt.DiagonalNetwork.zeros(2, 2), [0.0, 0.5]),
        (lt.ConvolutionalNetwork.zeros(2, (2, 2)), [1 / 3, 1 / 3]),
    ]
    for like, expected in cases:
        network = matching(like, jnp.array([0.3, -0.8])).scaled(1e-30)
        # The error by the smaller singular value s_2 is about 1e-30 to the power 2 (1 - s_2 / s_1).
        np.testing.assert_allclose(
            predict(network, data).coefficients, expected, rtol=0, atol=1e-14
        )


def test_large_initialization_finds_the_closest_solution():
    """From v_2(0) = 0 and v_1(0) = alpha 1, alpha -> inf: the min-l2 solution, with a tiny nu."""
    alpha = 1e9
    network = lt.DiagonalNetwork(alpha * jnp.array([[1.0, 1.0], [0.0, 0.0]]))
    limit = predict(network, problem(1.0, x=[[1.0, 2.0]]))
    # The next terms are smaller by nu^2.
    np.testing.assert_allclose(limit.nu, 1 / (5 * alpha**2), rtol=1e-14)
    np.testing.assert_allclose(limit.coefficients, [0.2, 0.4], rtol=1e-14)


@pytest.mark.parametrize("name", ["diagonal", "fully-connected"])
def test_scale_is_absorbed(name):
    """beta(alpha vbar, y) = alpha^2 beta(vbar, y / alpha^2), and gap = alpha^2 lambda."""
    one, scaled = (start(name, alpha) for alpha in (1.0, 0.01))
    a, b = predict(one, problem(1e4)), predict(scaled, problem(1.0))
    np.testing.assert_allclose(b.coefficients, 1e-4 * a.coefficients, rtol=1e-12)
    np.testing.assert_allclose(b.nu, a.nu, rtol=1e-13)
    np.testing.assert_allclose(b.gap, 1e-4 * a.gap, rtol=1e-12)


def test_gap_is_read_from_the_definition_and_from_subspaces():
    weights = jnp.array([[2.0, 1.0, 3.0], [1.0, 2.0, 0.5]])
    distinct = predict(lt.DiagonalNetwork(weights), problem(1.0)).gap
    np.testing.assert_allclose(distinct, -3.0, rtol=1e-14)
    # |x_1| = |x_2|: coordinates 1 and 2 share a subspace, with the mean of 3 and -3.
    for nudge in (0.0, 1e-15, 1e-12):
        equal = problem(1.0, x=[[1.0, -1.0 - nudge, 0.3]])
        gap = predict(lt.DiagonalNetwork(weights), equal).gap
        np.testing.assert_allclose(gap, 0.0, rtol=0, atol=1e-14)
    # If the sample's second coordinate is zero, its singular value does not count.
    compact = predict(lt.DiagonalNetwork(weights), problem(1.0, x=[[1.0, 0.0, 0.3]]))
    np.testing.assert_allclose(compact.gap, 3.0, rtol=1e-14)
    np.testing.assert_allclose(compact.network.weights[:, 1], weights[:, 1], rtol=1e-14)


def test_rotating_hidden_units_changes_nothing():
    """In the degenerate subspace of a fully-connected network all bases give the same limit."""
    network = gaussian(lt.FullyConnectedNetwork.zeros((D, 4)), jax.random.key(0))
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (4, 4)))[0]
    W, w = network.weights
    rotated = lt.FullyConnectedNetwork((W @ rotation, rotation.T @ w))
    ours, theirs = predict(network, problem(1.0)), predict(rotated, problem(1.0))
    np.testing.assert_allclose(ours.coefficients, theirs.coefficients, rtol=1e-13)
    np.testing.assert_allclose(ours.gap, theirs.gap, rtol=1e-12)
    xhat = X[0] / np.linalg.norm(X)
    definition = (np.sum((xhat @ W) ** 2) - np.sum(w**2)) / 4
    np.testing.assert_allclose(ours.gap, definition, rtol=1e-12)


@pytest.mark.parametrize(
    ("first", "last", "y", "nu", "beta"),
    [
        ((0.0, 0.0), (0.0, 0.0), 1.0, np.inf, (0.0, 0.0)),  # zero never moves
        ((0.0, 0.0), (0.0, 0.0), 0.0, 0.0, (0.0, 0.0)),
        ((1.0, 1.0), (1.0, 1.0), -1.0, -np.inf, (0.0, 0.0)),  # equal layers: beta stays >= 0
        ((1.0, 1.0), (1.0, 1.0), 2.0, None, None),
        ((1.0, 1.0), (-1.0, -1.0), 2.0, np.inf, (0.0, 0.0)),
        ((1.0, 1.0), (-1.0, -1.0), -2.0, None, None),
        ((1.0, 1.0), (0.0, 0.0), 0.0, 0.0, (0.0, 0.0)),  # the start is the limit
    ],
)
def test_targets_out_of_reach(first, last, y, nu, beta):
    """If g does not reach y, the loss does not tend to 0, and the residual is not zero."""
    network = lt.DiagonalNetwork(jnp.array([first, last]))
    limit = predict(network, problem(y, x=[[1.0, 2.0]]))
    if beta is None:
        assert abs(limit.residual) < 1e-14
        return
    np.testing.assert_array_equal(limit.nu, nu)
    np.testing.assert_array_equal(limit.coefficients, beta)
    np.testing.assert_array_equal(limit.residual, -y)


def test_derivatives_are_those_of_finite_differences():
    network = start("conv-2", 0.5)

    def first_coefficient(theta, y, unravel):
        return limit_point_two_layer(unravel(theta), problem_of(y)).coefficients[0]

    def problem_of(y):
        return lt.Regression(jnp.asarray(X), y[None])

    theta, unravel = ravel_pytree(network)
    value = jax.jit(functools.partial(first_coefficient, unravel=unravel))
    derivative = jax.jit(jax.grad(value, argnums=(0, 1)))
    step = 1e-5  # central differences: error step^2, and eps / step = 2e-11
    for y in (1.0, 0.0, -1.0):
        y = jnp.asarray(y)
        by_theta, by_y = derivative(theta, y)
        slope = (value(theta, y + step) - value(theta, y - step)) / (2 * step)
        np.testing.assert_allclose(by_y, slope, rtol=0, atol=1e-8)
        for k, e in enumerate(np.eye(theta.size)):
            slope = (value(theta + step * e, y) - value(theta - step * e, y)) / (2 * step)
            np.testing.assert_allclose(by_theta[k], slope, rtol=0, atol=1e-8)


def test_batches_and_precision():
    """Lanes of very different scale do not disturb each other."""
    alphas = jnp.array([1e-100, 1e-3, 1.0, 1e3])
    batch = jax.jit(jax.vmap(lambda a: limit_point_two_layer(start("conv-full", a), problem(1.0))))
    limits = batch(alphas)
    for lane, alpha in enumerate(alphas):
        single = predict(start("conv-full", alpha), problem(1.0))
        # Batched and single SVD may differ by rounding, which nu multiplies.
        np.testing.assert_allclose(limits.coefficients[lane], single.coefficients, rtol=1e-11)
    network = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start("diagonal", 1e-3))
    data = lt.Regression(jnp.asarray(X, jnp.float32), jnp.ones(1, jnp.float32))
    limit = predict(network, data)
    assert limit.coefficients.dtype == limit.nu.dtype == jnp.float32
    exact = predict(start("diagonal", 1e-3), problem(1.0)).coefficients
    np.testing.assert_allclose(limit.coefficients, exact, rtol=3e-5, atol=1e-6)


DIAGONAL = lt.DiagonalNetwork.zeros(2, D)


@pytest.mark.parametrize(
    ("network", "data", "words"),
    [
        (lt.DiagonalNetwork.zeros(3, D), problem(1.0), ["network", "L = 2", "L = 3", "Theorem 5"]),
        (DIAGONAL, lt.Regression(np.ones((2, D)), np.ones(2)), ["problem", "n = 2", "one row"]),
        (DIAGONAL, lt.Classification(X, np.ones(1)), ["problem", "Regression", "Classification"]),
        (
            lt.FullyConnectedNetwork.zeros((D, 2), 2),
            lt.Regression(X, np.ones((1, 2))),
            ["scalar output", "(3, 2)", "(d_L,)"],
        ),
        (DIAGONAL, problem(1.0, x=[[1.0, 2.0]]), ["input dimensions", "(3,)", "(1, 2)"]),
        (eqx.nn.Identity(), problem(1.0), ["Identity", "data_tensor, factors", "add them"]),
    ],
)
def test_outside_the_setting(network, data, words):
    with pytest.raises(ValueError, match=r"network|problem") as error:
        limit_point_two_layer(network, data)
    for word in words:
        assert word in str(error.value)
