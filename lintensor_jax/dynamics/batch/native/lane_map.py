"""Machine code that maps a function over lanes, as `jax.vmap` does, a vector of lanes at a time."""

import ctypes
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped
from llvmlite import ir

from ..vectorization.entry_by_entry import from_list
from .control_flow import loop
from .emitter import STACK, Emitter, ModuleState
from .engine import engine_of
from .instructions import TooLarge, Unsupported, vector
from .kernel import SMALL_ROW, Loop, lanes_of_vector, threads_of_lanes
from .memory import Slot

_INT = ir.IntType(64)
# A further thread maps at least so many lanes: it starts in some 20 microseconds.
_FEWEST_LANES = 2048


class _EmitterWithWhile(Emitter):
    """An `Emitter` of programs without empty lanes.

    In the lanes of a kernel that have no row, a `while` loop might never end.
    """

    others: ClassVar = Emitter.others | {"while": loop}


class LaneMap:
    """A function of one lane, compiled for many lanes.

    - `closed`: a closed jaxpr. Its first `lanes` arguments are arrays of one lane and of one dtype.
      The other arguments are arrays that all lanes share.

    Raises `Unsupported` if a lane has more than 64 numbers, or if an operation has no instruction.
    """

    def __init__(self, closed: Any, lanes: int):
        own, self._results = closed.in_avals[:lanes], closed.out_avals
        self._dtype = np.dtype(own[0].dtype)
        self._given, self._found = ([v.size for v in avals] for avals in (own, self._results))
        self._size = max(sum(self._given), sum(self._found))
        unknown = [v.dtype for v in self._results if np.dtype(v.dtype).kind not in "fb"]
        if unknown or any(v.dtype != self._dtype for v in own):
            raise Unsupported(f"lanes of numbers of type {unknown or own}")
        if self._size > SMALL_ROW:
            raise TooLarge(f"lanes of {self._size} numbers")
        self._width = lanes_of_vector(self._size, self._dtype)
        self._program = self._emit(closed, lanes)

    def compile(self) -> None:
        """Compile the program; Python's lock is not held."""
        self._engine: Any = engine_of(self._program)
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        kinds = [pointer] * 4 + [integer] * 3 + [pointer]
        self._run = ctypes.CFUNCTYPE(None, *kinds)(self._engine.get_function_address("map"))

    def __call__(self, *arrays: Shaped[Any, "..."], threads: int = 1) -> list[np.ndarray]:
        """The results of all lanes, with the lanes on their first axis.

        The first arrays are those of the lanes. They may be columns of a table.
        """
        given = [np.asarray(array) for array in arrays]
        lanes = [_of_contiguous_lanes(array) for array in given[: len(self._given)]]
        shared, count = given[len(self._given) :], lanes[0].shape[0]
        assert all(array.shape[0] == count and array.dtype == self._dtype for array in lanes)
        found = np.empty(count * sum(self._found), self._dtype)
        empty = np.zeros(0, self._dtype)
        data = np.concatenate([empty, *(a.astype(self._dtype).reshape(-1) for a in shared)])
        pointers = np.array([array.ctypes.data for array in lanes], np.int64)
        strides = np.array([array.strides[0] // array.itemsize for array in lanes], np.int64)
        parts = max(1, min(threads, count // _FEWEST_LANES))
        each = self._width * -(-count // (self._width * parts))

        def part(first):
            raw = np.empty(self._width * (self._size + 1), self._dtype)
            vectors = raw[(-raw.ctypes.data % (self._width * raw.itemsize)) // raw.itemsize :]
            places = [a.ctypes.data for a in (vectors, pointers, strides, found)]
            self._run(*places, first, min(first + each, count), count, data.ctypes.data)

        others = [threads_of_lanes.submit(part, first) for first in range(each, count, each)]
        part(0)
        for other in others:
            other.result()
        return self._divided(found, count)

    def _divided(self, found: np.ndarray, count: int) -> list[np.ndarray]:
        ends = np.cumsum([count * size for size in self._found])
        return [
            piece.reshape(count, *aval.shape).astype(aval.dtype, copy=False)
            for piece, aval in zip(np.split(found, ends[:-1]), self._results, strict=True)
        ]

    def _emit(self, closed: Any, lanes: int) -> str:
        """The program as text in LLVM's language."""
        kind, module = vector(self._dtype, self._width), ir.Module("lanes")
        number = kind.element.as_pointer()
        # Vectors of lanes | arrays, their strides | results | first lane, last, all | shared data.
        kinds = [kind.as_pointer(), number.as_pointer(), _INT.as_pointer(), number]
        function = ir.Function(
            module, ir.FunctionType(ir.VoidType(), [*kinds, _INT, _INT, _INT, number]), "map"
        )
        function.attributes.add("nounwind")  # llvmlite drops an alignment alone
        function.attributes.alignstack = STACK
        vectors, arrays, strides, results, first, last, count, data = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        again, done = map(function.append_basic_block, ("again", "done"))
        before = builder.block
        builder.branch(again)

        builder.position_at_end(again)
        base = builder.phi(_INT)
        base.add_incoming(first, before)
        self._load_lanes(builder, base, vectors, arrays, strides, last)
        state = ModuleState(self._size)
        bases = {"row": vectors, "data": data}
        emitter = _EmitterWithWhile(builder, self._width, self._dtype, bases, state)
        found = emitter.evaluate(closed.jaxpr, closed.consts, _slots(closed.in_avals, lanes))
        self._write(emitter, found)
        self._store_lanes(builder, base, vectors, results, last, count)
        following = builder.add(base, ir.Constant(_INT, self._width))
        base.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, last), again, done)
        emitter.close()

        builder.position_at_end(done)
        builder.ret_void()
        return str(module)

    def _write(self, emitter: Emitter, found: list[np.ndarray]) -> None:
        """Overwrite the arguments of the vectors of lanes by the results."""
        pairs = [
            (e, aval.dtype) for v, aval in zip(found, self._results, strict=True) for e in v.flat
        ]
        # All are computed before one is written: results can be arguments.
        values = [emitter.memory.as_stored(emitter.value(*pair), pair[1]) for pair in pairs]
        for i, value in enumerate(values):
            emitter.store(value, Slot("row", i))

    def _load_lanes(self, builder, base, vectors, arrays, strides, last):
        """The numbers of the lanes from `base` on; beyond the last lane those of the last one."""
        final = builder.sub(last, ir.Constant(_INT, 1))
        columns = builder.bitcast(vectors, arrays.type.pointee)
        with Loop(builder, self._width) as lane:
            place = builder.add(base, lane)
            place = builder.select(builder.icmp_signed("<", place, final), place, final)
            target = builder.gep(columns, [lane])
            for i, size in enumerate(self._given):
                array, stride = (
                    builder.load(builder.gep(pointer, [ir.Constant(_INT, i)]))
                    for pointer in (arrays, strides)
                )
                source = builder.gep(array, [builder.mul(place, stride)])
                target = _copied(builder, size, source, 1, target, self._width)[1]

    def _store_lanes(self, builder, base, vectors, results, last, count):
        """The results of the lanes from `base` on, in one array after the other."""
        columns = builder.bitcast(vectors, results.type)
        with Loop(builder, self._width) as lane:
            place = builder.add(base, lane)
            with builder.if_then(builder.icmp_signed("<", place, last)):
                source, array = builder.gep(columns, [lane]), results
                for size in self._found:
                    numbers = ir.Constant(_INT, size)
                    target = builder.gep(array, [builder.mul(place, numbers)])
                    source = _copied(builder, size, source, self._width, target, 1)[0]
                    array = builder.gep(array, [builder.mul(count, numbers)])


def _of_contiguous_lanes(array: np.ndarray) -> np.ndarray:
    """The array, or a copy if the numbers of one lane are not one after the other."""
    return array if array[0].flags.c_contiguous else np.ascontiguousarray(array)


def _slots(avals, lanes) -> list[np.ndarray]:
    """The arguments: the first ones from the vectors of lanes, the others from the shared data."""
    entries, own, shared = [], 0, 0
    for aval in avals[:lanes]:
        entries.append(from_list([Slot("row", own + i) for i in range(aval.size)], aval.shape))
        own += aval.size
    for aval in avals[lanes:]:
        slots = [Slot("data", shared + i, np.dtype(aval.dtype)) for i in range(aval.size)]
        entries.append(from_list(slots, aval.shape))
        shared += aval.size
    return entries


def _copied(builder, count, source, source_step, target, target_step):
    """Copy `count` numbers; returns the places behind the last ones."""
    for i in range(count):
        value = builder.load(builder.gep(source, [ir.Constant(_INT, i * source_step)]))
        builder.store(value, builder.gep(target, [ir.Constant(_INT, i * target_step)]))
    ends = (source, source_step), (target, target_step)
    return [builder.gep(place, [ir.Constant(_INT, count * step)]) for place, step in ends]
