"""Regression flows against SciPy in physical time and against Theorem 6; stiff flows."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from reference_flows import (
    ReferenceFlow,
    convolution_tensor,
    diagonal_tensor,
    fully_connected_tensor,
)
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.dynamics.gauss_newton import run_finish
from lintensor_jax.dynamics.system import Reducible, System
from lintensor_jax.initialization import gaussian
from lintensor_jax.networks import split

D, N = 3, 2
RNG = np.random.default_rng(0)
X, TARGETS = RNG.normal(size=(N, D)), RNG.normal(size=(N, 2))
Y = TARGETS[:, 0]
TENSOR3 = RNG.normal(size=(2, 3, 2, D))


class Recombined(eqx.Module):
    """A user's own network: beta = A (u * v), with its conserved quantities."""

    u: Array
    v: Array
    A: Array = lt.constant()
    depth = 2

    def linear_coefficients(self):
        return self.A @ (self.u * self.v)

    def conserved_quantities(self):
        return self.u**2 - self.v**2


MIXING = RNG.normal(size=(D, 4))

# name: (template, dense tensor)
NETWORKS: dict[str, tuple[Any, np.ndarray]] = {
    **{f"diagonal-{L}": (lt.DiagonalNetwork.zeros(L, D), diagonal_tensor(L, D)) for L in (2, 3, 4)},
    **{
        f"convolution-{'-'.join(map(str, k))}": (
            lt.ConvolutionalNetwork.zeros(D, k),
            convolution_tensor(D, k),
        )
        for k in ((3, 3), (2, 3), (3, 3, 3), (1, 2, 2, 3))
    },
    **{
        f"fully-connected-{'-'.join(map(str, w))}": (
            lt.FullyConnectedNetwork.zeros(w),
            fully_connected_tensor(w),
        )
        for w in ((D, 2), (D, 2, 3), (D, 3, 2, 2))
    },
    "two-outputs-2": (
        lt.FullyConnectedNetwork.zeros((D, 2), 2),
        fully_connected_tensor((D, 2), 2),
    ),
    "two-outputs-3": (
        lt.FullyConnectedNetwork.zeros((D, 2, 3), 2),
        fully_connected_tensor((D, 2, 3), 2),
    ),
    "tensor-3": (
        lt.TensorNetwork(TENSOR3, (jnp.zeros(2), jnp.zeros(3), jnp.zeros(2))),
        TENSOR3,
    ),
    "user": (
        Recombined(jnp.zeros(4), jnp.zeros(4), jnp.asarray(MIXING)),
        np.einsum("dj,jk->jkd", MIXING, np.eye(4)),
    ),
}


def parameters(network):
    return ravel_pytree(split(network)[0])[0]


def flow(network, problem, **options) -> Any:
    """`gradient_flow`, with a check of what every flow must conserve: its invariants."""
    solution = lt.gradient_flow(network, problem, **options)
    assert (solution.invariant_drift <= 100 * solution.rtol).all()
    assert not jnp.isnan(solution.log_loss).any()
    return solution


# One case of every architecture always runs; other depths and widths are slow tests.
USUAL = (
    "diagonal-3",
    "convolution-2-3",
    "fully-connected-3-2",
    "two-outputs-3",
    "tensor-3",
    "user",
)


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in USUAL else pytest.mark.slow) for n in NETWORKS],
)
def test_agrees_with_scipy(name):
    # All parameters are compared, at several times. The bound of 1e-8 covers the flow's error at
    # rtol 1e-10; SciPy's error is 10 times smaller.
    template, tensor = NETWORKS[name]
    start = gaussian(template, jax.random.key(1), 0.8)
    y = TARGETS if name.startswith("two-outputs") else Y
    times = np.array([0.1, 0.7, 3.0])
    solution = flow(
        start,
        lt.Regression(X, y),
        rtol=1e-10,
        saveat=times,
        stop=lt.StopAtTime(3.0),
        finish=None,
        observe=parameters,
    )
    reference = ReferenceFlow(tensor, int(template.depth), X, y)
    expected = reference(parameters(start), times)
    assert np.abs(solution.observed[:-1] - expected).max() < 1e-8
    beta = np.stack([reference.coefficients(theta) for theta in expected])
    assert np.abs(solution.coefficients[:-1] - beta).max() < 1e-8
    losses = 0.5 * ((np.tensordot(beta, X, (1, 1)).swapaxes(1, -1) - y) ** 2).reshape(3, -1).sum(1)
    np.testing.assert_allclose(np.exp(solution.log_loss[:-1]), losses, rtol=1e-6)
    np.testing.assert_allclose(np.exp(solution.log_time[:-1]), times, rtol=1e-14)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("alpha", [0.01, 1.0])
@pytest.mark.parametrize("name", ["diagonal-2", "convolution-3-3", "fully-connected-3-2"])
def test_theorem_6(name, alpha):
    # For one sample the limit has a closed form. At rtol 1e-10 the required accuracy is 1e-8.
    problem = lt.Regression(X[:1], Y[:1])
    start = gaussian(NETWORKS[name][0], jax.random.key(2)).scaled(alpha)
    solution = flow(start, problem, rtol=1e-10)
    limit = lt.theory.limit_point_two_layer(start, problem)
    assert solution.stats["finish_accepted"]
    assert np.abs(solution.coefficients[-1] - limit.coefficients).max() < 1e-8


class Stiff:
    """Diagonal, d = 16, n = 4: the last layer is zero, and all others are alpha * eta."""

    rng = np.random.default_rng(5)
    X, y, eta = rng.normal(size=(4, 16)), rng.normal(size=4), rng.normal(size=16)

    @classmethod
    def start(cls, depth, alpha):
        return lt.DiagonalNetwork(alpha * np.stack([cls.eta] * (depth - 1) + [0 * cls.eta]))

    @classmethod
    def limit(cls, depth, alpha):
        """By SciPy's implicit Radau method on the two distinct layers, with its exact Jacobian."""

        # All layers but the last stay equal, p, and beta = p^(L-1) q.
        def velocity(t, state):
            p, q = np.split(state, 2)
            g = cls.X.T @ (cls.X @ (p ** (depth - 1) * q) - cls.y)
            return -np.concatenate([p ** (depth - 2) * q * g, p ** (depth - 1) * g])

        def jacobian(t, state):
            p, q = np.split(state, 2)
            r = cls.X @ (p ** (depth - 1) * q) - cls.y
            g, K = cls.X.T @ r, cls.X.T @ cls.X
            first, last = p ** (depth - 2) * q, p ** (depth - 1)
            by_p, by_q = K * ((depth - 1) * first), K * last
            rows = [
                [
                    first[:, None] * by_p + np.diag((depth - 2) * p ** (depth - 3) * q * g),
                    first[:, None] * by_q + np.diag(p ** (depth - 2) * g),
                ],
                [
                    last[:, None] * by_p + np.diag((depth - 1) * p ** (depth - 2) * g),
                    last[:, None] * by_q,
                ],
            ]
            return -np.block(rows)

        start = alpha * np.concatenate([cls.eta, 0 * cls.eta])
        end = solve_ivp(
            velocity, (0, 1e6), start, "Radau", jac=jacobian, rtol=1e-9, atol=1e-11 * alpha
        )
        p, q = np.split(end.y[:, -1], 2)
        return p ** (depth - 1) * q


@pytest.mark.parametrize(
    ("depth", "alpha"), [(3, 1e-3), pytest.param(4, 1e-2, marks=pytest.mark.slow)]
)
def test_stiff_flows_end_by_the_automatic_choice(depth, alpha):
    solution = flow(Stiff.start(depth, alpha), lt.Regression(Stiff.X, Stiff.y))
    assert solution.status == lt.FlowStatus.residual
    assert solution.stats["num_steps"] < 2000
    assert solution.stats["num_implicit_steps"] > 0
    # The plateau at the start amplifies the error of both runs: at rtol 1e-8 to about 1e-6.
    assert np.abs(solution.coefficients[-1] - Stiff.limit(depth, alpha)).max() < 1e-6
    assert np.abs(Stiff.X @ solution.coefficients[-1] - Stiff.y).max() < 1e-14


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("alpha", [1e-8, 1e-100, 1e-200])
def test_initializations_of_any_size(alpha):
    # As alpha -> 0 the two-layer diagonal limit is the solution of least l1 norm (Corollary 2).
    # With three coordinates and two samples this is the best of three vertices.
    start = lt.DiagonalNetwork(alpha * np.array([[1.0, -0.6, 0.8], [0.0, 0.0, 0.0]]))
    solution = flow(start, lt.Regression(X, Y))
    vertices = []
    for j in range(D):
        kept = np.arange(D) != j
        vertices.append(np.zeros(D))
        vertices[-1][kept] = np.linalg.solve(X[:, kept], Y)
    vertex = min(vertices, key=lambda beta: np.abs(beta).sum())
    assert solution.status == lt.FlowStatus.residual
    # The coordinate that is zero at the vertex is 2e-15 at alpha = 1e-8, and smaller below.
    assert np.abs(solution.coefficients[-1] - vertex).max() < 1e-13


@pytest.fixture(scope="module")
def start():
    return gaussian(lt.DiagonalNetwork.zeros(2, D), jax.random.key(1), 0.5)


DATA = {
    "inconsistent duplicates": (X[[0, 0]], [1.0, 2.0]),
    "rank-deficient": (np.outer([1.0, 2.0], X[0]), [1.0, -1.0]),
    "tiny": (1e-6 * X, 1e-6 * Y),
    "tiny data": (1e-6 * X, Y),
    "huge": (1e6 * X, 1e6 * Y),
    "huge data": (1e6 * X, Y),
    "huge targets": (X, 1e6 * Y),
    "zero targets": (X, 0 * Y),
    "zero data": (0 * X, Y),
}


@pytest.mark.parametrize("name", DATA)
def test_any_data_lead_to_a_least_squares_solution(start, name):
    x, y = map(np.asarray, DATA[name])
    solution = flow(start, lt.Regression(x, y))
    assert solution.status == lt.FlowStatus.residual
    assert solution.stats["num_steps"] < 1500
    beta = np.asarray(solution.coefficients[-1])
    least = x @ np.linalg.lstsq(x, y)[0]
    # The error is rounding of predictions; the factor 100 is for sums of products of layers.
    assert np.abs(x @ beta - least).max() <= 100 * 2.3e-16 * max(np.abs(x).max(), np.abs(y).max())


def test_overdetermined_data(start):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, D)), rng.normal(size=8)
    solution = flow(start, lt.Regression(x, y))
    assert np.abs(solution.coefficients[-1] - np.linalg.lstsq(x, y)[0]).max() < 1e-13


def test_finish(start):
    problem = lt.Regression(X, Y)
    solution = flow(start, problem)
    stats = solution.stats
    assert stats["finish_accepted"]
    assert 0 < stats["finish_step"] < 1e-6
    assert stats["finish_residual"] < 1e-15
    # The step is the distance of the two networks, relative to the parameters.
    before, after = map(parameters, (solution.unfinished_network, solution.network))
    step = np.linalg.norm(after - before) / np.linalg.norm(before)
    np.testing.assert_allclose(stats["finish_step"], step, rtol=1e-6)
    residual = X @ np.asarray(solution.unfinished_network.linear_coefficients()) - Y
    assert 1e-15 < np.linalg.norm(residual) <= 1e-9 * np.abs(Y).max()
    np.testing.assert_array_equal(solution.coefficients[-1], solution.network.linear_coefficients())

    unfinished = flow(start, problem, finish=None)
    assert "finish_step" not in unfinished.stats
    assert unfinished.network.weights is not None
    np.testing.assert_array_equal(unfinished.network.weights, unfinished.unfinished_network.weights)
    assert unfinished.stats["num_steps"] <= stats["num_steps"]


@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 0, 1]])
@pytest.mark.parametrize(("distance", "iterations"), [(1e-7, 1), (1e-3, 6)])
def test_the_finish_is_of_least_norm(rows, distance, iterations):
    """The finish agrees with Newton's method by NumPy's least squares, also for duplicate data."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((2, 4))
    data = rng.standard_normal((2, 4))[rows]
    problem = lt.Regression(data, data @ np.prod(theta, axis=0))
    theta += distance * rng.standard_normal((2, 4))
    method = lt.GaussNewton(max_relative_step=0.1, max_iterations=iterations)
    system = System.of(lt.DiagonalNetwork(theta), problem)
    found = run_finish(method, system, Reducible(jnp.eye(len(rows))), system.initial)
    assert found.accepted
    for _ in range(8):
        jacobian = np.concatenate([data * theta[1], data * theta[0]], axis=1)
        residual = data @ np.prod(theta, axis=0) - problem.y
        theta -= np.linalg.lstsq(jacobian, residual, rcond=1e-14)[0].reshape(2, 4)
    assert found.residual < 4e-15
    # With one Jacobian or a new one in each step, the error is the square of the distance.
    np.testing.assert_allclose(found.theta.reshape(2, 4), theta, rtol=0, atol=30 * distance**2)


@pytest.mark.slow
def test_a_start_that_meets_the_rule_is_saved():
    """It is saved before the finish, and at the saved times that it has reached."""
    network = lt.DiagonalNetwork(np.array([[0.0, 1.0], [0.0, 0.5 + 1e-12]]))
    problem = lt.Regression(np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 0.5]))
    steps = flow(network, problem, saveat=diffrax.SaveAt(steps=True))
    assert steps.stats["num_steps"] == 0
    before, after = steps.log_loss
    assert before > after + 1
    saveat = np.array([0.0, 0.3])
    times = jax.jit(lambda: lt.gradient_flow(network, problem, saveat=saveat))()
    np.testing.assert_array_equal(times.reached, [True, False, True])
    np.testing.assert_allclose(times.log_loss[0], before, rtol=1e-12)


@pytest.mark.slow
def test_derivatives_of_limits_with_duplicate_data():
    """Derivatives also go through the finish, whose singular values may coincide or be zero."""
    rng = np.random.default_rng(1)
    theta = jnp.asarray(0.5 + 0.2 * rng.standard_normal((2, 3)))
    X = np.array([[1.0, 2.0, 0.5]] * 2)

    def limit(theta):
        solution = lt.gradient_flow(lt.DiagonalNetwork(theta), lt.Regression(X, np.ones(2)))
        return solution.coefficients[-1]

    direction = jnp.asarray(rng.standard_normal((2, 3)))
    _, found = jax.jvp(limit, (theta,), (direction,))
    h = 1e-4
    expected = (limit(theta + h * direction) - limit(theta - h * direction)) / (2 * h)
    # The differences have errors of h^2, and of the flow's 1e-10 over h.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_finish_that_is_too_large_is_refused(start):
    problem = lt.Regression(X, Y)
    # Stopped by time far from the solutions, and by a loss that is not small.
    for stop in (lt.StopAtTime(0.5), lt.StopAtLoss(0.1)):
        solution = flow(start, problem, stop=stop)
        assert not solution.stats["finish_accepted"]
        np.testing.assert_array_equal(solution.network.weights, solution.unfinished_network.weights)
        np.testing.assert_array_equal(
            solution.coefficients[-1], solution.unfinished_network.linear_coefficients()
        )
        assert "refused" in str(solution)


def test_the_flow_is_integrated_until_its_finish_is_small(start):
    # A residual of 1e-2 is met early, but the finish from there would be a large step.
    early = flow(start, lt.Regression(X, Y), stop=lt.StopAtResidual(1e-2))
    assert early.stats["finish_accepted"]
    assert early.stats["finish_step"] <= 1e-6
    loose = flow(
        start,
        lt.Regression(X, Y),
        stop=lt.StopAtResidual(1e-2),
        finish=lt.GaussNewton(max_relative_step=1e-2),
    )
    assert loose.stats["finish_accepted"]
    assert loose.stats["num_steps"] < early.stats["num_steps"]
    # The error of a finish is of the order of the square of its step.
    error = np.abs(loose.coefficients[-1] - early.coefficients[-1]).max()
    assert error < 10 * loose.stats["finish_step"] ** 2 < 1e-3


def test_targets_out_of_reach_end_at_a_stationary_point():
    # One hidden unit can fit targets of rank one only; with its second coordinate zero in both
    # layers a diagonal network cannot use it. Both flows must end, at a stationary point.
    targets = np.array([[1.0, -2.0], [0.5, 3.0]])
    narrow = gaussian(lt.FullyConnectedNetwork.zeros((D, 1), 2), jax.random.key(0), 0.5)
    dead = lt.DiagonalNetwork(np.array([[1.0, 0.0, 0.0], [0.3, 0.0, 0.0]]))
    for network, y in ((narrow, targets), (dead, Y)):
        solution = flow(network, lt.Regression(X, y))
        assert solution.status == lt.FlowStatus.stationary
        assert solution.stats["num_steps"] < 1000
        assert not solution.stats["finish_accepted"]
        assert "zero to rounding" in str(solution)
    beta = np.asarray(solution.coefficients[-1])
    # The limit is the minimum over the nonzero coordinate; gradients of 1e-13 are errors of 1e-12.
    np.testing.assert_allclose(beta[0], X[:, 0] @ Y / (X[:, 0] @ X[:, 0]), rtol=1e-11)
    np.testing.assert_array_equal(beta[1:], 0)
