"""A queue of lanes: lanes in flight take steps; a lane that ends is replaced by the next one."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...penalized import weight_decay_of
from .. import corners
from ..clocks import FlowArgs, PhysicalTime, log_time_unit, state_of, vector_of
from ..finish import first_rule
from ..observations import observe_state, stable_step
from ..sizes import size_of_start, tolerances_of
from ..statuses import FlowStatus, code_of
from ..stopping import AnyOf, StandsStill
from ..system import Reducible, System
from .lane_data import LaneData, LeavesOfLanes, marked_starts, with_data
from .step import (
    RUNNING,
    Functions,
    Lanes,
    at_least_smallest_normal,
    attempt_step,
    inverse_root,
    mean_square,
    scale_of,
)
from .vectorization.one_lane_to_many import lanewise

# Starts of up to this many widths are computed at once, since every kernel launch takes time.
_WIDTHS = 32


class Starts(NamedTuple):
    """States and data of N lanes. Lanes are the last axis of every array."""

    y: Float[Array, "q N"]
    unit: Float[Array, " N"]
    origin: Float[Array, "p N"]  # `marked_starts`
    atol: Float[Array, "q N"] | None  # None: `options.atol`
    leaves: list[Array]  # see `LeavesOfLanes`; without a lane axis if shared


class Queue(NamedTuple):
    """`count` waiting lanes, in arrays of N lanes. Lanes are the last axis of every array."""

    count: Int[Array, ""]
    fresh: Lanes
    unit: Float[Array, " N"]
    origin: Float[Array, "p N"]  # see `Starts`
    atol: Float[Array, "q N"] | None
    leaves: list[Array]  # see `LeavesOfLanes`; without a lane axis if shared


class InFlight(NamedTuple):
    """W lanes in flight. `job` is a lane's place in the queue; N if the lane is empty."""

    lanes: Lanes
    job: Int[Array, " W"]
    unit: Float[Array, " W"]
    origin: Float[Array, "p W"]
    atol: Float[Array, "q W"] | None
    own: list[Array]  # the leaves that are not shared, lanes last
    following: Int[Array, ""]
    rounds: Int[Array, ""]  # number of steps of the W lanes, idle ones included


class Stepper(NamedTuple):
    """The part of a batch that is static: `start` and `advance` are compiled for it."""

    system: System
    options: Any
    solver: Any
    shared: bool
    width: int
    exchanges: int
    enough: int  # number of ended lanes at which lanes are exchanged
    own_constants: bool = False  # whether constants of the network differ from lane to lane
    stiff_max_steps: int | None = None  # the most implicit steps of a lane; None for none
    branches: bool = True  # see `attempt_step`

    def of_any_width(self) -> "Stepper":
        """This stepper without its width, for programs that do not depend on it."""
        return self._replace(width=0, exchanges=0, enough=0, stiff_max_steps=None)

    @property
    def state_size(self) -> int:
        """The number of entries q of a state."""
        physical = isinstance(self.options.clock, PhysicalTime)
        return self.system.num_parameters + (0 if physical else 2)

    @property
    def leaves_of_lanes(self) -> LeavesOfLanes:
        """Which arrays lanes have besides their parameters."""
        return LeavesOfLanes.of(self.system, self.shared, self.own_constants)

    def functions(self, unit: Float[Array, " N"], leaves: list[Array]) -> Functions:
        """The functions of all lanes that a step calls."""
        system, options, clock = self.system, self.options, self.options.clock
        structure, _, have_lanes = kinds = self.leaves_of_lanes
        # The shapes of one lane's data: arrays that are not shared lose their last axis.
        examples = [
            jax.ShapeDtypeStruct(x.shape[:-1] if own else x.shape, x.dtype)
            for x, own in zip(leaves, have_lanes, strict=True)
        ]
        clips = isinstance(clock, PhysicalTime) and system.problem.has_residuals
        decays = weight_decay_of(system.problem) is not None
        has_corners = clips and not decays
        may_branch = has_corners or not system.ties_are_exact

        def of_lane(y, s, unit, origin, leaves):
            data, reducible = jax.tree.unflatten(structure, leaves)
            # With weight decay all parameters decay, and corners are not recognised.
            start = None if decays else origin
            args = FlowArgs(with_data(system, data), reducible, unit, start)
            state = state_of(y, clock)
            return args, state, vector_of(clock.velocity(s, state, args), clock)

        def slope(y, s, unit, origin, *leaves):
            return (of_lane(y, s, unit, origin, leaves)[2],)

        def code_by(rules, s, state, args):
            chosen = options._replace(stop=AnyOf(tuple(rules)))
            code = first_rule(observe_state(s, state, args, clock), chosen)
            return jnp.where(code == code_of(FlowStatus.max_steps), RUNNING, code)

        def slope_and_status(y, s, unit, origin, *leaves):
            args, state, velocity = of_lane(y, s, unit, origin, leaves)
            longest = stable_step(state.theta, args) if clips else jnp.full_like(s, jnp.inf)
            near = corners.is_near_corner(state, args) if may_branch else jnp.zeros_like(s, bool)
            return velocity, code_by(urgent, s, state, args), longest, near

        def at_corner(y, s, unit, origin, *leaves):
            args, state, velocity = of_lane(y, s, unit, origin, leaves)
            longest = jnp.full_like(s, jnp.inf)
            if has_corners:  # in physical time, where the state is theta
                longest = corners.step_at_corner(state.theta, args, velocity)
            return longest, corners.rounding_parts_ties(state, args)

        def status_at_rest(y, s, unit, origin, *leaves):
            args, state, _ = of_lane(y, s, unit, origin, leaves)
            return (code_by(others, s, state, args),)

        urgent, others = _urgent_and_others(options.stop.members, clips)
        y = jax.ShapeDtypeStruct((self.state_size,), unit.dtype)
        number = jax.ShapeDtypeStruct((), unit.dtype)
        origin = jax.ShapeDtypeStruct((system.num_parameters,), unit.dtype)
        batched = [True, True, True, True, *have_lanes]
        examples = [y, number, number, origin, *examples]
        each = (slope, slope_and_status, at_corner, status_at_rest)
        found = (lanewise(f, examples, batched) for f in each)
        shared = kinds.shared(leaves)
        return Functions(*(f.prepared(*shared) if shared else f for f in found))

    def starts(self, thetas: Float[Array, "N p"], data: LaneData) -> Starts:
        """States and data of lanes before their first step; `thetas`: initial parameters."""
        clock, options = self.options.clock, self.options
        physical = isinstance(clock, PhysicalTime)

        def start(theta, data):
            here = with_data(self.system, data)
            state = clock.start(here, theta)
            unit = jnp.zeros_like(theta[0]) if physical else log_time_unit(here, state)
            first = vector_of(state, clock), unit
            if not options.scales_atol:
                return *first, None
            largest = size_of_start(theta, data.problem, self.system.depth)
            atol = options.rtol * (largest if physical else jnp.minimum(largest, 1.0))
            atol = tolerances_of(here, theta, atol, options.clock)
            return *first, atol

        each = None if self.shared else 0
        lanes = 0, LaneData(each, 0)
        y, unit, atol = jax.vmap(start, lanes, (-1, 0, -1))(thetas, data)
        origin = marked_starts(self.system, thetas, data, lanes, self.branches)
        reduce = Reducible.of if self.shared else jax.vmap(lambda p: Reducible.of(p))
        leaves = jax.tree.leaves((data, reduce(data.problem)))
        have_lanes = self.leaves_of_lanes.have_lanes
        leaves = [
            jnp.moveaxis(leaf, 0, -1) if own else leaf
            for leaf, own in zip(leaves, have_lanes, strict=True)
        ]
        return Starts(y, unit, origin, atol, leaves)

    def queue(self, count, thetas: Float[Array, "N p"], data: LaneData) -> Queue:
        """Lanes with their first step sizes; N is a multiple of the width."""
        starts, unit, origin, atol, leaves = self.starts(thetas, data)
        kinds = self.leaves_of_lanes
        shared = kinds.shared(leaves)
        functions = self.functions(unit, leaves)

        size = self.width * math.gcd(unit.size // self.width, _WIDTHS)

        def blocks(array):
            return jnp.moveaxis(array.reshape(*array.shape[:-1], -1, size), -2, 0)

        def fresh(block):
            y, unit, origin, atol, own = block
            data = unit, origin, *kinds.merged(shared, own)
            return self.fresh(functions, y, jnp.zeros_like(unit), data, atol)

        own = kinds.own(leaves)
        # Blocks of the width: the last bit of a lane's result depends on its place in vectors of 8.
        found = jax.lax.map(fresh, jax.tree.map(blocks, (starts, unit, origin, atol, own)))
        merged = jax.tree.map(
            lambda a: jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], unit.size), found
        )
        return Queue(count, merged, unit, origin, atol, leaves)

    def fresh(self, functions: Functions, y: Float[Array, "q W"], s, data, atol) -> Lanes:
        """Lanes before their first step. Its size is that of Hairer, Norsett & Wanner II.4.

        `s`: zeros. `functions` are those of a step, so that compiled code is shared with it.
        """
        slope, code, longest, _ = functions.slope_and_status(y, s, *data)
        speed = jnp.max(jnp.abs(slope), axis=0)
        code = jnp.where((code == RUNNING) & (speed == 0), code_of(FlowStatus.stationary), code)
        code = jnp.where(jnp.isfinite(speed), code, code_of(FlowStatus.non_finite))
        # One division for each entry: the divisions take half of the start of a small network.
        shares = 1 / at_least_smallest_normal(scale_of(atol, self.options, y))
        size, speed = (jnp.sqrt(mean_square(shares * x)) for x in (y, slope))
        small = (size < 1e-5) | (speed < 1e-5)
        h0 = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
        (after,) = functions.slope(y + h0[None] * slope, s + h0, *data)
        bend = jnp.sqrt(mean_square(shares * (after - slope))) / h0
        largest = jnp.maximum(speed, bend)
        flat = largest <= 1e-15
        # (largest/0.01)^(-1/order); values that are not finite are replaced by 1e30.
        known = jnp.where(largest < 1e30, jnp.maximum(largest, 1e-15), 1e30)
        h1 = inverse_root(100 * known, int(self.solver.order(None)))
        h1 = jnp.where(flat, jnp.maximum(1e-6, h0 * 1e-3), h1)
        h = jnp.minimum(jnp.minimum(100 * h0, h1), longest)
        none = jnp.zeros_like(code)
        return Lanes(y, slope, s, h, jnp.ones_like(s), code, none, none)

    def start(self, queue: Queue) -> InFlight:
        """The first W lanes of the queue, in flight."""
        job = jnp.minimum(jnp.arange(self.width, dtype=jnp.int32), queue.count)
        none = jnp.zeros((), jnp.int32)
        following = jnp.minimum(self.width, queue.count)
        taken: Any = self._taken(queue, job)
        return InFlight(*taken, following=following, rounds=none)

    def _taken(self, queue: Queue, job):
        # A lane without a job computes with the data of the last lane; its results are not used.
        place = jnp.minimum(job, queue.count - 1)
        own = self.leaves_of_lanes.own(queue.leaves)
        lanes, *constants, own = jax.tree.map(
            lambda array: array[..., place],
            (queue.fresh, queue.unit, queue.origin, queue.atol, own),
        )
        return (lanes, job, *constants, own)

    def advance(self, in_flight: InFlight, queue: Queue) -> tuple[InFlight, Array]:
        """Steps and exchanges until the log is full or no lane is in flight.

        **Returns** the lanes in flight, and a log of shape (E, q + 5, W). At every exchange it
        holds the states, then time, status code, steps, rejected steps and places in the queue.
        The place is `queue.count` for a lane that was not done.
        """
        count, size = queue.count, self.state_size
        functions = self.functions(queue.unit, queue.leaves)

        def exchange(in_flight: InFlight, log: Array, event) -> tuple[InFlight, Array]:
            """Lanes that are done are logged; the next lanes of the queue take their places."""
            lanes = in_flight.lanes
            leaving = _done(lanes, in_flight.job, count)
            place = jnp.where(leaving, in_flight.job, count)
            columns = lanes.s, lanes.code, lanes.num_steps, lanes.num_rejected, place
            # One array: XLA would copy several arrays in every iteration of the loop.
            rows = [number.astype(log.dtype)[None] for number in columns]
            entry = jnp.concatenate([lanes.y, *rows])[None]
            log = jax.lax.dynamic_update_slice(log, entry, (event, zero, zero))
            return self._refilled(in_flight, queue, leaving), log

        def goes_on(carry):
            in_flight, _, event = carry
            return (event < self.exchanges) & jnp.any(in_flight.job < count)

        def body(carry):
            in_flight, log, event = carry
            in_flight = self._until_enough_are_done(functions, in_flight, queue)
            in_flight, log = exchange(in_flight, log, event)
            return in_flight, log, event + 1

        zero = jnp.zeros((), jnp.int32)
        empty_log = jnp.full((self.exchanges, size + 5, self.width), count, in_flight.unit.dtype)
        in_flight, log, _ = jax.lax.while_loop(goes_on, body, (in_flight, empty_log, zero))
        return in_flight, log

    def to_the_end(self, queue: Queue) -> tuple[Any, Int[Array, ""]]:
        """All lanes of a queue, in one program: for devices whose host should not wait in between.

        **Returns** arrays in the order of the queue: states (q, N), times, status codes, steps and
        rejected steps (N,); and the number of steps of the lanes in flight.
        """
        count, functions = queue.count, self.functions(queue.unit, queue.leaves)

        def goes_on(carry):
            return jnp.any(carry[0].job < count)

        def body(carry):
            in_flight = self._until_enough_are_done(functions, carry[0], queue)
            lanes = in_flight.lanes
            leaving = _done(lanes, in_flight.job, count)
            place = jnp.where(leaving, in_flight.job, queue.unit.size)
            ends = jax.tree.map(
                lambda array, lanes: array.at[..., place].set(lanes, mode="drop"),
                carry[1],
                _ends_of(lanes),
            )
            return self._refilled(in_flight, queue, leaving), ends

        none = jax.tree.map(jnp.zeros_like, _ends_of(queue.fresh))
        in_flight, ends = jax.lax.while_loop(goes_on, body, (self.start(queue), none))
        return ends, in_flight.rounds

    def _until_enough_are_done(
        self, functions: Functions, in_flight: InFlight, queue: Queue
    ) -> InFlight:
        """Steps until enough lanes are done for an exchange (all lanes, if the queue is empty)."""
        count, kinds = queue.count, self.leaves_of_lanes
        leaves = kinds.merged(kinds.shared(queue.leaves), in_flight.own)
        data = in_flight.unit, in_flight.origin, *leaves
        step = functools.partial(attempt_step, functions, self.solver, self.options)
        busy = jnp.sum(in_flight.job < count, dtype=jnp.int32)
        enough = jnp.where(in_flight.following < count, self.enough, busy)
        enough = jnp.minimum(enough, busy)

        def is_busy(carry):
            lanes, _ = carry
            return jnp.sum(_done(lanes, in_flight.job, count), dtype=jnp.int32) < enough

        def step_once(carry):
            lanes, rounds = carry
            return step(data, in_flight.atol, lanes, self.branches), rounds + 1

        lanes, rounds = jax.lax.while_loop(is_busy, step_once, (in_flight.lanes, in_flight.rounds))
        return in_flight._replace(lanes=lanes, rounds=rounds)

    def _refilled(self, in_flight: InFlight, queue: Queue, leaving) -> InFlight:
        """The next lanes of the queue in the places of those that leave."""
        count = queue.count
        place = in_flight.following + running_count(leaving) - 1
        job = jnp.where(leaving, jnp.minimum(place, count), in_flight.job).astype(jnp.int32)
        following = jnp.minimum(place[-1] + 1, count)
        taken = self._taken(queue, job)
        kept = (in_flight.lanes, *in_flight[1:-2])
        mixed = jax.tree.map(functools.partial(_where_lane, leaving), taken, kept)
        return InFlight(*mixed, following=following, rounds=in_flight.rounds)


def _urgent_and_others(rules, clips: bool) -> tuple[list[Any], list[Any]]:
    """The stop rules of every step, and those that are evaluated for flows at rest only.

    The rule `StandsStill` takes as long as two stages of a step. A flow with clipped steps has tiny
    errors at rest, and the rule is evaluated only if the errors are tiny.
    """
    if not clips:
        return list(rules), []
    others = [rule for rule in rules if isinstance(rule, StandsStill)]
    return [rule for rule in rules if not isinstance(rule, StandsStill)], others


def _done(lanes: Lanes, job, count):
    return (lanes.code != RUNNING) & (job < count)


def _ends_of(lanes: Lanes) -> tuple[Array, ...]:
    return lanes.y, lanes.s, lanes.code, lanes.num_steps, lanes.num_rejected


def _where_lane(lane, new, old):
    """`new` where `lane` is True, `old` elsewhere."""
    return jnp.where(lane.reshape((1,) * (new.ndim - 1) + lane.shape), new, old)


def running_count(flags):
    """`jnp.cumsum` of W flags in log2(W) sums; XLA needs W/8 times as many operations."""
    counts, shift = flags.astype(jnp.int32), 1
    while shift < flags.shape[0]:
        counts = counts + jnp.concatenate([jnp.zeros(shift, jnp.int32), counts[:-shift]])
        shift *= 2
    return counts
