"""Many flows at once: an explicit stepper whose lanes share nothing but their instructions.

`jax.vmap` of `gradient_flow` runs every lane until the slowest is done. Here every lane has its own
step size, status and clock, and a lane that is done makes room for the next of the queue. The
method and its step-size rules are diffrax's (the tableau, the first step of Hairer, Norsett &
Wanner, PI control), and a flow takes the steps that `diffrax.diffeqsolve` takes; what is left out
is everything that a flow does not need. Stiff flows are not for it: they end with `max_steps`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from ..networks import split
from ..problems import AbstractProblem, Classification
from .clocks import ClockState, FlowArgs, PhysicalTime, log_time_unit
from .controllers import longest_step
from .finish import run_finish
from .integrate import first_rule, observe_state, record
from .lanes import RUNNING, Lanes, attempt_step, rms, where_lane
from .lanewise import lanewise
from .options import fill_options, same_dtype
from .stopping import FlowStatus, code_of, status_of
from .system import Reducible, System

# Steps between two looks at the queue. More of them leave finished lanes idle, fewer pay more often
# for loading new ones.
_STEPS_PER_ROUND = 8
# Lanes that are in flight at once: wide enough for vector instructions, small enough for the first
# cache. With more state per lane 32 leave less to wait for.
_WIDTH, _WIDTH_OF_LARGE, _LARGE = 128, 32, 32


class BatchedFlow(eqx.Module):
    """Ends of many flows; every array has the lanes on its first axis.

    `network`, `coefficients`, `log_loss`, `log_time`, `log_norm`, `log_margin` (None for
    regression), `invariant_drift`, `status` as in `FlowSolution`, at the end. `finish_accepted` is
    None without a finish. `num_steps` counts attempted steps, `num_rejected_steps` those of them
    that were taken back; `executed_steps` is what the machine did, idle lanes included.
    """

    network: Any
    unfinished_network: Any
    coefficients: Float[Array, "N ..."]
    log_loss: Float[Array, " N"]
    log_time: Float[Array, " N"]
    log_norm: Float[Array, " N"]
    log_margin: Float[Array, " N"] | None
    invariant_drift: Float[Array, " N"]
    status: FlowStatus
    finish_accepted: Bool[Array, " N"] | None
    num_steps: Int[Array, " N"]
    num_rejected_steps: Int[Array, " N"]
    executed_steps: Int[Array, ""]

    @property
    def waste(self) -> Float[Array, ""]:
        """Executed over needed steps: 1 if no lane ever waited."""
        return self.executed_steps / jnp.sum(self.num_steps)


def batched_flow(
    networks: Any,
    problem: AbstractProblem,
    *,
    shared_problem: bool = True,
    width: int | None = None,
    solver: diffrax.AbstractERK | None = None,
    **options: Any,
) -> BatchedFlow:
    """Gradient flows of many networks, to their ends.

    **Arguments**

    - `networks`: a network whose parameters have a leading axis of N lanes (constants have not).
    - `problem`: the data of all lanes; or, with `shared_problem=False`, one problem a lane, every
      array with a leading axis of N.
    - `width`: lanes in flight, rounded up to a multiple of 8. Default: 128, or 32 where a lane has
      more than 32 numbers.
    - `solver`: an explicit diffrax method whose last stage is the first of the next step; default
      `diffrax.Tsit5()`.
    - `clock`, `stop`, `finish`, `rtol`, `atol`, `max_steps`: as in `gradient_flow`; default for
      max_steps 4096.

    **Returns** a `BatchedFlow`. Nothing is raised for a lane that fails: see `status`.
    """
    solver = diffrax.Tsit5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK) or not getattr(solver.tableau, "fsal", False):
        raise ValueError(
            "solver: must be an explicit diffrax method with the FSAL property, such as "
            f"diffrax.Tsit5() or diffrax.Dopri8(), got {solver!r}; use gradient_flow for others."
        )
    networks, problem = same_dtype(networks, problem)
    parameters, rest = split(networks)
    count = jax.tree.leaves(parameters)[0].shape[0]
    first = jax.tree.map(lambda leaf: leaf[0], parameters)
    one = problem if shared_problem else jax.tree.map(lambda leaf: leaf[0], problem)
    system = System.of(eqx.combine(first, rest), one)
    options.setdefault("max_steps", 4096)
    atol = options.pop("atol", None)
    filled = fill_options(system, atol=atol, **options)
    if width is None:
        width = _WIDTH if _size(system, filled) <= _LARGE else _WIDTH_OF_LARGE
        if jax.default_backend() != "cpu":
            width = count
    # Whole vectors of 512 bits: in the rest of a vector loop a lane's last bit would be another.
    width = 8 * -(-min(width, count) // 8)
    on_cpu = jax.default_backend() == "cpu"
    return _compiled(on_cpu)(
        parameters, system, problem, filled, solver, shared_problem, width, atol is None
    )


@functools.cache
def _compiled(on_cpu: bool) -> Callable[..., BatchedFlow]:
    # Vectors of 512 bits where the processor has them: 1.4 times faster. Unlike the flags in
    # XLA_FLAGS this is an option of one program, and not of the process.
    options: Any = {"compiler_options": {"xla_cpu_prefer_vector_width": "512"}} if on_cpu else {}
    return eqx.filter_jit(_run, **options)


def _run(parameters, system, problem, options, solver, shared, width, scale_atol):
    starts, unit = _starts(parameters, system, problem, options, shared)
    if scale_atol:  # as `fill_options` does for one lane
        largest = jnp.max(jnp.abs(_thetas(parameters)), axis=1)
        least = options.rtol * (largest if isinstance(options.clock, PhysicalTime) else 1.0)
        atol = jnp.minimum(options.rtol * largest, least)
    else:
        atol = jnp.full(starts.shape[0], options.atol)
    reducible = Reducible.of(problem) if shared else jax.vmap(lambda p: Reducible.of(p))(problem)
    data = _Data(problem, reducible, unit, atol)
    ends = _integrated(starts, data, system, options, solver, shared, width)
    return _wrapped(ends, starts, data, system, options, shared)


class _Ends(NamedTuple):
    """Where the lanes ended, in the order of the starts."""

    y: Float[Array, "N q"]
    s: Float[Array, " N"]
    code: Int[Array, " N"]
    num_steps: Int[Array, " N"]
    num_rejected: Int[Array, " N"]
    executed: Int[Array, ""]


class _Data(NamedTuple):
    """What a lane needs besides its state; `problem` and `reducible` may be shared."""

    problem: Any
    reducible: Any
    unit: Any
    atol: Any


def _thetas(parameters):
    return jax.vmap(lambda p: ravel_pytree(p)[0])(parameters)


def _size(system, options):
    return system.initial.size + (0 if isinstance(options.clock, PhysicalTime) else 2)


def _with(system, problem):
    return eqx.tree_at(lambda s: s.problem, system, problem)


def _starts(parameters, system, problem, options, shared):
    """The states at time 0 as vectors (N, q), and the clocks' units (N,)."""

    def start(theta, problem):
        here = _with(system, problem)
        state = options.clock.start(here, theta)
        physical = isinstance(options.clock, PhysicalTime)
        unit = jnp.zeros_like(theta[0]) if physical else log_time_unit(here, state)
        return _vector(state, options.clock), unit

    return jax.vmap(start, in_axes=(0, None if shared else 0))(_thetas(parameters), problem)


def _vector(state, clock):
    if isinstance(clock, PhysicalTime):
        return state.theta
    return jnp.concatenate([state.theta, state.log_scale[None], state.elapsed[None]])


def _state(y, clock):
    if isinstance(clock, PhysicalTime):
        zero = jnp.zeros_like(y[0])
        return ClockState(y, zero, zero)
    return ClockState(y[:-2], y[-2], y[-1])


def _lane_functions(system, data, options, shared, dtype):
    """The slope, and what is seen of a lane (slope, code, longest step), with lanes last."""
    clock = options.clock
    leaves, structure = jax.tree.flatten((data.problem, data.reducible))
    # One lane's data: everything but what is shared has lost its first axis.
    examples = [jax.ShapeDtypeStruct(x.shape if shared else x.shape[1:], x.dtype) for x in leaves]
    clips = isinstance(clock, PhysicalTime) and not isinstance(data.problem, Classification)

    def of_lane(y, s, unit, leaves):
        problem, reducible = jax.tree.unflatten(structure, leaves)
        args = FlowArgs(_with(system, problem), reducible, unit)
        state = _state(y, clock)
        return args, state, _vector(clock.velocity(s, state, args), clock)

    def slope(y, s, unit, *leaves):
        return (of_lane(y, s, unit, leaves)[2],)

    def seen(y, s, unit, *leaves):
        args, state, velocity = of_lane(y, s, unit, leaves)
        status = first_rule(observe_state(s, state, args, clock), options)
        code = jnp.where(status == FlowStatus.max_steps, RUNNING, code_of(status))
        finite = jnp.all(jnp.isfinite(velocity))
        code = jnp.where(finite, code, code_of(FlowStatus.non_finite))
        longest = longest_step(state, args) if clips else jnp.full_like(s, jnp.inf)
        return velocity, code, longest

    y = jax.ShapeDtypeStruct((_size(system, options),), dtype)
    number = jax.ShapeDtypeStruct((), dtype)
    batched = [True, True, True, *[not shared] * len(leaves)]
    built = [lanewise(f, [y, number, number, *examples], batched) for f in (slope, seen)]
    return *built, leaves


def _integrated(starts, data, system, options, solver, shared, width):
    """Runs the whole queue."""
    count, dtype = starts.shape[0], starts.dtype
    slope_of, seen_of, leaves = _lane_functions(system, data, options, shared, dtype)
    order = solver.order(None)

    def lane_data(job):
        # A lane without a job computes with the last one's data, and nobody looks.
        job = jnp.minimum(job, count - 1)
        own = leaves if shared else [jnp.moveaxis(leaf[job], 0, -1) for leaf in leaves]
        return (data.unit[job], *own), data.atol[job]

    def load(job):
        """Fresh lanes: the first step is that of Hairer, Norsett & Wanner II.4, as in diffrax."""
        (unit, *own), atol = lane_data(job)
        y = starts[jnp.minimum(job, count - 1)].T
        s = jnp.zeros(width, dtype)
        slope, code, longest = seen_of(y, s, unit, *own)
        moving = jnp.any(slope != 0, axis=0)
        code = jnp.where((code == RUNNING) & ~moving, code_of(FlowStatus.stationary), code)
        scale = atol[None] + options.rtol * jnp.abs(y)
        size, speed = rms(y / scale), rms(slope / scale)
        small = (size < 1e-5) | (speed < 1e-5)
        h0 = jnp.where(small, 1e-6, 0.01 * size / jnp.where(small, 1.0, speed))
        (after,) = slope_of(y + h0[None] * slope, s + h0, unit, *own)
        bend = rms((after - slope) / scale) / h0
        largest = jnp.maximum(speed, bend)
        flat = largest <= 1e-15
        h1 = (0.01 / jnp.where(flat, 1.0, largest)) ** (1 / order)
        h1 = jnp.where(flat, jnp.maximum(1e-6, h0 * 1e-3), h1)
        h = jnp.minimum(jnp.minimum(100 * h0, h1), longest)
        code = jnp.where(job < count, code, 0)
        none = jnp.zeros(width, jnp.int32)
        return Lanes(y, slope, s, h, jnp.ones(width, dtype), code, none, none)

    def round_(lanes, job):
        (unit, *own), atol = lane_data(job)
        step = functools.partial(
            attempt_step, slope_of, seen_of, solver, options, (unit, *own), atol
        )
        return jax.lax.fori_loop(0, _STEPS_PER_ROUND, lambda _, lanes: step(lanes), lanes)

    def exchange(carry):
        """Finished lanes leave their results; the next of the queue take their places."""
        lanes, job, following, results, executed = carry
        done = (lanes.code != RUNNING) & (job < count)
        here = jnp.where(done, job, count)  # out of range: dropped
        found = lanes.y.T, lanes.s, lanes.code, lanes.num_steps, lanes.num_rejected
        results = tuple(
            store.at[here].set(value, mode="drop")
            for store, value in zip(results, found, strict=True)
        )
        place = following + jnp.cumsum(done) - 1
        job = jnp.where(done, jnp.minimum(place, count), job).astype(jnp.int32)
        fresh = load(job)
        lanes = jax.tree.map(functools.partial(where_lane, done), fresh, lanes)
        following = jnp.minimum(following + jnp.sum(done), count).astype(jnp.int32)
        return lanes, job, following, results, executed

    def body(carry):
        lanes, job, following, results, executed = carry
        lanes = round_(lanes, job)
        carry = lanes, job, following, results, executed + _STEPS_PER_ROUND * width
        done = jnp.any((lanes.code != RUNNING) & (job < count))
        return jax.lax.cond(done, exchange, lambda carry: carry, carry)

    job = jnp.arange(width, dtype=jnp.int32)
    none = jnp.zeros(count, jnp.int32)
    results = (jnp.zeros_like(starts), jnp.zeros_like(starts[:, 0]), none, none, none)
    executed = jnp.zeros((), jnp.result_type(int))
    carry = load(job), job, jnp.asarray(width, jnp.int32), results, executed
    carry = jax.lax.while_loop(lambda c: jnp.any(c[1] < count), body, carry)
    return _Ends(*carry[3], carry[4])


def _wrapped(ends, starts, data, system, options, shared):
    """Finish and observables of every lane, in batches that fit the cache."""

    def of_lane(lane):
        (y, s, code), start, unit, (problem, reducible) = lane
        problem, reducible = (data.problem, data.reducible) if shared else (problem, reducible)
        here = _with(system, problem)
        state, initial = _state(y, options.clock), _state(start, options.clock)
        saved = record(s, state, FlowArgs(here, reducible, unit), options, initial)
        theta = jnp.exp(state.log_scale) * state.theta
        finished = accepted = None
        if options.finish is not None:
            finish = run_finish(options.finish, here, reducible, theta)
            accepted = finish.accepted & (code == code_of(FlowStatus.residual))
            finished = here.network(jnp.where(accepted, finish.theta, theta))
            beta = finished.linear_coefficients()
            saved |= {"coefficients": beta, "log_loss": problem.log_loss(beta)}
        return split(here.network(theta))[0], finished and split(finished)[0], accepted, saved

    own = (None, None) if shared else (data.problem, data.reducible)
    lanes = (ends.y, ends.s, ends.code), starts, data.unit, own
    unfinished, finished, accepted, saved = jax.lax.map(of_lane, lanes, batch_size=256)
    network, before = (
        eqx.combine(parameters, system.rest) for parameters in (finished or unfinished, unfinished)
    )
    return BatchedFlow(
        network=network,
        unfinished_network=before,
        coefficients=saved["coefficients"],
        log_loss=saved["log_loss"],
        log_time=saved["log_time"],
        log_norm=saved["log_norm"],
        log_margin=saved.get("log_margin"),
        invariant_drift=saved["invariant_drift"],
        status=jax.vmap(status_of)(ends.code),
        finish_accepted=accepted,
        num_steps=ends.num_steps,
        num_rejected_steps=ends.num_rejected,
        executed_steps=ends.executed,
    )
