"""One explicit Runge-Kutta step of many lanes, each with its own size, error and end."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..runge_kutta import weighted_sum
from ..statuses import FlowStatus, code_of

#: The code of a lane that no stop rule has ended.
RUNNING = -1
# The rules for lanes at rest are evaluated after steps with errors below this many roundings. A
# vector of lanes evaluates them if one lane needs it: in the paper's sweep in 8 to 18 % of the
# steps, and with 1e4 roundings in 67 %.
_ROUNDINGS_AT_REST = 1e2
# They are also evaluated every so many steps; a power of two.
_STEPS_BETWEEN_REST_CHECKS = 64
# diffrax's defaults.
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


class Lanes(NamedTuple):
    """The lanes in flight. Lanes are the last axis of every array."""

    y: Float[Array, "q W"]
    slope: Float[Array, "q W"]
    s: Float[Array, " W"]
    h: Float[Array, " W"]
    memory: Float[Array, " W"]  # error^(1/(2 order)) of the last accepted step
    code: Int[Array, " W"]  # of the status; RUNNING until a rule ends the lane
    num_steps: Int[Array, " W"]
    num_rejected: Int[Array, " W"]


class Functions(NamedTuple):
    """Functions of the state, the time and the data of all lanes."""

    slope: Callable[..., tuple[Array, ...]]  # (slope,)
    slope_and_status: Callable[..., tuple[Array, ...]]  # slope, code, longest step, near corner
    at_corner: Callable[..., tuple[Array, ...]]  # longest step, whether ties part; near a corner
    status_at_rest: Callable[..., tuple[Array, ...]]  # (code,) of the rules for lanes at rest


def attempt_step(
    functions: Functions, solver, options, data, atol, lanes: Lanes, branches: bool = True
) -> Lanes:
    """One attempted step of every lane that runs.

    `branches`: whether the rules for lanes at rest and the longest step near a corner are skipped
    if no lane needs them. On a GPU such a branch would wait for the host.
    """
    tableau = solver.tableau
    y, slopes = lanes.y, [lanes.slope]
    for row, node in zip(tableau.a_lower, tableau.c, strict=True):
        y = lanes.y + lanes.h[None] * weighted_sum(row, slopes)
        s = lanes.s + float(node) * lanes.h
        if len(slopes) < len(tableau.b_sol) - 1:
            (slope,) = functions.slope(y, s, *data)
        else:  # the last stage is the step's end
            slope, code, longest, near_corner = functions.slope_and_status(y, s, *data)
        slopes.append(slope)
    scales = scale_of(atol, options, lanes.y, y)
    square = _relative_square(lanes.h[None] * weighted_sum(tableau.b_error, slopes), scales)
    running = lanes.code == RUNNING
    kept = (square < 1) & running
    # PI control with coefficients 0.5 and 0.5: err^-1 (previous err)^(1/2), to the power 1/order.
    # All powers follow from one root of the square, without a division.
    twice = 2 * int(solver.order(None))
    root = inverse_root(square, twice)
    least, most = jnp.where(kept, 1.0, _SHRINK), jnp.where(kept, _GROW, _SAFETY)
    factor = jnp.clip(_SAFETY * root * lanes.memory, least, most)
    at_corner = kept & near_corner

    def followed_at_corner():
        bound, parted = functions.at_corner(y, s, *data)
        # Implicit steps can continue a lane whose ties part. In explicit ones rounding decides.
        parted = at_corner & (code == RUNNING) & parted
        shortened = jnp.where(at_corner, jnp.minimum(longest, bound), longest)
        return shortened, jnp.where(parted, code_of(FlowStatus.max_steps), code)

    longest, code = _if_any(at_corner, followed_at_corner, (longest, code), branches)
    h = jnp.minimum(lanes.h * factor, jnp.where(kept, longest, jnp.inf))
    num_steps = lanes.num_steps + running
    code = jnp.where(kept, code, lanes.code)
    # A flow at rest has errors of the size of rounding, and the rules are evaluated if it has. They
    # are also evaluated in some steps of long flows, because errors at a corner are not small.
    rounding = float(jnp.finfo(square.dtype).eps) / options.rtol
    quiet = jnp.maximum(1e-8, _ROUNDINGS_AT_REST * rounding)
    is_checked = (square < quiet**2) | (num_steps & (_STEPS_BETWEEN_REST_CHECKS - 1) == 0)
    resting = kept & is_checked & (code == RUNNING)

    def checked_code():
        return jnp.where(resting, functions.status_at_rest(y, s, *data)[0], code)

    code = _if_any(resting, checked_code, code, branches)
    spent = (code == RUNNING) & (num_steps >= options.max_steps)
    return Lanes(
        y=jnp.where(kept[None], y, lanes.y),
        slope=jnp.where(kept[None], slope, lanes.slope),
        s=jnp.where(kept, s, lanes.s),
        h=jnp.where(running, h, lanes.h),
        memory=jnp.where(kept, jnp.sqrt(square * root ** (twice - 1)), lanes.memory),
        code=jnp.where(spent, code_of(FlowStatus.max_steps), code),
        num_steps=num_steps,
        num_rejected=lanes.num_rejected + (running & ~kept),
    )


def _relative_square(
    errors: Float[Array, "q W"], scales: Float[Array, "q W"]
) -> Float[Array, " W"]:
    """The mean square of errors relative to their scales, at least 1e-20; 1e20 if it is not finite.

    The division is approximate: exact ones take a tenth of the step of a small network.
    """
    shares = inverse_root(at_least_smallest_normal(scales), 1)
    square = mean_square(errors * shares)
    return jnp.where(jnp.isfinite(square), jnp.maximum(square, 1e-20), 1e20)


def at_least_smallest_normal(scales: Array) -> Array:
    """The scales. Scales that are no normal numbers are replaced by four times the smallest one."""
    smallest = 4 * float(jnp.finfo(scales.dtype).tiny)
    return jnp.where(scales > smallest, scales, smallest)


def _if_any(lanes, then, otherwise, branches):
    """`then()` if any of `lanes` is True, else `otherwise`; without branches always `then()`."""
    return jax.lax.cond(jnp.any(lanes), then, lambda: otherwise) if branches else then()


def scale_of(
    atol: Float[Array, "q W"] | None, options, *states: Float[Array, "q W"]
) -> Float[Array, "q W"]:
    """The tolerance of every entry of a state, from the largest absolute values in `states`.

    `atol`: the tolerances of the lanes, or None for the tolerance `options.atol` of all.
    """
    # A comparison takes one instruction, `jnp.maximum` three. A NaN in the last state is kept.
    largest = functools.reduce(lambda a, b: jnp.where(a > b, a, b), map(jnp.abs, states))
    return (options.atol if atol is None else atol) + options.rtol * largest


def mean_square(state: Float[Array, "q W"]) -> Float[Array, " W"]:
    """The mean square of the state of each lane."""
    return jnp.sum(state**2, axis=0) * (1 / state.shape[0])


def inverse_root(x, order):
    """x^(-1/order) for normal positive x, to 1e-6 or so, without a power function.

    The leading bits of a float, read as an integer, approximate its logarithm. Divided by -order
    they give a first guess, which Newton steps improve. XLA's power takes longer than all stages of
    a small network. A division of integers is as slow, because it has no vector instruction.
    """
    integer, bias, mantissa = (
        (jnp.int64, 1023, 20) if x.dtype == jnp.float64 else (jnp.int32, 127, 7)
    )
    dropped = jnp.finfo(x.dtype).nmant - mantissa
    # A number slightly below 1 instead of 1: it halves the error of the approximate logarithm.
    one = round((bias - 0.045) * 2**mantissa)
    leading = jax.lax.bitcast_convert_type(x, integer) >> dropped
    shift = 16 if x.dtype == jnp.float64 else 12
    leading = one + (((one - leading) * round(2**shift / order)) >> shift)
    root = jax.lax.bitcast_convert_type(leading << dropped, x.dtype)
    for _ in range(3):
        root = root * ((order + 1) / order - (1 / order) * x * root**order)
    return root
