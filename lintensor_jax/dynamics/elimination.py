"""Linear systems without exchanges of rows, for machine code of many lanes.

The pivots are the diagonal entries. In a vector of lanes every lane would exchange other rows. The
matrices of implicit steps, shift I - J with a stable J, need no exchange as a rule. Whether one
would have been needed is measured: see `backward_error`.

Each function is a composite of JAX: a name, and the operations that it stands for. The package's
machine code has loops for these names (`batch/native/linear_algebra.py`); XLA runs the operations.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

FACTORS, SOLVED, BACKWARD_ERROR = (
    f"lintensor_jax.{name}" for name in ("factors", "solved", "backward_error")
)


def factors_of(matrix: Float[Array, "q q"]) -> Float[Array, "q q"]:
    """L and U with A = L U in one matrix: L without its diagonal of ones, U with 1 / U[k, k].

    They are not finite if a pivot is zero.
    """
    return jax.lax.composite(_factors, FACTORS)(matrix)


def solved(factors: Float[Array, "q q"], right: Float[Array, " q"]) -> Float[Array, " q"]:
    """The x with A x = `right`, from `factors_of(A)`."""
    return jax.lax.composite(_solved, SOLVED)(factors, right)


def backward_error(
    matrix: Float[Array, "q q"], x: Float[Array, " q"], right: Float[Array, " q"]
) -> Scalar:
    """The smallest relative change of the entries of A and `right` for which x is the solution.

    max_i |A x - right|_i / (|A| |x| + |right|)_i. Source: Oettli & Prager 1964. It is NaN if an
    entry is not finite.
    """
    return jax.lax.composite(_backward_error, BACKWARD_ERROR)(matrix, x, right)


def _factors(matrix):
    for k in range(matrix.shape[0]):
        inverse = 1 / matrix[k, k]
        column = matrix[k + 1 :, k] * inverse
        rest = matrix[k + 1 :, k + 1 :] - column[:, None] * matrix[k, k + 1 :][None]
        below = jnp.concatenate([matrix[k + 1 :, :k], column[:, None], rest], axis=1)
        row = matrix[k].at[k].set(inverse)
        matrix = jnp.concatenate([matrix[:k], row[None], below])
    return matrix


def _solved(factors, right):
    for k in range(right.size):
        right = right.at[k + 1 :].add(-factors[k + 1 :, k] * right[k])
    for k in reversed(range(right.size)):
        rest = jnp.sum(factors[k, k + 1 :] * right[k + 1 :])
        right = right.at[k].set((right[k] - rest) * factors[k, k])
    return right


def _backward_error(matrix, x, right):
    size = jnp.sum(jnp.abs(matrix * x[None]), axis=1) + jnp.abs(right)
    wrong = jnp.abs(jnp.sum(matrix * x[None], axis=1) - right)
    return jnp.max(jnp.where(size > 0, wrong / jnp.where(size > 0, size, 1.0), wrong))
