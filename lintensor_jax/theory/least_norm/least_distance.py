"""Small largest margins in l2, by nonnegative least squares.

    min |w|_2   subject to   A w >= b

is a least-distance program. Let E = [A^T; b^T], f = (0, ..., 0, 1) and u = argmin |E u - f|_2 over
u >= 0. The multipliers p of the rows are proportional to u, and w = A^T p.

Source: Lawson & Hanson 1974, chapter 23.
"""

from collections.abc import Iterator

import numpy as np

from .conic import Constraints
from .interior_point import Measure
from .newton import Level
from .vertex import euclidean_optimum, scaled_level

# With more entries the inner-point method is as fast: here each exchange of a row costs as much as
# a product with all of them.
_MOST_ENTRIES = 10_000
# A row is loose if its margin is larger than the smallest one by more than this share.
_TIGHT = 1e-8


def least_distance(given: Constraints) -> Iterator[Level]:
    """The l2 optimum by u, then by the equations of the rows with u > 0, which are tight.

    Nothing for large problems, for those with equalities or free columns, and if u is zero on a
    tight row: then the multipliers may not be unique, and the inner-point method has those in the
    middle of all. The caller must measure the optima: for tiny margins, and for data that are not
    separable, u depends on rounding. Mostly the first one is accurate.
    """
    if given.equality or given.free.size or given.rows.size > _MOST_ENTRIES:
        return
    # SciPy is installed with JAX. Its compiled function takes a twentieth of the time of
    # `multipliers.nonnegative_least_squares`, which is for columns that nearly cancel.
    from scipy.optimize import nnls

    rows, size = given.rows, given.rows.shape[1]
    columns = np.empty((size + 1, len(rows)))
    columns[:-1], columns[-1] = rows.T, given.targets
    right = np.zeros(size + 1)
    right[-1] = 1.0
    try:
        u = nnls(columns, right)[0]
    except RuntimeError:  # too many exchanges of rows
        return
    with np.errstate(all="ignore"):  # targets may be tiny, and data not separable
        level = scaled_level(given, Measure.EUCLIDEAN, rows.T @ u, np.zeros(0), u)
        if level is None:
            return
        loose = rows @ level.point > (1 + _TIGHT) * level.level * given.targets
    if not (loose | (u > 0)).all():
        return
    yield level
    with np.errstate(all="ignore"):  # a wrong guess of the tight rows may be singular
        found = euclidean_optimum(given, u > 0)
        level = found and scaled_level(given, Measure.EUCLIDEAN, *found)
    if level is not None:
        yield level
