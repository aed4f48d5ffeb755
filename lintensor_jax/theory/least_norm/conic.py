"""A small wrapper over Clarabel: maximise t subject to A w >= t b (or = t b), |w| <= 1.

This bounded form is used instead of minimising |w| subject to A w >= b because everything in it
stays of order one however small the margin t is, and because on non-separable data it has an
optimum too (t = 0), whose multipliers are the certificate.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConicSolution:
    """A point w with |w| <= 1, the level t, and the multipliers p (b^T p = 1) of A w >= t b."""

    point: np.ndarray
    level: float
    multipliers: np.ndarray
    status: str


def largest_level_of_groups(
    rows: np.ndarray, targets: np.ndarray, labels: np.ndarray, equality: bool
) -> ConicSolution:
    """max t s.t. rows @ w >= t targets (or = ), sum_g |w_g|_2 <= 1. Shapes (n, D), (n,), (D,)."""
    import scipy.sparse as sp

    count, size = rows.shape
    groups = labels.max() + 1
    members = np.bincount(labels, minlength=groups)
    singles = np.flatnonzero(members[labels] == 1)
    # Variables: w (size), the epigraph s of the groups' norms (groups), t.
    picks = sp.csr_matrix((np.ones(size), (np.arange(size), labels)), shape=(size, groups))
    data = sp.hstack([sp.csr_matrix(-rows), sp.csr_matrix((count, groups)), targets[:, None]])
    budget = sp.hstack([sp.csr_matrix((1, size)), np.ones((1, groups)), sp.csr_matrix((1, 1))])
    column = sp.csr_matrix((singles.size, 1))
    identity = sp.csr_matrix(np.eye(size)[singles])
    above = sp.hstack([identity, -picks[singles], column])
    below = sp.hstack([-identity, -picks[singles], column])
    cones = [(_equal(equality), count), ("NonnegativeConeT", 1 + 2 * singles.size)]
    blocks = [data, budget, above, below]
    for group in np.flatnonzero(members > 1):
        inside = np.flatnonzero(labels == group)
        block = sp.lil_matrix((inside.size + 1, size + groups + 1))
        block[0, size + group] = -1.0
        block[np.arange(1, inside.size + 1), inside] = -1.0
        blocks.append(block)
        cones.append(("SecondOrderConeT", inside.size + 1))
    matrix = sp.vstack(blocks, format="csc")
    right = _unit(sum(dim for _, dim in cones), count)
    x, z, status = _solve(matrix, right, cones)
    return ConicSolution(x[:size], float(x[-1]), z[:count], status)


def largest_level_of_nuclear(
    rows: np.ndarray, targets: np.ndarray, shape: tuple[int, int], equality: bool
) -> ConicSolution:
    """max t s.t. rows @ vec(W) >= t targets (or = ), nuclear norm of W <= 1; vec is row-major.

    |W|_* <= 1 iff [[P, W], [W^T, R]] is positive semidefinite with trace <= 2 for some P, R.
    """
    import scipy.sparse as sp

    order = sum(shape)
    # Clarabel's PSDTriangleConeT: the upper triangle column by column, off-diagonals times sqrt 2.
    column, row = np.tril_indices(order)
    packed = column.size
    place = np.zeros((order, order), int)
    place[row, column] = np.arange(packed)
    corner = place[: shape[0], shape[0] :].ravel()
    count = rows.shape[0]
    data = sp.lil_matrix((count, packed + 1))
    data[:, corner] = -rows / np.sqrt(2)
    data[:, -1] = targets[:, None]
    trace = sp.csr_matrix(np.append((row == column).astype(float), 0.0)[None])
    positive = sp.hstack([-sp.eye(packed), sp.csr_matrix((packed, 1))])
    matrix = sp.vstack([data, trace, positive], format="csc")
    cones = [(_equal(equality), count), ("NonnegativeConeT", 1), ("PSDTriangleConeT", order)]
    right = 2 * _unit(count + 1 + packed, count)
    x, z, status = _solve(matrix, right, cones)
    return ConicSolution(x[corner] / np.sqrt(2), float(x[-1]), z[:count], status)


def _unit(size, index):
    vector = np.zeros(size)
    vector[index] = 1.0
    return vector


def _equal(equality):
    return "ZeroConeT" if equality else "NonnegativeConeT"


def _solve(matrix, right, cones):
    """Maximise the last variable subject to right - matrix @ x in the product of the cones."""
    import clarabel
    import scipy.sparse as sp

    size = matrix.shape[1]
    cost = -_unit(size, size - 1)
    cone_objects = [getattr(clarabel, name)(int(dim)) for name, dim in cones]
    settings = clarabel.DefaultSettings()  # pyright: ignore[reportAttributeAccessIssue]
    settings.verbose = False
    settings.max_threads = 1  # with one thread the bits do not depend on the machine's load
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
    raise ArithmeticError(
        f"Clarabel found no solution (status {status}); the data's scales differ too widely: "
        "rescale the columns of the data."
    )
