"""Limit points of regression from one sample: Theorem 6 of Yun, Krishnan & Mobahi 2021."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Scalar

from ...eager_programs import eager_program
from ...networks.pair import coefficients_like
from ...problems import Regression, named

_BISECTIONS = 128
# Newton's method from 0 to a small root tau has relative errors tau, tau^3, tau^7.
_POLISHING_STEPS = 3
_SMALL_ROOT = 1e-3


class TwoLayerLimit(eqx.Module):
    """The limit of a two-layer gradient flow on one sample, as `limit_point_two_layer` predicts it.

    - `coefficients` (d,): beta at the limit.
    - `network`: the limit parameters.
    - `nu`: g^{-1}(y / alpha^2), which is the time integral of -r. It is +-inf if g does not reach
      y (see `limit_point_two_layer`).
    - `gap`: Theorem 6 assumes that it is positive: the smallest, over the singular subspaces of
      M(x), of (|U_1^T v_1(0)|^2 - |U_2^T v_2(0)|^2) / (dimension of the subspace), in units of
      squared parameters (alpha^2 lambda in the paper's letters).
    - `residual`: <x, beta> - y at the limit; zero to rounding unless `nu` is infinite.
    """

    coefficients: Float[Array, " d"]
    network: Any
    nu: Scalar
    gap: Scalar
    residual: Scalar


def limit_point_two_layer(network: Any, problem: Regression) -> TwoLayerLimit:
    """The limit of gradient flow from `network`, for two layers and a single sample (x, y).

    Source: Yun, Krishnan & Mobahi 2021, Theorem 6 (proof: appendix G), for any data tensor. With
    the compact singular value decomposition M(x) = U_1 diag(s) U_2^T and a = U_1^T v_1(0),
    b = U_2^T v_2(0), the flow is a hyperbolic rotation of (a, b) by the angles s nu, and nu solves

        g(nu) = 1/4 sum_j s_j [(a_j + b_j)^2 exp(2 s_j nu) - (a_j - b_j)^2 exp(-2 s_j nu)] = y.

    Every term is computed from its logarithm, so that initial scales from 1e-150 to 1e150 work. The
    relative error of beta is about 2 s_max |nu| eps, the effect of rounding M(x): a few 1e-13 at a
    scale of 1e-100 and a few 1e-15 at 1e-8.

    The theorem assumes a_j^2 - b_j^2 >= lambda > 0. If singular values coincide, this depends on
    the basis of their subspace. In some basis every a_j^2 - b_j^2 is the mean over the subspace. So
    the condition can be satisfied if and only if this mean is positive. `gap` is the smallest mean;
    singular values closer than sqrt(eps) s_max count as equal. The condition is sufficient, not
    necessary: d nu/dt = y - g(nu) with an increasing g, so the flow converges to this limit
    whenever g reaches y. It does not reach y only if a + b = 0 (y >= 0) or a - b = 0 (y <= 0) in
    all coordinates. Then `nu` is infinite, and the flow ends at the supremum or infimum of g, which
    is zero.

    **Arguments**

    - `network`: v_1(0), v_2(0), with the initial scale: two layers, scalar output; it must have
      `data_tensor`, `factors` and `with_factors`.
    - `problem`: `Regression` with X of shape (1, d) and y of shape (1,).

    Traceable by `jax.jit` and `jax.vmap`; differentiable in the parameters and in y, and in x where
    the singular values of M(x) are distinct. ValueError outside the theorem's setting.
    """
    _require_setting(network, problem)
    return _limit_point(network, problem.X[0], problem.y[0])


@eager_program()  # one program: the first call would compile a hundred small ones
def _limit_point(network, x, y):
    matrix = network.data_tensor(x)
    v1, v2 = network.factors
    left, s, right = jnp.linalg.svd(matrix, full_matrices=False)
    s = jnp.where(s > jnp.finfo(s.dtype).eps * s[0], s, 0)
    unit = jnp.where(s[0] > 0, s[0], 1)
    a, b = left.T @ v1, right @ v2
    # tau = s_max nu and sigma = s / s_max have no units. A dropped singular value has sigma = 0:
    # its coordinates do not move.
    sigma = s / unit
    tau, reached = _solve(a, b, s, sigma, y)
    tau, end1, end2 = _polished(tau, *_rotated(a, b, sigma, tau), s, sigma, y, reached)
    limit1, limit2 = v1 + left @ (end1 - a), v2 + right.T @ (end2 - b)
    # <x, beta> is linear in x, so its gradient is beta: from the data tensor, not from the
    # contractions that the simulation runs on.
    coefficients = jax.grad(lambda x: limit1 @ network.data_tensor(x) @ limit2)(x)
    return TwoLayerLimit(
        coefficients=coefficients,
        network=network.with_factors((limit1, limit2)),
        nu=tau / unit,
        gap=_gap(a, b, s),
        residual=x @ coefficients - y,
    )


@eager_program()
def norm_of_data_tensor(network: Any, x: Float[Array, " d"]) -> Scalar:
    """|M(x)|: the root of the sum of its squared entries."""
    return jnp.linalg.norm(network.data_tensor(x))


def _solve(a, b, s, sigma, y):
    """tau = s_max g^{-1}(y), and whether it is finite."""
    args = (_log_term(a + b, s), _log_term(a - b, s), sigma, y)
    upper = _upper_bound(*jax.lax.stop_gradient(args))
    log_plus, log_minus, sigma, y = jax.lax.stop_gradient(args)
    lower = -_upper_bound(log_minus, log_plus, sigma, -y)
    reached = jnp.isfinite(lower) & jnp.isfinite(upper)
    lower_end, upper_end = jnp.where(reached, lower, -1), jnp.where(reached, upper, 1)
    eps = float(jnp.finfo(s.dtype).eps)
    # _polished removes the remaining error, so missing the tolerances is no failure.
    root = optx.root_find(
        _imbalance,
        optx.Bisection(rtol=4 * eps, atol=1e3 * eps, flip=False),
        0.5 * (lower_end + upper_end),
        args,
        options={"lower": lower_end, "upper": upper_end},
        max_steps=_BISECTIONS,
        throw=False,
    ).value
    # The absolute tolerance makes a small root inaccurate: _polished computes it, starting at 0.
    root = root - jax.lax.stop_gradient(jnp.where(jnp.abs(root) < _SMALL_ROOT, root, 0))
    # With both bounds infinite the flow does not move at all: g = 0 = y.
    beyond = jnp.where(jnp.isinf(lower) & jnp.isinf(upper), 0.0, lower + upper)
    return jnp.where(reached, root, beyond), reached


def _log_term(amplitude, s):
    """log(s amplitude^2 / 4), with zero slope where the amplitude vanishes."""
    present = (amplitude != 0) & (s > 0)
    logs = 2 * jnp.log(jnp.abs(jnp.where(present, amplitude, 1)))
    return jnp.where(present, logs + jnp.log(jnp.where(present, s, 1) / 4), -jnp.inf)


def _imbalance(tau, args):
    """(P - N - y) / (P + N + |y|), increasing from -1 to 1 in tau, for the two sums P, N of g."""
    log_plus, log_minus, sigma, y = args
    fixed = jax.lax.stop_gradient(y)
    terms = [log_plus + 2 * sigma * tau, log_minus - 2 * sigma * tau, jnp.log(jnp.abs(fixed))[None]]
    signs = [jnp.ones_like(sigma), -jnp.ones_like(sigma), -jnp.sign(fixed)[None]]
    terms = jnp.concatenate(terms)
    balance = jax.nn.softmax(terms) @ jnp.concatenate(signs)
    # In the logarithms y is a constant, because log |y| has no derivative at y = 0; the derivative
    # by y is added here. The bound 700 avoids 0 * inf.
    return balance - (y - fixed) * jnp.exp(jnp.minimum(-jax.nn.logsumexp(terms), 700.0))


def _upper_bound(log_plus, log_minus, sigma, y):
    """A tau at which g >= y; inf if there is none."""
    slope = 2 * jnp.where(sigma > 0, sigma, 1)
    log_y = jnp.log(jnp.abs(y))
    # For tau >= 0: P exceeds N(0) + |y| if one of its terms does.
    target = jnp.logaddexp(jax.nn.logsumexp(log_minus), log_y)
    one_term = jnp.where(jnp.isfinite(log_plus), (target - log_plus + 1) / slope, jnp.inf)
    by_growth = jnp.maximum(jnp.min(one_term), 1.0)
    # For y < 0: N is below |y| if every term is below |y| / m.
    all_terms = (log_minus + jnp.log(jnp.asarray(sigma.size, sigma.dtype)) - log_y + 1) / slope
    by_decay = jnp.where(y < 0, jnp.maximum(jnp.max(all_terms), 1.0), jnp.inf)
    return jnp.minimum(by_growth, by_decay)


def _rotated(a, b, sigma, tau):
    """(a cosh + b sinh, a sinh + b cosh) of sigma tau, even if exp(sigma tau) overflows."""
    angle = jnp.where(sigma > 0, sigma, 0) * jnp.where(jnp.isfinite(tau), tau, 0)
    angle = jnp.where((sigma > 0) & ~jnp.isfinite(tau), tau, angle)
    small = jnp.abs(angle) <= 1
    # Up to an angle of 1 cosh and sinh do not cancel; above 1 the sums of exponentials do not.
    inner = jnp.where(small, angle, 0)
    cosh, sinh = jnp.cosh(inner), jnp.sinh(inner)
    outer = jnp.where(small, 0, angle)
    grown, shrunk = _times_exp(a + b, outer) / 2, _times_exp(a - b, -outer) / 2
    return (
        jnp.where(small, a * cosh + b * sinh, grown + shrunk),
        jnp.where(small, a * sinh + b * cosh, grown - shrunk),
    )


def _times_exp(amplitude, exponent):
    present = amplitude != 0
    log_size = jnp.log(jnp.abs(jnp.where(present, amplitude, 1)))
    size = jnp.exp(log_size + jnp.where(present, exponent, 0))
    return jnp.where(present, jnp.sign(amplitude) * size, 0)


def _polished(tau, end1, end2, s, sigma, y, reached):
    """Newton's method for s . (end1 end2) = y, by small rotations beyond the resolution of tau.

    At alpha = 1e-100 one ulp of tau is a relative error of 1e-13 in beta; at large alpha the terms
    of g cancel. The rotations are not differentiated, because tau has its derivative already.
    """
    for _ in range(_POLISHING_STEPS):
        fixed1, fixed2, sizes, target = jax.lax.stop_gradient((end1, end2, s, y))
        slope = jnp.sum(sizes * sigma * (fixed1**2 + fixed2**2))
        usable = reached & (slope > 0)
        step = (target - jnp.sum(sizes * fixed1 * fixed2)) / jnp.where(usable, slope, 1)
        step = jnp.where(usable, step, 0)
        angle = jax.lax.stop_gradient(sigma * step)
        cosh, sinh = jnp.cosh(angle), jnp.sinh(angle)
        end1, end2 = end1 * cosh + end2 * sinh, end1 * sinh + end2 * cosh
        tau = tau + step
    return tau, end1, end2


def _gap(a, b, s):
    kept = s > 0
    step = jnp.abs(jnp.diff(s, prepend=s[:1]))
    subspace = jnp.cumsum(step > jnp.sqrt(jnp.finfo(s.dtype).eps) * s[0])
    # (a - b)(a + b), not a^2 - b^2: balanced layers have a relatively small gap.
    gaps = jnp.where(kept, (a - b) * (a + b), 0)
    sums, sizes = (
        jax.ops.segment_sum(values, subspace, s.size) for values in (gaps, kept.astype(s.dtype))
    )
    return jnp.min(jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), jnp.inf))


def _require_setting(network, problem):
    rule = "Theorem 6 (Yun et al. 2021) is about"
    missing = [
        name for name in ("data_tensor", "factors", "with_factors") if not hasattr(network, name)
    ]
    if missing:
        raise ValueError(
            f"network: {rule} linear tensor networks, which have data_tensor, factors and "
            f"with_factors; {type(network).__name__} lacks {', '.join(missing)}; add them."
        )
    if len(network.factors) != 2:
        raise ValueError(
            f"network: {rule} L = 2 layers, got L = {len(network.factors)}; simulate deeper "
            "networks, or use Theorem 5 where an orthogonal decomposition exists."
        )
    is_regression = isinstance(problem, Regression)
    if not is_regression or not problem.residual_loss.is_convex_with_minimum_at_zero:
        raise ValueError(
            f"problem: {rule} lintensor_jax.Regression with a convex loss that has its only "
            f"minimum at zero, got {named(problem)}; classification has directions of convergence, "
            "not limit points."
        )
    if problem.X.shape[0] != 1:
        raise ValueError(
            f"problem: {rule} a single sample, got n = {problem.X.shape[0]}; keep one row of X and "
            "y, or use Theorem 5 for several."
        )
    shape = coefficients_like(network).shape
    if len(shape) != 1 or problem.y.ndim != 1:
        raise ValueError(
            f"network, problem: {rule} a scalar output, got coefficients of shape {shape} "
            f"and y of shape {problem.y.shape}; use a last layer of shape (d_L,) and y of shape "
            "(1,)."
        )
    if shape != problem.coefficient_shape:
        raise ValueError(
            f"network, problem: the input dimensions must agree, got coefficients of shape "
            f"{shape} and X of shape {problem.X.shape}; change one of the two."
        )
