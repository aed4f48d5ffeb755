"""`small_program`: a program that is called a few times, on few numbers, compiled in less time.

LLVM's optimisation takes 40 to 50 % of the time in which XLA compiles such a program for a CPU. It
pays for itself only in a program that runs long or often.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import get_opaque_trace_state

# Without the optimisation the programs after a flow take as long for 240 numbers, and 1.4 to 1.5
# times as long for 3,000 to 5,000. Newton's method of Theorem 5 takes 1.6 times as long for 256
# numbers, which are 0.3 ms.
_MOST_NUMBERS = 2**10
_LITTLE_OPTIMISATION: Any = {"compiler_options": {"xla_backend_optimization_level": 0}}
_CONVENTION = "lintensor_jax"  # JAX asks for a name
_UNTRACED = get_opaque_trace_state(_CONVENTION)


def small_program(numbers: Callable[..., int]) -> Callable[[Callable], Any]:
    """A decorator like `equinox.filter_jit`: for few numbers on a CPU, with little optimisation.

    `numbers`: how many numbers the program computes with, from the arguments' shapes. Inside
    `jax.jit`, `jax.vmap` and derivatives the function is `equinox.filter_jit`'s.
    """

    def decorate(function):
        optimised: Any = eqx.filter_jit(function)
        quick: Any = eqx.filter_jit(function, **_LITTLE_OPTIMISATION)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            small = _may_have_options() and numbers(*arguments) <= _MOST_NUMBERS
            return (quick if small else optimised)(*arguments)

        return call

    return decorate


def _may_have_options() -> bool:
    """Whether JAX computes on CPUs, and nothing is traced: only whole programs have options."""
    untraced = get_opaque_trace_state(_CONVENTION) == _UNTRACED
    return untraced and jax.default_backend() == "cpu"
