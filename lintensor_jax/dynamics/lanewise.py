"""One lane's function for many lanes: lanes on the last axis, small arrays as single numbers.

`jax.vmap` of a function of small arrays leaves XLA with gathers, concatenations and products of
2 x 2 matrices, a batch of each; on a CPU they cost more than the arithmetic. Where a function is
small enough its jaxpr is evaluated entry by entry instead: every entry of every array becomes a
vector over the lanes, products are written out, and moving data around is done while tracing. What
XLA sees is elementwise arithmetic on vectors. Measured on sweeps of two-layer networks with d = 2:
1.5 to 4 times faster than `jax.vmap`, with the same stepper around it (`benchmarks/batched.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Float

from .entrywise import (
    CALLS,
    ELEMENTWISE,
    MOVES,
    REDUCTIONS,
    assembled,
    called,
    entries_of,
    evaluate_entrywise,
    from_list,
)
from .trailing import apply_trailing

# Entrywise evaluation up to this many arithmetic operations, and numbers in the first argument:
# beyond, compilation takes longer than the sweep, and whole arrays are as fast. With 8 numbers
# entries are 1.6 to 2.4 times faster, with 16 they are 1.2 to 1.7 times; with 32 slower, and a
# stepper takes 6 s to compile instead of 1.3; with 64, 28 s and 3 GB.
LARGEST_ENTRYWISE, LARGEST_STATE = 1300, 16


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
        size = closed.jaxpr.invars[0].aval.size
        self.entrywise = count <= LARGEST_ENTRYWISE and size <= LARGEST_STATE

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        """All results, as arrays."""
        if not self.entrywise:
            return apply_trailing(self.closed, self.batched, self._known, *arguments)
        (width,) = {a.shape[-1] for a, b in zip(arguments, self.batched, strict=True) if b}
        given = self._entries_of(arguments)
        results = evaluate_entrywise(self.closed.jaxpr, self.closed.consts, given)
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
        given = [from_list(list(rows), (len(rows),)), *self._entries_of(others, 1)]
        first, *rest = evaluate_entrywise(self.closed.jaxpr, self.closed.consts, given)
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
        return [entries_of(a, b) for a, b in zip(arguments, self.batched[skipped:], strict=True)]

    def _assembled(self, results, width, skipped=0):
        variables = self.closed.jaxpr.outvars[skipped:]
        return tuple(
            assembled(r, width, v.aval.dtype) for r, v in zip(results, variables, strict=True)
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
        elif name in CALLS:
            inner, results = _operations(called(equation)[0], given)
            total += inner
        elif name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += np.inf if batch else 2 * sizes[0] * np.prod([shape[i] for i in contracted])
        elif name in REDUCTIONS:
            total += int(np.prod(equation.invars[0].aval.shape))
        elif name in ELEMENTWISE:
            total += sum(sizes)
        elif name not in MOVES or not all(given[MOVES[name] or len(given) :]):
            total = np.inf
        is_known.update(zip(equation.outvars, results, strict=True))
    return float(total), [isinstance(v, Literal) or is_known[v] for v in jaxpr.outvars]
