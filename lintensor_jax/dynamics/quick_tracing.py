"""diffrax's loop, traced without a hundred calls of `nextafter`.

A step that would end within 100 ulp of t1 ends at t1. `diffrax.diffeqsolve` finds the bound by 100
calls of `equinox.internal.prevbefore` (diffrax 0.7.2). They are written out: 2,400 operations, half
of the program of a small flow. To trace and compile them takes about 0.7 s of core time.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import diffrax
import diffrax._integrate as diffrax_loop
import equinox.internal as eqxi
import jax.numpy as jnp
from jaxtyping import Array

# By which diffrax's loop calls equinox.internal.
_NAME = "eqxi"
_lock = threading.RLock()


class _QuickInternals:
    """`equinox.internal` with a `prevbefore` of three operations: at most 2 ulp below."""

    def __getattr__(self, name: str) -> Any:
        return getattr(eqxi, name)

    @staticmethod
    def prevbefore(time: Array) -> Array:
        """time - eps |time|."""
        return time - jnp.finfo(time.dtype).eps * jnp.abs(time)


def diffeqsolve(*arguments: Any, **options: Any) -> Any:
    """`diffrax.diffeqsolve`, traced in less time."""
    with quickly_traced():
        return diffrax.diffeqsolve(*arguments, **options)


@contextlib.contextmanager
def quickly_traced() -> Iterator[None]:
    """While this context is open, `diffrax.diffeqsolve` is traced with the short `prevbefore`.

    The name is replaced in diffrax's module and restored at the end. If another thread traces
    diffrax at the same time, it gets the short function as well. Then its last step ends at t1 if
    the step ends within 200 ulp of t1. If diffrax has no such name, nothing is replaced.
    """
    with _lock:
        found: Any = getattr(diffrax_loop, _NAME, None)
        if found is None:
            yield
            return
        setattr(diffrax_loop, _NAME, _QuickInternals())
        try:
            yield
        finally:
            setattr(diffrax_loop, _NAME, found)
