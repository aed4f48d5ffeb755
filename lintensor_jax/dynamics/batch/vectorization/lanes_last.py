"""Functions of one lane, evaluated on whole arrays with the lanes as an additional last axis.

They replace `jax.vmap`, which moves the lanes to the first axis: XLA then transposes between every
two products.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

from .entry_by_entry import CALLS, ELEMENTWISE, REDUCTIONS, called
from .jaxprs import literal


def apply_lanes_last(closed: Any, batched, known, *arguments: Array) -> tuple[Array, ...]:
    """The results of a closed jaxpr, all with lanes.

    `known`: for variables that need not be computed, their values and whether these have lanes.
    """
    (width,) = {a.shape[-1] for a, b in zip(arguments, batched, strict=True) if b}
    given = list(zip(arguments, batched, strict=True))
    results = _evaluate(closed.jaxpr, closed.consts, given, known)
    return tuple(
        value if has_lanes else jnp.broadcast_to(value[..., None], (*value.shape, width))
        for value, has_lanes in results
    )


def _evaluate(jaxpr: Any, constants, arguments, known) -> list[tuple[Any, bool]]:
    """Pairs (value, whether it has lanes); variables in `known` are not computed again."""
    given = [*((constant, False) for constant in constants), *arguments]
    values = known | dict(zip((*jaxpr.constvars, *jaxpr.invars), given, strict=True))
    for equation in jaxpr.eqns:
        if not equation.outvars or equation.outvars[0] in known:
            continue
        inputs = [
            (literal(v), False) if isinstance(v, Literal) else values[v] for v in equation.invars
        ]
        values.update(zip(equation.outvars, _with_lanes_last(equation, inputs), strict=True))
    return [(literal(v), False) if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _with_lanes_last(equation: Any, inputs) -> list[tuple[Array, bool]]:
    name, params = equation.primitive.name, dict(equation.params)
    if not any(has_lanes for _, has_lanes in inputs):
        results = equation.primitive.bind(*(value for value, _ in inputs), **params)
        results = results if equation.primitive.multiple_results else [results]
        return [(result, False) for result in results]
    if name in CALLS:
        inner, constants = called(equation)
        return _evaluate(inner, constants, inputs, {})
    if name in ELEMENTWISE:
        arrays = [value if has_lanes else value[..., None] for value, has_lanes in inputs]
        return [(equation.primitive.bind(*jnp.broadcast_arrays(*arrays), **params), True)]
    if name in REDUCTIONS:
        return [(equation.primitive.bind(inputs[0][0], **params), True)]
    value = inputs[0][0]
    width = next(array.shape[-1] for array, has_lanes in inputs if has_lanes)
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
        case "unstack":
            axis = params["axis"]
            count = len(equation.outvars)
            return [(jax.lax.index_in_dim(value, i, axis, False), True) for i in range(count)]
        case "dot_general" if not params["dimension_numbers"][1][0]:
            dtype = equation.outvars[0].aval.dtype
            if dtype.kind != "b":  # for booleans the sum is "or"
                left, right = ((a.astype(dtype), has_lanes) for a, has_lanes in inputs)
                product = _dot(left, right, params["dimension_numbers"][0])
                return [(product.astype(dtype), True)]  # JAX sums small integers in a wider type
    mapped = jax.vmap(
        functools.partial(equation.primitive.bind, **params),
        in_axes=tuple(-1 if has_lanes else None for _, has_lanes in inputs),
        out_axes=-1,
    )
    results = mapped(*(value for value, _ in inputs))
    return [(r, True) for r in (results if equation.primitive.multiple_results else [results])]


def _dot(left, right, contracted):
    (a, a_lanes), (b, b_lanes) = left, right
    a_axes, b_axes = contracted
    if a_lanes and b_lanes:
        # A small product for every lane: products of entries for all lanes, then a sum.
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
