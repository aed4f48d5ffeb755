"""Checks of a user's arrays of samples, for all problems."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .arguments import as_numbers


def with_ones(X: Float[Array, "n d"]) -> Float[Array, "n columns"]:
    """X with a last column of ones."""
    return jnp.concatenate([X, jnp.ones((X.shape[0], 1), X.dtype)], axis=1)


def as_data(value: Any, name: str, owner: str, ndims: tuple[int, ...]) -> Array:
    """`value` as an array of finite real numbers, its number of axes one of `ndims`.

    Integers become floats. **Raises** ValueError that names the argument.
    """
    array = as_numbers(value, name, owner)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(float)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"{owner}: {name} must be real, got dtype {array.dtype}; pass its parts.")
    if array.ndim not in ndims:
        axes = " or ".join(str(n) for n in ndims)
        noun = "axis" if ndims == (1,) else "axes"
        raise ValueError(
            f"{owner}: {name} must have {axes} {noun}, got shape {array.shape}; "
            "samples are rows, see the class's docstring."
        )
    if 0 in array.shape:
        raise ValueError(
            f"{owner}: {name} must not be empty, got shape {array.shape}; "
            "pass at least one sample with at least one entry."
        )
    if not isinstance(array, Tracer) and not np.isfinite(np.asarray(array)).all():
        where = np.argwhere(~np.isfinite(np.asarray(array)))[0].tolist()
        raise ValueError(
            f"{owner}: {name} must be finite, got {np.asarray(array)[tuple(where)]} at index "
            f"{where}; remove or impute that sample."
        )
    return array


def require_one_target_per_sample(
    X: Array, y: Array, name: str, owner: str, target: str = "y"
) -> None:
    """ValueError unless both have the same number of rows."""
    if X.shape[0] != y.shape[0]:
        count = X.shape[0]
        fix = f"give {target} one target for each of {name}'s {count} samples, which are its rows"
        if X.ndim == 2 and X.shape[1] == y.shape[0]:
            fix += f", or transpose {name} if its columns are the samples"
        raise ValueError(
            f"{owner}: {name} and {target} must have one row per sample, got {X.shape[0]} and "
            f"{y.shape[0]} rows ({name} has shape {X.shape}, {target} {y.shape}); {fix}."
        )
