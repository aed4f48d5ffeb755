"""Factors of one dense matrix, reused for many right-hand sides, by direct calls of LAPACK.

SciPy's wrappers of Cholesky and LU take longer than the factorisation of a small matrix. SciPy is
installed with JAX. It is imported inside the function that needs it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


def cholesky(matrix: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """A solver for a symmetric matrix, which is overwritten; None if not positive definite."""
    lapack = _lapack()
    # The transpose of a row-major matrix is column-major, so LAPACK does not copy it.
    factor, failed = lapack.dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    return None if failed else lambda right: lapack.dpotrs(factor, right, lower=1)[0]


def lu(matrix: np.ndarray) -> Callable[..., np.ndarray] | None:
    """A solver for a square matrix, or with `trans=1` for its transpose; None if singular."""
    lapack = _lapack()
    factors, pivots, failed = lapack.dgetrf(matrix)
    if failed:
        return None
    return lambda right, trans=0: lapack.dgetrs(factors, pivots, right, trans=trans)[0]


def _lapack() -> Any:
    from scipy.linalg import lapack

    return lapack
