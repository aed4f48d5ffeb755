"""diffrax's loop, traced without a hundred calls of `nextafter` and without checks at run time.

A step that would end within 100 ulp of t1 ends at t1. `diffrax.diffeqsolve` finds the bound by 100
calls of `equinox.internal.prevbefore` (diffrax 0.7.2). They are written out: 2,400 operations, half
of the program of a small flow. To trace and compile them takes about 0.7 s of core time.

Before diffrax traces its loop, it traces a step twice to learn whether jumps and results are known
while tracing. A step size control with `never_jumps` says so, and this is left out: about half of
the time that tracing a flow takes.

Saved times are checked at run time by a call of Python. JAX keeps no program with such a call in
its cache on disk. The package checks these times itself (`options.py`).
"""

import contextlib
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import diffrax
import diffrax._integrate as diffrax_loop
import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
from jaxtyping import Array

# A step of diffrax's loop.
_STEP = "body_fun_aux"
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


class _WithoutJumps:
    """`equinox`, which knows of a step whose control never jumps that its results are traced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(eqx, name)

    @staticmethod
    def filter_eval_shape(function: Any, *arguments: Any, **options: Any) -> Any:
        """Of a step: whether jumps and results are traced; otherwise as in `equinox`."""
        if getattr(function, "__name__", "") == _STEP:
            # That of this very step: another thread, or a network, may trace a solve of its own.
            control = inspect.getclosurevars(function).nonlocals.get("stepsize_controller")
            if getattr(control, "never_jumps", False):
                return None, False, True
        return eqx.filter_eval_shape(function, *arguments, **options)


def diffeqsolve(*arguments: Any, **options: Any) -> Any:
    """`diffrax.diffeqsolve`, traced in less time; `never_jumps`: see `FlowControl`."""
    with quickly_traced():
        return diffrax.diffeqsolve(*arguments, **options)


@contextlib.contextmanager
def quickly_traced() -> Iterator[None]:
    """While this context is open, `diffrax.diffeqsolve` is traced with these functions.

    The names are replaced in diffrax's module and restored at the end. If another thread traces
    diffrax at the same time, it gets them as well. Then its last step ends at t1 if the step ends
    within 200 ulp of t1, and the order of its saved times is not checked at run time. If diffrax
    has no such names, nothing is replaced.
    """
    replaced: dict[str, Any] = {"eqxi": _QuickInternals(), "eqx": _WithoutJumps()}
    with _lock:
        found = {name: vars(diffrax_loop)[name] for name in replaced if name in vars(diffrax_loop)}
        for name in found:
            setattr(diffrax_loop, name, replaced[name])
        try:
            yield
        finally:
            for name, value in found.items():
                setattr(diffrax_loop, name, value)
