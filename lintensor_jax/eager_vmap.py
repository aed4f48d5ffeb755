"""What is known inside a `jax.vmap` that is called with numbers, outside of `jax.jit`."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool


def is_known_to_hold(condition: Bool[Array, ""]) -> bool:
    """Whether `condition` is known to be true, in all lanes; False in compiled code.

    Outside of `jax.jit`, `jax.vmap` evaluates one compiled program after the other for all lanes. A
    function sees tracers, but the rule of a `custom_vmap` sees the numbers.
    """
    if not isinstance(condition, Tracer):
        return bool(condition)
    found: list[bool] = []

    @jax.custom_batching.custom_vmap
    def seen(condition):
        return condition

    @seen.def_vmap
    def _(axis_size, is_batched, condition):
        if isinstance(condition, Tracer):  # of another vmap, whose lanes are seen next
            return seen(condition), is_batched[0]
        found.append(bool(jnp.all(condition)))
        return condition, is_batched[0]

    seen(condition)
    return any(found)
