"""An order for calls of LAPACK, so that batched ones never wait for each other.

XLA:CPU runs parts of a program at the same time if they do not depend on each other. A batched call
of LAPACK in jaxlib 0.10 waits for threads of the pool on which it runs itself. If as many calls run
as there are threads, all of them wait for ever: on two cores, two calls. jaxlib 0.11.2 does not
have this fault. `tests/test_lapack_calls.py` looks for such calls in programs of this package.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float


def in_turn(value: Float[Array, "..."], earlier: Any) -> Array:
    """`value`, which a program has only after all numbers of the pytree `earlier`.

    So a call of LAPACK for `value` runs later. A zero is added whose sign depends on `earlier`:
    -0.0 can become 0.0, and nothing else changes. Under `jax.vmap` the result is batched if
    `earlier` is.
    """
    traced = [leaf for leaf in jax.tree.leaves(earlier) if isinstance(leaf, Tracer)]
    firsts = [
        jnp.real(leaf).reshape(-1)[:1].sum().astype(float)
        for leaf in traced
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    ]
    if not firsts:
        return value
    return value + jnp.where(sum(firsts[1:], firsts[0]) > 0, 0.0, -0.0).astype(value.dtype)


def each_in_turn(
    function: Callable[[Array], Any], values: Sequence[Array], earlier: Any = None
) -> list[Any]:
    """`function` of each of `values`, one after the other, and the first one after `earlier`."""
    found = []
    for value in values:
        found.append(function(in_turn(value, earlier)))
        earlier = found[-1]
    return found
