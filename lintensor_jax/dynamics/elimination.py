"""Linear systems of a few equations, eliminated without loops, for machine code.

The pivots are the diagonal entries. Rows are not exchanged, because in a vector of lanes every lane
would exchange others. The matrices of implicit steps, shift I - J with a stable J, need no exchange
as a rule. Whether one would have been needed is measured: see `backward_error`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar


class Factors(NamedTuple):
    """A = L U: the columns of L below its diagonal of ones, the rows of U, and 1 / U[k, k]."""

    lower: tuple[Array, ...]
    upper: tuple[Array, ...]
    inverse_pivots: tuple[Scalar, ...]


def factors_of(matrix: Float[Array, "q q"]) -> Factors:
    """The factors of a matrix; not finite if a pivot is zero."""
    lower, upper, inverses = [], [], []
    for _ in range(matrix.shape[0]):
        row, inverse = matrix[0, 1:], 1 / matrix[0, 0]
        column = matrix[1:, 0] * inverse
        matrix = matrix[1:, 1:] - column[:, None] * row[None]
        lower.append(column)
        upper.append(row)
        inverses.append(inverse)
    return Factors(tuple(lower), tuple(upper), tuple(inverses))


@jax.jit
def solved(factors: Factors, right: Float[Array, " q"]) -> Float[Array, " q"]:
    """The x with A x = `right`."""
    known = []
    for column in factors.lower:
        known.append(right[0])
        right = right[1:] - column * right[0]
    rows = list(zip(known, factors.upper, factors.inverse_pivots, strict=True))
    value, _, inverse = rows.pop()
    x = (value * inverse)[None]
    for value, row, inverse in reversed(rows):
        x = jnp.concatenate([((value - row @ x) * inverse)[None], x])
    return x


def backward_error(
    matrix: Float[Array, "q q"], x: Float[Array, " q"], right: Float[Array, " q"]
) -> Scalar:
    """The smallest relative change of the entries of A and `right` for which x is the solution.

    max_i |A x - right|_i / (|A| |x| + |right|)_i. Source: Oettli & Prager 1964. It is NaN if an
    entry is not finite.
    """
    size = jnp.abs(matrix) @ jnp.abs(x) + jnp.abs(right)
    wrong = jnp.abs(matrix @ x - right)
    return jnp.max(jnp.where(size > 0, wrong / jnp.where(size > 0, size, 1.0), wrong))
