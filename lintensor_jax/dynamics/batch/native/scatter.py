"""Sums of entries at known places, which are the derivatives of a gather."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..vectorization.entry_by_entry import from_list, is_known, lifted
from .instructions import no_instruction

# The largest product of the sizes of result and updates: a table of this size is computed.
_MOST_PAIRS = 2**20
_PARAMETERS = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")


def emit_scatter_add(emitter: Any, equation: Any, inputs: Any) -> list[np.ndarray]:
    """A `scatter-add` at places that are known while tracing."""
    operand, places, updates = inputs
    if not is_known(places) or operand.size * updates.size > _MOST_PAIRS:
        raise no_instruction(equation.primitive.name)
    params = {name: equation.params[name] for name in _PARAMETERS}

    def placed(update):
        zeros = jnp.zeros(operand.shape, update.dtype)
        return jax.lax.scatter_add(zeros, jnp.asarray(places), update, **params)

    units = np.eye(updates.size, dtype=np.float32).reshape(updates.size, *updates.shape)
    with jax.ensure_compile_time_eval():
        found = np.asarray(jax.vmap(placed)(units)).reshape(updates.size, -1)
    unsigned = equation.invars[0].aval.dtype.kind == "u"
    entries = list(lifted(operand).reshape(-1))
    for update, row in zip(lifted(updates).reshape(-1), found, strict=True):
        for place in np.flatnonzero(row):
            entries[place] = emitter.pair("add", entries[place], update, unsigned)
    return [from_list(entries, operand.shape)]
