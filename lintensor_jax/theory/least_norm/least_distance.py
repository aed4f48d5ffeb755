"""Multipliers of small l2 problems, by nonnegative least squares.

    min |w|_2   subject to   A w >= b

is a least-distance program. Let E = [A^T; b^T], f = (0, ..., 0, 1) and u = argmin |E u - f|_2 over
u >= 0. The multipliers p of the rows are proportional to u, and w = A^T p.

Source: Lawson & Hanson 1974, chapter 23.
"""

import numpy as np

from .conic import Constraints

# With more entries the inner-point method is as fast: here each exchange of a row costs as much as
# a product with all of them.
_MOST_ENTRIES = 10_000


def least_distance_multipliers(given: Constraints) -> np.ndarray | None:
    """Multipliers (n,) of the l2 optimum, of any scale; None if they were not computed.

    The caller must measure them: for tiny margins, and for data that are not separable, u depends
    on rounding.
    """
    if given.equality or given.free.size or given.rows.size > _MOST_ENTRIES:
        return None
    # SciPy is installed with JAX. Its compiled function takes a twentieth of the time of
    # `multipliers.nonnegative_least_squares`, which is for columns that nearly cancel.
    from scipy.optimize import nnls

    size = given.rows.shape[1]
    columns = np.empty((size + 1, len(given.rows)))
    columns[:-1], columns[-1] = given.rows.T, given.targets
    right = np.zeros(size + 1)
    right[-1] = 1.0
    try:
        return nnls(columns, right)[0]
    except RuntimeError:  # too many exchanges of rows
        return None
