"""One chunk of a batch: lanes of one program, from their starts to a `BatchedFlow`."""

import contextlib
import functools
import threading
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...networks import split
from ...networks.pair import check_pair
from ..clocks import FlowArgs, PhysicalTime, log_time_unit, state_of
from ..dataset import arrays_of, dataset_of
from ..ends import AbstractEnd
from ..finish import finish_flow
from ..record import Record, record_of
from ..statuses import OWN_RULE, STATUS_NAMES, FlowStatus, code_of
from ..stopping import AbstractStop
from ..system import Reducible
from . import hardware
from .chunk import Chunk, Ends, ends_like, jax_integer
from .ends_by_machine_code import ends_by_cuda, ends_by_machine_code
from .ends_by_xla import ends_by_xla_on_device, ends_by_xla_on_host, order_on_host
from .fourier_basis import Spectral
from .implicit_lanes import integrate_stiff
from .lane_data import LaneData, with_data
from .programs import XLA, AbstractCompilation, Arguments, Native, Refusal, compiled
from .stepper import Stepper

_XLA = XLA()
_one_cpu_program = threading.Lock()


class BatchedFlow(AbstractEnd):
    """Ends of many flows; every array has the lanes on its first axis.

    `network`, `coefficients`, `log_loss`, `log_time`, `log_norm`, `log_margin` (None for
    regression), `invariant_drift`, `status`, `reason` as in `FlowSolution`, at the end.
    `finish_accepted` is None without a finish. `num_steps` counts attempted steps,
    `num_rejected_steps` the rejected ones, `num_implicit_steps` those of the implicit method.
    `executed_steps` counts the steps that the machine made, including those of idle lanes.

    - `compilation`: which code ran, "native" or "xla".
    - `fallback_reason`: why XLA ran where machine code was requested; "" otherwise.
    - `fallback_by_size`: whether the reason is the documented limit of size of machine code.
    """

    network: Any
    unfinished_network: Any
    record: Record
    code: Int[Array, " N"]
    stop: AbstractStop
    finish_accepted: Bool[Array, " N"] | None
    num_steps: Int[Array, " N"]
    num_rejected_steps: Int[Array, " N"]
    num_implicit_steps: Int[Array, " N"]
    executed_steps: Int[Array, ""]
    compilation: str = eqx.field(static=True)
    fallback_reason: str = eqx.field(static=True, default="")
    fallback_by_size: bool = eqx.field(static=True, default=False)

    def _rules_of(self, lane: tuple[int, ...]) -> AbstractStop:
        """The stop rule, which is the same for all lanes."""
        return self.stop

    def to_xarray(self) -> Any:
        """The ends as an `xarray.Dataset`; it needs xarray.

        Dimensions: `lane`, `coefficient` and for a matrix `output`. Variables: those of
        `FlowSolution.to_xarray` at the end, `status` in words, and numbers of steps.
        """
        numbers = np.asarray(self.code)
        statuses = np.asarray([STATUS_NAMES[min(int(n), int(OWN_RULE))] for n in numbers])
        more = {
            "status": statuses,
            "num_steps": self.num_steps,
            "num_rejected_steps": self.num_rejected_steps,
            "num_implicit_steps": self.num_implicit_steps,
            "finish_accepted": self.finish_accepted,
        }
        return dataset_of(
            arrays_of(self.record) | more,
            self.record.observed,
            ("lane",),
            coordinates={"lane": np.arange(len(statuses))},
            attributes={"network": type(self.network).__name__, "compilation": self.compilation},
        )

    def __str__(self) -> str:
        """A summary: how many flows, why they ended, how many steps they took."""
        steps = np.asarray(self.num_steps)
        return (
            f"Batch of {steps.size} gradient flows of {type(self.network).__name__}\n"
            f"  stopped by       {self.counted()}\n"
            f"  steps            {steps.min()} to {steps.max()}, median {int(np.median(steps))}\n"
            f"  compilation      {self.compilation}"
            + (f" ({self.fallback_reason})" if self.fallback_reason else "")
        )

    @property
    def waste(self) -> Float[Array, ""]:
        """Executed steps over needed steps, summed over the lanes: 1 if no lane was ever idle."""
        return self.executed_steps / jnp.sum(self.num_steps)


def integrate_chunk(
    stepper: Stepper,
    compilation: AbstractCompilation,
    chunk: Chunk,
    spectral: Spectral | None,
    batch: int | None,
) -> BatchedFlow:
    """The flows of one chunk, on the chunk's device, in arrays of `count` lanes.

    `batch`: lanes that are finished and recorded at once; None: all.
    """
    count, size = int(chunk.count), chunk.thetas.shape[0]
    kind = hardware.kind_of(hardware.device_of(chunk.thetas))
    stepper_used, chunk_used = stepper, chunk  # below: in the Fourier basis, if there is one
    own = given = Arguments(stepper.of_any_width()), Arguments(chunk)
    if spectral is not None:
        data = LaneData(spectral.problem(chunk.data.problem))
        one = data.lane(0, stepper.shared).problem
        arrays, rest = eqx.partition(spectral.system(one), eqx.is_array)
        system: Any = eqx.combine(jax.device_put(arrays, chunk.thetas.device), rest)
        stepper_used = stepper._replace(system=system)
        chunk_used = chunk._replace(thetas=spectral.into(chunk.thetas), data=data)
        given = Arguments(stepper_used.of_any_width()), Arguments(chunk_used)
    like = _arguments_like(size, stepper.state_size, chunk.thetas.dtype, jax_integer(), batch)
    # All programs are traced one after the other and compiled at the same time.
    finish_and_record = compiled(_finish_and_record, _XLA, *own, like)
    ends, refusal, ran = _integrated(stepper_used, chunk_used, given, compilation, kind)
    ends = _with_stiff_lanes(stepper_used, compilation, chunk_used, ends, kind)
    if spectral is not None:
        ends = _in_own_basis(ends, spectral, chunk.thetas.shape[1])
    with _cpu_lock(kind):
        ends = Arguments(ends.in_arrays(), batch)
        *found, executed = jax.block_until_ready(finish_and_record(*own, ends))
    if count < size:
        found = jax.tree.map(lambda leaf: leaf[:count], found)
    (unfinished, finished, accepted, record), (code, num_steps, num_rejected, implicit) = found
    rest = stepper.system.rest
    before = eqx.combine(unfinished, rest)
    return BatchedFlow(
        network=before if finished is None else eqx.combine(finished, rest),
        unfinished_network=before,
        record=record,
        code=code,
        stop=stepper.options.stop,
        finish_accepted=accepted,
        num_steps=num_steps,
        num_rejected_steps=num_rejected,
        num_implicit_steps=implicit,
        executed_steps=executed,
        compilation=ran,
        fallback_reason=refusal.reason,
        fallback_by_size=refusal.by_size,
    )


@functools.lru_cache(64)  # made of many small objects, once for each size
def _arguments_like(size: int, state_size: int, dtype, integer, batch: int | None) -> Arguments:
    """Shapes of the last arguments of `_finish_and_record`, which is compiled before they exist."""
    return Arguments(ends_like(size, state_size, dtype, integer), batch)


def _cpu_lock(kind: str) -> Any:
    """A lock on a CPU, so that only one program runs; elsewhere a context that does nothing.

    XLA:CPU has one pool of threads for all devices. Two programs that use it (linear algebra does)
    can wait for each other's threads forever.
    """
    return _one_cpu_program if kind == "cpu" else contextlib.nullcontext()


def _integrated(
    stepper: Stepper,
    chunk: Chunk,
    given: tuple[Arguments, Arguments],
    compilation: AbstractCompilation,
    kind: str,
) -> tuple[Ends, Refusal, str]:
    """The ends of a chunk's lanes, why there is no machine code, and what ran.

    `given`: stepper and chunk as arguments of programs.
    """
    count, refusal = int(chunk.count), Refusal("")
    on_cpu = kind == "cpu"
    order: Any = order_on_host(chunk.thetas, count, stepper.width) if on_cpu else None
    if isinstance(compilation, Native):
        if kind == "other":
            found = Refusal("it exists for CPUs and for CUDA")
        elif on_cpu:
            found = ends_by_machine_code(*given, compilation, order[:count])
        else:
            found = ends_by_cuda(*given, compilation)
        if not isinstance(found, Refusal):
            return found, refusal, "native"
        refusal = found
    if on_cpu:
        return ends_by_xla_on_host(stepper, chunk, order), refusal, "xla"
    return ends_by_xla_on_device(stepper, chunk), refusal, "xla"


def _in_own_basis(ends: Ends, spectral: Spectral, parameters: int) -> Ends:
    """The ends with the parameters of the network, from the ends in the Fourier basis."""
    y = ends.y
    back = spectral.back(y[:, :parameters])
    if isinstance(y, np.ndarray):
        y[:, :parameters] = back
        return ends
    return ends._replace(y=jnp.concatenate([back, y[:, parameters:]], axis=1))


def _with_stiff_lanes(
    stepper: Stepper, compilation: AbstractCompilation, chunk: Chunk, ends: Ends, kind: str
) -> Ends:
    """The ends, after lanes with a used-up explicit budget were continued by implicit steps."""
    if stepper.stiff_max_steps is None:
        return ends
    spent = np.asarray(ends.code)[: int(chunk.count)] == code_of(FlowStatus.max_steps)
    if not spent.any():
        return ends
    if kind != "cpu":
        ends = Ends(*(np.array(array) for array in ends[:5]), executed=ends.executed)
    lanes = np.flatnonzero(spent & np.isfinite(ends.y[: spent.size]).all(axis=1))
    if not lanes.size:
        return ends
    data = chunk.data.ordered(lanes, stepper.shared)
    start = chunk.thetas[lanes], data, ends.y[lanes], ends.s[lanes]
    with _cpu_lock(kind):
        found, executed = integrate_stiff(stepper, compilation, *start, stepper.stiff_max_steps)
    ends.y[lanes], ends.s[lanes], ends.code[lanes] = found.y, found.s, found.code
    ends.num_steps[lanes] += found.num_steps
    ends.num_rejected[lanes] += found.num_rejected
    implicit = np.zeros(ends.code.shape, np.int32)
    implicit[lanes] = found.num_steps
    return ends._replace(executed=ends.executed + executed, num_implicit=implicit)


def _finish_and_record(stepper: Stepper, chunk: Chunk, ends: Ends, batch: int | None):
    """Finish and record the lanes of a chunk, in batches that fit the cache or the memory."""
    system, options, shared = stepper.system, stepper.options, stepper.shared

    def of_lane(lane):
        (y, s, code), theta, data = lane
        problem = chunk.data.problem if shared else data.problem
        system_of_lane = with_data(system, data._replace(problem=problem))
        check_pair(system_of_lane.network(theta), problem)  # once, when this is traced
        reducible: Any = Reducible.of(problem)
        initial = options.clock.start(system_of_lane, theta)
        physical = isinstance(options.clock, PhysicalTime)
        unit = jnp.zeros_like(s) if physical else log_time_unit(system_of_lane, initial)
        args = FlowArgs(system_of_lane, reducible, unit)
        state = state_of(y, options.clock)
        end = record_of(s, state, args, options, initial)
        found = finish_flow(state, code, end, args, options)
        unfinished = split(found.unfinished_network)[0]
        if found.finish is None:
            return unfinished, None, None, found.record
        return unfinished, split(found.network)[0], found.finish.accepted, found.record

    own = chunk.data._replace(problem=None) if shared else chunk.data
    lanes = ends[:3], chunk.thetas, own
    if batch is None:
        found = jax.vmap(of_lane)(lanes)
    else:
        found = jax.lax.map(of_lane, lanes, batch_size=batch)
    steps = ends.num_steps, ends.num_rejected, ends.num_implicit
    return found, (ends.code, *steps), ends.executed
