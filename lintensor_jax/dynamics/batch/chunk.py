"""One chunk of a batch: the lanes of one program, and their ends."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from .lane_data import LaneData, piece_of


class Chunk(NamedTuple):
    """Lanes of one program. Only the first `count` are real; the others fill the arrays."""

    count: Int[np.ndarray, ""]
    thetas: Float[Array, "N p"]
    data: LaneData

    @staticmethod
    def cut(at: int, size: int, count: int, thetas: Array, data: LaneData, shared: bool) -> "Chunk":
        """The lanes at, ..., at + size - 1 of `count`; beyond `count` the last lane is repeated."""
        own = data.cut(at, size, shared)
        return Chunk(np.asarray(min(size, count - at), np.int32), piece_of(thetas, at, size), own)


class Ends(NamedTuple):
    """The ends of a chunk's lanes, in their order, and the executed steps of all lanes.

    Arrays of NumPy on a CPU, of JAX on other devices.
    """

    y: Float[Any, "N q"]
    s: Float[Any, " N"]
    code: Int[Any, " N"]
    num_steps: Int[Any, " N"]
    num_rejected: Int[Any, " N"]
    executed: int = 0
    num_implicit: Int[Any, " N"] | None = None  # None: no lane took an implicit step

    def in_arrays(self, size: int | None = None) -> "Ends":
        """The ends as `ends_like` describes them.

        `size`: the arrays are filled with zeros up to this number of lanes; None: they are not.
        """
        integer, none = jax_integer(), self.num_implicit is None
        implicit = np.zeros(self.code.shape, np.int32) if none else self.num_implicit
        executed: Any = np.asarray(min(self.executed, np.iinfo(integer).max), integer)
        ends = self._replace(executed=executed, num_implicit=implicit)
        missing = 0 if size is None else size - self.code.shape[0]
        return jax.tree.map(lambda x: _with_zeros(x, missing), ends) if missing else ends


def ends_like(size: int, state_size: int, dtype: Any, integer: Any) -> Ends:
    """Shapes and types of the ends of `size` lanes; `integer`: the type of the executed steps."""
    shapes = (size, state_size), (size,), (size,), (size,), (size,), (), (size,)
    dtypes: Any = dtype, dtype, np.int32, np.int32, np.int32, integer, np.int32
    return Ends(*map(jax.ShapeDtypeStruct, shapes, dtypes))  # pyright: ignore


def _with_zeros(array: np.ndarray, count: int) -> np.ndarray:
    if array.ndim == 0:  # the number of executed steps
        return array
    return np.concatenate([array, np.zeros((count, *array.shape[1:]), array.dtype)])


def jax_integer() -> np.dtype:
    """JAX's integer type: of 64 bits if these are enabled, else of 32 bits."""
    return np.dtype(jax.dtypes.canonicalize_dtype(int))
