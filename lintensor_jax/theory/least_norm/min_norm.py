"""Interpolators of least norm: min |beta| subject to X beta = y.

The limits of regression flows: Yun et al. 2021, Theorem 5, Corollaries 5-7, Remark 4, Theorem 7;
Min et al. 2021, Proposition 10; nuclear norm: Gunasekar et al. 2017.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from ...messages import nonzero_entries, shown, told_of_optimum
from .gauge_programs import coordinates_of, kkt_residual, optimum, reweighted
from .gauges import GroupGauge
from .norms import AbstractNorm, L2Norm, WeightedL2Norm

_OPTIMAL = 1e-8


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
    #: KKT residual is above 1e-8; "unchecked" if computed under a JAX transformation.
    status: str = eqx.field(static=True)
    #: Whether beta is certified to be the only minimiser: True, False, or None where that is not
    #: cheap to tell.
    unique: bool | None = eqx.field(static=True)

    def __str__(self) -> str:
        """Status, norm, coefficients and their support, optimality conditions."""
        if isinstance(self.value, Tracer) or self.value.ndim:
            return repr(self)
        lines = [
            f"Interpolator of least norm{told_of_optimum(self.status, self.unique)}",
            f"  norm             {float(self.value):.6g}",
            f"  coefficients     {shown(self.coefficients)}",
            f"  nonzero entries  {nonzero_entries(self.coefficients)}",
            f"  KKT residual     {float(self.kkt_residual):.1e}",
        ]
        return "\n".join(lines)


def min_norm(problem, norm: AbstractNorm, *, start: ArrayLike | None = None) -> MinNorm:
    """The interpolator of least norm, min |beta| subject to <x_i, beta> = y_i for all i.

    Sources: Yun et al. 2021, Remark 4 (l1 and l2 as limits of Theorem 5's Q); Gunasekar et al.
    2018 for the norm of each architecture.

    **Arguments**

    - `problem`: a `Regression` (y of shape (n,) or (n, m)) or a `MatrixSensing` problem.
    - `norm`: a norm object. `L2Norm` and `WeightedL2Norm` are computed with JAX and may be traced
      (consistency is not checked then); all others are solved in float64 on the host.
      For `LpNorm` and `FourierLpNorm` (p < 1, not convex) the answer is a *stationary* point,
      reached from `start` by iteratively reweighted l1.
    - `start`: coefficients, only for p < 1. A stationary point next to the start is kept;
      coordinates that are zero in it stay zero. Default: the l2 solution.

    **Raises** `InconsistentEquationsError` (a ValueError, with the size of the inconsistency) if
    no beta satisfies the equations; ValueError for a problem, norm or start that does not fit.
    """
    sensors, y, shape = _equations(problem)
    if isinstance(norm, L2Norm | WeightedL2Norm):
        if start is not None:
            raise ValueError(_superfluous_start(norm))
        return _least_squares(sensors, y, shape, norm)
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
            "min_norm: problem must be a Regression (X, y) or a MatrixSensing (A, y), got "
            f"{type(problem).__name__}; for classification use max_margin."
        )
    shape = sensors.shape[1:] + problem.y.shape[1:]
    return sensors.reshape(sensors.shape[0], -1), problem.y, shape


def _least_squares(sensors, y, shape, norm):
    """The (weighted) l2 solution by the pseudo-inverse."""
    n, size = sensors.shape
    if isinstance(norm, WeightedL2Norm):
        form_shape = norm.weights.shape
        if form_shape != shape:
            norm.group_form(shape)  # raises the error that names both shapes
        weights = norm.weights.reshape(size, -1)
    else:
        weights = jnp.ones((size, 1), sensors.dtype)

    def solve(target, weight):
        inverse = jnp.linalg.pinv(sensors / weight)
        rho = inverse @ target
        # In the row space rho = A^T nu: nu is the least-squares solution of that.
        return rho, inverse.T @ rho

    outputs = y.reshape(n, -1)
    if weights.shape[1] == 1:
        rho, multipliers = solve(outputs, weights.T)
    else:
        rho, multipliers = jax.vmap(solve, in_axes=(1, 2), out_axes=1)(outputs, weights[None])
    beta = rho / weights
    value = jnp.linalg.norm(rho)
    safe = jnp.where(value > 0, value, 1.0)
    multipliers = multipliers / safe
    misfit = jnp.max(jnp.abs(sensors @ beta - outputs))
    size_of_y = jnp.max(jnp.abs(outputs))
    off = jnp.linalg.norm(sensors.T @ multipliers / weights - rho / safe)
    residual = jnp.maximum(off, misfit / jnp.where(size_of_y > 0, size_of_y, 1.0))
    status = "unchecked"
    if not isinstance(residual, Tracer):
        _require_consistent(np.asarray(sensors @ beta - outputs), np.asarray(outputs), y.dtype)
        tolerance = max(_OPTIMAL, 1e3 * float(jnp.finfo(residual.dtype).eps))
        status = "optimal" if residual <= tolerance else "inaccurate"
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
    gauge, form = coordinates_of(norm, shape, "min_norm")
    quasi = gauge if isinstance(gauge, GroupGauge) and gauge.power < 1 else None
    is_convex = quasi is None
    if is_convex and start is not None:
        raise ValueError(_superfluous_start(norm))
    target = np.asarray(y, np.float64)
    one_output = np.asarray(sensors, np.float64)
    equations = np.kron(one_output, np.eye(target[0].size)) if target.ndim == 2 else one_output
    rows = form.measurements(equations)
    target = target.ravel()
    # Orthonormal equations: redundant or badly scaled samples cost neither rank nor accuracy.
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    kept = singular > max(rows.shape) * np.finfo(float).eps * singular[0]
    left, singular, right = left[:, kept], singular[kept], right[kept]
    _require_consistent(target - left @ (left.T @ target), target, y.dtype)
    reduced = (left.T @ target) / singular
    size = np.linalg.norm(reduced)
    if size == 0:
        return _zero(shape, y.shape, dtype, is_convex)
    unit_target = reduced / size
    if quasi is None:
        level, _ = optimum(gauge, right, unit_target, equality=True)
    else:
        begin = right.T @ unit_target if start is None else _start(start, shape, form)
        found = reweighted(quasi, right, unit_target, begin, equality=True)
        if found is None:
            raise ValueError(
                "min_norm: the equations must be solvable on the nonzero coordinates of start, "
                "and are not; pass a start with more nonzero coordinates."
            )
        level = found[0]
    beta = form.coefficients(level.point * (size / level.level))
    multipliers = left @ (level.multipliers / level.level / singular)
    # Measured on what is returned, against the equations as they were given.
    rho = gauge.cleaned(form.coordinates(beta) / size)
    scale = np.max(np.abs(target))
    residual = kkt_residual(
        gauge, rows * (size / scale), target / scale, rho, multipliers * (scale / size), True
    )
    status = "optimal" if is_convex else "stationary"
    unique = gauge.is_unique(
        right, unit_target, level.point, level.level, level.multipliers, equality=True
    )
    return MinNorm(
        coefficients=jnp.asarray(beta.reshape(shape), dtype),
        value=jnp.asarray(gauge.value(rho) * size, dtype),
        multipliers=jnp.asarray(multipliers.reshape(y.shape), dtype),
        kkt_residual=jnp.asarray(residual, dtype),
        status=status if residual <= _OPTIMAL else "inaccurate",
        unique=unique if residual <= _OPTIMAL else None,
    )


def _zero(shape, y_shape, dtype, is_convex):
    """The answer to y = 0: beta = 0, the only minimiser, with nu = 0."""
    zero = jnp.zeros((), dtype)
    status = "optimal" if is_convex else "stationary"
    return MinNorm(jnp.zeros(shape, dtype), zero, jnp.zeros(y_shape, dtype), zero, status, True)


def _start(start, shape, form):
    array = np.asarray(start, np.float64)
    if array.shape != shape or not np.isfinite(array).all() or not array.any():
        raise ValueError(
            f"min_norm: start must be finite, not zero, and of the coefficients' shape {shape}, "
            f"got shape {array.shape}; pass linear coefficients, not parameters."
        )
    return form.coordinates(array.ravel())


def _require_consistent(misfit, target, dtype):
    """Raise if the part of y outside the range of the data exceeds sqrt(eps) of y."""
    scale = np.max(np.abs(target))
    if scale == 0:
        return
    inconsistency = float(np.linalg.norm(misfit / scale) / np.linalg.norm(target / scale))
    limit = float(np.sqrt(jnp.finfo(dtype).eps))
    if inconsistency > limit:
        raise InconsistentEquationsError(
            "min_norm: y must lie in the range of the data (X beta = y solvable), got a relative "
            f"inconsistency min |X beta - y| / |y| = {inconsistency:.3e} (limit {limit:.1e}); "
            "remove contradictory samples, or add features until n <= d with independent rows.",
            inconsistency,
        )


def _superfluous_start(norm):
    return (
        f"min_norm: start must be left out for the convex {type(norm).__name__}, got an array; "
        "its minimum does not depend on a start."
    )
