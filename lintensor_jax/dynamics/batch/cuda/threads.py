"""Programs of one lane as CUDA kernels in PTX: a thread integrates one row after the other.

The step and the emitter are those of the machine code for CPUs, with vectors of one lane. A thread
takes a row of the table by an atomic counter, keeps it in registers, steps until the row is done,
writes it back and takes the next one. Threads share only the counter. There are no barriers and no
shared memory.
"""

import re
import threading
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from ..native.emitter import Emitter, ModuleState
from ..native.instructions import TooLarge, no_instruction, vector
from ..native.memory import Slot
from ..vectorization.entry_by_entry import from_list
from .contraction import with_explicit_fma

#: Limits of programs for threads: operations, and numbers that a step changes (38 with a state of
#: 16). Beyond, a thread has too few registers, and most numbers of a lane are in slower memory.
LARGEST_PROGRAM, LARGEST_THREAD = 8_000, 38
# The oldest GPUs that jaxlib for CUDA 13 supports, and CUDA 12.0. Drivers compile for newer ones.
_TARGET, _FEATURES = "sm_75", "+ptx80"
_INT, _WORD = ir.IntType(64), ir.IntType(32)
_GLOBAL = 1  # LLVM's number for the memory of a device
_ARRAY = re.compile(r"= alloca (<1 x \w+>), i32 (\d+)")
_PLAIN = re.compile(r"\b(add|sub|mul)\.(f64|f32)\b")
_setup = threading.Lock()


def emit_threads(steps: Any) -> str:
    """The kernels `start` and `integrate` of a closed jaxpr, as text in LLVM's language.

    `steps`: as in `native.kernel.emit`, with two results. Arguments of both kernels: the table
    (N, M), the order of its rows (int32), their number (int32), a counter that is 0 (int32), the
    shared numbers, and an array with an int32 for every thread. `integrate` writes to the last
    one the steps of every thread.

    Raises `Unsupported` for an operation without an instruction, `TooLarge` for too many.
    """
    *_, written = steps.out_avals
    if written.size > LARGEST_THREAD:
        raise TooLarge(f"a step changes more than {LARGEST_THREAD} numbers of a lane")
    module = ir.Module("lanes")
    module_state = ModuleState(steps.in_avals[0].size, LARGEST_PROGRAM)
    for name, result in zip(("integrate", "start"), reversed(steps.jaxpr.outvars), strict=True):
        _emit_kernel(module, name, steps, result, module_state)
    for function in module.functions:
        if function.is_declaration and not function.name.startswith("llvm."):
            raise no_instruction(function.name)  # a function of C's library
    return _inlined(with_explicit_fma(str(module)))


def _inlined(text: str) -> str:
    """The text, changed so that inner functions are inlined and their arguments are registers."""
    text = text.replace("noinline", "alwaysinline")
    return _ARRAY.sub(r"= alloca [\2 x \1]", text)


def _emit_kernel(module, name, steps, result, module_state) -> None:
    """A kernel whose threads take rows until none is left. In "start" each row has one turn."""
    row, *_ = steps.in_avals
    *_, written = steps.out_avals
    kind = vector(row.dtype, 1)
    number, word = (ir.PointerType(t, _GLOBAL) for t in (kind.element, _WORD))
    kinds = [number, word, _WORD, word, number, word]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
    function.calling_convention = "ptx_kernel"
    table, order, count, following, data, turns = function.args
    for argument in (table, order, following, data, turns):
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    room: Any = builder.alloca(ir.ArrayType(kind, row.size))
    room.align = row.dtype.itemsize
    state = builder.bitcast(room, kind.as_pointer())
    made = builder.alloca(_WORD)
    builder.store(ir.Constant(_WORD, 0), made)
    lanes = _Lanes(builder, table, state, kind)
    names = ("take", "load", "loop", "write", "end")
    take, load, loop, write, end = map(function.append_basic_block, names)
    builder.branch(take)

    builder.position_at_end(take)
    place = builder.atomic_rmw("add", following, ir.Constant(_WORD, 1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", place, count), load, end)

    builder.position_at_end(load)
    job: Any = builder.load(builder.gep(order, [builder.zext(place, _INT)]))
    base = builder.mul(builder.zext(job, _INT), ir.Constant(_INT, row.size))
    lanes.load(base, row.size)
    builder.branch(loop)

    builder.position_at_end(loop)
    bases = {"row": state, "data": data}
    emitter = Emitter(builder, 1, row.dtype, bases, module_state)
    (values,) = emitter.evaluate(steps.jaxpr, steps.consts, _arguments(steps), [result])
    first = emitter.write_row(values, result.aval.dtype)
    if name == "integrate":
        builder.store(builder.add(builder.load(made), ir.Constant(_WORD, 1)), made)
        code = builder.extract_element(first, ir.Constant(_WORD, 0))
        done = builder.fcmp_ordered(">=", code, ir.Constant(kind.element, 0.0))
        builder.cbranch(done, write, loop)
    else:
        builder.branch(write)

    builder.position_at_end(write)
    lanes.store(base, written.size)
    builder.branch(take)

    builder.position_at_end(end)
    if name == "integrate":
        builder.store(builder.load(made), builder.gep(turns, [_thread(builder)]))
    builder.ret_void()


class _Lanes:
    """Copies a row between the table and the numbers of a thread."""

    def __init__(self, builder, table, state, kind):
        self.builder, self.table, self.state, self.kind = builder, table, state, kind

    def _places(self, base, i):
        step = ir.Constant(_INT, i)
        place = self.builder.gep(self.table, [self.builder.add(base, step)])
        return place, self.builder.gep(self.state, [step])

    def load(self, base, size) -> None:
        """Read a row from the table; `base`: the place of its first number."""
        zero, unknown = ir.Constant(_WORD, 0), ir.Constant(self.kind, ir.Undefined)
        for i in range(size):
            source, target = self._places(base, i)
            value = self.builder.insert_element(unknown, self.builder.load(source), zero)
            self.builder.store(value, target, align=self._bytes)

    def store(self, base, size) -> None:
        """Write the first `size` numbers of a row to the table."""
        for i in range(size):
            target, source = self._places(base, i)
            value = self.builder.load(source, align=self._bytes)
            self.builder.store(self.builder.extract_element(value, ir.Constant(_WORD, 0)), target)

    @property
    def _bytes(self):
        return 8 if isinstance(self.kind.element, ir.DoubleType) else 4


def _arguments(steps):
    """The row and the shared arrays of a jaxpr, as slots."""
    row, *shared = steps.in_avals
    entries, offset = [from_list([Slot("row", i) for i in range(row.size)], row.shape)], 0
    for array in shared:
        slots = [Slot("data", offset + i, np.dtype(array.dtype)) for i in range(array.size)]
        entries.append(from_list(slots, array.shape))
        offset += array.size
    return entries


def _thread(builder):
    """The number of a thread in the grid, in 64 bits."""
    register = {
        name: builder.call(_declared(builder.module, f"llvm.nvvm.read.ptx.sreg.{name}"), [])
        for name in ("ctaid.x", "ntid.x", "tid.x")
    }
    number = builder.add(builder.mul(register["ctaid.x"], register["ntid.x"]), register["tid.x"])
    return builder.zext(number, _INT)


def _declared(module, name):
    if name in module.globals:
        return module.globals[name]
    return ir.Function(module, ir.FunctionType(_WORD, []), name)


def assembled(text: str) -> str:
    """PTX of a module in LLVM's language.

    There are only three passes: functions are inlined, each alloca becomes registers, and unused
    instructions are dropped. No other pass is needed, and none may change the last bits.
    """
    with _setup:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    machine = target.create_target_machine(cpu=_TARGET, features=_FEATURES, opt=3)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=0)
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    passes.add_sroa_pass()
    passes.add_dead_code_elimination_pass()
    passes.run(module, llvm.create_pass_builder(machine, options))
    # NVIDIA's assembler may merge a product and a sum that do not say how they round.
    return _PLAIN.sub(r"\1.rn.\2", machine.emit_assembly(module))
