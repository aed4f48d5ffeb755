"""Numbers in memory, for all lanes of a vector."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import from_list
from .instructions import Instructions, vector

#: Bases whose numbers are the same for all lanes: those of the caller, and constants of a program.
SHARED = ("data", "numbers")


class Slot(NamedTuple):
    """A number in memory: one for every lane, or (in a base of `SHARED`) one for all lanes."""

    base: str
    index: int
    dtype: Any = None  # None: the dtype of the memory


def slots_of(avals: Any, lanes: int) -> list[np.ndarray]:
    """The arguments of a function. The first ones have lanes; all lanes share the others."""
    arguments, places = [], {"row": 0, "data": 0}
    for number, aval in enumerate(avals):
        base = "row" if number < lanes else "data"
        start, dtype = places[base], None if base == "row" else np.dtype(aval.dtype)
        slots = [Slot(base, start + i, dtype) for i in range(aval.size)]
        arguments.append(from_list(slots, aval.shape))
        places[base] += aval.size
    return arguments


class Memory:
    """Reads and writes vectors of `width` lanes.

    - `dtype`: the type of the numbers in memory.
    - `bases`: the pointers of the slots, by name.
    - `reserve`: gives the place behind the row of so many vectors; None: memory is on the stack.
    """

    reserve: Callable[[int], int] | None = None

    def __init__(self, builder: ir.IRBuilder, width: int, dtype: Any, bases: dict[str, Any]):
        self.builder, self.width, self.dtype, self.bases = builder, width, np.dtype(dtype), bases
        self.kind = vector(self.dtype, width)
        self.bytes = width * self.dtype.itemsize
        self._instructions = Instructions(builder, width)
        self._tables: dict[Any, Any] = {}

    def allocate(self, name: str, size: int) -> None:
        """Memory for `size` vectors, as a base of slots."""
        with self.builder.goto_entry_block():
            if self.reserve is not None:
                # An odd size: arrays of powers of two share few places of the processor's cache.
                self.bases[name] = self.place("row", self.reserve(size | 1))
                return
            room: Any = self.builder.alloca(self.kind, ir.Constant(ir.IntType(32), max(size, 1)))
            room.align = self.bytes
        self.bases[name] = room

    def slot_dtype(self, dtype: Any) -> Any:
        """The dtype of a `Slot`."""
        return None if np.dtype(dtype) == self.dtype else np.dtype(dtype)

    def place(self, base: str, index: int) -> Any:
        """The pointer of a number."""
        return self.builder.gep(self.bases[base], [ir.Constant(ir.IntType(64), index)])

    def table(self, kind: ir.Type, numbers: tuple[Any, ...]) -> ir.GlobalVariable:
        """A constant array of these numbers, one for equal numbers."""
        key = str(kind), repr(numbers)
        if key not in self._tables:
            module, array = self.builder.module, ir.ArrayType(kind, len(numbers))
            table: Any = ir.GlobalVariable(module, array, module.get_unique_name("table"))
            table.linkage, table.global_constant = "internal", True
            table.initializer = ir.Constant(array, list(numbers))
            self._tables[key] = table
        return self._tables[key]

    def load(self, base: str, place: Any, dtype: Any) -> Any:
        """The vector at a place of a base; `dtype`: see `Slot`."""
        if base.split()[0] not in SHARED:
            return self._as_read(self.builder.load(place, align=self.bytes), base, dtype)
        undefined, first = ir.Constant(self.kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        value = self.builder.insert_element(undefined, self.builder.load(place), first)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), None)
        value = self.builder.shuffle_vector(value, undefined, zeros)
        return self._instructions.converted(value, self.dtype, dtype or self.dtype)

    def store(self, value: Any, place: Any) -> None:
        """Write a vector of the dtype of the memory to a place."""
        self.builder.store(value, place, align=self.bytes)

    def as_stored(self, value: Any, dtype: Any) -> Any:
        """Numbers of another dtype as that of the memory; `_as_read` is the inverse."""
        if np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize == self.dtype.itemsize:
            return self.builder.bitcast(value, self.kind)
        return self._instructions.converted(value, dtype, self.dtype)

    def fits(self, dtype: Any) -> bool:
        """Whether numbers of `dtype` can be stored."""
        # Integers of the same size are stored as bits, smaller ones as floats of twice their size.
        return np.dtype(dtype).itemsize <= self.dtype.itemsize

    def _as_read(self, value: Any, base: str, dtype: Any) -> Any:
        dtype = np.dtype(dtype or self.dtype)
        same = dtype.itemsize == self.dtype.itemsize and dtype.kind in "iu"
        if same and base.startswith(("found", "given")):
            return self.builder.bitcast(value, vector(dtype, self.width))
        return self._instructions.converted(value, self.dtype, dtype)
