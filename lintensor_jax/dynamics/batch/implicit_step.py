"""One implicit step of one lane: the method, the control of its size, and what ends the lane."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...penalized import weight_decay_of
from ..clocks import ClockState, FlowArgs, PhysicalTime, log_time_unit, state_of, vector_of
from ..corners import followed_by_implicit_steps, marked_start, relative_where_tied
from ..finish import first_rule
from ..observations import observe_state
from ..on_invariants import corrections_of, over_the_corner
from ..record import invariant_drift
from ..rosenbrock import ORDER, rosenbrock_step
from ..shifted_systems import shifted_solver, splits
from ..sizes import size_of_start, tolerances_of
from ..statuses import FlowStatus, code_of
from ..system import Reducible
from .lane_data import LaneData, with_data
from .step import RUNNING
from .stepper import Stepper

# The step-size control of single implicit flows (diffrax's defaults, with these coefficients).
_PROPORTIONAL, _INTEGRAL = 0.3, 0.4
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
#: The code of a lane with a used-up budget of steps.
SPENT = code_of(FlowStatus.max_steps)


class ImplicitLanes(NamedTuple):
    """Lanes in flight. Lanes are the first axis of every array; without it, one lane."""

    y: Float[Array, "W q"]
    s: Float[Array, " W"]
    h: Float[Array, " W"]
    error: Float[Array, " W"]  # of the last accepted step, in units of the tolerance
    code: Int[Array, " W"]
    num_steps: Int[Array, " W"]
    num_rejected: Int[Array, " W"]


class ImplicitLane(NamedTuple):
    """What a lane keeps from its start to its end."""

    args: FlowArgs
    initial: ClockState
    atol: Array


class Known(NamedTuple):
    """Numbers of a lane that are computed once."""

    reducible: Any
    unit: Array
    initial: ClockState
    atol: Array
    origin: Float[Array, " p"]

    @property
    def is_tied(self) -> Bool[Array, ""]:
        """Whether some parameters are tied; see `corners.marked_start`."""
        return jnp.any(self.origin < 0)


def known_of(stepper: Stepper, theta: Float[Array, " p"], data: LaneData) -> Known:
    """The numbers of one lane with these initial parameters."""
    options, system = stepper.options, with_data(stepper.system, data)
    physical = isinstance(options.clock, PhysicalTime)
    initial = options.clock.start(system, theta)
    unit = jnp.zeros_like(initial.log_scale) if physical else log_time_unit(system, initial)
    origin = marked_start(system, theta)
    if options.scales_atol:
        largest = size_of_start(theta, system.problem, system.depth)
        atol = options.rtol * (largest if physical else jnp.minimum(largest, 1.0))
        atol = tolerances_of(system, theta, atol, options.clock)
        atol = relative_where_tied(atol, origin, stepper.state_size)
    else:
        atol = jnp.full((stepper.state_size,), options.atol)
    return Known(Reducible.of(system.problem), unit, initial, atol, origin)


def lane_of(stepper: Stepper, known: Known, data) -> ImplicitLane:
    system = with_data(stepper.system, data)
    corners = None if weight_decay_of(system.problem) is not None else known.origin
    followed_share = followed_by_implicit_steps(known.origin.dtype)
    args = FlowArgs(system, known.reducible, known.unit, corners, followed_share)
    return ImplicitLane(args, known.initial, known.atol)


def slope_of(stepper: Stepper, lane: ImplicitLane, y):
    clock = stepper.options.clock
    return vector_of(clock.velocity(jnp.zeros_like(y[0]), state_of(y, clock), lane.args), clock)


def _size(value, scale):
    return jnp.sqrt(jnp.mean((value / scale) ** 2))


def first_step(stepper: Stepper, lane: ImplicitLane, y):
    """The first step size of Hairer, Norsett & Wanner II.4."""
    scale = lane.atol + stepper.options.rtol * jnp.abs(y)
    slope = slope_of(stepper, lane, y)
    size, speed = _size(y, scale), _size(slope, scale)
    small = (size < 1e-5) | (speed < 1e-5)
    h0 = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
    bend = _size(slope_of(stepper, lane, y + h0 * slope) - slope, scale) / h0
    largest = jnp.maximum(speed, bend)
    flat = ~(largest > 1e-15)  # also for NaN: the step-size control corrects the guess
    h1 = (0.01 / jnp.where(flat, 1.0, largest)) ** (1 / ORDER)
    return jnp.minimum(100 * h0, jnp.where(flat, jnp.maximum(1e-6, h0 * 1e-3), h1))


def _status(stepper: Stepper, lane: ImplicitLane, s, y) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The code of a state, and whether it has lost the conserved values; see `FlowControl`."""
    options, args = stepper.options, lane.args
    state = state_of(y, options.clock)
    code = first_rule(observe_state(s, state, args, options.clock), options)
    code = jnp.where(code == SPENT, RUNNING, code)
    if weight_decay_of(args.system.problem) is not None:
        return code, jnp.zeros((), bool)
    drift = invariant_drift(args.system, state, lane.initial, jnp.zeros_like(s))
    return code, drift > jnp.minimum(1e5 * options.rtol, 1e-2)  # NaN: no quantity is known


def stepped(stepper: Stepper, lane: ImplicitLane, now: ImplicitLanes):
    """The state after a step of one lane, and the estimate of its error."""
    clock, solver = stepper.options.clock, None
    if splits(lane.args.system, clock):
        solver = functools.partial(shifted_solver, clock, lane.args)
    slope = functools.partial(slope_of, stepper, lane)
    y, difference = rosenbrock_step(slope, now.y, now.h, solver)
    return y, jnp.abs(difference)


def corrected(stepper: Stepper, lane: ImplicitLane, now: ImplicitLanes, y, difference):
    """The same after a correction to what the flow conserves; see `OnInvariants`."""
    both, clock = jnp.stack([y, now.y]), stepper.options.clock
    made, before = corrections_of(lane.args, both, lane.initial, clock)
    error = difference + jnp.abs(made - before)
    return y + made, error + over_the_corner(lane.args, now.y, y + made)


def accepted_or_rejected(
    stepper: Stepper, most, lane: ImplicitLane, now: ImplicitLanes, y, difference
):
    """The lane after a step to `y`: taken or not, with its next step size and its status."""
    rtol = stepper.options.rtol
    error = _size(difference, lane.atol + rtol * jnp.maximum(jnp.abs(now.y), jnp.abs(y)))
    error = jnp.where(jnp.isfinite(error), jnp.maximum(error, 1e-10), 1e10)
    running = now.code == RUNNING
    kept, s = (error < 1) & running, now.s + now.h
    code, lost = _status(stepper, lane, s, y)
    lost = lost & kept
    code = jnp.where(kept, jnp.where(lost, code_of(FlowStatus.invariants_lost), code), now.code)
    factor = error ** (-(_PROPORTIONAL + _INTEGRAL) / ORDER)
    factor = _SAFETY * factor * now.error ** (_PROPORTIONAL / ORDER)
    least, most_ = jnp.where(kept, 1.0, _SHRINK), jnp.where(kept, _GROW, _SAFETY)
    h = now.h * jnp.clip(factor, least, most_)
    num_steps = now.num_steps + running
    # With a step that no longer changes the time, the lane would never end.
    stuck = (code == RUNNING) & (now.s + h <= now.s)
    code = jnp.where(stuck, code_of(FlowStatus.solver_failed), code)
    code = jnp.where((code == RUNNING) & (num_steps >= most), SPENT, code)
    taken = kept & ~lost
    return ImplicitLanes(
        y=jnp.where(taken, y, now.y),
        s=jnp.where(taken, s, now.s),
        h=jnp.where(running, h, now.h),
        error=jnp.where(kept, error, now.error),
        code=code,
        num_steps=num_steps,
        num_rejected=now.num_rejected + (running & ~kept),
    )
