"""The ends of a chunk's lanes, finished and recorded: by machine code of a CPU, or by XLA."""

import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...networks import split
from ...networks.pair import check_pair
from ..clocks import FlowArgs, PhysicalTime, log_time_unit, state_of
from ..finish import finish_flow
from ..record import record_of
from ..system import Reducible
from . import hardware
from .aligned_memory import as_aligned
from .chunk import Chunk, Ends, ends_like, jax_integer
from .lane_data import with_data
from .over_lanes import Mapped, lanes_of, mapped, own_data
from .programs import XLA, AbstractCompilation, Arguments, Native, compiled
from .stepper import Stepper

_XLA = XLA()
_one_cpu_program = threading.Lock()
# A call of a program copies its arguments. For few lanes it takes 0.6 to 0.8 of the time of
# `device_put`, which uses the memory of its arguments. For 65,536 lanes it takes four times as
# long as `device_put`.
_FEWEST_PUT = 2**13
_copied = jax.jit(lambda arrays: arrays)


def finishing(
    stepper: Arguments, chunk: Arguments, compilation: AbstractCompilation, batch: int | None
) -> Callable[[Ends], tuple[Any, tuple[Any, ...], Any]]:
    """A function that finishes and records the lanes of a chunk.

    Its compilation starts here, and the function waits for it. It returns arrays of `count` lanes:
    what `_finished_lane` returns; status codes, steps, rejected steps and implicit steps; and the
    number of executed steps.

    `batch`: the lanes that XLA finishes at once; None: all.
    """
    kind = hardware.kind_of(hardware.device_of(chunk.values[0].thetas))
    if kind == "cpu" and isinstance(compilation, Native):
        found = _by_machine_code(stepper, chunk, compilation, batch)
        if found is not None:
            return found
    return _by_xla(stepper, chunk, batch)


def _by_xla(stepper: Arguments, chunk: Arguments, batch: int | None) -> Callable[[Ends], Any]:
    lanes: Chunk = chunk.values[0]
    kind = hardware.kind_of(hardware.device_of(lanes.thetas))
    size, dtype = lanes.thetas.shape[0], lanes.thetas.dtype
    like = _arguments_like(size, stepper.values[0].state_size, dtype, jax_integer(), batch)
    program = compiled(_finished, _XLA, stepper, chunk, like)

    def by_xla(ends: Ends):
        with cpu_lock(kind):
            given = stepper, chunk, Arguments(ends.in_arrays(size), batch)
            *found, executed = jax.block_until_ready(program(*given))
        if lanes.count < size:
            found = jax.tree.map(lambda leaf: leaf[: int(lanes.count)], found)
        return *found, executed

    return by_xla


@functools.lru_cache(64)  # made of many small objects, once for each size
def _arguments_like(size: int, state_size: int, dtype, integer, batch: int | None) -> Arguments:
    """Shapes of the last arguments of `_finished`, which is compiled before they exist."""
    return Arguments(ends_like(size, state_size, dtype, integer), batch)


def cpu_lock(kind: str) -> Any:
    """A lock on a CPU, so that only one program runs; elsewhere a context that does nothing.

    XLA:CPU has one pool of threads for all devices. Two programs that use it (linear algebra does)
    can wait for each other's threads forever.
    """
    return _one_cpu_program if kind == "cpu" else contextlib.nullcontext()


def _by_machine_code(
    stepper: Arguments, chunk: Arguments, compilation: Native, batch: int | None
) -> Callable[[Ends], Any] | None:
    """None if there is no machine code for these lanes."""
    lanes: Chunk = chunk.values[0]
    dtype, count = lanes.thetas.dtype, int(lanes.count)
    own = lanes_of(lanes, stepper.values[0].shared)
    finish = _finish_code(stepper, own, compilation)
    if finish is None:
        return None
    finish.program.machine_code()

    def by_machine_code(ends: Ends):
        if not finish.is_compiled():
            stepper.kept.pop((_finish_code, compilation), None)  # the next batch tries it again
            return _by_xla(stepper, chunk, batch)(ends)
        ends = ends.in_arrays()
        found = finish(*own, ends.y[:count], ends.s[:count], ends.code[:count].astype(dtype))
        counts: Any = ends.code, ends.num_steps, ends.num_rejected, ends.num_implicit
        results = found, tuple(number[:count] for number in counts), ends.executed
        return _as_jax_arrays(results, lanes.thetas)

    return by_machine_code


def _finish_code(stepper: Arguments, own: Any, how: Native) -> Mapped | None:
    """The finish for lanes like `own`; None if there is no machine code. Kept with the stepper."""
    found = stepper.kept.get((_finish_code, how))
    if found is None:
        steps: Stepper = stepper.values[0]
        dtype = own[0].dtype
        state = np.empty(steps.state_size, dtype), *np.empty(2, dtype)
        lane = (*jax.tree.map(lambda array: array[0], own), *state)
        problem = Arguments(steps.system.problem if steps.shared else None)
        found = mapped(_finished_lane, stepper, lane, how, problem)
        stepper.kept[_finish_code, how] = found
    return found


def _as_jax_arrays(results: Any, like: Any) -> Any:
    """New arrays of NumPy as arrays of JAX, on the device of the array `like`.

    XLA commits its results to a device only if its arguments are committed. These results follow
    the same rule. Nothing may write to the given arrays later: JAX may use their memory.
    """
    committed = getattr(like, "committed", False)
    if like.shape[0] < _FEWEST_PUT and not committed:
        return _copied(results)
    device = hardware.device_of(like) if committed else None
    return jax.device_put(jax.tree.map(as_aligned, results), device)


def _finished(stepper: Stepper, chunk: Chunk, ends: Ends, batch: int | None):
    """Finish and record the lanes of a chunk, in batches that fit the cache or the memory."""
    problem = chunk.data.problem if stepper.shared else None
    lanes = chunk.thetas, own_data(chunk.data, stepper.shared), *ends[:3]

    def of_lane(lane):
        return _finished_lane(lane, stepper, problem)

    if batch is None:
        found = jax.vmap(of_lane)(lanes)
    else:
        found = jax.lax.map(of_lane, lanes, batch_size=batch)
    steps = ends.num_steps, ends.num_rejected, ends.num_implicit
    return found, (ends.code, *steps), ends.executed


def _finished_lane(lane: Any, stepper: Stepper, problem: Any):
    """Parameters before and after the finish, whether it is accepted, and the record of one lane.

    `lane`: initial parameters, own data, and state, time and status code at the end.
    `problem`: that of all lanes, None if they have their own.
    """
    theta, data, y, s, code = lane
    if problem is not None:
        data = data._replace(problem=problem)
    options, system = stepper.options, with_data(stepper.system, data)
    check_pair(system.network(theta), data.problem)  # once, when this is traced
    reducible: Any = Reducible.of(data.problem)
    initial = options.clock.start(system, theta)
    physical = isinstance(options.clock, PhysicalTime)
    unit = jnp.zeros_like(s) if physical else log_time_unit(system, initial)
    args = FlowArgs(system, reducible, unit)
    state = state_of(y, options.clock)
    end = record_of(s, state, args, options, initial)
    found = finish_flow(state, code, end, args, options)
    unfinished = split(found.unfinished_network)[0]
    if found.finish is None:
        return unfinished, None, None, found.record
    return unfinished, split(found.network)[0], found.finish.accepted, found.record
