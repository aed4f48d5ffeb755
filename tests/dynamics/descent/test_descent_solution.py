"""Reports of a descent: divergence, lost balance, sharpness, directions of any size, text."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3)), RNG.normal(size=2)
WEIGHTS = RNG.normal(size=(2, 3))
WIDER: Any = lt.DiagonalNetwork(np.ones((2, 4)))
NETWORK, PROBLEM = lt.DiagonalNetwork(WEIGHTS), lt.Regression(X, Y)


class Linear(eqx.Module):
    """A user's network: beta itself."""

    beta: Any
    depth = 1

    def linear_coefficients(self):
        return self.beta


def test_a_divergence_is_reported_and_no_fit():
    network = lt.DiagonalNetwork([[1.0, 1.0], [1.0, 1.0]])
    problem = lt.Regression([[1.0, 2.0]], [1.0])
    solution = lt.gradient_descent(network, problem, optax.sgd(1e3), 20)
    assert np.isnan(solution.coefficients[-1]).all()
    assert np.isnan(solution.log_loss[-1])
    assert bool(solution.diverged)
    # The same loop in NumPy, until a number is not finite.
    w, steps = np.ones((2, 2)), 0
    with np.errstate(all="ignore"):
        while np.isfinite(w[0] * w[1]).all():
            g = np.array([1.0, 2.0]) * (np.array([1.0, 2.0]) @ (w[0] * w[1]) - 1.0)
            w, steps = w - 1e3 * np.stack([w[1] * g, w[0] * g]), steps + 1
    assert int(solution.divergence_step) == steps
    assert f"diverged         at step {steps}" in str(solution)
    assert np.isnan(solution.direction[-1]).all()


def test_a_margin_of_a_diverged_run_is_not_a_number():
    problem = lt.Classification(X, [1.0, -1.0])
    solution = lt.gradient_descent(NETWORK, problem, optax.sgd(1e300), 5)
    assert solution.log_margin is not None
    assert np.isnan(solution.log_margin[-1])


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_directions_have_length_one_at_any_size(size):
    network = Linear(size * jnp.array([3.0, 4.0, 0.0]))
    solution = lt.gradient_descent(network, PROBLEM, optax.sgd(0.0), 1)
    np.testing.assert_allclose(solution.direction, [[0.6, 0.8, 0.0]] * 2, rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(solution.direction, axis=1), 1, rtol=1e-15)


def test_the_direction_of_zero_is_zero():
    solution = lt.gradient_descent(Linear(jnp.zeros(3)), PROBLEM, optax.sgd(0.0), 1)
    np.testing.assert_array_equal(solution.direction, np.zeros((2, 3)))


def test_lost_balance_and_step_size():
    solution = lt.gradient_descent(NETWORK, PROBLEM, optax.sgd(0.05), 30, save_every=10)
    w = WEIGHTS.copy()
    lost = [0.0]
    for k in range(1, 31):
        g = X.T @ (X @ (w[0] * w[1]) - Y)
        w = w - 0.05 * np.stack([w[1] * g, w[0] * g])
        if k % 10 == 0:
            gap = np.abs(w[0] ** 2 - w[1] ** 2 - WEIGHTS[0] ** 2 + WEIGHTS[1] ** 2).max()
            lost.append(gap / max((w**2).sum(), (WEIGHTS**2).sum()))
    np.testing.assert_allclose(solution.balance_drift, lost, rtol=1e-10)
    np.testing.assert_allclose(solution.step_size, 0.05, rtol=1e-14)
    own = lt.gradient_descent(Linear(jnp.ones(3)), PROBLEM, optax.sgd(0.05), 1)
    assert np.isnan(own.balance_drift).all()
    assert "balance lost     not known" in str(own)


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian():
    solution = lt.gradient_descent(NETWORK, PROBLEM, optax.sgd(0.05), 5, sharpness=True)
    u, v = np.asarray(solution.network.weights)
    residual = X @ (u * v) - Y
    J = np.concatenate([X * v, X * u], axis=1)
    cross = np.diag(X.T @ residual)
    hessian = J.T @ J + np.block([[0 * cross, cross], [cross, 0 * cross]])
    largest = np.linalg.eigvalsh(hessian)[-1]
    assert solution.sharpness is not None
    assert solution.stability is not None
    np.testing.assert_allclose(solution.sharpness[-1], largest, rtol=1e-12)
    np.testing.assert_allclose(solution.stability[-1], 0.05 * largest, rtol=1e-12)
    assert "2 is the edge of stability" in str(solution)


def test_sharpness_of_many_parameters():
    # With 400 parameters LOBPCG is used. The Hessian of this quadratic loss is X^T X.
    data = RNG.normal(size=(50, 400))
    problem = lt.Regression(data, np.ones(50))
    solution = lt.gradient_descent(
        Linear(jnp.ones(400)), problem, optax.sgd(1e-4), 1, sharpness=True
    )
    assert solution.sharpness is not None
    largest = np.linalg.norm(data, 2) ** 2
    np.testing.assert_allclose(solution.sharpness, [largest] * 2, rtol=1e-9)


def test_an_optimizer_that_needs_the_function():
    solution = lt.gradient_descent(NETWORK, PROBLEM, optax.lbfgs(), 100)
    assert solution.log_loss[-1] < np.log(1e-16)


def test_an_optimizer_that_needs_the_value():
    solution = lt.gradient_descent(NETWORK, PROBLEM, optax.polyak_sgd(), 20)
    w = WEIGHTS.copy()
    for _ in range(20):
        residual = X @ (w[0] * w[1]) - Y
        g = X.T @ residual
        gradient = np.stack([w[1] * g, w[0] * g])
        w = w - min(1.0, 0.5 * residual @ residual / (gradient**2).sum()) * gradient
    # These 20 steps may amplify errors.
    np.testing.assert_allclose(solution.network.weights, w, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_line_search_continues_with_its_state():
    optimizer = optax.lbfgs()
    whole = lt.gradient_descent(NETWORK, PROBLEM, optimizer, 4)
    half = lt.gradient_descent(NETWORK, PROBLEM, optimizer, 2)
    rest = lt.gradient_descent(
        half.network, PROBLEM, optimizer, 2, optimizer_state=half.optimizer_state
    )
    np.testing.assert_allclose(rest.network.weights, whole.network.weights, rtol=1e-10)


@pytest.mark.parametrize(
    "state",
    [
        (1, 2, 3),
        lambda: optax.adam(1e-2).init(NETWORK),  # pyright: ignore
        lambda: optax.sgd(0.1, momentum=0.9).init(WIDER),  # pyright: ignore
    ],
    ids=["no state", "another optimizer", "another network"],
)
def test_a_foreign_state_is_refused(state):
    state = state() if callable(state) else state
    with pytest.raises(ValueError, match="optimizer_state: must be the state of this optimizer"):
        lt.gradient_descent(
            NETWORK, PROBLEM, optax.sgd(0.1, momentum=0.9), 1, optimizer_state=state
        )


def test_words():
    text = str(lt.gradient_descent(NETWORK, PROBLEM, optax.sgd(0.05), 30, save_every=10))
    assert "Descent of DiagonalNetwork on Regression" in text
    assert "30, saved at 4 of them" in text
    assert "0.05 (of the next step)" in text
    margins = str(lt.gradient_descent(NETWORK, lt.Classification(X, [1.0, -1.0]), num_steps=3))
    assert "smallest margin" in margins
