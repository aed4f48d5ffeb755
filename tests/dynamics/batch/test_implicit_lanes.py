"""Stiff lanes of a batch: the method's order, ends against independent limits, lanes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.rosenbrock import rosenbrock_step

D, N = 4, 8


def separable(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, D))
    return X, np.sign(X @ rng.standard_normal(D))


def networks(count, seed=0):
    weights = np.random.default_rng(seed).standard_normal((count, 2, D))
    return jax.vmap(lt.DiagonalNetwork)(jnp.asarray(weights))


def test_the_method_has_order_five():
    """On y'' = -sin y, written as two equations."""

    def slope(y):
        return jnp.stack([y[1], -jnp.sin(y[0])])

    def end(count):
        def step(_, y):
            return rosenbrock_step(slope, y, jnp.asarray(2.0 / count))[0]

        return jax.lax.fori_loop(0, count, step, jnp.array([1.0, 0.0]))

    ends = [np.asarray(jax.jit(end, static_argnums=0)(count)) for count in (10, 20, 160)]
    first, second = (np.linalg.norm(y - ends[-1]) for y in ends[:2])
    assert 4.5 < np.log2(first / second) < 5.7


def test_a_stiff_linear_flow_takes_long_steps():
    """y' = -1e8 (y - 1): an explicit step of this size would be 1e8 times off."""
    y, error = rosenbrock_step(lambda y: -1e8 * (y - 1), jnp.array([1.5]), jnp.asarray(1.0))
    assert abs(float(y[0]) - 1) < 1e-6
    assert abs(float(error[0])) < 1e-6


@pytest.fixture(scope="module")
def stiff():
    X, y = separable(1)
    problem = lt.Classification(X, y)
    options = {"stop": lt.StopAtMargin(1e6), "max_steps": 128, "stiff_max_steps": 5000}
    return problem, options, lt.batched_flow(networks(12), problem, **options)


def test_stiff_lanes_reach_the_limit_of_theory(stiff):
    """Two diagonal layers tend to the l1 max margin, at the rate of one over the margin."""
    problem, _, flow = stiff
    expected = np.asarray(lt.max_margin(problem, lt.L1Norm()).direction)
    assert bool(jnp.all(flow.status == lt.FlowStatus.margin))
    went_on = np.asarray(flow.num_implicit_steps) > 0
    assert went_on.any()
    beta = np.asarray(flow.coefficients)
    beta = beta / np.linalg.norm(beta, axis=1, keepdims=True)
    assert np.max(np.linalg.norm(beta - expected, axis=1)) < 1e-6
    assert np.max(np.asarray(flow.invariant_drift)) < 1e-6


@pytest.mark.slow
def test_a_lane_does_not_depend_on_its_neighbours(stiff):
    problem, options, flow = stiff
    lane = int(np.argmax(np.asarray(flow.num_implicit_steps)))
    chosen = jax.tree.map(lambda leaf: leaf[lane : lane + 1], networks(12))
    alone = lt.batched_flow(chosen, problem, **options)
    np.testing.assert_allclose(alone.coefficients[0], flow.coefficients[lane], rtol=1e-6)


@pytest.mark.slow
def test_lanes_with_problems_of_their_own_and_a_finish():
    """Deep regression from a small start has the limits of single flows."""
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((3, 2, D)), rng.standard_normal((3, 2))
    problems = jax.vmap(lt.Regression)(jnp.asarray(X), jnp.asarray(y))
    starts = jax.vmap(lt.DiagonalNetwork)(jnp.asarray(0.01 * rng.standard_normal((3, 3, D))))
    flow = lt.batched_flow(
        starts, problems, shared_problem=False, max_steps=64, stiff_max_steps=5000
    )
    assert bool(np.all(np.asarray(flow.succeeded)))
    assert np.all(np.asarray(flow.num_implicit_steps) > 0)
    lane = jax.tree.map(lambda leaf: leaf[1], starts)
    single = lt.gradient_flow(lane, lt.Regression(X[1], y[1]), rtol=1e-10)
    np.testing.assert_allclose(flow.coefficients[1], single.coefficients[-1], atol=1e-6)


@pytest.mark.slow
def test_the_budget_is_checked_and_kept():
    problem = lt.Classification(*separable(1))
    with pytest.raises(ValueError, match="stiff_max_steps: must be a positive int or None, got 0"):
        lt.batched_flow(networks(2), problem, stiff_max_steps=0)
    flow = lt.batched_flow(networks(2), problem, max_steps=16, stiff_max_steps=3)
    assert bool(jnp.all(flow.status == lt.FlowStatus.max_steps))
    np.testing.assert_array_equal(flow.num_steps, 19)
