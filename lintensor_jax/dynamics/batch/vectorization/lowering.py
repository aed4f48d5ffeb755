"""Expresses primitives that the evaluators do not know by primitives that they know.

A new version of JAX has new primitives, and a user may define some. JAX itself lowers every
primitive to StableHLO, whose operations are versioned and seldom change. This module translates
these operations to primitives of `jax.lax`.
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_FUNCTIONS: dict[str, Callable] = {
    "abs": lax.abs,
    "add": lax.add,
    "and": lax.bitwise_and,
    "atan2": lax.atan2,
    "ceil": lax.ceil,
    "clamp": lax.clamp,
    "cosine": lax.cos,
    "divide": lax.div,
    "exponential": lax.exp,
    "exponential_minus_one": lax.expm1,
    "floor": lax.floor,
    "is_finite": lax.is_finite,
    "log": lax.log,
    "log_plus_one": lax.log1p,
    "logistic": lax.logistic,
    "maximum": lax.max,
    "minimum": lax.min,
    "multiply": lax.mul,
    "negate": lax.neg,
    "not": lax.bitwise_not,
    "or": lax.bitwise_or,
    "power": lax.pow,
    "remainder": lax.rem,
    "rsqrt": lax.rsqrt,
    "select": lambda which, yes, no: lax.select(which, yes, no),
    "sign": lax.sign,
    "sine": lax.sin,
    "sqrt": lax.sqrt,
    "subtract": lax.sub,
    "tan": lax.tan,
    "tanh": lax.tanh,
    "xor": lax.bitwise_xor,
}
# Operations of the dialect "chlo", which can appear in StableHLO.
_FUNCTIONS |= {
    "chlo.acosh": lax.acosh,
    "chlo.asinh": lax.asinh,
    "chlo.atanh": lax.atanh,
    "chlo.cosh": lax.cosh,
    "chlo.erf": lax.erf,
    "chlo.sinh": lax.sinh,
    "chlo.square": lax.square,
    "chlo.tan": lax.tan,
}
_COMPARISONS = {"EQ": lax.eq, "NE": lax.ne, "LT": lax.lt, "LE": lax.le, "GT": lax.gt, "GE": lax.ge}
_DTYPES = {"f64": "float64", "f32": "float32", "i1": "bool", "i32": "int32", "i64": "int64"}
_DTYPES |= {"i8": "int8", "i16": "int16", "ui8": "uint8", "ui16": "uint16", "ui32": "uint32"}
_DTYPES |= {"ui64": "uint64", "f16": "float16", "bf16": "bfloat16"}


class _UnreadableError(Exception):
    """An operation of StableHLO that this module does not translate."""


def lowered(equation: Any) -> Any | None:
    """A closed jaxpr of other primitives that computes the equation; None if there is none."""
    key = (
        equation.primitive,
        tuple(sorted(equation.params.items(), key=operator.itemgetter(0))),
        tuple((v.aval.shape, v.aval.dtype) for v in equation.invars),
        bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
    )
    try:
        hash(key)
    except TypeError:  # an array among the parameters
        return _lowered(*key)
    return _cached(*key)


def _lowered(primitive, params, kinds, _):
    if any(jnp.issubdtype(dtype, jax.dtypes.extended) for _, dtype in kinds):
        return None  # keys of random numbers
    avals = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]

    def bound(*arguments):
        return primitive.bind(*arguments, **dict(params))

    try:
        program: Any = jax.jit(bound, keep_unused=True).lower(*avals).compiler_ir("stablehlo")
        closed = jax.make_jaxpr(_Reader(program))(*avals)
    except Exception:  # a lowering may raise anything; XLA reports it if the primitive is used
        return None
    # A jaxpr with the same primitive would be no translation.
    again = any(e.primitive is primitive for e in closed.jaxpr.eqns)
    return None if again else closed


_cached = functools.lru_cache(maxsize=1024)(_lowered)


class _Reader:
    """A module of StableHLO as a function of arrays."""

    def __init__(self, module: Any):
        self._functions = {
            function.attributes["sym_name"].value: function for function in module.body.operations
        }

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return self._called("main", arguments)

    def _called(self, name, arguments):
        (block,) = self._functions[name].regions[0].blocks
        return self._block(block, arguments)

    def _block(self, block, arguments) -> tuple[Any, ...]:
        values = dict(zip(block.arguments, arguments, strict=True))
        for operation in block.operations:
            operation = operation.operation
            operands = [values[value] for value in operation.operands]
            if operation.name in ("func.return", "stablehlo.return"):
                return tuple(operands)
            results = self._operation(operation, operands)
            values.update(zip(operation.results, results, strict=True))
        raise _UnreadableError("a block without an end")

    def _operation(self, operation, operands) -> tuple[Any, ...]:
        name, attributes = operation.name.removeprefix("stablehlo."), operation.attributes
        if name in _FUNCTIONS:
            return (_FUNCTIONS[name](*operands),)
        match name:
            case "func.call":
                return self._called(attributes["callee"].value, operands)
            case "composite":
                return self._called(attributes["decomposition"].value, operands)
            case "reduce":
                return self._reduced(operation, operands)
            case "reduce_window" if len(operands) == 2:
                return self._reduced_windows(operation, *operands)
        read = _READERS.get(name)
        if read is None:
            raise _UnreadableError(name)
        (result,) = operation.results
        return (read(result.type, attributes, *operands),)

    def _body(self, operation, left, right) -> tuple[Any, ...]:
        """The scalar function of a reduction, applied to arrays entry by entry."""
        (block,) = operation.regions[0].blocks
        return self._block(block, (*left, *right))

    def _reduced(self, operation, operands) -> tuple[Any, ...]:
        count = len(operands) // 2
        arrays, initial = operands[:count], operands[count:]
        axes = _integers(operation.attributes["dimensions"])
        kept = [i for i in range(arrays[0].ndim) if i not in axes]
        shape = tuple(arrays[0].shape[i] for i in kept)
        arrays = [lax.transpose(a, (*axes, *kept)).reshape(-1, *shape) for a in arrays]
        result = tuple(lax.broadcast(number, shape) for number in initial)
        for i in range(arrays[0].shape[0]):
            place = [lax.index_in_dim(a, i, keepdims=False) for a in arrays]
            result = self._body(operation, result, place)
        return result

    def _reduced_windows(self, operation, array, initial) -> tuple[Any, ...]:
        attributes, axes = operation.attributes, array.ndim

        def of(name, default):
            return _integers(attributes[name]) if name in attributes else [default] * axes

        window, strides = of("window_dimensions", 1), of("window_strides", 1)
        base, apart = of("base_dilations", 1), of("window_dilations", 1)
        edges = _integers(attributes["padding"]) if "padding" in attributes else [0] * 2 * axes
        padding = [(edges[2 * i], edges[2 * i + 1], base[i] - 1) for i in range(axes)]
        array = lax.pad(array, initial, padding)
        shape = tuple(operation.results[0].type.shape)
        result = (lax.broadcast(initial, shape),)
        for place in itertools.product(*map(range, window)):
            begin = [p * a for p, a in zip(place, apart, strict=True)]
            spans = zip(begin, shape, strides, strict=True)
            end = [first + (size - 1) * stride + 1 for first, size, stride in spans]
            result = self._body(operation, result, (lax.slice(array, begin, end, strides),))
        return result


def _integers(attribute) -> list[int]:
    return [int(number) for number in attribute]


def _dtype(kind):
    name = str(kind.element_type)
    if name not in _DTYPES:
        raise _UnreadableError(name)
    return jnp.dtype(_DTYPES[name])


def _constant(kind, attributes):
    value, shape, dtype = attributes["value"], tuple(kind.shape), _dtype(kind)
    if not hasattr(value, "is_splat"):  # large constants are stored elsewhere
        raise _UnreadableError("constant")
    if value.is_splat:
        return lax.full(shape, value.get_splat_value().value, dtype)
    return jnp.asarray(np.reshape(list(value), shape), dtype)


def _compared(kind, attributes, left, right):
    words = str(attributes["comparison_direction"])
    name = next((name for name in _COMPARISONS if name in words.split()[-1]), None)
    if name is None or "TOTALORDER" in str(attributes):
        raise _UnreadableError(words)
    return _COMPARISONS[name](left, right)


def _padded(kind, attributes, array, value):
    names = "edge_padding_low", "edge_padding_high", "interior_padding"
    return lax.pad(array, value, list(zip(*(_integers(attributes[n]) for n in names), strict=True)))


def _sliced(kind, attributes, array):
    names = "start_indices", "limit_indices", "strides"
    return lax.slice(array, *(_integers(attributes[name]) for name in names))


# Arguments of each function: the type of the result, the attributes, the operands.
_READERS: dict[str, Callable] = {
    "bitcast_convert": lambda kind, _, x: lax.bitcast_convert_type(x, _dtype(kind)),
    "broadcast_in_dim": lambda kind, attributes, x: lax.broadcast_in_dim(
        x, tuple(kind.shape), _integers(attributes["broadcast_dimensions"])
    ),
    "compare": _compared,
    "concatenate": lambda kind, attributes, *x: lax.concatenate(
        x, int(attributes["dimension"].value)
    ),
    "constant": _constant,
    "convert": lambda kind, _, x: lax.convert_element_type(x, _dtype(kind)),
    "iota": lambda kind, attributes: lax.broadcasted_iota(
        _dtype(kind), tuple(kind.shape), int(attributes["iota_dimension"].value)
    ),
    "pad": _padded,
    "reshape": lambda kind, _, x: lax.reshape(x, tuple(kind.shape)),
    "reverse": lambda kind, attributes, x: lax.rev(x, _integers(attributes["dimensions"])),
    "round_nearest_even": lambda kind, _, x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "slice": _sliced,
    "transpose": lambda kind, attributes, x: lax.transpose(x, _integers(attributes["permutation"])),
}
