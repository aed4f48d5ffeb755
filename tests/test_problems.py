"""Problems and losses: values against mpmath, derivatives against JAX, bad input."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.system import prediction_range

EPS = np.finfo(float).eps
MARGINS = [0.0, 1e-300, -1e-300, 1e-8, 0.3, -0.3, 29.9, 30.1, -40.0, 700.0, 744.0, 746.0, 1e3, -1e3]
HUGE_MARGINS = [1e10, -1e10, 1e300, -1e300]


def exact_logs(loss, margin):
    """(log l(m), log -l'(m)) with 60 digits; beyond |m| = 1e5 from the asymptotic expansion."""
    m = mpmath.mpf(margin)
    if isinstance(loss, lt.ExponentialLoss):
        return -m, -m
    if abs(m) > 1e5:  # corrections of relative size e^-|m|
        return (-m, -m) if m > 0 else (mpmath.log(-m), mpmath.mpf(0))
    return mpmath.log(mpmath.log1p(mpmath.exp(-m))), -mpmath.log1p(mpmath.exp(m))


@pytest.mark.parametrize("loss", [lt.ExponentialLoss(), lt.LogisticLoss()], ids=str)
@pytest.mark.parametrize("margin", MARGINS + HUGE_MARGINS)
def test_log_losses_for_margins_of_any_size(loss, margin):
    with mpmath.workdps(60 + 450):  # the first 435 digits of 1 + e^-1000 are those of 1
        value, slope = exact_logs(loss, margin)
        ours = loss.log_value(jnp.asarray(margin)), loss.log_slope(jnp.asarray(margin))
        # log l has an error of a few ulp; so has l itself, where log l is of order one.
        for ours_log, exact in zip(ours, (value, slope), strict=True):
            assert abs(mpmath.mpf(float(ours_log)) - exact) <= 4 * EPS * max(1, abs(exact))


@pytest.mark.parametrize("loss", [lt.ExponentialLoss(), lt.LogisticLoss()], ids=str)
def test_inverse_of_a_loss(loss):
    # Margins from -700 to some at which the loss is below all floats. d log l/dm = l'/l, so log l
    # determines m up to eps |log l| l/|l'|.
    margins = np.concatenate([-np.geomspace(700, 1e-3, 40), [0.0], np.geomspace(1e-3, 1e8, 60)])
    log_values = loss.log_value(jnp.asarray(margins))
    condition = np.exp(np.asarray(log_values - loss.log_slope(jnp.asarray(margins))))
    error = np.abs(np.asarray(loss.inverse(log_values)) - margins)
    assert (error <= 1e-15 * (1 + np.abs(margins) + condition * (1 + np.abs(log_values)))).all()


@pytest.mark.parametrize("loss", [lt.ExponentialLoss(), lt.LogisticLoss()], ids=str)
def test_slope_is_the_derivative_of_the_value(loss):
    """d log l / dm = l'/l = -exp(log_slope - log_value), finite at every margin."""
    margins = jnp.asarray(MARGINS + HUGE_MARGINS[:2])
    derivative = jax.vmap(jax.grad(loss.log_value))(margins)
    expected = -jnp.exp(loss.log_slope(margins) - loss.log_value(margins))
    np.testing.assert_allclose(derivative, expected, rtol=1e-12)


def problems(n, d, seed=0):
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    return [
        lt.Regression(X, y),
        lt.Regression(X, rng.normal(size=(n, 2))),
        lt.Classification(X, np.sign(y)),
        lt.Classification(X, np.sign(y), loss=lt.LogisticLoss()),
    ]


@pytest.mark.parametrize(("n", "d"), [(1, 3), (4, 2)])
def test_gradient_is_the_adjoint_of_the_residual(n, d):
    rng = np.random.default_rng(1)
    for problem in problems(n, d):
        beta = jnp.asarray(rng.normal(size=problem.coefficient_shape))
        residual = problem.residual(beta)
        assert residual.shape == problem.predictions(beta).shape == problem.y.shape
        gradient = jax.jit(jax.grad(problem.loss))(beta)
        # Sums of a few products of order one.
        np.testing.assert_allclose(gradient, problem.adjoint(residual), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(jnp.exp(problem.log_loss(beta)), problem.loss(beta), rtol=1e-12)
        v = jnp.asarray(rng.normal(size=problem.y.shape))
        np.testing.assert_allclose(
            jnp.sum(v * problem.predictions(beta)),
            jnp.sum(beta * problem.adjoint(v)),
            rtol=1e-12,
            atol=1e-13,
        )


def test_losses_are_sums_over_samples():
    X, y = jnp.array([[1.0, 2.0], [0.0, -3.0]]), jnp.array([1.0, -1.0])
    beta = jnp.array([0.5, 0.25])
    assert lt.Regression(X, y).loss(beta) == 0.5 * ((1.0 - 1.0) ** 2 + (-0.75 + 1.0) ** 2)
    classification = lt.Classification(X, y)
    np.testing.assert_array_equal(classification.margins(beta), [1.0, 0.75])
    np.testing.assert_array_equal(classification.signed_data, [[1.0, 2.0], [0.0, 3.0]])
    expected = np.exp(-1.0) + np.exp(-0.75)
    np.testing.assert_allclose(classification.loss(beta), expected, rtol=4 * EPS)


def test_log_loss_beyond_the_floats():
    X, y = jnp.array([[1.0, 2.0], [0.0, -3.0]]), jnp.array([1.0, -1.0])
    beta = jnp.array([1e10, 1e9])
    assert lt.Classification(X, y).loss(beta) == 0.0
    assert lt.Classification(X, y).log_loss(beta) == -3e9  # minus the smaller of two margins
    tiny = lt.Regression(X, jnp.array([3e-200, 4e-200]))
    np.testing.assert_allclose(
        tiny.log_loss(jnp.zeros(2)), np.log(0.5 * 25) - 400 * np.log(10), rtol=4 * EPS
    )
    assert lt.Regression(X, jnp.zeros(2)).log_loss(jnp.zeros(2)) == -jnp.inf


def test_data_keep_their_precision():
    X = np.ones((1, 2), np.float32)
    problem = lt.Regression(X, np.ones(1, np.float32))
    assert problem.residual(jnp.ones(2, jnp.float32)).dtype == jnp.float32
    assert lt.Regression([[1, 2]], [3]).X.dtype == jnp.float64
    assert lt.Classification([[1, 2]], [-1]).y.dtype == jnp.float64


def test_problems_batch_over_data():
    X = jax.random.normal(jax.random.key(0), (5, 2, 3))
    losses = jax.jit(jax.vmap(lambda x: lt.Classification(x, jnp.ones(2)).loss(jnp.ones(3))))(X)
    np.testing.assert_allclose(losses, jnp.exp(-X.sum(-1)).sum(-1), rtol=1e-12)


def test_prediction_range_spans_the_reachable_predictions():
    """X has four rows and rank 2. The projector onto its range is tested, as the basis is free."""
    X = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, -1.0, 0.0]])
    basis = np.asarray(prediction_range(lt.Regression(X, jnp.zeros(4))))
    assert basis.shape == (4, 3)
    np.testing.assert_allclose(basis @ basis.T, X @ np.linalg.pinv(X), rtol=0, atol=1e-14)


def bad(problem, X=((1.0, 2.0),), y=(1.0,), **kwargs):
    return lambda: problem(jnp.asarray(X), jnp.asarray(y), **kwargs)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (bad(lt.Regression, X=[1.0, 2.0]), ["Regression", "X must have 2 axes", "(2,)", "rows"]),
        (bad(lt.Regression, X=[[1.0, jnp.nan]]), ["X must be finite", "nan", "[0, 1]", "remove"]),
        (bad(lt.Regression, y=[jnp.inf]), ["y must be finite", "inf", "[0]"]),
        (bad(lt.Regression, X=jnp.zeros((0, 2))), ["X must not be empty", "(0, 2)"]),
        (bad(lt.Regression, X=[[1.0 + 1j, 2.0]]), ["X must be real", "complex128", "parts"]),
        (bad(lt.Regression, y=[1.0, 2.0]), ["one row per sample", "1 and 2", "transpose X"]),
        (bad(lt.Regression, y=jnp.ones((1, 1, 1))), ["y must have 1 or 2 axes", "(1, 1, 1)"]),
        (bad(lt.Classification, y=[[1.0]]), ["Classification", "y must have 1 axis", "(1, 1)"]),
        (bad(lt.Classification, y=[0.0]), ["labels -1 or +1", "[0.0]", "2 * y - 1"]),
        (bad(lt.Classification, y=[2.0]), ["labels -1 or +1", "[2.0]", "MulticlassClassification"]),
        (bad(lt.Classification, loss="logistic"), ["loss", "LogisticLoss()", "'logistic'"]),
    ],
)
def test_bad_input_is_named(build, words):
    with pytest.raises(ValueError, match="must") as error:
        build()
    for word in words:
        assert word in str(error.value)
