"""Limits that theorems prove, as a traceable function: for many starts in one program.

`predict` measures every assumption of every theorem on the host and says what it found in words.
This takes milliseconds. The function here decides less, and takes microseconds under `jax.vmap`:
only theorems whose limit is a closed form or a convex program, and only what these prove.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...lapack_calls import in_turn
from ...networks import DifferentialDiagonalNetwork
from ...networks.closed_forms import closed_form
from ...networks.effective_start import two_layers_of
from ...networks.pair import check_pair, coefficients_like
from ...problems import Regression
from ..assumptions import is_tensor_network, rounding
from .other_mirror_maps import differential_limit, two_layer_limit
from .yun_theorem_5 import limit_point
from .yun_theorem_6 import limit_point_two_layer


class ProvedLimit(eqx.Module):
    """The limit of a flow, and whether a theorem proves it.

    - `limit`: the linear coefficients, of their shape, in units of y/X. NaN unless `is_proved`.
    - `is_proved`: all assumptions of a theorem hold. If it is False, `predict` may know more.
    """

    limit: Float[Array, "..."]
    is_proved: Bool[Array, ""]


def proved_limit(network: Any, problem: Any) -> ProvedLimit:
    """The limit of gradient flow from `network`, if one of four theorems proves it.

    They are about `Regression` with at most d samples, scalar output and a convex loss with its
    only minimum at zero:

    - two layers with a real orthogonal decomposition, any unbalanced start: Woodworth et al. 2020,
      Azulay et al. 2021 (`two_layer_limit`);
    - L >= 3 layers with real singular components, the start of Theorem 5 of Yun, Krishnan & Mobahi
      2021 (`limit_point`);
    - differential networks of depth D >= 3 with w_+ = w_-: Woodworth et al. 2020, Theorem 3;
    - other linear tensor networks of two layers and one sample: Yun et al. 2021, Theorem 6.

    Where `is_proved`, `predict` has the kind "exact" and the same limit. Traceable by `jax.jit` and
    `jax.vmap`, over networks, data or both.

    **Raises** ValueError if network and problem do not fit each other.
    """
    shape, dtype = check_pair(network, problem), coefficients_like(network).dtype
    found = _found(network, problem) if _is_covered(network, problem) else None
    if found is None:
        return ProvedLimit(jnp.full(shape, jnp.nan, dtype), jnp.asarray(False))
    limit, is_proved = found
    is_proved = is_proved & jnp.all(jnp.isfinite(limit))
    return ProvedLimit(jnp.where(is_proved, limit, jnp.nan), is_proved)


def _is_covered(network, problem) -> bool:
    if not isinstance(problem, Regression) or problem.y.ndim != 1:
        return False
    has_bias = getattr(network, "has_bias", False)
    return not has_bias and bool(problem.residual_loss.is_convex_with_minimum_at_zero)


def _found(network, problem):
    """The limit, and whether the theorem's assumptions hold; None without a theorem."""
    layers = two_layers_of(network)
    if layers is not None:
        # Layers that were found numerically are only as accurate as the test of the decomposition.
        is_closed_form = closed_form(network, "two_layers") is not None
        eps = float(jnp.finfo(layers.first.dtype).eps)
        return _two_layers(layers, problem, rounding(layers.first) if is_closed_form else eps**0.5)
    if isinstance(network, DifferentialDiagonalNetwork):
        return _differential(network, problem)
    if not is_tensor_network(network):
        return None
    if network.depth > 2:
        return _theorem_5(network, problem)
    return _theorem_6(network, problem) if problem.X.shape[0] == 1 else None


def _two_layers(layers, problem, tolerance: float):
    rows = problem.X if layers.S is None else problem.X @ layers.S.T
    first, second = layers.first, layers.second
    gap = jnp.min(jnp.abs((first - second) * (first + second)))
    largest = jnp.maximum(jnp.max(jnp.abs(first)), jnp.max(jnp.abs(second)))
    full = _have_full_rank(rows)
    applies = full & (gap > tolerance * largest**2)
    # A start outside of the theorem may need many iterations, for which all lanes would wait.
    first, second = jnp.where(applies, first, 1.0), jnp.where(applies, second, 0.0)
    found = two_layer_limit(layers.S, in_turn(problem.X, full), problem.y, first, second)
    return found.coefficients, applies & found.converged


def _theorem_5(network, problem):
    components = closed_form(network, "singular_components")
    if components is None or any(jnp.iscomplexobj(part) for part in components):
        return None
    values, S = components
    rows, sizes = problem.X if S is None else problem.X @ S.T, jnp.abs(values)
    largest = jnp.max(sizes)
    zero = rounding(sizes) * largest
    are_equal = jnp.max(jnp.abs(sizes[:-1] - sizes[:1])) <= zero
    starts = are_equal & (jnp.max(sizes[-1]) <= zero) & (jnp.min(sizes[0]) > zero)
    full = _have_full_rank(rows)
    applies = full & starts
    eta = jnp.where(applies, sizes[0], 1.0)
    alpha = jnp.max(eta)
    signs = jnp.prod(jnp.sign(values[:-1]), axis=0)
    depth = values.shape[0]
    rows = in_turn(rows, full) * signs[None]
    found = limit_point(None, rows, problem.y, depth, alpha, eta / alpha)
    rho = signs * found.rho
    return rho if S is None else S.T @ rho, applies & found.converged


def _differential(network, problem):
    plus, minus, depth = network.positive, network.negative, network.depth
    if depth % 2 == 0:
        plus, minus = jnp.abs(plus), jnp.abs(minus)
    sizes = jnp.abs(plus)
    largest = jnp.maximum(jnp.max(sizes), jnp.max(jnp.abs(minus)))
    are_equal = jnp.max(jnp.abs(plus - minus)) <= rounding(plus) * largest
    full = _have_full_rank(problem.X)
    applies = full & are_equal & (jnp.min(sizes) > 0)
    sizes = jnp.where(applies, sizes, 1.0)
    alpha = jnp.max(sizes)
    found = differential_limit(in_turn(problem.X, full), problem.y, depth, alpha, sizes / alpha)
    return found.coefficients, applies & found.converged


def _theorem_6(network, problem):
    found = limit_point_two_layer(network, problem)
    largest = jnp.max(jnp.stack([jnp.vdot(v, v).real for v in network.factors]))
    is_zero = ~jnp.any(problem.X != 0)
    return found.coefficients, ~is_zero & (found.gap > rounding(found.gap) * largest)


def _have_full_rank(rows):
    """Whether the rows are independent, as `row_space` decides it."""
    sizes = jnp.linalg.svd(rows, compute_uv=False)
    eps = float(jnp.finfo(rows.dtype).eps)
    is_wide = rows.shape[0] <= rows.shape[1]
    return is_wide & (sizes[-1] > max(rows.shape) * eps * sizes[0])
