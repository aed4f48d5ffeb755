"""Tolerances of `limit_direction`: of its flows, and of its certificates."""

import jax.numpy as jnp

from ..arguments import as_number
from ..eager_programs import eager_program
from ..networks.pair import check_pair, same_dtype

_RTOL = 1e-6
_LEAST_RTOL = 1e-12
# In roundings of the dtype: the smallest tolerance of a flow, and the smallest default of
# certificates.
_SMALLEST_ULPS, _REACHED_ULPS = 64, 1024
_TOLERANCE = 1e-10


def rtol_of(network, problem):
    """The tolerance of the flow; for large margins the effect on the softmax is margin * rtol."""
    check_pair(network, problem)
    largest = float(_largest_margin(network, problem))
    dtype = same_dtype(network, problem)[1].X.dtype
    wanted = _RTOL if largest * _RTOL < 0.1 else max(0.1 / largest, _LEAST_RTOL)
    return max(wanted, _SMALLEST_ULPS * float(jnp.finfo(dtype).eps))


@eager_program()
def _largest_margin(network, problem):
    return jnp.max(jnp.abs(problem.margins(network.linear_coefficients())))


def rtol_of_dtype(dtype):
    """The relative tolerance of steps: 1e-6, or 64 roundings of the dtype if this is larger."""
    return max(_RTOL, _SMALLEST_ULPS * float(jnp.finfo(dtype).eps))


def require_tolerance(tolerance):
    """Raise ValueError unless the tolerance of the certificates is None or between 0 and 1."""
    if tolerance is not None and not 0 < as_number(tolerance, "tolerance", "limit_direction") < 1:
        raise ValueError(
            f"limit_direction: tolerance must lie strictly between 0 and 1, got {tolerance!r}; "
            "leave it out for the default."
        )


def certificate_tolerance(tolerance, dtype) -> float:
    """The tolerance of the certificates; the default is max(1e-10, 1024 roundings of the dtype).

    ValueError for a tolerance below 16 roundings.
    """
    eps = max(float(jnp.finfo(kind).eps) for kind in (dtype, jnp.result_type(float)))
    if tolerance is None:
        return max(_TOLERANCE, _REACHED_ULPS * eps)
    if tolerance < 16 * eps:
        raise ValueError(
            "limit_direction: tolerance must be at least 16 roundings of the flow's dtype, "
            f"{16 * eps:.1e}, got {tolerance:.1e}; raise it, or work in float64: "
            'jax.config.update("jax_enable_x64", True).'
        )
    return tolerance
