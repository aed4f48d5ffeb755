"""Linear equations in coordinates in which they are orthonormal and of order one."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

EPS = float(np.finfo(float).eps)


@dataclasses.dataclass(frozen=True)
class Equations:
    """rows @ rho = target, and the orthonormal equations right @ rho = (left^T target) / singular.

    In the orthonormal equations redundant or badly scaled samples do not reduce the accuracy.
    """

    rows: np.ndarray
    target: np.ndarray
    left: np.ndarray
    singular: np.ndarray
    right: np.ndarray

    @property
    def misfit(self):
        """The part of the target outside the range of the rows."""
        return self.target - self.left @ (self.left.T @ self.target)

    @property
    def reduced(self):
        """The targets of the orthonormal equations."""
        return (self.left.T @ self.target) / self.singular

    @property
    def size(self):
        """|reduced|_2, the l2 norm of the smallest solution."""
        largest = np.max(np.abs(self.reduced), initial=0.0)  # its square may over- or underflow
        return largest * np.linalg.norm(self.reduced / largest) if largest > 0 else 0.0

    @property
    def unit_target(self):
        """The targets of the orthonormal equations, of length 1."""
        return self.reduced / self.size

    def solution(self, level):
        """rho and the multipliers of the rows, from a level of the orthonormal equations."""
        multipliers = self.left @ (level.multipliers / level.level / self.singular)
        return level.point * (self.size / level.level), multipliers


def orthonormal(rows: np.ndarray, target: np.ndarray) -> Equations:
    """The equations rows @ rho = target, without singular values that may be rounding errors."""
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    kept = singular > max(rows.shape) * EPS * singular[0]
    return Equations(rows, target, left[:, kept], singular[kept], right[kept])


def of_order_one(values: ArrayLike) -> tuple[np.ndarray, int]:
    """`values` divided by a power of two, so that the largest is in [1/2, 1); and the exponent."""
    array = np.asarray(values, np.float64)
    exponent = int(np.frexp(np.max(np.abs(array), initial=0.0))[1])
    return np.ldexp(array, -exponent), exponent


def in_units(values: ArrayLike, exponent: int, dtype: Any) -> Array:
    """The inverse of `of_order_one`; ValueError if the largest is outside the range of `dtype`."""
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore", under="ignore"):
        found = np.ldexp(values, exponent).astype(dtype)
    largest = np.max(np.abs(values), initial=0.0)
    reached = np.max(np.abs(found), initial=0.0)
    if largest > 0 and not np.finfo(dtype).tiny <= reached < np.inf:
        size = round(np.log10(largest) + exponent * np.log10(2.0))
        raise ValueError(
            f"problem: coefficients, norm and multipliers of min_norm must be numbers of "
            f"{np.dtype(dtype)}, got one of about 1e{size:+d}; scale X or y."
        )
    return jnp.asarray(found)
