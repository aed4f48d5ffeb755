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
from jaxtyping import Array

from .entry_by_entry import Entrywise, assembled, entries_of
from .lanes_last import apply_trailing
from .operation_count import count_operations

# Entrywise evaluation up to this many arithmetic operations, and numbers in the first argument:
# beyond, compilation takes longer than the sweep, and whole arrays are as fast. With 8 numbers
# entries are 1.6 to 2.4 times faster, with 16 they are 1.2 to 1.7 times; with 32 slower, and a
# stepper takes 6 s to compile instead of 1.3; with 64, 28 s and 3 GB.
LARGEST_ENTRYWISE, LARGEST_STATE = 1300, 16


class Lanewise:
    """A function of one lane, for many at once, whose axis is the last one.

    Call it with arrays that have lanes (or have not, as `batched` says): every result has lanes.
    """

    def __init__(self, closed: Any, batched: Sequence[bool]):
        self.closed, self.batched = closed, batched
        self._known: dict[Any, tuple[Array, bool]] = {}
        count, _ = count_operations(closed.jaxpr, [False] * len(closed.jaxpr.invars))
        size = closed.jaxpr.invars[0].aval.size
        self.entrywise = count <= LARGEST_ENTRYWISE and size <= LARGEST_STATE

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        """All results, as arrays."""
        if not self.entrywise:
            return apply_trailing(self.closed, self.batched, self._known, *arguments)
        (width,) = {a.shape[-1] for a, b in zip(arguments, self.batched, strict=True) if b}
        given = [entries_of(a, b) for a, b in zip(arguments, self.batched, strict=True)]
        results = Entrywise().evaluate(self.closed.jaxpr, self.closed.consts, given)
        variables = self.closed.jaxpr.outvars
        return tuple(
            assembled(r, width, v.aval.dtype) for r, v in zip(results, variables, strict=True)
        )

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


def lanewise(function: Callable, examples: Sequence[Any], batched: Sequence[bool]) -> Lanewise:
    """`function` for many lanes at once.

    **Arguments**

    - `function`: arrays -> a tuple of arrays; one lane.
    - `examples`: its arguments for one lane, as arrays or `jax.ShapeDtypeStruct`.
    - `batched`: which arguments have lanes; the others are shared by all.
    """
    return Lanewise(jax.make_jaxpr(function)(*examples), batched)
