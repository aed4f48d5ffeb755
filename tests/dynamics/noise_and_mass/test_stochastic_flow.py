"""Stochastic gradient flow: effective starts path by path, strong order, plain Euler steps."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory import bregman_projection

pytestmark = pytest.mark.slow  # ten to sixty seconds for each of most tests

N, D = 3, 6
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / np.sqrt(D), RNG.normal(size=N)
PROBLEM = lt.Regression(X, Y)
WEIGHTS = np.stack([0.5 * RNG.normal(size=D), 0.2 * RNG.normal(size=D)])
NETWORK = lt.DiagonalNetwork(WEIGHTS)
FLOW_LIMIT = np.asarray(lt.predict(NETWORK, PROBLEM).limit)
KEYS = jax.random.split(jax.random.key(2), 200)
NEVER = lt.StopAtTime(1e9)


def projections(solution):
    start = solution.effective_start
    each = jax.vmap(lambda mu, beta: bregman_projection(X, Y, mu, beta).coefficients)
    return np.asarray(each(start.scale, start.coefficients))


def lane(solution, k):
    return jax.tree.map(lambda leaf: leaf[k], solution)


def test_every_path_ends_at_the_projection_of_its_effective_start():
    paths = lt.stochastic_flow(NETWORK, PROBLEM, 2.0, KEYS)
    ended = np.asarray(paths.succeeded)
    assert np.mean(ended) > 0.95  # a path with strong noise may use all its steps
    assert "200" in str(paths)
    ends = np.asarray(paths.coefficients[:, -1])
    np.testing.assert_allclose(projections(paths)[ended], ends[ended], rtol=0, atol=1e-8)
    # Gradient flow from the same start ends elsewhere, and the paths at different points.
    assert np.median(np.max(np.abs(ends - FLOW_LIMIT), axis=1)) > 1e-2
    assert np.min(np.std(ends, axis=0)) > 1e-3
    one = lane(paths, 3)
    prediction: Any = lt.effective_limit(one, PROBLEM)
    assert prediction.theorem is not None
    assert "Pesme" in prediction.theorem
    np.testing.assert_allclose(prediction.limit, ends[3], rtol=0, atol=1e-8)
    assert "int s^2 dt" in str(one)


def test_without_noise_it_ends_where_gradient_flow_ends():
    path = lt.stochastic_flow(NETWORK, PROBLEM, 0.0, KEYS[0])
    np.testing.assert_allclose(path.coefficients[-1], FLOW_LIMIT, rtol=0, atol=1e-8)
    assert float(path.noise_time[-1]) == 0


def plain_euler(step, horizon, resolution, noise, key):
    """Euler-Maruyama steps of u and v, in NumPy, on the same Brownian path."""
    tree = diffrax.VirtualBrownianTree(0.0, horizon, resolution, shape=(N,), key=key)
    times = np.arange(round(horizon / step) + 1) * step
    evaluate = jax.jit(jax.vmap(tree.evaluate))
    moves = np.asarray(evaluate(times[:-1], times[1:]))
    u, v = WEIGHTS.copy()
    for move in moves:
        residual = X @ (u * v) - Y
        size = np.sqrt(noise * 0.5 * residual @ residual)
        force = X.T @ (residual * step - size * move)
        u, v = u - v * force, v - u * force
    return u * v


def test_strong_order_and_the_parameters_themselves():
    horizon, resolution = 1.0, 2.0**-11

    def ends(step, keys):
        found = lt.stochastic_flow(
            NETWORK,
            PROBLEM,
            2.0,
            keys,
            step=step,
            horizon=horizon,
            resolution=resolution,
            stop=NEVER,
        )
        return np.asarray(found.coefficients[..., -1, :])

    fine = ends(2.0**-10, KEYS)
    errors = [np.mean(np.abs(ends(2.0**-k, KEYS) - fine)) for k in (4, 6)]
    # Euler's method has order 1/2 for a noise that depends on the state: a quarter of the step
    # halves the error. The reference has 1/64 and 1/16 of these steps, so its error is small.
    assert 1.6 < errors[0] / errors[1] < 3
    distances = [
        np.mean(
            [np.abs(plain_euler(h, horizon, resolution, 2.0, KEYS[k]) - fine[k]) for k in range(8)]
        )
        for h in (2.0**-6, 2.0**-10)
    ]
    assert distances[1] < 0.5 * distances[0]
    assert distances[1] < 0.02


def test_coordinates_keep_their_signs_however_small():
    tiny = lt.DiagonalNetwork(np.stack([np.full(D, 1e-140), np.zeros(D)]))
    path: Any = lt.stochastic_flow(tiny, PROBLEM, 0.05, KEYS[0], step=0.02)
    u, v = np.asarray(path.network.weights)
    scale = np.asarray(path.effective_start.log_scale)
    assert np.all(np.isfinite(scale))
    assert np.all(scale < -2 * 140 * np.log(10))
    prediction: Any = lt.effective_limit(path, PROBLEM)
    np.testing.assert_allclose(prediction.limit, path.coefficients[-1], rtol=0, atol=1e-8)
    assert np.all(u != 0)
    assert np.all(v != 0)


def test_other_networks_by_their_parameters_and_saved_times():
    rng = np.random.default_rng(3)
    network = lt.FullyConnectedNetwork([rng.normal(size=(D, 4)) / 2, rng.normal(size=4) / 2])
    times = np.array([0.25, 0.5, 1e4])
    paths = lt.stochastic_flow(network, PROBLEM, 0.2, KEYS[:3], saveat=times, step=2.0**-6)
    assert paths.coefficients.shape == (3, 4, D)
    assert np.asarray(paths.reached).tolist() == [[True, True, False, True]] * 3
    assert bool(jnp.all(paths.succeeded))
    np.testing.assert_array_equal(paths.log_loss[:, 2], paths.log_loss[:, 3])
    np.testing.assert_allclose(paths.coefficients[:, -1] @ X.T, np.tile(Y, (3, 1)), atol=1e-8)
    np.testing.assert_allclose(jnp.linalg.norm(paths.direction, axis=-1), 1)
    one = lane(paths, 0)
    assert one.effective_start is None
    assert lt.effective_limit(one, PROBLEM).theorem is None
    assert "in the parameters" in str(one)


def test_ends_and_refusals():
    with pytest.raises(lt.FlowError, match="step budget"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], max_steps=3)
    short = lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], step=0.1, horizon=0.3)
    assert short.status == lt.FlowStatus.time
    with pytest.raises(lt.FlowError, match=r"range of floating-point numbers.*smaller step"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], step=1e4)
    with pytest.raises(ValueError, match="noise must be a finite number >= 0, got -1"):
        lt.stochastic_flow(NETWORK, PROBLEM, -1.0, KEYS[0])
    with pytest.raises(ValueError, match="key: must be a random key"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="step must be a positive finite number"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], step=0.0)
    with pytest.raises(ValueError, match="loss of residuals"):
        lt.stochastic_flow(NETWORK, lt.Classification(np.eye(D), np.ones(D)), 1.0, KEYS[0])
    with pytest.raises(ValueError, match="Ito solver"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], solver=diffrax.Heun())  # pyright: ignore
    with pytest.raises(ValueError, match="max_steps: must be a positive int"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], max_steps=0)
    with pytest.raises(ValueError, match="saveat: times must be strictly increasing"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], saveat=np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="saveat: must be a non-empty vector"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], saveat=np.array([-1.0]))
    with pytest.raises(ValueError, match="stop: must be an object"):
        lt.stochastic_flow(NETWORK, PROBLEM, 1.0, KEYS[0], stop=1e-9)  # pyright: ignore
