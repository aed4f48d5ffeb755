"""Newton's method for the multipliers alone, if the mirror map is a hyperbolic sine.

The multipliers nu of A rho = b minimise the convex function sum_j size_j cosh(a_j) / rate - b . nu
with a = rate A^T nu + origin. Along a line its third derivative is at most delta times its second,
delta = max_j |change of a_j|. So a step multiplied by log(1 + delta) / delta always decreases the
function (Bach 2010, self-concordance of exponentials), and full steps converge quadratically.

At small initial scales a rounding error of A^T nu changes rho much, and the entries of the normal
matrix differ by more orders of magnitude than a float resolves. The result is accepted only if the
equations hold to rounding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .mirror import HyperbolicSine

_MAX_ITERATIONS = 30
# The equations hold if they are off by fewer than this many roundings of their terms.
_ROUNDINGS = 4


class DirectSolution(NamedTuple):
    """What `solve_directly` returns; z, nu and rho have no meaning unless `converged`."""

    z: Float[Array, " m"]
    nu: Float[Array, " n"]
    rho: Float[Array, " m"]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def solve_directly(
    mirror_map: HyperbolicSine, rows: Float[Array, "n m"], values: Float[Array, " n"]
) -> DirectSolution:
    """rho and nu with rows @ rho = values and slope(rho) = rows^T nu.

    The rows are orthonormal. Rows beyond the rank are zero; their entries of nu are 0.
    """
    missing = jnp.where(jnp.any(rows != 0, axis=1), 0, 1).astype(rows.dtype)

    def at(nu):
        return mirror_map.rate * (nu @ rows) + mirror_map.origin

    def newton_step(a, rho):
        """The change of nu, and the resulting change of rho to first order."""
        size = jnp.exp(mirror_map.log_size + jnp.abs(a))
        steepness = mirror_map.rate / 2 * (size + jnp.exp(mirror_map.log_size - jnp.abs(a)))
        normal = (rows * steepness[None, :]) @ rows.T + jnp.diag(missing)
        change = _solved(normal, values - rows @ rho)
        return change, steepness * (change @ rows)

    def step(state):
        nu, _, count = state
        a = at(nu)
        change, _ = newton_step(a, _rounded_rho(mirror_map, a))
        delta = mirror_map.rate * jnp.max(jnp.abs(change @ rows))
        shorter = jnp.where(delta > 0, jnp.log1p(delta) / jnp.where(delta > 0, delta, 1), 1)
        return nu + shorter * change, delta, count + 1

    def unfinished(state):
        _, delta, count = state
        # A NaN ends the loop.
        return (delta > jnp.sqrt(jnp.finfo(rows.dtype).eps)) & (count < _MAX_ITERATIONS)

    start = (jnp.zeros_like(values), jnp.full((), jnp.inf, rows.dtype), jnp.zeros((), int))
    nu, delta, count = jax.lax.while_loop(unfinished, step, start)
    a = at(nu)
    rho = _accurate_rho(mirror_map, a)
    terms = jnp.exp(mirror_map.log_size + jnp.abs(a)) * (1 + jnp.abs(a))
    rounding = jnp.abs(rows) @ terms + jnp.abs(values)
    off = jnp.abs(rows @ rho - values)
    holds = jnp.all(off <= _ROUNDINGS * jnp.finfo(rows.dtype).eps * rounding)
    settled = delta <= jnp.sqrt(jnp.finfo(rows.dtype).eps)
    _, correction = newton_step(a, rho)
    return DirectSolution(mirror_map.coordinate * a, nu, rho + correction, count, holds & settled)


def _solved(normal, right):
    if right.shape[0] == 1:  # LAPACK's call takes longer than the rest of a small problem's step
        return right / normal[0]
    factor = jnp.linalg.cholesky(normal)
    return jax.scipy.linalg.cho_solve((factor, True), right)


def _rounded_rho(mirror_map, a):
    """size sinh a, with the absolute rounding error of size if |a| is small."""
    larger = jnp.exp(mirror_map.log_size + jnp.abs(a))
    return jnp.sign(a) * (larger - jnp.exp(mirror_map.log_size - jnp.abs(a))) / 2


def _accurate_rho(mirror_map, a):
    """size sinh a to a few roundings, even if sinh a overflows."""
    larger = jnp.exp(mirror_map.log_size + jnp.abs(a))
    return jnp.sign(a) * larger * -jnp.expm1(-2 * jnp.abs(a)) / 2
