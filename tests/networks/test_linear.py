"""One layer against its closed forms, and networks with a bias."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.statuses import status_name
from lintensor_jax.initialization import balanced, gaussian, identity, matching

jax.config.update("jax_enable_x64", True)

D = 4


def _log_bound(rate):
    """The bound of log L at time 1."""
    return float(rate.log_bound(0.0))


def _separable(seed, bias=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(9, D))
    return X, np.sign(X @ rng.normal(size=D) + bias)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [False, True])
def test_classification_tends_to_the_svm(seed, bias):
    X, y = _separable(seed, 0.3 * bias)
    problem = lt.Classification(X, y)
    start = lt.LinearNetwork(0.1 * np.random.default_rng(seed).normal(size=D), bias=bias)
    # A flow's norm includes the bias, so its limit is the SVM of the data with a column of ones.
    columns = np.hstack([X, np.ones((9, 1))]) if bias else X
    svm = lt.max_margin(lt.Classification(columns, y), lt.L2Norm()).direction
    flow = lt.gradient_flow(start, problem)
    assert status_name(flow.status) == "margin"
    assert np.linalg.norm(flow.direction[-1] - svm) < 1e-6
    found = lt.predict(start, problem)
    assert found.kind == "exact"
    np.testing.assert_allclose(np.asarray(found.limit), svm, atol=1e-12)
    limit = lt.limit_direction(flow, problem)
    assert limit.succeeded
    np.testing.assert_allclose(limit.direction, svm, atol=1e-10)


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("loss", [None, lt.HuberLoss(1.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_regression_projects_the_start(loss, bias):
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(3, D)), rng.normal(size=3), rng.normal(size=D)
    problem = lt.Regression(X, y, loss)
    start = lt.LinearNetwork(w, bias=bias)
    flow = lt.gradient_flow(start, problem)
    columns = np.hstack([X, np.ones((3, 1))]) if bias else X
    begin = np.append(w, 0.0) if bias else w
    expected = begin + np.linalg.pinv(columns) @ (y - columns @ begin)
    np.testing.assert_allclose(flow.coefficients[-1], expected, atol=1e-9)
    found = lt.predict(start, problem)
    np.testing.assert_allclose(np.asarray(found.limit), expected, atol=1e-12)
    if loss is None:
        later = lt.gradient_flow(start, problem, stop=lt.StopAtTime(1.0), finish=None)
        assert float(later.log_loss[-1]) <= _log_bound(found.rate) + 1e-6


def test_overdetermined_data_are_fitted_in_the_least_squares_sense():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(9, D)), rng.normal(size=9)
    start = lt.LinearNetwork(rng.normal(size=D))
    found = lt.predict(start, lt.Regression(X, y))
    np.testing.assert_allclose(
        np.asarray(found.limit), np.linalg.lstsq(X, y, rcond=None)[0], atol=1e-12
    )
    assert lt.predict(start, lt.Regression(X, y, lt.HuberLoss(1.0))).theorem is None


def test_starts_and_closed_forms():
    like = lt.LinearNetwork.zeros(D, 2)
    beta = jnp.asarray(np.random.default_rng(0).normal(size=(D, 2)))
    for start in (balanced(like, beta), matching(like, beta)):
        np.testing.assert_array_equal(start.linear_coefficients(), beta)
    assert not np.any(identity(like).linear_coefficients())
    assert gaussian(like, jax.random.key(0), 1.0).weights.shape == (D, 2)
    np.testing.assert_allclose(lt.induced_regularizer(like, beta), np.sum(beta**2))
    np.testing.assert_array_equal(lt.minimal_network(like, beta).weights, beta)
    x = jnp.arange(4.0)
    np.testing.assert_allclose(lt.LinearNetwork(beta)(x), x @ beta)
    np.testing.assert_allclose(lt.LinearNetwork(beta, bias=True)(x), x @ beta)
    assert lt.LinearNetwork(beta, bias=True).linear_coefficients().shape == (D + 1, 2)


NETWORKS = [
    lt.DiagonalNetwork.zeros(2, D),
    lt.FullyConnectedNetwork.zeros((D, 3)),
    lt.ConvolutionalNetwork.zeros(D, (2, D)),
    lt.DifferentialDiagonalNetwork.zeros(2, D),
]


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("like", NETWORKS, ids=lambda n: type(n).__name__)
def test_a_bias_beside_every_network(like):
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(3, D)), rng.normal(size=3) + 2.0
    network = lt.with_bias(gaussian(like, jax.random.key(0), 0.7), 0.5)
    assert network.linear_coefficients()[-1] == 0.5
    flow = lt.gradient_flow(network, lt.Regression(X, y))
    assert flow.succeeded
    beta = np.asarray(flow.coefficients[-1])
    np.testing.assert_allclose(X @ beta[:-1] + beta[-1], y, atol=1e-8)
    # The pullback is that of the pair (network, bias).
    beta, pull = network.coefficients_and_pullback()
    _, vjp = jax.vjp(lambda n: n.linear_coefficients(), network)
    g = jnp.asarray(rng.normal(size=D + 1))
    for ours, theirs in zip(jax.tree.leaves(pull(g)), jax.tree.leaves(vjp(g)[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


@pytest.mark.slow
def test_a_deep_network_with_a_bias_classifies():
    X, y = _separable(0, 0.5)
    network = lt.with_bias(gaussian(NETWORKS[1], jax.random.key(1), 0.5))
    flow = lt.gradient_flow(network, lt.Classification(X, y), stop=lt.StopAtMargin(50.0))
    assert status_name(flow.status) == "margin"
    with pytest.raises(ValueError, match="homogeneous"):
        lt.gradient_flow(network, lt.Classification(X, y), clock=lt.LogArcLength())
    assert lt.predict(network, lt.Classification(X, y)).theorem is None


def test_a_diagonal_network_for_each_output():
    weights = np.random.default_rng(0).normal(size=(3, D, 2))
    network = lt.DiagonalNetwork(weights)
    np.testing.assert_allclose(network.linear_coefficients(), weights.prod(0), rtol=1e-14)
    each = [lt.DiagonalNetwork(weights[:, :, k]) for k in range(2)]
    x = jnp.arange(4.0)
    for activation in (None, jnp.tanh):
        expected = [single(x, activation) for single in each]
        np.testing.assert_allclose(network(x, activation), expected, rtol=1e-12)
    beta = network.linear_coefficients()
    np.testing.assert_allclose(balanced(network, beta).linear_coefficients(), beta, atol=1e-13)
    np.testing.assert_allclose(matching(network, beta).linear_coefficients(), beta, atol=1e-13)
    np.testing.assert_allclose(
        lt.induced_regularizer(network, beta),
        sum(lt.induced_regularizer(single, beta[:, k]) for k, single in enumerate(each)),
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        lt.minimal_network(network, beta).linear_coefficients(), beta, atol=1e-13
    )
    with pytest.raises(lt.AssumptionFails, match="a scalar output"):
        network.orthogonal_decomposition()


@pytest.mark.parametrize("wrapped", [False, True])
def test_weight_decay_leaves_the_bias_alone(wrapped):
    rng = np.random.default_rng(5)
    X, y, decay = rng.normal(size=(8, D)), rng.normal(size=8) + 3.0, 0.7
    begin = 0.1 * rng.normal(size=D)
    start: Any = lt.with_bias(lt.LinearNetwork(begin)) if wrapped else None
    start = start or lt.LinearNetwork(begin, bias=True)
    flow = lt.gradient_flow(start, lt.Regression(X, y), weight_decay=decay)
    # Ridge regression with a free intercept, in closed form.
    columns = np.hstack([X, np.ones((8, 1))])
    penalty = decay * np.diag([1.0] * D + [0.0])
    ridge = np.linalg.solve(columns.T @ columns + penalty, columns.T @ y)
    np.testing.assert_allclose(flow.coefficients[-1], ridge, atol=1e-7)


def test_predictions_count_the_bias_as_flows_do():
    X, y = _separable(1, 0.3)
    network = gaussian(lt.FullyConnectedNetwork.zeros((D + 1, D + 1)), jax.random.key(0), 0.3)
    plain = lt.Classification(np.hstack([X, np.ones((9, 1))]), y)
    free = lt.Classification(X, y, bias=True)
    first, second = (lt.predict(network, problem).limit for problem in (plain, free))
    np.testing.assert_allclose(np.asarray(first), np.asarray(second), atol=1e-12)
    margins = [lt.max_margin(problem, lt.L2Norm()).margin for problem in (plain, free)]
    assert margins[1] > margins[0] * (1 + 1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="bias: a problem of the class MatrixSensing has none"):
        lt.gradient_flow(
            lt.with_bias(lt.FullyConnectedNetwork.zeros((D, D), D)),
            lt.MatrixSensing(np.ones((2, D, D)), np.ones(2)),
        )
    with pytest.raises(ValueError, match="weights must have 1 axis"):
        lt.LinearNetwork(np.ones((2, 2, 2)))
