"""Large parts of a program as functions of the machine code, called more than once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import by_kernel, rows_of

from lintensor_jax.dynamics.batch.native import emitter
from lintensor_jax.dynamics.elimination import backward_error, factors_of, solved


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


@pytest.mark.parametrize("size", [1, 3])
def test_linear_systems(size):
    """Each row has a matrix of its own. The last one has a zero on its diagonal."""

    def function(row):
        matrix, right = row[: size * size].reshape(size, size), row[size * size :]
        factors = factors_of(matrix)
        x = solved(factors, right)
        again = solved(factors, matrix @ right)
        error, wrong = backward_error(matrix, x, right), backward_error(matrix, 2 * x, right)
        return jnp.concatenate([x, again, error[None], wrong[None]])

    rng = np.random.default_rng(4)
    matrices = rng.standard_normal((21, size, size)) + 3 * size * np.eye(size)
    rights = rng.standard_normal((21, size))
    matrices[-1, 0, 0] = 0
    found = by_kernel(function, np.hstack([matrices.reshape(21, -1), rights]))
    assert not np.isfinite(found[-1]).all()
    x, again, errors, wrong = np.split(found[:-1], [size, 2 * size, 2 * size + 1], axis=1)
    expected = np.linalg.solve(matrices[:-1], rights[:-1, :, None])[..., 0]
    np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(again, rights[:-1], rtol=1e-11, atol=1e-13)
    assert errors.max() < 1e-15
    # (A 2x - b) / (|A| |2x| + |b|) is 1/3 in a row without cancellation.
    assert np.all((wrong > 0.05) & (wrong <= 1 / 3 + 1e-12))


def test_composites_without_a_routine_are_evaluated():
    def decomposed(x):
        return x + 2 * x[::-1]

    rows = rows_of(2)[10:]
    np.testing.assert_array_equal(
        by_kernel(jax.lax.composite(decomposed, "user.composite"), rows), rows + 2 * rows[:, ::-1]
    )
