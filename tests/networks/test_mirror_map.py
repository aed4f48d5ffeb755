"""The mirror map h_L and its potential against mpmath, SciPy and closed forms."""

import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate

from lintensor_jax.networks import mirror_map as potential

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

DEPTHS = range(2, 9)
# The required accuracy. Measured: 2e-15 from x, 5e-14 from z (an exponential of L z).
RTOL = 1e-12
# Every 20th decade of the floats, and more points around 1, where the solver changes its formula.
X = np.unique(np.concatenate([10.0 ** np.arange(-300, 301, 20), 10.0 ** np.linspace(-2, 2, 17)]))


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(50):
        yield


def reference_z(x, L):
    """Bracketed Newton on log x in 50 digits."""
    x = mp.mpf(float(x))
    low, high = mp.mpf(0), mp.asinh(x)

    def excess(z):
        return mp.log(mp.sinh(z)) + (L - 1) * mp.log(mp.cosh(z)) - mp.log(x)

    z = high
    for _ in range(200):
        residual = excess(z)
        low, high = (low, z) if residual > 0 else (z, high)
        step = residual / (mp.coth(z) + (L - 1) * mp.tanh(z))
        moved = z - step if low < z - step < high else (low + high) / 2
        if abs(moved - z) < mp.mpf(10) ** -45 * z:
            return moved
        z = moved
    raise AssertionError("no convergence")


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


def reference_x(z, L):
    return mp.sinh(z) * mp.cosh(z) ** (L - 1)


@functools.cache
def reference(L):
    with mp.workdps(50):
        z = [reference_z(x, L) for x in X]
        t = [reference_t(v, L) for v in z]
        H = [a * mp.mpf(float(x)) - mp.sinh(v) ** 2 / 2 for a, x, v in zip(t, X, z, strict=True)]
    return z, t, H


def relative_error(values, exact):
    return max(
        float(abs(mp.mpf(float(v)) / e - 1)) for v, e in zip(np.asarray(values), exact, strict=True)
    )


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("L", DEPTHS)
def test_inverse_and_potential_over_the_whole_range_of_floats(L):
    z, t, H = reference(L)
    # Each function is called once, because most of this file's time is compilation.
    x = np.concatenate([-X, X, [0.0, np.inf]])
    size = len(X)
    got = {}
    for f, sign in ((potential.z_of_x, -1), (potential.h_inverse, -1), (potential.H, 1)):
        value = np.asarray(f(x, L))
        np.testing.assert_allclose(value[:size], sign * value[size:-2], rtol=1e-15)
        assert value[-2] == 0
        got[f] = value[size:-2]
        if f is potential.h_inverse:
            assert value[-1] == pytest.approx(potential.boundary(L), rel=1e-15)
    assert relative_error(got[potential.z_of_x], z) < RTOL
    assert relative_error(got[potential.h_inverse], t) < RTOL
    representable = [i for i, v in enumerate(H) if mp.mpf("1e-300") < v < mp.mpf("1e308")]
    got_H = got[potential.H][representable]
    assert relative_error(got_H, [H[i] for i in representable]) < RTOL
    log_x = np.concatenate([np.log(X), [-np.inf]])
    log_H = np.asarray(potential.log_H(log_x, L))
    assert log_H[-1] == -np.inf
    exact = np.array([float(mp.log(v)) for v in H])
    np.testing.assert_allclose(log_H[:-1], exact, rtol=1e-13, atol=1e-14)
    # log(1e-300) has a rounding error of 6e-14, which is a relative error of x.
    assert relative_error(np.asarray(potential.z_of_log_x(log_x, L))[:-1], z) < RTOL


@pytest.mark.parametrize("L", [2, 3, 8, 40])
def test_everything_as_a_function_of_z(L):
    # z goes up to that of x = 1e300, and down to small z, where t = z (1 - O(z^2)) must not cancel.
    z = np.concatenate([[1e-300, 1e-9, 1e-3], np.linspace(0.05, 690 / L, 12)])
    exact = [mp.mpf(float(v)) for v in z]
    assert relative_error(potential.x_of_z(z, L), [reference_x(v, L) for v in exact]) < RTOL
    assert relative_error(potential.t_of_z(z, L), [reference_t(v, L) for v in exact]) < RTOL
    slope = [mp.cosh(v) ** L + (L - 1) * mp.sinh(v) ** 2 * mp.cosh(v) ** (L - 2) for v in exact]
    assert relative_error(potential.dx_dz(z, L), slope) < RTOL
    assert relative_error(potential.dt_dz(z, L), [mp.cosh(v) ** (2 - L) for v in exact]) < RTOL
    log_x = [float(mp.log(reference_x(v, L))) for v in exact]
    np.testing.assert_allclose(potential.log_abs_x_of_z(z, L), log_x, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(potential.z_of_x(potential.x_of_z(z, L), L), z, rtol=RTOL)
    if L > 2:
        distance = [reference_distance(v, L) for v in exact]
        assert relative_error(potential.boundary_distance_of_z(-z, L), distance) < RTOL
    else:
        assert np.all(np.isinf(potential.boundary_distance_of_z(z, L)))


def test_logarithms_reach_beyond_the_floats():
    for L in (2, 7):
        log_x = np.array([-5000.0, 5000.0])
        z = potential.z_of_log_x(log_x, L)
        assert z[0] == 0
        # x = e^{Lz} / 2^L at this size.
        assert z[1] == pytest.approx(5000 / L + math.log(2), rel=1e-14)
        limit = z[1] - 0.5 if L == 2 else potential.boundary(L)
        expected = [-10000 - math.log(2), 5000 + math.log(limit)]
        np.testing.assert_allclose(potential.log_H(log_x, L), expected, rtol=1e-14)
    log_distance = potential.log_boundary_distance_of_z(2000.0, 5)
    assert log_distance == pytest.approx(3 * (math.log(2) - 2000) - math.log(3), rel=1e-14)


def test_boundary():
    assert potential.boundary(2) == math.inf
    assert potential.boundary(3) == math.pi / 2
    assert potential.boundary(4) == 1.0
    for L in range(3, 30):
        exact = mp.beta(mp.mpf(1) / 2, mp.mpf(L - 2) / 2) / 2
        assert float(abs(potential.boundary(L) / exact - 1)) < 2e-16


@pytest.mark.parametrize("L", DEPTHS)
def test_h_up_to_the_last_float_before_the_boundary(L):
    c = potential.boundary(L)
    if L == 2:
        t = np.concatenate([10.0 ** np.arange(-300, 0, 30), [0.5, 3.0, 100.0, 350.0]])
        exact = [mp.sinh(2 * mp.mpf(float(v))) / 2 for v in t]
    else:
        near = c * (1 - 10.0 ** -np.arange(2.0, 16.0, 2))
        fractions = c * np.linspace(0.1, 0.9, 9)
        t = np.concatenate([10.0 ** np.arange(-300, -1, 30), fractions, near, [np.nextafter(c, 0)]])
        exact_c = mp.beta(mp.mpf(1) / 2, mp.mpf(L - 2) / 2) / 2
        exact = []
        for v in t:
            # From a start near the root, Newton's method in 50 digits on t(z) or on the distance.
            v = mp.mpf(float(v))
            z = v if v < exact_c / 2 else mp.log(2) - mp.log((exact_c - v) * (L - 2)) / (L - 2)
            for _ in range(12):
                error = (
                    reference_t(z, L) - v
                    if v < exact_c / 2
                    else mp.log((exact_c - v) / reference_distance(z, L)) * reference_distance(z, L)
                )
                z -= error * mp.cosh(z) ** (L - 2)
            exact.append(reference_x(z, L))
    # Required is 1e-12 max(1, t h'/h); as c_L is stored in two floats, the error is below 1e-12.
    finite = min(c, 1e300)
    outside = np.array([np.nextafter(np.nextafter(finite, np.inf), np.inf), 2 * finite, np.inf])
    value = np.asarray(potential.h(np.concatenate([t, -t, outside, -outside, [0, np.nan]]), L))
    inside, mirrored, tail = np.split(value, [len(t), 2 * len(t)])
    assert relative_error(inside, exact) < RTOL
    np.testing.assert_allclose(mirrored, -inside, rtol=1e-14)
    np.testing.assert_array_equal(tail, [np.inf] * 3 + [-np.inf] * 3 + [0, np.nan])
    if L == 3:
        gradient = jax.jit(jax.vmap(jax.grad(lambda v: potential.h(v, L))))(outside)
        np.testing.assert_array_equal(gradient, 0)


def test_closed_forms_of_h():
    t = np.linspace(-0.99, 0.99, 23)
    np.testing.assert_allclose(potential.h(t, 2), np.sinh(2 * t) / 2, rtol=1e-13)
    np.testing.assert_allclose(potential.h(t, 3), np.tan(t) / np.cos(t) ** 2, rtol=1e-13)
    np.testing.assert_allclose(potential.h(t, 4), t / (1 - t**2) ** 2, rtol=1e-13)


@pytest.mark.parametrize("L", [2, 3, 6])
def test_round_trip(L):
    t = min(potential.boundary(L), 20.0) * np.concatenate([np.linspace(-0.9, 0.9, 10), [1e-200]])
    np.testing.assert_allclose(potential.h_inverse(potential.h(t, L), L), t, rtol=RTOL)


@pytest.mark.parametrize("L", [2, 3, 5])
def test_the_differential_equation_of_lemma_4(L):
    # This test uses neither the conserved quantity nor a closed form.
    end = 0.9 * min(potential.boundary(L), 2.0)
    solution = scipy.integrate.solve_ivp(
        lambda _, y: [y[0] ** (L - 2) * y[1], y[0] ** (L - 1)],
        (0, end),
        [1.0, 0.0],
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
        t_eval=np.linspace(0, end, 9),
    )
    p, q = solution.y
    # The integrator's tolerance of 1e-12 is amplified by t h'/h < 40 near 0.9 c_L.
    np.testing.assert_allclose(potential.h(solution.t, L), p ** (L - 1) * q, rtol=1e-9)
    x = potential.h(solution.t, L)
    # 40 Gauss-Legendre nodes: h_inverse is analytic around [0, x].
    nodes, weights = np.polynomial.legendre.leggauss(40)
    values = potential.h_inverse(x[1:4, None] * (nodes[None] + 1) / 2, L)
    area = x[1:4] / 2 * (values @ weights)
    np.testing.assert_allclose(potential.H(x[1:4], L), area, rtol=1e-9)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("L", [2, 3, 6])
def test_first_and_second_derivatives_in_both_modes(L):
    x = np.array([-1e3, -0.5, -1e-150, 0.0, 1e-3, 0.8, 1.0, 1e8])
    z = np.array([float(mp.sign(v) * reference_z(abs(v), L)) if v else 0.0 for v in x])
    p, q = np.cosh(z), np.sinh(z)
    # dx/dt = p^{2L-4} (p^2 + (L-1) q^2) =: g, and d/dt = p^{L-2} d/dz.
    growth = p**2 + (L - 1) * q**2
    g = p ** (2 * L - 4) * growth
    dg_dt = p ** (L - 2) * (
        (2 * L - 4) * p ** (2 * L - 5) * q * growth + p ** (2 * L - 4) * 2 * L * p * q
    )
    t = np.asarray(potential.h_inverse(x, L))
    # h is tested well inside the range only: elsewhere g amplifies the rounding of t. Hence 1e-11.
    inside = np.abs(x) < 2
    for f, at, first, second, rtol in (
        (potential.h_inverse, x, 1 / g, -dg_dt / g**3, RTOL),
        (potential.H, x, t, 1 / g, RTOL),
        (potential.h, t[inside], g[inside], dg_dt[inside], 1e-11),
    ):

        @jax.jit
        def derivatives(at, function=f):
            f = functools.partial(function, L=L)
            forward, reverse = jax.jacfwd(f), jax.grad(f)
            functions = (forward, reverse, jax.jacfwd(reverse), jax.grad(forward))
            return [jax.vmap(d)(at) for d in functions]

        for got, expected in zip(derivatives(at), (first, first, second, second), strict=True):
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("L", [2, 5])
def test_derivatives_with_respect_to_z_and_logarithms(L):
    z = jnp.array([-3.0, 0.2, 1.5, 30.0])
    log_x = potential.log_abs_x_of_z(z, L)
    cases = [
        (potential.t_of_z, z, potential.dt_dz(z, L)),
        (potential.x_of_z, z, potential.dx_dz(z, L)),
        (potential.log_abs_x_of_z, z, 1 / jnp.tanh(z) + (L - 1) * jnp.tanh(z)),
        (
            potential.z_of_log_x,
            log_x,
            1 / (1 / jnp.tanh(jnp.abs(z)) + (L - 1) * jnp.tanh(jnp.abs(z))),
        ),
        (
            potential.log_H,
            log_x,
            jnp.exp(log_x) * potential.t_of_z(jnp.abs(z), L) / potential.H(jnp.exp(log_x), L),
        ),
    ]
    if L > 2:
        slope = -jnp.sign(z) * potential.dt_dz(z, L) / potential.boundary_distance_of_z(z, L)
        cases.append((potential.log_boundary_distance_of_z, z, slope))
    for f, at, expected in cases:
        got = jax.jit(jax.vmap(jax.grad(functools.partial(f, L=L))))(at)
        np.testing.assert_allclose(got, expected, rtol=RTOL)
    # The regime of log_H below e^{-20}: slope 2 and no NaN.
    assert jax.grad(lambda v: potential.log_H(v, L))(-900.0) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_shape_and_transformations(dtype):
    x = jnp.asarray(np.geomspace(1e-30, 1e30, 12).reshape(2, 2, 3), dtype=dtype)
    # 20 ulp: exponentials of an argument up to log(1e30) = 69 lose a few ulp of it.
    rtol = 20 * np.finfo(dtype).eps
    L = 5
    for f in (potential.z_of_x, potential.h_inverse):
        value = f(x, L)
        assert value.dtype == dtype
        assert value.shape == x.shape
        np.testing.assert_allclose(value, f(np.asarray(x, np.float64), L), rtol=rtol)
        mapped = jax.jit(jax.vmap(functools.partial(f, L=L)))(x)
        np.testing.assert_allclose(mapped, value, rtol=rtol)
    big = x[1]
    exact = potential.H(np.asarray(big, np.float64), L)
    np.testing.assert_allclose(potential.H(big, L), exact, rtol=rtol)
    t = jnp.asarray(0.9 * min(potential.boundary(L), 1.0), dtype=dtype)
    assert potential.h(t, L).dtype == dtype
    np.testing.assert_allclose(potential.h(t, L), potential.h(float(t), L), rtol=rtol)
    assert potential.Q(x, L, 0.1, 1.0).dtype == dtype
    assert potential.h(0, 3).dtype == np.float64
    # float32(pi / 2) lies above pi / 2, float64(pi / 2) below.
    assert np.isinf(potential.h(dtype(np.pi / 2), 3)) == (dtype == np.float32)


def test_import_starts_no_backend():
    code = (
        "import lintensor_jax.networks.mirror_map\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
