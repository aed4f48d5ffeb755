"""Stiff lanes with few parameters as rows of a table, integrated by machine code for CPUs.

A row begins with the numbers that a step changes: status code, time, steps, rejected steps, the
state (q), step size, and the error of the last step. They are followed by the numbers that are
computed once (`Known`), and by the arrays of its problem and its network that are not shared.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..elimination import backward_error, factors_of, solved
from ..on_invariants import corrects_steps
from ..rosenbrock import rosenbrock_step
from .ends_by_machine_code import kernel_of
from .implicit_step import (
    ImplicitLanes,
    Known,
    accepted_or_rejected,
    first_step,
    known_of,
    lane_of,
    slope_of,
)
from .lane_data import LaneData
from .native.table import counts_in, counts_of, stored_counts
from .over_lanes import is_exact
from .programs import XLA, Arguments, Native, Refusal, compiled
from .step import RUNNING
from .stepper import Stepper

#: The code of a lane that XLA has to continue: its layers are tied and each step is corrected by
#: linear algebra, or its linear systems need an exchange of rows.
LEFT = 2**20
# The largest matrix of a step: those of a vector of 8 lanes take 256 kB. Most programs for larger
# ones have more operations than machine code may have.
_LARGEST_MATRIX = 64
# The largest backward error of a solution without exchanges of rows, in roundings. Larger ones are
# rare: then the pivots have grown.
_ROUNDINGS = 1e4
# Lanes whose rows are filled together, so that few shapes are compiled.
_BLOCK = 64
_XLA = XLA()


def _leaves_of(stepper: Stepper, known: Known, data: LaneData) -> list[Any]:
    """The leaves of `Stepper.leaves_of_lanes` of one lane."""
    return jax.tree.leaves((data, known.reducible))


def _numbers_of(known: Known) -> tuple[Any, ...]:
    return known.unit, known.initial, known.atol, known.origin


def _filled(
    stepper: Stepper, thetas: Array, data: LaneData, y: Array, s: Array
) -> tuple[Float[Array, "N M"], list[Array]]:
    """Rows of lanes before their first step, and the shared arrays. Tied lanes are `LEFT`."""
    kinds, corrects = stepper.leaves_of_lanes, corrects_steps(stepper.system, stepper.options.clock)

    def of_lane(theta, data, y, s):
        known = known_of(stepper, theta, data)
        h = first_step(stepper, lane_of(stepper, known, data), y)
        code = jnp.where(known.is_tied & corrects, LEFT, RUNNING).astype(y.dtype)
        begin = [code, s, jnp.zeros_like(s), jnp.zeros_like(s)]
        leaves = _leaves_of(stepper, known, data)
        own = [leaf.astype(y.dtype) for leaf in kinds.own(leaves)]
        row = ravel_pytree((begin, y, h, jnp.ones_like(h), _numbers_of(known), own))[0]
        return row, kinds.shared(leaves)

    axes = LaneData(None if stepper.shared else 0, 0)
    table, shared = jax.vmap(of_lane, (0, axes, 0, 0))(thetas, data, y, s)
    return table, [leaf[0] for leaf in shared]


def step_row(
    row: Float[Array, " M"], stepper: Stepper, theta: Array, leaves: list[Array], limits: tuple
) -> tuple[Float[Array, " K"]]:
    """The first numbers of a row after an attempted implicit step.

    `theta`: an example of a lane's parameters. `leaves`: the arrays that all rows share.
    `limits`: the most steps of a lane, and the largest backward error.
    """
    most, largest_error = limits
    q = stepper.state_size
    code, s, num_steps, num_rejected, h, error = *row[:4], row[4 + q], row[5 + q]
    # Behind a barrier the state is in registers, as that of all stages: they call one function.
    y = jax.lax.optimization_barrier(row[4 : 4 + q])
    known, data = _known_in(row[6 + q :], stepper, theta, leaves)
    lane = lane_of(stepper, known, data)
    now = ImplicitLanes(
        y, s, h, error, code.astype(jnp.int32), counts_in(num_steps), counts_in(num_rejected)
    )
    inlined = functools.partial(slope_of, stepper, lane)
    slope = jax.jit(inlined)
    wrong = []

    def solver(y, shift):
        matrix = shift * jnp.eye(q, dtype=y.dtype) - _jacobian(inlined, y)
        factors = factors_of(matrix)

        def solve(right):
            x = solved(factors, right)
            if not wrong:  # all stages have one matrix
                wrong.append(backward_error(matrix, x, right))
            return x

        return solve

    end, difference = rosenbrock_step(slope, y, h, solver, written_out=True)
    after = accepted_or_rejected(stepper, most, lane, now, end, jnp.abs(difference))
    # NaN: the state is not finite, and the step is rejected in any case.
    left = (now.code == RUNNING) & (wrong[0] > largest_error)
    after = jax.tree.map(functools.partial(jnp.where, left), now, after)
    code = jnp.where(left, np.int32(LEFT), after.code).astype(row.dtype)
    counts = [stored_counts(count, row.dtype) for count in (after.num_steps, after.num_rejected)]
    return (ravel_pytree(([code, after.s, *counts], after.y, after.h, after.error))[0],)


def _jacobian(slope, y):
    """The derivative of the slope: one function is called for each column.

    The slope itself must not be a call: indices that it computes would be unknown to the function.
    """
    _, along = jax.linearize(slope, y)
    along = jax.jit(along)
    # Behind the barrier the unit vectors are no constants, for which functions would be compiled.
    basis = jax.lax.optimization_barrier(jnp.eye(y.size, dtype=y.dtype))
    return jnp.stack([along(basis[j]) for j in range(y.size)], axis=1)


def _known_in(rest, stepper, theta, shared) -> tuple[Known, LaneData]:
    """The numbers and the data of one lane, from the last numbers of its row."""
    kinds = stepper.leaves_of_lanes

    def example(theta, data):
        return _numbers_of(known_of(stepper, theta, data))

    data, _ = jax.tree.unflatten(kinds.structure, kinds.examples)
    numbers = jax.eval_shape(example, theta, data)
    parts = []
    for like in (*jax.tree.leaves(numbers), *kinds.own(kinds.examples)):
        parts.append(rest[: like.size].reshape(like.shape).astype(like.dtype))
        rest = rest[like.size :]
    count = len(jax.tree.leaves(numbers))
    unit, initial, atol, origin = jax.tree.unflatten(jax.tree.structure(numbers), parts[:count])
    leaves = kinds.merged(shared, parts[count:])
    data, reducible = jax.tree.unflatten(kinds.structure, leaves)
    return Known(reducible, unit, initial, atol, origin), data


def stiff_ends_by_machine_code(
    stepper: Stepper, thetas: Any, data: LaneData, y: Any, s: Any, most: int, how: Native
) -> tuple[ImplicitLanes, int] | None:
    """As `integrate_stiff`; None if there is no such program.

    Lanes with the code `LEFT` are unfinished.
    """
    if stepper.state_size > _LARGEST_MATRIX or not _is_exact(stepper, data, y.dtype):
        return None
    given = Arguments(stepper.of_any_width())
    table, shared = _table(given, thetas, data, y, s)
    largest_error = np.asarray(_ROUNDINGS * np.finfo(table.dtype).eps, table.dtype)
    limits = np.asarray(most, np.int32), largest_error
    example = jax.ShapeDtypeStruct(thetas.shape[1:], thetas.dtype)
    order, executed = np.flatnonzero(table[:, 0] == RUNNING).astype(np.int32), 0
    if order.size:
        row = Arguments(jax.ShapeDtypeStruct(table.shape[1:], table.dtype))
        program = kernel_of(step_row, how, row, given, Arguments(example, shared, limits))
        if isinstance(program, Refusal):
            return None
        arrays = [*given.arrays, np.zeros(example.shape), *shared, *limits]
        numbers = np.concatenate([np.asarray(a, table.dtype).reshape(-1) for a in arrays])
        executed = int(program(table, order, numbers))
    q = stepper.state_size
    code, state = table[:, 0].astype(np.int32), table[:, 4 : 4 + q]
    fields: Any = [
        state,
        table[:, 1],
        *table[:, 4 + q : 6 + q].T,
        code,
        *counts_of(np.ascontiguousarray(table[:, 2:4].T)),
    ]
    return ImplicitLanes(*fields), executed


def _table(given: Arguments, thetas, data, y, s) -> tuple[Float[np.ndarray, "N M"], list[Array]]:
    """The rows of all lanes, and the arrays that they share."""
    (stepper,), count = given.values, len(s)
    rows, shared = [], []
    for begin in range(0, count, _BLOCK):
        place = np.minimum(np.arange(begin, begin + _BLOCK), count - 1)
        block = Arguments(thetas[place], data.ordered(place, stepper.shared), y[place], s[place])
        block_rows, shared = compiled(_filled, _XLA, given, block)(given, block)
        rows.append(np.asarray(block_rows)[: count - begin])
    return np.concatenate(rows), shared


def _is_exact(stepper: Stepper, data: LaneData, dtype) -> bool:
    """Whether the integers among the data are the same as floats."""
    arrays = jax.tree.leaves((data, stepper.system.problem))
    return all(is_exact(array, dtype) for array in arrays)
