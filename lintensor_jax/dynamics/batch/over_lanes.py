"""Functions of one lane, mapped over the lanes of a chunk by machine code of a CPU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .chunk import Chunk
from .lane_data import LaneData
from .programs import Arguments, Native, OverLanes, Program, compiled


class Mapped(NamedTuple):
    """A compiled function of lanes: `program`, and its arguments besides those of a call.

    - `own`: initial parameters and `LaneData` of the real lanes.
    - `given`: the stepper, and what all lanes share.
    """

    program: Program
    own: tuple[Any, LaneData]
    given: tuple[Arguments, Arguments]

    def is_compiled(self) -> bool:
        """Whether LLVM has compiled the program; waits until it is done."""
        return self.program.machine_code().exception() is None

    def __call__(self, *more: np.ndarray) -> Any:
        """The results of all lanes; `more`: further arrays with a first axis of lanes."""
        return self.program(Arguments((*self.own, *more)), *self.given)


def mapped(
    function: Callable, stepper: Arguments, chunk: Chunk, how: Native, shared: Any, *more: Any
) -> Mapped | None:
    """function((theta, data, *more), stepper, shared) of a lane, for the real lanes of a chunk.

    `data` are those that the lane does not share. `more`: examples of further arrays of one lane.
    None if there is no machine code.
    """
    count, given = int(chunk.count), (stepper, Arguments(shared))
    data = own_data(chunk.data, stepper.values[0].shared)
    own = jax.tree.map(lambda array: np.asarray(array)[:count], (chunk.thetas, data))
    lane = Arguments((*jax.tree.map(lambda array: array[0], own), *more))
    dtype = own[0].dtype
    if any(array.dtype != dtype for array in lane.arrays):
        return None
    if not all(is_exact(array, dtype) for argument in given for array in argument.arrays):
        return None
    program = compiled(function, OverLanes(len(lane.arrays), how.threads), lane, *given)
    return None if program.refusal is not None else Mapped(program, own, given)


def own_data(data: LaneData, shared: bool) -> LaneData:
    """The data of single lanes: without the problem, if they share it."""
    return data._replace(problem=None) if shared else data


def is_exact(array: Any, dtype: Any) -> bool:
    """Whether floats of `dtype` equal the integers of an array; True for other arrays."""
    if np.dtype(array.dtype).kind not in "iu":
        return True
    array = np.asarray(array)
    return np.array_equal(array, array.astype(dtype).astype(array.dtype))
