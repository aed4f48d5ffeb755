"""Machine code that integrates the rows of a table to their ends, a vector of lanes at a time.

A kernel holds as many rows as a vector has lanes. A row that is done is written back, and the next
row of the table is loaded into its lane. No lane waits for another.
"""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from jaxtyping import Float, Int
from llvmlite import ir

from ..aligned_memory import address_of, aligned_vectors
from ..vectorization.operation_count import count_operations
from .emitter import STACK, Emitter, ModuleState
from .engine import engine_of
from .instructions import TooLarge, vector
from .long_arrays import EmitterOfLoops
from .memory import slots_of

# Turns until Python can first react to an interrupt, and about the seconds between later times.
_TURNS, _SECONDS = 500, 0.1
#: Starts threads when work is submitted.
threads_of_lanes = ThreadPoolExecutor(thread_name_prefix="lanes")
_INT, _ORDER = ir.IntType(64), ir.IntType(32)
_VECTORS = {"avx512f": 64, "avx": 32}
#: Rows of up to this many numbers use two registers for each number: the processor computes with
#: one while a division of the other lasts. Larger rows use one, and loops for arrays.
SMALL_ROW = 64
# Two lines of a processor's cache, which are read together, in integers.
_PADDING = 16
# A thread takes several rows of the queue together. Otherwise all cores would write to the counter
# of the queue after every lane. It takes at most `_MOST_AT_ONCE`, and few compared with the queue:
# at the end, no core waits long for another. A place of a vector takes rows `_SHARE` times or more.
_MOST_AT_ONCE, _SHARE = 32, 16
# A count above so many times the limit is refused.
_REFUSED_FROM = 2
_MEMORY = "memory"  # the number of vectors of the state


def vector_width(row: Any) -> int:
    """The number of lanes of a kernel for rows like this one."""
    return lanes_of_vector(row.size, row.dtype)


def lanes_of_vector(size: int, dtype: Any) -> int:
    """The number of lanes of machine code for lanes of `size` numbers."""
    features = llvm.get_host_cpu_features()
    register = max([bits for name, bits in _VECTORS.items() if features.get(name)], default=16)
    return register * (2 if size <= SMALL_ROW else 1) // np.dtype(dtype).itemsize


def emit(steps: Any, width: int, emitter: type[Emitter] | None = None) -> str:
    """The program as text in LLVM's language.

    `steps`: a closed jaxpr of a row (M,) and of arrays that all rows share. Its last result (K,)
    has the row's first numbers after a step. Entry 0 is negative until the row is done. If there
    are two results, the first one has the same numbers before the first step.

    `emitter`: how operations on arrays are written; default: in loops if the row is large.
    """
    row, *_ = steps.in_avals
    *_, written = steps.out_avals
    kind = vector(row.dtype, width)
    module = ir.Module("lanes")
    exchange = _emit_exchange(module, row.size, written.size, kind)
    module_state = ModuleState(row.size)
    if emitter is None:
        emitter = EmitterOfLoops if row.size > SMALL_ROW else Emitter
    refuse_if_too_large(steps.jaxpr, emitter, module_state.largest_program)
    # The step is emitted first: the start can use the functions of the step.
    names = ("step", "start")[: len(steps.out_avals)]
    for name, result in zip(names, reversed(steps.jaxpr.outvars), strict=True):
        _emit_turns(module, name, exchange, kind, steps, result, emitter, module_state)
    memory: Any = ir.GlobalVariable(module, _INT, _MEMORY)
    memory.initializer = ir.Constant(_INT, module_state.vectors)
    return str(module)


def refuse_if_too_large(jaxpr, emitter, largest: int) -> None:
    """Raise `TooLarge` if the number of operations is clearly above the limit.

    Otherwise such a program would be written until it reaches the limit, which takes up to 17 s.
    The count is not exact: it was 0.5 to 1.8 times the number of written operations in 14 programs.
    Therefore only a count above twice the limit is refused. An infinite count is not known.
    """
    known, sizes = [False] * len(jaxpr.invars), (emitter.shortest, emitter.entries_of_operation)
    count, _ = count_operations(jaxpr, known, *sizes)
    if np.isfinite(count) and count > _REFUSED_FROM * largest:
        raise TooLarge(f"more than {largest} operations")


def _emit_turns(module, name, exchange, kind, steps, result, kind_of_emitter, module_state):
    """A function that repeats turns of its lanes, until all rows are done or `most` are made.

    A turn of "step" is one step of every lane. In "start" every row takes one turn.
    """
    row, *_ = steps.in_avals
    number, width = kind.element, kind.count
    # state, jobs and counters of the lanes | table, order, its length, the next | data | most
    kinds = [kind.as_pointer(), _INT.as_pointer(), _INT.as_pointer(), number.as_pointer()]
    kinds += [_ORDER.as_pointer(), _INT, _INT.as_pointer(), number.as_pointer(), _INT]
    function = ir.Function(module, ir.FunctionType(_INT, kinds), name)
    function.attributes.add("nounwind")  # llvmlite drops an alignment alone
    function.attributes.alignstack = STACK
    state, jobs, counters, table, order, count, following, data, most = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    zero, one = ir.Constant(_INT, 0), ir.Constant(_INT, 1)
    all_lanes = ir.Constant(_INT, 2**width - 1)
    places = [jobs, counters, table, order, count, following]
    is_first_call = builder.icmp_signed("<", builder.load(counters), zero)
    with builder.if_then(is_first_call):
        builder.store(zero, counters)
        builder.call(exchange, [state, *places, all_lanes])
    loop, swap, rest, end = map(function.append_basic_block, ("loop", "swap", "rest", "end"))
    before = builder.block
    builder.branch(loop)

    builder.position_at_end(loop)
    turn = builder.phi(_INT)
    turn.add_incoming(zero, before)
    bases = {"row": state, "data": data}
    emitter = kind_of_emitter(builder, width, row.dtype, bases, module_state)
    entries = slots_of(steps.in_avals, 1)
    (results,) = emitter.evaluate(steps.jaxpr, steps.consts, entries, [result])
    code = emitter.write_row(results, result.aval.dtype)
    busy = builder.load(builder.bitcast(jobs, ir.VectorType(_INT, width).as_pointer()), align=8)
    leaves: Any = builder.icmp_signed(">=", busy, ir.Constant(busy.type, [zero] * width))
    if name == "step":
        positive = emitter.instructions.constant(0, row.dtype)
        leaves = builder.and_(leaves, builder.fcmp_ordered(">=", code, positive))
    leaving: Any = builder.bitcast(leaves, ir.IntType(width))
    after = builder.add(turn, one)
    builder.cbranch(builder.icmp_signed("!=", leaving, ir.Constant(leaving.type, 0)), swap, rest)

    builder.position_at_end(swap)
    builder.call(exchange, [state, *places, builder.zext(leaving, _INT)])
    builder.branch(rest)

    builder.position_at_end(rest)
    turn.add_incoming(after, rest)
    some = builder.icmp_signed(">", builder.load(counters), zero)
    goes_on = builder.and_(some, builder.icmp_signed("<", after, most))
    builder.cbranch(goes_on, loop, end)

    builder.position_at_end(end)
    builder.ret(after)
    emitter.close()


def _emit_exchange(module, fields, written, kind):
    """A function that writes back the rows of the lanes in a mask, and loads the next rows."""
    pointer = kind.element.as_pointer()
    kinds = [kind.as_pointer(), _INT.as_pointer(), _INT.as_pointer(), pointer]
    kinds += [_ORDER.as_pointer(), _INT, _INT.as_pointer(), _INT]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "exchange")
    function.attributes.add("noinline")
    state, jobs, counters, table, order, count, following, mask = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    state = builder.bitcast(state, pointer)
    zero, one = ir.Constant(_INT, 0), ir.Constant(_INT, 1)
    width = ir.Constant(_INT, kind.count)

    def copied(numbers, lane, job, into_state):
        """Copy the first numbers of a row: without a loop if they are few."""
        row = builder.gep(table, [builder.mul(job, ir.Constant(_INT, fields))])
        column = builder.gep(state, [lane])

        def copy(field):
            in_row = builder.gep(row, [field])
            in_state = builder.gep(column, [builder.mul(field, width)])
            source, target = (in_row, in_state) if into_state else (in_state, in_row)
            builder.store(builder.load(source), target)

        if numbers <= SMALL_ROW:
            for field in range(numbers):
                copy(ir.Constant(_INT, field))
        else:
            with Loop(builder, numbers) as field:
                copy(field)

    def change(by):
        builder.store(builder.add(builder.load(counters), ir.Constant(_INT, by)), counters)

    with Loop(builder, kind.count) as lane:
        bit = builder.and_(builder.lshr(mask, lane), one)
        with builder.if_then(builder.icmp_signed("!=", bit, zero)):
            job = builder.load(builder.gep(jobs, [lane]))
            with builder.if_then(builder.icmp_signed(">=", job, zero)):
                copied(written, lane, job, into_state=False)
                change(-1)
            place = _next_place(builder, counters, following)
            with builder.if_else(builder.icmp_signed("<", place, count)) as (some, none):
                with some:
                    job = builder.sext(builder.load(builder.gep(order, [place])), _INT)
                    builder.store(job, builder.gep(jobs, [lane]))
                    copied(fields, lane, job, into_state=True)
                    change(1)
                with none:
                    builder.store(ir.Constant(_INT, -1), builder.gep(jobs, [lane]))
    builder.ret_void()
    return function


def _next_place(builder, counters, following):
    """The place of the next row; the thread takes several places of the common queue together.

    `counters` of the thread: rows alive, its next place, the end of its places, how many it takes.
    """
    at = [builder.gep(counters, [ir.Constant(_INT, i)]) for i in range(4)]
    none_left = builder.icmp_signed(">=", builder.load(at[1]), builder.load(at[2]))
    with builder.if_then(none_left, likely=False):
        each = builder.load(at[3])
        first = builder.atomic_rmw("add", following, each, "monotonic")
        builder.store(first, at[1])
        builder.store(builder.add(first, each), at[2])
    place = builder.load(at[1])
    builder.store(builder.add(place, ir.Constant(_INT, 1)), at[1])
    return place


class Loop:
    """`for i in range(count)` with count > 0, in LLVM."""

    def __init__(self, builder: ir.IRBuilder, count: int):
        self.builder, self.count = builder, ir.Constant(_INT, count)

    def __enter__(self) -> ir.Value:
        before, self.body = self.builder.block, self.builder.append_basic_block("body")
        self.builder.branch(self.body)
        self.builder.position_at_end(self.body)
        self.index = self.builder.phi(_INT)
        self.index.add_incoming(ir.Constant(_INT, 0), before)
        return self.index

    def __exit__(self, *_: Any) -> None:
        following = self.builder.add(self.index, ir.Constant(_INT, 1))
        self.index.add_incoming(following, self.builder.block)
        after = self.builder.append_basic_block("after")
        again = self.builder.icmp_signed("<", following, self.count)
        self.builder.cbranch(again, self.body, after)
        self.builder.position_at_end(after)


class Kernel:
    """A compiled program in memory."""

    def __init__(self, program: str, width: int):
        self.width = width
        self._engine = engine_of(program)
        memory = self._engine.get_global_value_address(_MEMORY)
        self._vectors = ctypes.c_int64.from_address(memory).value
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        kinds = [pointer] * 5 + [integer, pointer, pointer, integer]
        starts, turns = (self._engine.get_function_address(name) for name in ("start", "step"))
        self._start = starts and ctypes.CFUNCTYPE(integer, *kinds)(starts)
        self._step = ctypes.CFUNCTYPE(integer, *kinds)(turns)

    def __call__(
        self,
        table: Float[np.ndarray, "N M"],
        order: Int[np.ndarray, " N"],
        data: Float[np.ndarray, " n"],
        threads: int = 1,
    ) -> int:
        """Integrate the rows of `order` to their ends; returns the number of turns."""
        if self._start:  # takes microseconds, on one core
            self._turns(self._start, table, order, data, 1)
        return self._turns(self._step, table, order, data, threads)

    def _turns(self, function, table, order, data, threads) -> int:
        following = np.zeros(1, np.int64)
        each = order.size // (_SHARE * self.width * threads)
        each = max(1, min(_MOST_AT_ONCE, each))
        shared = [address_of(a) for a in (table, order)]
        rest = [order.size, address_of(following), address_of(data)]

        def memory_of_thread():
            state = aligned_vectors(self._vectors, self.width, table.dtype)
            # Padded: a thread reads these numbers in every turn, and must not wait for the cache
            # because another thread writes beside them.
            own = np.full(self.width + 4 + 2 * _PADDING, -1, np.int64)
            jobs, counters = own[_PADDING:][: self.width], own[_PADDING + self.width :][:4]
            counters[1:] = 0, 0, each
            return state, jobs, counters

        def take_turns(state, jobs, counters):
            own = [address_of(a) for a in (state, jobs, counters)]
            turns, most = 0, _TURNS
            while counters[0] != 0 and not interrupted:
                begun = time.perf_counter()
                turns += function(*own, *shared, *rest, most)
                quick = time.perf_counter() - begun < _SECONDS
                most = 2 * most if quick else max(1, most // 2)
            return turns

        interrupted: list[bool] = []
        # The memory of all threads is made first. A thread that has started would compete for
        # Python's lock.
        first, *others = [memory_of_thread() for _ in range(threads)]
        running = [threads_of_lanes.submit(take_turns, *memory) for memory in others]
        try:
            return take_turns(*first) + sum(other.result() for other in running)
        except BaseException:
            interrupted.append(True)
            wait(running)  # the threads still write to the table
            raise
