"""`DistanceToPrediction`: one program for lanes whose limit is proved, `predict` for the rest."""

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.sweeps import DistanceToPrediction, Grid
from lintensor_jax.sweeps.observables import catalogue
from tests.sweep_cases import ALPHAS, LANES, PROBLEM, axes, start


@pytest.fixture
def predicted_starts(monkeypatch):
    """The largest weight of every start that `predict` is called with."""
    starts, predict = [], lt.predict

    def counted(network, problem):
        starts.append(float(np.max(np.abs(network.weights))))
        return predict(network, problem)

    monkeypatch.setattr(catalogue, "predict", counted)
    return starts


def test_only_lanes_without_a_proved_limit_are_predicted_one_by_one(predicted_starts):
    def zero_at_the_largest_scale(point):
        return start(point).scaled((point.alpha < 0.99) * 1.0)

    grid = Grid(axes(), zero_at_the_largest_scale, PROBLEM)
    results = lt.sweep(grid, observables=[DistanceToPrediction()], **LANES)
    # A network of zeros does not move, and no theorem predicts its limit.
    assert predicted_starts == [0.0] * 5
    names = [results.prediction_kind.attrs["flag_meanings"].split()[k] for k in (0, 1)]
    assert names == ["not_predicted", "exact"]
    expected = np.broadcast_to(ALPHAS[:, None] < 0.99, (12, 5))
    np.testing.assert_array_equal(results.prediction_kind, expected)
    distances = results.distance_to_prediction.values
    np.testing.assert_array_equal(np.isnan(distances), ~expected)
    assert distances[expected].max() < 1e-8
    assert np.isnan(results.predicted.values[~expected]).all()
    residuals = results.predicted.values[expected] @ PROBLEM.X[0] - PROBLEM.y[0]
    assert np.abs(residuals).max() < 1e-12
