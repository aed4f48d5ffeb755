"""The number of arithmetic operations of a jaxpr, counted before it is evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

from .entry_by_entry import ELEMENTWISE, MOVES, REDUCTIONS, called
from .jaxprs import needed_equations, opened


def count_operations(
    jaxpr: Any, known: Sequence[bool], shortest: int | None = None, entries: int | None = None
) -> tuple[float, list[bool]]:
    """The number of operations on single numbers, and which results are known while tracing.

    `shortest`: arrays of at least so many entries count as one number, because an operation on them
    is a loop. None: there are no loops.

    `entries`: a loop counts once more for every so many entries. Both branches of a `cond` count,
    all iterations of a `scan`, and all terms of a `scatter-add`. None: nothing of this counts.

    Operations that no result depends on are not evaluated and do not count. The number is infinite
    if this function cannot count a primitive.
    """

    def length(count: int) -> int:
        if shortest is None or count < shortest:
            return count
        return 1 if entries is None else 1 + count // entries

    is_known = dict.fromkeys(jaxpr.constvars, True) | dict(zip(jaxpr.invars, known, strict=True))
    total = 0.0
    for equation in needed_equations(jaxpr, jaxpr.outvars):
        name = equation.primitive.name
        given = [isinstance(v, Literal) or is_known[v] for v in equation.invars]
        results = [all(given)] * len(equation.outvars)
        sizes = [length(int(np.prod(v.aval.shape))) for v in equation.outvars]
        if all(given):
            pass
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            terms = int(np.prod([shape[i] for i in contracted]))
            outputs = equation.outvars[0].aval.size
            # A loop over the results, or else over the terms.
            total += 2 * sizes[0] * (terms if sizes[0] < outputs else length(terms))
        elif name in REDUCTIONS:
            total += length(int(np.prod(equation.invars[0].aval.shape)))
        elif name in ELEMENTWISE:
            total += sum(sizes)
        elif name in MOVES and all(given[MOVES[name] or len(given) :]):
            pass
        elif name == "cond" and entries is not None:
            for branch in equation.params["branches"]:
                total += count_operations(branch.jaxpr, given[1:], shortest, entries)[0]
        elif name == "scan" and entries is not None:
            inner, _ = opened(equation.params["jaxpr"])
            once, _ = count_operations(inner, [False] * len(given), shortest, entries)
            total += equation.params["length"] * once
        elif name == "scatter-add" and entries is not None:
            total += equation.invars[2].aval.size
        elif (inner := called(equation)) is not None:
            count, results = count_operations(inner[0], given, shortest, entries)
            total += count
        else:
            total = np.inf
        is_known.update(zip(equation.outvars, results, strict=True))
    return float(total), [isinstance(v, Literal) or is_known[v] for v in jaxpr.outvars]
