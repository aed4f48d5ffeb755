"""Convergence is decided before a flow runs: no limit is predicted that the flow cannot reach."""

import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(0)
SCALAR = lt.FullyConnectedNetwork((jnp.array([[1.0]]), jnp.array([-1.0])))
NARROW = lt.FullyConnectedNetwork(
    (jnp.asarray(RNG.normal(size=(3, 1))), jnp.asarray(RNG.normal(size=(1, 2))))
)
WIDE = lt.FullyConnectedNetwork(
    (jnp.asarray(RNG.normal(size=(3, 2))), jnp.asarray(RNG.normal(size=(2, 2))))
)
AWAY = lt.FullyConnectedNetwork((jnp.array([[-0.6], [-1.2]]), jnp.array([np.hypot(0.6, 1.2)])))
ZERO = lt.FullyConnectedNetwork.zeros((2, 3))
TARGETS = RNG.normal(size=(3, 2))


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("network", "problem", "reason"),
    [
        (SCALAR, lt.Regression([[1.0]], [1.0]), "never has the sign of y"),
        (SCALAR, lt.Classification([[1.0]], [1.0]), "never has the sign of y"),
        (SCALAR, lt.Classification([[1.0], [2.0]], [1.0, 1.0]), "never has the sign of y"),
        (AWAY, lt.Regression([[1.0, 2.0]], [1.0]), "never has the sign of y"),
        (ZERO, lt.Regression(np.eye(2), [1.0, 2.0]), "critical point"),
        (ZERO, lt.Classification(np.eye(2), [1.0, 1.0]), "critical point"),
        (NARROW, lt.Regression(np.eye(3), TARGETS), "rank 2"),
    ],
)
def test_a_flow_that_cannot_converge_has_no_predicted_limit(network, problem, reason):
    found = lt.predict(network, problem)
    assert found.theorem is None
    assert found.limit is None
    assert any(reason in a.statement and a.holds is False for a in found.violated)
    # The flow agrees: it keeps a loss that is not the least, until rounding has grown (1e-16, the
    # last digit of the balanced start, times e^(2 sqrt(5) t)).
    flow = lt.gradient_flow(network, problem, finish=None, stop=lt.StopAtTime(3.0), throw=False)
    assert float(flow.log_loss[-1]) > -5.0


@pytest.mark.parametrize(
    ("network", "problem", "limit"),
    [
        (SCALAR, lt.Regression([[1.0]], [-1.0]), [-1.0]),
        (SCALAR, lt.Classification([[1.0], [2.0]], [-1.0, -1.0]), [-1.0]),
        (WIDE, lt.Regression(np.eye(3), TARGETS), TARGETS),
    ],
)
def test_a_flow_that_can_keeps_its_prediction(network, problem, limit):
    found = lt.predict(network, problem).limit
    assert found is not None
    np.testing.assert_allclose(found, limit, atol=1e-12)


@pytest.mark.slow
def test_ji_and_telgarsky_prove_that_the_risk_tends_to_zero():
    """W_1 = 0, W_2 = (1, 1): R(W(0)) = R(0) and the gradient is not zero (Theorem 2.2)."""
    network = lt.FullyConnectedNetwork((jnp.zeros((2, 2)), jnp.ones(2)))
    problem = lt.Classification([[1.0, 0.0], [0.5, 1.0]], [1.0, 1.0])
    found = lt.predict(network, problem)
    assert all(a.holds for a in found.assumptions)
    assert any("Theorem 2.2" in a.source for a in found.assumptions)
    flow = lt.gradient_flow(network, problem, stop=lt.StopAtMargin(1e4))
    assert found.limit is not None
    np.testing.assert_allclose(flow.direction[-1], found.limit, atol=1e-3)  # O(1/margin)
