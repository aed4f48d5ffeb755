"""Regression flows of other losses than the squared one end at the same limit (Theorem 5)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch.batched_flow import batched_flow
from lintensor_jax.dynamics.batch.programs import XLA, Native
from lintensor_jax.dynamics.statuses import status_name

RNG = np.random.default_rng(17)
X = RNG.normal(size=(3, 6))
Y = 3 * RNG.normal(size=3)
HALF = RNG.normal(size=(2, 4))
EVEN = np.concatenate([HALF, HALF[:, 2:0:-1]], axis=1)
ETA = 0.3 + 0.4 * RNG.random(6)
FILTER = np.array([0.6, 0.2, 0.1, 0.05, 0.1, 0.2])
OTHERS = [lt.HuberLoss(0.5), lt.LogCoshLoss()]
STARTS = {
    "diagonal": (lt.DiagonalNetwork((ETA, np.zeros(6))), X, Y),
    "three layers": (lt.DiagonalNetwork((ETA, ETA, np.zeros(6))), X, Y),
    "convolution": (lt.ConvolutionalNetwork((FILTER, np.zeros(6))), EVEN, Y[:2]),
}


class Undescribed(lt.AbstractResidualLoss):
    """exp(r) - r - 1, as a user's loss that states no facts."""

    def value(self, residual):
        return jnp.expm1(residual) - residual

    def slope(self, residual):
        return jnp.expm1(residual)


class Described(Undescribed):
    @property
    def is_convex_with_minimum_at_zero(self):
        return True


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("loss", OTHERS, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("name", STARTS)
def test_flows_end_at_the_limit_of_theorem_5(name, loss):
    network, data, targets = STARTS[name]
    squared, problem = lt.Regression(data, targets), lt.Regression(data, targets, loss)
    expected: Any = lt.predict(network, squared)
    assert expected.theorem.startswith("Theorem 5")
    assert expected.kind == "exact"
    flow = lt.gradient_flow(network, problem)
    assert status_name(flow.status) == "residual"
    assert bool(flow.stats["finish_accepted"])
    scale = np.max(np.abs(expected.limit))
    np.testing.assert_allclose(flow.coefficients[-1], expected.limit, atol=1e-7 * scale, rtol=0)
    mirror = lt.mirror_flow(network, problem)
    np.testing.assert_allclose(mirror.coefficients[-1], expected.limit, atol=1e-9 * scale, rtol=0)
    # `predict` names the same theorem, with the reason and without a rate.
    found: Any = lt.predict(network, problem)
    assert found.theorem == expected.theorem
    np.testing.assert_array_equal(found.limit, expected.limit)
    assert found.rate is None
    assert expected.rate is not None
    assert "-l'(r) stays in the same span" in str(found)
    assert type(loss).__name__ in found.subject


@pytest.mark.slow
def test_only_a_huber_loss_that_residuals_reach_has_a_time_of_its_own():
    network, data, targets = STARTS["diagonal"]
    squared, reached, beyond = (
        lt.gradient_flow(network, lt.Regression(data, targets, loss), saveat=jnp.array([0.1, 0.3]))
        for loss in (lt.SquaredLoss(), lt.HuberLoss(0.5), lt.HuberLoss(1e6))
    )
    assert np.max(np.abs(reached.coefficients[1] - squared.coefficients[1])) > 0.05
    np.testing.assert_allclose(beyond.coefficients[:2], squared.coefficients[:2], rtol=1e-7)
    np.testing.assert_allclose(beyond.log_loss[:2], squared.log_loss[:2], rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("loss", OTHERS, ids=lambda loss: type(loss).__name__)
def test_without_a_fit_the_flow_ends_at_the_minimum_of_the_loss(loss):
    rng = np.random.default_rng(3)
    data = rng.normal(size=(8, 3))
    targets = data @ np.array([1.0, 2.0, 0.5]) + 0.1 * rng.normal(size=8)
    targets[0] += 10  # an outlier, whose slope the loss bounds
    problem = lt.Regression(data, targets, loss)
    flow = lt.gradient_flow(lt.DiagonalNetwork((np.ones(3), np.zeros(3))), problem)
    assert bool(flow.stats["finish_accepted"])
    beta = flow.coefficients[-1]
    assert np.max(np.abs(problem.adjoint(problem.residual(beta)))) < 1e-13
    # The gradient of the loss is that of automatic differentiation.
    np.testing.assert_allclose(
        jax.grad(problem.loss)(beta + 0.1),
        problem.adjoint(problem.residual(beta + 0.1)),
        rtol=1e-12,
    )
    squared = np.linalg.lstsq(data, targets)[0]
    assert np.max(np.abs(beta - squared)) > 0.1


def test_what_a_loss_does_not_say_is_not_predicted():
    network, data, targets = STARTS["diagonal"]
    targets = 0.3 * targets
    prediction = lt.predict(network, lt.Regression(data, targets, Undescribed()))
    assert prediction.theorem is None
    assert prediction.limit is None
    assert prediction.violated[0].statement.startswith("Undescribed is convex")
    assert "does not state whether" in str(prediction)
    problem = lt.Regression(data, targets, Described())
    found: Any = lt.predict(network, problem)
    assert found.kind == "exact"
    flow = lt.gradient_flow(network, problem)
    np.testing.assert_allclose(flow.coefficients[-1], found.limit, atol=1e-7)


def test_statements_about_the_squared_loss_refuse_another():
    problem = lt.Regression(X, Y, lt.HuberLoss(0.5))
    network = lt.FullyConnectedNetwork.zeros((6, 2))
    for call in (
        lambda: lt.convergence_rate_bound(network, problem),
        lambda: lt.theory.riccati_trajectory(network, problem, [1.0]),
        lambda: lt.theory.rank_one_target(problem),
        lambda: lt.theory.theorem_12(problem, 10),
    ):
        with pytest.raises(ValueError, match="Regression with HuberLoss"):
            call()
    assert lt.theory.least_loss(network, problem) is None
    undescribed = lt.Regression(X, Y, Undescribed())
    with pytest.raises(ValueError, match="Regression with Undescribed"):
        lt.theory.diagonal_limit(STARTS["diagonal"][0], undescribed)
    one = lt.Regression(X[:1], Y[:1], Undescribed())
    with pytest.raises(ValueError, match="Regression with Undescribed"):
        lt.theory.limit_point_two_layer(STARTS["diagonal"][0], one)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    "compilation",
    [
        pytest.param(Native(), id="native"),
        pytest.param(XLA(), id="xla", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("loss", OTHERS, ids=lambda loss: type(loss).__name__)
def test_many_flows_at_once(loss, compilation):
    scales = np.array([0.5, 1.0, 1.5])
    networks = jax.vmap(lambda c: lt.DiagonalNetwork((c * ETA, jnp.zeros(6))))(scales)
    problem = lt.Regression(X, Y, loss)
    many = batched_flow(networks, problem, compilation=compilation)
    for lane, scale in enumerate(scales):
        start = lt.DiagonalNetwork((scale * ETA, np.zeros(6)))
        limit: Any = lt.predict(start, problem).limit
        np.testing.assert_allclose(many.coefficients[lane], limit, atol=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-10])
def test_a_small_bound_of_the_slopes_does_not_end_a_flow_at_its_start(delta):
    # With one sample the path of the flow does not depend on the loss. The default residual of
    # 1e-9 is more than every slope of the second loss.
    network = lt.DiagonalNetwork(jnp.array([[0.3, 0.4], [0.0, 0.1]]))
    X, y = jnp.array([[1.0, 2.0]]), jnp.array([1.0])
    expected = lt.gradient_flow(network, lt.Regression(X, y)).coefficients[-1]
    problem = lt.Regression(X, y, lt.HuberLoss(delta))
    solution = lt.gradient_flow(network, problem)
    np.testing.assert_allclose(solution.coefficients[-1], expected, rtol=0, atol=1e-8)
    lanes = jax.vmap(lambda a: network.scaled(a))(jnp.array([1.0, 1.0]))
    flow = lt.batched_flow(lanes, problem)
    np.testing.assert_allclose(flow.coefficients[0], expected, rtol=0, atol=1e-8)
