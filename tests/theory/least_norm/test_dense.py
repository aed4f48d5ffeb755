"""Dense problems in l1, l2 and l-infinity: no conic solver is called, and others agree.

Tolerances: the accuracy of HiGHS is about 1e-9, that of Clarabel by default 1e-8. The package
solves a linear system, and its measured KKT residual must be below 1e-12.
"""

import clarabel
import jax
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linprog

import lintensor_jax as lt
from lintensor_jax.theory.least_norm import gauge_programs

jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True)
def no_conic_solver(monkeypatch):
    def called(*_):
        raise AssertionError("a conic solver was called")

    monkeypatch.setattr(gauge_programs, "solve_level", called)


def _signed_rows(n, d, seed):
    """Gaussian samples, separated by a Gaussian vector."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X * np.sign(X @ rng.standard_normal(d))[:, None]


def _smallest_norm(rows, targets, norm, equality=False, bias=None):
    """The least norm of w with rows w + bias c >= targets (or equal), by HiGHS or Clarabel."""
    n, d = rows.shape
    free = np.zeros((n, 0)) if bias is None else bias
    k = free.shape[1]
    if isinstance(norm, lt.L2Norm):
        settings = clarabel.DefaultSettings()  # pyright: ignore[reportAttributeAccessIssue]
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
        cost = sp.diags(np.append(np.ones(d), np.zeros(k)), format="csc")
        matrix = sp.csc_matrix(-np.hstack([rows, free]))
        cones = [clarabel.NonnegativeConeT(n)]  # pyright: ignore[reportAttributeAccessIssue]
        solver = clarabel.DefaultSolver(  # pyright: ignore[reportAttributeAccessIssue]
            cost, np.zeros(d + k), matrix, -targets, cones, settings
        )
        return float(np.linalg.norm(np.asarray(solver.solve().x)[:d]))
    positive, anything = (0, None), (None, None)
    if isinstance(norm, lt.L1Norm):  # Unknowns: the positive and the negative part of w, c.
        data, limits = np.hstack([rows, -rows, free]), [positive] * 2 * d + [anything] * k
        cost, rest = np.append(np.ones(2 * d), np.zeros(k)), np.zeros((0, 2 * d + k))
    else:  # w, the bound of its entries, c
        data, limits = np.hstack([rows, np.zeros((n, 1)), free]), [anything] * (d + 1 + k)
        cost, ones = np.eye(d + 1 + k)[d], np.ones((d, 1))
        rest = np.block([[np.eye(d), -ones], [-np.eye(d), -ones]])
        rest = np.hstack([rest, np.zeros((2 * d, k))])
    if equality:
        constraints = {"A_ub": rest, "b_ub": np.zeros(len(rest)), "A_eq": data, "b_eq": targets}
    else:
        right = np.append(np.zeros(len(rest)), -targets)
        constraints = {"A_ub": np.vstack([rest, -data]), "b_ub": right}
    found = linprog(cost, bounds=limits, method="highs", **constraints)
    assert found.status == 0
    return found.fun


@pytest.mark.parametrize(("n", "d"), [(1, 4), (20, 10), (60, 90), (150, 40)])
@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.L2Norm(), lt.LInfNorm()])
def test_largest_margins_agree_with_other_solvers(n, d, norm):
    for seed in range(3):
        rows = _signed_rows(n, d, seed)
        found = lt.max_margin(lt.Classification(rows, np.ones(n)), norm)
        assert found.status == "optimal"
        assert found.kkt_residual < 1e-12
        np.testing.assert_allclose(np.min(rows @ found.coefficients), 1.0, rtol=1e-12)
        expected = _smallest_norm(rows, np.ones(n), norm)
        np.testing.assert_allclose(1 / found.margin, expected, rtol=1e-7)


@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.L2Norm(), lt.LInfNorm()])
def test_a_free_bias(norm):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((60, 40))
    y = np.sign(X @ rng.standard_normal(40) + 2.0)
    problem = lt.Classification(X, y, bias=True)
    found = lt.max_margin(problem, norm)
    assert found.kkt_residual < 1e-12
    expected = _smallest_norm(X * y[:, None], np.ones(60), norm, bias=y[:, None])
    np.testing.assert_allclose(1 / found.margin, expected, rtol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (20, 60), (70, 90)])
@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.LInfNorm()])
def test_least_norms_of_equations_agree_with_highs(n, d, norm):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, y = rng.standard_normal((n, d)), rng.standard_normal(n)
        found = lt.min_norm(lt.Regression(X, y), norm)
        assert found.status == "optimal"
        assert found.kkt_residual < 1e-12
        np.testing.assert_allclose(X @ found.coefficients, y, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.value, _smallest_norm(X, y, norm, True), rtol=1e-8)


def _require_optimal(rows, found, norm):
    """Strong duality, by hand: sum nu = |z|, and A^T nu is a subgradient at z."""
    z, nu = np.asarray(found.coefficients), np.asarray(found.multipliers)
    gradient = rows.T @ nu
    np.testing.assert_allclose(np.min(rows @ z), 1.0, rtol=1e-12)
    np.testing.assert_allclose(nu.sum(), norm(z), rtol=1e-11)
    np.testing.assert_allclose(gradient @ z, norm(z), rtol=1e-11)
    dual = {lt.L1Norm: np.inf, lt.L2Norm: 2, lt.LInfNorm: 1}[type(norm)]
    np.testing.assert_allclose(np.linalg.norm(gradient, dual), 1.0, rtol=1e-11)
    assert (nu >= 0).all()
    assert np.array_equal(nu > 0, np.asarray(found.support))


@pytest.mark.parametrize("norm", [lt.L1Norm(), lt.L2Norm(), lt.LInfNorm()])
@pytest.mark.parametrize(("n", "d"), [(80, 50), (500, 200)])
def test_margins_and_multipliers_are_those_of_the_optimum(n, d, norm):
    """With 500 samples and 200 features Clarabel breaks down, on half of the linear programs."""
    rows = _signed_rows(n, d, 3)
    found = lt.max_margin(lt.Classification(rows, np.ones(n)), norm)
    assert found.unique
    _require_optimal(rows, found, norm)
