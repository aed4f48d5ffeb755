"""One chunk of a batch: lanes of one program, from their starts to a `BatchedFlow`."""

import functools
import threading
from typing import Any, NamedTuple

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
from .fourier_basis import Spectral
from .implicit_lanes import integrate_stiff
from .lane_data import LaneData, piece_of, with_data
from .native.table import counts_of, step_row, table_of
from .programs import XLA, AbstractCompilation, Arguments, Native, Refusal, compiled
from .stepper import InFlight, Queue, Stepper

# One lane in 8, those with the smallest starts, goes first: see `_order`.
_FIRST = 8
_XLA = XLA()
_one_xla_program = threading.Lock()


class BatchedFlow(AbstractEnd):
    """Ends of many flows; every array has the lanes on its first axis.

    `network`, `coefficients`, `log_loss`, `log_time`, `log_norm`, `log_margin` (None for
    regression), `invariant_drift`, `status`, `reason` as in `FlowSolution`, at the end.
    `finish_accepted` is None without a finish. `num_steps` counts attempted steps,
    `num_rejected_steps` the rejected ones, `num_implicit_steps` those of the implicit method.
    `executed_steps` counts the steps that the machine made,
    idle lanes included.

    - `compilation`: which code ran, "native" or "xla".
    - `fallback_reason`: why XLA ran where machine code was requested; "" otherwise.
    - `fallback_by_size`: whether the reason is the documented limit of machine code.
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
        """One stop rule for all lanes."""
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
        """In words: how many flows, why they ended, how many steps they took."""
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
        """Executed over needed steps: 1 if no lane ever waited."""
        return self.executed_steps / jnp.sum(self.num_steps)


class Chunk(NamedTuple):
    """Lanes of one program. Only the first `count` are real; the others fill the arrays."""

    count: Int[np.ndarray, ""]
    thetas: Float[Array, "N p"]
    data: LaneData

    @staticmethod
    def cut(at: int, size: int, count: int, thetas: Array, data: LaneData, shared: bool) -> "Chunk":
        """Lanes at, ..., at + size - 1 of `count`; beyond `count` the last lane is repeated."""
        own = data.cut(at, size, shared)
        return Chunk(np.asarray(min(size, count - at), np.int32), piece_of(thetas, at, size), own)


class _Ends(NamedTuple):
    """The ends of a chunk's lanes, in their order, and the executed steps of all lanes."""

    y: Float[np.ndarray, "N q"]
    s: Float[np.ndarray, " N"]
    code: Int[np.ndarray, " N"]
    num_steps: Int[np.ndarray, " N"]
    num_rejected: Int[np.ndarray, " N"]
    executed: int = 0


def integrate_chunk(
    stepper: Stepper, compilation: AbstractCompilation, chunk: Chunk, spectral: Spectral | None
) -> BatchedFlow:
    """The flows of one chunk, on the chunk's device, in arrays of `count` lanes."""
    count, size = int(chunk.count), chunk.thetas.shape[0]
    stepper_used, chunk_used = stepper, chunk  # in the Fourier basis, if there is one
    own = given = Arguments(stepper.of_any_width()), Arguments(chunk)
    if spectral is not None:
        data = LaneData(spectral.problem(chunk.data.problem))
        one = data.lane(0, stepper.shared).problem
        arrays, rest = eqx.partition(spectral.system(one), eqx.is_array)
        system: Any = eqx.combine(jax.device_put(arrays, chunk.thetas.device), rest)
        stepper_used = stepper._replace(system=system)
        chunk_used = chunk._replace(thetas=spectral.into(chunk.thetas), data=data)
        given = Arguments(stepper_used.of_any_width()), Arguments(chunk_used)
    like = _ends_like(size, stepper.state_size, chunk.thetas.dtype)
    # All programs are traced one after the other and compiled side by side.
    finish_and_record = compiled(_finish_and_record, _XLA, *own, Arguments(like))
    order = _order(chunk.thetas, count, stepper.width)
    ran, refusal = "native", Refusal("")
    native = isinstance(compilation, Native)
    ends = _ends_by_machine_code(*given, compilation, order[:count]) if native else refusal
    if isinstance(ends, Refusal):
        ran, refusal, ends = "xla", ends, _ends_by_xla(stepper_used, chunk_used, order)
    ends, implicit = _with_stiff_lanes(stepper_used, chunk_used, ends)
    if spectral is not None:
        parameters = chunk.thetas.shape[1]
        ends.y[:, :parameters] = spectral.back(ends.y[:, :parameters])
    # XLA:CPU has one pool of threads for all devices: two programs that hand work to it (as linear
    # algebra does) can wait for each other's threads without end.
    with _one_xla_program:
        found = jax.block_until_ready(finish_and_record(*own, Arguments(ends._replace(executed=0))))
    if count < size:
        found = jax.tree.map(lambda leaf: leaf[:count], found)
    (unfinished, finished, accepted, record), (code, num_steps, num_rejected) = found
    integer = jax.dtypes.canonicalize_dtype(int)
    executed = np.asarray(min(ends.executed, np.iinfo(integer).max), integer)
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
        num_implicit_steps=jnp.asarray(implicit[:count]),
        executed_steps=jnp.asarray(executed),
        compilation=ran,
        fallback_reason=refusal.reason,
        fallback_by_size=refusal.by_size,
    )


@functools.lru_cache
def _ends_like(size: int, state_size: int, dtype: Any) -> _Ends:
    """Shapes and types of the ends of `size` lanes."""
    shapes = (size, state_size), (size,), (size,), (size,), (size,)
    dtypes: Any = dtype, dtype, np.int32, np.int32, np.int32
    return _Ends(*map(jax.ShapeDtypeStruct, shapes, dtypes))  # pyright: ignore


def _with_stiff_lanes(stepper: Stepper, chunk: Chunk, ends: _Ends) -> tuple[_Ends, np.ndarray]:
    """The ends where lanes over their explicit budget went on, and their implicit steps."""
    implicit = np.zeros(ends.code.shape, np.int32)
    spent = ends.code[: int(chunk.count)] == code_of(FlowStatus.max_steps)
    lanes = np.flatnonzero(spent & np.isfinite(ends.y[: spent.size]).all(axis=1))
    if stepper.stiff_max_steps is None or not lanes.size:
        return ends, implicit
    data = chunk.data.ordered(lanes, stepper.shared)
    start = chunk.thetas[lanes], data, ends.y[lanes], ends.s[lanes]
    with _one_xla_program:
        found, executed = integrate_stiff(stepper, *start, stepper.stiff_max_steps)
    ends.y[lanes], ends.s[lanes], ends.code[lanes] = found.y, found.s, found.code
    ends.num_steps[lanes] += found.num_steps
    ends.num_rejected[lanes] += found.num_rejected
    implicit[lanes] = found.num_steps
    return ends._replace(executed=ends.executed + executed), implicit


def _queue(stepper: Stepper, chunk: Chunk, order) -> tuple[InFlight, Queue]:
    data = chunk.data.ordered(order, stepper.shared)
    queue = stepper.queue(chunk.count, chunk.thetas[order], data)
    return stepper.start(queue), queue


def _order(thetas: Float[Array, "N p"], count: int, width: int) -> Int[np.ndarray, " N"]:
    """The order of the queue: if lanes have to wait, those with the smallest starts go first.

    Small starts take the most steps (rank correlation 0.65 to 0.85 in the uneven sweep of
    `benchmarks/batched.py`). If they started last, the other lanes of the width would be idle.
    """
    order = np.arange(thetas.shape[0], dtype=np.int32)
    if count > width:
        known = np.asarray(thetas)[:count]
        order[:count] = np.argpartition(np.einsum("ij,ij->i", known, known), count // _FIRST)
    return order


def _advance(stepper: Stepper, in_flight: InFlight, queue: Queue) -> tuple[InFlight, Array]:
    return stepper.advance(in_flight, queue)


def _ends_by_xla(stepper: Stepper, chunk: Chunk, order) -> _Ends:
    """The ends of a chunk's lanes, by XLA."""
    count = int(chunk.count)
    program_arguments, lanes = Arguments(stepper), Arguments(chunk, order)
    start = compiled(_queue, _XLA, program_arguments, lanes)
    advance = compiled(_advance, _XLA, program_arguments, Arguments(*start.results))
    in_flight, queue = start(program_arguments, lanes)
    next_part = advance(program_arguments, Arguments(in_flight, queue))
    likes = _ends_like(order.size, stepper.state_size, chunk.thetas.dtype)
    ends: Any = _Ends(*(np.zeros(like.shape, like.dtype) for like in likes[:5]))  # pyright: ignore
    while True:
        # The device computes the next part while the host stores this one.
        (in_flight, log), next_part = (
            next_part,
            advance(program_arguments, Arguments(next_part[0], queue)),
        )
        _write_ends(log, count, order, ends)
        if not np.any(np.asarray(in_flight.job) < count):
            return ends._replace(executed=int(in_flight.rounds) * stepper.width)


def _ends_by_machine_code(
    stepper: Arguments, chunk: Arguments, compilation: Native, order
) -> _Ends | Refusal:
    """The ends of a chunk's lanes by machine code, or the reason why there is none."""
    fill = compiled(_table, _XLA, stepper, chunk)
    rows, leaves = fill.results
    row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    given = Arguments(row), stepper, Arguments(leaves)
    kernel = compiled(step_row, compilation, *given).machine_code
    if isinstance(kernel, Refusal):
        return kernel
    try:
        integrate_rows = kernel.result()
    except Exception as error:  # raised by LLVM; XLA compiles every program of JAX
        return Refusal(f"LLVM failed with {type(error).__name__}: {error}")
    filled, leaves = fill(stepper, chunk)
    table = np.array(filled)
    arrays = [np.asarray(leaf) for leaf in (*stepper.arrays, *leaves)]
    numbers = [array.astype(table.dtype).reshape(-1) for array in arrays]
    of_lanes = [np.asarray(leaf) for leaf in jax.tree.leaves(chunk.values[0].data)]
    of_lanes = [array for array in of_lanes if array.dtype.kind in "iu"]
    in_rows = [array.astype(table.dtype).reshape(-1) for array in of_lanes]
    if not all(map(_is_exact, [*arrays, *of_lanes], [*numbers, *in_rows])):
        return Refusal(f"an integer of the problem has more digits than {table.dtype} has")
    shared = np.concatenate(numbers)
    executed = int(integrate_rows(table, order, shared))
    code, s = table[:, :2].T
    state = table[:, 4 : 4 + stepper.values[0].state_size]
    num_steps, num_rejected = counts_of(table)
    return _Ends(state, s, code.astype(np.int32), num_steps, num_rejected, executed)


def _is_exact(array: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether `numbers`, floats, equal the integers of `array`; True for other arrays."""
    return array.dtype.kind not in "iu" or np.array_equal(
        array.reshape(-1), numbers.astype(array.dtype)
    )


def _table(stepper: Stepper, chunk: Chunk) -> tuple[Array, list[Array]]:
    starts, kinds = stepper.starts(chunk.thetas, chunk.data), stepper.leaves_of_lanes
    return table_of(starts, kinds), kinds.shared(starts.leaves)


def _write_ends(log: Array, count: int, order: Int[np.ndarray, " N"], ends: _Ends) -> None:
    """Stores the ends of the lanes in `log` that were done."""
    entries = np.asarray(log)
    done = entries[:, -1] < count
    lanes = np.moveaxis(entries, 1, -1)[done]
    place = order[lanes[:, -1].astype(int)]
    ends.y[place] = lanes[:, :-5]
    for i, store in enumerate(ends[1:5]):
        store[place] = lanes[:, i - 5]


def _finish_and_record(stepper: Stepper, chunk: Chunk, ends: _Ends):
    """Finish and observables of the lanes of a chunk, in batches that fit the cache."""
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
    found = jax.lax.map(of_lane, (ends[:3], chunk.thetas, own), batch_size=256)
    return found, (ends.code, ends.num_steps, ends.num_rejected)
