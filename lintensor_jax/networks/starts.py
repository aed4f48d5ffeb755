"""A formula that the initial parameters of several architectures share."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..eager_programs import eager_program
from .mirror_map import z_of_x


@eager_program()  # one program: the first call would compile six small ones
def size_of_first_layers(
    magnitude: Float[Array, "*b"], depth: int, gap: Scalar
) -> Float[Array, "*b"]:
    """The p with p^(depth - 1) q = magnitude and p^2 - q^2 = gap (Yun et al. 2021, Lemma 4)."""
    return jnp.sqrt(gap) * jnp.cosh(z_of_x(magnitude / gap ** (depth / 2), depth))
