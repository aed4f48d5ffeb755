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
from jaxtyping import Array, Bool, Float


def in_turn(value: Float[Array, "..."], earlier: Float[Array, "..."] | Bool[Array, "..."]) -> Array:
    """`value`, which a program has only after `earlier`: a call of LAPACK for it runs later.

    It adds a zero whose sign depends on `earlier`: -0.0 can become 0.0, and nothing else changes.
    Under `jax.vmap` the result is batched if `earlier` is.
    """
    if not isinstance(earlier, Tracer):
        return value
    first = earlier.reshape(-1)[:1].sum()
    return value + jnp.where(first > 0, 0.0, -0.0).astype(value.dtype)


def each_in_turn(
    function: Callable[[Array], Any], values: Sequence[Array], earlier: Array | None = None
) -> list[Any]:
    """`function` of each of `values`, one after the other, and the first one after `earlier`.

    The last leaf of what `function` returns has to be a result of its call of LAPACK.
    """
    found = []
    for value in values:
        found.append(function(value if earlier is None else in_turn(value, earlier)))
        earlier = jax.tree.leaves(found[-1])[-1]
    return found
