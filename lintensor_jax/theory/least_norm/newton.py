"""Newton's method on the optimality equations of a least-norm program, for any gauge.

A point w of gauge 1 with free coefficients c, A w + F c = t b on the tight rows, and multipliers p:

    the gauge's equations in (w, p, t);   A w + F c = t b;   F^T p = 0;   b^T p = 1.

The gauge chooses its unknowns z (the nonzero coordinates, factors of a matrix, ...). The gauge's
equations say that A^T p / t is a subgradient at w and that w has gauge 1.
"""

import dataclasses
from typing import Any

import numpy as np

from .conic import Constraints

_STEPS = 12


@dataclasses.dataclass(frozen=True)
class Level:
    """w of gauge 1, rows @ w + free @ c >= level * targets; multipliers p with targets^T p = 1."""

    point: np.ndarray
    free: np.ndarray
    level: float
    multipliers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Equations:
    """A gauge's equations at unknowns z (Z,): `defect` (E,) and its derivatives.

    `point` (D,) is w, `move` (D, Z) its derivative; `by_unknowns` (E, Z), `by_multipliers` (E, n),
    `by_level` (E,).
    """

    point: np.ndarray
    move: np.ndarray
    defect: np.ndarray
    by_unknowns: np.ndarray
    by_multipliers: np.ndarray
    by_level: np.ndarray


def newton(gauge: Any, given: Constraints, start: Level, active: np.ndarray) -> Level | None:
    """The solution next to the start if all rows of `given` are tight; None if Newton fails.

    `gauge.unknowns(start, gradient, active)` gives z and the functions of it; see `Equations`.
    The multipliers of the start are those of the rows of `given`.
    """
    gradient = given.rows.T @ start.multipliers / start.level
    z, level, equations = gauge.unknowns(start, gradient, active, given)
    p, c, t = start.multipliers, start.free * (level / start.level), level
    found = None
    for _ in range(_STEPS):
        found = equations(z, p, t)
        if found is None:
            return None
        step = _step(given, found, p, c, t)
        if step is None:
            return None
        moves = np.split(step, np.cumsum([z.size, p.size, c.size]))
        z, p, c, t = z + moves[0], p + moves[1], c + moves[2], t + moves[3][0]
        if np.max(np.abs(step)) < 1e-15:
            break
    found = equations(z, p, t)
    return None if found is None else Level(found.point, c, float(t), p)


def _step(given: Constraints, found: Equations, p, c, t):
    (count, free), size = given.free.shape, found.by_unknowns.shape[1]
    number = len(found.defect)
    defect = np.concatenate(
        [
            found.defect,
            given.reached(found.point, c) - t * given.targets,
            given.free.T @ p,
            [given.targets @ p - 1.0],
        ]
    )
    jacobian = np.zeros((number + count + free + 1, size + count + free + 1))
    at_p, at_c, at_t = slice(size, size + count), slice(size + count, -1), -1
    tight, balance = slice(number, number + count), slice(number + count, -1)
    jacobian[:number, :size] = found.by_unknowns
    jacobian[:number, at_p] = found.by_multipliers
    jacobian[:number, at_t] = found.by_level
    jacobian[tight, :size] = given.rows @ found.move
    jacobian[tight, at_c] = given.free
    jacobian[tight, at_t] = -given.targets
    jacobian[balance, at_p] = given.free.T
    jacobian[-1, at_p] = given.targets
    return _min_norm_step(jacobian, defect)


def _min_norm_step(jacobian, defect):
    """The least-squares solution of J step = -defect of minimum norm, or None."""
    if not (np.isfinite(jacobian).all() and np.isfinite(defect).all()):
        return None
    # Redundant samples make J singular. Below 1e-13 singular values count as zero; those of a
    # margin t = 1e-8 do not, because J is proportional to t.
    return np.linalg.lstsq(jacobian, -defect, rcond=1e-13)[0]
