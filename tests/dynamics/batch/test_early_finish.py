"""Lanes that a finish ends earlier than one flow, and those whose finish is not accepted there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import hardware

# The defaults of one flow for max|y| = 1.
USUAL = {"stop": lt.StopAtResidual(1e-9), "finish": lt.GaussNewton()}
X, Y = jnp.array([[1.0, 2.0, -0.5], [0.3, -1.0, 1.0]]), jnp.array([1.0, -0.4])


def _residuals(problem, networks):
    predictions = jax.vmap(lambda n: problem.predictions(n.linear_coefficients()))(networks)
    return np.linalg.norm(np.asarray(predictions) - np.asarray(problem.y), axis=1)


@pytest.mark.parametrize(("depth", "scale"), [(2, 0.01), (3, 0.1)])
@pytest.mark.parametrize("compilation", [lt.Native(), lt.XLA()])
def test_limits_are_those_of_a_smaller_residual(depth, scale, compilation):
    weights = scale * np.random.default_rng(3).standard_normal((40, depth, 3))
    networks, problem = lt.DiagonalNetwork(jnp.asarray(weights)), lt.Regression(X, Y)
    early = lt.batched_flow(networks, problem, compilation=compilation)
    usual = lt.batched_flow(networks, problem, compilation=compilation, **USUAL)
    assert np.all(early.finish_accepted)
    assert early.num_steps.sum() < 0.95 * usual.num_steps.sum()
    left = _residuals(problem, early.unfinished_network)
    assert (left <= 1e-5).all()
    assert left.max() > 1e-8
    assert _residuals(problem, early.network).max() < 1e-13
    # The finish adds the square of its step, about 1e-10, to the error of the integration.
    np.testing.assert_allclose(early.coefficients, usual.coefficients, rtol=0, atol=2e-9)


def _with_a_slow_mode(rest):
    """Lanes of one layer; where `rest` is not zero the slow mode has this residual.

    The data have the singular values 1 and 1e-4. At a residual of 1e-5 the gradient is that of the
    fast mode, and the estimate of the step is small. The step of the slow mode is 1e4 times `rest`.
    """
    problem = lt.Regression(jnp.diag(jnp.array([1.0, 1e-4])), jnp.array([1.0, 1e-4]))
    slow = 1 + np.asarray(rest) / 1e-4
    return lt.LinearNetwork(jnp.stack([jnp.full(len(rest), 0.2), slow], axis=1)), problem


def test_lanes_whose_finish_is_not_accepted_are_integrated_again():
    networks, problem = _with_a_slow_mode([0.0, 1e-6, 0.0, 1e-6])
    flow = lt.batched_flow(networks, problem)
    assert np.all(flow.finish_accepted)
    assert (flow.code == flow.code[0]).all()
    np.testing.assert_allclose(flow.coefficients, 1.0, rtol=0, atol=1e-9)
    few, many = flow.num_steps[::2], flow.num_steps[1::2]
    assert (many > few.max()).all()
    assert (flow.num_implicit_steps[1::2] > 0).all()
    # The steps of the first attempt are executed, and are not steps of the flow.
    assert flow.executed_steps > flow.num_steps.sum()


def test_lanes_of_several_chunks_are_integrated_again(monkeypatch):
    monkeypatch.setattr(hardware, "_CHUNK", 8)
    networks, problem = _with_a_slow_mode([1e-6 * (i % 5 == 0) for i in range(80)])
    flow = lt.batched_flow(networks, problem, width=8)
    assert np.all(flow.finish_accepted)
    assert flow.coefficients.shape == (80, 2)
    np.testing.assert_allclose(flow.coefficients, 1.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"stop": USUAL["stop"]}, {"finish": USUAL["finish"]}, USUAL])
def test_a_rule_or_a_finish_of_the_user_is_kept(options):
    networks, problem = _with_a_slow_mode([0.0, 0.0])
    flow = lt.batched_flow(networks, problem, **options)
    assert _residuals(problem, flow.unfinished_network).max() < 1e-9


def test_lanes_with_problems_of_their_own_keep_the_residual():
    networks, problem = _with_a_slow_mode([0.0, 0.0])
    problems = jax.vmap(lambda scale: lt.Regression(problem.X, scale * problem.y))(
        jnp.array([1.0, 1e-6])
    )
    flow = lt.batched_flow(networks, problems, shared_problem=False)
    left = jax.vmap(lambda n, p: jnp.linalg.norm(p.residual(n.linear_coefficients())))
    assert left(flow.unfinished_network, problems).max() < 1e-9


@pytest.mark.parametrize("loss", [lt.HuberLoss(1e-6), lt.LogCoshLoss()])
def test_other_losses_keep_the_residual(loss):
    # All slopes of this Huber loss are below 1e-5: at the start the flow would have ended.
    weights = 0.3 * np.random.default_rng(4).standard_normal((4, 2, 3))
    networks, problem = lt.DiagonalNetwork(jnp.asarray(weights)), lt.Regression(X, Y, loss=loss)
    early, usual = (lt.batched_flow(networks, problem, **o) for o in ({}, USUAL))
    assert (early.num_steps >= usual.num_steps).all()
    np.testing.assert_allclose(early.coefficients, usual.coefficients, rtol=0, atol=1e-9)


def test_single_precision_keeps_its_residual():
    networks = lt.DiagonalNetwork(jnp.asarray(np.full((8, 2, 3), 0.1), jnp.float32))
    problem = lt.Regression(X.astype(jnp.float32), Y.astype(jnp.float32))
    flow = lt.batched_flow(networks, problem)
    usual = lt.batched_flow(networks, problem, finish=lt.GaussNewton())
    np.testing.assert_array_equal(flow.num_steps, usual.num_steps)
