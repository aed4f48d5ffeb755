"""Elimination without exchanges of rows, against NumPy, and what it says of its own accuracy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lintensor_jax.dynamics.elimination import backward_error, factors_of, solved


@pytest.mark.parametrize("size", [1, 2, 7])
def test_solutions_are_those_of_numpy(size):
    rng = np.random.default_rng(size)
    matrix = rng.standard_normal((size, size)) + 2 * size * np.eye(size)
    right = rng.standard_normal(size)
    x = solved(factors_of(jnp.asarray(matrix)), jnp.asarray(right))
    np.testing.assert_allclose(x, np.linalg.solve(matrix, right), rtol=1e-12)
    assert float(backward_error(jnp.asarray(matrix), x, jnp.asarray(right))) < 1e-15


def test_a_small_pivot_is_seen():
    """With the pivot 1e-20 the solution is (0, 1); the right one is (1, 1)."""
    matrix, right = jnp.array([[1e-20, 1.0], [1.0, 1.0]]), jnp.array([1.0, 2.0])
    x = solved(factors_of(matrix), right)
    assert float(backward_error(matrix, x, right)) > 1e-2
    assert float(backward_error(matrix, jnp.array([1.0, 1.0]), right)) < 1e-15


def test_the_backward_error_of_a_zero_row():
    """0 x = 0 is solved exactly, and 0 x = 1 by no x."""
    zero = jnp.zeros((1, 1))
    assert float(backward_error(zero, jnp.ones(1), jnp.zeros(1))) == 0.0
    assert float(backward_error(zero, jnp.ones(1), jnp.ones(1))) == 1.0
