"""Linear systems of `dynamics/elimination.py` as loops over vectors of lanes.

Each lane of a vector has its own matrix. A matrix is q^2 vectors in memory, row by row. Written out
without loops, an elimination with q = 32 would have 22,000 instructions.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ...elimination import BACKWARD_ERROR, FACTORS, SOLVED
from .instructions import Instructions

_INT = ir.IntType(64)


class _Writer:
    """Vectors in memory and loops, in one function for systems of `size` equations."""

    def __init__(self, builder: ir.IRBuilder, kind: ir.VectorType, dtype: Any, size: int):
        self.builder, self.dtype, self.size = builder, dtype, self.integer(size)
        self.instructions = Instructions(builder, kind.count)
        self._bytes = kind.count * dtype.itemsize

    @staticmethod
    def integer(value: int) -> ir.Constant:
        """A number for places and bounds."""
        return ir.Constant(_INT, value)

    def number(self, value: float) -> Any:
        """A vector of equal numbers."""
        return self.instructions.constant(value, self.dtype)

    def binary(self, name: str, a: Any, b: Any) -> Any:
        """A vector of results."""
        return self.instructions.binary(name, a, b)

    def size_of(self, value: Any) -> Any:
        """Absolute values."""
        return self.instructions.apply("abs", {}, self.dtype, [value])

    def following(self, index: Any) -> Any:
        """The index plus 1."""
        return self.builder.add(index, self.integer(1))

    def place(self, pointer: Any, row: Any, column: Any = None) -> Any:
        """A pointer to an entry of a vector or of a matrix."""
        index = row
        if column is not None:
            index = self.builder.add(self.builder.mul(row, self.size), column)
        return self.builder.gep(pointer, [index])

    def load(self, place: Any) -> Any:
        """The vector at a place."""
        return self.builder.load(place, align=self._bytes)

    def store(self, value: Any, place: Any) -> None:
        """Write a vector to a place."""
        self.builder.store(value, place, align=self._bytes)

    def change(self, name: str, place: Any, other: Any) -> None:
        """Write (the vector at the place) `name` `other` to the place."""
        self.store(self.binary(name, self.load(place), other), place)

    def loop(self, start: Any, stop: Any, body: Callable[..., Any], *initial: Any) -> list[Any]:
        """`for index in range(start, stop)`: body(index, *values) gives the next values.

        Values that stay in registers are much faster than vectors that are stored and loaded again.
        """
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.append_basic_block(x) for x in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        carried = [builder.phi(_INT), *(builder.phi(value.type) for value in initial)]
        builder.cbranch(builder.icmp_signed("<", carried[0], stop), inside, after)
        builder.position_at_end(inside)
        values = body(*carried) or ()
        following = [self.following(carried[0]), *values]
        for phi, first, value in zip(carried, (start, *initial), following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried[1:]


def _copy(writer: _Writer, count: Any, source: Any, target: Any) -> None:
    def one(i):
        writer.store(writer.load(writer.place(source, i)), writer.place(target, i))

    writer.loop(writer.integer(0), count, one)


def _factors(w: _Writer, matrix: Any, found: Any) -> None:
    def eliminate(k):
        pivot, after = w.place(found, k, k), w.following(k)
        inverse = w.binary("div", w.number(1), w.load(pivot))
        w.store(inverse, pivot)

        def row(i):
            share = w.binary("mul", w.load(w.place(found, i, k)), inverse)
            w.store(share, w.place(found, i, k))

            def entry(j):
                product = w.binary("mul", share, w.load(w.place(found, k, j)))
                w.change("sub", w.place(found, i, j), product)

            w.loop(after, w.size, entry)

        w.loop(after, w.size, row)

    _copy(w, w.builder.mul(w.size, w.size), matrix, found)
    w.loop(w.integer(0), w.size, eliminate)


def _solved(w: _Writer, factors: Any, right: Any, found: Any) -> None:
    def subtract(value, column, begin, end):
        """Subtract a column times a value: no entry waits for the one before."""

        def entry(i):
            product = w.binary("mul", w.load(w.place(factors, i, column)), value)
            w.change("sub", w.place(found, i), product)

        w.loop(begin, end, entry)

    def forward(k):
        subtract(w.load(w.place(found, k)), k, w.following(k), w.size)

    def backward(turn):
        k = w.builder.sub(w.builder.sub(w.size, w.integer(1)), turn)
        value = w.binary("mul", w.load(w.place(found, k)), w.load(w.place(factors, k, k)))
        w.store(value, w.place(found, k))
        subtract(value, k, w.integer(0), k)

    _copy(w, w.size, right, found)
    w.loop(w.integer(0), w.size, forward)
    w.loop(w.integer(0), w.size, backward)


def _backward_error(w: _Writer, matrix: Any, x: Any, right: Any, found: Any) -> None:
    zero, one = w.number(0), w.number(1)

    def row(i, largest):
        def entry(j, total, size):
            product = w.binary("mul", w.load(w.place(matrix, i, j)), w.load(w.place(x, j)))
            return w.binary("add", total, product), w.binary("add", size, w.size_of(product))

        target = w.load(w.place(right, i))
        total, size = w.loop(w.integer(0), w.size, entry, zero, w.size_of(target))
        wrong = w.size_of(w.binary("sub", total, target))
        nonzero = w.builder.fcmp_unordered("!=", size, zero)  # true for NaN
        share = w.binary("div", wrong, w.builder.select(nonzero, size, one))
        return (w.binary("max", largest, share),)

    (largest,) = w.loop(w.integer(0), w.size, row, zero)
    w.store(largest, w.place(found, w.integer(0)))


#: What writes the functions for the names of composites: from a `_Writer`, the pointers to the
#: arguments, and the pointer to the result.
ROUTINES = {FACTORS: _factors, SOLVED: _solved, BACKWARD_ERROR: _backward_error}


def routine(
    module: ir.Module, equation: Any, kind: ir.VectorType, dtype: Any, stack: int
) -> ir.Function:
    """The function for a composite; one for each module and number of equations.

    `stack`: the alignment of the stack in bytes.
    """
    name, size = equation.params["name"], equation.invars[0].aval.shape[0]
    label = f"{name}.{size}"
    known = module.globals.get(label)
    if known is not None:
        return known
    count = len(equation.invars) + 1
    function = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [kind.as_pointer()] * count), label
    )
    function.linkage = "internal"
    function.attributes.alignstack = stack
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    ROUTINES[name](_Writer(builder, kind, dtype, size), *function.args)
    builder.ret_void()
    return function
