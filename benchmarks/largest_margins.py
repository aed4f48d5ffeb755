"""`lt.max_margin` in l1, l2 and l-infinity beside HiGHS and Clarabel, on Gaussian separable data.

Run from the repository root, on one thread (with more threads than free cores a factorisation takes
many times longer):

    export OPENBLAS_NUM_THREADS=1
    python benchmarks/largest_margins.py [--quick] [--repeats 5] [--out largest_margins.json]

HiGHS (SciPy's linprog, simplex and interior point) solves l1 and l-infinity. Clarabel solves l2 as
min |w|^2 / 2 subject to Z w >= 1. Both are called directly on the same rows, with their default
accuracy. Before anything is timed, the norms must agree to 1e-6. Variants run in turn in one
process. The column "of the best" is the core time of `max_margin` over that of the best other
solver: above 1, `max_margin` is slower. It also certifies its answer, to the KKT residual in the
table.
"""

from collections.abc import Callable
from typing import Any

import measure
import numpy as np
from measure import Row, Variant, WrongAnswer

import lintensor_jax as lt

CLOSE = 1e-6
SIZES = ((10, 20), (50, 100), (200, 100), (100, 500), (200, 500), (500, 500))


def data(d: int, n: int) -> np.ndarray:
    """Gaussian rows y_i x_i that some direction separates, shape (n, d)."""
    rng = np.random.default_rng([23, d, n])
    X = rng.standard_normal((n, d))
    return X * np.sign(X @ rng.standard_normal(d))[:, None]


def l1_by_highs(rows: np.ndarray, method: str) -> float:
    """min |w|_1 subject to Z w >= 1, w as a difference of non-negative parts."""
    from scipy.optimize import linprog

    n, d = rows.shape
    both = np.hstack([rows, -rows])
    return float(linprog(np.ones(2 * d), A_ub=-both, b_ub=-np.ones(n), method=method).fun)


def largest_by_highs(rows: np.ndarray, method: str) -> float:
    """min |w|_inf: one over the largest t with Z w >= t, |w_j| <= 1."""
    from scipy.optimize import linprog

    n, d = rows.shape
    bounds = [(-1, 1)] * d + [(None, None)]
    above = np.hstack([-rows, np.ones((n, 1))])
    cost = np.append(np.zeros(d), -1.0)
    found = linprog(cost, A_ub=above, b_ub=np.zeros(n), bounds=bounds, method=method)
    return float(-1 / found.fun)


def l2_by_clarabel(rows: np.ndarray) -> float:
    """min |w|_2 subject to Z w >= 1."""
    import clarabel
    import scipy.sparse as sp

    solvers: Any = clarabel
    settings = solvers.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    n, d = rows.shape
    cones = [solvers.NonnegativeConeT(n)]
    problem = sp.eye(d, format="csc"), np.zeros(d), sp.csc_matrix(-rows), -np.ones(n)
    return float(np.linalg.norm(solvers.DefaultSolver(*problem, cones, settings).solve().x))


def others(name: str, rows: np.ndarray) -> dict[str, Callable[[], float]]:
    """The other solvers of this norm, by name; each returns the least norm."""
    if name == "l2":
        return {"Clarabel": lambda: l2_by_clarabel(rows)}
    solve = l1_by_highs if name == "l1" else largest_by_highs
    return {
        "HiGHS simplex": lambda: solve(rows, "highs-ds"),
        "HiGHS inner point": lambda: solve(rows, "highs-ipm"),
    }


def rows_of(name: str, norm: Any, d: int, n: int, repeats: int) -> list[Row]:
    """The rows of one problem."""
    Z = data(d, n)
    problem = lt.Classification(Z, np.ones(n))
    sizes: dict[str, float] = {}

    def of_ours(found: Any) -> Row:
        sizes["ours"] = 1 / float(found.margin)
        return {"kkt_residual": float(found.kkt_residual)}

    def of_other(size: float) -> Row:
        distance = abs(size / sizes["ours"] - 1)
        if not distance <= CLOSE:
            raise WrongAnswer(f"{name}, d = {d}, n = {n}: norms differ by {distance:.1e}")
        return {"from_ours": distance}

    variants = [Variant("max_margin", lambda: lt.max_margin(problem, norm), of_ours)]
    variants += [Variant(title, call, of_other) for title, call in others(name, Z).items()]
    title = f"{name}, d = {d}, n = {n}"
    found = measure.compare("largest margins", title, variants, repeats, baseline="max_margin")
    found[0]["of_the_best"] = max(row["faster_in_core_time"] for row in found[1:])
    return found


def main() -> None:
    """Print the table."""
    options = measure.arguments(__doc__, "the two smallest sizes")
    measure.set_up()
    norms = {"l1": lt.L1Norm(), "l2": lt.L2Norm(), "linf": lt.LInfNorm()}
    rows = []
    for d, n in SIZES[: 2 if options.quick else None]:
        for name, norm in norms.items():
            rows += rows_of(name, norm, d, n, options.repeats)
    measure.print_rows(rows, options.out)


if __name__ == "__main__":
    main()
