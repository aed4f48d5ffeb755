"""Arguments that must be numbers: refused by name where they are none.

`jnp.asarray` and `float` raise errors of their own for a text, None, a ragged list or an array of
objects. Those errors do not say which argument was meant.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .messages import in_words


def as_numbers(value: Any, name: str, owner: str) -> Array:
    """`value` as an array of JAX, of its own dtype; ValueError where it is no array of numbers."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        dtype = getattr(value, "dtype", None)
        of_dtype = "" if dtype is None else f" and dtype {dtype}"
        raise ValueError(
            f"{owner}: {name} must be an array of numbers, got {in_words(value)}{of_dtype}; "
            "pass numbers in rows of equal length (numpy.asarray(..., float) converts texts)."
        ) from None


def as_number(value: Any, name: str, owner: str) -> Any:
    """`value` as a float; a traced number as it is; ValueError where it is no real number."""
    if isinstance(value, Tracer):
        return value
    try:
        if isinstance(value, str | bytes) or np.ndim(value) != 0:
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{owner}: {name} must be a real number, got {in_words(value)}; pass a float."
        ) from None


def require_key(value: Any, name: str, owner: str) -> None:
    """Refuse what is no PRNG key, of the new kind or the old."""
    is_new = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    is_old = getattr(value, "dtype", None) == np.uint32 and np.ndim(value) > 0
    if not (is_new or is_old):
        raise ValueError(
            f"{owner}: {name} must be a PRNG key such as jax.random.key(0), got {in_words(value)}."
        )


def as_sequence(value: Any, name: str, owner: str) -> tuple[Any, ...]:
    """The entries of `value`; ValueError where it has none, such as for a number or a text."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return tuple(value)
    except TypeError:
        raise ValueError(
            f"{owner}: {name} must be a sequence of arrays, got {in_words(value)}; pass a tuple."
        ) from None
