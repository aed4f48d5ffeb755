"""Many flows at once: an explicit stepper whose lanes share nothing but their instructions.

`jax.vmap` of `gradient_flow` runs every lane until the slowest is done. Here every lane has its own
step size, status and clock, and a lane that is done makes room for the next of the queue. The
method and its step-size rules are diffrax's (the tableau, the first step of Hairer, Norsett &
Wanner, PI control), and a flow takes the steps that `diffrax.diffeqsolve` takes; what is left out
is everything that a flow does not need. Stiff flows are not for it: they end with `max_steps`.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..messages import in_words
from ..networks import split
from ..problems import AbstractProblem
from .clocks import FlowArgs, PhysicalTime, log_time_unit
from .compilation import XLA, AbstractCompilation, Native, arrays_of, compiled
from .finish import run_finish
from .integrate import record
from .native.table import counts_of, start_row, step_row, table_of
from .options import fill_options, same_dtype
from .queue import InFlight, Queue, Stepper, state_of, with_problem
from .spectral import Spectral
from .stopping import FlowStatus, code_of, status_of
from .system import Reducible, System

# Lanes in flight at once: wide enough for vector instructions, small enough for the first cache.
# And the share of them that is done when the queue is looked at: a look costs as much as a few
# steps of all lanes, of small ones, and a lane that is done and waits costs its own steps.
_SMALL, _LARGE = (128, 4), (32, 16)
_LARGEST_SMALL = 32
# Dormand & Prince's 8(7) is as fast as Tsit5 on small networks, and 30 times as accurate; with more
# numbers it saves nothing, and the long steps of other clocks go far beyond what a stop rule asks.
_LARGEST_OF_HIGH_ORDER = 16
# Lanes of one program, which keeps memory flat and compilations few; numbers in one log.
_CHUNK, _CHUNK_OF_GPU, _LOG_SIZE = 2**14, 2**20, 2**16
# The share of lanes that go first.
_FIRST = 8
_waiting = threading.Lock()


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
    compilation: AbstractCompilation | None = None,
    devices: Sequence[Any] | None = None,
    **options: Any,
) -> BatchedFlow:
    """Gradient flows of many networks, to their ends.

    **Arguments**

    - `networks`: a network whose parameters have a leading axis of N lanes (constants have not).
    - `problem`: the data of all lanes; or, with `shared_problem=False`, one problem a lane, every
      array with a leading axis of N.
    - `width`: lanes in flight on XLA, rounded up to a multiple of 8. Default: 128, or 32 where a
      lane has more than 32 numbers.
    - `solver`: an explicit diffrax method whose last stage is the first of the next step. Default:
      `diffrax.Dopri8()` in physical time with up to 16 numbers a lane, else `diffrax.Tsit5()`.
    - `compilation`: `Native()`, with as many threads as there are cores (default on CPUs), or
      `XLA()`, which also takes over for networks that the other has no machine code for: large
      ones, and those with a sort, an FFT, a scan or the like.
    - `devices`: where lanes fly, such as `jax.local_devices()`; default: where the networks are.
      XLA runs one program at a time on a device: for two cores of a CPU, set
      `jax.config.update("jax_num_cpu_devices", 2)` before the first computation.
    - `clock`, `stop`, `finish`, `rtol`, `atol`, `max_steps`: as in `gradient_flow`; default for
      max_steps 4096. A default stop is one for all lanes, by the size of the first one's data.

    **Returns** a `BatchedFlow`. Nothing is raised for a lane that fails: see `status`.
    """
    fits = isinstance(solver, diffrax.AbstractERK) and getattr(solver.tableau, "fsal", False)
    if solver is not None and not fits:
        raise ValueError(
            "solver: must be an explicit diffrax method with the FSAL property, such as "
            f"diffrax.Tsit5() or diffrax.Dopri8(), got {in_words(solver)}; use "
            "gradient_flow for others."
        )
    if not isinstance(compilation, AbstractCompilation | None):
        raise ValueError(
            f"compilation: must be Native() or XLA(), got {in_words(compilation)}; leave it out "
            "for what is fastest."
        )
    networks, problem = same_dtype(networks, problem)
    parameters, rest = split(networks)
    count = jax.tree.leaves(parameters)[0].shape[0]
    on_cpu = jax.default_backend() == "cpu"
    # On a CPU by NumPy, in a microsecond each.
    first = jax.tree.map(lambda leaf: (np.asarray(leaf) if on_cpu else leaf)[0], parameters)
    one = problem if shared_problem else jax.tree.map(lambda leaf: leaf[0], problem)
    system = System.of(eqx.combine(first, rest), one)
    options.setdefault("max_steps", 4096)
    atol = options.pop("atol", None)
    filled = fill_options(system, atol=atol, **options)
    size = system.num_parameters + (0 if isinstance(filled.clock, PhysicalTime) else 2)
    # `ravel_pytree` of every lane, without the milliseconds of a trace.
    leaves = [leaf.reshape(count, -1) for leaf in jax.tree.leaves(parameters)]
    thetas = jnp.concatenate(leaves, axis=1) if len(leaves) > 1 else leaves[0]
    most = _CHUNK if on_cpu else _CHUNK_OF_GPU
    if compilation is None:
        compilation = Native() if on_cpu else XLA()
    if solver is None:
        mild = isinstance(filled.clock, PhysicalTime) and size <= _LARGEST_OF_HIGH_ORDER
        solver = diffrax.Dopri8() if mild else diffrax.Tsit5()
    usual, share = _SMALL if size <= _LARGEST_SMALL else _LARGE
    width = width or (usual if on_cpu else most)
    # Whole vectors of 512 bits: in the rest of a vector loop a lane's last bit would be another.
    width = 8 * -(-min(width, count) // 8)
    shares = 1 if devices is None else len(devices)
    each = max(min(most, -(-count // shares)), min(4 * width, count))
    # A power of two times the width, so that few sizes are ever compiled.
    chunk = width * 2 ** math.ceil(math.log2(-(-each // width)))
    stepper = Stepper(
        system=system,
        options=filled,
        solver=solver,
        shared=shared_problem,
        width=width,
        exchanges=max(1, min(chunk, _LOG_SIZE // (width * (size + 5)))),
        enough=-(-width // share),
        scales_atol=atol is None,
    )
    spectral = Spectral.of(eqx.combine(first, rest), one)
    chunks = [
        _Chunk(
            np.asarray(min(chunk, count - at), np.int32),
            _piece(thetas, at, chunk),
            problem if shared_problem else _piece(problem, at, chunk),
        )
        for at in range(0, count, chunk)
    ]

    def fly(devices, place):
        mine = chunks[place::shares]
        here = eqx.filter(stepper, eqx.is_array), mine
        arrays, mine = jax.device_put(here, devices[place])
        return [_fly(eqx.combine(arrays, stepper), compilation, chunk, spectral) for chunk in mine]

    if devices is None:
        landed = [_fly(stepper, compilation, chunk, spectral) for chunk in chunks]
    else:
        with ThreadPoolExecutor(shares) as pool:
            found = list(pool.map(functools.partial(fly, devices), range(shares)))
        landed = [found[i % shares][i // shares] for i in range(len(chunks))]
    if len(landed) == 1:
        return landed[0]
    flow = jax.tree.map(
        lambda *leaves: jnp.asarray(np.concatenate(np.atleast_1d(*leaves))), *landed
    )
    return dataclasses.replace(flow, executed_steps=jnp.sum(flow.executed_steps))


class _Chunk(NamedTuple):
    """Lanes of one program; those beyond `count` only fill its arrays."""

    count: Int[np.ndarray, ""]
    thetas: Float[Array, "N p"]
    problem: Any


class _Ends(NamedTuple):
    """Where the lanes of a chunk ended, in their order."""

    y: Float[np.ndarray, "N q"]
    s: Float[np.ndarray, " N"]
    code: Int[np.ndarray, " N"]
    num_steps: Int[np.ndarray, " N"]
    num_rejected: Int[np.ndarray, " N"]


def _piece(tree, at, size):
    """Lanes at, ..., at + size - 1; the last one stands in for those that there are not."""

    def of(leaf):
        piece = leaf[at : at + size]
        missing = size - piece.shape[0]
        return jnp.concatenate([piece, jnp.repeat(leaf[-1:], missing, 0)]) if missing else piece

    return jax.tree.map(of, tree)


def _queue(stepper: Stepper, chunk: _Chunk, order) -> tuple[InFlight, Queue]:
    problem = chunk.problem
    if not stepper.shared:
        problem = jax.tree.map(lambda leaf: leaf[order], problem)
    queue = stepper.queue(chunk.count, chunk.thetas[order], problem)
    return stepper.start(queue), queue


def _order(thetas: Float[Array, "N p"], count: int, width: int) -> Int[np.ndarray, " N"]:
    """The order of the queue: the smallest starts first, if any lane has to wait.

    They take the most steps (rank correlation 0.65 to 0.85 in the uneven sweep of
    `benchmarks/batched.py`). The last lanes on their way hold up a whole width: they should not be
    those.
    """
    order = np.arange(thetas.shape[0], dtype=np.int32)
    if count > width:
        known = np.asarray(thetas)[:count]
        order[:count] = np.argpartition(np.einsum("ij,ij->i", known, known), count // _FIRST)
    return order


def _advance(stepper: Stepper, flight: InFlight, queue: Queue) -> tuple[InFlight, Array]:
    return stepper.advance(flight, queue)


def _fly(stepper, compilation, chunk: _Chunk, spectral: Spectral | None) -> BatchedFlow:
    """The flows of one chunk, on the device where it is; in arrays of `count` lanes."""
    count, flying, flown, device = int(chunk.count), stepper, chunk, chunk.thetas.device
    if spectral is not None:
        problem = spectral.problem(chunk.problem)
        one = problem if stepper.shared else jax.tree.map(lambda leaf: leaf[0], problem)
        arrays, rest = eqx.partition(spectral.system(one), eqx.is_array)
        system: Any = eqx.combine(jax.device_put(arrays, device), rest)
        flying = stepper._replace(system=system)
        flown = chunk._replace(thetas=spectral.into(chunk.thetas), problem=problem)
    like, dtype = chunk.thetas.shape[:1], chunk.thetas.dtype
    state = jax.ShapeDtypeStruct((*like, stepper.state_size), dtype)
    s, code = jax.ShapeDtypeStruct(like, dtype), jax.ShapeDtypeStruct(like, np.int32)
    # All programs are traced one after the other and compiled side by side.
    wrap = compiled(_wrapped, XLA(), stepper, chunk, (state, s, code))
    order = _order(chunk.thetas, count, stepper.width)
    if isinstance(compilation, Native):
        found = _by_rows(flying, compilation, flown, order[:count])
    else:
        found = None
    ends, executed = found or _by_programs(flying, flown, order)
    if spectral is not None:
        parameters = chunk.thetas.shape[1]
        ends.y[:, :parameters] = spectral.back(ends.y[:, :parameters])
    # XLA:CPU has one pool of threads for all devices: two programs that hand work to it (as linear
    # algebra does) and wait for each other's threads never end.
    with _waiting:
        found = jax.block_until_ready(wrap(stepper, chunk, ends[:3]))
    if count < chunk.thetas.shape[0]:
        found = jax.tree.map(lambda leaf: leaf[:count], found)
    unfinished, finished, accepted, saved = found
    rest = stepper.system.rest
    before = eqx.combine(unfinished, rest)
    return BatchedFlow(
        network=before if finished is None else eqx.combine(finished, rest),
        unfinished_network=before,
        coefficients=saved["coefficients"],
        log_loss=saved["log_loss"],
        log_time=saved["log_time"],
        log_norm=saved["log_norm"],
        log_margin=saved.get("log_margin"),
        invariant_drift=saved["invariant_drift"],
        status=saved["status"],
        finish_accepted=accepted,
        num_steps=jnp.asarray(ends.num_steps[:count]),
        num_rejected_steps=jnp.asarray(ends.num_rejected[:count]),
        executed_steps=jnp.asarray(executed),
    )


def _by_programs(stepper: Stepper, chunk: _Chunk, order) -> tuple[_Ends, int]:
    """Where the lanes of a chunk end, and the steps that it took, by XLA."""
    count = int(chunk.count)
    start = compiled(_queue, XLA(), stepper, chunk, order)
    advance = compiled(_advance, XLA(), stepper, *start.results)
    none = np.zeros(order.size, np.int32)
    like = np.zeros(order.size, chunk.thetas.dtype)
    state = np.zeros((order.size, stepper.state_size), like.dtype)
    ends = _Ends(state, like, none, none.copy(), none.copy())
    flight, queue = start(stepper, chunk, order)
    following = advance(stepper, flight, queue)
    while True:
        # The next part is on its way while this one is written down.
        (flight, log), following = following, advance(stepper, following[0], queue)
        _harvest(log, count, order, ends)
        if not np.any(np.asarray(flight.job) < count):
            return ends, int(flight.rounds) * stepper.width


def _by_rows(stepper: Stepper, compilation, chunk: _Chunk, order) -> tuple[_Ends, int] | None:
    """The same by machine code of our own; None if there is none."""
    # The same machine code for any number of lanes.
    stepper = stepper._replace(width=0, exchanges=0, enough=0)
    fill = compiled(_table, XLA(), stepper, chunk)
    rows, leaves = fill.results
    row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    # The one that takes longest comes first; a start takes microseconds, on one core.
    flying = compiled(step_row, compilation, row, stepper, leaves).machine_code
    if flying is None:
        return None
    starting = compiled(start_row, Native(threads=1), row, stepper, leaves).machine_code
    if starting is None:
        return None
    start, fly = starting.result(), flying.result()
    filled, leaves = fill(stepper, chunk)
    table, shared = np.array(filled), arrays_of((stepper, leaves))
    start(table, order, *shared)
    table[:, 0] -= 1
    executed = fly(table, order, *shared)
    code, s = table[:, :2].T
    state = table[:, 4 : 4 + stepper.state_size]
    return _Ends(state, s, code.astype(np.int32), *counts_of(table)), executed


def _table(stepper: Stepper, chunk: _Chunk) -> tuple[Array, list[Array]]:
    starts = stepper.starts(chunk.thetas, chunk.problem)
    return table_of(starts, stepper.shared), starts.leaves if stepper.shared else []


def _harvest(log: Array, count: int, order: Int[np.ndarray, " N"], ends: _Ends) -> None:
    """Writes down the lanes that were done."""
    told = np.asarray(log)
    done = told[:, -1] < count
    lanes = np.moveaxis(told, 1, -1)[done]
    place = order[lanes[:, -1].astype(int)]
    ends.y[place] = lanes[:, :-5]
    for i, store in enumerate(ends[1:]):
        store[place] = lanes[:, i - 5]


def _wrapped(stepper: Stepper, chunk: _Chunk, ends):
    """Finish and observables of the lanes of a chunk, in batches that fit the cache."""
    system, options, shared = stepper.system, stepper.options, stepper.shared

    def of_lane(lane):
        (y, s, code), theta, problem = lane
        problem = chunk.problem if shared else problem
        here = with_problem(system, problem)
        reducible: Any = Reducible.of(problem)
        initial = options.clock.start(here, theta)
        physical = isinstance(options.clock, PhysicalTime)
        unit = jnp.zeros_like(s) if physical else log_time_unit(here, initial)
        state = state_of(y, options.clock)
        saved = record(s, state, FlowArgs(here, reducible, unit), options, initial)
        saved["status"] = status_of(code)
        theta = jnp.exp(state.log_scale) * state.theta
        finished = accepted = None
        if options.finish is not None:
            finish = run_finish(options.finish, here, reducible, theta)
            accepted = finish.accepted & (code == code_of(FlowStatus.residual))
            finished: Any = here.network(jnp.where(accepted, finish.theta, theta))
            beta = finished.linear_coefficients()
            saved |= {"coefficients": beta, "log_loss": problem.log_loss(beta)}
        return split(here.network(theta))[0], finished and split(finished)[0], accepted, saved

    own = None if shared else chunk.problem
    return jax.lax.map(of_lane, (ends, chunk.thetas, own), batch_size=256)
