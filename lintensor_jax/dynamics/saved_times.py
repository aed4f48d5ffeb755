"""The saved times of a flow: their order, and those after the flow has come to rest."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .clocks import PhysicalTime
from .options import FlowOptions
from .statuses import FlowStatus, code_of


def resting(args, options, last, save_at, clock_time, record, reached):
    """`clock_time`, `record` and `reached`, with the resting state at all times after the end.

    Unchanged if the flow does not stand still. Otherwise the end is recorded at the last time.
    """
    rests = last.code == code_of(FlowStatus.stationary)
    times = jnp.append(save_at, save_at[-1])
    later = rests & (times > last.s)
    velocity = options.clock.velocity(last.s, last.state, args)
    # dt/ds is a constant of the resting state. For w = log(1 + t/T) it is T e^w dw/ds.
    log_rate = args.log_time_unit + last.state.elapsed + jnp.log(velocity.elapsed)
    if isinstance(options.clock, PhysicalTime):
        log_rate = jnp.zeros_like(log_rate)
    waited = jnp.log(jnp.where(later, times - last.s, 1.0))
    log_time = jnp.where(later, jnp.logaddexp(record.log_time, log_rate + waited), record.log_time)
    record = dataclasses.replace(record, log_time=log_time)
    return jnp.where(later, times, clock_time), record, reached | later


def order_along(segments: list[Any], options: FlowOptions) -> tuple[Array, Array]:
    """The order of what the segments have saved, reached times first, and which are reached."""
    # For times that the explicit part has saved, the implicit part repeats its start.
    floors = [jnp.asarray(-jnp.inf), *(segment.s for segment in segments[:-1])]
    valid = jnp.concatenate(
        [
            (segment.saved_s < jnp.inf) & (segment.saved_s > floor)
            for segment, floor in zip(segments, floors, strict=True)
        ]
    )
    if options.save_steps and options.finish is None:  # else the end before the finish is saved
        saved_s = jnp.concatenate([segment.saved_s for segment in segments])
        valid = valid & (saved_s < segments[-1].s)
    order = jnp.argsort(~valid, stable=True)
    count = options.save_at.shape[0] if options.save_at is not None else order.shape[0]
    order = order[:count]
    return order, valid[order]
