"""Interpolators of least norm: min |beta| subject to X beta = y.

The limits of regression flows: Yun et al. 2021, Theorem 5, Corollaries 5-7, Remark 4, Theorem 7;
Min et al. 2021, Proposition 10; nuclear norm: Gunasekar et al. 2017.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ...arguments import as_numbers
from ...messages import as_html, nonzero_entries, optimum_status, shown
from .conic import Constraints
from .equations import EPS, in_units, of_order_one, orthonormal
from .gauge_programs import is_unique, kkt_residual, optimum, reweighted
from .gauges import GroupGauge
from .norms import AbstractNorm, L2Norm, WeightedL2Norm, euclidean, gauge_of

_OPTIMAL = 1e-8
# Relative singular values below this count as zero: columns on the support are dependent.
_DEPENDENT = 1e-12
# Rounding errors of data and sums, in units in the last place.
_ROUNDINGS = 64


class InconsistentEquationsError(ValueError):
    """X beta = y has no solution. `.inconsistency` = min over beta of |X beta - y| / |y|."""

    def __init__(self, message: str, inconsistency: float):
        super().__init__(message)
        self.inconsistency = inconsistency


class MinNorm(eqx.Module):
    """Answer of `min_norm`: beta = argmin |beta| subject to X beta = y."""

    #: beta, shape (d,), (d, m) for m outputs, or (d, d) for matrix sensing; in units of y / X.
    coefficients: Float[Array, "..."]
    #: |beta|.
    value: Float[Array, ""]
    #: nu, the shape of y: sum_i nu_i x_i is a subgradient of the norm at beta, <nu, y> = |beta|.
    multipliers: Float[Array, "..."]
    #: The largest violation of the optimality conditions by (beta, nu), dimensionless:
    #: stationarity in units of the dual norm, and max |X beta - y| / max |y|.
    kkt_residual: Float[Array, ""]
    #: "optimal"; "stationary" for a quasi-norm (no claim of optimality); "inaccurate" if the
    #: KKT residual is above max(1e-8, 1e3 eps), eps of the data's dtype: its rounding alone gives
    #: redundant equations a misfit of that size; "unchecked" if computed under a JAX
    #: transformation.
    status: str = eqx.field(static=True)
    #: Whether beta is certified to be the only minimiser: True, False, or None if that
    #: would take too long to decide.
    unique: bool | None = eqx.field(static=True)

    def __str__(self) -> str:
        """Status, norm, coefficients and their support, optimality conditions."""
        if isinstance(self.value, Tracer) or self.value.ndim:
            return repr(self)
        lines = [
            f"Interpolator of least norm{optimum_status(self.status, self.unique)}",
            f"  norm             {float(self.value):.6g}",
            f"  coefficients     {shown(self.coefficients)}",
            f"  nonzero entries  {nonzero_entries(self.coefficients)}",
            f"  KKT residual     {float(self.kkt_residual):.1e}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The text of `__str__` as HTML, for notebooks."""
        return as_html(self)


def min_norm(problem, norm: AbstractNorm, *, start: ArrayLike | None = None) -> MinNorm:
    """The interpolator of least norm, min |beta| subject to <x_i, beta> = y_i for all i.

    Sources: Yun et al. 2021, Remark 4 (l1 and l2 as limits of Theorem 5's Q); Gunasekar et al.
    2018 for the norm of each architecture.

    **Arguments**

    - `problem`: a `Regression` (y of shape (n,) or (n, m)), a `MatrixSensing` or a small
      `MatrixCompletion`. With `bias=True` no norm counts the last coefficient.
    - `norm`: a norm object. `L2Norm` and `WeightedL2Norm` are computed with JAX and may be traced
      (then consistency is not checked); all others are solved in float64 on the host.
      For `LpNorm` and `FourierLpNorm` with p < 1 (not convex) the answer is a *stationary* point,
      reached from `start` by iteratively reweighted l1.
    - `start`: coefficients, only for p < 1. If a stationary point is next to the start, it is the
      answer. Coordinates that are zero in the start stay zero; a coordinate (of the norm) counts
      as zero below 1e-12 of the largest one. Default: the l2 solution.

    **Raises** `InconsistentEquationsError` (a ValueError, with the size of the inconsistency) if
    no beta satisfies the equations; ValueError for a problem, norm or start that does not fit,
    and if the equations cannot be solved on the nonzero coordinates of the start. Equations count
    as unsolved above a relative misfit of sqrt(eps), eps of the data's dtype.
    """
    sensors, y, shape = _equations(problem)
    if getattr(problem, "has_bias", False):
        return _with_free_bias(sensors, y, norm, start)
    return _of_equations(sensors, y, shape, norm, start)


def _with_free_bias(sensors, y, norm, start):
    """The last coefficient is a bias that no norm counts: data and targets minus their means."""
    counted = sensors[:, :-1]
    means = [jnp.mean(values, axis=0, keepdims=True) for values in (counted, y)]
    shape = counted.shape[1:] + y.shape[1:]
    if start is not None:
        _require_start(start, (shape[0] + 1, *shape[1:]))
        start = np.asarray(start)[:-1]
    found = _of_equations(counted - means[0], y - means[1], shape, norm, start)
    bias = means[1] - means[0] @ found.coefficients
    beta = jnp.concatenate([found.coefficients, bias])
    return dataclasses.replace(found, coefficients=beta)


def _of_equations(sensors, y, shape, norm, start):
    if isinstance(norm, L2Norm | WeightedL2Norm):
        if start is not None:
            raise ValueError(_superfluous_start(norm))
        if isinstance(sensors, Tracer) or isinstance(y, Tracer):
            return _least_squares(sensors, y, shape, norm)
        (rows, by_x), (target, by_y) = of_order_one(sensors), of_order_one(y)
        rows, target = (jnp.asarray(a, jnp.result_type(sensors, y)) for a in (rows, target))
        return _scaled(_least_squares(rows, target, shape, norm), by_x, by_y)
    if isinstance(sensors, Tracer) or isinstance(y, Tracer):
        raise ValueError(
            f"min_norm: problem must hold concrete arrays for {type(norm).__name__}, got traced "
            "ones; call it outside jit, grad and vmap (only l2 norms can be traced)."
        )
    return _on_host(sensors, y, shape, norm, start)


def _equations(problem):
    """Sensors (n, D) of one output, y (n,) or (n, m), and the coefficients' shape."""
    sensors = getattr(problem, "A", getattr(problem, "X", None))
    if sensors is None or hasattr(problem, "signed_data") or not hasattr(problem, "y"):
        raise ValueError(
            "min_norm: problem must be a Regression (X, y), a MatrixSensing (A, y) or a "
            f"MatrixCompletion, got {type(problem).__name__}; for classification use max_margin."
        )
    shape = sensors.shape[1:] + problem.y.shape[1:]
    return sensors.reshape(sensors.shape[0], -1), problem.y, shape


def _least_squares(sensors, y, shape, norm):
    """The (weighted) l2 solution by the pseudo-inverse."""
    n, size = sensors.shape
    if isinstance(norm, WeightedL2Norm):
        form_shape = norm.weights.shape
        if form_shape != shape:
            norm.gauge(shape)  # raises the error that names both shapes
        weights = norm.weights.reshape(size, -1)
    else:
        weights = jnp.ones((size, 1), sensors.dtype)

    def solve(target, weight):
        inverse = jnp.linalg.pinv(sensors / weight)
        return inverse @ target, inverse

    def multiply(inverse, unit):
        # rho lies in the row space: nu is the least-squares solution of rho = A^T nu.
        return inverse.T @ unit

    outputs = y.reshape(n, -1)
    one = weights.shape[1] == 1
    if one:
        rho, inverse = solve(outputs, weights.T)
    else:
        rho, inverse = jax.vmap(solve, (1, 2), (1, 0))(outputs, weights[None])
    beta = rho / weights
    value = euclidean(jnp.ravel(rho))
    safe = jnp.where(value > 0, value, 1.0)
    # rho is scaled to length 1, because the product with rho itself may overflow.
    multiply = multiply if one else jax.vmap(multiply, (0, 1), 1)
    multipliers = multiply(inverse, rho / safe)
    misfit = jnp.max(jnp.abs(sensors @ beta - outputs))
    size_of_y = jnp.max(jnp.abs(outputs))
    off = jnp.linalg.norm(sensors.T @ multipliers / weights - rho / safe)
    residual = jnp.maximum(off, misfit / jnp.where(size_of_y > 0, size_of_y, 1.0))
    status = "unchecked"
    if not isinstance(residual, Tracer):
        require_consistent(np.asarray(sensors @ beta - outputs), np.asarray(outputs), y.dtype)
        status = "optimal" if residual <= _tolerance(residual.dtype) else "inaccurate"
    return MinNorm(
        coefficients=beta.reshape(shape),
        value=value,
        multipliers=multipliers.reshape(y.shape),
        kkt_residual=residual,
        status=status,
        unique=True,
    )


def _on_host(sensors, y, shape, norm, start):
    """All other norms: a conic program in coordinates in which the equations are orthonormal."""
    dtype = jnp.result_type(sensors, y)
    gauge, form = gauge_of(norm, shape, "min_norm")
    is_convex = gauge.is_convex
    if is_convex and start is not None:
        raise ValueError(_superfluous_start(norm))
    # Data and targets are scaled to order one: their ratio may be near the limits of float64.
    target, by_y = of_order_one(y)
    one_output, by_x = of_order_one(sensors)
    rows = np.kron(one_output, np.eye(target[0].size)) if target.ndim == 2 else one_output
    equations = orthonormal(form.measurements(rows), target.ravel())
    require_consistent(equations.misfit, equations.target, y.dtype)
    if equations.size == 0:
        return _zero(shape, y.shape, dtype, is_convex)
    unique = None
    if is_convex:
        given = Constraints.of(equations.right, equations.unit_target, equality=True)
        level, _ = optimum(gauge, given)
        rho, multipliers = equations.solution(level)
        unique = is_unique(gauge, given, level)
    else:
        begin = None if start is None else _start(start, shape, form)
        rho, multipliers = _stationary_point(gauge, equations, begin, y.dtype)
    beta = form.coefficients(rho)
    # The residual is measured for the returned values, with the user's equations.
    rho = gauge.cleaned(form.coordinates(beta) / equations.size)
    scale = np.max(np.abs(equations.target))
    users = Constraints.of(
        equations.rows * (equations.size / scale), equations.target / scale, equality=True
    )
    residual = kkt_residual(gauge, users, rho, multipliers * (scale / equations.size), np.zeros(0))
    status = "optimal" if is_convex else "stationary"
    # One transfer for all arrays, as in `max_margin`.
    found = MinNorm(
        **jax.device_put(
            {
                "coefficients": beta.reshape(shape),
                "value": np.asarray(gauge.value(rho) * equations.size),
                "multipliers": multipliers.reshape(y.shape),
                "kkt_residual": np.asarray(residual, dtype),
            }
        ),
        status=status if residual <= _tolerance(y.dtype) else "inaccurate",
        unique=unique if residual <= _OPTIMAL else None,
    )
    return _scaled(found, by_x, by_y)


def _scaled(found, by_x, by_y):
    """The answer for data and targets that were divided by 2^by_x and 2^by_y."""
    dtype = found.kkt_residual.dtype
    return dataclasses.replace(
        found,
        coefficients=in_units(found.coefficients, by_y - by_x, dtype),
        value=in_units(found.value, by_y - by_x, dtype),
        multipliers=in_units(found.multipliers, -by_x, dtype),
    )


def _stationary_point(gauge, equations, start, dtype):
    """rho and multipliers for a power below 1, on the support of the start.

    Coordinates outside the support stay zero. Without them the equations are a smaller problem of
    the same kind. Whether it has a solution is decided before the minimisation.
    """
    begin = equations.right.T @ equations.unit_target if start is None else start
    begin = gauge.cleaned(begin)
    on = (gauge.group_norms(begin) > 0)[gauge.labels]
    part = orthonormal(equations.rows[:, on], equations.target)
    if start is not None:
        _require_solvable(equations, part, on, dtype)
    inner = GroupGauge(np.unique(gauge.labels[on], return_inverse=True)[1], gauge.power)
    given = Constraints.of(part.right, part.unit_target, equality=True)
    found = reweighted(inner, given, begin[on], np.zeros(0))
    if found is None:
        raise ValueError(
            "min_norm: the equations must be solvable in float64 on the nonzero coordinates of "
            "start, and were not solved; pass a start with more nonzero coordinates."
        )
    rho = np.zeros_like(begin)
    rho[on], multipliers = part.solution(found[0])
    return rho, multipliers


def _require_solvable(equations, part, on, dtype):
    """Raise if the equations cannot be solved on the coordinates `on`.

    There are two measures, since neither detects samples of every scale. The first is the part of
    y outside the range of the columns `on`, relative to y. The second is the same for the
    orthonormal equations. The limit of both is sqrt(eps) of the data's dtype. For the second, the
    rounding of the data and of cancelling terms is added to the limit.
    """
    eps = float(jnp.finfo(dtype).eps)
    limit = np.sqrt(eps)
    scale = np.max(np.abs(part.target))
    misfit = np.linalg.norm(part.misfit / scale) / np.linalg.norm(part.target / scale)
    columns = equations.right[:, on]
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    left, singular = (a[..., singular > _DEPENDENT * singular[0]] for a in (left, singular))
    explained = left.T @ equations.unit_target
    outside = np.linalg.norm(equations.unit_target - left @ explained)
    cancelling = np.linalg.norm(explained / singular)
    condition = equations.singular[0] / equations.singular[-1]
    rounding = _ROUNDINGS * (EPS * cancelling + eps * condition)
    if misfit > limit or outside > limit + rounding:
        raise ValueError(
            "min_norm: the equations must be solvable on the nonzero coordinates of start, got a "
            f"relative misfit of {max(misfit, outside):.3e} (limit {limit:.1e}); pass a start "
            "with more nonzero coordinates."
        )


def _zero(shape, y_shape, dtype, is_convex):
    """The answer to y = 0: beta = 0, the only minimiser, with nu = 0."""
    zero = jnp.zeros((), dtype)
    status = "optimal" if is_convex else "stationary"
    return MinNorm(jnp.zeros(shape, dtype), zero, jnp.zeros(y_shape, dtype), zero, status, True)


def _tolerance(dtype):
    """The KKT residual up to which an answer counts as accurate."""
    return max(_OPTIMAL, 1e3 * float(jnp.finfo(dtype).eps))


def _start(start, shape, form):
    array, _ = of_order_one(_require_start(start, shape).ravel())  # only its direction counts
    return form.coordinates(array)


def _require_start(start, shape):
    given = as_numbers(start, "start", "min_norm")
    if jnp.iscomplexobj(given):
        raise ValueError(f"min_norm: start must be real, got dtype {given.dtype}; pass its parts.")
    array = np.asarray(start, np.float64)
    if array.shape != shape or not np.isfinite(array).all() or not array.any():
        raise ValueError(
            f"min_norm: start must be finite, not zero, and of the coefficients' shape {shape}, "
            f"got shape {array.shape}; pass linear coefficients, not parameters."
        )
    return array


def require_consistent(misfit, target, dtype, owner="min_norm"):
    """Raise if the part of y outside the range of the data exceeds sqrt(eps) of y."""
    scale = np.max(np.abs(target))
    if scale == 0:
        return
    inconsistency = float(np.linalg.norm(misfit / scale) / np.linalg.norm(target / scale))
    limit = float(np.sqrt(jnp.finfo(dtype).eps))
    if inconsistency > limit:
        raise InconsistentEquationsError(
            f"{owner}: y must lie in the range of the data (X beta = y solvable), got a relative "
            f"inconsistency min |X beta - y| / |y| = {inconsistency:.3e} (limit {limit:.1e}); "
            "remove contradictory samples, or add features until n <= d with independent rows.",
            inconsistency,
        )


def _superfluous_start(norm):
    return (
        f"min_norm: start must be left out for the convex {type(norm).__name__}, got an array; "
        "its minimum does not depend on a start."
    )
