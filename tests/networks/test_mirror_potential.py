"""The potential Q of Theorem 5, and bad arguments of the mirror map."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from lintensor_jax.networks import mirror_map as potential

# The required accuracy. Measured: 2e-15 from x, 5e-14 from z (an exponential of L z).
RTOL = 1e-12


def reference_distance(z, L):
    """c_L - t as an incomplete beta function (A7's 2F1, continued to large q)."""
    return mp.betainc(mp.mpf(L - 2) / 2, mp.mpf(1) / 2, 0, mp.sech(z) ** 2) / 2


def reference_t(z, L):
    if L == 2:
        return z
    if z > 10:
        return mp.beta(mp.mpf(1) / 2, mp.mpf(L - 2) / 2) / 2 - reference_distance(z, L)
    q = mp.sinh(z)
    return q * mp.hyp2f1(mp.mpf(1) / 2, mp.mpf(L - 1) / 2, mp.mpf(3) / 2, -q * q)


def relative_error(values, exact):
    return max(
        float(abs(mp.mpf(float(v)) / e - 1)) for v, e in zip(np.asarray(values), exact, strict=True)
    )


@pytest.mark.slow
def test_Q_is_the_sum_of_theorem_5():
    rng = np.random.default_rng(0)
    rho, eta = rng.normal(size=(4, 5)), rng.normal(size=5)
    for L in (2, 5):
        for alpha in (0.03, 7.0):
            scale = alpha * np.abs(eta)
            expected = np.sum(scale**2 * np.asarray(potential.H(rho / scale**L, L)), axis=-1)
            np.testing.assert_allclose(potential.Q(rho, L, alpha, eta), expected, rtol=RTOL)
            got = potential.log_Q(rho, L, alpha, eta)
            np.testing.assert_allclose(got, np.log(expected), rtol=RTOL, atol=RTOL)
            gradient = jax.grad(lambda r, a=alpha, L=L: potential.Q(r, L, a, eta))(rho[0])
            dual = scale ** (2 - L) * np.asarray(potential.h_inverse(rho[0] / scale**L, L))
            np.testing.assert_allclose(gradient, dual, rtol=RTOL)
    # Slopes in alpha and eta, and the Hessian, by differences; errors: 1e-5^2 and 1e-16 / 1e-5.
    point = np.concatenate([rho[0], [0.7], eta])
    for f in (potential.Q, potential.log_Q):

        @jax.jit
        def flat(v, f=f):
            return f(v[:5], 3, v[5], v[6:])

        gradient = jax.jit(jax.grad(flat))
        steps = 1e-5 * np.eye(11)
        slopes = [(flat(point + s) - flat(point - s)) / 2e-5 for s in steps]
        np.testing.assert_allclose(gradient(point), np.array(slopes), rtol=1e-6, atol=1e-8)
        hessian = [(gradient(point + s) - gradient(point - s)) / 2e-5 for s in steps]
        got = jax.jit(jax.jacfwd(jax.grad(flat)))(point)
        np.testing.assert_allclose(got, np.array(hessian), rtol=1e-6, atol=1e-7)
    alphas = np.array([0.1, 0.2, 0.3, 0.4])
    batch = potential.Q(rho, 3, alphas, eta)
    one_by_one = [potential.Q(r, 3, a, eta) for r, a in zip(rho, alphas, strict=True)]
    np.testing.assert_allclose(batch, np.array(one_by_one), rtol=1e-14)


@pytest.mark.parametrize("L", [2, 3, 8])
def test_Q_at_initial_scales_whose_powers_are_no_floats(L):
    alpha = 1e-50
    rho, eta = jnp.array([0.0, 1.0, -2.0]), jnp.array([1.0, 0.5, 2.0])
    exact = mp.mpf(0)
    for r, e in ((1.0, 0.5), (2.0, 2.0)):
        s = mp.mpf(alpha) * mp.mpf(e)
        log_x = mp.log(r) - L * mp.log(s)
        z = log_x / L + mp.log(2)
        for _ in range(20):
            residual = mp.log(mp.sinh(z)) + (L - 1) * mp.log(mp.cosh(z)) - log_x
            z -= residual / (mp.coth(z) + (L - 1) * mp.tanh(z))
        exact += s**2 * (reference_t(z, L) * mp.exp(log_x) - mp.sinh(z) ** 2 / 2)
    assert relative_error([potential.Q(rho, L, alpha, eta)], [exact]) < RTOL
    assert float(potential.log_Q(rho, L, alpha, eta)) == pytest.approx(float(mp.log(exact)))
    # Remark 4: proportional to the weighted l1 norm; no NaN at the zero coordinate.
    gradient = jax.grad(lambda r: potential.Q(r, L, alpha, eta))(rho)
    assert gradient[0] == 0
    if L > 2:
        expected = potential.boundary(L) * mp.mpf(alpha) ** (2 - L) * mp.mpf(0.5) ** (2 - L)
        assert relative_error([gradient[1]], [expected]) < RTOL
    weights = jax.grad(lambda r: potential.log_Q(r, L, 1e-300, eta))(rho)
    assert np.all(np.isfinite(weights))
    assert np.all(np.isfinite(jax.grad(lambda r: potential.log_Q(r, L, alpha, eta))(1e-90 * rho)))
    # At the other end of Remark 4 Q is proportional to the weighted l2 norm.
    large = potential.log_Q(rho, L, 1e50, eta)
    l2 = (2 - 2 * L) * math.log(1e50) + math.log(sum((rho**2 * eta ** (2 - 2 * L)) / 2))
    assert float(large) == pytest.approx(l2, rel=1e-13)


def test_alpha_keeps_its_exponent_in_float32():
    rho = jnp.ones(2, dtype=np.float32)
    value = potential.log_Q(rho, 3, 1e-50, 1.0)
    assert value.dtype == np.float32
    # c_3 alpha^{-1} 2; float32 keeps the logs (~345) to 345 * 6e-8.
    assert float(value) == pytest.approx(math.log(math.pi) + math.log(1e50), rel=1e-6)


@pytest.mark.parametrize("L", [1, 0, -3, 2.0, "3", None, True])
def test_a_bad_depth_is_named(L):
    for call in (
        lambda: potential.h(0.1, L),
        lambda: potential.H(0.1, L),
        lambda: potential.boundary(L),
        lambda: potential.Q(np.ones(1), L, 1.0, 1.0),
    ):
        with pytest.raises(ValueError, match=r"L must be a Python int >= 2.*got .*depth"):
            call()


def test_bad_arguments_are_named():
    rho = np.ones(3)
    for arguments, message in (
        ((rho, 3, 0.0, 1.0), "alpha must be > 0.*got 0.0"),
        ((rho, 3, np.nan, 1.0), "alpha must be > 0"),
        ((rho, 3, 1.0, np.array([1.0, 0.0, 1.0])), "eta must be nonzero"),
        ((rho, 3, 1.0, np.ones(2)), "eta must broadcast to \\(3,\\)"),
        ((rho, 3, np.ones(2), 1.0), "alpha must broadcast to \\(\\)"),
        ((1.0, 3, 1.0, 1.0), "rho must have shape"),
        ((1j * rho, 3, 1.0, 1.0), "real arrays"),
    ):
        with pytest.raises(ValueError, match=message):
            potential.Q(*arguments)
