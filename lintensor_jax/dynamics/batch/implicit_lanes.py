"""Stiff lanes of a batch, integrated together by an implicit stepper.

Every lane has its own step size, error and status. A lane that has ended is replaced by the next
one, as in the explicit stepper. Lanes are the first axis, since a step is mostly linear algebra.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ..on_invariants import corrects_steps
from . import hardware
from .implicit_rows import LEFT, stiff_ends_by_machine_code
from .implicit_step import (
    SPENT,
    ImplicitLanes,
    accepted_or_rejected,
    corrected,
    first_step,
    known_of,
    lane_of,
    stepped,
)
from .lane_data import LaneData
from .programs import XLA, AbstractCompilation, Arguments, Native, compiled
from .step import RUNNING
from .stepper import Stepper

# Lanes in flight on a CPU: their Jacobians fit the second cache. On a GPU all lanes are in flight.
_WIDTH = 64
# New lanes are taken from the queue when one lane in 8 is done.
_SHARE = 8
_XLA = XLA()


def _lane_axes(stepper: Stepper) -> LaneData:
    return LaneData(None if stepper.shared else 0, 0)


def _fresh(stepper: Stepper, thetas, data: LaneData, y, s) -> ImplicitLanes:
    """Lanes before their first implicit step."""

    def of_lane(theta, data, y):
        lane = lane_of(stepper, known_of(stepper, theta, data), data)
        return first_step(stepper, lane, y)

    h = jax.vmap(of_lane, (0, _lane_axes(stepper), 0))(thetas, data, y)
    none = jnp.zeros(s.shape, jnp.int32)
    return ImplicitLanes(y, s, h, jnp.ones_like(s), none + np.int32(RUNNING), none, none)


def _advance(
    stepper: Stepper, lanes: ImplicitLanes, thetas, data: LaneData, y, s, enough, most
) -> tuple[ImplicitLanes, Int[Array, ""]]:
    """The lanes when `enough` of them have ended, and the number of steps. `y`, `s` are unused."""
    axes = _lane_axes(stepper)
    known = jax.vmap(functools.partial(known_of, stepper), (0, axes))(thetas, data)

    def of_lanes(function, now, *given):
        def of_lane(known, data, now, *given):
            return function(stepper, lane_of(stepper, known, data), now, *given)

        return jax.vmap(of_lane, (0, axes, *(0 for _ in (now, *given))))(known, data, now, *given)

    corrects = corrects_steps(stepper.system, stepper.options.clock)
    is_tied = jnp.any(jax.vmap(lambda k: k.is_tied)(known)) if corrects else False

    def goes_on(carry):
        return jnp.sum(carry[0].code != RUNNING, dtype=jnp.int32) < enough

    def once(carry):
        now, rounds = carry
        ends = of_lanes(stepped, now)
        if corrects:
            ends = jax.lax.cond(is_tied, lambda: of_lanes(corrected, now, *ends), lambda: ends)
        decide = functools.partial(of_lanes, lambda s, *rest: accepted_or_rejected(s, most, *rest))
        return decide(now, *ends), rounds + 1

    return jax.lax.while_loop(goes_on, once, (lanes, jnp.zeros((), jnp.int32)))


def integrate_stiff(
    stepper: Stepper,
    compilation: AbstractCompilation,
    thetas: Any,
    data: LaneData,
    y: Any,
    s: Any,
    most: int,
) -> tuple[ImplicitLanes, int]:
    """The ends of stiff lanes with at most `most` steps each, and the number of executed steps.

    `thetas` (N, p): parameters at the starts of the flows. `y`, `s`: states and times from which
    the lanes are continued. Machine code integrates small lanes on a CPU.
    """
    on_cpu = hardware.kind_of(hardware.device_of(thetas)) == "cpu"
    start = thetas, data, y, s
    if isinstance(compilation, Native) and on_cpu:
        found = stiff_ends_by_machine_code(stepper, *start, most, compilation)
        if found is not None:
            return _completed(stepper, *start, most, *found)
    return _ends_by_xla(stepper, *start, most)


def _completed(stepper, thetas, data, y, s, most, ends, executed):
    """The ends after XLA has continued the lanes that machine code has left."""
    left = np.flatnonzero(ends.code == LEFT)
    if not left.size:
        return ends, executed
    here = thetas[left], data.ordered(left, stepper.shared), ends.y[left], ends.s[left]
    taken = ends.num_steps[left], ends.num_rejected[left]
    found, more = _ends_by_xla(stepper, *here, most, taken)
    for end, now in zip(ends, found, strict=True):
        end[left] = now
    return ends, executed + more


def _ends_by_xla(
    stepper: Stepper, thetas: Any, data: LaneData, y: Any, s: Any, most: int, taken: Any = None
) -> tuple[ImplicitLanes, int]:
    """The same by XLA, for lanes of any size.

    `taken`: the steps and rejected steps that the lanes have taken already; they count.
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

    def begun(here, job):
        """These lanes before their first step here."""
        lanes = jax.tree.map(np.array, fresh(given, here))
        if taken is not None:
            place = np.minimum(job, count - 1)
            lanes.num_steps[:], lanes.num_rejected[:] = (counts[place] for counts in taken)
        return lanes

    numbers: Any = [np.zeros_like(s) for _ in range(3)]
    counts: Any = [np.zeros(count, np.int32) for _ in range(3)]
    ends = ImplicitLanes(np.zeros_like(y), *numbers, *counts)
    job = np.minimum(np.arange(width), count)
    following, executed = min(width, count), 0
    here = chosen(job)
    fresh = compiled(_fresh, _XLA, given, here)
    lanes = begun(here, job)
    lanes.code[job == count] = SPENT
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
        for now, first in zip(lanes, begun(here, job), strict=True):
            now[new] = first[new]
    return ends, executed
