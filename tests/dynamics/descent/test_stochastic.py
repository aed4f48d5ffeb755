"""Mini-batches, label noise and weight decay against loops written in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.descent.batches import Batches

N, D = 5, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
WEIGHTS = RNG.normal(size=(2, D))
PROBLEM = lt.Regression(X, Y)
KEY = jax.random.key(3)
STEP = 1e-2


def drawn(batches, num_steps):
    """The indices and the noise of the first steps."""
    state = batches.first(KEY, PROBLEM)
    found = []
    advance = jax.jit(lambda state: batches.next(state, PROBLEM)[1])
    for _ in range(num_steps):
        at = int(state.place)
        indices = np.arange(N) if state.indices is None else np.asarray(state.indices[at])
        noise = np.zeros(len(indices)) if state.noise is None else np.asarray(state.noise[at])
        found.append((indices, noise))
        state = advance(state)
    return found


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize(
    ("size", "replacement", "noise"),
    [(1, False, None), (2, False, 0.3), (3, True, None), (None, False, 0.3)],
)
def test_stochastic_steps_are_the_plain_loop(size, replacement, noise):
    options = {} if size is None else {"batch_size": size, "replacement": replacement}
    solution = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS),
        PROBLEM,
        optax.sgd(STEP),
        40,
        label_noise=noise,
        key=KEY,
        **options,
    )
    w = WEIGHTS.copy()
    scale = None if noise is None else jnp.asarray(noise)
    for rows, shift in drawn(Batches(N, size, replacement, scale), 40):
        targets = Y[rows] + (noise or 0.0) * shift
        g = N / len(rows) * X[rows].T @ (X[rows] @ (w[0] * w[1]) - targets)
        w = w - STEP * np.stack([w[1] * g, w[0] * g])
    # There are 40 steps with a few roundings each.
    np.testing.assert_allclose(solution.network.weights, w, rtol=0, atol=1e-13)


def test_without_replacement_every_sample_comes_once_an_epoch():
    rows = [r for r, _ in drawn(Batches(N, 2, False, None), 40)]
    for epoch in range(20):
        both = np.concatenate(rows[2 * epoch : 2 * epoch + 2])
        assert len(set(both)) == 4  # the fifth sample waits
    assert len({tuple(r) for r in rows}) > 10


def test_draws_with_replacement_and_noise_have_their_distribution():
    found = drawn(Batches(N, 2, True, jnp.asarray(0.5)), 3_000)
    rows, noise = (np.concatenate(part) for part in zip(*found, strict=True))
    # Allowed are five standard deviations of each count and moment of 6,000 draws.
    assert np.abs(np.bincount(rows, minlength=N) / 6_000 - 0.2).max() < 5 * 0.4 / 6_000**0.5
    assert abs(noise.mean()) < 5 / 6_000**0.5
    assert abs(noise.var() - 1) < 5 * (2 / 6_000) ** 0.5


def test_weight_decay_is_part_of_the_loss_of_the_steps():
    solution = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.sgd(STEP), 100, weight_decay=0.3
    )
    w = WEIGHTS.copy()
    for _ in range(100):
        g = X.T @ (X @ (w[0] * w[1]) - Y)
        w = w - STEP * (np.stack([w[1] * g, w[0] * g]) + 0.3 * w)
    np.testing.assert_allclose(solution.network.weights, w, rtol=0, atol=1e-13)
    same = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS), lt.Penalized(PROBLEM, 0.3), optax.sgd(STEP), 100
    )
    np.testing.assert_array_equal(same.network.weights, solution.network.weights)


@pytest.mark.slow
def test_one_program_for_many_step_sizes_and_keys():
    steps, keys = jnp.array([1e-3, 1e-2, 3e-2]), jax.random.split(KEY, 3)

    def run(step, key):
        return lt.gradient_descent(
            lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.sgd(step), 60, batch_size=2, key=key
        )

    lanes = jax.jit(jax.vmap(run))(steps, keys)
    assert lanes.coefficients.shape == (3, 2, D)
    for k in range(3):
        np.testing.assert_allclose(
            lanes.network.weights[k], run(steps[k], keys[k]).network.weights, rtol=1e-12
        )
    assert "Batch (3,) of descents of DiagonalNetwork on Regression" in str(lanes)


def test_learning_rates_of_layers_and_schedules_are_those_of_optax():
    network = lt.FullyConnectedNetwork([np.eye(D)[:, :2], np.ones(2)])

    # Labels must be a function: a network of labels is callable, and optax would call it.
    def labels(parameters):
        return jax.tree.map(lambda w: "first" if w.ndim == 2 else "last", parameters)

    optimizer = optax.multi_transform(
        {"first": optax.sgd(lambda count: 0.1 / (1.0 + count)), "last": optax.sgd(0.0)}, labels
    )
    solution = lt.gradient_descent(network, PROBLEM, optimizer, 10)
    W, v = np.eye(D)[:, :2], np.ones(2)
    for k in range(10):
        W = W - 0.1 / (1 + k) * np.outer(X.T @ (X @ (W @ v) - Y), v)
    np.testing.assert_allclose(solution.network.weights[0], W, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(solution.network.weights[1], v)


def test_a_stochastic_run_goes_on_with_its_key():
    def run(network, key):
        return lt.gradient_descent(network, PROBLEM, optax.sgd(STEP), 10, batch_size=1, key=key)

    # After the first epoch the samples are shuffled again; the second run begins there.
    first = run(lt.DiagonalNetwork(WEIGHTS), KEY)
    whole = lt.gradient_descent(
        lt.DiagonalNetwork(WEIGHTS), PROBLEM, optax.sgd(STEP), 20, batch_size=1, key=KEY
    )
    assert first.key is not None
    assert not jnp.array_equal(jax.random.key_data(first.key), jax.random.key_data(KEY))
    again = run(first.network, KEY).network.weights
    onward = run(first.network, first.key).network.weights
    assert np.abs(again - onward).max() > 1e-6
    assert np.abs(onward - whole.network.weights).max() < 1


@pytest.mark.parametrize(
    ("problem", "arguments", "message"),
    [
        (
            PROBLEM,
            {"batch_size": 0, "key": KEY},
            "batch_size: must be an int from 1 to n = 5, got 0",
        ),
        (
            PROBLEM,
            {"batch_size": 6, "key": KEY},
            "batch_size: must be an int from 1 to n = 5, got 6",
        ),
        (PROBLEM, {"batch_size": 1}, "key: batches and label noise are random .* got None"),
        (PROBLEM, {"label_noise": 0.1, "key": 3}, "key: batches and label noise .* got 3"),
        (
            PROBLEM,
            {"label_noise": -1.0, "key": KEY},
            "label_noise: must be finite and not negative",
        ),
        (PROBLEM, {"weight_decay": float("nan")}, "weight_decay: must be finite and not negative"),
        (
            lt.Classification(X, np.sign(Y)),
            {"label_noise": 0.1, "key": KEY},
            "label_noise: is noise on the targets of a regression, got Classification",
        ),
    ],
)
def test_bad_input(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        lt.gradient_descent(lt.DiagonalNetwork(WEIGHTS), problem, num_steps=3, **arguments)


def test_a_problem_without_subset_has_no_batches():
    class Doubled(lt.AbstractSquaredProblem):
        y: Any

        def __init__(self, y):
            self.y = y

        def predictions(self, beta):
            return 2 * beta

        def adjoint(self, values):
            return 2 * values

        @property
        def coefficient_shape(self):
            return self.y.shape

    network = lt.DiagonalNetwork(WEIGHTS)
    with pytest.raises(ValueError, match="batch_size: Doubled must have a method subset"):
        lt.gradient_descent(network, Doubled(jnp.ones(D)), num_steps=3, batch_size=1, key=KEY)
