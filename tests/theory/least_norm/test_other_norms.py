"""l_p for every p > 0, l_inf and spectral norms, and a bias that no norm includes.

Oracles: HiGHS, SLSQP, and weak duality by definitions of NumPy: multipliers nu >= 0 with
|sum_i nu_i z_i|_dual <= 1 and sum nu = |z| prove that z is optimal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import lintensor_jax as lt

jax.config.update("jax_enable_x64", True)

POWERS = [1.01, 1.2, 1.5, 2.0, 3.0, 20.0, 300.0, np.inf]


def _separable(seed, n, shape, bias=False):
    """`signed_data` for coefficients of that shape, and for vectors also a problem."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, *shape))
    values = np.tensordot(X, rng.normal(size=shape), len(shape)) + 0.7 * bias
    return X, np.sign(values)


def _dual_norm(norm, gradient):
    if isinstance(norm, lt.LInfNorm):
        return np.abs(gradient).sum()
    if isinstance(norm, lt.SpectralNorm):
        return np.linalg.norm(gradient, "nuc")
    if isinstance(norm, lt.NuclearNorm):
        return np.linalg.norm(gradient, 2)
    p = norm.p
    conjugate = np.inf if p == 1 else 1.0 if p == np.inf else p / (p - 1)
    return np.linalg.norm(np.ravel(gradient), conjugate)


def _assert_dual_proof(norm, Z, free, answer):
    """Feasible, dual feasible, and no gap: 1e-12 is a hundred roundings of these sizes."""
    z, nu = np.asarray(answer.coefficients), np.asarray(answer.multipliers)
    counted = z[:-1] if free else z
    margins = np.tensordot(Z, z, z.ndim)
    gradient = np.tensordot(nu, Z, 1)
    assert margins.min() > 1 - 1e-12
    assert nu.min() >= 0
    assert _dual_norm(norm, gradient[:-1] if free else gradient) < 1 + 1e-12
    np.testing.assert_allclose(nu.sum(), norm(jnp.asarray(counted)), rtol=1e-12)
    if free:
        assert np.abs(gradient[-1]).max() < 1e-13 * nu.sum()
    assert answer.status == "optimal"


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("n", "d", "bias"), [(12, 30, False), (20, 6, False), (14, 5, True)])
def test_max_margin_for_every_power(p, n, d, bias):
    X, y = _separable(n, n, (d,), bias)
    problem = lt.Classification(X, y, bias=bias)
    answer = lt.max_margin(problem, lt.LpNorm(p))
    _assert_dual_proof(lt.LpNorm(p), np.asarray(problem.signed_data), bias, answer)
    assert answer.unique
    # `certify` finds the solution stationary, and a perturbed point not.
    if not bias:
        z = np.asarray(answer.coefficients)
        assert lt.certify(z, problem, regularizer=lt.LpNorm(p)).is_stationary
        moved = z + 0.01 * np.random.default_rng(0).normal(size=d) * np.abs(z).max()
        if problem.margins(moved).min() > 0:
            assert not lt.certify(moved, problem, regularizer=lt.LpNorm(p)).is_stationary


@pytest.mark.parametrize("p", [0.02, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_small_powers_with_thirty_coordinates(p, seed):
    X, y = _separable(seed, 12, (30,))
    answer = lt.max_margin(lt.Classification(X, y), lt.LpNorm(p))
    assert answer.status == "stationary"
    # By the definition, in units without huge numbers: u_j = |z_j|^(1 - p) sign z_j gradient_j
    # is the same for all nonzero coordinates.
    z, nu = np.asarray(answer.coefficients), np.asarray(answer.multipliers)
    on = z != 0
    gradient = nu @ (y[:, None] * X)
    u = gradient[on] * np.sign(z[on]) * (np.abs(z[on]) / np.abs(z).max()) ** (1 - p)
    np.testing.assert_allclose(u, u[0], rtol=1e-9)
    interpolator = lt.min_norm(lt.Regression(X, y), lt.LpNorm(p))
    assert interpolator.status == "stationary"


@pytest.mark.parametrize("seed", range(3))
def test_l_inf_against_highs(seed):
    X, y = _separable(seed, 15, (8,))
    answer = lt.max_margin(lt.Classification(X, y), lt.LInfNorm())
    Z = y[:, None] * X
    program = scipy.optimize.linprog(
        np.append(np.zeros(8), 1.0),
        A_ub=np.vstack(
            [
                np.hstack([-Z, np.zeros((15, 1))]),
                np.hstack([np.eye(8), -np.ones((8, 1))]),
                np.hstack([-np.eye(8), -np.ones((8, 1))]),
            ]
        ),
        b_ub=np.concatenate([-np.ones(15), np.zeros(16)]),
        bounds=(None, None),
        method="highs",
    )
    np.testing.assert_allclose(1 / answer.margin, program.fun, rtol=1e-9)
    np.testing.assert_allclose(answer.coefficients, program.x[:8], rtol=0, atol=1e-8)


@pytest.mark.parametrize("norm", [lt.SpectralNorm(), lt.NuclearNorm(), lt.LInfNorm()])
@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (4, 4)])
def test_matrices(norm, shape):
    X, y = _separable(sum(shape), 10, shape)
    Z = y[:, None, None] * X

    class Signed:
        signed_data = jnp.asarray(Z)

    _assert_dual_proof(norm, Z, False, lt.max_margin(Signed, norm))


@pytest.mark.parametrize("norm", [lt.SpectralNorm(), lt.LInfNorm(), lt.LpNorm(1.5), lt.LpNorm(4)])
def test_interpolators(norm):
    rng = np.random.default_rng(3)
    A, y = rng.normal(size=(6, 4, 4)), rng.normal(size=6)
    answer = lt.min_norm(lt.MatrixSensing(A, y), norm)
    beta, nu = np.asarray(answer.coefficients), np.asarray(answer.multipliers)
    np.testing.assert_allclose(np.tensordot(A, beta, 2), y, atol=1e-12)
    assert _dual_norm(norm, np.tensordot(nu, A, 1)) < 1 + 1e-12
    np.testing.assert_allclose(nu @ y, norm(answer.coefficients), rtol=1e-12)
    assert answer.status == "optimal"


@pytest.mark.parametrize("seed", range(5))
def test_free_bias_is_that_of_an_svm(seed):
    X, y = _separable(seed, 14, (5,), bias=True)
    answer = lt.max_margin(lt.Classification(X, y, bias=True), lt.L2Norm())
    Z = y[:, None] * np.hstack([X, np.ones((14, 1))])
    start = np.asarray(lt.max_margin(lt.Classification(X, y, bias=True), lt.L1Norm()).coefficients)
    other = scipy.optimize.minimize(
        lambda z: np.sum(z[:-1] ** 2) / 2,
        2 * start,
        jac=lambda z: np.append(z[:-1], 0),
        constraints={"type": "ineq", "fun": lambda z: Z @ z - 1, "jac": lambda z: Z},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(answer.coefficients, other.x, rtol=0, atol=1e-7)


def test_least_norm_with_a_free_bias():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(4, 9)), rng.normal(size=4)
    answer = lt.min_norm(lt.Regression(X, y, bias=True), lt.L1Norm())
    program = scipy.optimize.linprog(
        np.append(np.ones(18), 0),
        A_eq=np.hstack([X, -X, np.ones((4, 1))]),
        b_eq=y,
        bounds=[(0, None)] * 18 + [(None, None)],
        method="highs",
    )
    np.testing.assert_allclose(answer.value, program.fun, rtol=1e-9)
    np.testing.assert_allclose(answer.coefficients[-1], program.x[-1], atol=1e-8)
    # If all targets are equal, the solution is the bias alone.
    constant = lt.min_norm(lt.Regression(X, np.full(4, 3.0), bias=True), lt.LInfNorm())
    np.testing.assert_allclose(constant.coefficients, np.append(np.zeros(9), 3.0), atol=1e-12)


def test_refusals():
    X = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(ValueError, match="at least two classes"):
        lt.max_margin(lt.Classification(X, np.ones(4), bias=True), lt.L2Norm())
    with pytest.raises(ValueError, match="must be matrices"):
        lt.max_margin(lt.Classification(X, np.ones(4)), lt.SpectralNorm())
    with pytest.raises(ValueError, match="p must be positive, got -1"):
        lt.LpNorm(-1)
    with pytest.raises(ValueError, match="bias: a problem of the class MatrixSensing has none"):
        lt.MatrixSensing(np.ones((1, 2, 2)), np.ones(1)).with_bias()
