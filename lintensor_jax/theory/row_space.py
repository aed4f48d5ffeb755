"""Dependent, too many, or contradictory data: the part of them that a network's flow depends on.

The gradient of the squared loss in beta is X^T (X beta - y). So its flow is the flow on
r = rank X independent rows: with the singular value decomposition X = U S V^T the loss is
1/2 |S V^T beta - U^T y|^2 plus a constant, the least loss. A theorem that is stated for data of
full row rank applies to the rows S V^T and the targets U^T y.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .assumptions import Assumption

_CAN_BE_SOLVED = "X beta = y can be solved: the least |X beta - y| over |y|"


class RowSpace(NamedTuple):
    """Independent rows and their targets, for the flow of the same loss.

    - `rows` (r, q), `targets` (r,) or (r, m): X and y themselves if X has full row rank.
    - `misfit`: the least |X beta - y| over |y|.
    - `shape`: that of X, (n, q).
    - `basis` (r, q): an orthonormal basis of the rows; `sizes` (r,): the singular values of X.
    """

    rows: Float[Array, "r q"]
    targets: Float[Array, "r ..."]
    misfit: float
    shape: tuple[int, int]
    basis: np.ndarray
    sizes: np.ndarray

    @property
    def rank(self) -> int:
        """The rank r of X."""
        return len(self.sizes)

    @property
    def is_solvable(self) -> bool:
        """Whether some beta has X beta = y, to the rounding of the data."""
        return self.misfit <= float(np.finfo(self.basis.dtype).eps) ** 0.5

    @property
    def goal(self) -> str:
        """The goal of a flow: "the loss tends to 0", or "... to its least value"."""
        return "the loss tends to " + ("0" if self.is_solvable else "its least value")

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of a prediction about such data; none if X has full row rank."""
        n = self.shape[0]
        if self.rank == n:
            return ()
        words = f"X has {n} rows and rank {self.rank}: the flow depends on {self.rank} "
        words += "combinations of the rows only, and the theorem is applied to these."
        if self.is_solvable:
            return (words,)
        return (
            words,
            f"X beta = y has no solution (misfit {self.misfit:.3g} |y|): the flow ends at the "
            "least squares, and a loss bound is a bound on the loss minus its least value.",
        )

    def assumptions(self, squared_loss: bool, source: str) -> tuple[Assumption, ...]:
        """What a theorem assumes of the data: a zero loss exists, or the loss is the squared one.

        If X beta = y has no solution, the minimum of another loss is not the least squares.
        """
        some = Assumption("X is not zero, its rank", self.rank, self.rank > 0, source)
        if self.rank == self.shape[0]:
            statement = "X has full row rank: its smallest over its largest singular value"
            ratio = float(self.sizes[-1] / self.sizes[0])
            return (some, Assumption(statement, ratio, True, source))
        if self.is_solvable or not squared_loss:
            solvable = Assumption(_CAN_BE_SOLVED, self.misfit, self.is_solvable, source)
            return (some, solvable)
        least = "the loss is the squared one (X beta = y has no solution), least misfit over |y|"
        return (some, Assumption(least, self.misfit, True, "this package"))

    def least_squares(self, most: int | None = None) -> Array:
        """X^+ y, the least-squares solution of least l2 norm, shape (q,) or (q, m).

        With `most`, it minimises |X beta - y| over the matrices of rank at most `most`.
        """
        rows, targets = np.asarray(self.rows), np.asarray(self.targets)
        flat = self.projected(targets)
        if most is not None and most < min(flat.shape):
            left, s, right = np.linalg.svd(flat, full_matrices=False)
            flat = (left[:, :most] * s[:most]) @ right[:most]
        beta = self.basis.T @ (flat / self.sizes[:, None])
        return jnp.asarray(beta.reshape(rows.shape[1:] + targets.shape[1:]))

    def projected(self, targets: np.ndarray | None = None) -> np.ndarray:
        """W^T y in the singular coordinates of X (Min et al. 2021, E at beta = 0), shape (r, m)."""
        y = np.asarray(self.targets) if targets is None else targets
        flat = y.reshape(len(y), -1)
        # rows = left diag(sizes) basis
        return (np.asarray(self.rows) @ self.basis.T / self.sizes).T @ flat


def row_space(X: ArrayLike, y: ArrayLike) -> RowSpace:
    """Independent rows of X, shape (n, q), with the targets y, shape (n,) or (n, m)."""
    rows, targets = np.asarray(X), np.asarray(y)
    left, sizes, right = np.linalg.svd(rows, full_matrices=False)
    eps = float(np.finfo(rows.dtype).eps)
    kept = sizes > max(rows.shape) * eps * sizes[0]
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    inside = np.tensordot(left.T, targets, 1)
    size = float(np.linalg.norm(targets))
    off = float(np.linalg.norm(targets - np.tensordot(left, inside, 1)))
    misfit = off / size if size else 0.0
    if len(sizes) == len(rows):
        independent, aims = jnp.asarray(X), jnp.asarray(y)
    else:
        independent, aims = jnp.asarray(sizes[:, None] * right), jnp.asarray(inside)
    return RowSpace(independent, aims, misfit, rows.shape, right, sizes)
