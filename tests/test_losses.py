"""Losses: values, slopes and inverses against mpmath, and the properties that a loss states."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import lintensor_jax as lt

EPS = np.finfo(float).eps
MARGINS = [0.0, 1e-300, -1e-8, 0.3, -0.3, 29.9, 30.1, -40.0, 700.0, 746.0, 1e3, -1e3, 1e10, 1e300]
RESIDUALS = [0.0, 1e-200, -1e-8, 0.3, -0.499, 0.5, -0.501, 0.999, 1.001, -30.0, 800.0, -1e10, 1e300]
POWERS = [0.5, 1.0, 2.0, 7.0]
RESIDUAL_LOSSES = [lt.SquaredLoss(), lt.HuberLoss(0.5), lt.LogCoshLoss()]


def softplus(m):
    return m + mpmath.exp(-m) if m > 1e5 else mpmath.log1p(mpmath.exp(m))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("margin", MARGINS)
def test_polynomial_loss_for_margins_of_any_size(power, margin):
    loss = lt.PolynomialLoss(power)
    with mpmath.workdps(500):
        m, a = mpmath.mpf(margin), mpmath.mpf(power)
        growth = mpmath.log1p(softplus(m))
        value = -a * growth
        # -l' = a (1 + s)^-(a+1) sigmoid(m), and log sigmoid(m) = m - softplus(m).
        slope = mpmath.log(a) - (a + 1) * growth + (0 if m > 1e5 else m - softplus(m))
        for ours, exact in ((loss.log_value, value), (loss.log_slope, slope)):
            # The terms have opposite signs, so the error is a few ulp of the largest term.
            largest = max(1, abs(exact), (a + 1) * growth)
            assert abs(mpmath.mpf(float(ours(jnp.asarray(margin)))) - exact) <= 4 * EPS * largest


@pytest.mark.parametrize("power", POWERS)
def test_inverse_of_the_polynomial_loss(power):
    loss = lt.PolynomialLoss(power)
    margins = np.concatenate([-np.geomspace(30, 1e-3, 40), [0.0], np.geomspace(1e-3, 1e12, 60)])
    log_values = loss.log_value(jnp.asarray(margins))
    # d log l/dm = l'/l, so log l determines m up to eps |log l| l/|l'|.
    condition = np.exp(np.asarray(log_values - loss.log_slope(jnp.asarray(margins))))
    error = np.abs(np.asarray(loss.inverse(log_values)) - margins)
    allowed = np.abs(margins) + condition * (EPS + np.abs(log_values))
    assert (error <= 8 * EPS * (1 + allowed)).all()
    # The loss is below 1. A sum over samples may have larger values; no margin has them.
    assert (loss.inverse(jnp.array([0.0, 1.0])) == -jnp.inf).all()


def test_slope_of_the_polynomial_loss_is_the_derivative_of_its_value():
    loss, margins = lt.PolynomialLoss(2.0), jnp.asarray(MARGINS)
    derivative = jax.vmap(jax.grad(loss.log_value))(margins)
    expected = -jnp.exp(loss.log_slope(margins) - loss.log_value(margins))
    np.testing.assert_allclose(derivative, expected, rtol=1e-12)


def exact_residual_loss(loss, r):
    if isinstance(loss, lt.SquaredLoss):
        return r**2 / 2, r
    if isinstance(loss, lt.HuberLoss):
        delta = mpmath.mpf(loss.delta)
        inside = max(-delta, min(r, delta))
        return (r**2 / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)), inside
    if abs(r) > 1e5:
        return abs(r) - mpmath.log(2), mpmath.sign(r)
    return mpmath.log(mpmath.cosh(r)), mpmath.tanh(r)


@pytest.mark.parametrize("loss", RESIDUAL_LOSSES, ids=str)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_losses_of_residuals_of_any_size(loss, residual):
    with mpmath.workdps(1000):
        value, slope = exact_residual_loss(loss, mpmath.mpf(residual))
        ours = float(loss.value(jnp.asarray(residual))), float(loss.slope(jnp.asarray(residual)))
        for number, exact in zip(ours, (value, slope), strict=True):
            if exact > mpmath.mpf(np.finfo(float).max):
                assert number == math.inf
            else:  # an underflow gives zero
                assert abs(mpmath.mpf(number) - exact) <= 8 * EPS * abs(exact) + 1e-300


@pytest.mark.parametrize("loss", RESIDUAL_LOSSES, ids=str)
def test_slopes_and_curvatures_of_losses_of_residuals_are_derivatives(loss):
    residuals = jnp.asarray([-30.0, -1.1, -0.45, -1e-5, 0.0, 1e-5, 0.45, 0.9, 1.1, 30.0])
    derivative = jax.vmap(jax.grad(loss.value))(residuals)
    np.testing.assert_allclose(derivative, loss.slope(residuals), rtol=1e-13, atol=1e-16)
    second = jax.vmap(jax.grad(loss.slope))(residuals)
    np.testing.assert_allclose(loss.curvature(residuals), second, rtol=1e-13, atol=0)
    total = float(jnp.sum(loss.value(residuals)))
    assert float(loss.total(residuals)) == pytest.approx(total, rel=1e-14)
    assert float(loss.log_total(residuals)) == pytest.approx(math.log(total), rel=1e-14)
    assert loss.log_total(jnp.zeros(3)) == -jnp.inf
    # A loss that is not finite is not a fit: a comparison with NaN must not choose zero.
    assert jnp.isnan(loss.log_total(jnp.array([0.0, jnp.nan])))
    assert loss.log_total(jnp.array([1.0, -jnp.inf])) == jnp.inf
    # The squares of 3e-200 and 4e-200 underflow; the logarithm of their sum does not.
    tiny = math.log(12.5) - 400 * math.log(10)
    assert float(loss.log_total(jnp.array([3e-200, -4e-200]))) == pytest.approx(tiny, rel=1e-14)


def test_smoothness_bounds_the_derivatives():
    facts = lt.LogisticLoss().smoothness

    def value(m):
        return jnp.exp(lt.LogisticLoss().log_value(m))

    margins = jnp.linspace(-20, 20, 4001)
    slope = jax.vmap(jax.grad(value))(margins)
    curvature = jax.vmap(jax.grad(jax.grad(value)))(margins)
    for bound, values in ((facts.slope, slope), (facts.curvature, curvature)):
        assert 0.99 * bound <= float(jnp.max(jnp.abs(values))) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("loss", [lt.ExponentialLoss(), lt.LogisticLoss()], ids=str)
@pytest.mark.parametrize("log_value", [-800.0, -3.0, 0.0, 3.0])
def test_least_slope_over_value_is_the_least(loss, log_value):
    margin = float(loss.inverse(jnp.asarray(log_value)))
    margins = margin + jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 100, 200)])
    ratios = jnp.exp(loss.log_slope(margins) - loss.log_value(margins))
    least = loss.least_slope_over_value(log_value)
    assert least <= float(ratios.min()) * (1 + 1e-12)
    assert least == pytest.approx(float(ratios[0]), rel=1e-12)


def test_a_tail_is_how_the_loss_falls():
    for loss in (lt.ExponentialLoss(), lt.LogisticLoss()):
        # log(-l'(m)) + rate m tends to a constant.
        rest = [float(loss.log_slope(jnp.asarray(m))) + loss.tail.rate * m for m in (50.0, 60.0)]
        assert rest[0] == pytest.approx(rest[1], abs=1e-14)
    for power in POWERS:
        loss = lt.PolynomialLoss(power)
        m, factor = 1e9, 10.0
        falls = float(loss.log_value(jnp.asarray(m)) - loss.log_value(jnp.asarray(factor * m)))
        assert falls == pytest.approx(loss.tail.power * math.log(factor), rel=1e-8)


def test_the_base_classes_state_nothing():
    class Mine(lt.AbstractMarginLoss):
        def log_value(self, margin):
            return -margin

        def log_slope(self, margin):
            return -margin

        def inverse(self, log_value):
            return -log_value

    class MyResidual(lt.AbstractResidualLoss):
        def value(self, residual):
            return residual**4

        def slope(self, residual):
            return 4 * residual**3

    assert Mine().tail is None
    assert Mine().smoothness is None
    assert Mine().least_slope_over_value(0.0) is None
    assert not Mine().is_exponential
    assert MyResidual().is_convex_with_minimum_at_zero is None
    assert not MyResidual().is_squared
    assert float(MyResidual().curvature(jnp.asarray(2.0))) == 48.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: lt.PolynomialLoss(0.0),
            "power must be positive and finite, got 0",
        ),
        (lambda: lt.HuberLoss(math.nan), "HuberLoss: delta must be positive and finite, got nan"),
        (
            lambda: lt.Regression(np.eye(2), np.ones(2), lt.LogisticLoss()),  # pyright: ignore
            "Regression: loss must be an object such as lintensor_jax.HuberLoss",
        ),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "loss", [lt.ExponentialLoss(), lt.LogisticLoss(), lt.PolynomialLoss(2)], ids=str
)
def test_not_a_number_stays_one(loss):
    for function in (loss.log_value, loss.log_slope, loss.inverse):
        assert jnp.isnan(function(jnp.nan))
