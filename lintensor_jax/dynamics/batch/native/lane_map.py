"""Machine code that maps a function over lanes, as `jax.vmap` does, a vector of lanes at a time."""

import ctypes
import math
from concurrent.futures import wait
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped
from llvmlite import ir

from ..aligned_memory import address_of, aligned_arrays, aligned_vectors, as_aligned
from .control_flow import emit_while
from .emitter import STACK, Emitter, ModuleState
from .engine import engine_of
from .instructions import TooLarge, Unsupported, vector
from .kernel import SMALL_ROW, Loop, lanes_of_vector, refuse_if_too_large, threads_of_lanes
from .memory import slots_of

_INT = ir.IntType(64)
# To wake a further thread takes 20 to 150 microseconds of core time. It is used only if every
# thread has at least so many lanes, which take 300 microseconds or more.
_FEWEST_LANES = 8192


class _EmitterWithWhile(Emitter):
    """An `Emitter` that allows `while` loops.

    A kernel cannot have them: a place without a row has arbitrary numbers, and its loop might never
    end.
    """

    by_primitive: ClassVar = Emitter.by_primitive | {"while": emit_while}


class LaneMap:
    """A function of one lane, compiled for many lanes.

    - `closed`: a closed jaxpr. Its first `lanes` arguments are arrays of one lane and of one dtype.
      The other arguments are arrays that all lanes share.

    Raises `TooLarge` if the arguments or the results of a lane are more than 64 numbers, or if
    there are more than 45,000 operations; `Unsupported` if an operation has no instruction.
    """

    def __init__(self, closed: Any, lanes: int):
        arguments, self._results = closed.in_avals[:lanes], closed.out_avals
        self._dtype = np.dtype(arguments[0].dtype)
        self._shapes = [v.shape for v in arguments]
        self._result_sizes = [v.size for v in self._results]
        self._size = max(sum(v.size for v in arguments), sum(self._result_sizes))
        unknown = [v.dtype for v in self._results if np.dtype(v.dtype).kind not in "fb"]
        unknown += [v.dtype for v in arguments if v.dtype != self._dtype]
        if unknown:
            raise Unsupported(f"lanes of numbers of type {unknown[0]}")
        if self._size > SMALL_ROW:
            raise TooLarge(f"lanes of {self._size} numbers")
        self._width = lanes_of_vector(self._size, self._dtype)
        self._program = self._emit(closed, lanes)

    def compile(self) -> None:
        """Compile the program; Python's lock is not held."""
        self._engine: Any = engine_of(self._program)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        kinds = [pointer] * 4 + [integer] * 2 + [pointer]
        self._run = ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address("map"))

    def __call__(self, *arrays: Shaped[Any, "..."], threads: int = 1) -> list[np.ndarray]:
        """The results of all lanes, with the lanes on their first axis.

        The first arrays are those of the lanes. They may be columns of a table. ValueError if their
        shapes or dtypes are not those of the function's arguments.
        """
        given = [np.asarray(array) for array in arrays]
        lanes = [_of_contiguous_lanes(array) for array in given[: len(self._shapes)]]
        shared, count = given[len(self._shapes) :], lanes[0].shape[0]
        for array, shape in zip(lanes, self._shapes, strict=True):
            if (array.shape, array.dtype) != ((count, *shape), self._dtype):
                raise ValueError(
                    f"arrays: those of lanes must have shape {(count, *shape)} and type "
                    f"{self._dtype}, got {array.shape} and {array.dtype}; trace the function again."
                )
        found = aligned_arrays([(count, *aval.shape) for aval in self._results], self._dtype)
        empty = np.zeros(0, self._dtype)
        data = np.concatenate([empty, *(a.astype(self._dtype).reshape(-1) for a in shared)])
        pointers, results = (
            np.array([address_of(array) for array in arrays], np.int64) for arrays in (lanes, found)
        )
        strides = np.array([array.strides[0] // array.itemsize for array in lanes], np.int64)
        parts = max(1, min(threads, count // _FEWEST_LANES))
        each = self._width * -(-count // (self._width * parts))

        def part(first):
            vectors = aligned_vectors(self._size, self._width, self._dtype)
            places = [address_of(a) for a in (vectors, pointers, strides, results)]
            self._run(*places, first, min(first + each, count), address_of(data))

        others = [threads_of_lanes.submit(part, first) for first in range(each, count, each)]
        try:
            part(0)
        finally:
            wait(others)  # the threads still read and write these arrays
        for other in others:
            other.result()
        pairs = zip(found, self._results, strict=True)
        return [
            array if array.dtype == aval.dtype else as_aligned(array, aval.dtype)
            for array, aval in pairs
        ]

    def _emit(self, closed: Any, lanes: int) -> str:
        """The program as text in LLVM's language."""
        kind, module = vector(self._dtype, self._width), ir.Module("lanes")
        state, number = ModuleState(self._size), kind.element.as_pointer()
        refuse_if_too_large(closed.jaxpr, _EmitterWithWhile, state.largest_program)
        # Vectors of lanes | arrays, their strides | results | first lane, end | shared data.
        arrays = number.as_pointer()
        kinds = [kind.as_pointer(), arrays, _INT.as_pointer(), arrays, _INT, _INT, number]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "map")
        function.attributes.add("nounwind")  # llvmlite drops an alignment alone
        function.attributes.alignstack = STACK
        vectors, arrays, strides, results, first, end, data = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        again, done = map(function.append_basic_block, ("again", "done"))
        before = builder.block
        builder.branch(again)

        builder.position_at_end(again)
        base = builder.phi(_INT)
        base.add_incoming(first, before)
        self._load_lanes(builder, base, vectors, arrays, strides, end)
        bases = {"row": vectors, "data": data}
        emitter = _EmitterWithWhile(builder, self._width, self._dtype, bases, state)
        found = emitter.evaluate(closed.jaxpr, closed.consts, slots_of(closed.in_avals, lanes))
        self._write(emitter, found)
        self._store_lanes(builder, base, vectors, results, end)
        following = builder.add(base, ir.Constant(_INT, self._width))
        base.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, end), again, done)
        emitter.close()

        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def _write(self, emitter: Emitter, found: list[np.ndarray]) -> None:
        """Overwrite the arguments of the vectors of lanes by the results."""
        # All are computed before one is written, since results can be arguments.
        values = [
            [emitter.value(entry, aval.dtype) for entry in value.reshape(-1)]
            for value, aval in zip(found, self._results, strict=True)
        ]
        start = 0
        for entries, aval in zip(values, self._results, strict=True):
            emitter.write(entries, aval.dtype, "row", start)
            start += aval.size

    def _load_lanes(self, builder, base, vectors, arrays, strides, end):
        """The numbers of the lanes from `base` on; beyond the last lane those of the last one."""
        final = builder.sub(end, ir.Constant(_INT, 1))
        columns = builder.bitcast(vectors, arrays.type.pointee)
        with Loop(builder, self._width) as lane:
            place = builder.add(base, lane)
            place = builder.select(builder.icmp_signed("<", place, final), place, final)
            target = builder.gep(columns, [lane])
            for i, size in enumerate(map(math.prod, self._shapes)):
                array, stride = (
                    builder.load(builder.gep(pointer, [ir.Constant(_INT, i)]))
                    for pointer in (arrays, strides)
                )
                source = builder.gep(array, [builder.mul(place, stride)])
                target = _copied(builder, size, source, 1, target, self._width)[1]

    def _store_lanes(self, builder, base, vectors, results, end):
        """The results of the lanes from `base` on."""
        columns = builder.bitcast(vectors, results.type.pointee)
        with Loop(builder, self._width) as lane:
            place = builder.add(base, lane)
            with builder.if_then(builder.icmp_signed("<", place, end)):
                source = builder.gep(columns, [lane])
                for i, size in enumerate(self._result_sizes):
                    array = builder.load(builder.gep(results, [ir.Constant(_INT, i)]))
                    target = builder.gep(array, [builder.mul(place, ir.Constant(_INT, size))])
                    source = _copied(builder, size, source, self._width, target, 1)[0]


def _of_contiguous_lanes(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if the numbers of one lane are not one after the other."""
    return array if array[0].flags.c_contiguous else np.ascontiguousarray(array)


def _copied(builder, count, source, source_step, target, target_step):
    """Copy `count` numbers; returns the places behind the last ones."""
    for i in range(count):
        value = builder.load(builder.gep(source, [ir.Constant(_INT, i * source_step)]))
        builder.store(value, builder.gep(target, [ir.Constant(_INT, i * target_step)]))
    ends = (source, source_step), (target, target_step)
    return [builder.gep(place, [ir.Constant(_INT, count * step)]) for place, step in ends]
