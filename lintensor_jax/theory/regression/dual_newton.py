"""Minimisers of separable potentials under linear equations, from large to small initial scales.

Every mirror flow of regression ends at the solution of

    A rho = b,   slope_j(rho_j) = [A^T nu]_j,

where slope_j is the derivative of the potential's j-th term (Yun et al. 2021, eq. 67 and its KKT
conditions in F.2.2). Neither rho nor nu alone can be the unknown: at a small initial scale rho_j
varies over hundreds of orders of magnitude, and A^T nu lies within rounding of the end of the
slope's range. Here rho and slope are both functions of a third coordinate z (`AbstractMirror`), and
Newton's method runs in (z, nu) along a path of decreasing initial scales. If the mirror map is a
hyperbolic sine, Newton's method in nu alone is tried first (`direct_newton`). It has a tenth of the
cost, and succeeds unless the initial scale is small.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from ...lapack_calls import in_turn
from .direct_newton import solve_directly
from .mirror import AbstractMirror
from .weighted_projections import (
    Factors,
    factorize,
    multipliers,
    parts_of,
    range_part,
    rest_of,
    unless_rounding,
)

_MAX_ITERATIONS = 200
# The longest step in z; longer ones are shortened, because rho is exponential in z.
_LONGEST_STEP = 1.0
# The path continues to the next scale if the correction at this one is below `_ON_PATH`. It
# doubles its stride (in the logarithm of the scale) if the correction is below `_NEAR_PATH`.
_ON_PATH = 0.5
_NEAR_PATH = 0.1
_FIRST_STRIDE = 2.3
_FASTEST = 4


class MirrorSolution(NamedTuple):
    """What `minimize` returns.

    - `rho` (m,), `nu` (n,): the minimiser and its multipliers, in the slope's unit.
    - `z` (m,): rho's coordinate.
    - `num_iterations`: the number of linear systems solved, by `direct_newton` and on the path.
    - `converged`: whether the last step, at the wanted scale, was below sqrt(eps) in z.
    - `stationarity`: max_j |slope_j - [A^T nu]_j| / max_j |slope_j|; 0 for a zero slope.
    """

    rho: Float[Array, " m"]
    nu: Float[Array, " n"]
    z: Float[Array, " m"]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    stationarity: Scalar


def minimize(
    mirror: AbstractMirror, rows: Float[Array, "n m"], values: Float[Array, " n"]
) -> MirrorSolution:
    """Minimise the potential of `mirror` subject to rows @ rho = values.

    If the equations contradict each other, `values` is replaced by its projection on the range of
    `rows` (as by gradient flow). If the multipliers are not unique, the shortest are returned. It
    never raises: check `converged`, `stationarity` and rows @ rho - values.

    If the slope is within rounding of the end of its range, nu does not determine rho, but z does.
    Then rho is the minimiser for a potential whose slopes are off by a few roundings (a backward
    error). That changes rho only if the l1 problem of the limit has two solutions, or nearly so.

    Works under `jax.jit` and `jax.vmap`, and has implicit derivatives of first order, forward and
    reverse, in `mirror`, `rows` and `values` (in `rows`: for full row rank).
    """
    mirror, rows, values = jax.tree.map(jnp.asarray, (mirror, rows, values))
    fixed = jax.lax.stop_gradient((mirror, rows, values))
    equations = _orthonormal(*fixed[1:])
    end = _solution(fixed[0], equations)
    z, nu = end.z, equations.transform.T @ end.nu
    rho, nu = _at_solution(mirror, rows, values, equations, z, nu, end.rho)
    # The coordinate z of rho, with its derivative, and corrected to first order for rounding in z.
    steepness = jnp.exp(-fixed[0].log_drho_dz(z))
    coordinate = z + steepness * (rho - mirror.rho(z))
    slope = fixed[0].slope(z)
    largest = jnp.max(jnp.abs(slope))
    mismatch = jnp.max(jnp.abs(slope - fixed[1].T @ jax.lax.stop_gradient(nu)))
    stationarity = mismatch / jnp.where(largest > 0, largest, 1)
    return MirrorSolution(rho, nu, coordinate, end.num_iterations, end.converged, stationarity)


class _Equations(NamedTuple):
    """rows @ rho = values with orthonormal (or, beyond the rank, zero) rows."""

    rows: Array
    values: Array
    transform: Array  # (k, n): transform @ (the given rows) = rows


def _orthonormal(rows, values):
    # Rows are first scaled to length one, so that none is lost in the rounding of a longer one.
    lengths = jnp.linalg.norm(rows, axis=1)
    lengths = jnp.where(lengths > 0, lengths, 1)
    # The singular values of a wide matrix are those of a small triangle.
    Q, R = jnp.linalg.qr((rows / lengths[:, None]).T)
    left, sizes, right = jnp.linalg.svd(in_turn(R, Q).T, full_matrices=False)
    right = right @ Q.T
    kept = sizes > jnp.finfo(sizes.dtype).eps * max(rows.shape) * sizes[0]
    # The projection on the range of the given rows; the identity if they are independent.
    spanning = lengths[:, None] * jnp.where(kept, left, 0)
    projected = spanning @ jnp.linalg.pinv(spanning) @ values
    full = jnp.all(kept) & (rows.shape[0] <= rows.shape[1])
    transform = (
        jnp.where(kept, 1 / jnp.where(kept, sizes, 1), 0)[:, None] * (left / lengths[:, None]).T
    )
    right = in_turn(jnp.where(kept[:, None], right, 0), projected)
    return _Equations(right, transform @ jnp.where(full, values, projected), transform)


def _imbalance(mirror, equations, factors, z):
    """rows @ rho - values, in the basis of `parts_of`; zero where it is of rounding size."""
    rho = mirror.rho(z)
    terms = jnp.abs(rho) + jnp.abs(z) * jnp.exp(mirror.log_drho_dz(z))
    rounding = jnp.abs(equations.rows) @ terms + jnp.abs(equations.values)
    imbalance = factors.basis @ (equations.rows @ rho - equations.values)
    return unless_rounding(imbalance, jnp.abs(factors.basis) @ rounding)


class _End(NamedTuple):
    """The solution; nu belongs to the orthonormal rows."""

    z: Array
    nu: Array
    rho: Array
    num_iterations: Array
    converged: Array


def _solution(mirror, equations):
    """The solution by `solve_directly` if that converges, else along the path."""
    mirror_map = mirror.as_hyperbolic_sine
    if mirror_map is None:
        return _path_end(mirror, equations)
    direct = solve_directly(mirror_map, equations.rows, equations.values)
    end = _End(direct.z, direct.nu, direct.rho, direct.num_iterations, direct.converged)

    def follow(state):
        end, _ = state
        path = _path_end(mirror, equations, end)
        path = path._replace(num_iterations=path.num_iterations + end.num_iterations)
        return path, jnp.ones((), bool)

    # Not `cond`: under vmap it would always run the path. This loop runs it once, or never.
    return jax.lax.while_loop(lambda state: ~state[1], follow, (end, end.converged))[0]


def _path_end(mirror, equations, found: _End | None = None):
    """The end of the path; lanes of a vmap for which `found` has converged take no step."""
    end = _follow(mirror, equations, found)
    rho = _corrected(mirror.rho(end.z), equations, end.factors)
    return _End(end.z, end.nu, rho, end.num_iterations, end.converged)


class _State(NamedTuple):
    z: Array
    nu: Array
    log_factor: Array  # of the scale at which (z, nu) is meant to solve the equations
    stride: Array
    converged: Array
    num_iterations: Array
    factors: Factors


def _start(mirror, equations, found):
    """The start of the path, at a scale at which the mirror map is nearly linear."""
    origin = jnp.zeros_like(equations.rows[0])
    if found is not None:  # else XLA would compute the start for all lanes, beside `found`
        origin = in_turn(origin, found.z)
    linear = factorize(mirror, equations.rows, origin)
    log_factor = mirror.linear_log_factor(
        linear.d * range_part(linear, linear.basis @ equations.values)
    )
    return _State(
        origin,
        jnp.zeros_like(equations.values),
        jnp.where(jnp.isfinite(log_factor), log_factor, 0),
        jnp.asarray(_FIRST_STRIDE, origin.dtype),
        jnp.zeros((), bool) if found is None else found.converged,
        jnp.zeros((), int),
        linear,
    )


def _follow(mirror, equations, found):
    """The end of the path, at the scale of `mirror`; nu belongs to the orthonormal rows."""

    def step(state):
        here = mirror.magnified(state.log_factor)
        z, nu = state.z, state.nu
        factors = factorize(here, equations.rows, z, state.factors)
        slope, dslope = here.slope(z), jnp.exp(here.log_dslope_dz(z))
        mismatch = slope - equations.rows.T @ nu
        rounding = jnp.abs(slope) + jnp.abs(z) * dslope + jnp.abs(equations.rows.T) @ jnp.abs(nu)
        imbalance = _imbalance(here, equations, factors, z)
        drho, drift = jax.jvp(
            lambda a: (mirror.magnified(a).rho(z), mirror.magnified(a).slope(z)),
            (state.log_factor,),
            (jnp.ones_like(state.log_factor),),
        )[1]
        # A change of z is weight * (rows^T dnu - ...) / (drho/dz). per_z = d / (drho/dz), computed
        # from logarithms against overflow.
        per_z = jnp.exp((here.log_drho_dz(z) + here.log_dslope_dz(z) + factors.log_unit) / -2)
        unit = jnp.exp(factors.log_unit)
        scaled = drho / jnp.where(factors.d > 0, factors.d, 1)
        steeper = unit * factors.d * drift
        rests = (
            rest_of(factors, factors.d * mismatch, factors.d * rounding),
            rest_of(factors, scaled - steeper, jnp.abs(scaled) + jnp.abs(steeper)),
        )
        unbalanced, rest, balanced = parts_of(factors, rests, imbalance)
        correction = -per_z * (unit * unbalanced + balanced)
        size = jnp.max(jnp.abs(correction))
        on_path = size <= _ON_PATH
        stride = jnp.where(size <= _NEAR_PATH, 2 * state.stride, state.stride)
        stride = jnp.where(on_path, stride, stride / 2)
        # The pace is that of entries with constant rho. Much faster entries are so for a short
        # time only, or are rounding errors: their speed is clipped.
        tangent, pace = per_z * (rest - scaled), jnp.max(per_z * jnp.abs(scaled))
        wild = jnp.max(jnp.abs(tangent)) > _FASTEST * pace
        tangent = jnp.clip(tangent, -_FASTEST * pace, _FASTEST * pace)
        stride = jnp.where(wild, jnp.minimum(stride, 1.0), stride)
        move = jnp.where(on_path, -jnp.minimum(stride, state.log_factor), 0)
        factor = jnp.where(size > _LONGEST_STEP, _LONGEST_STEP / size, 1)
        dz = factor * correction
        new_nu = multipliers(factors, slope + dslope * (dz + move * tangent) + move * drift)
        arrived = state.log_factor <= 0
        # The error of Newton's method is of the order of the square of its step.
        settled = size <= jnp.sqrt(jnp.finfo(z.dtype).eps)
        return _State(
            z + dz + move * tangent,
            new_nu,
            state.log_factor + move,
            stride,
            arrived & settled,
            state.num_iterations + 1,
            factors,
        )

    def unfinished(state):
        return ~state.converged & (state.num_iterations < _MAX_ITERATIONS)

    return jax.lax.while_loop(unfinished, step, _start(mirror, equations, found))


def _corrected(rho, equations, factors):
    """rho, corrected to first order for what z cannot resolve."""
    for _ in range(2):
        imbalance = equations.rows @ rho - equations.values
        change = factors.d * range_part(factors, factors.basis @ imbalance)
        # No correction beyond the linear range (a row that only very small entries can balance).
        small = jnp.abs(change) <= 1e-6 * (jnp.abs(rho) + jnp.max(jnp.abs(rho)))
        rho = rho - jnp.where(jnp.all(small), change, 0)
    return rho


@jax.custom_jvp
def _at_solution(mirror, rows, values, equations, z, nu, rho):
    """rho and nu as functions of the first three; the others are constants of differentiation."""
    del mirror, rows, values, equations, z
    return rho, nu


@_at_solution.defjvp
def _(primals, tangents):
    # d rho = r + W (rows^T dnu - g), rows d rho = dvalues - drows rho, where r and g are the
    # changes of rho and of slope (minus drows^T nu) at fixed z.
    mirror, _, _, equations, z, nu, rho = primals
    dmirror, drows, dvalues = tangents[:3]
    factors = factorize(mirror, equations.rows, in_turn(z, rho))
    unit = jnp.exp(factors.log_unit)
    r, g = jax.jvp(lambda m: (m.rho(z), m.slope(z)), (mirror,), (dmirror,))[1]
    g = g - drows.T @ nu
    scaled = r / jnp.where(factors.d > 0, factors.d, 1)
    effect = factors.basis @ equations.transform @ (dvalues - drows @ rho)
    kernel, forced = parts_of(factors, [rest_of(factors, scaled - unit * factors.d * g)], effect)
    drho = factors.d * (kernel + forced)
    per_weight = 1 / (unit * jnp.where(factors.d > 0, factors.d, 1))
    dslope = g + per_weight * (kernel + forced - scaled)
    return (rho, nu), (drho, equations.transform.T @ multipliers(factors, dslope))
