"""Theorem 5 and Corollaries 5-7 against SciPy's flows, mpmath, linear programs and differences."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.optimize

import lintensor_jax as lt
from lintensor_jax.theory.regression import yun_theorem_5 as theory

SLOW = pytest.mark.slow


def _problem(seed, n, m, d=None) -> Any:
    rng = np.random.default_rng(seed)
    S = None if d is None else rng.normal(size=(m, d))
    # With orthonormal rows the flows of the oracles are not stiff.
    X = np.linalg.qr(rng.normal(size=(d or m, n)))[0].T
    eta = rng.uniform(0.5, 1.5, m) * rng.choice([-1, 1], m)
    return S, X, rng.normal(size=n), eta


def _end_of_flow(start, gradient, residual, time=40.0):
    """SciPy's DOP853, continued until the residual is small."""
    theta = np.ravel(start)
    for _ in range(20):
        theta = scipy.integrate.solve_ivp(
            lambda _, theta: -gradient(theta), (0, time), theta, "DOP853", rtol=1e-11, atol=1e-14
        ).y[:, -1]
        # Below this residual an explicit solver is at its limit of stability.
        if np.max(np.abs(residual(theta))) < 1e-10:
            return theta
    raise AssertionError("the oracle's flow did not arrive")


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(("depth", "alpha"), [(3, 0.4), (2, 0.3), (2, 2.0), (4, 0.6)])
def test_the_flow_ends_at_the_limit_point(depth, alpha):
    S, X, y, eta = _problem(depth, n=2, m=5, d=4)
    A = X @ S.T
    start = np.vstack([np.tile(alpha * eta, (depth - 1, 1)), np.zeros((1, 5))])

    def residual(theta):
        return A @ np.prod(theta.reshape(depth, 5), axis=0) - y

    def gradient(theta):
        layers = theta.reshape(depth, 5)
        slope = A.T @ residual(theta)
        others = [np.prod(np.delete(layers, k, axis=0), axis=0) for k in range(depth)]
        return np.ravel(slope * np.array(others))

    end = _end_of_flow(start, gradient, residual)
    limit = theory.limit_point(S, X, y, depth, alpha, eta)
    assert bool(limit.converged)
    # The error is that of some hundred steps with rtol 1e-11.
    rho = np.prod(end.reshape(depth, 5), axis=0)
    np.testing.assert_allclose(limit.rho, rho, rtol=0, atol=1e-8)
    np.testing.assert_allclose(limit.coefficients, S.T @ rho, rtol=0, atol=1e-8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("depth", "alpha"), [(3, 1e-8), (2, 1e-50), (2, 1e8), (4, 1e-8), (4, 1e-2)]
)
def test_stationary_to_many_digits(depth, alpha):
    # The KKT conditions have one solution (Q is strictly convex). From the result, mpmath's Newton
    # iteration computes it with 150 digits; it would move away from a wrong result.
    n, d = 3, 8
    _, X, y, eta = _problem(10 * depth, n, d)
    limit = theory.limit_point(None, X, y, depth, alpha, eta)
    t_of = {2: lambda z: z, 3: lambda z: mpmath.atan(mpmath.sinh(z)), 4: mpmath.tanh}[depth]
    with mpmath.workdps(150):
        scale = [mpmath.mpf(alpha) * abs(mpmath.mpf(e)) for e in eta]
        z = [mpmath.mpf(float(v)) for v in limit.coordinate]
        A = mpmath.matrix(X.tolist())
        for _ in range(12):
            rho = [
                s**depth * mpmath.sinh(v) * mpmath.cosh(v) ** (depth - 1)
                for s, v in zip(scale, z, strict=True)
            ]
            slope = [s ** (2 - depth) * t_of(v) for s, v in zip(scale, z, strict=True)]
            drho = [
                s**depth
                * mpmath.cosh(v) ** (depth - 2)
                * (mpmath.cosh(v) ** 2 + (depth - 1) * mpmath.sinh(v) ** 2)
                for s, v in zip(scale, z, strict=True)
            ]
            dslope = [
                s ** (2 - depth) * mpmath.cosh(v) ** (2 - depth)
                for s, v in zip(scale, z, strict=True)
            ]
            # The unknowns are dz and the whole nu, in which the equations are linear.
            left, right = mpmath.matrix(d + n, d + n), mpmath.matrix(d + n, 1)
            for j in range(d):
                left[j, j], right[j] = dslope[j], -slope[j]
                for i in range(n):
                    left[j, d + i], left[d + i, j] = -A[i, j], A[i, j] * drho[j]
            for i in range(n):
                right[d + i] = mpmath.mpf(y[i]) - sum(A[i, j] * rho[j] for j in range(d))
            step = mpmath.lu_solve(left, right)
            z = [v + step[j] for j, v in enumerate(z)]
        assert max(abs(step[j]) for j in range(d)) < 1e-60
        exact = np.array([float(v) for v in rho])
        nu = np.array([float(step[d + i]) for i in range(n)])
    np.testing.assert_allclose(limit.rho, exact, rtol=0, atol=2e-14 * np.max(np.abs(exact)))
    np.testing.assert_allclose(limit.dual, nu, rtol=0, atol=1e-12 * np.max(np.abs(nu)))
    # Coordinates that vanish with alpha keep relative accuracy, up to what rounding y and X does:
    # log rho_j is of order log alpha, and for L >= 3 rho_j = alpha^L h(t_j).
    np.testing.assert_allclose(limit.rho, exact, rtol=1e-10)


@pytest.mark.parametrize("depth", [pytest.param(2, marks=SLOW), 3, pytest.param(4, marks=SLOW)])
def test_all_scales_in_one_batch(depth):
    n, d = 8, 60
    _, X, y, eta = _problem(depth, n, d)
    alphas = [10.0**k for k in (-8, -5, -3, -2, -1, 0, 2, 8)] + [1e-8, 0.1]
    # All lanes have the same targets, except the last two: their negatives, and zero.
    targets = [y] * 8 + [-y, 0 * y]
    limits = jax.vmap(lambda alpha, y: theory.limit_point(None, X, y, depth, alpha, eta))(
        jnp.asarray(alphas), jnp.stack(targets)
    )
    assert np.all(limits.converged)
    assert np.max(limits.num_iterations) <= 60
    # The bound is a few roundings of a sum of d products.
    assert np.max(np.abs(limits.residual)) <= 1e-13
    assert np.max(limits.stationarity) <= 1e-12
    # Only the l1 problem's n active coordinates are large; t is within rounding of c_L there.
    if depth > 2:
        assert float(limits.boundary_distance[0]) < 1e-7
    np.testing.assert_allclose(limits.coefficients[-2], -limits.coefficients[0], rtol=0, atol=1e-13)
    np.testing.assert_array_equal(limits.coefficients[-1], 0)
    # At the smallest scale the limit is the l1 program's solution, here by HiGHS.
    if depth > 2:
        weights = np.abs(eta) ** (2.0 - depth)
        program = scipy.optimize.linprog(np.tile(weights, 2), A_eq=np.hstack([X, -X]), b_eq=y)
        l1 = program.x[:d] - program.x[d:]
        np.testing.assert_allclose(limits.coefficients[0], l1, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "alpha"), [(2, 1e-3), (3, 0.1)])
def test_derivatives(depth, alpha):
    S, X, y, eta = (jnp.asarray(v) for v in _problem(depth, n=2, m=5, d=4))
    arguments = (S, X, y, jnp.asarray(alpha), eta)

    def find(S, X, y, alpha, eta):
        return theory.limit_point(S, X, y, depth, alpha, eta)

    def outputs(*arguments):
        limit = find(*arguments)
        return jnp.append(limit.coefficients, limit.potential)

    reverse = jax.jacrev(outputs, range(5))(*arguments)
    for k, value in enumerate(arguments):
        for index in itertools.product(*(range(s) for s in value.shape)):
            step = 1e-5 * abs(float(value[index]))
            ends = [
                outputs(*arguments[:k], value.at[index].add(sign * step), *arguments[k + 1 :])
                for sign in (1, -1)
            ]
            difference = (ends[0] - ends[1]) / (2 * step)
            # Central differences: step^2 + rounding / step.
            got = reverse[k][(slice(None), *index)]
            assert np.max(np.abs(got - difference)) <= 1e-6 * (1 + np.max(np.abs(difference)))
    limit = find(*arguments)
    # The multipliers are the minimum's derivative in y.
    np.testing.assert_allclose(reverse[2][-1], limit.dual, rtol=1e-10)
    assert float(jnp.log(limit.potential) - limit.log_potential) == pytest.approx(0, abs=1e-12)
    forward = jax.jvp(outputs, arguments, arguments)[1]
    expected = sum(jnp.tensordot(r, v, v.ndim) for r, v in zip(reverse, arguments, strict=True))
    np.testing.assert_allclose(forward, expected, rtol=1e-9)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(("depth", "d"), [(2, 5), (3, 4)])
def test_even_convolution(depth, d):
    rng = np.random.default_rng(d)
    even = lambda rows: (rows + rows[..., -np.arange(d)]) / 2  # noqa: E731
    X, y, w = even(rng.normal(size=(2, d))), rng.normal(size=2), even(rng.normal(size=d))
    X = np.linalg.qr(X.T)[0].T
    start = np.vstack([np.tile(w, (depth - 1, 1)), np.zeros((1, d))])
    circulant = lambda v: v[(np.arange(d)[:, None] - np.arange(d)[None, :]) % d]  # noqa: E731

    def product(filters):
        beta = filters[0]
        for w in filters[1:]:
            beta = circulant(beta) @ w
        return beta

    def residual(theta):
        return X @ product(theta.reshape(depth, d)) - y

    def gradient(theta):
        filters, g = theta.reshape(depth, d), X.T @ residual(theta)
        return np.ravel([circulant(product(np.delete(filters, k, 0))).T @ g for k in range(depth)])

    end = _end_of_flow(start, gradient, residual).reshape(depth, d)
    network, problem = lt.ConvolutionalNetwork(tuple(start)), lt.Regression(X, y)
    limit = theory.even_convolution_limit(network, problem)
    np.testing.assert_allclose(limit.coefficients, product(end), rtol=0, atol=1e-8)
    np.testing.assert_allclose(
        network.with_factors(tuple(end)).linear_coefficients(), product(end), rtol=0, atol=1e-12
    )
    assert theory.even_convolution_condition(network, problem).violations == ()
    # The paper's form of the objective, with the erratum: its value at the limit is that of all d
    # frequencies, and no feasible even vector near by has a smaller one.
    eta = np.fft.fft(w, norm="ortho").real

    def objective(z, scale=d ** ((1 - depth) / 2)):
        spectrum = np.fft.fft(z, norm="ortho").real
        return float(lt.potential.Q(spectrum * scale, depth, 1.0, eta))

    best = objective(np.asarray(limit.coefficients))
    assert best == pytest.approx(float(limit.potential), rel=1e-10)
    kernel = scipy.linalg.null_space(np.vstack([X, np.eye(d) - np.eye(d)[-np.arange(d)]]))
    assert kernel.shape[1] > 0
    for move in (*kernel.T, *-kernel.T):
        assert objective(np.asarray(limit.coefficients) + 1e-3 * move) > best
    # As printed, without the scale, the objective is not stationary there along feasible vectors.
    slopes = [
        (objective(limit.coefficients + 1e-5 * k, 1.0) - objective(limit.coefficients, 1.0)) / 1e-5
        for k in kernel.T
    ]
    assert np.max(np.abs(slopes)) > 0.01


def test_commuting_sensors():
    depth, alpha, d = 3, 0.7, 3
    rng = np.random.default_rng(3)
    U = np.linalg.qr(rng.normal(size=(d, d)))[0]
    eigenvalues, y = np.linalg.qr(rng.normal(size=(d, 2)))[0].T, rng.normal(size=2)
    A = np.einsum("ij,nj,kj->nik", U, eigenvalues, U)
    start = np.stack([alpha * np.eye(d)] * (depth - 1) + [np.zeros((d, d))])

    def residual(theta):
        W = theta.reshape(depth, d, d)
        return np.einsum("nij,ij->n", A, np.linalg.multi_dot(W)) - y

    def gradient(theta):
        W, eye = theta.reshape(depth, d, d), np.eye(d)
        G = np.einsum("n,nij->ij", residual(theta), A)
        return np.ravel(
            [
                np.linalg.multi_dot([eye, eye, *W[:k]]).T
                @ G
                @ np.linalg.multi_dot([eye, eye, *W[k + 1 :]]).T
                for k in range(depth)
            ]
        )

    end = np.linalg.multi_dot(_end_of_flow(start, gradient, residual).reshape(depth, d, d))
    limit = theory.commuting_sensing_limit(eigenvalues, y, depth, alpha)
    np.testing.assert_allclose(U @ np.diag(limit.coefficients) @ U.T, end, rtol=0, atol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_small_scales_reach_weighted_l1_at_the_rate_of_theory(depth):
    n, d = 3, 8
    _, X, y, eta = _problem(depth + 3, n, d)
    weights = np.asarray(theory.small_scale_weights(depth, eta))
    # HiGHS, beta = plus - minus.
    program = scipy.optimize.linprog(np.tile(weights, 2), A_eq=np.hstack([X, -X]), b_eq=y)
    l1 = program.x[:d] - program.x[d:]
    np.testing.assert_allclose(
        lt.min_norm(lt.Regression(X, y), lt.L1Norm(weights)).coefficients, l1, rtol=0, atol=1e-7
    )
    active = np.abs(l1) > 1e-9
    assert active.sum() == n  # the vertex is not degenerate: otherwise the rates need not hold
    basis = X[:, active]
    l1[active] = np.linalg.solve(basis, y)
    u = np.abs(X.T @ program.eqlin.marginals) / weights
    rate = depth if depth > 2 else 2 * (1 - np.max(u[~active]))
    # The errors are about 1e-6 and 10^-9.5: there the next order, relatively alpha^(L-2), is small,
    # and both errors are above the rounding of beta.
    alphas = (10 ** (-6 / rate), 10 ** (-9.5 / rate))
    errors = [
        np.max(np.abs(theory.limit_point(None, X, y, depth, a, eta).coefficients - l1))
        for a in alphas
    ]
    assert np.log(errors[0] / errors[1]) / np.log(alphas[0] / alphas[1]) == pytest.approx(
        rate, rel=0.1
    )
    last = theory.limit_point(None, X, y, depth, 1e-8 if depth > 2 else 1e-100, eta)
    assert np.max(np.abs(last.coefficients - l1)) < 1e-9


@pytest.mark.parametrize("depth", [2, 4])
def test_large_scales_reach_weighted_l2_at_the_rate_of_theory(depth):
    _, X, y, eta = _problem(depth, 3, 8)
    weights = np.asarray(theory.large_scale_weights(depth, eta))
    l2 = np.linalg.lstsq(X / weights, y)[0] / weights
    np.testing.assert_allclose(
        lt.min_norm(lt.Regression(X, y), lt.WeightedL2Norm(weights)).coefficients,
        l2,
        rtol=0,
        atol=1e-9,
    )
    alphas = (10.0, 10.0**1.5) if depth == 2 else (5.0, 10.0)
    errors = [
        np.max(np.abs(theory.limit_point(None, X, y, depth, a, eta).coefficients - l2))
        for a in alphas
    ]
    rate = np.log(errors[0] / errors[1]) / np.log(alphas[1] / alphas[0])
    assert rate == pytest.approx(2 * depth, rel=0.05)
    far = theory.limit_point(None, X, y, depth, 1e8, eta)
    np.testing.assert_allclose(far.coefficients, l2, rtol=0, atol=1e-14)
    assert int(far.num_iterations) <= 2
