"""Weights of a norm: how to free a coordinate that the norm must not include."""

import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.theory import WeightedL2Norm, min_norm


def test_a_free_coordinate_by_a_small_weight():
    """The norm must not include a bias: a weight of 0 is refused with the advice used here."""
    with pytest.raises(ValueError, match="bias=True to the problem; give another"):
        WeightedL2Norm([1.0, 1.0, 0.0])
    X = np.array([[1.0, 2.0, 1.0], [0.5, -1.0, 1.0]])
    y = np.array([3.0, 2.5])
    found = min_norm(lt.Regression(X, y), WeightedL2Norm([1.0, 1.0, 1e-6])).coefficients
    # The difference of the two equations does not contain the bias.
    slope = np.linalg.pinv(X[:1, :2] - X[1:, :2]) @ (y[:1] - y[1:])
    bias = y[0] - X[0, :2] @ slope
    # Errors: 1e-12 by the weight, and 1e6 eps by the pseudo-inverse of columns of such sizes.
    np.testing.assert_allclose(found, [*slope, bias], rtol=0, atol=1e-8)
