"""An emitter that writes operations on long arrays as loops over their entries.

Written out, a step of a network with 96 parameters is 180 kB of instructions. A processor fetches
them from its second cache, and half of them move vectors between registers and memory. With loops a
step of a diagonal network takes a third of the time, and compiles in a seventh.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import from_list
from .calls import is_stored
from .emitter import Emitter, ModuleState
from .loops import Loops
from .streams import Number, all_known, is_readable, runs

# An array is cut into at most so many pieces for loops, and at most a quarter of its entries may be
# in pieces without a loop.
_MOST_PIECES, _LARGEST_REST = 12, 0.25
# An entry of a result that no loop computes yet is computed alone with at most so many operations.
_MOST_SINGLE = 64
_NEUTRAL = {"add": 0, "mul": 1}


class EmitterOfLoops(Emitter):
    """An `Emitter` for rows of many numbers."""

    #: The entries of shorter arrays are numbers of their own, in registers. So are those of arrays
    #: of up to `long` entries that a loop cannot read where they are.
    shortest, long = 6, 12

    def __init__(
        self,
        builder: ir.IRBuilder,
        width: int,
        dtype: Any,
        bases: dict[str, Any],
        module_state: ModuleState,
    ):
        super().__init__(builder, width, dtype, bases, module_state)
        # Long arrays could be larger than the stack of a thread.
        self.memory.reserve = module_state.reserve
        self._loops = Loops(self.memory, self.shortest, self.value)

    def at_once(self, equation: Any, inputs: Sequence[np.ndarray]) -> np.ndarray | None:
        """The result of an elementwise equation by loops; None for short arrays."""
        (result,), avals = equation.outvars, [v.aval for v in equation.invars]
        dtypes, dtype = [aval.dtype for aval in avals], result.aval.dtype
        if inputs[0].size < self.shortest or not all(map(self.memory.fits, (*dtypes, dtype))):
            return None
        name = equation.primitive.name
        if name in ("add", "add_any", "mul"):
            name = "mul" if name == "mul" else "add"
            return self._pairs(name, inputs[0], inputs[1], dtype)
        params = equation.params
        kinds = ",".join(map(str, dtypes))
        key = name, kinds, str(params.get("new_dtype", params.get("y")))

        def one(*entries):
            return self.elementwise(equation, entries)

        def compute(*values):
            return self.applied(name, params, dtypes[0], values)

        arrays = [list(value.reshape(-1)) for value in inputs]
        entries = self._in_pieces(key, arrays, dtypes, dtype, compute, one)
        return from_list(entries, inputs[0].shape)

    def dot(self, a: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
        """Products of matrices; see `Entrywise.dot`."""
        shape, terms = (a.shape[0], a.shape[1], b.shape[2]), a.shape[2]
        outputs = int(np.prod(shape))
        if max(outputs, terms) < self.shortest or not terms or not self.memory.fits(dtype):
            return super().dot(a, b, dtype)
        multiply, add = ("and", "or") if dtype.kind == "b" else ("mul", "add")

        def sum_of(x, y):
            return self._pairs(add, x, y, dtype)

        # Few sums stay in registers.
        if outputs >= self.shortest and not (outputs <= self.long and 2 * outputs <= terms):
            products = [
                self._pairs(
                    multiply,
                    np.broadcast_to(a[:, :, k, None], shape),
                    np.broadcast_to(b[:, None, k], shape),
                    dtype,
                )
                for k in range(terms)
            ]
            return functools.reduce(sum_of, products)
        found = [
            self._total(add, list(self._pairs(multiply, row, column, dtype)), dtype)
            for left, right in zip(a, b, strict=True)
            for row in left
            for column in right.T
        ]
        return from_list(found, shape)

    def reduced(self, operation: str, columns: np.ndarray, dtype: Any) -> list[Any]:
        """Reductions of the rows of a matrix; see `Entrywise.reduced`."""
        if max(columns.shape) < self.shortest or not self.memory.fits(dtype):
            return super().reduced(operation, columns, dtype)
        if len(columns) < self.shortest:
            return [self._total(operation, list(column), dtype) for column in columns]

        def merged(x, y):
            return self._pairs(operation, x, y, dtype)

        return list(functools.reduce(merged, columns.T))

    def behind_barrier(self, value: np.ndarray, dtype: Any) -> np.ndarray:
        """The value in registers, or a long one in memory."""
        if value.size < self.shortest or not self.memory.fits(dtype):
            return super().behind_barrier(value, dtype)
        return from_list(self._loops.copied(list(value.reshape(-1)), dtype), value.shape)

    def write(self, entries: Any, dtype: Any, base: str, start: int = 0) -> None:
        """Write entries to memory, from the place `start`."""
        self._loops.write(list(entries), dtype, base, start)

    def write_row(self, entries: Any, dtype: Any) -> Any:
        """Overwrite the first numbers of the row; returns the first one as a vector."""
        first = self.value(entries[0], dtype)
        self.write(entries, dtype, "row")
        return first

    def write_results(self, entries: Any, dtype: Any, start: int) -> None:
        """Write those entries of a function's result to memory that it computes."""
        at = 0
        while at < len(entries):
            end = at
            while end < len(entries) and is_stored(entries[end]):
                end += 1
            self.write(entries[at:end], dtype, "found", start + at)
            at = end + 1

    def close(self) -> None:
        """Write the bodies of the loops."""
        self._loops.placement.finish(self._one_entry)

    def base(self, name: str) -> Any:
        """The pointer of a base; results of loops are written to memory when they are needed."""
        return self._loops.placement.base(name)

    def was_written(self, base: str) -> None:
        """Loops that read this memory come later."""
        self._loops.placement.was_written(base)

    def _load(self, slot):
        needed = self._loops.computed_before(slot, self._known, self.long)
        if 0 < len(needed) <= _MOST_SINGLE:
            for other in needed[:-1]:
                self._loaded(other)
            return self._loops.entry(slot, self._loaded)
        self._loops.placement.was_read(slot)
        return super()._load(slot)

    def _passable(self, value):
        return value

    def _pass(self, passed, given):
        at = 0
        while at < len(passed):
            _, dtype = passed[at]
            end = at
            while end < len(passed) and passed[end][1] == dtype:
                end += 1
            self.write([entry for entry, _ in passed[at:end]], dtype, given, at)
            at = end

    @contextlib.contextmanager
    def conditional_code(self):
        with super().conditional_code(), self._loops.branch():
            yield

    @contextlib.contextmanager
    def _one_entry(self):
        outside, self._known = self._known, {}
        yield
        self._known = outside

    def _pairs(self, name: str, a: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
        unsigned = np.dtype(dtype).kind == "u"

        def one(x, y):
            return self.pair(name, x, y, unsigned)

        def compute(x, y):
            return self.instructions.binary(name, x, y, unsigned)

        arrays, key = [list(a.reshape(-1)), list(b.reshape(-1))], ("pairs", name, str(dtype))
        return from_list(self._in_pieces(key, arrays, [dtype] * 2, dtype, compute, one), a.shape)

    def _in_pieces(
        self, key: Any, arrays, dtypes, dtype: Any, compute: Callable, one: Callable
    ) -> list[Any]:
        """The entries of an operation: in loops, or one by one where they are few or known."""
        found: list[Any] = []
        for start, end in self._pieces(arrays):
            pieces = [array[start:end] for array in arrays]
            if self._is_short(pieces) or all(map(all_known, pieces)):
                found += [one(*entries) for entries in zip(*pieces, strict=True)]
            else:
                found += self._by_loop(key, pieces, dtypes, dtype, compute)
        return found

    def _by_loop(self, key, arrays, dtypes, dtype, compute):
        operands = [self._loops.operand(a, d) for a, d in zip(arrays, dtypes, strict=True)]
        neutral = _NEUTRAL.get(key[1]) if key[0] == "pairs" else None
        for operand, other in zip(operands, reversed(arrays), strict=False):
            if neutral is not None and isinstance(operand, Number) and operand.number == neutral:
                return other
        count = len(arrays[0])
        self._spend(1 + count // self.entries_of_operation)
        return self._loops.apply(key, operands, count, dtype, compute)

    def _total(self, operation: str, entries: list[Any], dtype: Any) -> Any:
        unsigned = np.dtype(dtype).kind == "u"
        operands: dict[int, list[Any]] = {}
        rest: list[Any] = []
        for start, end in self._pieces([entries]):
            piece = entries[start:end]
            if self._is_short([piece]) or all_known(piece):
                rest += piece
            else:
                operands.setdefault(len(piece), []).append(self._loops.operand(piece, dtype))
        for count, given in operands.items():
            self._spend()
            rest.append(self._loops.total(operation, given, count, dtype, unsigned))
        return functools.reduce(lambda x, y: self.pair(operation, x, y, unsigned), rest)

    def _is_short(self, pieces) -> bool:
        count = len(pieces[0])
        return count < self.shortest or (count < self.long and not all(map(is_readable, pieces)))

    def _pieces(self, arrays) -> list[tuple[int, int]]:
        """Bounds of pieces in which loops can read all arrays."""
        count = len(arrays[0])
        cuts: set[int] = {0}
        for array in arrays:
            starts = runs(array)
            if len(starts) <= _MOST_PIECES:
                cuts.update(starts)
        ends = [*sorted(cuts)[1:], count]
        pieces = list(zip(sorted(cuts), ends, strict=True))
        rest = sum(end - start for start, end in pieces if end - start < self.shortest)
        return pieces if rest <= _LARGEST_REST * count else [(0, count)]
