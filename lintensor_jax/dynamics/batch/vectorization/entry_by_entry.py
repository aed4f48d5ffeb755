"""Functions of one lane, entry by entry: every entry of every array is a vector over the lanes.

Values are NumPy arrays. They hold numbers if these are known while tracing. Otherwise their dtype
is object, and their entries are vectors over the lanes (or scalars that all lanes share). The
entries are JAX arrays in `Entrywise`, and registers in `native.emitter`.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array

from .jaxprs import literal, needed_equations, opened
from .lowering import lowered

CALLS = {"jit", "pjit", "closed_call", "composite", "custom_jvp_call", "custom_vjp_call", "remat"}
# Primitives that move data, with the number of operands that are moved (None: all of them). The
# other operands are indices.
MOVES: dict[str, int | None] = {
    "broadcast_in_dim": 1,
    "concatenate": None,
    "copy": 1,
    "dynamic_slice": 1,
    "expand_dims": 1,
    "gather": 1,
    "pad": 2,
    "reshape": 1,
    "rev": 1,
    "slice": 1,
    "split": 1,
    "squeeze": 1,
    "stack": None,
    "tile": 1,
    "transpose": 1,
    "unstack": 1,
}
#: The binary operation of every reduction.
REDUCTIONS = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}
_BINARY: dict[str, Callable] = {
    "add": operator.add,
    "mul": operator.mul,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "and": jnp.bitwise_and,
    "or": jnp.bitwise_or,
}
_PLAIN: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "convert_element_type", "cos"),
    *("bitcast_convert_type", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("cosh", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg"),
    *("not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt"),
    *("square", "stop_gradient", "sub", "tan", "tanh", "xor", "asinh", "acosh", "atanh"),
}
#: Primitives that are never looked up in StableHLO.
_FAMILIAR = ELEMENTWISE | MOVES.keys() | REDUCTIONS.keys() | {"dot_general", "cond", "iota", "scan"}


def called(equation) -> Any:
    """The jaxpr that an equation calls or is defined by, and its constants.

    None if it calls nothing, and JAX has no lowering for its primitive that can be read.
    """
    params, name = equation.params, equation.primitive.name
    if name not in CALLS:
        closed = None if name in _FAMILIAR else lowered(equation)
        return closed and (closed.jaxpr, closed.consts)
    inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
    return opened(inner)


def entries_of(array: Array, batched: bool) -> np.ndarray:
    """The entries of an array; if `batched`, its last axis is the lanes."""
    shape = array.shape[:-1] if batched else array.shape
    flat = array.reshape(-1, array.shape[-1]) if batched else array.reshape(-1)
    return from_list([flat[i] for i in range(flat.shape[0])], shape)


def assembled(value: np.ndarray, width: int, dtype) -> Array:
    """The inverse of `entries_of`."""
    rows = [jnp.broadcast_to(jnp.asarray(v, dtype), (width,)) for v in value.reshape(-1)]
    if value.ndim == 0:
        return rows[0]
    return jnp.stack(rows).reshape(*value.shape, width)


def from_list(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of dtype object with these entries."""
    # Assigned one by one: NumPy would try to convert the entries to arrays.
    array = np.empty(shape, object)
    flat = array.reshape(-1)
    for i, value in enumerate(values):
        flat[i] = value
    return array


def in_numpy(array: Any) -> Any:
    """A known array as a NumPy array; random keys remain JAX arrays."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)


def is_known(value: np.ndarray) -> bool:
    """Whether `value` holds numbers that are known while tracing."""
    return value.dtype != object


def lifted(value: np.ndarray) -> np.ndarray:
    """The array with dtype object, as for values that are not known."""
    return from_list(list(value.reshape(-1)), value.shape) if is_known(value) else value


def _is_number(value, number) -> bool:
    return isinstance(value, np.generic) and value == number


class Entrywise:
    """Evaluates jaxprs entry by entry."""

    def evaluate(self, jaxpr: Any, constants, arguments, results: Any = None) -> list[np.ndarray]:
        """The variables `results` of a jaxpr (default: all results), from its arguments."""
        results = jaxpr.outvars if results is None else results
        values: dict[Any, np.ndarray] = {}

        def read(variable):
            if isinstance(variable, Literal):
                return literal(variable)
            return values[variable]

        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            known = not isinstance(constant, Tracer)
            values[variable] = in_numpy(constant) if known else entries_of(constant, False)
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in needed_equations(jaxpr, results):
            inputs = [read(v) for v in equation.invars]
            values.update(zip(equation.outvars, self._equation(equation, inputs), strict=True))
        return [read(v) for v in results]

    def binary(self, name: str, a: Any, b: Any, unsigned: bool = False) -> Any:
        """One operation of `REDUCTIONS` on two entries; `unsigned`: whether they are unsigned."""
        return _BINARY[name](a, b)

    def elementwise(self, equation: Any, entries) -> Any:
        """The result of an elementwise equation for one entry of every operand."""
        arrays = [
            jnp.asarray(entry, v.aval.dtype)
            for entry, v in zip(entries, equation.invars, strict=True)
        ]
        return equation.primitive.bind(*jnp.broadcast_arrays(*arrays), **equation.params)

    def at_once(self, equation: Any, inputs: Sequence[np.ndarray]) -> np.ndarray | None:
        """The result of an elementwise equation for whole arrays; None: entry by entry."""
        return None

    def converted(self, entry: Any, old: Any, new: Any) -> Any:
        """An entry in another dtype."""
        return jnp.asarray(entry, new)

    def called(self, jaxpr: Any, constants: Any, inputs) -> list[np.ndarray]:
        """The results of an inner jaxpr."""
        return self.evaluate(jaxpr, constants, inputs)

    def composite(self, equation: Any, inputs) -> list[np.ndarray] | None:
        """The results of a composite by a routine of its own; None if there is none."""
        return None

    def behind_barrier(self, value: np.ndarray, dtype: Any) -> np.ndarray:
        """The value as one that is not known while tracing, where this makes a difference."""
        return value

    def other(self, equation: Any, inputs) -> list[np.ndarray]:
        """The results of an equation of any other kind; raises NotImplementedError here."""
        raise NotImplementedError(equation.primitive.name)

    def _equation(self, equation: Any, inputs) -> list[np.ndarray]:
        name, params = equation.primitive.name, equation.params
        dtypes = [v.aval.dtype for v in equation.invars]
        # Arrays without entries count as known.
        inputs = [
            value if value.size else np.zeros(value.shape, dtype)
            for value, dtype in zip(inputs, dtypes, strict=True)
        ]
        if name == "optimization_barrier":
            return [self.behind_barrier(*pair) for pair in zip(inputs, dtypes, strict=True)]
        if all(is_known(value) for value in inputs):
            if name in CALLS:  # calls with custom derivatives cannot be bound
                jaxpr, constants = called(equation)
                return self.evaluate(jaxpr, constants, inputs)
            return _plain(equation, inputs) or _bound(equation, inputs, params)
        found = self.composite(equation, inputs) if name == "composite" else None
        if found is not None:
            return found
        inner = called(equation)
        if inner is not None:
            jaxpr, constants = inner
            return self.called(jaxpr, constants, inputs)
        if name in MOVES and all(map(is_known, inputs[MOVES[name] or len(inputs) :])):
            return _moved(equation, inputs)
        if name == "dot_general":
            (result,) = equation.outvars
            a, b = (
                value if dtype == result.aval.dtype else self._converted(value, dtype, result)
                for value, dtype in zip(map(lifted, inputs), dtypes, strict=True)
            )
            return [self._dot(a, b, params["dimension_numbers"], result.aval.dtype)]
        if name in REDUCTIONS:
            return [self._reduced(REDUCTIONS[name], inputs[0], params["axes"], dtypes[0])]
        if name not in ELEMENTWISE:
            return self.other(equation, inputs)
        special = {"add": self._add, "add_any": self._add, "mul": self._multiply}.get(name)
        inputs = np.broadcast_arrays(*(lifted(value) for value in inputs))
        found = self.at_once(equation, inputs)
        if found is not None:
            return [found]
        flat = zip(*(value.reshape(-1) for value in inputs), strict=True)
        results = [
            special(*entries) if special is not None else self.elementwise(equation, entries)
            for entries in flat
        ]
        return [from_list(results, inputs[0].shape)]

    def _converted(self, value, old, variable) -> np.ndarray:
        new = variable.aval.dtype
        return from_list([self.converted(e, old, new) for e in value.reshape(-1)], value.shape)

    def _add(self, a, b):
        if _is_number(a, 0) or _is_number(b, 0):
            return b if _is_number(a, 0) else a
        return self.binary("add", a, b)

    def _multiply(self, a, b):
        # A known zero is no special case, because its product with NaN is NaN.
        if _is_number(a, 1) or _is_number(b, 1):
            return b if _is_number(a, 1) else a
        return self.binary("mul", a, b)

    def _dot(self, a: np.ndarray, b: np.ndarray, dimensions, dtype) -> np.ndarray:
        (left, right), (batch_a, batch_b) = dimensions
        first, last = len(batch_a), a.ndim - len(left)
        a = np.moveaxis(a, (*batch_a, *left), (*range(first), *range(last, a.ndim)))
        b = np.moveaxis(b, (*batch_b, *right), range(first + len(right)))
        batch, rows, columns = a.shape[:first], a.shape[first:last], b.shape[first + len(right) :]
        count, length = int(np.prod(batch)), int(np.prod(a.shape[last:]))
        a, b = a.reshape(count, -1, length), b.reshape(count, length, -1)
        return self.dot(a, b, dtype).reshape(batch + rows + columns)

    def dot(self, a: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
        """The products of the matrices (k, l, m) and (k, m, n), shape (k, l, n)."""
        multiply: Callable = self._multiply
        add: Callable = self._add
        if dtype.kind == "b":
            multiply, add = (functools.partial(self.binary, name) for name in ("and", "or"))
        products = [
            functools.reduce(add, map(multiply, row, column))
            for left, right in zip(a, b, strict=True)
            for row in left
            for column in right.T
        ]
        return from_list(products, (a.shape[0], a.shape[1], b.shape[2]))

    def _reduced(self, operation, value, axes, dtype) -> np.ndarray:
        value = np.moveaxis(lifted(value), axes, range(len(axes)))
        kept = value.shape[len(axes) :]
        columns = value.reshape(-1, int(np.prod(kept))).T
        return from_list(self.reduced(operation, columns, dtype), kept)

    def reduced(self, operation: str, columns: np.ndarray, dtype: Any) -> list[Any]:
        """The reduction of each of `columns`, the rows of a matrix."""
        unsigned = dtype.kind == "u"
        operate = functools.partial(self.pair, operation, unsigned=unsigned)
        return [functools.reduce(operate, list(column)) for column in columns]

    def pair(self, operation: str, a: Any, b: Any, unsigned: bool = False) -> Any:
        """`binary`, or an operand where the other one is 0 of a sum or 1 of a product."""
        special = {"add": self._add, "mul": self._multiply}.get(operation)
        return special(a, b) if special else self.binary(operation, a, b, unsigned)


def _plain(equation, inputs) -> list[np.ndarray] | None:
    """The result by NumPy, if NumPy computes it as JAX does; None otherwise.

    NumPy is used because JAX would compile a program for every operation.
    """
    if not all(isinstance(value, np.ndarray) for value in inputs):  # keys of random numbers
        return None
    name, params = equation.primitive.name, equation.params
    aval = equation.outvars[0].aval
    if name in MOVES:
        return _placed(equation, inputs)
    with np.errstate(all="ignore"):
        if name in _PLAIN:
            return [np.asarray(_PLAIN[name](*inputs), aval.dtype)]
        if name == "convert_element_type" and np.can_cast(inputs[0].dtype, aval.dtype):
            return [np.asarray(inputs[0], aval.dtype)]
        if name == "select_n" and len(inputs) == 3 and inputs[0].dtype == bool:
            which, no, yes = inputs
            return [np.where(which, yes, no)]
    if name == "iota":
        axes = [1] * len(aval.shape)
        axes[params["dimension"]] = -1
        numbers = np.arange(aval.shape[params["dimension"]], dtype=aval.dtype)
        return [np.broadcast_to(numbers.reshape(axes), aval.shape)]
    return None


def _bound(equation, inputs, params) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*(jnp.asarray(value) for value in inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [in_numpy(result) for result in results]


def _placed(equation, inputs) -> list[np.ndarray] | None:
    """Entries moved by NumPy; None for primitives that NumPy does not have, such as gather."""
    name, params = equation.primitive.name, equation.params
    value, shape = inputs[0], equation.outvars[0].aval.shape
    match name:
        case "copy":
            return [value]
        case "reshape":
            order = params["dimensions"]
            return [(value if order is None else value.transpose(order)).reshape(shape)]
        case "squeeze" | "expand_dims":
            return [value.reshape(shape)]
        case "transpose":
            return [value.transpose(params["permutation"])]
        case "broadcast_in_dim":
            axes = [1] * len(shape)
            for axis, size in zip(params["broadcast_dimensions"], value.shape, strict=True):
                axes[axis] = size
            return [np.broadcast_to(value.reshape(axes), shape)]
        case "concatenate":
            return [np.concatenate(inputs, params["dimension"])]
        case "stack":
            return [np.stack(inputs, params["axis"])]
        case "unstack":
            axis, count = params["axis"], len(equation.outvars)
            return [part.reshape(shape) for part in np.split(value, count, axis)]
        case "split":
            return np.split(value, np.cumsum(params["sizes"])[:-1], params["axis"])
        case "rev":
            return [np.flip(value, params["dimensions"])]
        case "slice":
            strides = params["strides"] or (1,) * value.ndim
            ranges = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return [value[tuple(slice(*r) for r in ranges)]]
    return None


def _moved(equation, inputs) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    count = MOVES[name] or len(inputs)
    inputs = [lifted(value) for value in inputs[:count]] + inputs[count:]
    placed = _placed(equation, inputs)
    if placed is not None:
        return placed
    # Otherwise JAX moves the indices 0, 1, 2, ... of the entries.
    entries, numbers = [], []
    for value in inputs[:count]:
        numbers.append(np.arange(value.size).reshape(value.shape) + len(entries))
        entries += list(value.reshape(-1))
    if name == "gather":
        # For an index out of range: -1 among the indices, and gather's fill value among zeros.
        zeros = np.zeros(inputs[0].shape, equation.invars[0].aval.dtype)
        (fills,) = _bound(equation, [zeros, *inputs[1:]], params)
        (moved,) = _bound(equation, [*numbers, *inputs[1:]], dict(params) | {"fill_value": -1})
        pairs = zip(moved.reshape(-1), fills.reshape(-1), strict=True)
        return [from_list([entries[i] if i >= 0 else fill for i, fill in pairs], moved.shape)]
    moved = _bound(equation, [*numbers, *inputs[count:]], params)
    return [from_list([entries[i] for i in m.reshape(-1)], m.shape) for m in moved]
