"""Stiff lanes of a batch, integrated together by an implicit stepper.

Every lane has its own step size, error and status. A lane that has ended is replaced by the next
one, as in the explicit stepper. Lanes are the first axis, since a step is mostly linear algebra.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...penalized import weight_decay_of
from ..clocks import ClockState, FlowArgs, PhysicalTime, log_time_unit, state_of, vector_of
from ..corners import followed_by_implicit_steps, marked_start, relative_where_tied
from ..finish import first_rule
from ..observations import observe_state
from ..on_invariants import correction_of, corrects_steps, over_the_corner
from ..record import invariant_drift
from ..rosenbrock import ORDER, rosenbrock_step
from ..shifted_systems import shifted_solver, splits
from ..sizes import size_of_start, tolerances_of
from ..statuses import FlowStatus, code_of
from ..system import Reducible
from . import hardware
from .lane_data import LaneData, with_data
from .programs import XLA, Arguments, compiled
from .step import RUNNING
from .stepper import Stepper

# Lanes in flight on a CPU: their Jacobians fit the second cache. On a GPU all lanes are in flight.
_WIDTH = 64
# New lanes are taken from the queue when one lane in 8 is done.
_SHARE = 8
# The step-size control of single implicit flows (diffrax's defaults, with these coefficients).
_PROPORTIONAL, _INTEGRAL = 0.3, 0.4
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_XLA = XLA()
_SPENT = code_of(FlowStatus.max_steps)


class ImplicitLanes(NamedTuple):
    """Lanes in flight. Lanes are the first axis of every array; without it, one lane."""

    y: Float[Array, "W q"]
    s: Float[Array, " W"]
    h: Float[Array, " W"]
    error: Float[Array, " W"]  # of the last accepted step, in units of the tolerance
    code: Int[Array, " W"]
    num_steps: Int[Array, " W"]
    num_rejected: Int[Array, " W"]


class _Lane(NamedTuple):
    """What a lane keeps from its start to its end."""

    args: FlowArgs
    initial: ClockState
    atol: Array


class _Known(NamedTuple):
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


def _known(stepper: Stepper, theta: Float[Array, " p"], data: LaneData) -> _Known:
    """The numbers of one lane with these initial parameters."""
    options, system = stepper.options, with_data(stepper.system, data)
    physical = isinstance(options.clock, PhysicalTime)
    initial = options.clock.start(system, theta)
    unit = jnp.zeros_like(initial.log_scale) if physical else log_time_unit(system, initial)
    origin = marked_start(system, theta)
    if options.scales_atol:
        largest = size_of_start(theta, system.problem, system.depth)
        atol = options.rtol * (largest if physical else jnp.minimum(largest, 1.0))
        atol = tolerances_of(system, theta, options._replace(atol=atol))
        atol = relative_where_tied(atol, origin, stepper.state_size)
    else:
        atol = jnp.full((stepper.state_size,), options.atol)
    return _Known(Reducible.of(system.problem), unit, initial, atol, origin)


def _lane(stepper: Stepper, known: _Known, data) -> _Lane:
    system = with_data(stepper.system, data)
    corners = None if weight_decay_of(system.problem) is not None else known.origin
    followed_share = followed_by_implicit_steps(known.origin.dtype)
    args = FlowArgs(system, known.reducible, known.unit, corners, followed_share)
    return _Lane(args, known.initial, known.atol)


def _slope(stepper: Stepper, lane: _Lane, y):
    clock = stepper.options.clock
    return vector_of(clock.velocity(jnp.zeros_like(y[0]), state_of(y, clock), lane.args), clock)


def _size(value, scale):
    return jnp.sqrt(jnp.mean((value / scale) ** 2))


def _first_step(stepper: Stepper, lane: _Lane, y):
    """The first step size of Hairer, Norsett & Wanner II.4."""
    scale = lane.atol + stepper.options.rtol * jnp.abs(y)
    slope = _slope(stepper, lane, y)
    size, speed = _size(y, scale), _size(slope, scale)
    small = (size < 1e-5) | (speed < 1e-5)
    h0 = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
    bend = _size(_slope(stepper, lane, y + h0 * slope) - slope, scale) / h0
    largest = jnp.maximum(speed, bend)
    flat = ~(largest > 1e-15)  # also for NaN: the step-size control corrects the guess
    h1 = (0.01 / jnp.where(flat, 1.0, largest)) ** (1 / ORDER)
    return jnp.minimum(100 * h0, jnp.where(flat, jnp.maximum(1e-6, h0 * 1e-3), h1))


def _status(stepper: Stepper, lane: _Lane, s, y) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The code of a state, and whether it has lost the conserved values; see `FlowControl`."""
    options, args = stepper.options, lane.args
    state = state_of(y, options.clock)
    code = first_rule(observe_state(s, state, args, options.clock), options)
    code = jnp.where(code == _SPENT, RUNNING, code)
    if weight_decay_of(args.system.problem) is not None:
        return code, jnp.zeros((), bool)
    drift = invariant_drift(args.system, state, lane.initial, jnp.zeros_like(s))
    return code, drift > jnp.minimum(1e5 * options.rtol, 1e-2)  # NaN: no quantity is known


def _stepped(stepper: Stepper, lane: _Lane, now: ImplicitLanes):
    """The state after a step of one lane, and the estimate of its error."""
    clock, solver = stepper.options.clock, None
    if splits(lane.args.system, clock):
        solver = functools.partial(shifted_solver, clock, lane.args)
    slope = functools.partial(_slope, stepper, lane)
    y, difference = rosenbrock_step(slope, now.y, now.h, solver)
    return y, jnp.abs(difference)


def _corrected(stepper: Stepper, lane: _Lane, now: ImplicitLanes, y, difference):
    """The same after a correction to what the flow conserves; see `OnInvariants`."""
    clock = stepper.options.clock

    def correction(y):
        state = state_of(y, clock)
        shrinks = state.log_scale < lane.initial.log_scale
        found = correction_of(lane.args, state, lane.initial, everywhere=shrinks)
        return vector_of(ClockState(found, *map(jnp.zeros_like, state[1:])), clock)

    made = correction(y)
    error = difference + jnp.abs(made - correction(now.y))
    return y + made, error + over_the_corner(lane.args, now.y, y + made)


def _accepted_or_rejected(stepper: Stepper, most, lane: _Lane, now: ImplicitLanes, y, difference):
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
    code = jnp.where((code == RUNNING) & (num_steps >= most), _SPENT, code)
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


def _lane_axes(stepper: Stepper) -> LaneData:
    return LaneData(None if stepper.shared else 0, 0)


def _fresh(stepper: Stepper, thetas, data: LaneData, y, s) -> ImplicitLanes:
    """Lanes before their first implicit step."""

    def of_lane(theta, data, y):
        lane = _lane(stepper, _known(stepper, theta, data), data)
        return _first_step(stepper, lane, y)

    h = jax.vmap(of_lane, (0, _lane_axes(stepper), 0))(thetas, data, y)
    none = jnp.zeros(s.shape, jnp.int32)
    return ImplicitLanes(y, s, h, jnp.ones_like(s), none + np.int32(RUNNING), none, none)


def _advance(
    stepper: Stepper, lanes: ImplicitLanes, thetas, data: LaneData, y, s, enough, most
) -> tuple[ImplicitLanes, Int[Array, ""]]:
    """The lanes when `enough` of them have ended, and the number of steps. `y`, `s` are unused."""
    axes = _lane_axes(stepper)
    known = jax.vmap(functools.partial(_known, stepper), (0, axes))(thetas, data)

    def of_lanes(function, now, *given):
        def of_lane(known, data, now, *given):
            return function(stepper, _lane(stepper, known, data), now, *given)

        return jax.vmap(of_lane, (0, axes, *(0 for _ in (now, *given))))(known, data, now, *given)

    corrects = corrects_steps(stepper.system, stepper.options.clock)
    is_tied = jnp.any(jax.vmap(lambda k: k.is_tied)(known)) if corrects else False

    def goes_on(carry):
        return jnp.sum(carry[0].code != RUNNING, dtype=jnp.int32) < enough

    def once(carry):
        now, rounds = carry
        ends = of_lanes(_stepped, now)
        if corrects:
            ends = jax.lax.cond(is_tied, lambda: of_lanes(_corrected, now, *ends), lambda: ends)
        decide = functools.partial(of_lanes, lambda s, *rest: _accepted_or_rejected(s, most, *rest))
        return decide(now, *ends), rounds + 1

    return jax.lax.while_loop(goes_on, once, (lanes, jnp.zeros((), jnp.int32)))


def integrate_stiff(
    stepper: Stepper, thetas: Any, data: LaneData, y: Any, s: Any, most: int
) -> tuple[ImplicitLanes, int]:
    """The ends of stiff lanes with at most `most` steps each, and the number of executed steps.

    `thetas` (N, p): parameters at the starts of the flows. `y`, `s`: states and times from which
    the lanes are continued.
    """
    count = len(s)
    on_cpu = hardware.kind_of(hardware.device_of(thetas)) == "cpu"
    width = 8 * 2 ** int(np.ceil(np.log2(-(-count // 8))))
    width = min(width, _WIDTH) if on_cpu else width
    given = Arguments(stepper.of_any_width())

    def chosen(job):
        """The parameters, data, states and times of the lanes in these places of the queue."""
        place = np.minimum(job, count - 1)
        own = data.ordered(place, stepper.shared)
        return Arguments(thetas[place], own, y[place], s[place])

    numbers: Any = [np.zeros_like(s) for _ in range(3)]
    counts: Any = [np.zeros(count, np.int32) for _ in range(3)]
    ends = ImplicitLanes(np.zeros_like(y), *numbers, *counts)
    job = np.minimum(np.arange(width), count)
    following, executed = min(width, count), 0
    here = chosen(job)
    fresh = compiled(_fresh, _XLA, given, here)
    lanes = jax.tree.map(np.array, fresh(given, here))
    lanes.code[job == count] = _SPENT
    while np.any(job < count):
        busy = int(np.sum(job < count))
        enough = min(max(1, width // _SHARE), busy) if following < count else busy
        limits = Arguments(np.int32(enough + width - busy), np.int32(most))
        current = Arguments(lanes), here, limits
        found, rounds = compiled(_advance, _XLA, given, *current)(given, *current)
        executed += int(rounds) * width
        lanes = jax.tree.map(np.array, found)
        done = (lanes.code != RUNNING) & (job < count)
        for end, now in zip(ends, lanes, strict=True):
            end[job[done]] = now[done]
        job[done] = np.minimum(following + np.arange(done.sum()), count)
        following = min(following + int(done.sum()), count)
        here = chosen(job)
        new = done & (job < count)
        for now, begun in zip(lanes, jax.tree.map(np.asarray, fresh(given, here)), strict=True):
            now[new] = begun[new]
    return ends, executed
