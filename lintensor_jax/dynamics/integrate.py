"""The engine of `gradient_flow`: diffrax on the chosen clock, explicit first, implicit if stiff."""

import functools
import math
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Scalar

from ..eager_programs import MOST_BESIDE_A_FLOW, eager_program
from ..eager_vmap import is_known_to_hold
from . import corners
from .clocks import (
    ClockState,
    FlowArgs,
    PhysicalTime,
    log_time_unit,
    state_of,
    vector_of,
)
from .finish import first_rule
from .observations import (
    decays_to_corner,
    observe_and_limit,
    observe_state,
)
from .on_invariants import on_invariants
from .options import FlowOptions
from .progress import report_step
from .quick_tracing import diffeqsolve
from .record import invariant_drift, record_of
from .runge_kutta import prefers_loop, with_quick_stages
from .shifted_systems import has_implicit_steps, splits
from .sizes import tolerances_of
from .stage_newton import implicit_solver
from .statuses import FlowStatus, code_of
from .step_control import FlowControl
from .system import Reducible, System
from .trajectory import Segment, Trajectory, decays, for_implicit_steps, trajectory_of

# An explicit method that has not met its stop rule within this many steps is taken to be limited
# by stability, and an implicit one goes on. Flows that are not stiff need 90 to 140 steps on the
# log-arc-length clock (to margin 1e8) and 30 to 350 in physical time.
EXPLICIT_STEPS = {"classification": 160, "regression": 512}
# A regression flow that decays to a corner has so many more explicit steps: they keep u = v to the
# bit, and implicit steps would leave the corner because of the rounding of u - v.
_AT_CORNER_STEPS = 3584
# With several support vectors the log-arc-length flow's stiffness is about its margin: on random
# separable data an explicit method is limited by stability from margins of 3 to 10 on.
STIFF_LOG_MARGIN = 1.0
_GOES_ON = code_of(FlowStatus.max_steps)


def explicit_solver() -> diffrax.AbstractSolver:
    """Dormand & Prince's 8(7) method: it needs the fewest steps at tolerances of 1e-8 and below."""
    return diffrax.Dopri8()


def _kind(system):
    return "classification" if system.problem.has_margins else "regression"


class SegmentStart(NamedTuple):
    """Where a segment begins."""

    s: Scalar
    state: ClockState
    code: Int[Array, ""]  # of the status: `max_steps` while no rule is met
    over: Bool[Array, ""]
    longest: Scalar | None  # the longest first step, where steps are limited and it is known


def _size_of_segment(args, begin, *_, implicit: bool, **__) -> float:
    """The parameters and the problem's numbers."""
    if implicit:
        # An implicit step counts as a large program: with the older emitters it takes 1.15 times
        # as long (20 parameters).
        return math.inf
    problem = sum(getattr(x, "size", 1) for x in jax.tree.leaves(args.system.problem))
    return begin.state.theta.size + problem


@eager_program(_size_of_segment, has_long_loop=True)
def solve_segment(
    args: FlowArgs,
    begin: SegmentStart,
    *,
    initial: ClockState,
    options: FlowOptions,
    max_steps: int,
    implicit: bool,
    may_switch: bool,
    is_first: bool,
) -> Segment:
    """Integrate from `begin` until a stop rule is met; unchanged if the flow is over there."""
    if implicit:
        args, options = for_implicit_steps(args, options)
    s0, start, code, done, longest = begin
    clock, dtype = options.clock, start.theta.dtype

    # One vector: XLA:CPU spends as long on a separate number as on all parameters.
    def velocity(s, y, args):
        return vector_of(clock.velocity(s, state_of(y, clock), args), clock)

    # An implicit step is expensive: if the flow is over, the interval is empty. An explicit step is
    # cheap, but with an end that is not a constant a small flow takes 1.5 times as long on XLA:CPU.
    s1 = jnp.asarray(jnp.finfo(dtype).max / 8, dtype)
    s1 = jnp.where(done, s0, s1) if implicit else s1
    solution: Any = diffeqsolve(
        diffrax.ODETerm(velocity),
        _solver(args, options, initial, implicit),
        s0,
        s1,
        None,
        vector_of(start, clock),
        args,
        saveat=_save_at(args, s0, s1, initial, options, from_start=is_first),
        stepsize_controller=_control(args, initial, options, done, longest, implicit, may_switch),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    along, along_s = _saved_along(solution, args, start, s0, done, initial, options, implicit)

    def unless_done(found, otherwise):
        return jnp.where(done, otherwise, found)

    s = unless_done(solution.ts["end"][-1], s0)
    state = jax.tree.map(unless_done, state_of(solution.ys["end"][-1], clock), start)
    ended, over = _end_of(solution, state)
    num_steps = unless_done(solution.stats["num_steps"], 0)
    return Segment(
        s=s,
        state=state,
        saved=along,
        saved_s=along_s,
        num_steps=num_steps,
        num_rejected=unless_done(solution.stats["num_rejected_steps"], 0),
        code=unless_done(ended, code),
        over=done | over,
        num_implicit=num_steps if implicit else jnp.zeros_like(num_steps),
    )


def _solver(args, options, initial, implicit) -> Any:
    """The solver given or chosen, with stages that compile well."""
    if options.solver is not None or not implicit:
        in_loop = prefers_loop(args.system.problem.has_margins, initial.theta.size)
        return with_quick_stages(options.solver or explicit_solver(), in_loop)
    split = options.clock if splits(args.system, options.clock) else None
    solver = implicit_solver(options.rtol, options.atol, split)
    return on_invariants(solver, args.system, options.clock, initial)


def _clips(args, clock, implicit):
    """Whether steps are limited by `observations.longest_step`."""
    return args.system.problem.has_residuals and isinstance(clock, PhysicalTime) and not implicit


def _observed(s, state, args, clock, clips, may_rest=True):
    """What the stop rules see, and the longest step; None for it unless steps are limited."""
    if clips:
        return observe_and_limit(s, state, args, clock, may_rest)
    return observe_state(s, state, args, clock, may_rest), None


def _control(args, initial, options, done, longest, implicit, may_switch) -> Any:
    """The control of the step sizes, which also ends the segment.

    `longest`: the longest first step; None if it is not known.
    """
    clock = options.clock

    def rule(s, y, args):
        state = state_of(y, clock)
        seen, longest = _observed(s, state, args, clock, clips)
        found = first_rule(seen, options)
        parts = corners.rounding_parts_ties(state, args)
        hands_over = _is_stiff(seen, clock) | parts if may_switch else False
        return found, (found != _GOES_ON) | hands_over, longest

    # PI control: at the stability limit an I controller rejects every other step. Clipped steps
    # stay below that limit: with the faster control of `batched_flow` they are 5% fewer.
    clips = _clips(args, clock, implicit)
    pcoeff, icoeff = (0.5, 0.5) if clips else (0.3, 0.4)
    pid = diffrax.PIDController(rtol=options.rtol, atol=options.atol, pcoeff=pcoeff, icoeff=icoeff)

    def keeps_invariants(y):
        drift = invariant_drift(args.system, state_of(y, clock), initial, jnp.zeros(()))
        return ~(drift > jnp.minimum(1e5 * options.rtol, 1e-2))  # NaN: no quantity is known

    def report(accepted, s, y, args):
        seen = observe_state(s, state_of(y, clock), args, clock, may_rest=False)
        report_step(options.meter, accepted & ~done, s, seen.log_loss)

    guarded = implicit and options.solver is None and not decays(args.system)
    guard = keeps_invariants if guarded else None
    reporting = None if options.meter is None else report
    return FlowControl(pid, rule, clips, done, longest, guard, reporting)  # pyright: ignore


def _save_at(args, s0, s1, initial, options, from_start) -> diffrax.SaveAt:
    """What diffrax saves: the end of the segment, and the states that the options ask for."""

    def save(s, y, args):
        return record_of(s, state_of(y, options.clock), args, options, initial)

    subs = {"end": diffrax.SubSaveAt(t1=True)}
    if options.save_steps:
        subs["along"] = diffrax.SubSaveAt(t0=from_start, steps=True, fn=save)
    elif options.save_at is not None:
        subs["along"] = diffrax.SubSaveAt(ts=jnp.clip(options.save_at, s0, s1), fn=save)
    return diffrax.SaveAt(subs=subs, controller_state=True)


def _saved_along(solution, args, start, s0, done, initial, options, implicit):
    """The records along the segment and their times; infinity marks times not reached."""
    along, along_s = None, jnp.zeros((0,), start.theta.dtype)
    if "along" in solution.ts:
        along, along_s = solution.ys["along"], solution.ts["along"]
        along_s = jnp.where(done & (along_s > s0), jnp.inf, along_s)
    if options.save_at is not None and not implicit:
        come = done & (options.save_at <= s0)
        along_s = jnp.where(come, s0, along_s)
        at_start = record_of(s0, start, args, options, initial)
        chosen = functools.partial(jax.vmap(jnp.where, (0, None, 0)), come)
        along = jax.tree.map(chosen, at_start, along)
    return along, along_s


def _end_of(solution, state) -> tuple[Array, Array]:
    """The code with which diffrax's solution ended, and whether no other solver may continue it."""
    results = diffrax.RESULTS
    can_go_on = (solution.result == results.max_steps_reached) | (
        solution.result == results.event_occurred
    )
    code = solution.controller_state[1]
    undecided = code == _GOES_ON
    gave_up = ~can_go_on & (solution.result != results.successful)
    ended = jnp.where(undecided & gave_up, code_of(FlowStatus.solver_failed), code)
    finite = jnp.isfinite(jnp.max(jnp.abs(state.theta)))
    return jnp.where(finite, ended, code_of(FlowStatus.non_finite)), ~undecided | ~can_go_on


def _is_stiff(seen, clock):
    if isinstance(clock, PhysicalTime):
        return jnp.zeros((), bool)
    return (seen.log_margin > STIFF_LOG_MARGIN) & (seen.largest_weight < 0.99)


class Origin(NamedTuple):
    """Where an integration begins: at a flow's start, or where a flow is continued."""

    start: ClockState
    initial: ClockState  # the flow's start, from which its drift is measured
    s: Scalar
    log_time_unit: Scalar


def integrate(
    system: System, options: FlowOptions, origin: Origin | None = None
) -> tuple[Trajectory, Origin]:
    """Explicit first; then, if the explicit budget is used up and the size allows it, implicit.

    Inside `jax.jit` values are not known. There the implicit part is always compiled, and returns
    at once where it is not needed. Returned are the flow and where it began, `origin` or the flow's
    start.
    """
    args, options, origin, begin = _prepared(system, options, origin)
    explicit_steps = EXPLICIT_STEPS[_kind(system)]
    may_switch = (
        options.solver is None
        and has_implicit_steps(system, options.clock, origin.start.theta.size)
        and explicit_steps < options.max_steps
    )
    budget = explicit_steps if may_switch else options.max_steps
    segment = functools.partial(solve_segment, args, initial=origin.initial, options=options)
    segments = [
        segment(begin, max_steps=budget, implicit=False, may_switch=may_switch, is_first=True)
    ]
    left = options.max_steps - budget
    for implicit in (False, True):
        last = segments[-1]
        if not may_switch or is_known_to_hold(last.over):
            break
        steps = left if implicit else min(_AT_CORNER_STEPS, left // 2)
        if implicit or _is_known_at_corner(last, args, options.clock):
            left -= steps
            begin = SegmentStart(last.s, last.state, last.code, last.over, None)
            segments.append(
                segment(begin, max_steps=steps, implicit=implicit, may_switch=False, is_first=False)
            )
    return trajectory_of(args, origin.initial, options, segments), origin


def _is_known_at_corner(last, args, clock) -> bool:
    """Whether a regression flow is known to decay to a corner: explicit steps go on there."""
    if _kind(args.system) != "regression" or isinstance(last.over, Tracer):
        return False
    return bool(decays_to_corner(last.s, last.state, args, clock))


_reducible = eqx.filter_jit(Reducible.of)


def _prepared(system, options, origin) -> tuple[FlowArgs, FlowOptions, Origin, SegmentStart]:
    """The segments' arguments, the options with all tolerances, and where the flow begins."""
    reducible = _reducible(system.problem)
    atol, marks, origin, begin = _start(system, reducible, options, origin)
    args = FlowArgs(system, reducible, origin.log_time_unit, marks)
    return args, options._replace(atol=atol), origin, begin


@eager_program(few=MOST_BESIDE_A_FLOW)
def _start(system, reducible, options, origin):
    """The absolute tolerances, `marked_start`, the origin, and what is seen there."""
    theta, clock, atol = system.initial, options.clock, options.atol
    if options.scales_atol:
        atol = tolerances_of(system, theta, atol, clock)
    marks = None if decays(system) else corners.marked_start(system, theta)
    is_continued = origin is not None
    if origin is None:
        start, zero = clock.start(system, theta), jnp.zeros((), theta.dtype)
        unit = zero if isinstance(clock, PhysicalTime) else log_time_unit(system, start)
        origin = Origin(start, start, zero, unit)
    args = FlowArgs(system, reducible, origin.log_time_unit, marks)
    return atol, marks, origin, _seen_at(origin, args, options, is_continued)


def _seen_at(origin, args, options, is_continued) -> SegmentStart:
    """The start of the first segment.

    The code is that of `max_steps` if the flow has to run, else that of the reason why it need not.
    """
    s, state, clock = origin.s, origin.start, options.clock
    # At its start no flow is at rest, and no parameter is smaller than at the start.
    clips = _clips(args, clock, implicit=False)
    seen, longest = _observed(s, state, args, clock, clips, may_rest=is_continued)
    code = first_rule(seen, options)
    velocity = clock.velocity(s, state, args)
    speed = jnp.max(jnp.abs(velocity.theta))
    moving = (speed != 0) | (velocity.log_scale != 0)
    code = jnp.where(moving | (code != _GOES_ON), code, code_of(FlowStatus.stationary))
    finite = jnp.isfinite(jnp.max(jnp.abs(state.theta))) & jnp.isfinite(speed)
    code = jnp.where(finite, code, code_of(FlowStatus.non_finite))
    return SegmentStart(s, state, code, code != _GOES_ON, longest)
