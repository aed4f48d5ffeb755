"""What is known inside a `jax.vmap` that is called with numbers, outside of `jax.jit`."""

from collections.abc import Callable
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

    None elsewhere: in compiled code, and if a number is differentiated. In nested calls it is the
    largest number of lanes of one tracer, and there may be more.
    """
    tracers = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, Tracer)]
    numbers = [_numbers_behind(tracer) for tracer in tracers]
    if not numbers or any(isinstance(number, Tracer) for number in numbers):
        return None
    if not _holds_in_vmap(tracers[0], lambda _: is_untraced()):
        return None
    pairs = zip(numbers, tracers, strict=True)
    return max(number.size // max(1, tracer.size) for number, tracer in pairs)


def _numbers_behind(tracer: Any) -> Any:
    """What a tracer of `jax.vmap` stands for; any other tracer itself.

    JAX has no public names for its class and its value. If one of them changes, nothing is known,
    which is safe.
    """
    while type(tracer).__name__ == "BatchTracer" and hasattr(tracer, "val"):
        tracer = tracer.val
    return tracer


def is_known_to_hold(condition: Bool[Array, ""]) -> bool:
    """Whether `condition` is known to be true, in all lanes; False in compiled code."""
    if not isinstance(condition, Tracer):
        return bool(condition)
    return _holds_in_vmap(condition, lambda numbers: bool(jnp.all(numbers)))


def _holds_in_vmap(tracer: Any, test: Callable[[Array], bool]) -> bool:
    """Whether the numbers of all lanes of a `jax.vmap` pass the test; False in compiled code.

    Outside of `jax.jit`, `jax.vmap` evaluates one compiled program after the other for all lanes. A
    function sees tracers, but the rule of a `custom_vmap` sees the numbers.
    """
    found: list[bool] = []

    @jax.custom_batching.custom_vmap
    def seen(number):
        return number

    @seen.def_vmap
    def _(axis_size, is_batched, number):
        if isinstance(number, Tracer):  # of another vmap, whose lanes are seen next
            return seen(number), is_batched[0]
        found.append(test(number))
        return number, is_batched[0]

    seen(tracer)
    return any(found)
