"""Theorem 1 of Yun, Krishnan & Mobahi 2021: layers tend in direction to singular vectors.

If X^T r converges in direction, to u, then v_1, ..., v_L converge in direction to singular vectors
of the data tensor M(-u) in Lim's sense (eq. 8): with unit vectors v_l and one singular value s,

    M(-u) o (v_1, ..., v_{l-1}, I, v_{l+1}, ..., v_L) = s v_l    for all l.

Conclusion and assumption are both measured here. `singular_vector_residual` is the defect of eq. 8.
`residual_direction` with `remaining_variation` measures the assumption. No data tensor is formed.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...eager_programs import eager_program
from ...networks import coefficients_and_pullback
from ...networks.pair import coefficients_like
from ...problems import Classification


class SingularVectors(eqx.Module):
    """How nearly a network's layers are singular vectors of M(-u) (Yun et al. 2021, eq. 8).

    - `residuals` (L,): |g_l - s v_l|_2 / |g_l|_2 with unit v_l, and g_l the contraction of M(-u)
      with all layers but v_l. That is the sine of the angle between v_l and g_l: dimensionless, at
      most 1; 0 if g_l = 0, which is a singular vector of value 0.
    - `value`: s = M(-u) o (v_1, ..., v_L), common to all layers, in units of |M(u)| for unit u. It
      is positive at the limit of a flow.
    """

    residuals: Float[Array, " L"]
    value: Float[Array, ""]

    @property
    def residual(self) -> Float[Array, ""]:
        """The largest of `residuals`."""
        return jnp.max(self.residuals, axis=-1)


def singular_vectors(network: Any, u: Float[Array, " d"]) -> SingularVectors:
    """The defect of eq. 8 at `network`'s layers: whether they are singular vectors of M(-u).

    **Arguments**

    - `network`: any network with one output that states its `factors` v_1, ..., v_L: all of this
      package except matrix factorizations, and a user's with `factors` and `with_factors`. No layer
      may be zero (the result is NaN then). Only the directions of layers are used.
    - `u`: shape (d,), of any length: the direction of X^T r (`residual_direction`), or of
      -sum_i nu_i y_i x_i with the multipliers of a certificate.

    Works under `jax.jit` and `jax.vmap`, and as `observe` of a flow. The network computes the
    leave-one-out contractions; no data tensor is formed.

    **Raises** ValueError for a network without factors, and for a u that does not fit.

    Source: Yun, Krishnan & Mobahi 2021, eq. (8) and Theorem 1; Lim 2005.
    """
    if not (hasattr(network, "factors") and hasattr(network, "with_factors")):
        raise ValueError(
            "singular_vectors: network must state its factors v_1, ..., v_L, got "
            f"{type(network).__name__} without `factors` and `with_factors`; Theorem 1 is about "
            "tensor networks, certify measures stationarity of any network."
        )
    shape = coefficients_like(network).shape
    u = jnp.asarray(u)
    if u.shape != shape or u.ndim != 1:
        raise ValueError(
            f"singular_vectors: u must have the shape (d,) of the coefficients, {shape}, got "
            f"{u.shape}; it is X^T r for a network with one output."
        )
    return _singular_vectors(network, u)


@eager_program()
def _singular_vectors(network, u):
    directions = tuple(_unit(v) for v in network.factors)
    beta, pullback = coefficients_and_pullback(network.with_factors(directions))
    residuals = []
    for v, g in zip(directions, pullback(_unit(-u)).factors, strict=True):
        # g is scaled to length 1: so its part orthogonal to v is resolved even if s is very small.
        g = _unit(g)
        residuals.append(jnp.linalg.norm(g - (g @ v) * v))
    return SingularVectors(jnp.stack(residuals), beta @ _unit(-u))


def singular_vector_residual(network: Any, u: Float[Array, " d"]) -> Float[Array, ""]:
    """The largest `singular_vectors(network, u).residuals`: one number for Theorem 1."""
    return singular_vectors(network, u).residual


def residual_direction(
    problem: Classification, coefficients: Float[Array, "*T d"]
) -> Float[Array, "*T d"]:
    """u = X^T r / |X^T r|_2 at linear coefficients of shape (d,), or (T, d) along a flow.

    Computed from the logarithms of the r_i, because the r_i underflow at margins of a thousand. If
    several samples share the smallest margin m, rounding of m gives an error of about m * 1e-16.

    Source: Yun, Krishnan & Mobahi 2021, Theorem 1.
    """
    if not problem.has_margins:
        raise ValueError(
            f"residual_direction: problem must be a Classification, got {type(problem).__name__}; "
            "the residuals of a regression flow vanish together with their direction."
        )
    coefficients = jnp.asarray(coefficients)
    if coefficients.ndim == 0 or coefficients.shape[-1:] != problem.coefficient_shape:
        raise ValueError(
            "residual_direction: coefficients must have shape (..., d) with d = "
            f"{problem.coefficient_shape[0]}, got {coefficients.shape}; pass solution.coefficients."
        )
    return _residual_direction(problem, coefficients)


@eager_program()
def _residual_direction(problem, coefficients):
    def at(beta):
        weights = jax.nn.softmax(problem.margin_loss.log_slope(problem.margins(beta)))
        return _unit(-problem.adjoint(problem.y * weights))

    for _ in range(coefficients.ndim - 1):
        at = jax.vmap(at)
    return at(coefficients)


def remaining_variation(directions: Float[Array, "T d"]) -> Float[Array, " T"]:
    """sup |u(s) - u(s')|_2 over saved times s, s' >= t, for each t: Cauchy's criterion.

    u converges if and only if the supremum tends to zero. The last entry is 0 by definition, so
    only the other entries show convergence. Theorems 1 and 2 of Yun, Krishnan & Mobahi 2021 assume
    this convergence of `residual_direction` along a flow.

    **Arguments**

    - `directions`: shape (T, d), unit vectors at increasing times.
    """
    directions = jnp.asarray(directions)
    if directions.ndim != 2:
        raise ValueError(
            "remaining_variation: directions must have shape (T, d), one row per saved time, got "
            f"{directions.shape}; see residual_direction."
        )
    return _remaining_variation(directions)


@jax.jit
def _remaining_variation(directions):
    times = jnp.arange(len(directions))

    def farthest_later(position):
        distances = jnp.linalg.norm(directions - directions[position][None, :], axis=1)
        return jnp.max(jnp.where(times >= position, distances, 0.0))

    return jax.lax.cummax(jax.lax.map(farthest_later, times), reverse=True)


def _unit(vector):
    largest = jnp.max(jnp.abs(vector))
    scaled = vector / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.linalg.norm(scaled)
    return scaled / jnp.where(norm > 0, norm, 1.0)
