"""The number of arithmetic operations of a jaxpr, counted before it is evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

from .entry_by_entry import ELEMENTWISE, MOVES, REDUCTIONS, called, needed_equations


def count_operations(jaxpr: Any, known: Sequence[bool]) -> tuple[float, list[bool]]:
    """The number of operations on single numbers, and which results are known while tracing.

    Operations that no result depends on are not evaluated and do not count. The number is infinite
    if a primitive is not supported.
    """
    is_known = dict.fromkeys(jaxpr.constvars, True) | dict(zip(jaxpr.invars, known, strict=True))
    total = 0.0
    for equation in needed_equations(jaxpr, jaxpr.outvars):
        name = equation.primitive.name
        given = [isinstance(v, Literal) or is_known[v] for v in equation.invars]
        results = [all(given)] * len(equation.outvars)
        sizes = [int(np.prod(v.aval.shape)) for v in equation.outvars]
        if all(given):
            pass
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * sizes[0] * np.prod([shape[i] for i in contracted])
        elif name in REDUCTIONS:
            total += int(np.prod(equation.invars[0].aval.shape))
        elif name in ELEMENTWISE:
            total += sum(sizes)
        elif name in MOVES and all(given[MOVES[name] or len(given) :]):
            pass
        elif (inner := called(equation)) is not None:
            count, results = count_operations(inner[0], given)
            total += count
        else:
            total = np.inf
        is_known.update(zip(equation.outvars, results, strict=True))
    return float(total), [isinstance(v, Literal) or is_known[v] for v in jaxpr.outvars]
