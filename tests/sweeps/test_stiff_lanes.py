"""Stiff lanes of a sweep go on in one batch; lanes that fail there go on one by one."""

import numpy as np
import pytest
from sweep_cases import LANES

import lintensor_jax as lt
from lintensor_jax.sweeps import STATUSES, Axis, Grid, Limit
from lintensor_jax.sweeps.execution import worker
from lintensor_jax.sweeps.plan import METHODS

RNG = np.random.default_rng(1)
X = RNG.standard_normal((8, 4))
PROBLEM = lt.Classification(X, np.sign(X @ RNG.standard_normal(4)))
WEIGHTS = np.random.default_rng(0).standard_normal((6, 2, 4))
GRID = Grid((Axis("start", WEIGHTS),), lambda point: lt.DiagonalNetwork(point.start), PROBLEM)
STOP = lt.StopAtMargin(1e6)


def _swept():
    return lt.sweep(GRID, stop=STOP, max_steps=128, observables=Limit(), **LANES)


def _directions(results):
    beta = np.asarray(results.limit)
    return beta / np.linalg.norm(beta, axis=1, keepdims=True)


def test_lanes_go_on_together(monkeypatch):
    def never(*_, **__):
        raise AssertionError("one by one")

    monkeypatch.setattr(worker, "gradient_flow", never)
    results = _swept()
    assert set(np.asarray(STATUSES)[results.status]) == {"margin"}
    assert set(np.asarray(METHODS)[results.method]) == {"gradient_flow"}
    assert np.all(np.asarray(results.num_steps) > 128)
    expected = np.asarray(lt.max_margin(PROBLEM, lt.L1Norm()).direction)
    np.testing.assert_allclose(_directions(results), np.tile(expected, (6, 1)), atol=1e-6)
    again = _swept()
    assert all(np.array_equal(again[name], results[name]) for name in results)


@pytest.mark.slow
def test_lanes_that_fail_together_go_on_one_by_one(monkeypatch):
    whole = worker.batched_flow

    def short(networks, problem, **options):
        options["stiff_max_steps"] = 3
        return whole(networks, problem, **options)

    monkeypatch.setattr(worker, "batched_flow", short)
    results = _swept()
    assert set(np.asarray(STATUSES)[results.status]) == {"margin"}
    lane = int(np.argmax(np.asarray(results.num_steps)))
    flow = lt.gradient_flow(lt.DiagonalNetwork(WEIGHTS[lane]), PROBLEM, stop=STOP)
    assert int(results.num_steps[lane]) == 128 + 3 + int(flow.stats["num_steps"])
    np.testing.assert_array_equal(results.limit[lane], flow.coefficients[-1])


@pytest.mark.slow
def test_a_regression_without_a_flow_in_dual_variables_goes_on_together():
    problem = lt.Regression(X[:2], [1.0, -0.5])
    layers = 0.1 * np.random.default_rng(2).standard_normal((2, 4, 2))
    rest = np.eye(2), 0.1 * np.ones(2)
    grid = Grid(
        (Axis("first", layers),),
        lambda point: lt.FullyConnectedNetwork((point.first, *rest)),
        problem,
    )
    results = lt.sweep(grid, max_steps=16, observables=Limit(), **LANES)
    assert set(np.asarray(METHODS)[results.method]) == {"gradient_flow"}
    np.testing.assert_allclose(np.asarray(results.limit) @ X[:2].T, [[1.0, -0.5]] * 2, atol=1e-9)
