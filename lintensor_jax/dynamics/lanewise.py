"""One lane's function for many lanes: lanes on the last axis, small arrays as single numbers.

`jax.vmap` of a function of small arrays leaves XLA with gathers, concatenations and products of
2 x 2 matrices, a batch of each; on a CPU they cost more than the arithmetic. Where a function is
small enough its jaxpr is evaluated entry by entry instead: every entry of every array becomes a
vector over the lanes, products are written out, and moving data around is done while tracing. What
XLA sees is elementwise arithmetic on vectors. Measured on sweeps of two-layer networks with d = 2:
1.5 to 4 times faster than `jax.vmap`, with the same stepper around it (`benchmarks/batched.py`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal
from jaxtyping import Array, Float

# Entrywise evaluation up to this many arithmetic operations: beyond, compilation takes longer than
# the sweep, and `jax.vmap`'s matrix products are efficient.
LARGEST_ENTRYWISE = 1300

_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat"}
# Data movement, with the number of operands that are moved (the others say where to; None: all).
_MOVES: dict[str, int | None] = {
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
_REDUCTIONS: dict[str, Callable] = {
    "reduce_sum": lambda a, b: _add(a, b),
    "reduce_prod": lambda a, b: _multiply(a, b),
    "reduce_max": jnp.maximum,
    "reduce_min": jnp.minimum,
    "reduce_and": jnp.logical_and,
    "reduce_or": jnp.logical_or,
}
_ELEMENTWISE = {
    *("abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "convert_element_type", "cos"),
    *("cosh", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow"),
    *("is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg"),
    *("not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt"),
    *("square", "stop_gradient", "sub", "tan", "tanh", "xor", "asinh", "acosh", "atanh"),
}


class Lanewise:
    """A function of one lane, for many at once, whose axis is the last one.

    Call it with arrays that have lanes (or have not, as `batched` says): every result has lanes.
    A stepper may keep its state in rows: one array (q, W), or, where the function is evaluated
    entry by entry, q arrays (W,). Kernels that are dispatched one by one want few arrays; a single
    kernel for everything spends more time on stacking numbers than on arithmetic with them.
    """

    def __init__(self, closed: Any, batched: Sequence[bool]):
        self.closed, self.batched = closed, batched
        self._known: dict[Any, tuple[Array, bool]] = {}
        count, _ = _operations(closed.jaxpr, [False] * len(closed.jaxpr.invars))
        self.entrywise = count <= LARGEST_ENTRYWISE

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        """All results, as arrays."""
        if not self.entrywise:
            return _apply_trailing(self.closed, self.batched, self._known, *arguments)
        (width,) = {a.shape[-1] for a, b in zip(arguments, self.batched, strict=True) if b}
        results = _evaluate(self.closed.jaxpr, self.closed.consts, self._entries_of(arguments))
        return self._assembled(results, width)

    def prepared(self, *shared: Array) -> "Lanewise":
        """The same, with what depends on no lane computed now: outside of loops that call it.

        XLA would take a transpose into the product that it is for, and small products with a
        transposed matrix take twice the time.
        """
        found = Lanewise(self.closed, self.batched)
        jaxpr = self.closed.jaxpr
        given = [v for v, lanes in zip(jaxpr.invars, self.batched, strict=True) if not lanes]
        known = dict(zip(given, shared, strict=True))
        known |= dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
        for equation in jaxpr.eqns:
            if equation.primitive.name == "transpose" and equation.invars[0] in known:
                (variable,) = equation.outvars
                value = known[equation.invars[0]]
                known[variable] = equation.primitive.bind(value, **equation.params)
                found._known[variable] = known[variable], False
        return found

    def on_rows(self, rows: Sequence[Array], *others: Array) -> tuple[Any, ...]:
        """The same with the first argument and the first result in rows."""
        if rows[0].ndim == 2:
            first, *rest = self(rows[0], *others)
            return (first,), *rest
        width = rows[0].shape[-1]
        given = [_from_list(list(rows), (len(rows),)), *self._entries_of(others, 1)]
        first, *rest = _evaluate(self.closed.jaxpr, self.closed.consts, given)
        dtype = self.closed.jaxpr.outvars[0].aval.dtype
        full = tuple(jnp.broadcast_to(jnp.asarray(v, dtype), (width,)) for v in first.reshape(-1))
        return full, *self._assembled(rest, width, 1)

    def rows(self, state: Float[Array, "q W"]) -> tuple[Array, ...]:
        """The rows of a state."""
        return tuple(state[i] for i in range(state.shape[0])) if self.entrywise else (state,)

    def joined(self, rows: Sequence[Array]) -> Float[Array, "q W"]:
        """The state of these rows."""
        return rows[0] if rows[0].ndim == 2 else jnp.stack(rows)

    def _entries_of(self, arguments, skipped=0):
        return [_entries(a, b) for a, b in zip(arguments, self.batched[skipped:], strict=True)]

    def _assembled(self, results, width, skipped=0):
        variables = self.closed.jaxpr.outvars[skipped:]
        return tuple(
            _assembled(r, width, v.aval.dtype) for r, v in zip(results, variables, strict=True)
        )


def lanewise(function: Callable, examples: Sequence[Any], batched: Sequence[bool]) -> Lanewise:
    """`function` for many lanes at once.

    **Arguments**

    - `function`: arrays -> a tuple of arrays; one lane.
    - `examples`: its arguments for one lane, as arrays or `jax.ShapeDtypeStruct`.
    - `batched`: which arguments have lanes; the others are shared by all.
    """
    return Lanewise(jax.make_jaxpr(function)(*examples), batched)


def _operations(jaxpr: Any, known: Sequence[bool]) -> tuple[float, list[bool]]:
    """How many operations on single numbers, and which results are known while tracing.

    Infinite where some primitive is not known here.
    """
    is_known = dict.fromkeys(jaxpr.constvars, True) | dict(zip(jaxpr.invars, known, strict=True))
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        given = [isinstance(v, Literal) or is_known[v] for v in equation.invars]
        results = [all(given)] * len(equation.outvars)
        sizes = [int(np.prod(v.aval.shape)) for v in equation.outvars]
        if all(given):
            pass
        elif name in _CALLS:
            inner, results = _operations(_called(equation)[0], given)
            total += inner
        elif name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += np.inf if batch else 2 * sizes[0] * np.prod([shape[i] for i in contracted])
        elif name in _REDUCTIONS:
            total += int(np.prod(equation.invars[0].aval.shape))
        elif name in _ELEMENTWISE:
            total += sum(sizes)
        elif name not in _MOVES or not all(given[_MOVES[name] or len(given) :]):
            total = np.inf
        is_known.update(zip(equation.outvars, results, strict=True))
    return float(total), [isinstance(v, Literal) or is_known[v] for v in jaxpr.outvars]


def _literal(variable: Any) -> Array:
    with jax.ensure_compile_time_eval():
        return jnp.asarray(variable.val, variable.aval.dtype)


def _called(equation):
    params = equation.params
    inner = params.get("jaxpr") or params.get("call_jaxpr") or params.get("fun_jaxpr")
    return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())


# Values are NumPy arrays: of numbers where they are known while tracing, else of dtype object,
# whose entries are vectors over the lanes (or scalars, for what all lanes share).


def _entries(array: Array, batched: bool) -> np.ndarray:
    shape = array.shape[:-1] if batched else array.shape
    flat = array.reshape(-1, array.shape[-1]) if batched else array.reshape(-1)
    return _from_list([flat[i] for i in range(flat.shape[0])], shape)


def _assembled(value: np.ndarray, width: int, dtype) -> Array:
    rows = [jnp.broadcast_to(jnp.asarray(v, dtype), (width,)) for v in value.reshape(-1)]
    if value.ndim == 0:
        return rows[0]
    return jnp.stack(rows).reshape(*value.shape, width)


def _from_list(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    # Entry by entry: NumPy would try to look into the entries.
    array = np.empty(shape, object)
    flat = array.reshape(-1)
    for i, value in enumerate(values):
        flat[i] = value
    return array


def _is_known(value: np.ndarray) -> bool:
    return value.dtype != object


def _lifted(value: np.ndarray) -> np.ndarray:
    return _from_list(list(value.reshape(-1)), value.shape) if _is_known(value) else value


def _is_number(value, number) -> bool:
    return isinstance(value, np.generic) and value == number


def _add(a, b):
    return b if _is_number(a, 0) else a if _is_number(b, 0) else a + b


def _multiply(a, b):
    if _is_number(a, 0) or _is_number(b, 0):
        return a if _is_number(a, 0) else b
    return b if _is_number(a, 1) else a if _is_number(b, 1) else a * b


def _evaluate(jaxpr: Any, constants, arguments) -> list[np.ndarray]:
    values: dict[Any, np.ndarray] = {}

    def read(variable):
        if isinstance(variable, Literal):
            return np.asarray(_literal(variable))
        return values[variable]

    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known = not isinstance(constant, Tracer)
        values[variable] = np.asarray(constant) if known else _entries(constant, False)
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        values.update(zip(equation.outvars, _equation(equation, inputs), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _equation(equation: Any, inputs) -> list[np.ndarray]:
    name, params = equation.primitive.name, equation.params
    if all(_is_known(value) for value in inputs):
        return _bound(equation, inputs, params)
    if name in _CALLS:
        inner, constants = _called(equation)
        return _evaluate(inner, constants, inputs)
    if name in _MOVES:
        return _moved(equation, inputs)
    if name == "dot_general":
        a, b = (_lifted(value) for value in inputs)
        return [_dot(a, b, params["dimension_numbers"][0])]
    if name in _REDUCTIONS:
        return [_reduced(_REDUCTIONS[name], inputs[0], params["axes"])]
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
    return [_from_list([of_entries(*entries) for entries in flat], inputs[0].shape)]


def _bound(equation, inputs, params) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*(jnp.asarray(value) for value in inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [np.asarray(result) for result in results]


def _moved(equation, inputs) -> list[np.ndarray]:
    """Moves the numbers 0, 1, 2, ... of the entries instead of the entries."""
    count = _MOVES[equation.primitive.name] or len(inputs)
    entries, numbers = [], []
    for value in inputs[:count]:
        numbers.append(np.arange(value.size).reshape(value.shape) + len(entries))
        entries += list(value.reshape(-1))
    params = dict(equation.params)
    if equation.primitive.name == "gather":
        params["fill_value"] = -1  # an index out of range: NaN, as gather has it
        entries.append(np.float64(np.nan))
    moved = _bound(equation, [*numbers, *inputs[count:]], params)
    return [_from_list([entries[i] for i in m.reshape(-1)], m.shape) for m in moved]


def _dot(a: np.ndarray, b: np.ndarray, contracted) -> np.ndarray:
    left, right = contracted
    a = np.moveaxis(a, left, range(a.ndim - len(left), a.ndim))
    b = np.moveaxis(b, right, range(len(right)))
    rows, columns = a.shape[: a.ndim - len(left)], b.shape[len(right) :]
    length = int(np.prod(b.shape[: len(right)]))
    a, b = a.reshape(-1, length), b.reshape(length, -1)
    products = [functools.reduce(_add, map(_multiply, row, column)) for row in a for column in b.T]
    return _from_list(products, rows + columns)


def _reduced(operation, value, axes) -> np.ndarray:
    value = np.moveaxis(_lifted(value), axes, range(len(axes)))
    kept = value.shape[len(axes) :]
    columns = value.reshape(-1, int(np.prod(kept))).T
    return _from_list([functools.reduce(operation, list(column)) for column in columns], kept)


# Larger functions: arrays stay whole, with the lanes as one more axis at the end. `jax.vmap` would
# bring them to the front, and XLA would transpose back and forth between every two products.


def _apply_trailing(closed, batched, known, *arguments):
    (width,) = {a.shape[-1] for a, b in zip(arguments, batched, strict=True) if b}
    given = list(zip(arguments, batched, strict=True))
    results = _evaluate_trailing(closed.jaxpr, closed.consts, given, known)
    return tuple(
        value if has_lanes else jnp.broadcast_to(value[..., None], (*value.shape, width))
        for value, has_lanes in results
    )


def _evaluate_trailing(jaxpr: Any, constants, arguments, known) -> list[tuple[Array, bool]]:
    """Values with whether they have lanes; those in `known` are not computed again."""
    given = [*((constant, False) for constant in constants), *arguments]
    values = known | dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))
    for equation in jaxpr.eqns:
        if equation.outvars[0] in known:
            continue
        inputs = [
            (_literal(v), False) if isinstance(v, Literal) else values[v] for v in equation.invars
        ]
        values.update(zip(equation.outvars, _trailing(equation, inputs), strict=True))
    return [(_literal(v), False) if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _trailing(equation: Any, inputs) -> list[tuple[Array, bool]]:
    name, params = equation.primitive.name, dict(equation.params)
    if not any(has_lanes for _, has_lanes in inputs):
        results = equation.primitive.bind(*(value for value, _ in inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [(result, False) for result in results]
    if name in _CALLS:
        inner, constants = _called(equation)
        return _evaluate_trailing(inner, constants, inputs, {})
    if name in _ELEMENTWISE:
        arrays = [value if has_lanes else value[..., None] for value, has_lanes in inputs]
        return [(equation.primitive.bind(*jnp.broadcast_arrays(*arrays), **params), True)]
    if name in _REDUCTIONS:
        return [(equation.primitive.bind(inputs[0][0], **params), True)]
    value = inputs[0][0]
    width = value.shape[-1]
    match name:
        case "reshape":
            return [(value.reshape(*params["new_sizes"], width), True)]
        case "transpose":
            order = (*params["permutation"], value.ndim - 1)
            return [(jnp.transpose(value, order), True)]
        case "squeeze":
            return [(jax.lax.squeeze(value, params["dimensions"]), True)]
        case "broadcast_in_dim":
            places = (*params["broadcast_dimensions"], len(params["shape"]))
            return [(jax.lax.broadcast_in_dim(value, (*params["shape"], width), places), True)]
        case "slice":
            strides = params["strides"]
            return [
                (
                    jax.lax.slice(
                        value,
                        (*params["start_indices"], 0),
                        (*params["limit_indices"], width),
                        None if strides is None else (*strides, 1),
                    ),
                    True,
                )
            ]
        case "concatenate" | "stack" | "split" if all(has_lanes for _, has_lanes in inputs):
            results = equation.primitive.bind(*(value for value, _ in inputs), **params)
            return [(r, True) for r in (results if name == "split" else [results])]
        case "dot_general" if not params["dimension_numbers"][1][0]:
            left, right = inputs
            return [(_dot_trailing(left, right, params["dimension_numbers"][0]), True)]
    mapped = jax.vmap(
        functools.partial(equation.primitive.bind, **params),
        in_axes=tuple(-1 if has_lanes else None for _, has_lanes in inputs),
        out_axes=-1,
    )
    results = mapped(*(value for value, _ in inputs))
    return [(r, True) for r in (results if equation.primitive.multiple_results else [results])]


def _dot_trailing(left, right, contracted):
    (a, a_lanes), (b, b_lanes) = left, right
    a_axes, b_axes = contracted
    if a_lanes and b_lanes:
        # A small product for every lane: elementwise over the lanes, then a sum.
        a_kept = [i for i in range(a.ndim - 1) if i not in a_axes]
        b_kept = [i for i in range(b.ndim - 1) if i not in b_axes]
        a = jnp.transpose(a, (*a_axes, *a_kept, a.ndim - 1))
        b = jnp.transpose(b, (*b_axes, *b_kept, b.ndim - 1))
        summed = tuple(range(len(a_axes)))
        a = jnp.expand_dims(a, tuple(range(a.ndim - 1, a.ndim - 1 + len(b_kept))))
        b = jnp.expand_dims(b, tuple(range(len(b_axes), len(b_axes) + len(a_kept))))
        return jnp.sum(a * b, axis=summed)
    if b_lanes:
        return jnp.tensordot(a, b, (a_axes, b_axes))
    product = jnp.tensordot(b, a, (b_axes, a_axes))  # b's axes, then a's, then the lanes
    kept = b.ndim - len(b_axes)
    return jnp.moveaxis(product, range(kept), range(product.ndim - 1 - kept, product.ndim - 1))
