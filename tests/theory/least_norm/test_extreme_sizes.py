"""Norms and least-norm solutions of sizes whose squares are no floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax import Regression
from lintensor_jax.theory.least_norm.min_norm import min_norm
from lintensor_jax.theory.least_norm.norms import (
    L1Norm,
    L2Norm,
    L21Norm,
    LInfNorm,
    LpNorm,
    WeightedL2Norm,
)

jax.config.update("jax_enable_x64", True)


@pytest.mark.parametrize("scale", [1e-250, 1e-170, 1.0, 1e170, 1e250])
def test_norms_do_not_square_what_squares_cannot_hold(scale):
    beta = np.array([3.0, -4.0]) * scale
    assert float(L2Norm()(beta)) == pytest.approx(5 * scale, rel=1e-15)
    assert float(WeightedL2Norm(np.array([4.0, 3.0]))(beta)) == pytest.approx(
        12 * scale * np.sqrt(2), rel=1e-15
    )
    assert float(L21Norm()(np.diag(beta))) == pytest.approx(7 * scale, rel=1e-15)  # pyright: ignore[reportArgumentType]
    # The gradient of a function that is homogeneous of degree 1 does not depend on the scale.
    np.testing.assert_allclose(jax.grad(L2Norm())(jnp.asarray(beta)), [0.6, -0.8], rtol=1e-15)
    assert float(L2Norm()(np.zeros(2))) == 0  # pyright: ignore[reportArgumentType]
    assert np.isnan(L2Norm()(np.array([np.nan, 1.0])))  # pyright: ignore[reportArgumentType]
    assert float(L2Norm()(np.array([-np.inf, 1.0]))) == np.inf  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("norm", [L2Norm(), WeightedL2Norm(np.array([1.0, 2.0])), L1Norm()])
def test_solutions_of_sizes_whose_squares_are_no_floats(norm):
    """X of 1e-150 and y of 1e100: beta is of size 1e250."""
    X, y = np.array([[2.0, 1.0]]), np.array([3.0])
    mild = min_norm(Regression(X, y), norm)
    for small, large in ((1e-150, 1e100), (1e150, 1e-60)):
        found = min_norm(Regression(X * small, y * large), norm)
        factor = large / small
        assert found.status == "optimal"
        np.testing.assert_allclose(found.coefficients / factor, mild.coefficients, rtol=1e-12)
        assert float(found.value / factor) == pytest.approx(float(mild.value), rel=1e-12)
        np.testing.assert_allclose(found.multipliers * small, mild.multipliers, rtol=1e-12)


@pytest.mark.parametrize("norm", [L1Norm(), L2Norm(), LInfNorm(), LpNorm(0.5)])
def test_several_equations_at_the_ends_of_the_floats(norm):
    X, y = np.array([[2.0, 1.0, 0.5], [-1.0, 0.3, 2.0]]), np.array([3.0, -1.0])
    mild = min_norm(Regression(X, y), norm)
    for small, large in ((2.0**-500, 2.0**330), (2.0**500, 2.0**-330), (2.0**-1000, 2.0**-700)):
        found = min_norm(Regression(X * small, y * large), norm)
        assert found.status == mild.status
        np.testing.assert_allclose(found.coefficients / (large / small), mild.coefficients, 1e-12)
        np.testing.assert_allclose(found.multipliers * small, mild.multipliers, rtol=1e-9)
    with pytest.raises(ValueError, match=r"problem: .*must be numbers of float64, got one of abou"):
        min_norm(Regression(X * 1e-250, y * 1e100), norm)
