"""Functions of rows by the package's machine code, and rows with special numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lintensor_jax.dynamics.batch.native.kernel import Kernel, emit, vector_width

SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan]


def by_kernel(function, rows, *shared, emitter=None):
    """function(x, *shared) of every row x = (x_1, ..., x_k), by one turn of a kernel.

    `emitter`: as for `emit`.
    """
    count, size = rows.shape
    dtype = rows.dtype

    def step(row, *shared):
        result = function(row[1 : 1 + size], *shared).astype(dtype)
        return jnp.concatenate([jnp.zeros(1, dtype), result])

    width = vector_width(jax.ShapeDtypeStruct((1 + size,), dtype))
    shared = [np.asarray(array) for array in shared]
    example = jax.eval_shape(step, jnp.zeros(1 + size, dtype), *shared)
    fields = max(1 + size, example.size)
    traced = jax.jit(step).trace(jax.ShapeDtypeStruct((fields,), dtype), *shared)
    table = np.zeros((count, fields), dtype)
    table[:, 1 : 1 + size] = rows
    numbers = [np.zeros(1, dtype), *(np.asarray(a, dtype).reshape(-1) for a in shared)]
    data = np.concatenate(numbers[1:]) if shared else numbers[0]
    kernel = Kernel(emit(traced.jaxpr, width, emitter), width)
    turns = kernel(table, np.arange(count, dtype=np.int32), data)
    assert turns == -(-count // width)
    return table[:, 1 : example.size]


def rows_of(size, dtype: Any = np.float64):
    rows = np.random.default_rng(1).standard_normal((41, size)) * 3
    rows[:7, 0], rows[3:10, size - 1] = SPECIAL, SPECIAL
    return rows.astype(dtype)
