"""One explicit Runge-Kutta step of many lanes, each with its own size, error and end."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .stopping import FlowStatus, code_of

#: The code of a lane that no stop rule has ended.
RUNNING = -1
# diffrax's defaults.
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


class Lanes(NamedTuple):
    """The lanes in flight; lanes are the last axis throughout."""

    y: Float[Array, "q W"]
    slope: Float[Array, "q W"]
    s: Float[Array, " W"]
    h: Float[Array, " W"]
    error: Float[Array, " W"]  # of the last accepted step
    code: Int[Array, " W"]  # of the status; _RUNNING while it runs
    num_steps: Int[Array, " W"]
    num_rejected: Int[Array, " W"]


def attempt_step(slope_of, seen_of, solver, options, data, atol, lanes: Lanes) -> Lanes:
    """One attempted step of every lane that runs.

    `slope_of(y, s, *data)` and `seen_of(y, s, *data)` are functions of all lanes: `(slope,)`, and
    `(slope, code, longest step)`.
    """
    tableau = solver.tableau
    slopes = [lanes.slope]
    for row, node in zip(tableau.a_lower, tableau.c, strict=True):
        y = lanes.y + lanes.h[None] * _combined(row, slopes)
        s = lanes.s + float(node) * lanes.h
        if len(slopes) < len(tableau.b_sol) - 1:
            (slope,) = slope_of(y, s, *data)
        else:  # the last stage is the step's end
            slope, code, longest = seen_of(y, s, *data)
        slopes.append(slope)
    scale = atol[None] + options.rtol * jnp.maximum(jnp.abs(lanes.y), jnp.abs(y))
    error = rms(lanes.h[None] * _combined(tableau.b_error, slopes) / scale)
    error = jnp.where(jnp.isfinite(error), jnp.maximum(error, 1e-10), 1e10)
    running = lanes.code == RUNNING
    kept = (error < 1) & running
    # PI control with coefficients 0.5 and 0.5: err^-1 (previous err)^(1/2), to the power 1/order.
    power = _inverse_root(error / jnp.sqrt(lanes.error), int(solver.order(None)))
    least, most = jnp.where(kept, 1.0, _SHRINK), jnp.where(kept, _GROW, _SAFETY)
    factor = jnp.clip(_SAFETY * power, least, most)
    h = jnp.minimum(lanes.h * factor, jnp.where(kept, longest, jnp.inf))
    num_steps = lanes.num_steps + running
    code = jnp.where(kept, code, lanes.code)
    spent = (code == RUNNING) & (num_steps >= options.max_steps)
    return Lanes(
        y=where_lane(kept, y, lanes.y),
        slope=where_lane(kept, slope, lanes.slope),
        s=jnp.where(kept, s, lanes.s),
        h=jnp.where(running, h, lanes.h),
        error=jnp.where(kept, error, lanes.error),
        code=jnp.where(spent, code_of(FlowStatus.max_steps), code),
        num_steps=num_steps,
        num_rejected=lanes.num_rejected + (running & ~kept),
    )


def _combined(row, slopes):
    terms = [float(a) * slope for a, slope in zip(row, slopes, strict=False) if a != 0]
    return functools.reduce(jnp.add, terms)


def where_lane(lane: Bool[Array, " W"], new: Array, old: Array) -> Array:
    """`new` in these lanes and `old` in the others, for arrays of shape (W,) or (q, W)."""
    return jnp.where(lane if new.ndim == 1 else lane[None], new, old)


def rms(values: Float[Array, "q W"]) -> Float[Array, " W"]:
    """Root mean square of each lane."""
    return jnp.sqrt(jnp.mean(values**2, axis=0))


def _inverse_root(x, order):
    """x^(-1/order) for normal positive x, to 1e-6 or so, without the cost of a power.

    An exponent is a logarithm: the bits of a float, read as an integer, divided by -order; then
    three Newton steps. XLA's power takes longer than all stages of a small network.
    """
    integer, bias, mantissa = (
        (jnp.int64, 1023, 52) if x.dtype == jnp.float64 else (jnp.int32, 127, 23)
    )
    one = bias * 2**mantissa
    bits = jax.lax.bitcast_convert_type(x, integer)
    root = jax.lax.bitcast_convert_type(one + (one - bits) // order, x.dtype)
    for _ in range(3):
        root = root * ((order + 1) - x * root**order) / order
    return root
