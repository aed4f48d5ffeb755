"""The closed form of two layers on whitened data, against the flow and against Saxe's sigmoid."""

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.networks import AssumptionFails
from lintensor_jax.theory import riccati_trajectory


def _case(d, h, m, gap, seed=0):
    """Data with X^T X = 1.7 I, and generic layers with W_2 W_2^T - W_1^T W_1 = gap I."""
    rng = np.random.default_rng([seed, d, h, m])
    X = np.sqrt(1.7) * np.linalg.qr(rng.standard_normal((8, d)))[0]
    problem = lt.Regression(X, rng.standard_normal((8, m)))
    small, large = (d, m) if gap >= 0 else (m, d)
    first = 0.5 * rng.standard_normal((small, h))
    values, vectors = np.linalg.eigh(first.T @ first + abs(gap) * np.eye(h))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    last = root @ np.linalg.qr(rng.standard_normal((large, h)))[0].T
    layers = (first, last) if gap >= 0 else (last.T, first.T)
    return lt.FullyConnectedNetwork(layers), problem


def _against_the_flow(d, h, m, gap):
    network, problem = _case(d, h, m, gap)
    times = np.concatenate([[0.0], np.geomspace(1e-2, 30, 15)])
    flow = lt.gradient_flow(
        network,
        problem,
        rtol=1e-12,
        atol=1e-14,
        saveat=times,
        stop=lt.StopAtTime(30.0),
        finish=None,
        observe=lambda n: (n.weights[0] @ n.weights[0].T, n.weights[1].T @ n.weights[1]),
    )
    found = riccati_trajectory(network, problem, times)
    np.testing.assert_allclose(found.imbalance, gap, rtol=0, atol=1e-13)
    # The required accuracy is 1e-9; the flow's tolerance leaves about 1e-11.
    np.testing.assert_allclose(found.coefficients, flow.coefficients[:16], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.gram[:, :d, :d], flow.observed[0][:16], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.gram[:, d:, d:], flow.observed[1][:16], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_it_is_the_flow():
    _against_the_flow(4, 3, 4, 0.7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d", "h", "m", "gap"),
    # Zero eigenvalues (d != m), a bottleneck, more hidden units than modes.
    [
        (4, 3, 4, 0.0),
        (4, 3, 4, -0.7),
        (4, 3, 3, 0.0),
        (5, 1, 3, 0.0),
        (4, 3, 5, 0.7),
        (5, 3, 2, -0.7),
        (5, 4, 6, 0.0),
    ],
)
def test_it_is_the_flow_in_other_shapes(d, h, m, gap):
    _against_the_flow(d, h, m, gap)


def test_one_mode_is_the_sigmoid_of_saxe():
    s, start = 2.0, 1e-3
    problem = lt.Regression([[1.0]], [[s]])
    network = lt.FullyConnectedNetwork(([[start**0.5]], [[start**0.5]]))
    times = np.linspace(0, 10, 21)
    found = riccati_trajectory(network, problem, times).coefficients[:, 0, 0]
    grown = np.exp(2 * s * times)
    np.testing.assert_allclose(found, s * grown / (grown - 1 + s / start), rtol=1e-13)


def test_modes_of_very_different_speed_survive_each_other():
    # At t = 150 the fast mode's exponential is e^300, the slow one's e^1.5.
    sizes, start = np.array([1.0, 5e-3]), 1e-2
    problem = lt.Regression(np.eye(2), np.diag(sizes))
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    network = lt.FullyConnectedNetwork((start**0.5 * rotation, start**0.5 * rotation.T))
    times = np.array([0.0, 1e-6, 1.0, 30.0, 150.0])
    found = np.asarray(riccati_trajectory(network, problem, times).coefficients)
    grown = np.exp(2 * sizes * times[:, None])
    expected = sizes * grown / (grown - 1 + sizes / start)
    np.testing.assert_allclose(found, expected[:, :, None] * np.eye(2), rtol=1e-11, atol=1e-14)


def test_the_flow_ends_at_the_best_approximation_of_its_width():
    network, problem = _case(5, 2, 4, 0.0)
    found = riccati_trajectory(network, problem, [50.0]).coefficients[0]
    Z = np.asarray(problem.X.T @ problem.y) / 1.7
    U, s, Vt = np.linalg.svd(Z)
    np.testing.assert_allclose(found, (U[:, :2] * s[:2]) @ Vt[:2], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_scalar_outputs():
    network, problem = _case(4, 1, 1, 0.0)
    flat = lt.FullyConnectedNetwork((network.weights[0], network.weights[1][:, 0]))
    times = [0.0, 1.0]
    column = riccati_trajectory(network, problem, times).coefficients
    vector = riccati_trajectory(flat, lt.Regression(problem.X, problem.y[:, 0]), times).coefficients
    np.testing.assert_array_equal(vector, column[..., 0])


def test_what_it_does_not_cover_is_refused():
    network, problem = _case(4, 3, 4, 0.0)
    with pytest.raises(AssumptionFails, match="X\\^T X is a multiple of the identity") as caught:
        riccati_trajectory(
            network, lt.Regression(2 * problem.X.at[:, 0].multiply(2), problem.y), [1]
        )
    assert isinstance(caught.value.value, float)
    assert caught.value.value > 0.1
    first, last = network.weights
    with pytest.raises(AssumptionFails, match="W_2 W_2\\^T - W_1\\^T W_1 is a multiple"):
        riccati_trajectory(lt.FullyConnectedNetwork((2 * first, last)), problem, [1.0])
    with pytest.raises(ValueError, match="with two layers, got FullyConnectedNetwork of depth 3"):
        riccati_trajectory(lt.FullyConnectedNetwork.zeros((4, 3, 3), 4), problem, [1.0])
    sensing = lt.MatrixSensing(np.ones((1, 4, 4)), [1.0])
    with pytest.raises(ValueError, match="needs Regression, got MatrixSensing"):
        riccati_trajectory(network, sensing, [1.0])  # pyright: ignore[reportArgumentType]
    for times in ([-1.0], [np.nan], 1.0):
        with pytest.raises(ValueError, match="times: must be a vector of finite physical times"):
            riccati_trajectory(network, problem, times)
    with pytest.raises(ValueError, match="times: must be at most"):
        riccati_trajectory(network, problem, [1e6])
