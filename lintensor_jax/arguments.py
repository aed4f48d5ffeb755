"""Checks of arguments that must be numbers, keys or sequences; the errors name the argument.

`jnp.asarray` and `float` also raise errors for a text, None, a ragged list or an array of objects.
Those errors do not say which argument is wrong.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .messages import in_words


def as_numbers(value: Any, name: str, owner: str) -> Array:
    """`value` as a JAX array that keeps its dtype; ValueError if it is not an array of numbers."""
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
    """`value` as a float, or unchanged if it is traced; ValueError if it is not a real number."""
    if isinstance(value, Tracer):
        return value
    try:
        # `float` would accept True (as 1) and a complex number of NumPy (as its real part).
        kind = np.asarray(value).dtype.kind
        if isinstance(value, str | bytes) or np.ndim(value) != 0 or kind in "bc":
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{owner}: {name} must be a real number, got {in_words(value)}; pass a float."
        ) from None


def as_concrete_number(value: Any, name: str, owner: str) -> float:
    """As `as_number`, but ValueError for a traced number.

    For static fields: their values are constants of compiled programs.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{owner}: {name} must be a concrete number, got a traced one; make the {owner} "
            "outside jit, grad and vmap."
        )
    return as_number(value, name, owner)


def as_threshold(value: Any, name: str, owner: str, advice: str, *, positive: bool = True) -> Any:
    """One finite real number, greater than 0 if `positive`; else ValueError that ends in `advice`.

    A scalar JAX array is returned unchanged, so that another value needs no new compilation. Of a
    traced value only shape and dtype are checked.
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
    """ValueError unless `value` is a PRNG key: typed (`jax.random.key`) or an array of uint32."""
    is_new = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    is_old = getattr(value, "dtype", None) == np.uint32 and np.ndim(value) > 0
    if not (is_new or is_old):
        raise ValueError(
            f"{owner}: {name} must be a PRNG key such as jax.random.key(0), got {in_words(value)}."
        )


def as_sequence(value: Any, name: str, owner: str) -> tuple[Any, ...]:
    """The entries of `value`; ValueError if it is not a sequence, or if it is a text."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return tuple(value)
    except TypeError:
        raise ValueError(
            f"{owner}: {name} must be a sequence of arrays, got {in_words(value)}; pass a tuple."
        ) from None


def as_size(value: Any, name: str, owner: str) -> int:
    """`value` as an int; ValueError if it is not a positive integer (True is not one).

    A traced integer raises JAX's own error, which says that a shape needs a plain value.
    """
    if isinstance(value, Tracer):
        return operator.index(value)
    try:
        if isinstance(value, bool | np.bool_) or operator.index(value) < 1:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(
            f"{owner}: {name} must be a positive int, got {in_words(value)}; pass for example 2."
        ) from None


def as_sizes(value: Any, name: str, owner: str) -> tuple[int, ...]:
    """The entries of `value`; ValueError if they are not one positive integer or more."""
    entries = () if isinstance(value, str | bytes) or not np.iterable(value) else tuple(value)
    if not entries:
        raise ValueError(
            f"{owner}: {name} must be a tuple of positive ints, got {in_words(value)}; pass for "
            "example (2, 2)."
        )
    return tuple(as_size(entry, f"{name}[{place}]", owner) for place, entry in enumerate(entries))


def as_shape(owner: str, outputs: Any, **sizes: Any) -> tuple[int, ...]:
    """The shape of `sizes`, and of `outputs` unless that is None; ValueError if one is no size."""
    if outputs is not None:
        sizes["outputs"] = outputs
    return tuple(as_size(value, name, owner) for name, value in sizes.items())
