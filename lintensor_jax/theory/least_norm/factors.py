"""Factors of one dense matrix, with which many right-hand sides are solved: LAPACK as it is.

SciPy comes with JAX; it is imported where it is used. Its wrappers of Cholesky and LU take longer
than the factorisation of a small matrix.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def cholesky(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """The solver of a symmetric matrix, which is overwritten; None if it is not positive."""
    lapack = _lapack()
    # The transpose of rows in order is a matrix of columns in order, which LAPACK takes uncopied.
    factor, failed = lapack.dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    return None if failed else lambda right: lapack.dpotrs(factor, right, lower=1)[0]


def lu(matrix: np.ndarray) -> Callable[..., np.ndarray] | None:
    """The solver of a square matrix, or of its transpose, `trans=1`; None if it is singular."""
    lapack = _lapack()
    factors, pivots, failed = lapack.dgetrf(matrix)
    if failed:
        return None
    return lambda right, trans=0: lapack.dgetrs(factors, pivots, right, trans=trans)[0]


def _lapack() -> Any:
    from scipy.linalg import lapack

    return lapack
