"""Sizes of parameters, from which absolute tolerances are derived."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Scalar

from ..eager_programs import eager_program
from .clocks import PhysicalTime
from .system import System

# A parameter at most this many times smaller than the largest one has the tolerance of the largest.
_LARGEST_RATIO_WITHOUT_OWN_TOLERANCE = 10.0


def size_of_start(theta: Any, problem: Any, depth: int) -> Any:
    """The largest parameter. From zero, where one layer moves, the size that changes the loss."""
    if not isinstance(theta, Tracer):  # NumPy has the answer in microseconds
        largest = np.max(np.abs(theta))
        if largest > 0:
            return largest
    return _size_by_jax(theta, problem, depth)


@eager_program()  # one program: outside of `jax.jit` some twenty small ones would be compiled
def _size_by_jax(theta: Float[Array, " p"], problem: Any, depth: int) -> Scalar:
    largest = jnp.max(jnp.abs(theta))
    size = _root(_size_that_changes_loss(theta, problem), max(depth, 1))
    return jnp.where(largest > 0, largest, size)


def tolerances_of(system: Any, theta: Float[Array, " p"], atol: Scalar, clock: Any) -> Array:
    """The absolute tolerance of each number of a state; `atol` if a system has no layers."""
    if not isinstance(system, System):
        return atol
    shares = shares_of_size(system, theta)
    if not isinstance(clock, PhysicalTime):
        shares = jnp.concatenate([shares, jnp.ones(2, shares.dtype)])
    return atol * shares


def _size_that_changes_loss(theta, problem) -> Scalar:
    """The size of coefficients whose linearised effect is the loss at 0; 1 if there is none."""
    beta = jnp.zeros(problem.coefficient_shape, theta.dtype)
    slope = jnp.max(jnp.abs(problem.adjoint(problem.residual(beta))))
    size = problem.loss(beta) / jnp.where(slope > 0, slope, 1.0)
    return jnp.where((slope > 0) & (size > 0), size, 1.0)


def shares_of_size(system: System, theta: Float[Array, " p"]) -> Float[Array, " p"]:
    """The sizes of single parameters divided by the largest parameter, at most 1.

    An error of rtol times the largest parameter is too large for two kinds of parameters:

    * A small one that is multiplied with small ones. A weight of 1e7 that no data act on says
      nothing about weights of 1e-3 beside it.
    * A zero one that is multiplied with large ones. From layers (0, 1e4) the flow moves the first
      layer by 1e-4 only.

    The slope d beta/d theta_j is the product of what theta_j is multiplied with, or a sum of such
    products with fixed signs.
    """
    if system.depth < 2:
        return jnp.ones_like(theta)
    problem: Any = system.problem
    signs = np.random.default_rng(0).choice([-1.0, 1.0], problem.coefficient_shape)
    slope = jnp.abs(system.pullback(theta)[1](jnp.asarray(signs, theta.dtype)))
    own = jnp.abs(theta)
    of_neighbours = _root(slope, system.depth - 1)
    moves = _size_that_changes_loss(theta, problem) / jnp.where(slope > 0, slope, 1.0)
    moves = jnp.where(slope > 0, moves, jnp.inf)
    size = jnp.minimum(jnp.maximum(own, of_neighbours), jnp.maximum(own, moves))
    largest = jnp.max(own)
    share = _LARGEST_RATIO_WITHOUT_OWN_TOLERANCE * size / jnp.where(largest > 0, largest, 1.0)
    # Zeros that are multiplied with zeros have no size to derive a tolerance from.
    share = jnp.where((size > 0) & (largest > 0) & jnp.isfinite(share), share, 1.0)
    return jax.lax.stop_gradient(jnp.clip(share, jnp.finfo(theta.dtype).eps, 1.0))


def _root(value: Array, order: int) -> Array:
    """value^(1/order); without a power function, which is slow, where there is another way."""
    if order == 1:
        return value
    return jnp.sqrt(value) if order == 2 else value ** (1 / order)
