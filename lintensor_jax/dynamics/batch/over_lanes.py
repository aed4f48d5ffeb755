"""Functions of one lane, mapped over the lanes of a chunk by machine code of a CPU."""

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .chunk import Chunk
from .lane_data import LaneData
from .programs import Arguments, Native, OverLanes, Program, Refusal, traced

# Reasons for which a warning has been given.
_warned: set[str] = set()
_warning = threading.Lock()


class Mapped(NamedTuple):
    """A function of one lane as a program of many, and its arguments besides those of a call.

    - `common`: the stepper, and what all lanes share.
    """

    program: Program
    common: tuple[Arguments, Arguments]

    def is_compiled(self) -> bool:
        """Whether LLVM has compiled the program; waits until it is done. Warns if it failed."""
        failure = self.program.failure
        if failure is not None:
            _warn(failure)
        return failure is None

    def __call__(self, *lanes: Any) -> Any:
        """The results of all lanes; `lanes`: pytrees of arrays with a first axis of lanes."""
        return self.program(Arguments(lanes), *self.common)


def mapped(
    function: Callable, stepper: Arguments, lane: Any, how: Native, common: Arguments
) -> Mapped | None:
    """function(lane, stepper, common) for many lanes; None if there is no machine code.

    `lane`: arrays of one lane, which are examples. Compilation starts when the program is asked for
    it.
    """
    given, lane = (stepper, common), Arguments(lane)
    dtype = lane.arrays[0].dtype
    if any(array.dtype != dtype for array in lane.arrays):
        return None
    if not all(is_exact(array, dtype) for argument in given for array in argument.arrays):
        return None
    program = traced(function, OverLanes(len(lane.arrays), how.threads), lane, *given)
    if program.refusal is None:
        return Mapped(program, given)
    if program.refusal.by_failure:
        _warn(program.refusal)
    return None


def lanes_of(chunk: Chunk, shared: bool) -> tuple[np.ndarray, LaneData]:
    """Initial parameters of the real lanes of a chunk, and their data that are not shared."""
    count, data = int(chunk.count), own_data(chunk.data, shared)
    return jax.tree.map(lambda array: np.asarray(array)[:count], (chunk.thetas, data))


def own_data(data: LaneData, shared: bool) -> LaneData:
    """The data of single lanes: without the problem, if they share it."""
    return data._replace(problem=None) if shared else data


def is_exact(array: Any, dtype: Any) -> bool:
    """Whether a conversion to `dtype` keeps all integers of the array.

    True for arrays of other types, and for shapes in place of arrays.
    """
    if np.dtype(array.dtype).kind not in "iu" or isinstance(array, jax.ShapeDtypeStruct):
        return True
    array = np.asarray(array)
    return np.array_equal(array, array.astype(dtype).astype(array.dtype))


def _warn(refusal: Refusal) -> None:
    """Warn once of every reason for which XLA starts or finishes lanes unexpectedly."""
    with _warning:
        if refusal.reason in _warned:
            return
        _warned.add(refusal.reason)
    warnings.warn(
        f"batched_flow: XLA starts or finishes the lanes: {refusal.reason}. The results are the "
        "same, and take more time. compilation=XLA() is the same without this warning.",
        stacklevel=_level_of_caller(),
    )


def _level_of_caller() -> int:
    """The level of `warnings.warn` for the first caller outside of the package."""
    package, level, frame = __name__.partition(".")[0], 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level
