"""The segments of a flow, and the trajectory that they make."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..eager_programs import MOST_BESIDE_A_FLOW, eager_program
from ..penalized import weight_decay_of
from . import corners
from .clocks import ClockState, FlowArgs, PhysicalTime
from .finish import finish_flow
from .options import FlowOptions
from .record import Record, record_of, smoothed_margin_drop
from .saved_times import order_along, resting
from .system import System


class Segment(NamedTuple):
    """The part of a flow that one solver integrates."""

    s: Scalar
    state: ClockState
    saved: Any
    saved_s: Float[Array, " T"]
    num_steps: Int[Array, ""]
    num_rejected: Int[Array, ""]
    code: Int[Array, ""]  # of the status: `max_steps` while no rule is met
    over: Bool[Array, ""]  # no other solver may continue from here
    num_implicit: Int[Array, ""]


class Trajectory(NamedTuple):
    """A whole flow: its end after the finish, and the records of the saved times and the end."""

    network: Any
    unfinished_network: Any
    clock_time: Float[Array, " T"]
    record: Record  # with an axis of T times
    smoothed_margin_drop: Scalar | None
    reached: Bool[Array, " T"]
    code: Int[Array, ""]
    stats: dict[str, Array]
    state: ClockState


def decays(system: System) -> bool:
    """Whether the flow has weight decay."""
    return weight_decay_of(system.problem) is not None


def for_implicit_steps(args: FlowArgs, options: FlowOptions) -> tuple[FlowArgs, FlowOptions]:
    """`args` and `options` of a segment with implicit steps."""
    if args.origin is None:
        return args, options
    if options.scales_atol:
        extra = 0 if isinstance(options.clock, PhysicalTime) else 2
        size = args.origin.size + extra
        atol = corners.relative_where_tied(options.atol, args.origin, size)
        options = options._replace(atol=atol)
    return corners.followed(args), options


def _size_of_records(args, initial, options, segments):
    """The parameters and the problem's numbers, for every record."""
    problem = sum(getattr(x, "size", 1) for x in jax.tree.leaves(args.system.problem))
    saved = sum(segment.saved_s.size for segment in segments)
    return (1 + saved) * (initial.theta.size + problem)


@eager_program(_size_of_records, few=MOST_BESIDE_A_FLOW)
def trajectory_of(args, initial, options, segments) -> Trajectory:
    """The segments as one trajectory, with the finish: all that follows the last step.

    It is one compiled program, because each program costs a dispatch and a compilation.
    """
    last = segments[-1]
    end = record_of(last.s, last.state, args, options, initial)
    finished = finish_flow(last.state, last.code, end, args, options)
    clock_time, reached = last.s[None], jnp.ones((1,), bool)
    record = jax.tree.map(lambda leaf: leaf[None], finished.record)
    if segments[0].saved is not None:
        order, valid = order_along(segments, options)
        along_s = jnp.concatenate([segment.saved_s for segment in segments])[order]
        clock_time = jnp.concatenate([jnp.where(valid, along_s, last.s), clock_time])

        def gather(end, *parts):
            along = jnp.concatenate(parts)[order]
            mask = valid.reshape(-1, *(1,) * (along.ndim - 1))
            return jnp.concatenate([jnp.where(mask, along, end), end])

        record = jax.tree.map(gather, record, *(segment.saved for segment in segments))
        reached = jnp.concatenate([valid, reached])
        if options.save_at is not None:
            clock_time, record, reached = resting(
                args, options, last, options.save_at, clock_time, record, reached
            )
    num_steps = [segment.num_steps for segment in segments]
    stats: dict[str, Any] = {
        "num_steps": sum(num_steps),
        "num_rejected_steps": sum(segment.num_rejected for segment in segments),
        "num_implicit_steps": sum(segment.num_implicit for segment in segments),
    }
    if finished.finish is not None:
        stats["finish_step"] = finished.finish.relative_step
        stats["finish_residual"] = finished.finish.residual
        stats["finish_accepted"] = finished.finish.accepted
    return Trajectory(
        network=finished.network,
        unfinished_network=finished.unfinished_network,
        clock_time=clock_time,
        record=record,
        smoothed_margin_drop=smoothed_margin_drop(args, initial, options, record),
        reached=reached,
        code=last.code,
        stats=stats,
        state=last.state,
    )
