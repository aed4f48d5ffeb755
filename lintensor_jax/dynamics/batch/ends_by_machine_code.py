"""The ends of a chunk's lanes by machine code for CPUs or CUDA; or a refusal if there is none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import hardware
from .chunk import Chunk, Ends
from .ends_by_xla import ends_by_xla_on_device, order_on_device
from .native.table import counts_in, counts_of, step_row, table_of
from .programs import XLA, Arguments, Native, Program, Refusal, compiled, traced
from .stepper import Stepper

_XLA = XLA()
# The number of lanes that XLA integrates as well at the first use of machine code for a GPU.
_CHECKED = 256


def _table(stepper: Stepper, chunk: Chunk) -> tuple[Array, list[Array]]:
    starts, kinds = stepper.starts(chunk.thetas, chunk.data), stepper.leaves_of_lanes
    return table_of(starts, kinds), kinds.shared(starts.leaves)


def _row_program(stepper: Arguments, chunk: Arguments, compilation: Native):
    """The program that makes the table, and the kernel or a refusal."""
    fill = traced(_table, _XLA, stepper, chunk)
    kernel = fill.following.get(compilation)
    if kernel is None:
        kernel = _kernel(stepper, compilation, fill)
        if not isinstance(kernel, Refusal):
            fill.following[compilation] = kernel
    return fill, kernel


def _kernel(stepper: Arguments, compilation: Native, fill: Program) -> Any:
    """The function that integrates the lanes of the table of `fill`, or a refusal."""
    rows, leaves = fill.results
    row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype, sharding=rows.sharding)
    return kernel_of(step_row, compilation, Arguments(row), stepper, Arguments(leaves), beside=fill)


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
    try:
        return kernel.machine_code().result()
    except Exception as error:  # raised by LLVM; XLA can compile the program in any case
        return Refusal(f"LLVM failed with {type(error).__name__}: {error}")


def _shared_numbers(stepper: Arguments, chunk: Arguments, leaves, dtype) -> np.ndarray | Refusal:
    """All numbers of the shared arrays, as floats; a refusal if an integer would be rounded."""
    arrays = [np.asarray(leaf) for leaf in (*stepper.arrays, *leaves)]
    numbers = [array.astype(dtype).reshape(-1) for array in arrays]
    of_lanes = jax.tree.leaves(chunk.values[0].data)
    of_lanes = [np.asarray(leaf) for leaf in of_lanes if getattr(leaf, "dtype", dtype).kind in "iu"]
    in_rows = [array.astype(dtype).reshape(-1) for array in of_lanes]
    if not all(map(is_exact, [*arrays, *of_lanes], [*numbers, *in_rows])):
        return Refusal(f"an integer of the problem has more digits than {dtype} has")
    return np.concatenate(numbers)


def is_exact(array: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether the floats `numbers` equal the integers of `array`; True for other arrays."""
    return array.dtype.kind not in "iu" or np.array_equal(
        array.reshape(-1), numbers.astype(array.dtype)
    )


def ends_by_machine_code(
    stepper: Arguments, chunk: Arguments, compilation: Native, order
) -> Ends | Refusal:
    """The ends of a chunk's lanes by the cores of a CPU. `order`: the order of the real lanes."""
    fill, integrate_rows = _row_program(stepper, chunk, compilation)
    if isinstance(integrate_rows, Refusal):
        return integrate_rows
    filled, leaves = fill(stepper, chunk)
    # The machine code writes to the memory of XLA's result, which nothing else refers to.
    table = np.ascontiguousarray(filled)
    shared = _shared_numbers(stepper, chunk, leaves, table.dtype)
    if isinstance(shared, Refusal):
        return shared
    executed = int(integrate_rows(table, order, shared))
    state = table[:, 4 : 4 + stepper.values[0].state_size].copy()
    code, s = table[:, 0].astype(np.int32), table[:, 1].copy()
    num_steps, num_rejected = counts_of(table)
    return Ends(state, s, code, num_steps, num_rejected, executed)


def _ends_of_table(stepper: Stepper, count, table: Array):
    code, s, num_steps, num_rejected = table[:, :4].T
    counts = counts_in(num_steps), counts_in(num_rejected)
    unfinished = jnp.sum((code < 0) & (jnp.arange(code.size) < count))
    return (table[:, 4 : 4 + stepper.state_size], s, code.astype(jnp.int32), *counts), unfinished


def ends_by_cuda(stepper: Arguments, chunk: Arguments, compilation: Native) -> Ends | Refusal:
    """The ends of a chunk's lanes by the threads of a GPU.

    A refusal if the kernel did not agree with XLA, or left a lane unfinished.
    """
    fill, kernel = _row_program(stepper, chunk, compilation)
    if isinstance(kernel, Refusal):
        return kernel
    if kernel.refusal:
        return Refusal(kernel.refusal)
    table, leaves = fill(stepper, chunk)
    shared = _shared_numbers(stepper, chunk, leaves, table.dtype)
    if isinstance(shared, Refusal):
        return shared
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
