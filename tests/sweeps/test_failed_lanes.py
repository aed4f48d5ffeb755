"""Lanes over their explicit budget: which flow continues them, and how a failure is stored."""

import numpy as np
import pytest
from sweep_cases import LANES

import lintensor_jax as lt
from lintensor_jax.sweeps import STATUSES, Axis, Grid
from lintensor_jax.sweeps.execution import worker
from lintensor_jax.sweeps.plan import METHODS

ONES = lt.DiagonalNetwork(np.ones((2, 2)))
# beta_2 stays >= 0, and the least-squares solution has -1/6: the limit is (1.25, 0).
GRID = Grid(
    (Axis("alpha", [0.1, 0.3]),),
    lambda point: ONES.scaled(point.alpha),
    lt.Regression([[1.0, 2.0], [1.0, -1.0]], [1.0, 1.5]),
)


def _statuses(results):
    return np.asarray(STATUSES)[results.status].tolist()


@pytest.mark.slow
def test_a_lane_goes_on_by_the_full_flow_where_the_mirror_flow_fails(monkeypatch):
    whole = worker.mirror_flow

    def spent(network, problem, **options):
        return whole(network, problem, **(options | {"max_steps": 1}))

    monkeypatch.setattr(worker, "mirror_flow", spent)
    results = lt.sweep(GRID, max_steps=20, **LANES)
    assert np.asarray(METHODS)[results.method].tolist() == ["gradient_flow"] * 2
    assert _statuses(results) == ["stationary"] * 2
    np.testing.assert_allclose(results.limit, [[1.25, 0]] * 2, atol=1e-7)

    def broken(network, problem, **options):
        raise ArithmeticError("no digits are left")

    # These lanes have no end, so nothing is stored of them.
    monkeypatch.setattr(worker, "gradient_flow", broken)
    results = lt.sweep(GRID, max_steps=20, **LANES)
    assert _statuses(results) == ["solver_failed"] * 2
    assert np.isnan(results.limit).all()
    assert np.isnan(results.log_loss).all()
