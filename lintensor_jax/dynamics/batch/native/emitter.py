"""Programs of one lane as LLVM instructions for a vector of lanes.

XLA:CPU compiles a step into about forty loops, each of which reads vectors from memory and writes
them back. Here each number of a lane is one vector register (or two) for all lanes, and the whole
step is one sequence of instructions, as in Intel's ispc.
"""

import contextlib
import functools
from typing import Any, ClassVar

import jax
import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import Entrywise, from_list, is_known, lifted
from ..vectorization.operation_count import count_operations
from . import elementary
from .calls import BASES, VALUE, can_call, is_local, is_stored, kind_of
from .control_flow import emit_cond, split_by_shapes, unrolled_scan
from .instructions import Instructions, TooLarge, no_instruction, vector
from .linear_algebra import ROUTINES, routine
from .memory import Memory, Slot
from .scatter import emit_scatter_add

_ELEMENTARY = {"exp": elementary.exp, "log": elementary.log, "log1p": elementary.log1p}
_ELEMENTARY |= {"logistic": elementary.logistic}
_NUMPY = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
_NUMPY |= {"and": np.bitwise_and, "or": np.bitwise_or}

# Alignment of the stack in bytes. LLVM stores on the stack what does not fit the registers.
# Operating systems align it to 16 bytes. Vectors that cross cache lines make kernels 25% slower.
STACK = 64
# Inner programs with more operations become separate functions, which are compiled once.
LARGEST_INLINE = 400
# The most operations of a program. LLVM compiles about 15,000 a second. Without loops XLA is faster
# beyond. A loop over entries counts as one operation, or more if it is long.
LARGEST_PROGRAM = 45_000


class ModuleState:
    """State that the functions of one module share.

    - `size`: the vectors of a row.
    - `largest_program`: the most operations of the module; default `LARGEST_PROGRAM`.
    """

    def __init__(self, size: int, largest_program: int | None = None):
        self.largest_program = LARGEST_PROGRAM if largest_program is None else largest_program
        # Functions of large programs, and the entries that they return.
        self.functions: dict[Any, Any] = {}
        self.spent = 0  # number of operations of the module
        self.vectors = size  # of the row and of the memory behind it

    def reserve(self, size: int) -> int:
        """The place of `size` vectors behind the row."""
        self.vectors += size
        return self.vectors - size


class Emitter(Entrywise):
    """Evaluates jaxprs of one lane; the entries are LLVM values, vectors of `width` lanes.

    - `dtype`: the type of the numbers in memory.
    - `bases`: the pointers of the slots, by name.
    - `module_state`: the state of the module.
    """

    #: Arrays of so many entries count as one operation; None: arrays of any length do not.
    shortest: Any = None
    #: A loop counts as one operation, and as one more for every so many entries, since Python
    #: writes each entry.
    entries_of_operation = 256
    #: Functions that write the equations of some primitives.
    by_primitive: ClassVar = {
        "cond": emit_cond,
        "scan": unrolled_scan,
        "scatter-add": emit_scatter_add,
    }

    def __init__(
        self,
        builder: ir.IRBuilder,
        width: int,
        dtype: Any,
        bases: dict[str, Any],
        module_state: ModuleState,
    ):
        self.builder, self.width, self.dtype = builder, width, np.dtype(dtype)
        self.memory, self.bases = Memory(builder, width, dtype, bases), bases
        self.instructions = Instructions(builder, width)
        self._module_state = module_state
        self._known: dict[Any, Any] = {}  # values that have been computed already
        self._passed: dict[Any, Any] = {}  # values in the memory of arguments

    def value(self, entry: Any, dtype: Any) -> Any:
        """An entry as a vector of all lanes."""
        if isinstance(entry, np.generic):
            return self.instructions.constant(entry, dtype)
        return self._loaded(entry) if isinstance(entry, Slot) else entry

    def store(self, value: Any, slot: Slot) -> None:
        """Write a vector of the emitter's dtype to memory."""
        self.memory.store(value, self._place(slot))

    def write(self, entries: Any, dtype: Any, base: str, start: int = 0) -> None:
        """Write entries to memory, from the place `start`."""
        for place, entry in enumerate(entries, start):
            value = self.value(entry, dtype)
            self.store(self.memory.as_stored(value, dtype), Slot(base, place))

    def write_row(self, entries: Any, dtype: Any) -> Any:
        """Overwrite the first numbers of the row; returns the first one as a vector."""
        values = [self.value(entry, dtype) for entry in entries]
        self.write(values, dtype, "row")
        return values[0]

    def close(self) -> None:
        """Complete the function."""

    def binary(self, name: str, a: Any, b: Any, unsigned: bool = False) -> Any:
        """The vector of the operation `name` on two entries; see `Entrywise.binary`."""
        if isinstance(a, np.generic) and isinstance(b, np.generic):
            return _NUMPY[name](a, b)
        a, b = (self._loaded(x) if isinstance(x, Slot) else x for x in (a, b))
        kind = b.type if isinstance(a, np.generic) else a.type
        a, b = (
            self.instructions.constant_of(x, kind) if isinstance(x, np.generic) else x
            for x in (a, b)
        )
        key = "binary", name, unsigned, id(a), id(b)
        return self._once(key, lambda: self.instructions.binary(name, a, b, unsigned))

    def elementwise(self, equation: Any, entries) -> Any:
        """The vector of an elementwise equation; see `Entrywise.elementwise`."""
        name, params = equation.primitive.name, equation.params
        if all(isinstance(entry, np.generic) for entry in entries):
            with jax.ensure_compile_time_eval():
                return np.asarray(equation.primitive.bind(*entries, **params))[()]
        avals = [v.aval for v in equation.invars]
        values = [self.value(entry, aval.dtype) for entry, aval in zip(entries, avals, strict=True)]
        dtype = avals[0].dtype
        # LLVM's types do not distinguish signed from unsigned integers, so the key has the dtypes.
        kinds = ",".join(str(aval.dtype) for aval in avals)
        key = name, kinds, str(params.get("new_dtype", params.get("y"))), *map(id, values)
        return self._once(key, lambda: self.applied(name, params, dtype, values))

    def applied(self, name: str, params: Any, dtype: Any, values) -> Any:
        """The vector of an operation on vectors; `dtype`: that of the first one."""
        if name in _ELEMENTARY and dtype.kind == "f":
            return self._traced(_ELEMENTARY[name], dtype, values[0])
        return self.instructions.apply(name, params, dtype, values)

    def converted(self, entry: Any, old: Any, new: Any) -> Any:
        """The vector of an entry in another dtype; see `Entrywise.converted`."""
        if isinstance(entry, np.generic):
            return np.asarray(entry, new)[()]
        value = self.value(entry, old)
        key = "converted", str(old), str(new), id(value)
        return self._once(key, lambda: self.instructions.converted(value, old, new))

    def called(self, jaxpr: Any, constants: Any, inputs) -> list[np.ndarray]:
        """The results of an inner program; a large one becomes one function for all its calls."""
        known = [is_known(value) for value in inputs]
        operations, _ = count_operations(jaxpr, known, self.shortest)
        if operations < LARGEST_INLINE:
            return self.evaluate(jaxpr, constants, inputs)
        if not all(self.memory.fits(v.aval.dtype) for v in (*jaxpr.invars, *jaxpr.outvars)):
            return self.evaluate(jaxpr, constants, inputs)
        inputs = [value if is_known(value) else self._passable(value) for value in inputs]
        entries = [entry for value in inputs for entry in lifted(value).reshape(-1)]
        dtypes = [v.aval.dtype for v in jaxpr.invars for _ in range(v.aval.size)]
        key = id(jaxpr), *map(kind_of, entries)
        functions = self._module_state.functions
        made = next((other for other in functions if can_call(other, key)), key)
        if made not in functions:
            # The jaxpr is kept alive: the key holds its id, which a new object could get.
            functions[made] = *self._function(jaxpr, constants, inputs), jaxpr
        function, results, _ = functions[made]
        given_entries = zip(entries, dtypes, made[1:], strict=True)
        passed = [(e, dtype) for e, dtype, kind in given_entries if kind == VALUE]
        # Calls share the memory of arguments. Each call keeps the memory of its results.
        given, found = f"given to {function.name}", f"found {len(self.bases)}"
        if given not in self.bases:
            self.memory.allocate(given, len(passed))
        self.memory.allocate(found, len(results))
        self._pass(passed, given)
        bases = [self.bases[name] for name in (*BASES, given, found)]
        self.builder.call(function, bases)
        self.was_written(found)
        entries = [
            e._replace(base=found) if isinstance(e, Slot) and e.base == "found" else e
            for e in results
        ]
        return split_by_shapes(entries, [v.aval.shape for v in jaxpr.outvars])

    def composite(self, equation: Any, inputs) -> list[np.ndarray] | None:
        """The results of a routine of `linear_algebra`, in memory; None for other names."""
        name, (result,) = equation.params["name"], equation.outvars
        if name not in ROUTINES or result.aval.dtype != self.dtype:
            return None
        kind = vector(self.dtype, self.width)
        call = routine(self.builder.module, equation, kind, self.dtype, STACK)
        found = f"found {len(self.bases)}"
        self.memory.allocate(found, result.aval.size)
        pointers = [self._in_memory(lifted(value).reshape(-1)) for value in inputs]
        self.builder.call(call, [*pointers, self.bases[found]])
        self.was_written(found)
        slots = [Slot(found, i) for i in range(result.aval.size)]
        return [from_list(slots, result.aval.shape)]

    def _in_memory(self, entries) -> Any:
        """A pointer to the entries, one after the other: where they are, or in a copy."""
        first = entries[0]
        base = first.base if isinstance(first, Slot) else ""
        if base.startswith("found") and list(entries) == [
            Slot(base, i) for i in range(len(entries))
        ]:
            return self.base(base)
        name = f"argument {len(self.bases)}"
        self.memory.allocate(name, len(entries))
        self.write(entries, self.dtype, name)
        return self.bases[name]

    def _pass(self, passed: Any, given: str) -> None:
        """Write the arguments of a function, pairs of entry and dtype, to memory."""
        for i, (entry, dtype) in enumerate(passed):
            value = self._as_passed(entry, dtype)
            if self._passed.get((given, i)) is not value:  # arguments stay where they are
                self.store(value, Slot(given, i))
                self._passed[given, i] = value

    def base(self, name: str) -> Any:
        """The pointer of a base of slots."""
        return self.bases[name]

    def was_written(self, base: str) -> None:
        """Called after other code has written to a base."""

    def behind_barrier(self, value: np.ndarray, dtype: Any) -> np.ndarray:
        """The value as vectors: a function with this argument is not compiled for its numbers."""
        return from_list([self.value(entry, dtype) for entry in value.reshape(-1)], value.shape)

    def other(self, equation: Any, inputs) -> list[np.ndarray]:
        """An equation of `by_primitive`; raises Unsupported for other primitives."""
        name = equation.primitive.name
        if name not in self.by_primitive:
            raise no_instruction(name)
        return self.by_primitive[name](self, equation, inputs)

    @contextlib.contextmanager
    def conditional_code(self):
        """A context for code that is not always executed."""
        outside, self._known = self._known, dict(self._known)
        before = dict(self._passed)
        yield
        self._known = outside
        self._passed = {k: v for k, v in before.items() if self._passed.get(k) is v}

    @contextlib.contextmanager
    def repeated_code(self):
        """A context for code that is executed any number of times."""
        with self.conditional_code():
            # In a later iteration, another call has written to the memory of arguments.
            self._passed = {}
            yield
        self._passed = {}

    def _once(self, key, compute):
        if key not in self._known:
            self._spend()
            self._known[key] = compute()
        return self._known[key]

    def _spend(self, operations: int = 1) -> None:
        self._module_state.spent += operations
        if self._module_state.spent > self._module_state.largest_program:
            raise TooLarge(f"more than {self._module_state.largest_program} operations")

    def vectors(self, jaxpr: Any, constants: Any, inputs: Any) -> list[Any]:
        """All entries of all results of a program, as vectors."""
        results = self.evaluate(jaxpr, constants, inputs)
        return [
            self.value(entry, v.aval.dtype)
            for result, v in zip(results, jaxpr.outvars, strict=True)
            for entry in result.reshape(-1)
        ]

    def _passable(self, value):
        """The value, with slots of this function loaded: another function cannot read them."""
        entries = [self._loaded(e) if is_local(e) else e for e in value.reshape(-1)]
        return from_list(entries, value.shape)

    def _function(self, jaxpr, constants, inputs):
        """A function in LLVM, and the entries that it returns: slots of "found", or numbers."""
        module = self.builder.module
        kinds = [self.bases[name].type for name in BASES]
        kinds += [vector(self.dtype, self.width).as_pointer()] * 2
        name = module.get_unique_name("part")
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        function.attributes.alignstack = STACK
        function.linkage = "internal"
        function.attributes.add("noinline")
        for argument in function.args[-2:]:
            argument.add_attribute("noalias")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        bases: dict[str, Any] = dict(zip((*BASES, "given", "found"), function.args, strict=True))
        inner = type(self)(builder, self.width, self.dtype, bases, self._module_state)
        arguments, count = [], 0
        for variable, value in zip(jaxpr.invars, inputs, strict=True):
            dtype, value = np.dtype(variable.aval.dtype), value.copy()
            flat = value.reshape(-1)
            for i, entry in enumerate(flat):
                if isinstance(entry, ir.Value) or is_local(entry):
                    flat[i] = Slot("given", count, None if dtype == self.dtype else dtype)
                    count += 1
            arguments.append(value)
        results = inner.evaluate(jaxpr, constants, arguments)
        entries: list[Any] = []
        for result, v in zip(results, jaxpr.outvars, strict=True):
            flat, dtype = list(lifted(result).reshape(-1)), np.dtype(v.aval.dtype)
            start = len(entries)
            inner.write_results(flat, dtype, start)
            entries += [
                Slot("found", place, dtype) if is_stored(entry) else entry
                for place, entry in enumerate(flat, start)
            ]
        inner.close()
        builder.ret_void()
        return function, entries

    def write_results(self, entries: Any, dtype: Any, start: int) -> None:
        """Write those entries of a function's result to memory that it computes."""
        for place, entry in enumerate(entries, start):
            if is_stored(entry):
                value = self.value(entry, dtype)
                self.store(self.memory.as_stored(value, dtype), Slot("found", place, dtype))

    def _as_passed(self, entry, dtype):
        """An argument of a function, as it is stored; the same object for the same argument."""
        value = self.value(entry, dtype)
        if np.dtype(dtype) == self.dtype:
            return value
        key = "passed", str(dtype), id(value)
        return self._once(key, lambda: self.memory.as_stored(value, dtype))

    def _place(self, slot: Slot):
        key = "place", slot.base, slot.index
        if key not in self._known:
            index = ir.Constant(ir.IntType(64), slot.index)
            self._known[key] = self.builder.gep(self.base(slot.base), [index])
        return self._known[key]

    def _loaded(self, slot: Slot):
        return self._once(slot, lambda: self._load(slot))

    def _load(self, slot):
        return self.memory.load(slot.base, self._place(slot), slot.dtype)

    def _traced(self, function, dtype, value):
        closed = _jaxpr_of(function, np.dtype(dtype))
        (result,) = self.evaluate(closed.jaxpr, closed.consts, [from_list([value], ())])
        return result[()]


@functools.cache
def _jaxpr_of(function, dtype):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
