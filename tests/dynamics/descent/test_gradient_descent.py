"""Gradient descent and other optax transformations against loops written in NumPy."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3)), RNG.normal(size=2)
WEIGHTS = RNG.normal(size=(2, 3))
PROBLEM = lt.Regression(X, Y)


def gradient(w):
    g = X.T @ (X @ (w[0] * w[1]) - Y)
    return np.stack([w[1] * g, w[0] * g])


@pytest.fixture(scope="module")
def descent():
    """The gradient descent of the paper: 5,000 steps of 1e-3."""
    return lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), PROBLEM)


def test_gradient_descent_is_the_plain_loop(descent):
    w = WEIGHTS.copy()
    for _ in range(5_000):
        w = w - 1e-3 * gradient(w)
    # 5,000 roundings of 1 ulp at worst, on a contracting iteration.
    np.testing.assert_allclose(descent.network.weights, w, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(descent.step, [0, 5_000])
    np.testing.assert_allclose(descent.coefficients[0], WEIGHTS.prod(axis=0), rtol=1e-15)
    np.testing.assert_allclose(descent.coefficients[1], w.prod(axis=0), rtol=0, atol=1e-13)
    loss = 0.5 * np.sum((X @ w.prod(axis=0) - Y) ** 2)
    np.testing.assert_allclose(np.exp(descent.log_loss[-1]), loss, rtol=1e-9)
    assert descent.log_margin is None
    norms = np.linalg.norm(descent.direction, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-15)


@pytest.mark.slow
def test_small_steps_follow_the_flow():
    # The error of Euler's method is of first order: a step 4 times smaller has a quarter of it.
    flow = lt.gradient_flow(
        lt.DiagonalNetwork(WEIGHTS), PROBLEM, saveat=[1.0], stop=lt.StopAtTime(1.0), finish=None
    )
    errors = []
    for num_steps in (1_000, 4_000):
        solution = lt.gradient_descent(
            lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.sgd(1 / num_steps), num_steps
        )
        errors.append(np.abs(solution.coefficients[-1] - flow.coefficients[0]).max())
    assert 3.9 < errors[0] / errors[1] < 4.1


def test_adam_is_the_textbook_loop():
    solution = lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.adam(1e-2), 300)
    w, first, second = WEIGHTS.copy(), 0.0, 0.0
    for t in range(1, 301):
        g = gradient(w)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        w = w - 1e-2 * step
    # Kingma & Ba 2015. Adam's division amplifies rounding where gradients are small.
    np.testing.assert_allclose(solution.network.weights, w, rtol=0, atol=1e-11)


def test_continuing_with_the_optimizer_state_is_seamless():
    optimizer = optax.adam(1e-2)
    whole = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS), PROBLEM, optimizer, 200, save_every=100
    )
    half = lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), PROBLEM, optimizer, 100)
    rest = lt.gradient_descent(
        half.network, PROBLEM, optimizer, 100, optimizer_state=half.optimizer_state
    )
    # The same operations in the same order: nothing but fusion may differ.
    np.testing.assert_allclose(rest.network.weights, whole.network.weights, rtol=1e-14)
    np.testing.assert_allclose(half.coefficients[-1], whole.coefficients[1], rtol=1e-14)
    fresh = lt.gradient_descent(half.network, PROBLEM, optimizer, 100)
    assert np.abs(fresh.network.weights - whole.network.weights).max() > 1e-4


def test_saves_and_observes():
    solution = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS),
        lt.Classification(X, [1.0, -1.0]),
        optax.sgd(1e-2),
        60,
        save_every=20,
        observe=lambda network: network.weights[0],
    )
    np.testing.assert_array_equal(solution.step, [0, 20, 40, 60])
    w = WEIGHTS.copy()
    z = np.array([[1.0], [-1.0]]) * X
    for k in range(4):
        margins = z @ w.prod(axis=0)
        np.testing.assert_allclose(solution.observed[k], w[0], rtol=1e-12)
        np.testing.assert_allclose(solution.coefficients[k], w.prod(axis=0), rtol=1e-12)
        np.testing.assert_allclose(np.exp(solution.log_loss[k]), np.exp(-margins).sum())
        log_margin = np.log(margins.min()) if margins.min() > 0 else -np.inf
        assert solution.log_margin is not None
        np.testing.assert_allclose(solution.log_margin[k], log_margin, rtol=1e-10)
        for _ in range(20):
            g = -z.T @ np.exp(-z @ w.prod(axis=0))
            w = w - 1e-2 * np.stack([w[1] * g, w[0] * g])


def test_a_divergence_is_not_hidden():
    solution = lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.sgd(10.0), 50)
    assert not jnp.isfinite(solution.log_loss[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer: must be an optax transformation .* got 'sgd'"),
        ({"num_steps": 0}, "num_steps: must be a positive int, got 0"),
        ({"num_steps": 1.5}, "num_steps: must be a positive int, got 1.5"),
        ({"num_steps": 10, "save_every": -2}, "save_every: must be a positive int, got -2"),
        ({"num_steps": 10, "save_every": 3}, "save_every: must divide num_steps = 10, got 3; take"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), PROBLEM, **arguments)


def test_shapes_that_do_not_meet():
    with pytest.raises(ValueError, match=r"network: its linear coefficients have shape \(2,\)"):
        lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS[:, :2]), PROBLEM)
