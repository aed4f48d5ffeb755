"""A small wrapper over Clarabel: maximise t subject to A w + F c >= t b (or = t b), |w| <= 1.

This bounded form is used instead of minimising |w| subject to A w >= b, for two reasons. All its
numbers are of order one however small the margin t is. And it has an optimum (t = 0) on
non-separable data as well, whose multipliers are the certificate. The norm does not count c.
"""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Constraints:
    """rows @ w + free @ c >= level * targets, or equal to them.

    Shapes: rows (n, D), targets (n,), free (n, k) with independent columns, k = 0 without any.
    """

    rows: np.ndarray
    targets: np.ndarray
    free: np.ndarray
    equality: bool

    @staticmethod
    def of(rows: np.ndarray, targets: np.ndarray, equality: bool, free=None) -> "Constraints":
        """Constraints from their parts; `free` is None if the norm counts every coefficient."""
        return Constraints(
            rows, targets, np.zeros((len(rows), 0)) if free is None else free, equality
        )

    def on(self, columns: np.ndarray) -> "Constraints":
        """The constraints on the coordinates of w in the mask `columns`, the others being zero."""
        return dataclasses.replace(self, rows=self.rows[:, columns])

    def tight(self, kept: np.ndarray) -> "Constraints":
        """The constraints of the rows in the mask `kept`."""
        return Constraints(self.rows[kept], self.targets[kept], self.free[kept], self.equality)

    def reached(self, w: np.ndarray, c: np.ndarray) -> np.ndarray:
        """The left-hand sides, shape (n,)."""
        return self.rows @ w + self.free @ c if c.size else self.rows @ w


@dataclasses.dataclass(frozen=True)
class ConicSolution:
    """A point w with |w| <= 1, free coefficients c, the level t, multipliers p with b^T p = 1."""

    point: np.ndarray
    free: np.ndarray
    level: float
    multipliers: np.ndarray
    status: str


def largest_level_of_groups(given: Constraints, labels: np.ndarray) -> ConicSolution:
    """max t subject to sum_g |w_g|_2 <= 1; `labels` (D,) is the group of each coordinate."""
    import scipy.sparse as sp

    size = given.rows.shape[1]
    groups = labels.max() + 1
    members = np.bincount(labels, minlength=groups)
    singles = np.flatnonzero(members[labels] == 1)
    # Variables: w (size), the epigraph s of the groups' norms (groups), then c and t.
    picks = sp.csr_matrix((np.ones(size), (np.arange(size), labels)), shape=(size, groups))
    identity = sp.csr_matrix(np.eye(size)[singles])
    budget = sp.hstack([sp.csr_matrix((1, size)), np.ones((1, groups))])
    above = sp.hstack([identity, -picks[singles]])
    below = sp.hstack([-identity, -picks[singles]])
    blocks = [budget, above, below]
    cones = [("NonnegativeConeT", 1 + 2 * singles.size)]
    for group in np.flatnonzero(members > 1):
        inside = np.flatnonzero(labels == group)
        block = sp.lil_matrix((inside.size + 1, size + groups))
        block[0, size + group] = -1.0
        block[np.arange(1, inside.size + 1), inside] = -1.0
        blocks.append(block)
        cones.append(("SecondOrderConeT", inside.size + 1))
    ball: Any = sp.vstack(blocks)
    data = sp.hstack([given.rows, sp.csr_matrix((len(given.rows), groups))])
    return _largest_level(given, data, ball, _unit(ball.shape[0], 0), cones, slice(0, size), 1.0)


def largest_level_of_nuclear(given: Constraints, shape: tuple[int, int]) -> ConicSolution:
    """max t subject to: the nuclear norm of W is at most 1; w is W row by row.

    |W|_* <= 1 iff [[P, W], [W^T, R]] is positive semidefinite with trace <= 2 for some P, R.
    """
    import scipy.sparse as sp

    order = sum(shape)
    corner, row, column = _corner(shape)
    packed = column.size
    data = sp.lil_matrix((len(given.rows), packed))
    data[:, corner] = given.rows / np.sqrt(2)
    trace = sp.csr_matrix((row == column).astype(float)[None])
    ball = sp.vstack([trace, -sp.eye(packed)])
    cones = [("NonnegativeConeT", 1), ("PSDTriangleConeT", order)]
    right = 2 * _unit(1 + packed, 0)
    return _largest_level(given, data, ball, right, cones, corner, 1 / np.sqrt(2))


def largest_level_of_spectral(given: Constraints, shape: tuple[int, int]) -> ConicSolution:
    """max t subject to: the largest singular value of W is at most 1; w is W row by row.

    |W| <= 1 iff [[I, W], [W^T, I]] is positive semidefinite.
    """
    import scipy.sparse as sp

    corner, row, column = _corner(shape)
    size = shape[0] * shape[1]
    ball = sp.csr_matrix(
        (np.full(size, -np.sqrt(2)), (corner, np.arange(size))), shape=(column.size, size)
    )
    cones = [("PSDTriangleConeT", sum(shape))]
    right = (row == column).astype(float)
    return _largest_level(given, given.rows, ball, right, cones, slice(0, size), 1.0)


def largest_level_of_moduli(given: Constraints) -> ConicSolution:
    """max t subject to max_j |w_j| <= 1."""
    import scipy.sparse as sp

    size = given.rows.shape[1]
    ball = sp.vstack([sp.eye(size), -sp.eye(size)])
    cones = [("NonnegativeConeT", 2 * size)]
    return _largest_level(given, given.rows, ball, np.ones(2 * size), cones, slice(0, size), 1.0)


def largest_level_of_powers(given: Constraints, power: float) -> ConicSolution:
    """max t subject to sum_j |w_j|^power <= 1, power > 1: s_j >= |w_j|^power, sum_j s_j <= 1."""
    import scipy.sparse as sp

    size = given.rows.shape[1]
    budget = sp.hstack([sp.csr_matrix((1, size)), np.ones((1, size))])
    # For each j the cone of (s_j, 1, w_j): s_j^(1/power) 1^(1 - 1/power) >= |w_j|.
    block = sp.lil_matrix((3 * size, 2 * size))
    block[3 * np.arange(size), size + np.arange(size)] = -1.0
    block[3 * np.arange(size) + 2, np.arange(size)] = -1.0
    right = np.concatenate([[1.0], np.tile([0.0, 1.0, 0.0], size)])
    cones = [("NonnegativeConeT", 1)] + [("PowerConeT", 1 / power)] * size
    data = sp.hstack([given.rows, sp.csr_matrix((len(given.rows), size))])
    ball = sp.vstack([budget, block])
    return _largest_level(given, data, ball, right, cones, slice(0, size), 1.0)


def _corner(shape):
    """The places of W in the packed [[P, W], [W^T, R]], and the rows and columns of the places.

    Clarabel's PSDTriangleConeT: the upper triangle column by column, off-diagonals times sqrt 2.
    """
    order = sum(shape)
    column, row = np.tril_indices(order)
    place = np.zeros((order, order), int)
    place[row, column] = np.arange(column.size)
    return place[: shape[0], shape[0] :].ravel(), row, column


def _largest_level(given, data, ball, right, cones, where, factor) -> ConicSolution:
    """max t subject to data @ v + free @ c >= t targets, right - ball @ v in the cones.

    w = factor * v[where].
    """
    import scipy.sparse as sp

    count, free = given.free.shape
    own = ball.shape[1]
    first = sp.hstack([-sp.csr_matrix(data), -sp.csr_matrix(given.free), given.targets[:, None]])
    rest = sp.hstack([sp.csr_matrix(ball), sp.csr_matrix((ball.shape[0], free + 1))])
    matrix = sp.vstack([first, rest], format="csc")
    kind = "ZeroConeT" if given.equality else "NonnegativeConeT"
    all_cones: list[tuple[str, Any]] = [(kind, count), *cones]
    x, z, status = _solve(matrix, np.concatenate([np.zeros(count), right]), all_cones)
    return ConicSolution(
        factor * x[:own][where], x[own : own + free], float(x[-1]), z[:count], status
    )


def _unit(size, index):
    vector = np.zeros(size)
    vector[index] = 1.0
    return vector


def _solve(matrix, right, cones):
    """Maximise the last variable subject to right - matrix @ x in the product of the cones."""
    import clarabel
    import scipy.sparse as sp

    size = matrix.shape[1]
    cost = -_unit(size, size - 1)
    cone_objects = [getattr(clarabel, name)(argument) for name, argument in cones]
    settings = clarabel.DefaultSettings()  # pyright: ignore[reportAttributeAccessIssue]
    settings.verbose = False
    settings.max_threads = 1  # with more threads rounding depends on the machine's load
    # A zero optimum (non-separable data) must not be mistaken for an infeasible program.
    settings.tol_infeas_abs = settings.tol_infeas_rel = 1e-16
    # The tolerance of "AlmostSolved"; its default is 1e-4.
    settings.reduced_tol_gap_abs = settings.reduced_tol_gap_rel = 1e-9
    settings.reduced_tol_feas = 1e-9
    last_resort, status = None, "none"
    # Tolerances near rounding are tried first. If the solver cannot reach them, it mostly returns
    # its best point, which the caller polishes and measures. Sometimes it breaks down instead,
    # mostly because it rescales tiny columns.
    for tolerance, equilibrate in ((1e-13, True), (1e-13, False), (1e-9, True), (1e-9, False)):
        settings.equilibrate_enable = equilibrate
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
        solver = clarabel.DefaultSolver(  # pyright: ignore[reportAttributeAccessIssue]
            sp.csc_matrix((size, size)), cost, matrix, right, cone_objects, settings
        )
        solution = solver.solve()
        x, z, status = np.asarray(solution.x), np.asarray(solution.z), str(solution.status)
        if not (np.isfinite(x).all() and np.isfinite(z).all()):
            continue
        if status in ("Solved", "AlmostSolved"):
            return x, z, status
        if status in ("InsufficientProgress", "MaxIterations") and last_resort is None:
            last_resort = x, z, status
    if last_resort is not None:
        return last_resort
    found = _by_highs(matrix, cost, right, cones)
    if found is not None:
        return found
    raise ArithmeticError(
        f"Clarabel found no solution (status {status}); the data's scales differ too widely: "
        "rescale the columns of the data."
    )


def _by_highs(matrix, cost, right, cones):
    """`_solve` for a linear program by the simplex method of HiGHS; None if that fails too.

    Inner-point methods can break down at an optimum with many tight constraints; the simplex method
    ends at such points. HiGHS is part of SciPy, which is installed with JAX.
    """
    from scipy.optimize import linprog

    if not all(name in ("ZeroConeT", "NonnegativeConeT") for name, _ in cones):
        return None
    equal = np.concatenate([np.full(size, name == "ZeroConeT") for name, size in cones])
    rows = matrix.tocsr()
    found = linprog(
        cost,
        A_ub=rows[~equal],
        b_ub=right[~equal],
        A_eq=rows[equal] if equal.any() else None,
        b_eq=right[equal] if equal.any() else None,
        bounds=(None, None),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.status != 0:
        return None
    multipliers = np.zeros(right.size)
    multipliers[~equal] = -found.ineqlin.marginals
    multipliers[equal] = -found.eqlin.marginals
    return np.asarray(found.x), multipliers, "Solved"
