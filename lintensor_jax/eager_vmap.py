"""What is known inside a `jax.vmap` that is called with numbers, outside of `jax.jit`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Bool

_CONVENTION = "lintensor_jax"  # JAX asks for a name
_UNTRACED = get_opaque_trace_state(_CONVENTION)


def is_untraced() -> bool:
    """Whether this is called outside of all transformations."""
    return get_opaque_trace_state(_CONVENTION) == _UNTRACED


def lanes_of_vmap(tree: Any) -> int | None:
    """The number of lanes in a `jax.vmap` outside of `jax.jit`, if `tree` has its tracers.

    None elsewhere: in compiled code, and if a number is differentiated.
    """
    tracers = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Tracer)]
    numbers = [_numbers_behind(tracer) for tracer in tracers]
    if not numbers or any(isinstance(number, Tracer) for number in numbers):
        return None
    if not _is_vmap_untraced(tracers[0]):
        return None
    pairs = zip(numbers, tracers, strict=True)
    return max(number.size // max(1, tracer.size) for number, tracer in pairs)


def _numbers_behind(tracer: Any) -> Any:
    """What a tracer of `jax.vmap` stands for; any other tracer itself.

    JAX has no public name for its class. If the name changes, nothing is known, which is safe.
    """
    while type(tracer).__name__ == "BatchTracer":
        tracer = tracer.val
    return tracer


def _is_vmap_untraced(tracer: Any) -> bool:
    """Whether the `jax.vmap` of this tracer is called outside of other transformations."""
    found: list[bool] = []

    @jax.custom_batching.custom_vmap
    def seen(number):
        return number

    @seen.def_vmap
    def _(axis_size, is_batched, number):
        if isinstance(number, Tracer):  # of another vmap, whose lanes are seen next
            return seen(number), is_batched[0]
        found.append(is_untraced())
        return number, is_batched[0]

    seen(tracer)
    return any(found)


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
