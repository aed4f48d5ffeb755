"""From an inner point to the optimum, to rounding: solve the equations of the tight constraints.

For l1 and l-infinity the optimum is a vertex, where as many rows are tight as there are unknowns.
For l2 the multipliers of the tight rows solve a system with the Gram matrix of these rows.
"""

from collections.abc import Iterator

import numpy as np

from .conic import Constraints
from .factors import cholesky, lu
from .interior_point import InnerPoint, Measure, inner_points
from .newton import Level

_EPS = float(np.finfo(float).eps)
_REPAIRS = 12
# Signs and margins may be violated by this rounding while the tight rows are determined.
_SLACK = 1e-11


def dense_optima(given: Constraints, measure: Measure) -> Iterator[Level]:
    """Guesses of the optimum, scaled to gauge 1, in order of accuracy; none without convergence.

    A guess is the optimum to rounding if its tight rows are those of the optimum. If they do not
    determine a point, the guess is the iterate of the inner-point method.
    """
    solve_tight = _euclidean_vertex if measure is Measure.EUCLIDEAN else _vertex
    for inner in inner_points(given, measure):
        with np.errstate(all="ignore"):  # a wrong guess may be singular
            found = solve_tight(given, inner, measure)
            w, c, p = found or (inner.point, inner.free, inner.multipliers)
            level = scaled_level(given, measure, w, c, p)
        if level is not None:
            yield level


def scaled_level(given: Constraints, measure: Measure, w, c, p) -> Level | None:
    """w, c and multipliers p of any scale as a `Level`; None if one of them is zero."""
    if measure is Measure.EUCLIDEAN:
        size = np.sqrt(w @ w)
    else:
        size = np.abs(w).sum() if measure is Measure.SUM else np.abs(w).max()
    p = p if given.equality else np.maximum(p, 0.0)
    total = given.targets @ p
    if not (size > 0 and total > 0):
        return None
    w, c = w / size, c / size
    reached, targets = given.reached(w, c), given.targets
    level = targets @ reached / (targets @ targets) if given.equality else (reached / targets).min()
    if measure is Measure.SUM and not given.equality:
        # Rows have at most length 1: a smaller entry changes no margin, it is a zero's rounding.
        w[np.abs(w) <= _EPS * level * targets.min()] = 0.0
    return Level(w, c, float(level), p / total)


def _tight(given, inner):
    """Rows whose multiplier is larger than their slack, both relative to the largest."""
    if given.equality:
        return np.ones(len(given.targets), bool)
    height = max(inner.slack.max(), given.targets.max())
    return inner.multipliers / inner.multipliers.max() > inner.slack / height


def _vertex(given: Constraints, inner: InnerPoint, measure: Measure):
    """w, c, p of the vertex next to the inner point; None if its equations are not square."""
    tight = _tight(given, inner)
    height = np.max(np.abs(inner.point))
    if measure is Measure.SUM:
        # A coordinate counts as nonzero if |A^T p| is closer to 1 there than the coordinate to 0.
        on = np.abs(inner.point) > height * np.min(2 * inner.forces, axis=0)
        columns, target = given.rows[:, on], np.sign(inner.point[on])
    else:
        pull = inner.forces[0] - inner.forces[1]
        on = np.abs(pull) / np.max(np.abs(pull)) < np.min(inner.room, axis=0) / height
        signs = np.where(on, 0.0, np.sign(inner.point))
        columns = np.column_stack([given.rows[:, on], given.rows @ signs])
        target = np.append(np.zeros(on.sum()), 1.0)
    matrix = np.hstack([columns, given.free])[tight]
    if matrix.shape[0] != matrix.shape[1] or not matrix.size:
        return None
    solved = _solve_both(matrix, given.targets[tight], np.append(target, np.zeros(inner.free.size)))
    if solved is None:
        return None
    x, weights = solved
    w, p = np.zeros_like(inner.point), np.zeros(len(tight))
    w[on], p[tight] = x[: on.sum()], weights
    if measure is Measure.LARGEST:
        w += x[on.sum()] * signs
    return w, x[columns.shape[1] :], p


def _solve_both(matrix, right, right_of_transposed):
    """The solutions with the matrix and with its transpose, each refined once."""
    solve = lu(matrix)
    if solve is None:
        return None
    x = solve(right)
    x = x + solve(right - matrix @ x)
    y = solve(right_of_transposed, trans=1)
    y = y + solve(right_of_transposed - matrix.T @ y, trans=1)
    return (x, y) if np.isfinite(x).all() and np.isfinite(y).all() else None


def _euclidean_vertex(given: Constraints, inner: InnerPoint, _):
    return euclidean_optimum(given, _tight(given, inner))


def euclidean_optimum(given: Constraints, tight: np.ndarray):
    """w, c, p of the l2 optimum by the Gram matrix of the tight rows, from a guess of these rows.

    Rows of the wrong sign are removed and violated rows are added until none is left.
    """
    for _ in range(_REPAIRS):
        found = _of_gram(given, tight) if tight.any() else None
        if found is None:
            return None
        w, c, p = found
        reached = given.reached(w, c)
        if given.equality:
            return w, c, p
        wrong = tight & (p < -_SLACK * np.abs(p).max())
        missing = ~tight & (reached < given.targets - _SLACK * given.targets.max())
        if not (wrong.any() or missing.any()):
            return w, c, p
        tight = (tight & ~wrong) | missing
    return None


def _of_gram(given: Constraints, tight):
    """A_T A_T^T p + F c = b_T with F^T p = 0; refined by residuals in the rows, not in the Gram."""
    rows, free, targets = given.rows[tight], given.free[tight], given.targets[tight]
    number, k = free.shape
    gram = rows @ rows.T
    solve = lu(np.block([[gram, free], [free.T, np.zeros((k, k))]])) if k else cholesky(gram)
    if solve is None:
        return None
    x = solve(np.append(targets, np.zeros(k)) if k else targets)
    for _ in range(2):
        left = targets - rows @ (rows.T @ x[:number])
        if k:
            left = np.append(left - free @ x[number:], -(free.T @ x[:number]))
        x = x + solve(left)
    if not np.isfinite(x).all():
        return None
    p = np.zeros(len(tight))
    p[tight] = x[:number]
    return rows.T @ x[:number], x[number:], p
