"""Least norms of dense data by a primal-dual inner-point method: l1, l2 and l-infinity.

    min |w|   subject to   A w + F c >= b  (or = b)

F has few columns, and the norm does not count their coefficients c. One step needs one Cholesky
factorisation of an n x n or D x D matrix, whichever is cheaper. A general conic solver factorises
the larger sparse matrix of all constraints and epigraphs. On data that are not separable the method
does not converge; then it yields no iterate.

Source: Mehrotra 1992; Nocedal & Wright 2006, chapters 14 and 16.6.
"""

import dataclasses
import enum
from collections.abc import Iterator

import numpy as np

from .conic import Constraints
from .factors import cholesky

_MOST_STEPS = 60
# An iterate is yielded when its residuals and its complementarity, relative to the size of their
# terms, are below one of these. At the first it is mostly known which rows are tight. An error
# below the last does not help the caller.
_YIELD_ERRORS = (1e-6, 1e-8, 1e-11)
# After so many steps without progress rounding dominates, and the method stops.
_PATIENCE = 8
_TO_BOUNDARY = 0.9995
# Of w in the bounds e - w and e + w.
_SIGNS = np.array([[-1.0], [1.0]])


class Measure(enum.Enum):
    """The norm to minimise: sum of moduli, largest modulus, or half the squared l2 norm."""

    SUM = "sum"
    LARGEST = "largest"
    EUCLIDEAN = "euclidean"


@dataclasses.dataclass(frozen=True)
class InnerPoint:
    """The last iterate: w (D,), c (k,), slack (n,) and multipliers p (n,) of the rows.

    `room` (2, D): the slacks e - w and e + w of the bounds |w| <= e. `forces` (2, D): their
    multipliers, so that A^T p = forces[0] - forces[1]. Both are empty for the l2 norm.
    """

    point: np.ndarray
    free: np.ndarray
    slack: np.ndarray
    multipliers: np.ndarray
    room: np.ndarray
    forces: np.ndarray


def inner_points(given: Constraints, measure: Measure) -> Iterator[InnerPoint]:
    """Iterates of increasing accuracy, relative errors 1e-6 to 1e-11; fewer after a breakdown."""
    with np.errstate(all="ignore"):  # an overflow counts as a step without progress
        yield from _Iteration(given, measure).run()


class _Iteration:
    """The data of one problem, and its current point."""

    def __init__(self, given: Constraints, measure: Measure):
        self.A, self.F, self.b = given.rows, given.free, given.targets
        self.equality, self.measure, self.reached = given.equality, measure, given.reached
        n, size = self.A.shape
        self.height_of_b = np.abs(self.b).max()
        self.bounded = measure is not Measure.EUCLIDEAN
        # Flops of the matrix of a step, and of its Cholesky factors.
        by_rows = n**3 / 3 + (n**2 * size if self.bounded else 0)
        self.by_rows = self.equality or by_rows <= size**3 / 3 + size**2 * n
        self.gram = self.A @ self.A.T if self.by_rows and not self.bounded else None
        self._start()

    def _start(self):
        """Start along A^T b, scaled to mean margin 1 relative to the targets.

        Slacks and multipliers get the corresponding size.
        """
        A, b = self.A, self.b
        w = A.T @ b
        dual = {
            Measure.SUM: np.max(np.abs(w), initial=0.0),
            Measure.LARGEST: np.sum(np.abs(w)),
            Measure.EUCLIDEAN: float(w @ w) / max(float(b @ b), np.finfo(float).tiny),
        }[self.measure]
        scale = float(b @ b) / max(float(w @ w), np.finfo(float).tiny)
        self.w, self.c = scale * w, np.zeros(self.F.shape[1])
        height = np.max(np.abs(self.w), initial=0.0)
        self.p = 0.5 * b / dual if dual > 0 else b.copy()
        self.s = np.zeros(0)
        if not self.equality:
            reached = A @ self.w - b
            self.s = np.maximum(reached, 0.0) + np.max(b)
            self.p = np.maximum(self.p, 1e-3 * np.max(self.p))
        size = len(self.w)
        if self.measure is Measure.SUM:
            self.e = 2 * np.abs(self.w) + np.mean(np.abs(self.w))
            self.forces = 0.5 + 0.5 * np.array([[1], [-1]]) * (A.T @ self.p)
        elif self.measure is Measure.LARGEST:
            self.e = np.full(1, 2 * height)
            self.forces = np.full((2, size), 0.5 / size)
        else:
            self.e, self.forces = np.zeros(0), np.zeros((2, 0))
        self.room = self._bounds(self.w, self.e)

    def _bounds(self, w, e):
        return e + _SIGNS * w if self.bounded else np.zeros((2, 0))

    def run(self):
        """Step until no progress is made; yield an iterate below each error of `_YIELD_ERRORS`."""
        best, stalled, wanted = np.inf, 0, list(_YIELD_ERRORS)
        for _ in range(_MOST_STEPS):
            defects = self._defects()
            error = self._error(defects)
            stalled = 0 if error < 0.9 * best else stalled + 1
            best = min(best, error)
            if error <= wanted[0]:
                yield self._here()
                wanted = [level for level in wanted if level < error]
            if not wanted or stalled > _PATIENCE or not self._step(defects):
                return

    def _here(self):
        slack = self.s if not self.equality else np.zeros(len(self.b))
        return InnerPoint(self.w, self.c, slack, self.p, self.room, self.forces)

    def _defects(self):
        pull = self.A.T @ self.p
        if self.bounded:
            above, below = self.forces
            stationary = pull - above + below
            both = above + below
            total = both - 1 if self.measure is Measure.SUM else both.sum(keepdims=True) - 1
        else:
            stationary, total = pull - self.w, np.zeros(0)
        short = self.reached(self.w, self.c) - self.b
        short = short if self.equality else short - self.s
        bounds = self._bounds(self.w, self.e) - self.room
        return stationary, total, short, self.F.T @ self.p, bounds

    def _error(self, defects):
        """The largest defect relative to its terms, or the complementarity relative to the norm."""
        stationary, total, short, free, _ = defects
        value = float(self.b @ self.p)
        terms = np.abs(self.w).max() if not self.bounded else 1.0
        gap = self._complementarity(self.s, self.p, self.room, self.forces)
        return max(
            np.abs(stationary).max() / terms,
            np.abs(total).max(initial=0.0),
            np.abs(short).max() / self.height_of_b,
            np.abs(free).max() / max(np.abs(self.p).max(), 1e-300) if free.size else 0.0,
            float(gap) / max(value, 1e-300),
        )

    def _complementarity(self, s, p, room, forces):
        """The sum of all products of slacks and multipliers."""
        of_bounds = np.vdot(room, forces)
        return of_bounds if self.equality else of_bounds + s @ p

    def _step(self, defects):
        """A predictor and a corrector with the same factors; False if these do not exist."""
        if not self._factorise():
            return False
        products = self.s * self.p if not self.equality else np.zeros(0), self.room * self.forces
        number = products[0].size + products[1].size
        mean = self._complementarity(self.s, self.p, self.room, self.forces) / max(number, 1)
        moves = self._direction(defects, -products[0], -products[1])
        if moves is None:
            return False
        _, _, dp, ds, _, droom, dforces = moves
        primal, dual = self._lengths(moves, 1.0)
        s, p = self.s + primal * ds, self.p + dual * dp
        room, forces = self.room + primal * droom, self.forces + dual * dforces
        after = self._complementarity(s, p, room, forces) / max(number, 1)
        centre = min(max(after / mean, 0.0), 1.0) ** 3 * mean if mean > 0 else 0.0
        rows = centre - products[0] - (0.0 if self.equality else ds * dp)
        moves = self._direction(defects, rows, centre - products[1] - droom * dforces)
        if moves is None:
            return False
        primal, dual = self._lengths(moves, _TO_BOUNDARY)
        dw, dc, dp, ds, de, droom, dforces = moves
        self.w, self.c, self.e = self.w + primal * dw, self.c + primal * dc, self.e + primal * de
        self.s, self.room = self.s + primal * ds, self.room + primal * droom
        self.p, self.forces = self.p + dual * dp, self.forces + dual * dforces
        return True

    def _lengths(self, moves, share):
        _, _, dp, ds, _, droom, dforces = moves
        primal = min(_reach(self.s, ds), _reach(self.room, droom))
        dual = _reach(self.forces, dforces)
        if not self.equality:
            dual = min(dual, _reach(self.p, dp))
        primal, dual = min(1.0, share * primal), min(1.0, share * dual)
        # For the quadratic norm w = A^T p couples primal and dual: both take the shorter step.
        return (primal, dual) if self.bounded else (min(primal, dual),) * 2

    def _factorise(self):
        if self.bounded:
            self.stiff = self.forces / self.room
            above, below = self.stiff
            self.sum, self.difference = above + below, above - below
            self.harmonic = 4 * above * below / self.sum
        if self.measure is Measure.SUM:
            self.diagonal = self.harmonic
        elif self.measure is Measure.LARGEST:
            self.diagonal = self.sum
            self.height = self.harmonic.sum()
            self.tilt = self.difference / self.sum
            self.total = self.sum.sum()
        else:
            self.diagonal = np.ones(self.A.shape[1])
        if self.by_rows:
            matrix = self._matrix_by_rows()
        else:
            self.weights = self.p / self.s
            scaled = self.A * np.sqrt(self.weights)[:, None]
            matrix = scaled.T @ scaled
            matrix.flat[:: len(matrix) + 1] += self.diagonal
            if self.measure is Measure.LARGEST:
                matrix -= self.difference[:, None] * (self.difference / self.total)
        solve = cholesky(matrix)
        if solve is None:
            return False
        self.solve = solve
        return self._factorise_free()

    def _matrix_by_rows(self):
        if self.gram is not None:
            matrix = self.gram.copy()
        else:
            scaled = self.A / np.sqrt(self.diagonal)
            matrix = scaled @ scaled.T
        if self.measure is Measure.LARGEST:
            column = self.A @ self.tilt
            matrix += np.outer(column, column / self.height)
        if not self.equality:
            matrix.flat[:: len(matrix) + 1] += self.s / self.p
        return matrix

    def _factorise_free(self):
        """The Schur complement of the free columns."""
        if not self.c.size:
            return True
        columns = self.F if self.by_rows else self.A.T @ (self.weights[:, None] * self.F)
        self.columns, self.solved = columns, self.solve(columns)
        schur = columns.T @ self.solved
        if not self.by_rows:
            schur = self.F.T @ (self.weights[:, None] * self.F) - schur
        self.schur = schur
        return bool(np.isfinite(schur).all())

    def _inverse(self, f):
        """The inverse of the matrix of w, times f; the bound e of l-infinity is eliminated."""
        found = f / self.diagonal
        if self.measure is Measure.LARGEST:
            found = found + self.tilt * (self.tilt @ f / self.height)
        return found

    def _direction(self, defects, by_slack, by_room):
        """The Newton step for given right-hand sides of the complementarity."""
        stationary, total, short, free, bounds = defects
        f = stationary
        if self.bounded:
            above, below = (by_room - self.forces * bounds) / self.room
            pushed = above + below
            if self.measure is Measure.SUM:
                f = f - above + below + self.difference / self.sum * (pushed + total)
            else:
                lift = pushed.sum() + total
                f = f - above + below + self.difference * (lift / self.total)
        r = -short if self.equality else -short + by_slack / self.p
        try:
            dw, dc, dp = (
                self._solve_rows(f, r, free) if self.by_rows else self._solve_columns(f, r, free)
            )
        except np.linalg.LinAlgError:
            return None
        ds = np.zeros(0) if self.equality else (by_slack - self.s * dp) / self.p
        if not self.bounded:
            return dw, dc, dp, ds, np.zeros(0), np.zeros((2, 0)), np.zeros((2, 0))
        if self.measure is Measure.SUM:
            de = (pushed + total + self.difference * dw) / self.sum
        else:
            de = (lift + self.difference @ dw) / self.total
        droom = self._bounds(dw, de) + bounds
        dforces = (by_room - self.forces * droom) / self.room
        return dw, dc, dp, ds, de, droom, dforces

    def _solve_rows(self, f, r, free):
        """D dw - A^T dp = f,  A dw + F dc + (s/p) dp = r,  F^T dp = -free."""
        dp = self.solve(r - self.A @ self._inverse(f))
        dc = np.zeros(0)
        if self.c.size:
            dc = np.linalg.solve(self.schur, self.F.T @ dp + free)
            dp = dp - self.solved @ dc
        return self._inverse(f + self.A.T @ dp), dc, dp

    def _solve_columns(self, f, r, free):
        """The same with dp = (p/s) (r - A dw - F dc) eliminated."""
        weighted = self.weights * r
        dw, dc = self.solve(f + self.A.T @ weighted), np.zeros(0)
        if self.c.size:
            dc = np.linalg.solve(self.schur, self.F.T @ weighted + free - self.columns.T @ dw)
            dw = dw - self.solved @ dc
        return dw, dc, weighted - self.weights * self.reached(dw, dc)


def _reach(value, change):
    """The largest multiple of the change that keeps the value positive."""
    if not value.size:
        return np.inf
    fastest = -(change / value).min()
    return 1 / fastest if fastest > 0 else np.inf
