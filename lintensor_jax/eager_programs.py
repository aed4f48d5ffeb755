"""`eager_program`: a program that is called with numbers, compiled in less time than by default.

XLA for CPUs compiles every fused operation of a program with LLVM. The last levels of LLVM's
optimisation pay for themselves only in programs that run long or often. In jaxlib 0.10 the default
emitters of fused operations take about twice as long as the older ones; jaxlib 0.11 has no others.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxlib.version import __version_info__ as jaxlib_version

from .eager_vmap import is_untraced, lanes_of_vmap

# Without optimisation Newton's method of Theorem 5 takes 1.6 times as long for 256 numbers, which
# are 0.3 ms.
_MOST_NUMBERS = 2**10
# What runs before and after a flow takes 0.9 to 1.4 times as long for 3,400 and 4,600 numbers, and
# 1.5 times for 8,000. The flow itself takes 2 to 7 times as long as these programs.
MOST_BESIDE_A_FLOW = 2**12
_HAS_OLDER_EMITTERS = jaxlib_version < (0, 11)


def _numbers_of(*arguments: Any, **named: Any) -> int:
    """How many numbers the arrays of the arguments have."""
    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves((arguments, named)))


def eager_program(
    numbers: Callable[..., float] = _numbers_of,
    has_long_loop: bool = False,
    few: int = _MOST_NUMBERS,
) -> Callable[[Callable], Any]:
    """A decorator like `equinox.filter_jit`: a program on a CPU is compiled in less time.

    A program without a long loop is also compiled in less time inside a `jax.vmap` that is called
    outside of `jax.jit`. (With a long loop, later calls would take 1.3 to 1.65 times as long.)
    Inside `jax.jit` and derivatives the function is `equinox.filter_jit`'s.

    - `numbers`: how many numbers the program computes with, from the function's arguments; default:
      those of the arguments.
    - `has_long_loop`: whether the program takes many steps. Programs of few numbers without such a
      loop are not optimised.
    - `few`: up to how many numbers are few.
    """

    def decorate(function):
        @functools.cache
        def program(**options: Any) -> Any:
            settings: Any = {"compiler_options": options or None}
            return eqx.filter_jit(function, **settings)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            lanes = _lanes_with_options((arguments, named), has_long_loop)
            if lanes is None:
                return program()(*arguments, **named)
            has_few_numbers = lanes * numbers(*arguments, **named) <= few
            return program(**_options(has_few_numbers, has_long_loop))(*arguments, **named)

        return call

    return decorate


def _options(few_numbers: bool, has_long_loop: bool) -> dict[str, Any]:
    """XLA's options for a program.

    On level 1 of 3, flows run as long as on level 3 (d = 2 to 100,000), and a first call takes 0.85
    to 0.98 of the core time. With the older emitters, explicit steps of few numbers run as long as
    with the others, and flows of more numbers up to 1.3 times as long. Programs without a long loop
    run as long with both (500 to 130,000 parameters), and are compiled in 0.6 to 0.9 of the time.
    """
    options: dict[str, Any] = {}
    if not jax.config.read("jax_disable_most_optimizations"):  # the user's choice, which is level 0
        options["xla_backend_optimization_level"] = int(has_long_loop or not few_numbers)
    if (few_numbers or not has_long_loop) and _HAS_OLDER_EMITTERS:
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def _lanes_with_options(arguments: Any, has_long_loop: bool) -> int | None:
    """The number of lanes of a program that may have options (1 outside of `jax.vmap`).

    None if it may not have them. JAX must compute on CPUs, and the program must not be a part of
    another one: only whole programs have options.
    """
    if jax.default_backend() != "cpu":
        return None
    if is_untraced():
        return 1
    return None if has_long_loop else lanes_of_vmap(arguments)
