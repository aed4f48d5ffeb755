"""The checks of arguments that all functions of the mirror map share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ..arguments import as_numbers


def checked_depth(L: Any) -> int:
    """`L` as an int; ValueError unless it is a whole number >= 2."""
    if not isinstance(L, int | np.integer) or isinstance(L, bool) or L < 2:
        raise ValueError(
            f"L must be a Python int >= 2 (the number of layers), got {L!r}. Pass the network's "
            "`.depth`; under jax.jit, mark L as a static argument."
        )
    return int(L)


def as_float(value: ArrayLike, name: str) -> Array:
    """`value` as a floating-point array; integers become floats. ValueError unless it is real."""
    value = as_numbers(value, name, "potential")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name}: the mirror map takes real arrays (Theorem 5: real S and U_l), got "
            f"{value.dtype}. "
            "Pass `.real` if the imaginary part is rounding."
        )
    return value.astype(jnp.result_type(value.dtype, float))
