"""The mirror map h_L of Theorem 5, its inverse, and its potential H_L.

Source: Yun, Krishnan & Mobahi 2021, Lemma 4 and Theorem 5 (proofs: appendix F, eqs. 59-67).
Lemma 4 sets p' = p^{L-2} q, q' = p^{L-1}, p(0) = 1, q(0) = 0 on (-c_L, c_L) and h_L = p^{L-1} q.
All functions use the coordinate z = asinh(q), because p^2 - q^2 = 1 makes everything explicit:

    x = h_L(t) = sinh z cosh^{L-1} z,   t = int_0^z cosh^{2-L},   H_L(x) = t x - sinh^2(z) / 2.

For L >= 3, large x belong to t close to c_L. A float t cannot resolve them; z can. Code that solves
for a limit should therefore use z (or log |x|) and compute t only for output.

Common to all functions: quantities are dimensionless. Arrays may have any shape; functions are
elementwise (only `Q` and `log_Q` sum). float32 and float64 are kept. jit, vmap and both modes of
differentiation work; first and second derivatives are exact. `L`, the number of layers, is static:
a Python int >= 2. Any other L, or a complex array, raises ValueError.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .mirror_map_arguments import as_float, checked_depth

# Below this log |x| the linear regime t = z = x, H = x^2/2 holds to relative O(e^{-40}).
_LINEAR_BELOW = -20.0
# From the initial guesses below, Newton's iterations reach rounding within 5 steps for L <= 16 and
# within 6 for L <= 64. The number of steps is fixed, so that no lane depends on other lanes.
_NEWTON_STEPS = 6


def _apply_slope(function, slope, L, primals, tangents):
    value = function(primals[0], L)
    return value, slope(primals[0], value, L) * tangents[0]


def _elementwise(slope: Callable | None = None) -> Callable[[Callable], Callable[..., Array]]:
    """Checks and compiles; `slope(argument, value, L)` is the derivative where autodiff fails."""

    def decorate(function):
        inner = function
        if slope is not None:
            inner = jax.custom_jvp(function, nondiff_argnums=(1,))
            inner.defjvp(functools.partial(_apply_slope, inner, slope))
        compiled = jax.jit(inner, static_argnums=1)

        name = function.__code__.co_varnames[0]

        @functools.wraps(function)
        def wrapper(argument, L):
            return compiled(as_float(argument, name), checked_depth(L))

        return wrapper

    return decorate


@functools.lru_cache
def _boundary_parts(L: int, dtype: np.dtype) -> tuple[Any, Any]:
    # c_L as an unevaluated sum of two floats, so that c_L - |t| is exact for every float t.
    n = L - 2
    half_pi = (Fraction(math.pi) + Fraction(1.2246467991473532e-16)) / 2  # 33 digits
    value, k = (half_pi, 1) if n % 2 else (Fraction(1), 2)
    while k < n:
        k += 2
        value *= Fraction(k - 2, k - 1)
    high = dtype.type(float(value))
    return high, dtype.type(float(value - Fraction(float(high))))


def boundary(L: int) -> float:
    """c_L = B(1/2, (L-2)/2) / 2, the end of h_L's domain (-c_L, c_L), as a Python float.

    L = 2: inf, L = 3: pi/2, L = 4: 1; it decreases in L. Lemma 4 states that it exists; the closed
    form follows from t = q 2F1(1/2, (L-1)/2; 3/2; -q^2). ValueError unless L is an int >= 2.
    """
    L = checked_depth(L)
    return math.inf if L == 2 else float(_boundary_parts(L, np.dtype(np.float64))[0])


@jax.custom_jvp
def _log_cosh(z):
    return jnp.abs(z) + jnp.log1p(jnp.exp(-2 * jnp.abs(z))) - math.log(2)


@_log_cosh.defjvp
def _(primals, tangents):
    # Automatic differentiation of |z| would give the second derivative 0 at z = 0; it is 1.
    return _log_cosh(primals[0]), jnp.tanh(primals[0]) * tangents[0]


def _growth(z, L):
    # dx/dz = cosh^L z times this factor, which is in [1, L].
    return 1 + (L - 1) * jnp.tanh(z) ** 2


@_elementwise()
def x_of_z(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """x = p^{L-1} q = sinh z cosh^{L-1} z (Lemma 4); odd, increasing, +-inf where x overflows."""
    return jnp.sinh(z) * jnp.cosh(z) ** (L - 1)


@_elementwise()
def dx_dz(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """dx/dz = cosh^{L-2} z (cosh^2 z + (L-1) sinh^2 z) > 0."""
    return jnp.cosh(z) ** (L - 2) * (jnp.cosh(z) ** 2 + (L - 1) * jnp.sinh(z) ** 2)


@_elementwise()
def dt_dz(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """dt/dz = cosh^{2-L} z in [0, 1] (Lemma 4: dq/dt = p^{L-1})."""
    # L = 2 is a separate case, because of 0 * inf at z = +-inf.
    return jnp.exp((2 - L) * _log_cosh(z)) if L > 2 else jnp.ones_like(z)


@_elementwise(slope=lambda z, _, L: 1 / jnp.tanh(z) + (L - 1) * jnp.tanh(z))
def log_abs_x_of_z(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """log |x| at z, also if x itself overflows; -inf at z = 0 (where the derivative is inf)."""
    log_sinh = jnp.abs(z) + jnp.log(-jnp.expm1(-2 * jnp.abs(z)) / 2)
    return log_sinh + (L - 1) * _log_cosh(z)


@_elementwise(slope=lambda z, _, L: dt_dz(z, L))
def t_of_z(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """t = int_0^z cosh^{2-L}: h_L^{-1}(x) at the x that belongs to z (Lemma 4), to a few ulp.

    For L >= 3 it rounds to +-c_L at large |z|; `boundary_distance_of_z` is the difference.
    """
    n = L - 2
    if n == 0:
        return jnp.asarray(z)
    sech, tanh = jnp.exp(-_log_cosh(z)), jnp.tanh(z)
    # int sech^k = (sech^{k-2} tanh + (k-2) int sech^{k-2}) / (k-1). All terms have the sign of z:
    # nothing cancels. The first integral is the Gudermannian (k = 1) or tanh (k = 2).
    k, t = (1, 2 * jnp.arctan(jnp.tanh(jnp.asarray(z) / 2))) if n % 2 else (2, tanh)
    while k < n:
        k += 2
        t = (sech ** (k - 2) * tanh + (k - 2) * t) / (k - 1)
    return t


@_elementwise(slope=lambda z, d, L: -jnp.sign(z) * jnp.exp((2 - L) * _log_cosh(z) - d))
def log_boundary_distance_of_z(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """log(c_L - |t|) at z; inf for L = 2."""
    n = L - 2
    if n == 0:
        return jnp.full_like(z, jnp.inf)
    # With sin(psi) = sech(z): int_0^psi sin^{n-1} = psi^n int_0^1 u^{n-1} (sin(psi u) / (psi
    # u))^{n-1} du. The integrand is positive and entire. So Gauss-Legendre with 12 + n nodes is
    # exact to rounding for psi in (0, pi/2], that is for every z.
    size = jnp.abs(z)
    psi = 2 * jnp.arctan(jnp.exp(-size))
    log_psi = jnp.where(size > 20, math.log(2) - size, jnp.log(psi))
    nodes, weights = np.polynomial.legendre.leggauss(12 + n)
    u, weights = (nodes + 1) / 2, weights / 2 * ((nodes + 1) / 2) ** (n - 1)
    u, weights = (jnp.asarray(v, psi.dtype).reshape((1,) * psi.ndim + (-1,)) for v in (u, weights))
    # jnp.sinc(y) is sin(pi y) / (pi y).
    tail = jnp.sum(weights * jnp.sinc(psi[..., None] * u / math.pi) ** (n - 1), axis=-1)
    return n * log_psi + jnp.log(tail)


def boundary_distance_of_z(z: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """c_L - |t| = int_{|z|}^inf cosh^{2-L}, accurate until it underflows; inf for L = 2."""
    return jnp.exp(log_boundary_distance_of_z(z, L))


def _solve(small_x, log_x, L):
    """z >= 0 from x where x <= 1 and from log x where x > 1, each relatively accurate there."""
    small = log_x < 0
    # With S = sinh^2 z, x^2 = S (1+S)^{L-1} >= ((1+S)^L - 1) / L. Solving for equality gives an
    # upper bound that is right to the factor L^{1/L} everywhere. Here e = log(1 + S).
    e = jnp.logaddexp(0, 2 * log_x + math.log(L)) / L
    z = e / 2 + jnp.log1p(jnp.sqrt(-jnp.expm1(-e)))
    z = jnp.where(log_x < _LINEAR_BELOW, small_x, z)

    def step(_, z):
        # Both forms are evaluated in every lane. The form that is not used may overflow.
        linear = (x_of_z(z, L) - small_x) / dx_dz(z, L)
        logarithmic = (log_abs_x_of_z(z, L) - log_x) * jnp.tanh(z) / _growth(z, L)
        return z - jnp.where(small, linear, logarithmic)

    z = jax.lax.fori_loop(0, _NEWTON_STEPS, step, z)
    return jnp.where(jnp.isposinf(log_x), log_x, z)


@_elementwise(slope=lambda _, z, L: jnp.exp(-L * _log_cosh(z)) / _growth(z, L))
def z_of_x(x: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """The z with sinh z cosh^{L-1} z = x (Lemma 4), for every x, +-inf included; a few ulp."""
    size = jnp.abs(x)
    return jnp.sign(x) * _solve(jnp.minimum(size, 1), jnp.log(size), L)


@_elementwise(slope=lambda _, z, L: jnp.tanh(z) / _growth(z, L))
def z_of_log_x(log_abs_x: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """z >= 0 from log |x|, also if |x| overflows or underflows; 0 if z itself underflows."""
    return _solve(jnp.exp(jnp.minimum(log_abs_x, 0)), log_abs_x, L)


def _boundary_distance_of_t(t, L):
    high, low = _boundary_parts(L, np.dtype(t.dtype))
    # Without the barrier XLA adds the two constants first, and `low` is lost.
    return jax.lax.optimization_barrier(high - jnp.abs(jax.lax.stop_gradient(t))) + low


@_elementwise(slope=lambda _, z, L: jnp.exp((L - 2) * _log_cosh(z)))
def _z_of_t(t, L):
    """z from t inside (-c_L, c_L), L >= 3; meaningless outside."""
    size = jnp.abs(t)
    log_distance = jnp.log(_boundary_distance_of_t(t, L))
    near = size > boundary(L) / 2
    # For |t| < c_L / 2 the equation for t is well conditioned. For larger |t| the equation for
    # log(c_L - |t|) is, which is nearly linear in z. Newton converges monotonically in both forms.
    outer = math.log(2) - (log_distance + math.log(L - 2)) / (L - 2)
    z = jnp.where(near, outer, size)

    def step(_, z):
        log_slope = (2 - L) * _log_cosh(z)
        value = log_boundary_distance_of_z(z, L)
        outer = (log_distance - value) * jnp.exp(value - log_slope)
        inner = (t_of_z(z, L) - size) * jnp.exp(-log_slope)
        return z - jnp.where(near, outer, inner)

    return jnp.sign(t) * jax.lax.fori_loop(0, _NEWTON_STEPS, step, z)


@_elementwise()
def h(t: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """h_L(t) = p_L(t)^{L-1} q_L(t) (Lemma 4), odd and increasing on (-c_L, c_L).

    h_2 = sinh(2t)/2, h_3 = sec^2 t tan t, h_4 = t / (1 - t^2)^2. Outside (-c_L, c_L): +-inf with
    derivative zero. The result is accurate for the given float t. But for L >= 3 the floats t near
    c_L are sparse (condition number t h'/h ~ 1/(c_L - |t|)); for a very large h use `x_of_z`.
    """
    if L == 2:
        return x_of_z(t, L)
    t = jnp.asarray(t)
    inside = _boundary_distance_of_t(t, L) > 0
    x = x_of_z(_z_of_t(jnp.where(inside, t, 0), L), L)
    # sign(nan) is nan.
    return jnp.where(inside, x, jnp.inf * jax.lax.stop_gradient(jnp.sign(t)))


@_elementwise()
def h_inverse(x: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """h_L^{-1}(x) in [-c_L, c_L] (Lemma 4, F.2.2) for every x, +-inf included, to a few ulp.

    For L >= 3 it rounds to +-c_L at large |x|; `boundary_distance_of_z` is the difference.
    """
    return t_of_z(z_of_x(x, L), L)


def _mean_t(z, L):
    # H(x) / |x| = t - q^2 / (2 x): cancellation loses at most a factor 3, as t x / 2 <= H <= t x.
    return t_of_z(z, L) - jnp.tanh(z) * dt_dz(z, L) / 2


@_elementwise(slope=lambda x, _, L: h_inverse(x, L))
def H(x: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """H_L(x) = int_0^x h_L^{-1} (Theorem 5, eq. 67), even, convex; x^2/2 near 0 underflows."""
    return jnp.abs(x) * _mean_t(jnp.abs(z_of_x(x, L)), L)


def _log_of(function, log_x, L):
    """Whether x is in the linear regime; log function(z) (in that regime finite, not used)."""
    linear = log_x < _LINEAR_BELOW
    z = z_of_log_x(jnp.where(linear, 0, log_x), L)
    return linear, jnp.log(function(z, L))


@_elementwise()
def log_H(log_abs_x: Float[ArrayLike, "*shape"], L: int) -> Float[Array, "*shape"]:
    """log H_L(x) from log |x|, also if x or H overflow or underflow; -inf at x = 0 (Theorem 5)."""
    linear, log_mean = _log_of(_mean_t, log_abs_x, L)
    return jnp.asarray(log_abs_x) + jnp.where(linear, log_abs_x - math.log(2), log_mean)


# e^b H(rho e^{-a}) and its derivatives, in logarithms: alpha^L and alpha^{L-2} may underflow.


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _scaled_H(rho, a, b, L):
    return jnp.exp(b + log_H(jnp.log(jnp.abs(rho)) - a, L))


@_scaled_H.defjvp
def _(L, primals, tangents):
    rho, a, b = primals
    value, slope = _scaled_H(rho, a, b, L), _scaled_t(rho, a, b, L)
    return value, slope * (tangents[0] - rho * tangents[1]) + value * tangents[2]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _scaled_t(rho, a, b, L):
    # d/drho of the above, e^{b-a} t.
    log_x = jnp.log(jnp.abs(rho)) - a
    linear, log_t = _log_of(t_of_z, log_x, L)
    return jnp.sign(rho) * jnp.exp(b - a + jnp.where(linear, log_x, log_t))


@_scaled_t.defjvp
def _(L, primals, tangents):
    rho, a, b = primals
    slope, zero = _scaled_t(rho, a, b, L), rho == 0
    # At rho = 0 the derivative of z is zero (H is even), but that of the logarithm would be NaN.
    log_rho = jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, jnp.abs(rho))))
    z = z_of_log_x(log_rho - a, L)
    # d^2/drho^2, e^{b-2a} dt/dx.
    curvature = jnp.exp(b - 2 * a - (2 * L - 2) * _log_cosh(z)) / _growth(z, L)
    move = tangents[0] - rho * tangents[1]
    return slope, curvature * move + slope * (tangents[2] - tangents[1])


def _log_scale(value, name, positive, shape, dtype):
    given = np.shape(value)
    if len(given) > len(shape) or any(
        n not in (1, m) for n, m in zip(given[::-1], shape[::-1], strict=False)
    ):
        raise ValueError(f"{name} must broadcast to {shape} (from rho's shape), got shape {given}.")
    try:
        concrete = np.asarray(value, dtype=np.float64)
    except jax.errors.TracerArrayConversionError:
        # Inside a transformation the value cannot be checked; a negative alpha gives NaN.
        log = jnp.log(value if positive else jnp.abs(value))
    else:
        if not np.all(np.isfinite(concrete) & (concrete > 0 if positive else concrete != 0)):
            raise ValueError(
                f"{name} must be {'> 0' if positive else 'nonzero'} and finite (Theorem 5 starts "
                f"from alpha * eta), got {value!r}. For alpha -> 0, pass e.g. 1e-50."
            )
        # On the host in float64: in float32 alpha = 1e-50 itself would be zero.
        log = jnp.asarray(np.log(np.abs(concrete)))
    return jnp.broadcast_to(log.astype(dtype), shape)


def _prepare(rho, alpha, eta):
    rho = as_float(rho, "rho")
    if rho.ndim == 0:
        raise ValueError("rho must have shape (..., m), got a scalar: pass [rho].")
    alpha, eta = (
        v if isinstance(v, int | float) else as_float(v, name)
        for v, name in ((alpha, "alpha"), (eta, "eta"))
    )
    dtype = jnp.result_type(rho, alpha, eta)
    log_alpha = _log_scale(alpha, "alpha", True, rho.shape[:-1], dtype)
    log_eta = _log_scale(eta, "eta", False, rho.shape, dtype)
    return rho.astype(dtype), log_alpha[..., None] + log_eta


@functools.partial(jax.jit, static_argnums=2)
def _Q(rho, log_scale, L):
    return jnp.sum(_scaled_H(rho, L * log_scale, 2 * log_scale, L), axis=-1)


@functools.partial(jax.jit, static_argnums=2)
def _log_Q(rho, log_scale, L):
    a, b = L * log_scale, 2 * log_scale
    # The shift is a constant close to log Q: nothing overflows, and derivatives stay exact.
    terms = jax.lax.stop_gradient(b + log_H(jnp.log(jnp.abs(rho)) - a, L))
    shift = jax.nn.logsumexp(terms, axis=-1)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    return shift + jnp.log(jnp.sum(_scaled_H(rho, a, b - shift[..., None], L), axis=-1))


def Q(
    rho: Float[ArrayLike, "*b m"], L: int, alpha: ArrayLike, eta: ArrayLike
) -> Float[Array, "*b"]:
    """Q_{L,alpha,eta}(rho) = alpha^2 sum_j eta_j^2 H_L(rho_j / (alpha^L |eta_j|^L)).

    Its minimum over the solutions of X S^T rho = y is the limit of the flow from v_l = alpha U_l
    eta (l < L), v_L = 0. Source: Yun et al. 2021, Theorem 5 and eq. (67). Computed in logarithms:
    exact to ~1e-12 unless Q overflows to inf or underflows to 0; then use `log_Q`.

    **Arguments**

    - `rho`: shape (..., m); the sum is over the last axis.
    - `alpha`: initial scale > 0, broadcastable to rho.shape[:-1]; 1e-50 is fine.
    - `eta`: initial direction, nonzero entries, broadcastable to rho.shape.

    ValueError for a wrong L or shape, and for wrong values of alpha or eta (these are not checked
    if they are traced).
    """
    return _Q(*_prepare(rho, alpha, eta), checked_depth(L))


def log_Q(
    rho: Float[ArrayLike, "*b m"], L: int, alpha: ArrayLike, eta: ArrayLike
) -> Float[Array, "*b"]:
    """log Q, also if Q overflows or underflows; otherwise as `Q`.

    At rho = 0 it is -inf and has no derivative.
    """
    return _log_Q(*_prepare(rho, alpha, eta), checked_depth(L))
