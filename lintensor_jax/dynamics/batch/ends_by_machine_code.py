"""The ends of a chunk's lanes by machine code for CPUs or CUDA; or a refusal if there is none."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..system import Reducible
from . import hardware
from .chunk import Chunk, Ends
from .ends_by_xla import ends_by_xla_on_device, order_on_device, order_on_host
from .lane_data import LaneData
from .native.table import counts_in, counts_of, start_and_step_row, started_row, step_row, table_of
from .over_lanes import Mapped, is_exact, lanes_of, mapped
from .programs import XLA, Arguments, Native, Program, Refusal, compiled, traced
from .stepper import Stepper

_XLA = XLA()
# The number of lanes that XLA integrates as well at the first use of machine code for a GPU.
_CHECKED = 256
# So many lanes or fewer need no order: a core or two run all of them at the same time.
_WITHOUT_ORDER = 32


class _Rows(NamedTuple):
    """The lanes of a chunk as rows of a table, and what integrates them.

    - `table`: the rows before they start. The kernel writes to it, also if it is a result of XLA's:
      nothing else refers to its memory.
    - `kernel`: the function that integrates rows.
    - `shared`: the numbers of the arrays that all rows share.
    """

    table: Any
    kernel: Any
    shared: np.ndarray


def _table(stepper: Stepper, chunk: Chunk) -> tuple[Array, list[Array]]:
    """The rows of all lanes before they start, and the arrays that all rows share."""
    starts, kinds = stepper.starts(chunk.thetas, chunk.data), stepper.leaves_of_lanes
    return table_of(starts, kinds), kinds.shared(starts.leaves)


def _rows_by_xla(stepper: Arguments, chunk: Arguments, how: Native) -> _Rows | Refusal:
    """The rows of all lanes by XLA, before they start; or why they have no kernel."""
    program = traced(_table, _XLA, stepper, chunk)
    rows, leaves = program.results
    row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype, sharding=rows.sharding)
    kernel = _kernel(start_and_step_row, how, program, row, stepper, leaves)
    if isinstance(kernel, Refusal):
        return kernel
    if refusal := getattr(kernel, "refusal", ""):  # a GPU's, which did not agree with XLA
        return Refusal(refusal)
    table, leaves = program(stepper, chunk)
    of_lanes = jax.tree.leaves(chunk.values[0].data)
    if not all(is_exact(array, table.dtype) for array in of_lanes):
        return _rounded(table.dtype)
    shared = _shared_numbers([*stepper.arrays, *leaves], table.dtype)
    return shared if isinstance(shared, Refusal) else _Rows(table, kernel, shared)


def _started_row(lane: tuple[Array, LaneData], stepper: Stepper, shared: Any) -> Array:
    """The started row of one lane; `shared`: the problem and its `Reducible`, or Nones."""
    theta, data = jax.tree.map(lambda array: array[None], lane)
    if stepper.shared:
        data = data._replace(problem=shared[0])
    row = table_of(stepper.starts(theta, data), stepper.leaves_of_lanes)[0]
    return started_row(row, stepper, jax.tree.leaves(shared))


def _shared_by_rows(problem: Any) -> tuple[Any, Any]:
    """The problem and its `Reducible`, if lanes share the problem; otherwise Nones."""
    return problem, None if problem is None else Reducible.of(problem)


class _RowCode(NamedTuple):
    """Machine code for rows: what makes them, what integrates them, and the shared numbers."""

    starts: Mapped
    kernel: Any
    shared: np.ndarray


def _row_code(stepper: Arguments, own: Any, how: Native) -> _RowCode | Refusal | None:
    """The code for lanes like `own`; None if there is no machine code that makes their rows.

    It is kept with the stepper.
    """
    found = stepper.kept.get((_row_code, how))
    if found is None:
        found = _made_row_code(stepper, jax.tree.map(lambda array: array[0], own), how)
        if isinstance(found, _RowCode):  # what failed is tried again
            stepper.kept[_row_code, how] = found
    return found


def _made_row_code(stepper: Arguments, lane: Any, how: Native) -> _RowCode | Refusal | None:
    steps: Stepper = stepper.values[0]
    problem = Arguments(steps.system.problem if steps.shared else None)
    shared = compiled(_shared_by_rows, _XLA, problem)
    starts = mapped(_started_row, stepper, lane, how, Arguments(shared.results))
    if starts is None:
        return None
    program, leaves = starts.program, jax.tree.leaves(shared.results)
    kernel = _kernel(step_row, how, program, program.results, stepper, leaves)
    if isinstance(kernel, Refusal):
        return kernel
    if not starts.is_compiled():
        return None
    found = Arguments(shared(problem))
    numbers = _shared_numbers([*stepper.arrays, *found.arrays], program.results.dtype)
    if isinstance(numbers, Refusal):
        return numbers
    return _RowCode(starts._replace(common=(stepper, found)), kernel, numbers)


def _kernel(step: Callable, how: Native, rows: Program, row, stepper: Arguments, leaves) -> Any:
    """The kernel for the rows that the program `rows` makes, or a refusal."""
    kernel = rows.following.get(how)
    if kernel is None:
        given = Arguments(row), stepper, Arguments(leaves)
        kernel = kernel_of(step, how, *given, beside=rows)
        if not isinstance(kernel, Refusal):
            rows.following[how] = kernel
    return kernel


def kernel_of(
    function: Any, compilation: Native, *given: Arguments, beside: Program | None = None
) -> Any:
    """The compiled `function` of rows, which are the first argument; or a refusal.

    If there is a kernel, the program `beside` is compiled at the same time.
    """
    kernel = compiled(function, compilation, *given)
    if kernel.refusal is not None:
        return kernel.refusal
    if beside is not None:
        beside.machine_code()
    return kernel.failure or kernel.machine_code().result()


def _shared_numbers(arrays: list[Any], dtype: Any) -> np.ndarray | Refusal:
    """All numbers of the arrays, as floats; a refusal if an integer would be rounded."""
    known = [np.asarray(array) for array in arrays]
    if not all(is_exact(array, dtype) for array in known):
        return _rounded(dtype)
    return np.concatenate([array.astype(dtype).reshape(-1) for array in known])


def _rounded(dtype: Any) -> Refusal:
    return Refusal(f"an integer of the problem has more digits than {dtype} has")


def ends_by_machine_code(
    stepper: Arguments, chunk: Arguments, compilation: Native
) -> Ends | Refusal:
    """The ends of the real lanes of a chunk, by the cores of a CPU."""
    lanes: Chunk = chunk.values[0]
    own = lanes_of(lanes, stepper.values[0].shared)
    code = _row_code(stepper, own, compilation)
    if code is None:
        rows = _rows_by_xla(stepper, chunk, compilation)
    else:
        is_refused = isinstance(code, Refusal)
        rows = code if is_refused else _Rows(code.starts(*own), code.kernel, code.shared)
    if isinstance(rows, Refusal):
        return rows
    table, count = np.ascontiguousarray(rows.table), int(lanes.count)
    order = order_on_host(lanes.thetas, count, _WITHOUT_ORDER)[:count]
    executed = int(rows.kernel(table, order, rows.shared))
    table = table[:count]
    numbers = np.array(table[:, :4].T, order="C")
    num_steps, num_rejected = counts_of(numbers[2:])
    # Writable, for lanes that go on by implicit steps; states in a table of XLA are copied.
    state = np.require(table[:, 4 : 4 + stepper.values[0].state_size], requirements="W")
    return Ends(state, numbers[1], numbers[0].astype(np.int32), num_steps, num_rejected, executed)


def _ends_of_table(stepper: Stepper, count, table: Array):
    code, s, num_steps, num_rejected = table[:, :4].T
    counts = counts_in(num_steps), counts_in(num_rejected)
    unfinished = jnp.sum((code < 0) & (jnp.arange(code.size) < count))
    return (table[:, 4 : 4 + stepper.state_size], s, code.astype(jnp.int32), *counts), unfinished


def ends_by_cuda(stepper: Arguments, chunk: Arguments, compilation: Native) -> Ends | Refusal:
    """The ends of a chunk's lanes by the threads of a GPU.

    A refusal if the kernel did not agree with XLA, or left a lane unfinished.
    """
    rows = _rows_by_xla(stepper, chunk, compilation)
    if isinstance(rows, Refusal):
        return rows
    table, kernel, shared = rows
    order = compiled(order_on_device, _XLA, chunk)(chunk)
    count = chunk.values[0].count
    try:
        numbers = jax.device_put(shared, hardware.device_of(table))
        table, executed = kernel.launch(table, order, int(count), numbers)
    except Exception as error:  # raised by the driver or by cuda.core
        return Refusal(kernel.refuse(f"a launch failed with {type(error).__name__}: {error}"))
    given = stepper, Arguments(count, table)
    ends, unfinished = compiled(_ends_of_table, _XLA, *given)(*given)
    if int(unfinished):
        return Refusal(kernel.refuse("lanes were left unfinished"))
    ends = Ends(*ends, executed=executed)
    refusal = kernel.checked(lambda: _compared(stepper.values[0], chunk.values[0], ends))
    return Refusal(refusal) if refusal else ends


def _compared(stepper: Stepper, chunk: Chunk, ends: Ends) -> str:
    """How the ends of some lanes differ from XLA's; "" if they agree."""
    from .cuda.agreement import disagreement

    count = int(chunk.count)
    places = np.unique(np.linspace(0, count - 1, min(count, _CHECKED)).astype(np.int32))
    size = 8 * -(-places.size // 8)
    padded = np.concatenate([places, np.repeat(places[-1:], size - places.size)])
    data = chunk.data.ordered(padded, stepper.shared)
    sample = Chunk(np.asarray(places.size, np.int32), chunk.thetas[padded], data)
    checks = stepper._replace(width=size, enough=1)
    expected = ends_by_xla_on_device(checks, sample)
    found: Any = [np.asarray(array[places]) for array in ends[:5]]
    wanted: Any = [np.asarray(array)[: places.size] for array in expected[:5]]
    return disagreement(found, wanted, float(stepper.options.rtol))
