"""Programs of one lane as LLVM instructions for a vector of lanes.

XLA:CPU compiles a step into about forty loops, each of which reads vectors from memory and writes
them back. Here each number of a lane is one vector register (or two) for all lanes, and the whole
step is one sequence of instructions, as in Intel's ispc.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from llvmlite import ir

from ..vectorization.entry_by_entry import Entrywise, from_list, is_known, lifted
from ..vectorization.operation_count import count_operations
from . import elementary
from .instructions import Instructions, TooLarge, no_instruction, vector
from .linear_algebra import ROUTINES, routine

_ELEMENTARY = {"exp": elementary.exp, "log": elementary.log, "log1p": elementary.log1p}
_ELEMENTARY |= {"logistic": elementary.logistic}
_NUMPY = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
_NUMPY |= {"and": np.bitwise_and, "or": np.bitwise_or}

# Alignment of the stack in bytes. LLVM stores on the stack what does not fit the registers.
# Operating systems align it to 16 bytes. Vectors that cross cache lines make kernels 25% slower.
STACK = 64
# Inner programs with more operations become separate functions, which are compiled once.
LARGEST_INLINE = 400
# The most operations of a program. LLVM compiles about 15,000 a second; beyond, XLA is faster.
LARGEST_PROGRAM = 45_000
# Arguments of every function: the rows of the lanes, and the numbers that all lanes share.
_BASES = ("row", "data")
_VALUE = "value"


class Slot(NamedTuple):
    """A number in memory: one for every lane, or (in "data") one for all lanes."""

    base: str
    index: int
    dtype: Any = None  # None: the dtype of the emitter


class ModuleState:
    """State that the functions of one module share.

    - `largest_program`: the most operations of the module; default `LARGEST_PROGRAM`.
    """

    def __init__(self, largest_program: int | None = None):
        self.largest_program = LARGEST_PROGRAM if largest_program is None else largest_program
        self.functions: dict[
            Any, Any
        ] = {}  # functions of large programs, and the entries that they return
        self.spent = 0  # number of operations of the module


class Emitter(Entrywise):
    """Evaluates jaxprs of one lane; the entries are LLVM values, vectors of `width` lanes.

    - `dtype`: the type of the numbers in memory.
    - `bases`: the pointers of the slots, by name.
    - `module_state`: the state of the module.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        width: int,
        dtype: Any,
        bases: dict[str, Any],
        module_state: ModuleState,
    ):
        self.builder, self.width, self.dtype = builder, width, np.dtype(dtype)
        self.bases = bases
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
        self.builder.store(value, self._place(slot), align=self._bytes)

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
        if name in _ELEMENTARY and dtype.kind == "f":
            return self._once(key, lambda: self._traced(_ELEMENTARY[name], dtype, values[0]))
        return self._once(key, lambda: self.instructions.apply(name, params, dtype, values))

    def converted(self, entry: Any, old: Any, new: Any) -> Any:
        """The vector of an entry in another dtype; see `Entrywise.converted`."""
        if isinstance(entry, np.generic):
            return np.asarray(entry, new)[()]
        value = self.value(entry, old)
        key = "converted", str(old), str(new), id(value)
        return self._once(key, lambda: self.instructions.converted(value, old, new))

    def called(self, jaxpr: Any, constants: Any, inputs) -> list[np.ndarray]:
        """The results of an inner program; a large one becomes one function for all its calls."""
        operations, _ = count_operations(jaxpr, [is_known(value) for value in inputs])
        if operations < LARGEST_INLINE:
            return self.evaluate(jaxpr, constants, inputs)
        if not all(_fits(v.aval.dtype, self.dtype) for v in (*jaxpr.invars, *jaxpr.outvars)):
            return self.evaluate(jaxpr, constants, inputs)
        inputs = [value if is_known(value) else self._passable(value) for value in inputs]
        entries = [entry for value in inputs for entry in lifted(value).reshape(-1)]
        dtypes = [v.aval.dtype for v in jaxpr.invars for _ in range(v.aval.size)]
        key = id(jaxpr), *map(_kind_of, entries)
        functions = self._module_state.functions
        made = next((other for other in functions if _can_call(other, key)), key)
        if made not in functions:
            # The jaxpr is kept alive: the key holds its id, which a new object could get.
            functions[made] = *self._function(jaxpr, constants, inputs), jaxpr
        function, results, _ = functions[made]
        given_entries = zip(entries, dtypes, made[1:], strict=True)
        passed = [self._as_passed(e, dtype) for e, dtype, kind in given_entries if kind == _VALUE]
        # Calls share the memory of arguments. Each call keeps the memory of its results.
        given, found = f"given to {function.name}", f"found {len(self.bases)}"
        if given not in self.bases:
            self._allocate(given, len(passed))
        self._allocate(found, len(results))
        for i, value in enumerate(passed):
            if self._passed.get((given, i)) is not value:  # arguments stay where they are
                self.store(value, Slot(given, i))
                self._passed[given, i] = value
        bases = [self.bases[name] for name in (*_BASES, given, found)]
        self.builder.call(function, bases)
        entries = [
            e._replace(base=found) if isinstance(e, Slot) and e.base == "found" else e
            for e in results
        ]
        return _divided(entries, [v.aval.shape for v in jaxpr.outvars])

    def composite(self, equation: Any, inputs) -> list[np.ndarray] | None:
        """The results of a routine of `linear_algebra`, in memory; None for other names."""
        name, (result,) = equation.params["name"], equation.outvars
        if name not in ROUTINES or result.aval.dtype != self.dtype:
            return None
        kind = vector(self.dtype, self.width)
        call = routine(self.builder.module, equation, kind, self.dtype, STACK)
        found = f"found {len(self.bases)}"
        self._allocate(found, result.aval.size)
        pointers = [self._in_memory(lifted(value).reshape(-1)) for value in inputs]
        self.builder.call(call, [*pointers, self.bases[found]])
        slots = [Slot(found, i) for i in range(result.aval.size)]
        return [from_list(slots, result.aval.shape)]

    def _in_memory(self, entries) -> Any:
        """A pointer to the entries, one after the other: where they are, or in a copy."""
        first = entries[0]
        base = first.base if isinstance(first, Slot) else ""
        if base.startswith("found") and list(entries) == [
            Slot(base, i) for i in range(len(entries))
        ]:
            return self.bases[base]
        name = f"argument {len(self.bases)}"
        self._allocate(name, len(entries))
        for i, entry in enumerate(entries):
            self.store(self.value(entry, self.dtype), Slot(name, i))
        return self.bases[name]

    def behind_barrier(self, value: np.ndarray, dtype: Any) -> np.ndarray:
        """The value as vectors: a function with this argument is not compiled for its numbers."""
        return from_list([self.value(entry, dtype) for entry in value.reshape(-1)], value.shape)

    def other(self, equation: Any, inputs) -> list[np.ndarray]:
        """A `cond` between two programs. The second one is skipped if no lane takes it."""
        name = equation.primitive.name
        if name != "cond" or len(equation.params["branches"]) != 2:
            raise no_instruction(name)
        (index,), *inputs = (inputs[0].reshape(-1), *inputs[1:])
        without, instead = equation.params["branches"]
        if isinstance(index, np.generic):
            chosen = instead if index else without
            return self.evaluate(chosen.jaxpr, chosen.consts, inputs)
        index = self.value(index, np.int32)
        wanted = self.builder.icmp_signed("!=", index, self.instructions.constant(0, np.int32))
        usual = self._vectors(without, inputs)
        before = self.builder.block
        bits: Any = self.builder.bitcast(wanted, ir.IntType(self.width))
        some = self.builder.icmp_signed("!=", bits, ir.Constant(bits.type, 0))
        with self.builder.if_then(some, likely=False):
            outside, self._known = self._known, dict(self._known)
            before_branch = dict(self._passed)
            other = self._vectors(instead, inputs)
            self._known = outside
            self._passed = {k: v for k, v in before_branch.items() if self._passed[k] is v}
            chosen = [self.builder.select(wanted, a, b) for a, b in zip(other, usual, strict=True)]
            after = self.builder.block
        merged = []
        for new, old in zip(chosen, usual, strict=True):
            phi = self.builder.phi(new.type)
            phi.add_incoming(new, after)
            phi.add_incoming(old, before)
            merged.append(phi)
        return _divided(merged, [v.aval.shape for v in equation.outvars])

    def _once(self, key, compute):
        if key not in self._known:
            self._module_state.spent += 1
            if self._module_state.spent > self._module_state.largest_program:
                raise TooLarge(f"more than {self._module_state.largest_program} operations")
            self._known[key] = compute()
        return self._known[key]

    def _vectors(self, closed, inputs) -> list[Any]:
        """All results of a program, as vectors."""
        results = self.evaluate(closed.jaxpr, closed.consts, inputs)
        return [
            self.value(entry, v.aval.dtype)
            for result, v in zip(results, closed.jaxpr.outvars, strict=True)
            for entry in result.reshape(-1)
        ]

    def _passable(self, value):
        """The value, with slots of this function loaded: another function cannot read them."""
        local = [isinstance(e, Slot) and e.base not in _BASES for e in value.reshape(-1)]
        entries = zip(value.reshape(-1), local, strict=True)
        return from_list([self._loaded(e) if here else e for e, here in entries], value.shape)

    def _function(self, jaxpr, constants, inputs):
        """A function in LLVM, and the entries that it returns: slots of "found", or numbers."""
        module = self.builder.module
        kinds = [self.bases[name].type for name in _BASES]
        kinds += [vector(self.dtype, self.width).as_pointer()] * 2
        name = module.get_unique_name("part")
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        function.attributes.alignstack = STACK
        function.linkage = "internal"
        function.attributes.add("noinline")
        for argument in function.args[-2:]:
            argument.add_attribute("noalias")
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        bases: dict[str, Any] = dict(zip((*_BASES, "given", "found"), function.args, strict=True))
        inner = Emitter(builder, self.width, self.dtype, bases, self._module_state)
        arguments, count = [], 0
        for variable, value in zip(jaxpr.invars, inputs, strict=True):
            dtype, value = np.dtype(variable.aval.dtype), value.copy()
            flat = value.reshape(-1)
            for i, entry in enumerate(flat):
                if isinstance(entry, ir.Value):
                    flat[i] = Slot("given", count, None if dtype == self.dtype else dtype)
                    count += 1
            arguments.append(value)
        results = inner.evaluate(jaxpr, constants, arguments)
        entries = []
        for result, v in zip(results, jaxpr.outvars, strict=True):
            for entry in lifted(result).reshape(-1):
                if isinstance(entry, np.generic) or (
                    isinstance(entry, Slot) and entry.base in _BASES
                ):
                    entries.append(entry)
                else:
                    value = inner.value(entry, v.aval.dtype)
                    slot = Slot("found", len(entries), np.dtype(v.aval.dtype))
                    inner.store(inner.as_stored(value, v.aval.dtype), slot)
                    entries.append(slot)
        builder.ret_void()
        return function, entries

    def _as_passed(self, entry, dtype):
        """An argument of a function, as it is stored; the same object for the same argument."""
        value = self.value(entry, dtype)
        if np.dtype(dtype) == self.dtype:
            return value
        key = "passed", str(dtype), id(value)
        return self._once(key, lambda: self.as_stored(value, dtype))

    def as_stored(self, value: Any, dtype: Any) -> Any:
        """Numbers of another dtype as the emitter's dtype; `_as_read` is the inverse."""
        if np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize == self.dtype.itemsize:
            return self.builder.bitcast(value, vector(self.dtype, self.width))
        return self.instructions.converted(value, dtype, self.dtype)

    def _as_read(self, value: Any, slot: Slot) -> Any:
        dtype = np.dtype(slot.dtype or self.dtype)
        same = dtype.itemsize == self.dtype.itemsize and dtype.kind in "iu"
        if same and slot.base.startswith(("found", "given")):
            return self.builder.bitcast(value, vector(dtype, self.width))
        return self.instructions.converted(value, self.dtype, dtype)

    def _allocate(self, name, size):
        """Memory for `size` vectors, as a base of slots."""
        kind = vector(self.dtype, self.width)
        with self.builder.goto_entry_block():
            room: Any = self.builder.alloca(kind, ir.Constant(ir.IntType(32), max(size, 1)))
            room.align = self._bytes
        self.bases[name] = room

    @property
    def _bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def _place(self, slot: Slot):
        key = "place", slot.base, slot.index
        if key not in self._known:
            index = ir.Constant(ir.IntType(64), slot.index)
            self._known[key] = self.builder.gep(self.bases[slot.base], [index])
        return self._known[key]

    def _loaded(self, slot: Slot):
        return self._once(slot, lambda: self._load(slot))

    def _load(self, slot):
        place = self._place(slot)
        if slot.base != "data":
            return self._as_read(self.builder.load(place, align=self._bytes), slot)
        kind = vector(self.dtype, self.width)
        undefined, first = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        value = self.builder.insert_element(undefined, self.builder.load(place), first)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), None)
        value = self.builder.shuffle_vector(value, undefined, zeros)
        return self.instructions.converted(value, self.dtype, slot.dtype or self.dtype)

    def _traced(self, function, dtype, value):
        closed = _jaxpr_of(function, np.dtype(dtype))
        (result,) = self.evaluate(closed.jaxpr, closed.consts, [from_list([value], ())])
        return result[()]


@functools.cache
def _jaxpr_of(function, dtype):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))


def _fits(dtype, stored) -> bool:
    """Whether numbers of `dtype` can be stored in memory for numbers of the dtype `stored`."""
    # Integers of the same size are stored as bits, smaller ones as floats of twice their size.
    return np.dtype(dtype).itemsize <= np.dtype(stored).itemsize


def _kind_of(entry):
    """The key of an entry: `_VALUE` for any vector, else the entry itself."""
    if isinstance(entry, ir.Value):
        return _VALUE
    # The key of a number is its text, which differs for -0 and 0, and is equal for NaN.
    return repr(entry) if isinstance(entry, np.generic) else entry


def _can_call(made, wanted) -> bool:
    """Whether a function made for the keys `made` can be called with the keys `wanted`.

    A number in memory can be passed as a value.
    """
    return len(made) == len(wanted) and all(
        a == b or (a == _VALUE and isinstance(b, Slot) and b.dtype is None)
        for a, b in zip(made, wanted, strict=True)
    )


def _divided(values, shapes):
    """A list of entries, cut into arrays of these shapes."""
    arrays = []
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(from_list(values[:size], shape))
        values = values[size:]
    return arrays
