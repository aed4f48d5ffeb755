"""Functions of one lane, entry by entry: every entry of every array is a vector over the lanes.

Values are NumPy arrays: of numbers where they are known while tracing, else of dtype object, whose
entries are vectors over the lanes (or scalars, for what all lanes share).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array

CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat"}
# Data movement, with the number of operands that are moved (the others say where to; None: all).
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
    "transpose": 1,
}
REDUCTIONS: dict[str, Callable] = {
    "reduce_sum": lambda a, b: _add(a, b),
    "reduce_prod": lambda a, b: _multiply(a, b),
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.logical_and,
    "reduce_or": jnp.logical_or,
}
ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "convert_element_type", "cos"),
    *("cosh", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg"),
    *("not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt"),
    *("square", "stop_gradient", "sub", "tan", "tanh", "xor", "asinh", "acosh", "atanh"),
}


def literal(variable: Any) -> Array:
    """The number that a jaxpr holds."""
    with jax.ensure_compile_time_eval():
        return jnp.asarray(variable.val, variable.aval.dtype)


def called(equation):
    """The jaxpr that an equation calls, and its constants."""
    params = equation.params
    inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


def entries_of(array: Array, batched: bool) -> np.ndarray:
    """The entries of an array, whose last axis are lanes if `batched`."""
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
    # Entry by entry: NumPy would try to look into the entries.
    array = np.empty(shape, object)
    flat = array.reshape(-1)
    for i, value in enumerate(values):
        flat[i] = value
    return array


def _is_known(value: np.ndarray) -> bool:
    return value.dtype != object


def _lifted(value: np.ndarray) -> np.ndarray:
    return from_list(list(value.reshape(-1)), value.shape) if _is_known(value) else value


def _is_number(value, number) -> bool:
    return isinstance(value, np.generic) and value == number


def _add(a, b):
    return b if _is_number(a, 0) else a if _is_number(b, 0) else a + b


def _multiply(a, b):
    if _is_number(a, 0) or _is_number(b, 0):
        return a if _is_number(a, 0) else b
    return b if _is_number(a, 1) else a if _is_number(b, 1) else a * b


def evaluate_entrywise(jaxpr: Any, constants, arguments) -> list[np.ndarray]:
    """The results of a jaxpr, from the entries of its arguments."""
    values: dict[Any, np.ndarray] = {}

    def read(variable):
        if isinstance(variable, Literal):
            return np.asarray(literal(variable))
        return values[variable]

    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known = not isinstance(constant, Tracer)
        values[variable] = np.asarray(constant) if known else entries_of(constant, False)
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        values.update(zip(equation.outvars, _equation(equation, inputs), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(equation: Any, inputs) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if all(_is_known(value) for value in inputs):
        return _bound(equation, inputs, params)
    if name in CALLS:
        inner, constants = called(equation)
        return evaluate_entrywise(inner, constants, inputs)
    if name in MOVES:
        return _moved(equation, inputs)
    if name == "dot_general":
        a, b = (_lifted(value) for value in inputs)
        return [_dot(a, b, params["dimension_numbers"][0])]
    if name in REDUCTIONS:
        return [_reduced(REDUCTIONS[name], inputs[0], params["axes"])]
    special = {"add": _add, "add_any": _add, "mul": _multiply}.get(name)

    def of_entries(*entries):
        if special is not None:
            return special(*entries)
        arrays = [
            jnp.asarray(entry, v.aval.dtype)
            for entry, v in zip(entries, equation.invars, strict=True)
        ]
        return equation.primitive.bind(*jnp.broadcast_arrays(*arrays), **params)

    inputs = np.broadcast_arrays(*(_lifted(value) for value in inputs))
    flat = zip(*(value.reshape(-1) for value in inputs), strict=True)
    return [from_list([of_entries(*entries) for entries in flat], inputs[0].shape)]


def _bound(equation, inputs, params) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*(jnp.asarray(value) for value in inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [np.asarray(result) for result in results]


def _moved(equation, inputs) -> list[np.ndarray]:
    """Moves the numbers 0, 1, 2, ... of the entries instead of the entries."""
    count = MOVES[equation.primitive.name] or len(inputs)
    entries, numbers = [], []
    for value in inputs[:count]:
        numbers.append(np.arange(value.size).reshape(value.shape) + len(entries))
        entries += list(value.reshape(-1))
    params = dict(equation.params)
    if equation.primitive.name == "gather":
        params["fill_value"] = -1  # an index out of range: NaN, as gather has it
        entries.append(np.float64(np.nan))
    moved = _bound(equation, [*numbers, *inputs[count:]], params)
    return [from_list([entries[i] for i in m.reshape(-1)], m.shape) for m in moved]


def _dot(a: np.ndarray, b: np.ndarray, contracted) -> np.ndarray:
    left, right = contracted
    a = np.moveaxis(a, left, range(a.ndim - len(left), a.ndim))
    b = np.moveaxis(b, right, range(len(right)))
    rows, columns = a.shape[: a.ndim - len(left)], b.shape[len(right) :]
    length = int(np.prod(b.shape[: len(right)]))
    a, b = a.reshape(-1, length), b.reshape(length, -1)
    products = [functools.reduce(_add, map(_multiply, row, column)) for row in a for column in b.T]
    return from_list(products, rows + columns)


def _reduced(operation, value, axes) -> np.ndarray:
    value = np.moveaxis(_lifted(value), axes, range(len(axes)))
    kept = value.shape[len(axes) :]
    columns = value.reshape(-1, int(np.prod(kept))).T
    return from_list([functools.reduce(operation, list(column)) for column in columns], kept)
