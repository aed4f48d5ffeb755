"""The linearised flow: SciPy's matrix exponential, flows of large scale and of large width."""

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import lintensor_jax as lt
from lintensor_jax.theory import linearized_flow


def gaussian(seed, d, n):
    rng = np.random.default_rng(seed)
    return lt.Regression(rng.normal(size=(n, d)), rng.normal(size=n))


def lazy_limit(network, problem):
    limit = lt.lazy_limit(network, problem).limit
    assert limit is not None
    return np.asarray(limit)


def networks():
    rng = np.random.default_rng(7)
    return {
        "diagonal": lt.DiagonalNetwork(rng.normal(size=(3, 5))),
        "fully connected": lt.FullyConnectedNetwork([rng.normal(size=(5, 4)), rng.normal(size=4)]),
        "convolution": lt.ConvolutionalNetwork([rng.normal(size=2), rng.normal(size=5)]),
    }


@pytest.mark.parametrize("name", networks())
def test_the_closed_form_is_the_matrix_exponential(name):
    """d beta/dt = -A (beta - ...) with A = J J^T X^T X, J by central differences."""
    network, problem = networks()[name], gaussian(1, 5, 3)
    leaves, structure = jax.tree.flatten(network)
    theta = np.concatenate([np.ravel(leaf) for leaf in leaves])

    def beta(flat):
        parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return np.asarray(jax.tree.unflatten(structure, shaped).linear_coefficients())

    step = 1e-3  # beta is multilinear: central differences in one layer are exact up to rounding
    columns = [(beta(theta + e) - beta(theta - e)) / (2 * step) for e in step * np.eye(theta.size)]
    J = np.stack(columns, axis=1)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    A = J @ J.T @ X.T @ X
    start = beta(theta)
    flow = linearized_flow(network, problem)
    times = np.array([0.0, 0.03, 0.5])
    for t, found in zip(times, np.asarray(flow.coefficients(times)), strict=True):
        whole = expm(t * np.block([[-A, (J @ J.T @ X.T @ y)[:, None]], [np.zeros((1, 6))]]))
        np.testing.assert_allclose(found, whole[:5, :5] @ start + whole[:5, 5], rtol=1e-8)
    np.testing.assert_allclose(X @ flow.limit, y, atol=1e-9)
    np.testing.assert_allclose(flow.coefficients(1e9), flow.limit, atol=1e-9)
    prediction = lt.lazy_limit(network, problem)
    np.testing.assert_allclose(lazy_limit(network, problem), flow.limit, atol=1e-12)
    assert prediction.kind == "lazy"


def flow_limit(problem, u, v):
    """The end of SciPy's flow of u . v for vectors, of u v for a matrix u (d, h)."""
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    diagonal = u.ndim == 1

    def velocity(_, theta):
        a, b = theta[: u.size].reshape(u.shape), theta[u.size :]
        gradient = X.T @ (X @ (a * b if diagonal else a @ b) - y)
        if diagonal:
            return -np.concatenate([b * gradient, a * gradient])
        return -np.concatenate([np.outer(gradient, b).ravel(), gradient @ a])

    kernel = X * u if diagonal else np.hstack([np.linalg.norm(v) * X, X @ u])
    rates = np.linalg.svd(kernel, compute_uv=False) ** 2
    time, start = 60 / rates[-1], np.concatenate([u.ravel(), v])
    options = {"rtol": 1e-11, "atol": 1e-12, "first_step": 1e-2 / rates[0]}
    end = solve_ivp(velocity, (0, time), start, "DOP853", [time], max_step=2 / rates[0], **options)
    a, b = end.y[: u.size, -1].reshape(u.shape), end.y[u.size :, -1]
    return a * b if diagonal else a @ b


def test_the_distance_falls_as_the_scale_to_the_minus_four():
    problem = gaussian(2, 6, 3)
    eta = np.random.default_rng(3).uniform(0.8, 1.2, 6)
    distances, moves = [], []
    for alpha in (3.0, 6.0, 12.0, 24.0):
        network = lt.DiagonalNetwork(np.stack([alpha * eta, 0 * eta]))
        prediction = lt.lazy_limit(network, problem)
        end = flow_limit(problem, alpha * eta, 0 * eta)
        distances.append(np.max(np.abs(lazy_limit(network, problem) - end)))
        moves.append(prediction.assumptions[-1].value)
    # At finite scales the exponent is not exactly 4; within 0.1 of 4 it is not 3 or 5.
    slopes = -np.diff(np.log(distances)) / np.log(2)
    np.testing.assert_allclose(slopes[1:], 4, atol=0.1)
    np.testing.assert_allclose(-np.diff(np.log(moves)) / np.log(2), 2, atol=1e-6)


def test_wide_networks_have_the_limit_of_the_infinite_kernel():
    """Weights of variance 1/sqrt(h): J J^T / sqrt(h) -> 2 I, so beta(0) + X^+ (y - X beta(0))."""
    problem = gaussian(4, 5, 3)
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    for width in (100, 10_000):
        from_kernel, from_flow = [], []
        for seed in range(3 if width == 100 else 1):
            rng = np.random.default_rng(seed)
            W, v = rng.normal(size=(5, width)), rng.normal(size=width)
            W, v = W * width**-0.25, v * width**-0.25
            network = lt.FullyConnectedNetwork([W, v])
            lazy = lazy_limit(network, problem)
            start = W @ v
            infinite = start + np.linalg.pinv(X) @ (y - X @ start)
            end = flow_limit(problem, W, v)
            from_kernel.append(np.max(np.abs(end - infinite)))
            from_flow.append(np.max(np.abs(end - lazy)))
        # O(1/sqrt(width)), with a constant of the size of the targets.
        assert np.max(from_kernel) < 20 / np.sqrt(width)
        assert np.max(from_flow) < 20 / np.sqrt(width)


def test_targets_that_the_kernel_does_not_reach():
    dead = lt.DiagonalNetwork(np.array([[1.0, 0.0], [0.5, 0.0]]))
    problem = lt.Regression(np.eye(2), np.array([1.0, 2.0]))
    prediction = lt.lazy_limit(dead, problem)
    assert prediction.limit is None
    assert "does not reach" in prediction.violated[0].statement
    np.testing.assert_allclose(prediction.violated[0].value, 2 / np.sqrt(5))
    np.testing.assert_allclose(linearized_flow(dead, problem).limit, [1, 0])


def test_several_outputs_sensors_and_other_losses():
    rng = np.random.default_rng(8)
    network = lt.FullyConnectedNetwork([rng.normal(size=(4, 6)), rng.normal(size=(6, 2))])
    problem = lt.Regression(rng.normal(size=(2, 4)), rng.normal(size=(2, 2)))
    limit = lazy_limit(network, problem)
    np.testing.assert_allclose(np.asarray(problem.X) @ limit, problem.y, atol=1e-10)
    factors = lt.MatrixFactorizationNetwork([rng.normal(size=(3, 3)) for _ in range(2)])
    sensing = lt.MatrixSensing(rng.normal(size=(4, 3, 3)), rng.normal(size=4))
    limit = linearized_flow(factors, sensing).limit
    np.testing.assert_allclose(sensing.predictions(limit), sensing.y, atol=1e-10)
    huber = lt.Regression(problem.X, problem.y, loss=lt.HuberLoss(1.0))
    np.testing.assert_allclose(lazy_limit(network, huber), lazy_limit(network, problem))
    with pytest.raises(ValueError, match="linearized_flow: problem must have the squared loss"):
        linearized_flow(network, huber)


def test_refusals():
    problem, network = gaussian(1, 5, 3), networks()["diagonal"]
    with pytest.raises(ValueError, match="lazy_limit: problem must have a loss of residuals"):
        lt.lazy_limit(network, lt.Classification(np.eye(5), np.ones(5)))
    with pytest.raises(ValueError, match=r"shape \(5,\), but Regression needs shape \(4,\)"):
        lt.lazy_limit(network, gaussian(1, 4, 3))
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(lambda n: linearized_flow(n, problem).limit)(network)
