"""Large parts of a program as functions of the machine code, called more than once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import by_kernel, rows_of

from lintensor_jax.dynamics.batch.native import emitter


def test_large_parts_are_functions(monkeypatch):
    """A large part becomes a function, called more than once, with the results of inlined code."""
    part = jax.jit(lambda x, matrix: jnp.tanh(matrix @ x) + (x[0] > 0))

    def function(x, matrix):
        once = part(x, matrix)
        return part(once, matrix) + jax.lax.cond(
            x[0] > 0, lambda: part(2 * once, matrix), lambda: once
        )

    rows, matrix = rows_of(2)[10:], np.array([[1.0, -2.0], [0.5, 1.0]])
    inline = by_kernel(function, rows, matrix)
    monkeypatch.setattr(emitter, "LARGEST_INLINE", 0)
    np.testing.assert_array_equal(by_kernel(function, rows, matrix), inline)
    expected = jax.vmap(function, (0, None))(rows, matrix)
    np.testing.assert_allclose(inline, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_take_flags_and_integers(monkeypatch, dtype):
    """Arguments stay in the memory of a function; a branch may have put others there."""
    part = jax.jit(lambda x, flags, counts: jnp.where(flags, x, -x) * counts.astype(x.dtype))

    def function(x):
        flags, counts = x > 0, jnp.floor(jnp.clip(x, -9, 9)).astype(int)
        first = part(x, flags, counts)
        branch = jax.lax.cond(x[0] > 1, lambda: part(x, ~flags, counts + 1), lambda: first)
        constant = part(x, jnp.array([True, False]), jnp.array([2, 3]))
        behind = part(x, *jax.lax.optimization_barrier((jnp.array([True, False]), counts)))
        return jnp.concatenate([part(x, flags, counts), branch, constant, behind])

    rows = np.random.default_rng(1).standard_normal((41, 2)).astype(dtype) * 3
    monkeypatch.setattr(emitter, "LARGEST_INLINE", 0)
    with jax.enable_x64(dtype == np.float64):
        np.testing.assert_array_equal(by_kernel(function, rows), jax.vmap(function)(rows))
