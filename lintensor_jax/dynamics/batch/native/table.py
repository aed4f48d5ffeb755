"""A queue of lanes as a table, and one step of one of its rows.

A row begins with the numbers that a step changes: status code, time, steps, rejected steps, the
state (q), the slope (q), step size and the controller's memory. They are followed by its unit of
time, the marked sizes of its initial parameters (p), its tolerances (q, if lanes have different
ones), and the arrays of its problem and its network that are not shared. All are floats. The
numbers of steps are stored as the bits of integers in single precision, which counts only to 2^24.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float, Int

from ..lane_data import LeavesOfLanes
from ..step import RUNNING, Functions, Lanes, attempt_step
from ..stepper import Starts, Stepper
from ..vectorization.one_lane_to_many import Lanewise


def table_of(starts: Starts, kinds: LeavesOfLanes) -> Float[Array, "N M"]:
    """The rows of lanes before they start, without arrays that are shared.

    Their status code is that of a running lane, so that a row which is never taken is detected.
    """
    y, unit, origin, atol, leaves = starts
    number = jnp.zeros_like(unit)
    counts = [number, number, number]
    columns = [
        jnp.full_like(unit, RUNNING),
        *counts,
        y,
        jnp.zeros_like(y),
        number,
        number,
        unit,
        origin,
        *([] if atol is None else [atol]),
    ]
    columns += kinds.own(leaves)
    return jnp.concatenate([c.astype(y.dtype).reshape(-1, unit.size) for c in columns]).T


def started_row(
    row: Float[Array, " M"], stepper: Stepper, leaves: list[Array]
) -> Float[Array, " M"]:
    """A row before its first step, from a row of `table_of`.

    `leaves`: the arrays that all rows share.
    """
    fresh = _fresh(_read(row, stepper, leaves), stepper, row.dtype)
    return jnp.concatenate([fresh, row[fresh.size :]])


def step_row(
    row: Float[Array, " M"], stepper: Stepper, leaves: list[Array]
) -> tuple[Float[Array, " K"]]:
    """The first numbers of a started row after an attempted step; `leaves`: see `started_row`."""
    return (_stepped(_read(row, stepper, leaves), stepper, row.dtype),)


def start_and_step_row(
    row: Float[Array, " M"], stepper: Stepper, leaves: list[Array]
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """The first numbers of a row of `table_of` before its first step, and after a step."""
    read = _read(row, stepper, leaves)
    return _fresh(read, stepper, row.dtype), _stepped(read, stepper, row.dtype)


def _fresh(read: "_Row", stepper: Stepper, dtype: Any) -> Float[Array, " K"]:
    lanes, functions, data, atol = read
    return _written(stepper.fresh(functions, lanes.y, lanes.s, data, atol), dtype)


def _stepped(read: "_Row", stepper: Stepper, dtype: Any) -> Float[Array, " K"]:
    lanes, functions, data, atol = read
    lanes = attempt_step(functions, stepper.solver, stepper.options, data, atol, lanes)
    return _written(lanes, dtype)


def counts_of(columns: Float[np.ndarray, "k N"]) -> list[Int[np.ndarray, " N"]]:
    """The numbers in columns of counts of a table. The columns must be contiguous."""
    single = columns.dtype == np.float32
    return list(columns.view(np.int32) if single else columns.astype(np.int32))


def counts_in(number: Float[Array, "..."]) -> Int[Array, "..."]:
    """The numbers of steps in a column of a table, or in one of its entries."""
    if number.dtype == jnp.float32:
        return jax.lax.bitcast_convert_type(number, jnp.int32)
    return number.astype(jnp.int32)


def stored_counts(count: Int[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """The inverse of `counts_in`."""
    if dtype == jnp.float32:
        return jax.lax.bitcast_convert_type(count, dtype)
    return count.astype(dtype)


class _Row(NamedTuple):
    """One lane, on a last axis of length 1."""

    lanes: Lanes
    functions: Functions
    data: Any
    atol: Array | None


def _read(row, stepper, leaves):
    code, s, num_steps, num_rejected, rest = *row[:4, None], row[4:]
    lengths = stepper.state_size, stepper.state_size, 3, stepper.system.num_parameters
    own_atol = stepper.options.scales_atol
    lengths = np.cumsum([*lengths, stepper.state_size * own_atol])
    y, slope, numbers, origin, atol, own = jnp.split(rest, lengths)
    h, memory, unit = numbers[:, None]
    kinds = stepper.leaves_of_lanes
    leaves = kinds.merged(leaves, _own_leaves(kinds, own))
    code, num_steps, num_rejected = (
        code.astype(jnp.int32),
        counts_in(num_steps),
        counts_in(num_rejected),
    )
    lanes = Lanes(y[:, None], slope[:, None], s, h, memory, code, num_steps, num_rejected)
    found: Any = stepper.functions(unit, leaves)
    functions = Functions(*map(_of_one_lane, found))
    data = unit, origin[:, None], *leaves
    return _Row(lanes, functions, data, atol[:, None] if own_atol else None)


def _written(lanes, dtype):
    counts = (stored_counts(count, dtype) for count in (lanes.num_steps, lanes.num_rejected))
    changed = [lanes.code, lanes.s, *counts, lanes.y, lanes.slope, lanes.h, lanes.memory]
    return jnp.concatenate([number.astype(dtype).reshape(-1) for number in changed])


def _own_leaves(kinds, own):
    leaves = []
    for example in kinds.own(kinds.examples):
        piece, own = own[: example.size], own[example.size :]
        leaves.append(piece.reshape(*example.shape, 1).astype(example.dtype))
    return leaves


def _of_one_lane(function: Lanewise):
    """The function for a lane axis of length 1, as a function that the program can call."""
    inner: Any = jax.jit(jaxpr_as_fun(function.closed))

    def of_lanes(*arguments):
        pairs = zip(arguments, function.batched, strict=True)
        given = [argument[..., 0] if lanes else argument for argument, lanes in pairs]
        return tuple(result[..., None] for result in inner(*given))

    return of_lanes
