"""What the equations of a jaxpr say."""

from typing import Any

import numpy as np
from jax.extend.core import Literal


def literal(variable: Any) -> np.ndarray:
    """The value of a literal of a jaxpr."""
    return np.asarray(variable.val, variable.aval.dtype)


def needed_equations(jaxpr: Any, results: Any) -> list[Any]:
    """The equations on which `results` depend."""
    wanted = {v for v in results if not isinstance(v, Literal)}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if any(v in wanted for v in equation.outvars):
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
            equations.append(equation)
    return equations[::-1]


def opened(jaxpr: Any) -> tuple[Any, Any]:
    """A jaxpr and its constants, from a jaxpr with or without them."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())
