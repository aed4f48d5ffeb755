"""Linear systems (shift I - J) x = b of implicit steps, J the Jacobian of a regression flow.

With residual r(theta) and r held fixed, the velocity F(theta, r) = -(d beta/d theta)^T X^T r
depends on theta by the second derivatives of beta only. Where these couple few parameters (in a
diagonal network those of one coordinate), J is a matrix of small blocks plus a matrix of rank n:

    J = dF/dtheta + (dF/dr) (dr/dtheta).

The blocks are inverted one by one, the rest is a system of n equations (Woodbury). The time is
linear in the number p of parameters, where that of a dense J is cubic.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..networks.closed_forms import closed_form
from ..penalized import velocity_with_decay
from .clocks import AbstractClock, PhysicalTime

Solver = Callable[[Array], Array]
# Below so many parameters, and with more samples than this share of them, one dense matrix is
# quicker.
_FEWEST_PARAMETERS, _LARGEST_SHARE = 48, 0.5
# Beyond this many equations in one matrix flows have no implicit steps: a step costs their cube.
LARGEST_MATRIX = 600
# Most entries of a matrix with p columns and a row for each sample.
_MOST_ENTRIES = 2**25


def splits(system: Any, clock: AbstractClock) -> bool:
    """Whether the systems of this flow are solved by blocks and a rest of rank n."""
    if not isinstance(clock, PhysicalTime) or not system.problem.has_residuals:
        return False
    if closed_form(system, "coupled_groups") is None:
        return False
    size, rank = system.num_parameters, _rank(system)
    pays = size >= _FEWEST_PARAMETERS and rank <= _LARGEST_SHARE * size
    return pays and rank * size <= _MOST_ENTRIES


def has_implicit_steps(system: Any, clock: AbstractClock, size: int) -> bool:
    """Whether the largest matrix of an implicit step with `size` parameters is small enough."""
    return (_rank(system) if splits(system, clock) else size) <= LARGEST_MATRIX


def _rank(system):
    return math.prod(system.problem.y.shape)


def shifted_solver(system: Any, theta: Float[Array, " p"], shift: Scalar) -> Solver:
    """The map b -> x with (shift I - J) x = b, J = d velocity/d theta, for a system that `splits`.

    Shapes: b and x (p,).
    """
    problem = system.problem

    def pulled(theta, residual):
        return system.pullback(theta)[1](problem.adjoint(-residual))

    def velocity(theta, residual):
        return velocity_with_decay(problem, pulled(theta, residual), lambda: system.counted(theta))

    def residual_of(theta):
        return problem.residual(system.coefficients(theta))

    residual, pull_residual = jax.vjp(residual_of, theta)
    basis = jnp.eye(residual.size, dtype=theta.dtype).reshape(-1, *residual.shape)
    columns = jax.vmap(lambda e: pulled(theta, e))(basis)  # (n, p): dF/dr, transposed
    rows = jax.vmap(lambda e: pull_residual(e)[0])(basis)  # (n, p): dr/dtheta
    _, along = jax.linearize(lambda theta: velocity(theta, residual), theta)
    by_groups = _solver_by_groups(along, system.coupled_groups(), shift, theta)
    solved = jax.vmap(by_groups)(columns)
    rest = jnp.linalg.inv(jnp.eye(residual.size, dtype=theta.dtype) - rows @ solved.T)

    def solve(b):
        x = by_groups(b)
        return x + (rest @ (rows @ x)) @ solved

    return solve


def _solver_by_groups(
    along: Solver, places: np.ndarray, shift: Scalar, like: Float[Array, " p"]
) -> Solver:
    """b -> (shift I - D)^-1 b, D the linear map `along`, which couples parameters of a group only.

    `places` (G, k): the parameters of each group, p where a group has fewer than k.
    """
    count, size = like.size, places.shape[1]
    # One product gives a column of every block: no parameter is in two groups.
    chosen = np.zeros((size, count + 1), like.dtype)
    chosen[np.arange(size), places] = 1
    products = jax.vmap(along)(jnp.asarray(chosen[:, :count]))
    blocks = jnp.moveaxis(jnp.pad(products, ((0, 0), (0, 1)))[:, places], 0, -1)
    inverse = jnp.linalg.inv(shift * jnp.eye(size, dtype=like.dtype)[None] - blocks)
    order = np.argsort(places, axis=None, kind="stable")[:count]

    def solve(b):
        parts = jnp.pad(b, (0, 1))[places]
        return jnp.sum(inverse * parts[:, None, :], axis=-1).reshape(-1)[order]

    return solve
