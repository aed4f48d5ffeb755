"""diffrax's loop, traced without a hundred calls of `nextafter` and without checks at run time.

A step that would end within 100 ulp of t1 ends at t1. `diffrax.diffeqsolve` finds the bound by 100
calls of `equinox.internal.prevbefore` (diffrax 0.7.2). They are written out: 2,400 operations, half
of the program of a small flow. To trace and compile them takes about 0.7 s of core time.

Saved times are checked at run time by a call of Python. JAX keeps no program with such a call in
its cache on disk. The package checks these times itself (`options.py`).
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
    """`equinox.internal` with a short `prevbefore`, and with checks that do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(eqxi, name)

    @staticmethod
    def prevbefore(time: Array) -> Array:
        """time - eps |time|: at most 2 ulp below."""
        return time - jnp.finfo(time.dtype).eps * jnp.abs(time)

    @staticmethod
    def error_if(value: Any, failed: Any, message: str) -> Any:
        """The value, unchecked."""
        return value


def diffeqsolve(*arguments: Any, **options: Any) -> Any:
    """`diffrax.diffeqsolve`, traced in less time."""
    with quickly_traced():
        return diffrax.diffeqsolve(*arguments, **options)


@contextlib.contextmanager
def quickly_traced() -> Iterator[None]:
    """While this context is open, `diffrax.diffeqsolve` is traced with these functions.

    The name is replaced in diffrax's module and restored at the end. If another thread traces
    diffrax at the same time, it gets them as well. Then its last step ends at t1 if the step ends
    within 200 ulp of t1, and the order of its saved times is not checked at run time. If diffrax
    has no such name, nothing is replaced.
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
