"""Heavy-ball flow: SciPy's second-order flow of the parameters, effective limits, energy."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lintensor_jax as lt
from lintensor_jax.experiments.sparse_regression.setup import (
    log_scale,
    small_start,
    sparse_problem,
)
from lintensor_jax.theory import bregman_projection

pytestmark = pytest.mark.slow  # ten to sixty seconds for each of most tests

N, D = 3, 6
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / np.sqrt(D), RNG.normal(size=N)
PROBLEM = lt.Regression(X, Y)
WEIGHTS = np.stack([0.5 * RNG.normal(size=D), 0.2 * RNG.normal(size=D)])
NETWORK = lt.DiagonalNetwork(WEIGHTS)
FLOW_LIMIT: Any = lt.predict(NETWORK, PROBLEM).limit


def reference_layers(weights, mass, times):
    """Layers (depth, d, T) at `times` of mass u'' + u' = -dL/du from rest."""
    depth, d = weights.shape

    def velocity(_, state):
        theta, speed = state[: depth * d].reshape(depth, d), state[depth * d :]
        gradient = X.T @ (X @ theta.prod(axis=0) - Y)
        others = [np.delete(theta, k, axis=0).prod(axis=0) for k in range(depth)]
        return np.concatenate(
            [speed, (-np.tile(gradient, depth) * np.ravel(others) - speed) / mass]
        )

    start = np.concatenate([weights.ravel(), np.zeros(depth * d)])
    options = {"rtol": 1e-11, "atol": 1e-13}
    found = solve_ivp(velocity, (0, times[-1]), start, "DOP853", times, **options)  # pyright: ignore[reportArgumentType]
    return found.y[: depth * d].reshape(depth, d, -1)


def reference(weights, mass, times):
    """beta (T, d)."""
    return reference_layers(weights, mass, times).prod(axis=0).T


@pytest.mark.parametrize("mass", [0.05, 0.3])
def test_it_ends_at_the_projection_of_its_effective_start(mass):
    times = np.array([0.0, 0.5, 2.0, 8.0])
    flow = lt.heavy_ball_flow(NETWORK, PROBLEM, mass, saveat=times)
    assert flow.sign_change is None
    expected = reference(WEIGHTS, mass, np.append(times, 400.0))
    np.testing.assert_allclose(flow.coefficients, expected, rtol=0, atol=1e-8)
    prediction: Any = lt.effective_limit(flow, PROBLEM)
    assert prediction.theorem is not None
    assert "Papazov" in prediction.theorem
    np.testing.assert_allclose(prediction.limit, flow.coefficients[-1], rtol=0, atol=1e-8)
    # Inertia moves the limit: gradient flow ends elsewhere.
    assert np.max(np.abs(flow.coefficients[-1] - FLOW_LIMIT)) > 1e-3
    assert np.all(np.diff(flow.log_energy) < 0)
    assert float(np.max(flow.energy_drift)) < 1e-8
    assert "energy" in str(flow)


def test_a_change_of_sign_is_named_and_the_limit_refused():
    mass = 20.0
    flow = lt.heavy_ball_flow(NETWORK, PROBLEM, mass, saveat=np.array([1.0, 5.0, 20.0]))
    assert flow.sign_change is not None
    assert "sign changes" in str(flow)
    np.testing.assert_allclose(
        flow.coefficients[:-1], reference(WEIGHTS, mass, np.array([1.0, 5.0, 20.0])), atol=1e-7
    )
    prediction: Any = lt.effective_limit(flow, PROBLEM)
    assert prediction.theorem is None
    assert any("changes its sign" in a.statement for a in prediction.violated)
    # Each named coordinate changes its sign soon after the named time.
    change = flow.sign_change
    times = np.linspace(0, change.time + 4 * mass, 400)
    u, v = reference_layers(WEIGHTS, mass, times)
    for named, path in ((change.sums, u + v), (change.differences, u - v)):
        for index in named:
            assert np.min(np.sign(path[index])) < np.max(np.sign(path[index]))


def test_small_starts_keep_their_digits():
    tiny = lt.DiagonalNetwork(np.stack([np.full(D, 1e-9), np.zeros(D)]))
    flow = lt.heavy_ball_flow(tiny, PROBLEM, 0.1)
    assert flow.sign_change is None
    prediction: Any = lt.effective_limit(flow, PROBLEM)
    np.testing.assert_allclose(prediction.limit, flow.coefficients[-1], rtol=0, atol=1e-8)


def test_three_layers_by_their_parameters():
    weights = 0.7 + 0.2 * np.random.default_rng(2).normal(size=(3, D))
    flow = lt.heavy_ball_flow(
        lt.DiagonalNetwork(weights), PROBLEM, 0.4, saveat=np.array([1.0, 3.0])
    )
    expected = reference(weights, 0.4, np.array([1.0, 3.0]))
    np.testing.assert_allclose(flow.coefficients[:2], expected, atol=1e-8)
    assert flow.effective_start is None
    assert lt.effective_limit(flow, PROBLEM).theorem is None
    assert float(np.max(flow.energy_drift)) < 1e-8
    np.testing.assert_allclose(np.linalg.norm(flow.direction, axis=-1), 1)


def test_refusals():
    with pytest.raises(ValueError, match="mass must be a positive finite number, got 0"):
        lt.heavy_ball_flow(NETWORK, PROBLEM, 0.0)
    with pytest.raises(ValueError, match="loss of residuals"):
        lt.heavy_ball_flow(NETWORK, lt.Classification(np.eye(D), np.ones(D)), 1.0)
    with pytest.raises(ValueError, match="max_steps: must be a positive int"):
        lt.heavy_ball_flow(NETWORK, PROBLEM, 1.0, max_steps=0)
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(lambda n: lt.heavy_ball_flow(n, PROBLEM, 1.0).coefficients)(NETWORK)
    with pytest.raises(lt.FlowError, match="step budget"):
        lt.heavy_ball_flow(NETWORK, PROBLEM, 0.1, max_steps=3)


def test_small_masses_shrink_the_support_most():
    """The scale falls everywhere, but unevenly, and the limit is less sparse than the flow's."""
    problem, truth = sparse_problem(10, 30, 2, seed=2028)
    network = small_start(30, 0.3)
    start: Any = lt.heavy_ball_flow(network, problem, 0.1).effective_start
    shrinkage = np.asarray(log_scale(network)) - np.asarray(start.log_scale)
    on = truth != 0
    assert np.min(shrinkage) > 0
    assert np.mean(shrinkage[on]) > 4 * np.mean(shrinkage[~on])

    def l1_norm(scale, beta):
        limit = bregman_projection(problem.X, problem.y, scale, beta).coefficients
        return float(np.sum(np.abs(limit)))

    of_flow = float(np.sum(np.abs(lt.predict(network, problem).limit)))  # pyright: ignore
    zero = np.zeros(30)
    alike = np.full(30, np.exp(np.mean(np.asarray(start.log_scale))))
    assert l1_norm(alike, zero) < of_flow - 0.01
    assert l1_norm(start.scale, start.coefficients) > of_flow + 0.02
