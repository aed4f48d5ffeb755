"""The tail of a loss decides the limit direction; without a stated tail nothing is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.initialization import gaussian
from lintensor_jax.limits.dual_flow import continue_direction
from lintensor_jax.limits.polynomial_tail import certificate_at, stationary_point
from lintensor_jax.theory import direction_at_loss, smoothness

# z is (1, 0) once and (0, 1) five times. On the circle x^-2 + 5 y^-2 is least at (y/x)^2 = sqrt(5).
ROWS = np.array([[1.0, 0.0], *[[0.0, 1.0]] * 5])
LEAST = np.array([1.0, 5**0.25]) / np.sqrt(1 + np.sqrt(5))
MAX_MARGIN = np.ones(2) / np.sqrt(2)
POLYNOMIAL = lt.Classification(ROWS, np.ones(6), lt.PolynomialLoss(2.0))


class Undescribed(lt.AbstractMarginLoss):
    """The logistic loss, as a user's loss that states no facts."""

    def log_value(self, margin):
        return lt.LogisticLoss().log_value(margin)

    def log_slope(self, margin):
        return lt.LogisticLoss().log_slope(margin)

    def inverse(self, log_value):
        return lt.LogisticLoss().inverse(log_value)


def two_layers(seed=0):
    network = lt.FullyConnectedNetwork.zeros((2, 3))
    return gaussian(network, jax.random.key(seed), 0.5)


def network_of(*weights):
    return lt.FullyConnectedNetwork(tuple(jnp.asarray(w) for w in weights))


@pytest.fixture(scope="module")
def flow():
    return lt.gradient_flow(two_layers(), POLYNOMIAL)


def test_the_number_of_the_issue(flow):
    np.testing.assert_allclose(LEAST, [0.5559, 0.8313], atol=5e-5)
    assert float(jnp.exp(flow.log_margin[-1])) > 1e8
    np.testing.assert_allclose(flow.direction[-1], LEAST, atol=1e-7)
    assert np.linalg.norm(flow.direction[-1] - MAX_MARGIN) > 0.19


def test_predict_claims_no_theorem_about_exponential_tails():
    prediction = lt.predict(two_layers(), POLYNOMIAL)
    assert prediction.theorem is None
    assert prediction.limit is None
    assert prediction.rate is None
    assert "the loss has an exponential tail" in prediction.violated[0].statement
    assert prediction.violated[0].value == "polynomial with power 2"
    assert "sum_i m_i^-a" in str(prediction)


def test_limit_direction_is_that_of_the_tail(flow):
    limit = lt.limit_direction(flow, POLYNOMIAL)
    assert limit.status == "stationary"
    assert limit.succeeded
    assert limit.moved < 1e-7
    assert limit.certificate.residual < 1e-14
    np.testing.assert_allclose(limit.direction, LEAST, rtol=1e-12)
    assert "sum_i m_i^-2" in str(limit)
    # If a start is given instead of a flow, its flow is computed first.
    np.testing.assert_allclose(
        lt.limit_direction(two_layers(1), POLYNOMIAL).direction, LEAST, rtol=1e-12
    )


def test_flows_with_a_polynomial_tail_reach_large_margins():
    far = lt.gradient_flow(two_layers(), POLYNOMIAL, stop=lt.StopAtMargin(1e12))
    assert far.status == lt.FlowStatus.margin
    np.testing.assert_allclose(far.direction[-1], LEAST, atol=1e-9)


@pytest.mark.slow
def test_deep_diagonal_networks_end_at_a_stationary_point_of_their_own_coefficients():
    # From equal layers beta = w^3: minimise sum_i m_i^-2 at fixed |Theta|^2 = 3 sum |beta_j|^(2/3).
    network = lt.DiagonalNetwork((0.3 * jnp.ones(2),) * 3)
    limit = lt.limit_direction(network, POLYNOMIAL)
    assert limit.succeeded
    # With beta = t^(3/2) and t_1 + t_2 = 1 the least of t_1^-3 + 5 t_2^-3: (t_2/t_1)^4 = 5.
    t = np.array([1.0, 5**0.25])
    np.testing.assert_allclose(limit.direction, t**1.5 / np.linalg.norm(t**1.5), rtol=1e-12)


@pytest.mark.slow
def test_a_saddle_of_the_sum_is_told_from_its_minimum():
    # One sample in two dimensions, and two layers: a matrix and a vector.
    rows = np.array([[1.0, 0.0]])
    problem = lt.Classification(rows, np.ones(1), lt.PolynomialLoss(2.0))
    # The first hidden unit produces the margin, and the second one is nearly 0: this is no saddle.
    network = network_of(np.diag([1.0, 1e-9]), np.array([1.0, 0.0]))
    system = lt.gradient_flow(network, problem, stop=lt.StopAtMargin(10.0)).system
    theta = stationary_point(system, system.initial, 2.0)
    certificate = certificate_at(system, theta, 2.0, 1e-10)
    assert certificate.is_stationary
    # Two diagonal layers that use only the second coordinate, although the first one is better.
    both = lt.Classification(np.array([[2.0, 1.0]]), np.ones(1), lt.PolynomialLoss(2.0))
    diagonal = lt.DiagonalNetwork((jnp.array([1e-200, 1.0]), jnp.array([1e-200, 1.0])))
    system = lt.gradient_flow(diagonal, both, stop=lt.StopAtMargin(3.0)).system
    saddle = stationary_point(system, system.initial, 2.0)
    certificate = certificate_at(system, saddle, 2.0, 1e-10)
    assert certificate.is_saddle
    assert not certificate.is_stationary
    assert "saddle" in str(certificate)


def test_certify_says_that_its_conditions_are_those_of_another_loss(flow):
    certificate = lt.certify(flow.network, POLYNOMIAL)
    assert not certificate.is_stationary
    assert "polynomial with power 2, and its flows need not end there" in str(certificate)
    balanced = lt.certify(MAX_MARGIN, POLYNOMIAL, regularizer=lt.L2Norm())
    assert balanced.is_stationary
    assert "flows need not end there" in str(balanced)
    exponential = lt.Classification(ROWS, np.ones(6))
    assert lt.certify(MAX_MARGIN, exponential, regularizer=lt.L2Norm()).remark == ""


@pytest.mark.slow
def test_a_loss_that_states_no_tail_is_not_taken_for_the_logistic_one():
    problem = lt.Classification(ROWS, np.ones(6), Undescribed())
    prediction = lt.predict(two_layers(), problem)
    assert prediction.theorem is None
    assert prediction.limit is None
    assert "that of Undescribed is: not stated by the loss" in str(prediction)
    limit = lt.limit_direction(two_layers(), problem)
    assert limit.status == "not_predicted"
    assert not limit.succeeded
    assert limit.certificate is None
    assert limit.moved < 1e-15
    np.testing.assert_allclose(limit.direction, limit.flow.direction[-1], rtol=1e-14)
    assert "does not state its tail" in str(limit)
    for call in (
        lambda: smoothness(two_layers(), 1.0, Undescribed()),
        lambda: lt.smoothness_steps(two_layers(), problem),
    ):
        with pytest.raises(ValueError, match=r"`smoothness`.* got Undescribed"):
            call()
    diagonal = lt.DiagonalNetwork((jnp.ones(2), jnp.ones(2)))
    with pytest.raises(ValueError, match="an exponential tail, got Undescribed"):
        continue_direction(diagonal, problem)
    differential = lt.DifferentialDiagonalNetwork(jnp.ones(2), jnp.ones(2), 2)
    with pytest.raises(ValueError, match=r"ExponentialLoss\(\), got Undescribed"):
        direction_at_loss(differential, problem, -10.0)


def test_a_loss_with_stated_facts_gets_what_the_logistic_loss_gets():
    class Described(Undescribed):
        @property
        def tail(self):
            return lt.ExponentialTail()

    ours = lt.predict(two_layers(), lt.Classification(ROWS, np.ones(6), Described()))
    theirs = lt.predict(two_layers(), lt.Classification(ROWS, np.ones(6), lt.LogisticLoss()))
    assert ours.theorem == theirs.theorem == "Corollary 1"
    np.testing.assert_array_equal(ours.limit, theirs.limit)
    # The loss does not state its slope over its value, so there is no bound on the loss.
    start = network_of(1.1 * np.eye(2), np.zeros(2))
    ours, theirs = (
        lt.predict(start, lt.Classification(ROWS, np.ones(6), loss))
        for loss in (Described(), lt.LogisticLoss())
    )
    assert ours.rate is None
    assert theirs.rate is not None
