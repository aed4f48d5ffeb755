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
        # float(True) is 1, and that of a complex number of NumPy is its real part.
        kind = np.asarray(value).dtype.kind
        if isinstance(value, str | bytes) or np.ndim(value) != 0 or kind in "bc":
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{owner}: {name} must be a real number, got {in_words(value)}; pass a float."
        ) from None


def as_concrete_number(value: Any, name: str, owner: str) -> float:
    """As `as_number`, of a field that programs are chosen by: a traced number is refused."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {name} must be a concrete number, got a traced one; make the {owner} "
            "outside jit, grad and vmap."
        )
    return as_number(value, name, owner)


def as_threshold(value: Any, name: str, owner: str, advice: str, *, positive: bool = True) -> Any:
    """One finite real number, positive where that is asked for; else ValueError with `advice`.

    A scalar of JAX stays one, so that another value needs no new compilation. What is traced is
    checked for its shape and dtype only.
    """
    number = value
    if isinstance(value, jax.Array):
        if value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.number):
            number = 1.0 if isinstance(value, Tracer) else value
        else:
            number = None
    rule = "a positive finite number" if positive else "a finite number"
    try:
        number = as_number(number, name, owner)
    except ValueError:
        number = np.nan
    if np.isfinite(number) and (number > 0 or not positive):
        return value if isinstance(value, jax.Array) else number
    raise ValueError(f"{owner}: {name} must be {rule}, got {in_words(value)}; {advice}")


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
