"""One lane's function for many lanes: lanes on the last axis, small arrays as single numbers.

For a function of small arrays, `jax.vmap` gives XLA batches of gathers, concatenations and products
of 2 x 2 matrices. On a CPU they take longer than the arithmetic. The jaxpr of a small function is
therefore evaluated entry by entry: every entry of every array becomes a vector over the lanes,
products are written out, and data are moved while tracing. XLA receives only elementwise arithmetic
on vectors. On sweeps of two-layer networks with d = 2 this was measured to be 1.5 to 4 times faster
than `jax.vmap` with the same stepper (`benchmarks/batched.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array

from .entry_by_entry import Entrywise, assembled, entries_of
from .lanes_last import apply_lanes_last
from .operation_count import count_operations

# Limits of entrywise evaluation: arithmetic operations, and numbers in the first argument. Beyond
# them compilation takes longer than the sweep, and whole arrays are as fast. Entrywise evaluation
# is 1.6 to 2.4 times faster with 8 numbers, and 1.2 to 1.7 times with 16. With 32 it is slower, and
# a stepper takes 6 s to compile instead of 1.3 s. With 64 it takes 28 s and 3 GB.
LARGEST_ENTRYWISE, LARGEST_STATE = 1300, 16


class Lanewise:
    """A function of one lane, evaluated for many lanes at once. Lanes are the last axis.

    Those arguments have lanes for which `batched` is True. Every result has lanes.
    """

    def __init__(self, closed: Any, batched: Sequence[bool]):
        self.closed, self.batched = closed, batched
        self._known: dict[Any, tuple[Array, bool]] = {}
        count, _ = count_operations(closed.jaxpr, [False] * len(closed.jaxpr.invars))
        size = closed.jaxpr.invars[0].aval.size
        self.entrywise = count <= LARGEST_ENTRYWISE and size <= LARGEST_STATE

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        """All results, as arrays with the lanes last."""
        if not self.entrywise:
            return apply_lanes_last(self.closed, self.batched, self._known, *arguments)
        (width,) = {a.shape[-1] for a, b in zip(arguments, self.batched, strict=True) if b}
        given = [entries_of(a, b) for a, b in zip(arguments, self.batched, strict=True)]
        results = Entrywise().evaluate(self.closed.jaxpr, self.closed.consts, given)
        variables = self.closed.jaxpr.outvars
        return tuple(
            assembled(r, width, v.aval.dtype) for r, v in zip(results, variables, strict=True)
        )

    def prepared(self, *shared: Array) -> "Lanewise":
        """This function with transposes of `shared` arrays computed now, outside of the loops.

        Otherwise XLA merges a transpose with the product that uses it, and small products with a
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


def lanewise(function: Callable, examples: Sequence[Any], batched: Sequence[bool]) -> Lanewise:
    """`function` for many lanes at once.

    **Arguments**

    - `function`: a function of arrays of one lane, which returns a tuple of arrays.
    - `examples`: its arguments for one lane, as arrays or `jax.ShapeDtypeStruct`.
    - `batched`: which arguments have lanes; all lanes share the others.
    """
    return Lanewise(jax.make_jaxpr(function)(*examples), batched)
