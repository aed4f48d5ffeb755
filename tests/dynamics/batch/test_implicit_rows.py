"""Stiff lanes by machine code: the ends of XLA, and lanes that are given back to XLA."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.dynamics.batch import implicit_lanes, implicit_rows

D, N = 3, 6
OPTIONS = {"stop": lt.StopAtMargin(1e5), "max_steps": 128, "stiff_max_steps": 5000}


def own_problems(count):
    """Separable data for each lane, several support vectors."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((count, N, D))
    y = np.sign(np.einsum("lnd,ld->ln", X, rng.standard_normal((count, D))))
    return jax.vmap(lt.Classification)(jnp.asarray(X), jnp.asarray(y))


def starts(count):
    weights = np.random.default_rng(6).standard_normal((count, 2, D))
    return jax.vmap(lt.DiagonalNetwork)(jnp.asarray(weights))


@pytest.fixture
def ran(monkeypatch):
    """What integrated the stiff lanes: "rows", "xla", or both, in turn."""
    calls = []

    def noted(name, function):
        def call(*arguments):
            found = function(*arguments)
            calls.extend([name] if found is not None else [])
            return found

        return call

    for name, owner, function in (
        ("rows", implicit_lanes, "stiff_ends_by_machine_code"),
        ("xla", implicit_lanes, "_ends_by_xla"),
    ):
        monkeypatch.setattr(owner, function, noted(name, getattr(owner, function)))
    return calls


def directions(flow):
    beta = np.asarray(flow.coefficients)
    return beta / np.linalg.norm(beta, axis=1, keepdims=True)


@pytest.mark.slow
def test_ends_are_those_of_xla(ran, monkeypatch):
    networks, problems = starts(6), own_problems(6)
    own = lt.batched_flow(networks, problems, shared_problem=False, **OPTIONS)
    assert ran == ["rows"]
    assert np.asarray(own.num_implicit_steps).any()
    # Every backward error is above this limit.
    monkeypatch.setattr(implicit_rows, "_ROUNDINGS", -1.0)
    given_back = lt.batched_flow(networks, problems, shared_problem=False, **OPTIONS)
    assert ran == ["rows", "rows", "xla"]
    for flow in (own, given_back):
        assert flow.counted() == "margin 6"
        assert float(jnp.max(flow.invariant_drift)) < 1e-6
    # Such flows amplify the tolerance of 1e-8 by up to 1e3.
    np.testing.assert_allclose(directions(own), directions(given_back), atol=1e-5)


@pytest.mark.slow
def test_a_shared_problem_and_a_finish(ran):
    """Deep regression from small starts, all lanes with one problem."""
    rng = np.random.default_rng(3)
    problem = lt.Regression(rng.standard_normal((2, D)), rng.standard_normal(2))
    networks = jax.vmap(lt.DiagonalNetwork)(jnp.asarray(0.01 * rng.standard_normal((4, 3, D))))
    flows = [
        lt.batched_flow(networks, problem, compilation=how, max_steps=64, stiff_max_steps=5000)
        for how in (lt.Native(), lt.XLA())
    ]
    assert ran == ["rows", "xla"]
    assert all(bool(np.all(flow.succeeded)) for flow in flows)
    # The tolerance of the flows; their finish is exact to rounding.
    np.testing.assert_allclose(flows[0].coefficients, flows[1].coefficients, atol=1e-8)


@pytest.mark.slow
def test_tied_lanes_are_left_to_xla(ran):
    """Their steps are corrected by linear algebra. The other lanes go on by machine code."""
    problem = lt.Classification(np.array([[1.0, 0.5], [0.5, 1.0]]), np.ones(2))
    tied, free = np.ones((2, 2)), np.array([[1.0, 2.0], [0.5, -1.0]])
    flows = [
        lt.batched_flow(
            jax.vmap(lt.DiagonalNetwork)(jnp.asarray(lanes)),
            problem,
            stop=lt.StopAtMargin(1e3),
            max_steps=4,
            stiff_max_steps=500,
        )
        for lanes in ([tied, free], [tied, tied])
    ]
    assert ran == ["rows", "xla", "rows", "xla"]
    assert all(bool(np.all(flow.status == lt.FlowStatus.margin)) for flow in flows)
    np.testing.assert_allclose(flows[0].coefficients[0], flows[1].coefficients[0], rtol=1e-9)
    assert np.all(np.asarray(flows[0].num_implicit_steps) > 0)


@pytest.mark.slow
def test_large_lanes_are_left_to_xla(ran):
    networks = jax.vmap(lt.DiagonalNetwork)(
        jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 40)))
    )
    problem = lt.Classification(np.eye(2, 40), np.ones(2))
    ends = {"stop": lt.StopAtMargin(1e3), "max_steps": 4, "stiff_max_steps": 500}
    lt.batched_flow(networks, problem, **ends)
    assert ran == ["xla"]


@pytest.mark.slow
def test_the_budget_is_kept_when_lanes_are_given_back(monkeypatch):
    monkeypatch.setattr(implicit_rows, "_ROUNDINGS", -1.0)
    X = np.random.default_rng(8).standard_normal((N, D + 1))
    problem = lt.Classification(X, np.sign(X[:, 0]))
    networks = jax.vmap(lt.DiagonalNetwork)(jnp.asarray(np.ones((2, 2, D + 1)) + X[:2, None]))
    flow = lt.batched_flow(networks, problem, max_steps=16, stiff_max_steps=3)
    np.testing.assert_array_equal(flow.num_steps, 19)
    by_rows: Any = implicit_lanes.stiff_ends_by_machine_code

    def after_some_steps(*arguments):
        ends, executed = by_rows(*arguments)
        return ends._replace(num_steps=np.array([0, 2], np.int32)), executed

    # A lane's budget does not depend on the steps that another lane has taken.
    monkeypatch.setattr(implicit_lanes, "stiff_ends_by_machine_code", after_some_steps)
    flow = lt.batched_flow(networks, problem, max_steps=16, stiff_max_steps=3)
    np.testing.assert_array_equal(flow.num_steps, 19)
